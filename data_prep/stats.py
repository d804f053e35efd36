"""Statistics of the train years, of sums over their days in float64.

The climatology is a least-squares fit of a mean and two annual harmonics at each cell and channel, over the days
that were observed there; the standard deviation is that of the departures from it, area-weighted, one a channel. One
pass suffices: the squares of the departures follow from the sums of the fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import zarr

from slams.contracts.archive import Archive, array
from slams.contracts.storage import writing
from slams.statistics import N_HARMONICS, Kind, Statistics, day_features, transformed

BAND_BYTES = 2**24
LOSS_SHARE = 0.01  # of a channel's standard deviation that its decimals may cost
LARGEST_CONDITION = 20.0  # of the matrix of an annual cycle: 2 for all days of a year, 12 for nine months, 33 for eight
ADDED, LACKING = ("pairs", "right", "square", "count"), "lacking_"
FIT, VALUES = "fit.npz", "values.npz"
OBSERVED_SHARE = 0.5  # a cell counts as observed where it has this share of the days of the channel's best cell


def fit_statistics(
    archive: Archive, sums: dict[str, Totals], kind: Kind, static: dict[str, np.ndarray]
) -> tuple[Statistics, list[float]]:
    """Statistics of an archive's train years.

    Arguments:
        sums: of its train days, by modality; taken out as they are used, for what is large is not held twice.

    Returns:
        The statistics, and each channel's standard deviation over all cells and days in physical units.

    Raises:
        ValueError: a channel was never observed.
    """
    modalities, area = archive.spec.modalities, archive.spec.grid.area_weights
    _refuse_unseen(archive, sums)
    log1p = np.array([sums[modality.name].log1p for modality in modalities for _ in modality.channel_names])
    fitted = [_of_modality(sums.pop(modality.name), kind, area) for modality in modalities]
    harmonics, std, observed, global_std = zip(*fitted, strict=True)
    deviations = np.concatenate(std).astype(np.float32)[:, None, None]
    found = Statistics(np.concatenate(harmonics, axis=1), deviations, log1p, np.concatenate(observed), static)
    return found, [of_channel for of in global_std for of_channel in of]


def _refuse_unseen(archive: Archive, sums: Mapping[str, Totals]) -> None:
    for modality in archive.spec.modalities:
        days = sums[modality.name].fit.count.max(axis=(1, 2)) if modality.name in sums else [0]
        for name, n_days in zip(modality.channel_names, days, strict=False):
            if not n_days:
                raise ValueError(f"{archive.path}: {name} is missing on every train day")


def _of_modality(
    totals: Totals, kind: Kind, area: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """Coefficients, standard deviations, where it counts as observed, and `_global_std`, of its channels."""
    most = totals.fit.count.max(axis=(1, 2), keepdims=True)
    observed = (totals.fit.count > 0) & (totals.fit.count >= OBSERVED_SHARE * most)
    fit = _scalar if kind == "scalar" else _fitted
    return *fit(totals.fit, observed, area), observed, [_global_std(of, area) for of in totals.values.channels()]


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


@dataclass
class Sums:
    """Sums over days for a least-squares fit on K functions of the day, cell by cell; some cells may lack values.

    Those over different days add up to those over all. The matrices of a channel are kept cell by cell only
    where something is missing in some of the cells; elsewhere they are the same. What is computed of them is computed
    by bands of latitude: at 0.25 degrees the matrices of one channel are 0.2 GiB.

    Arguments:
        pairs: sum of b b' over all days, (K, K).
        lacking: channel -> the same over the days on which a cell has no value, (K, K, H, W).
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

        for channel in range(x_LCHW.shape[1]):
            x = x_LCHW[:, channel].astype(np.float64)
            seen = np.isfinite(x)
            if seen.all():
                self.count[channel] += len(x)
            else:
                x[~seen] = 0
                self.count[channel] += seen.sum(axis=0, dtype=np.int32)
                self._lack(channel, pairs, ~seen)
            self.right[:, channel] += np.einsum("lk,lhw->khw", basis, x)  # BLAS would start threads of its own
            self.square[channel] += np.einsum("lhw,lhw->hw", x, x)

    def _lack(self, channel: int, pairs_LKK: np.ndarray, unseen_LHW: np.ndarray) -> None:
        if channel not in self.lacking:
            self.lacking[channel] = np.zeros((*self.pairs.shape, *unseen_LHW.shape[1:]))
        for rows in self.bands():
            unseen = unseen_LHW[:, rows].astype(np.float64)
            self.lacking[channel][..., rows, :] += np.einsum("lkm,lhw->kmhw", pairs_LKK, unseen)

    def __iadd__(self, other: Sums) -> Sums:
        for name in ADDED:
            total = getattr(self, name)
            total += getattr(other, name)
        for channel, pairs in other.lacking.items():
            self.lacking[channel] = self.lacking[channel] + pairs if channel in self.lacking else pairs
        return self

    def save(self, path: Path) -> None:
        """Write them to a file.

        Raises:
            OSError: it cannot be written.
        """
        lacking = {f"{LACKING}{channel}": pairs for channel, pairs in self.lacking.items()}
        with writing(path):
            np.savez(path, **{name: getattr(self, name) for name in ADDED}, **lacking)

    @classmethod
    def load(cls, path: Path) -> Sums:
        with np.load(path) as file:
            lacking = {int(name.removeprefix(LACKING)): file[name] for name in file.files if name not in ADDED}
            return cls(*(file[name] for name in ADDED), lacking)

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
        lacking = {0: self.lacking[channel][..., rows, :]} if channel in self.lacking else {}
        return Sums(self.pairs, self.right[:, only, rows], self.square[only, rows], self.count[only, rows], lacking)

    def of_the_mean(self) -> Sums:
        """Those of a fit on the first function alone."""
        lacking = {channel: pairs[:1, :1] for channel, pairs in self.lacking.items()}
        return Sums(self.pairs[:1, :1], self.right[:1], self.square, self.count, lacking)

    def solve(self) -> np.ndarray:
        """Coefficients (K, C, H, W); 0 where there is no value, and beyond the mean where there are not all seasons."""
        solution = np.zeros_like(self.right)
        for channel, count in enumerate(self.count):
            normal_HWKK = np.moveaxis(self._normal(channel), (0, 1), (-2, -1))
            in_season = (count > 0) & ~_sees_the_year(normal_HWKK)
            all_year = (count > 0) & ~in_season
            normal_HWKK = np.broadcast_to(normal_HWKK, (*count.shape, *self.pairs.shape))
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


@dataclass
class Totals:
    """Sums over the train days of a modality.

    Arguments:
        fit: of what the climatology is fitted to.
        values: of the values themselves; the same but where the fit is to log(1 + x).
    """

    fit: Sums
    values: Sums

    @classmethod
    def empty(cls, kind: Kind, log1p: bool, n_channels: int, shape_HW: tuple[int, int]) -> Totals:
        n_basis = 1 if kind == "scalar" else 1 + 2 * N_HARMONICS
        fit = Sums.empty(n_basis, n_channels, shape_HW)
        return cls(fit, Sums.empty(1, n_channels, shape_HW) if log1p else fit)

    @property
    def log1p(self) -> bool:
        return self.values is not self.fit

    def add(self, x_LCHW: np.ndarray, time: np.ndarray) -> None:
        """Further days, physical values."""
        features = day_features(time)
        self.fit.add(transformed(x_LCHW, np.full(x_LCHW.shape[1], self.log1p)), features)
        if self.log1p:
            self.values.add(x_LCHW, features)

    def __iadd__(self, other: Totals) -> Totals:
        self.fit += other.fit
        if self.log1p:
            self.values += other.values
        return self

    def save(self, folder: Path) -> None:
        """Write them to files of a folder.

        Raises:
            OSError: one cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)  # by a job that was lost and is done again
        self.fit.save(folder / FIT)
        if self.log1p:
            self.values.save(folder / VALUES)

    @classmethod
    def load(cls, folder: Path) -> Totals:
        fit = Sums.load(folder / FIT)
        return cls(fit, Sums.load(folder / VALUES) if (folder / VALUES).exists() else fit)


def _sees_the_year(normal_HWKK: np.ndarray) -> np.ndarray:
    """Whether an annual cycle can be fitted: of half a year the other half would be made up, (H, W)."""
    found = np.linalg.eigvalsh(normal_HWKK)
    return np.asarray(found[..., -1] <= LARGEST_CONDITION * found[..., 0])


def _fitted(sums: Sums, observed: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients at each cell, float32 (K, C, H, W), and standard deviations, where observed, of what they leave."""
    harmonics = np.zeros(sums.right.shape, np.float32)
    deviations = []
    for channel, seen in enumerate(observed):
        squares = np.empty(seen.shape)
        for rows in sums.bands():
            part = sums.part(channel, rows)
            solution = part.solve()
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
