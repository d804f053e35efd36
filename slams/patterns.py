"""Leading patterns of windows of latents, taken from a covariance localised in distance, and their seasons.

A record of some years gives the covariance of far places only with chance correlations, which outweigh the true ones;
damping them with distance (Houtekamer & Mitchell 2001) is what makes such covariances worth having (docs/adr/0003). The
localised covariance rho o S is a matrix of the state's size, never formed: with rho(a, b) = sum_j r_j(a) r_j(b) it is
applied as sum_j r_j o (S (r_j o x)), and its leading eigenvectors are found from such products alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from slams.localisation import taper_functions
from slams.rng import normal
from slams.spec import Grid
from slams.statistics import DAYS_PER_YEAR

SEASONS = 12  # of the year, each with its own covariance
SEASON_DAYS = 60  # on each side of a season's middle that its covariance is taken from
SUMMARY = 400  # vectors that stand for all windows when patterns are sought
COVARIANCE_WINDOWS = 1000  # evenly spread, that the covariance along them is taken from
PASSES = 2  # over the localised covariance before the last; with one alone, analyses are 4 % worse
SUMMED_COLUMNS = 2**16  # of the record, at once
OVERSAMPLING = 40  # directions beyond the patterns asked for
SMALLEST_VARIANCE = 1e-6  # of a mode at a frame: a mode the train years never excited stays possible


def season_of(day_BL5: Tensor) -> Tensor:
    """Number of the season of each window's middle frame, (B,), from `slams.statistics.day_features`."""
    middle = day_BL5[:, day_BL5.shape[1] // 2]
    share = torch.atan2(middle[:, 2], middle[:, 1]) / (2 * math.pi) % 1.0
    return (share * SEASONS).long().clamp_max(SEASONS - 1)


class Patterns(nn.Module):
    """Orthonormal patterns of windows; untrained until `fit`.

    Arguments:
        shape_LZHW: of a window.
        count: P.
        half_width_km: of the localisation; infinite = none.
    """

    def __init__(self, shape_LZHW: tuple[int, ...], count: int, half_width_km: float = math.inf) -> None:
        super().__init__()
        self.shape, self.half_width_km = shape_LZHW, half_width_km
        self.register_buffer("patterns", torch.zeros(count, math.prod(shape_LZHW)))

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes (B, P), and what the patterns leave of windows (B, L, Z, H, W)."""
        amplitude = z.flatten(1) @ self.get_buffer("patterns").mT
        return amplitude, z - self.sum(amplitude)

    def sum(self, amplitude_BP: Tensor) -> Tensor:
        """(B, P) -> (B, L, Z, H, W)."""
        return (amplitude_BP @ self.get_buffer("patterns")).unflatten(1, self.shape)

    @torch.no_grad()
    def fit(self, windows_BLZHW: np.ndarray) -> Patterns:
        """Become the leading eigenvectors of the windows' localised covariance, by a randomised range finder (Halko et
        al. 2011, algorithms 4.4 and 5.3)."""
        device = self.get_buffer("patterns").device
        record_BD = _summary(torch.from_numpy(windows_BLZHW).flatten(1), SUMMARY, device)
        tapers_JS, n_state = self._tapers(), math.prod(self.shape)
        wanted = min(len(self.get_buffer("patterns")) + OVERSAMPLING, n_state)
        basis = torch.from_numpy(normal(0, "init", shape=(wanted, n_state))).to(device)
        for _ in range(PASSES):
            basis = torch.linalg.qr(_localised(basis, record_BD, tapers_JS).mT)[0].mT.contiguous()
        mixture = torch.linalg.eigh(_covariance(_seen(basis, record_BD, tapers_JS)).double())[1]
        self.get_buffer("patterns").copy_(mixture[:, -len(self.get_buffer("patterns")) :].float().mT @ basis)
        return self

    def seen(self, windows_BLZHW: np.ndarray) -> Tensor:
        """Products of the tapered patterns with each window, (J, P, B): the localised covariance's other half."""
        patterns = self.get_buffer("patterns")
        return _seen(patterns, torch.from_numpy(windows_BLZHW).flatten(1).to(patterns), self._tapers())

    def _tapers(self) -> Tensor:
        tapers = taper_functions(Grid(*self.shape[-2:]), self.half_width_km)
        return torch.from_numpy(tapers).to(self.get_buffer("patterns"))


class SeasonalAmplitudes(nn.Module):
    """Covariance of the amplitudes of patterns, one for each season; untrained until `fit`.

    Arguments:
        count: P.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.zeros(SEASONS, count, count))
        self.register_buffer("variance", torch.zeros(SEASONS, count))

    def forward(self, amplitude_BP: Tensor, alpha_B: Tensor, sigma_B: Tensor, season_B: Tensor) -> Tensor:
        """Amplitudes expected of noisy ones."""
        share = gain(self.get_buffer("variance")[season_B], alpha_B[:, None], sigma_B[:, None])
        # one matrix for all windows and each season that there is: a matrix for each window would fill the memory
        present = [season for season in range(SEASONS) if (season_B == season).any()] or [0]
        found = torch.zeros_like(amplitude_BP)
        for season in present:
            axes = self.get_buffer("axes")[season]
            found = torch.where((season_B == season)[:, None], (amplitude_BP @ axes * share) @ axes.mT, found)
        return found

    @torch.no_grad()
    def fit(self, patterns: Patterns, windows_BLZHW: np.ndarray, year_B: np.ndarray) -> None:
        """Estimate from windows, each at its share of the year, 0 to 1; all of them count where a season has none."""
        every = math.ceil(len(windows_BLZHW) / COVARIANCE_WINDOWS)
        seen_JPB, year_B = patterns.seen(windows_BLZHW[::every]), year_B[::every]
        for season in range(SEASONS):
            apart = np.abs((year_B - (season + 0.5) / SEASONS + 0.5) % 1.0 - 0.5)
            inside = torch.from_numpy(apart * DAYS_PER_YEAR <= SEASON_DAYS).to(seen_JPB.device)
            of_season = seen_JPB[:, :, inside] if inside.any() else seen_JPB
            variance, axes = torch.linalg.eigh(_covariance(of_season).double())
            self.get_buffer("axes")[season] = axes.float()
            self.get_buffer("variance")[season] = variance.clamp_min(SMALLEST_VARIANCE).float()


def _summary(record_BD: Tensor, count: int, device: torch.device) -> Tensor:
    """At most so many vectors, on a device, whose mean outer product is nearly that of all the windows: their scaled
    leading empirical orthogonal functions, by the smaller of two matrices."""
    if len(record_BD) <= count:
        return record_BD.to(device)
    few = len(record_BD) < record_BD.shape[1]
    parts = record_BD.split(SUMMED_COLUMNS, dim=1) if few else (record_BD.mT,)  # a record may fill a device
    power, vectors = torch.linalg.eigh(
        sum((part @ part.mT for part in _on(device, parts)), torch.zeros((), device=device))
    )
    power, vectors = power[-count:].clamp_min(0), vectors[:, -count:]
    if few:
        found = torch.cat([vectors.mT @ part for part in _on(device, parts)], dim=1)
    else:
        found = vectors.mT * power[:, None].sqrt()
    return found * (len(found) / len(record_BD)) ** 0.5


def _on(device: torch.device, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    return (part.to(device) for part in parts)


def gain(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha v / (alpha^2 v + sigma^2): what a noisy coordinate of variance v is worth."""
    return alpha * variance / (alpha**2 * variance + sigma**2)


def _tapered(x_KD: Tensor, taper_S: Tensor) -> Tensor:
    return (x_KD.unflatten(1, (-1, len(taper_S))) * taper_S).flatten(1)


def _localised(x_KD: Tensor, record_BD: Tensor, tapers_JS: Tensor) -> Tensor:
    """rho o S, applied to each row."""
    parts = (_tapered(_tapered(x_KD, t) @ record_BD.mT @ record_BD, t) for t in tapers_JS)
    return sum(parts, torch.zeros_like(x_KD)) / len(record_BD)


def _seen(x_KD: Tensor, record_BD: Tensor, tapers_JS: Tensor) -> Tensor:
    return torch.stack([_tapered(x_KD, taper) @ record_BD.mT for taper in tapers_JS])


def _covariance(seen_JPB: Tensor) -> Tensor:
    """rho o S between patterns, (P, P), from the products of `Patterns.seen`."""
    flat = seen_JPB.transpose(0, 1).flatten(1)
    return flat @ flat.mT / seen_JPB.shape[2]
