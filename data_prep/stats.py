"""Statistics of the train years, streamed over blocks of days in float64.

The climatology is a least-squares fit of a mean and two annual harmonics at each cell and channel, over the days
that were observed there; the standard deviation is that of the departures from it, area-weighted, one a channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from slams.contracts.archive import Archive
from slams.statistics import Kind, Statistics, day_features

YEAR_DAYS = 365
OBSERVED_SHARE = 0.5  # a cell counts as observed where it has this share of the days of the channel's best cell


def fit_statistics(
    archive: Archive, kind: Kind, log_precipitation: bool, static: dict[str, np.ndarray]
) -> tuple[Statistics, list[float]]:
    """Statistics of an archive's train years.

    Returns:
        The statistics, and each channel's standard deviation over all cells and days in physical units.

    Raises:
        ValueError: a channel was never observed.
    """
    days = _with_values(archive, archive.days("train"))
    n_basis = 1 if kind == "scalar" else day_features(archive.time[:1]).shape[1]
    log1p = np.array([log_precipitation and m.name == "precipitation" for m in archive.spec.modalities])
    log1p = np.repeat(log1p, [m.n_channels for m in archive.spec.modalities])
    unit = Statistics(np.zeros((1, *_per_channel(log1p))), np.ones(_per_channel(log1p)), log1p, np.zeros(0))
    sums = Sums.empty(n_basis, archive.spec.n_channels, archive.spec.grid.shape)
    for block in archive.blocks(days):
        sums.add(unit.standardise(archive.read(block), archive.time[block]), day_features(archive.time[block]))
    most = sums.count.max(axis=(1, 2), keepdims=True)
    observed = (sums.count > 0) & (sums.count >= OBSERVED_SHARE * most)
    for name, seen in zip(archive.spec.channel_names, observed, strict=True):
        if not seen.any():
            raise ValueError(f"{archive.path}: {name} is missing on every train day")
    if most.max() < YEAR_DAYS:
        sums = sums.of_the_mean()  # there is no annual cycle to fit
    harmonics = _scalar_mean(archive, sums) if kind == "scalar" else sums.solve(observed)
    centred = Statistics(harmonics.astype(np.float32), unit.std, log1p, observed)
    std, global_std = _deviations(archive, centred, days)
    return Statistics(centred.harmonics, std, log1p, observed, static), global_std


def _with_values(archive: Archive, days: np.ndarray) -> np.ndarray:
    """Those on which some modality was observed."""
    missing = archive.attributes["missing_days"]
    nowhere = set.intersection(*(set(missing.get(name, ())) for name in archive.spec.names))
    return days[[str(day) not in nowhere for day in archive.time[days]]]


def _per_channel(value: np.ndarray) -> tuple[int, int, int]:
    return len(value), 1, 1


@dataclass
class Sums:
    """Sums over days for a least-squares fit on K functions of the day, cell by cell, values may be missing.

    Two of them over different days add up to that over all. The matrices of a channel are kept cell by cell only
    where something is missing; elsewhere they are the same.

    Arguments:
        pairs: sum of b b' over all days, (K, K).
        lacking: channel -> the same over the days on which a cell has no value, (K, K, H, W).
        right: sum of b x over the values, (K, C, H, W).
        count: values, (C, H, W).
    """

    pairs: np.ndarray
    right: np.ndarray
    count: np.ndarray
    lacking: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(cls, n_basis: int, n_channels: int, shape_HW: tuple[int, int]) -> Sums:
        shape = (n_channels, *shape_HW)
        return cls(np.zeros((n_basis, n_basis)), np.zeros((n_basis, *shape)), np.zeros(shape))

    def add(self, x_LCHW: np.ndarray, features_LK: np.ndarray) -> None:
        """Further days; features beyond the first K are not used."""
        basis = features_LK[:, : len(self.pairs)]
        pairs = np.einsum("lk,lm->lkm", basis, basis)
        self.pairs += pairs.sum(axis=0)
        for channel in range(x_LCHW.shape[1]):
            x = x_LCHW[:, channel].astype(np.float64)
            seen = np.isfinite(x)
            self.right[:, channel] += np.tensordot(basis.T, np.where(seen, x, 0), 1)
            self.count[channel] += seen.sum(axis=0)
            if not seen.all():
                self._lack(channel, np.tensordot(pairs, (~seen).astype(np.float64), (0, 0)))

    def _lack(self, channel: int, pairs_KKHW: np.ndarray) -> None:
        self.lacking[channel] = self.lacking[channel] + pairs_KKHW if channel in self.lacking else pairs_KKHW

    def __add__(self, other: Sums) -> Sums:
        found = Sums(self.pairs + other.pairs, self.right + other.right, self.count + other.count, dict(self.lacking))
        for channel, pairs in other.lacking.items():
            found._lack(channel, pairs)
        return found

    def of_the_mean(self) -> Sums:
        """Those of a fit on the first function alone."""
        lacking = {channel: pairs[:1, :1] for channel, pairs in self.lacking.items()}
        return Sums(self.pairs[:1, :1], self.right[:1], self.count, lacking)

    def solve(self, observed_CHW: np.ndarray) -> np.ndarray:
        """Coefficients (K, C, H, W); 0 where the channel is not observed."""
        solution = np.zeros_like(self.right)
        for channel, observed in enumerate(observed_CHW):
            lacking_KKHW = self.lacking.get(channel, np.zeros((1, 1, 1, 1)))
            normal_NKK = np.moveaxis(self.pairs[..., None, None] - lacking_KKHW, (0, 1), (-2, -1))
            normal_NKK = np.broadcast_to(normal_NKK, (*observed.shape, *self.pairs.shape))[observed]
            right_NK = self.right[:, channel][:, observed].T
            solution[:, channel, observed] = np.linalg.solve(normal_NKK, right_NK[..., None])[..., 0].T
        return solution


def _scalar_mean(archive: Archive, sums: Sums) -> np.ndarray:
    area = archive.spec.grid.area_weights
    return ((sums.right[:1] * area).sum((2, 3)) / (sums.count * area).sum((1, 2)))[:, :, None, None]


def _deviations(archive: Archive, centred: Statistics, days: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Standard deviation of the departures (C, 1, 1), and of the physical values around their global mean."""
    area = archive.spec.grid.area_weights
    sums = np.zeros((4, archive.spec.n_channels))
    for block in archive.blocks(days):
        x = archive.read(block).astype(np.float64)
        departure = centred.standardise(x, archive.time[block]).astype(np.float64)
        weight = np.isfinite(x) * area
        terms = (weight, weight * departure**2, weight * x, weight * x**2)
        sums += np.stack([np.nansum(term, axis=(0, 2, 3)) for term in terms])
    weight, square, first, second = sums
    total = np.sqrt(np.maximum(second / weight - (first / weight) ** 2, 0))
    return np.sqrt(square / weight).astype(np.float32)[:, None, None], [float(s) for s in total]
