"""Statistics of the train years, streamed over blocks of days in float64.

The climatology is a least-squares fit of a mean and two annual harmonics at each cell and channel, over the days
that were observed there; the standard deviation is that of the departures from it, area-weighted, one a channel. One
pass suffices: the squares of the departures follow from the sums of the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import zarr

from slams.ahead import ahead
from slams.contracts.archive import Archive, array
from slams.statistics import Kind, Statistics, day_features, transformed

YEAR_DAYS = 365
BAND_BYTES = 2**24
THREADS = 2  # more would hold more days at once
LOSS_SHARE = 0.01  # of a channel's standard deviation that its decimals may cost
LARGEST_CONDITION = 20.0  # of the matrix of an annual cycle: 2 for all days of a year, 12 for nine months, 33 for eight
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
    area = archive.spec.grid.area_weights
    log1p = np.repeat(log1p, [m.n_channels for m in archive.spec.modalities])
    sums = Sums.empty(n_basis, archive.spec.n_channels, archive.spec.grid.shape)
    untransformed = Sums.empty(1, int(log1p.sum()), archive.spec.grid.shape)
    for block, x in _read(archive, days):
        features = day_features(archive.time[block])
        sums.add(transformed(x, log1p), features)
        if log1p.any():
            untransformed.add(x[:, log1p], features)
    most = sums.count.max(axis=(1, 2), keepdims=True)
    observed = (sums.count > 0) & (sums.count >= OBSERVED_SHARE * most)
    for name, seen in zip(archive.spec.channel_names, observed, strict=True):
        if not seen.any():
            raise ValueError(f"{archive.path}: {name} is missing on every train day")
    if most.max() < YEAR_DAYS:
        sums = sums.of_the_mean()  # there is no annual cycle to fit
    harmonics, std = _scalar(sums, observed, area) if kind == "scalar" else _fitted(sums, observed, area)
    others = iter(untransformed.channels())
    global_std = [
        _global_std(next(others) if log else of, area) for of, log in zip(sums.channels(), log1p, strict=True)
    ]
    return Statistics(harmonics, std.astype(np.float32)[:, None, None], log1p, observed, static), global_std


def check_loss(archive: Archive, global_std: list[float]) -> None:
    """Refuse to keep so few decimals of a channel that they cost more than `LOSS_SHARE` of its standard deviation.

    Arguments:
        global_std: what `fit_statistics` says of each channel.

    Raises:
        ValueError: naming the channel, what a value may be moved by, and the standard deviation.
    """
    group = zarr.open_group(str(archive.path), mode="r", use_consolidated=False)
    attributes = {modality.name: array(group, modality.name).attrs for modality in archive.spec.modalities}
    channels = [(m, name) for m in archive.spec.modalities for name in m.channel_names]
    for (modality, name), std in zip(channels, global_std, strict=True):
        kept = attributes[modality.name].get("decimals")
        bound = cast("float | None", attributes[modality.name].get("loss_bound"))
        if bound is not None and not bound <= LOSS_SHARE * std:
            raise ValueError(
                f"archive.decimals: {kept} of {modality.name} may move a value by {bound:g} {modality.units}, but "
                f"the standard deviation of {name} is {std:.2g}; at most {LOSS_SHARE:g} of it is "
                "allowed, so keep more decimals"
            )


def _with_values(archive: Archive, days: np.ndarray) -> np.ndarray:
    """Those on which some modality was observed."""
    missing = archive.attributes["missing_days"]
    nowhere = set.intersection(*(set(missing.get(name, ())) for name in archive.spec.names))
    return days[[str(day) not in nowhere for day in archive.time[days]]]


def _read(archive: Archive, days: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of days and their values."""
    return ahead((block, archive.read(block)) for block in archive.blocks(days))


@dataclass
class Sums:
    """Sums over days for a least-squares fit on K functions of the day, cell by cell, values may be missing.

    Two of them over different days add up to that over all. The matrices of a channel are kept cell by cell only
    where something is missing in some of the cells; elsewhere they are the same. What is computed of them is computed
    by bands of latitude: at 0.25 degrees the matrices of one channel are 0.2 GiB.

    Arguments:
        pairs: sum of b b' over all days, (K, K).
        lacking: channel -> the same over the days on which a cell has no value, (K, K, H, W), or (K, K, 1, 1) where
            no cell has one.
        right: sum of b x over the values, (K, C, H, W).
        square: sum of x x over the values, (C, H, W).
        count: values, (C, H, W).
    """

    pairs: np.ndarray
    right: np.ndarray
    square: np.ndarray
    count: np.ndarray
    lacking: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(cls, n_basis: int, n_channels: int, shape_HW: tuple[int, int]) -> Sums:
        shape = (n_channels, *shape_HW)
        right, square, count = np.zeros((n_basis, *shape)), np.zeros(shape), np.zeros(shape, np.int32)
        return cls(np.zeros((n_basis, n_basis)), right, square, count)

    def add(self, x_LCHW: np.ndarray, features_LK: np.ndarray) -> None:
        """Further days; features beyond the first K are not used."""
        basis = features_LK[:, : len(self.pairs)]
        pairs = np.einsum("lk,lm->lkm", basis, basis)
        self.pairs += pairs.sum(axis=0)

        def add_channel(channel: int) -> None:
            x = x_LCHW[:, channel].astype(np.float64)
            seen = np.isfinite(x)
            x[~seen] = 0
            self.right[:, channel] += np.einsum("lk,lhw->khw", basis, x)  # BLAS would start threads of its own
            self.square[channel] += np.einsum("lhw,lhw->hw", x, x)
            self.count[channel] += seen.sum(axis=0, dtype=np.int32)
            if not seen.all():
                self._lack(channel, pairs, ~seen)

        with ThreadPoolExecutor(THREADS) as threads:  # a channel's sums are its own
            list(threads.map(add_channel, range(x_LCHW.shape[1])))

    def _lack(self, channel: int, pairs_LKK: np.ndarray, unseen_LHW: np.ndarray) -> None:
        if (unseen_LHW.all(axis=(1, 2)) == unseen_LHW.any(axis=(1, 2))).all():
            unseen_LHW = unseen_LHW[:, :1, :1]  # whole days are missing, from every cell the same
        before = self.lacking.get(channel, np.zeros((*self.pairs.shape, 1, 1)))
        shape = np.broadcast_shapes(before.shape[2:], unseen_LHW.shape[1:])
        if shape != before.shape[2:]:
            before = np.broadcast_to(before, (*self.pairs.shape, *shape)).copy()
        self.lacking[channel] = before
        for rows in self.bands() if shape[0] > 1 else [slice(None)]:
            unseen = _rows(unseen_LHW, rows).astype(np.float64)
            before[..., rows, :] += np.einsum("lkm,lhw->kmhw", pairs_LKK, unseen)

    def __add__(self, other: Sums) -> Sums:
        found = Sums(*(getattr(self, name) + getattr(other, name) for name in ("pairs", "right", "square", "count")))
        found.lacking = dict(self.lacking)
        for channel, pairs in other.lacking.items():
            found.lacking[channel] = found.lacking[channel] + pairs if channel in found.lacking else pairs
        return found

    def bands(self) -> list[slice]:
        """Rows in bands of which the matrices of a channel take `BAND_BYTES` at most."""
        n_rows, n_columns = self.square.shape[1:]
        size = max(1, BAND_BYTES // (self.pairs.nbytes * n_columns))
        return [slice(start, start + size) for start in range(0, n_rows, size)]

    def channels(self) -> Iterator[Sums]:
        """Those of each channel, a view."""
        return (self.part(channel, slice(None)) for channel in range(len(self.square)))

    def part(self, channel: int, rows: slice) -> Sums:
        """Those of some rows of a channel, a view."""
        only = slice(channel, channel + 1)
        lacking = {0: _rows(self.lacking[channel], rows)} if channel in self.lacking else {}
        return Sums(self.pairs, self.right[:, only, rows], self.square[only, rows], self.count[only, rows], lacking)

    def of_the_mean(self) -> Sums:
        """Those of a fit on the first function alone."""
        lacking = {channel: pairs[:1, :1] for channel, pairs in self.lacking.items()}
        return Sums(self.pairs[:1, :1], self.right[:1], self.square, self.count, lacking)

    def solve(self, observed_CHW: np.ndarray) -> np.ndarray:
        """Coefficients (K, C, H, W); 0 where the channel is not observed, and beyond the mean where seasons are not."""
        solution = np.zeros_like(self.right)
        for channel, observed in enumerate(observed_CHW):
            normal_HWKK = np.moveaxis(self._normal(channel), (0, 1), (-2, -1))
            in_season = observed & ~_sees_the_year(normal_HWKK)
            all_year = observed & ~in_season
            normal_HWKK = np.broadcast_to(normal_HWKK, (*observed.shape, *self.pairs.shape))
            right_NK = self.right[:, channel][:, all_year].T
            solution[:, channel, all_year] = np.linalg.solve(normal_HWKK[all_year], right_NK[..., None])[..., 0].T
            solution[0, channel, in_season] = self.right[0, channel, in_season] / normal_HWKK[in_season][:, 0, 0]
        return solution

    def squares(self, harmonics_KCHW: np.ndarray) -> np.ndarray:
        """Sum of (x - b'c)^2 over the values, (C, H, W), for coefficients c that hold everywhere or cell by cell."""
        found = self.square - 2 * (harmonics_KCHW * self.right).sum(axis=0)
        for channel, c_KHW in enumerate(np.moveaxis(harmonics_KCHW, 1, 0)):
            found[channel] += (c_KHW[:, None] * self._normal(channel) * c_KHW).sum((0, 1))
        return np.maximum(found, 0)

    def _normal(self, channel: int) -> np.ndarray:
        """Sum of b b' over the values of a channel, (K, K, H, W), or (K, K, 1, 1) where no cell lacks any."""
        return self.pairs[..., None, None] - self.lacking.get(channel, np.zeros((1, 1, 1, 1)))


def _rows(x: np.ndarray, rows: slice) -> np.ndarray:
    """Some rows of (..., H, W), or all of (..., 1, 1), which stand for every row."""
    return x if x.shape[-2] == 1 else x[..., rows, :]


def _sees_the_year(normal_HWKK: np.ndarray) -> np.ndarray:
    """Whether an annual cycle can be fitted: of half a year the other half would be made up, (H, W)."""
    found = np.linalg.eigvalsh(normal_HWKK)
    return np.asarray(found[..., -1] <= LARGEST_CONDITION * found[..., 0])


def _fitted(sums: Sums, observed: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients at each cell, float32 (K, C, H, W), and standard deviations of what they leave, (C,)."""
    harmonics = np.zeros(sums.right.shape, np.float32)
    deviations = []
    for channel, seen in enumerate(observed):
        squares = np.empty(seen.shape)
        for rows in sums.bands():
            part = sums.part(channel, rows)
            solution = part.solve(seen[None, rows])
            harmonics[:, channel, rows] = solution[:, 0]
            squares[rows] = part.squares(solution)[0]
        deviations.append(_deviation(squares, sums.count[channel], area * seen))
    return harmonics, np.array(deviations)


def _scalar(sums: Sums, observed: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One mean a channel, float32 (1, C, 1, 1), and standard deviations around it, (C,)."""
    means = [_mean(of, area) for of in sums.channels()]
    pairs = zip(sums.channels(), means, observed, strict=True)
    deviations = [_deviation(of.squares(mean)[0], of.count[0], area * seen) for of, mean, seen in pairs]
    return np.concatenate(means, axis=1).astype(np.float32), np.array(deviations)


def _mean(of_channel: Sums, area: np.ndarray) -> np.ndarray:
    """Over all cells and days, (1, 1, 1, 1)."""
    mean = (of_channel.right[0, 0] * area).sum() / (of_channel.count[0] * area).sum()
    return np.full((1, 1, 1, 1), mean)


def _deviation(squares_HW: np.ndarray, count_HW: np.ndarray, weight_HW: np.ndarray) -> float:
    return float(np.sqrt((squares_HW * weight_HW).sum() / (count_HW * weight_HW).sum()))


def _global_std(of_channel: Sums, area: np.ndarray) -> float:
    """Over all cells and days, around the global mean."""
    of_mean = of_channel.of_the_mean()
    return _deviation(of_mean.squares(_mean(of_mean, area))[0], of_mean.count[0], area)
