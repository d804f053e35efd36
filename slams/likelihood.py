"""The likelihood of what was observed, given a latent trajectory: in physical units, or of the latents themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from slams.contracts.gridded import Gridded
from slams.contracts.stations import Stations
from slams.guidance import Likelihood
from slams.interpolate import usable
from slams.observe import Interpolation, needed_cells, observe
from slams.spec import StateSpec
from slams.statistics import Statistics

LOG_RAIN_MAX = 7.0  # log(1 + 1100 mm/day): beyond any daily gauge total, and short of overflow


class Physical:
    """Standardised channels to physical units, differentiably, for the days of one trajectory.

    Arguments:
        statistics: of the trained model.
        time: valid days, (L,).
        device: of the states, and of every likelihood made with it.
    """

    def __init__(self, statistics: Statistics, time: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.mean = torch.from_numpy(statistics.mean(time)).to(device)
        self.std = torch.from_numpy(np.asarray(statistics.std, np.float32)).to(device)  # (C, 1, 1)
        self.log1p = torch.from_numpy(np.asarray(statistics.log1p, bool)).to(device)

    def at(self, frames: Tensor) -> Physical:
        """For some of the days."""
        some = copy(self)
        some.mean = self.mean[frames]
        return some

    def __call__(self, x_BLCHW: Tensor) -> Tensor:
        n = x_BLCHW.shape[2]
        out = x_BLCHW * self.std[:n] + self.mean[:, :n]
        if not self.log1p[:n].any():
            return out
        log = self.log1p[:n, None, None]
        return torch.where(log, torch.expm1(torch.where(log, out, 0.0).clamp(max=LOG_RAIN_MAX)), out)


@dataclass(frozen=True)
class _Part:
    """What one modality adds to a likelihood: H, from states (B, L, C, H, W) to (B, N), and N numbers of each kind."""

    apply: Callable[[Tensor], Tensor]
    y: Tensor
    std: Tensor
    scale: Tensor

    def in_logarithms(self) -> _Part:
        """Compared as log(1 + y), with error std / (1 + y)."""
        amount = self.y.clamp_min(0)

        def apply(x_BLCHW: Tensor) -> Tensor:
            return torch.log1p(self.apply(x_BLCHW).clamp_min(0))

        return _Part(apply, torch.log1p(amount), self.std / (1 + amount), self.scale)


def physical_likelihood(
    observed: Sequence[Gridded | Stations],
    spec: StateSpec,
    decode: Callable[[Tensor, np.ndarray], Tensor],
    physical: Physical,
    representation_std_C: Tensor,
    inflation: Mapping[str, float] | None = None,
) -> Likelihood:
    """y_m = H_m(x_m) + noise for each modality, with its own operator, error and mask.

    Rain that is standardised as log(1 + rain) is also compared so, log(1 + y) with error std / (1 + y) against
    log(1 + H(x)): its errors grow with its amount, and the tangent stays bounded (Lopez 2011).

    Only days of which anything was observed are decoded, all modalities at once.

    Arguments:
        observed: for the trajectory's days; a modality may stand there twice, on a grid and at stations.
        spec: of the decoded state.
        decode: latents (B, L, Z, h, w) and needed cells (L, H, W) -> standardised channels (B, L, C, H, W), right
            in those cells; of any number of days.
        physical: to the observations' units.
        representation_std_C: what the decoder cannot represent of each channel, in the observations' units. It is
            added to the observation error whole, with no credit for the averaging of a block.
        inflation: factor on the error of a modality, 1 unless told: errors of neighbouring dense observations are not
            independent, as the likelihood takes them to be, and count too much together.

    Raises:
        ValueError: nothing was observed, naming the modalities.
    """
    needed = needed_cells(observed, spec)
    frames = np.flatnonzero(needed.any(axis=(1, 2)))
    if not len(frames):
        names = ", ".join(dict.fromkeys(seen.name for seen in observed))
        raise ValueError(f"observations: every value of {names} is masked; at least one is needed")
    parts = [
        _part(seen, spec, physical, representation_std_C, frames, (inflation or {}).get(seen.name, 1.0))
        for seen in observed
    ]
    some, needed = torch.from_numpy(frames), needed[frames]
    physical_some = physical.at(some)

    def predict(z: Tensor) -> Tensor:
        x = physical_some(decode(z[:, some], needed))
        return torch.cat([part.apply(x) for part in parts], dim=1)

    y, std, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("y", "std", "scale"))
    return Likelihood(predict, y, std, scale)


def _part(
    seen: Gridded | Stations,
    spec: StateSpec,
    physical: Physical,
    unresolved_C: Tensor,
    frames: np.ndarray,
    inflation: float,
) -> _Part:
    channels = spec.channels(seen.name)
    prior, unresolved = physical.std[channels, 0, 0], unresolved_C[channels]
    if isinstance(seen, Stations):
        part = _at_stations(seen, spec, prior, unresolved, frames)
    else:
        part = _on_grid(seen, spec, prior, unresolved, frames)
    part = replace(part, std=part.std * inflation)
    return part.in_logarithms() if physical.log1p[channels].any() else part


def _on_grid(seen: Gridded, spec: StateSpec, prior_C: Tensor, unresolved_C: Tensor, frames: np.ndarray) -> _Part:
    channels, mask = spec.channels(seen.name), torch.from_numpy(seen.mask[frames])
    weight = None if seen.weight_HW is None else torch.from_numpy(seen.weight_HW).to(prior_C.device)
    y, error = (torch.from_numpy(part[frames]).float()[mask].to(prior_C) for part in (seen.value, seen.error_std))
    prior, unresolved = (part[:, None, None].expand(mask.shape)[mask] for part in (prior_C, unresolved_C))

    def apply(x_BLCHW: Tensor) -> Tensor:
        return observe(seen.operator, x_BLCHW[:, :, channels], weight)[:, mask]

    return _Part(apply, y, torch.hypot(error, unresolved), prior)


def _at_stations(seen: Stations, spec: StateSpec, prior_C: Tensor, unresolved_C: Tensor, frames: np.ndarray) -> _Part:
    """Between levels, a channel's prior and unresolved standard deviations are interpolated as its values are."""
    used, at = usable(seen, spec)
    y, error = (torch.from_numpy(part[used]).float().to(prior_C) for part in (seen.value, seen.error_std))
    weight, channel = torch.from_numpy(at.weight).float().to(prior_C), torch.from_numpy(at.channel)
    prior, unresolved = ((weight * part[channel]).sum(dim=1) for part in (prior_C, unresolved_C))
    frame, shape = np.searchsorted(frames, seen.frame[used]), (spec.n_channels, *spec.grid.shape)
    apply = Interpolation(at, frame, shape, spec.channels(seen.name).start, prior_C.device)
    return _Part(apply, y, torch.hypot(error, unresolved), prior)


def latent_likelihood(seen: Gridded, device: torch.device | str = "cpu") -> Likelihood:
    """y_z = A(z) + noise: the published experiment, where the true state's latents are observed (Qu et al. 2024).

    Nothing is decoded. Values and errors are in units of the standardised latents, whose standard deviation over the
    train years is 1; the published code adds its noise to the encoder's output as it comes, whose scale is another
    one in every training. `Observations.check_latents` refuses latents of another autoencoder.

    Arguments:
        seen: the group ``latent`` of a set in latent space, for the trajectory's days.
        device: of the latents.

    Raises:
        ValueError: nothing was observed.
    """
    frames = np.flatnonzero(seen.mask.any(axis=(1, 2, 3)))
    if not len(frames):
        raise ValueError(f"observations: every value of {seen.name} is masked; at least one is needed")
    some, mask = torch.from_numpy(frames), torch.from_numpy(seen.mask[frames])
    y, std = (torch.from_numpy(part[frames]).float()[mask].to(device) for part in (seen.value, seen.error_std))
    return Likelihood(lambda z: observe(seen.operator, z[:, some])[:, mask], y, std, torch.ones_like(y))
