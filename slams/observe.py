"""Observation operators on fields, and the likelihood of physical observations of a latent trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from slams.contracts.observations import Gridded, Operator
from slams.guidance import Likelihood
from slams.spec import StateSpec
from slams.statistics import Statistics

LOG_RAIN_MAX = 7.0  # log(1 + 1100 mm/day): beyond any daily gauge total, and short of overflow


def observe(operator: Operator, x: Tensor, weight_HW: Tensor | None = None) -> Tensor:
    """Apply an operator to fields (..., H, W) -> (..., y, x).

    Arguments:
        weight_HW: what each cell counts in a block mean; a block whose cells count nothing gives 0.

    Raises:
        ValueError: the factor does not divide the field.
    """
    f = operator.factor
    if x.shape[-2] % f or x.shape[-1] % f:
        raise ValueError(f"factor: {f} does not divide the field of {x.shape[-2]} x {x.shape[-1]} cells")
    if operator.kind == "block_mean":
        if weight_HW is None:
            return _block_mean(x, f)
        share = _block_mean(weight_HW, f)
        return torch.where(share > 0, _block_mean(x * weight_HW, f) / share.clamp_min(1e-12), 0.0)
    if operator.kind == "subsample":
        return x[..., f // 2 :: f, f // 2 :: f]
    return x


def _block_mean(x: Tensor, f: int) -> Tensor:
    *lead, height, width = x.shape
    return x.reshape(*lead, height // f, f, width // f, f).mean(dim=(-1, -3))


class Physical:
    """Standardised channels to physical units, differentiably, for the days of one trajectory.

    Arguments:
        statistics: of the trained model.
        time: valid days, (L,).
    """

    def __init__(self, statistics: Statistics, time: np.ndarray) -> None:
        self.mean = torch.from_numpy(statistics.mean(time))
        self.std = torch.from_numpy(np.asarray(statistics.std, np.float32))  # (C, 1, 1)
        self.log1p = torch.from_numpy(np.asarray(statistics.log1p, bool))

    def __call__(self, x_BLCHW: Tensor) -> Tensor:
        n = x_BLCHW.shape[2]
        out = x_BLCHW * self.std[:n] + self.mean[:, :n]
        if not self.log1p[:n].any():
            return out
        log = self.log1p[:n, None, None]
        return torch.where(log, torch.expm1(torch.where(log, out, 0.0).clamp(max=LOG_RAIN_MAX)), out)


def physical_likelihood(
    observed: Sequence[Gridded],
    spec: StateSpec,
    decode: Callable[[Tensor], Tensor],
    physical: Physical,
    representation_std_C: Tensor,
) -> Likelihood:
    """y_m = H_m(x_m) + noise for each modality, with its own operator, error and mask.

    Rain that is standardised as log(1 + rain) is also compared so, log(1 + y) with error std / (1 + y) against
    log(1 + H(x)): its errors grow with its amount, and the tangent stays bounded (Lopez 2011).

    Arguments:
        observed: for the trajectory's days, one a modality.
        spec: of the decoded state.
        decode: latents (B, L, Z, h, w) -> standardised channels (B, L, C, H, W).
        physical: to the observations' units.
        representation_std_C: what the decoder cannot represent of each channel, in the observations' units. It is
            added to the observation error whole, with no credit for the averaging of a block.

    Raises:
        ValueError: nothing was observed.
    """
    parts = [_Part(seen, spec, physical, representation_std_C) for seen in observed]
    if not any(part.mask.any() for part in parts):
        raise ValueError("observations: every value is masked; at least one is needed")

    def predict(z: Tensor) -> Tensor:
        x = physical(decode(z))
        return torch.cat([part.predict(x) for part in parts], dim=1)

    y, std, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("y", "std", "scale"))
    return Likelihood(predict, y, std, scale)


class _Part:
    """What one modality adds to a likelihood, in the units it is compared in."""

    def __init__(self, seen: Gridded, spec: StateSpec, physical: Physical, representation_std_C: Tensor) -> None:
        self.operator, self.channels = seen.operator, spec.channels(seen.name)
        self.mask = torch.from_numpy(seen.mask)
        self.weight = None if seen.weight_HW is None else torch.from_numpy(seen.weight_HW)
        self.log = bool(physical.log1p[self.channels].any())
        self.y = torch.from_numpy(seen.value)[self.mask].float()
        unresolved = representation_std_C[self.channels, None, None].expand(seen.mask.shape)
        self.std = torch.hypot(torch.from_numpy(seen.error_std).float(), unresolved)[self.mask]
        self.scale = physical.std[self.channels].expand(seen.mask.shape)[self.mask]
        if self.log:
            amount = self.y.clamp_min(0)
            self.y, self.std = torch.log1p(amount), self.std / (1 + amount)

    def predict(self, x_BLCHW: Tensor) -> Tensor:
        value = observe(self.operator, x_BLCHW[:, :, self.channels], self.weight)[:, self.mask]
        return torch.log1p(value.clamp_min(0)) if self.log else value
