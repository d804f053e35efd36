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
        self.std = torch.from_numpy(np.asarray(statistics.std, np.float32))
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
) -> Likelihood:
    """y_m = H_m(x_m) + noise for each modality, with its own operator, error and mask.

    Arguments:
        observed: for the trajectory's days, one a modality.
        spec: of the decoded state.
        decode: latents (B, L, Z, h, w) -> standardised channels (B, L, C, H, W).
        physical: to the observations' units.

    Raises:
        ValueError: nothing was observed.
    """
    masks = [torch.from_numpy(seen.mask) for seen in observed]
    weights = [None if seen.weight_HW is None else torch.from_numpy(seen.weight_HW) for seen in observed]
    if not any(mask.any() for mask in masks):
        raise ValueError("observations: every value is masked; at least one is needed")

    def predict(z: Tensor) -> Tensor:
        x = physical(decode(z))
        parts = [
            observe(seen.operator, x[:, :, spec.channels(seen.name)], weight)
            for seen, weight in zip(observed, weights, strict=True)
        ]
        return torch.cat([part[:, mask] for part, mask in zip(parts, masks, strict=True)], dim=1)

    return Likelihood(
        predict,
        torch.cat([torch.from_numpy(seen.value)[m] for seen, m in zip(observed, masks, strict=True)]).float(),
        torch.cat([torch.from_numpy(seen.error_std)[m] for seen, m in zip(observed, masks, strict=True)]).float(),
        torch.cat([_scale(seen, spec, physical)[m] for seen, m in zip(observed, masks, strict=True)]),
    )


def _scale(seen: Gridded, spec: StateSpec, physical: Physical) -> Tensor:
    """Prior standard deviation of each observed value: the departure of one standard deviation, in its units."""
    part = spec.channels(seen.name)
    shape = (1, len(physical.mean), len(physical.std), *physical.mean.shape[-2:])
    one = physical(torch.ones(shape)) - physical(torch.zeros(shape))
    level = one[0].mean(dim=(-1, -2))[:, part]
    return level[:, :, None, None].expand(seen.mask.shape)
