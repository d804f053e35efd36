"""Statistics of the train years, streamed over blocks of days in float64.

The climatology is a least-squares fit of a mean and two annual harmonics at each cell and channel, over the days
that were observed there; the standard deviation is that of the departures from it, area-weighted, one a channel.
"""

from __future__ import annotations

import numpy as np

from slams.contracts.archive import Archive
from slams.statistics import Kind, Statistics, day_features

BLOCK_DAYS = 64
OBSERVED_SHARE = 0.5  # a cell counts as observed where at least this share of the train days has a value


def fit_statistics(
    archive: Archive, kind: Kind, log_precipitation: bool, static: dict[str, np.ndarray]
) -> tuple[Statistics, list[float]]:
    """Statistics of an archive's train years.

    Returns:
        The statistics, and each channel's standard deviation over all cells and days in physical units.

    Raises:
        ValueError: a channel was never observed.
    """
    days = archive.days("train")
    n_basis = 1 if kind == "scalar" else day_features(archive.time[:1]).shape[1]
    log1p = np.array([log_precipitation and m.name == "precipitation" for m in archive.spec.modalities])
    log1p = np.repeat(log1p, [m.n_channels for m in archive.spec.modalities])
    unit = Statistics(np.zeros((1, *_per_channel(log1p))), np.ones(_per_channel(log1p)), log1p, np.zeros(0))
    normal, right, count = _normal_equations(archive, unit, days, n_basis)
    observed = count >= OBSERVED_SHARE * len(days)
    for name, seen in zip(archive.spec.channel_names, observed, strict=True):
        if not seen.any():
            raise ValueError(f"{archive.path}: {name} is missing on more than half of the train days everywhere")
    harmonics = _scalar_mean(archive, right, count) if kind == "scalar" else _solve(normal, right, observed)
    centred = Statistics(harmonics.astype(np.float32), unit.std, log1p, observed)
    std, global_std = _deviations(archive, centred, days)
    return Statistics(centred.harmonics, std, log1p, observed, static), global_std


def _per_channel(value: np.ndarray) -> tuple[int, int, int]:
    return len(value), 1, 1


def _normal_equations(
    archive: Archive, unit: Statistics, days: np.ndarray, n_basis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of b b' (C, H, W, K, K), b x (K, C, H, W) and the number of values (C, H, W), NaN left out."""
    shape = (archive.spec.n_channels, *archive.spec.grid.shape)
    normal, right, count = np.zeros((n_basis, n_basis, *shape)), np.zeros((n_basis, *shape)), np.zeros(shape)
    for block in archive.blocks(days, BLOCK_DAYS):
        x = unit.standardise(archive.read(block), archive.time[block]).astype(np.float64)
        seen = np.isfinite(x)
        basis = day_features(archive.time[block])[:, :n_basis]
        pairs = np.einsum("lk,lm->lkm", basis, basis).reshape(len(basis), -1)
        normal += np.tensordot(pairs.T, seen.astype(np.float64), 1).reshape(normal.shape)
        right += np.tensordot(basis.T, np.where(seen, x, 0), 1)
        count += seen.sum(axis=0)
    return np.moveaxis(normal, (0, 1), (-2, -1)), right, count


def _scalar_mean(archive: Archive, right: np.ndarray, count: np.ndarray) -> np.ndarray:
    area = archive.spec.grid.area_weights
    return ((right[:1] * area).sum((2, 3)) / (count * area).sum((1, 2)))[:, :, None, None]


def _solve(normal: np.ndarray, right: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Coefficients (K, C, H, W); 0 where the channel is not observed."""
    n_basis = len(right)
    safe = np.where(observed[..., None, None], normal, np.eye(n_basis))
    solution = np.linalg.solve(safe, np.moveaxis(right, 0, -1)[..., None])[..., 0]
    return np.moveaxis(np.where(observed[..., None], solution, 0), -1, 0)


def _deviations(archive: Archive, centred: Statistics, days: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Standard deviation of the departures (C, 1, 1), and of the physical values around their global mean."""
    area = archive.spec.grid.area_weights
    sums = np.zeros((4, archive.spec.n_channels))
    for block in archive.blocks(days, BLOCK_DAYS):
        x = archive.read(block).astype(np.float64)
        departure = centred.standardise(x, archive.time[block]).astype(np.float64)
        weight = np.isfinite(x) * area
        terms = (weight, weight * departure**2, weight * x, weight * x**2)
        sums += np.stack([np.nansum(term, axis=(0, 2, 3)) for term in terms])
    weight, square, first, second = sums
    total = np.sqrt(np.maximum(second / weight - (first / weight) ** 2, 0))
    return np.sqrt(square / weight).astype(np.float32)[:, None, None], [float(s) for s in total]
