"""What an archive holds, in numbers, gathered in one pass over its chunks: memory does not grow with its years."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from rich.progress import track

from data_prep.stores import RANGES
from slams.contracts.archive import Archive, array, reading
from slams.spec import Modality

BLOCK_BYTES = 2**25
N_BINS = 100
LEAST_RAIN = 0.1  # mm a day; below is a dry day


@dataclass
class Moments:
    """Number, mean and sum of squared departures at each cell, (C, H, W), merged block by block in float64.

    The merging of Chan, Golub and LeVeque (1979), which stays exact where a mean is large beside its deviation.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, x_LCHW: np.ndarray) -> Moments:
        """Those of a block, NaN left out."""
        seen = np.isfinite(x_LCHW)
        count = seen.sum(axis=0).astype(np.float64)
        mean = np.where(seen, x_LCHW, 0).sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
        squares = np.where(seen, x_LCHW - mean, 0) ** 2
        return cls(count, mean, squares.sum(axis=0))

    def merged(self, other: Moments) -> Moments:
        """Those of both together."""
        count = self.count + other.count
        share, apart = other.count / np.maximum(count, 1), other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Moments(count, self.mean + apart * share, squares)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation in time at each cell; NaN where there is no value."""
        return np.sqrt(self.squares / np.where(self.count, self.count, np.nan))

    def over(self, area_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area-weighted mean and standard deviation over all cells and times, each (C,)."""
        weight, axes = self.count * area_HW, (1, 2)
        total = np.where(weight.sum(axes), weight.sum(axes), np.nan)
        mean = (weight * self.mean).sum(axes) / total
        variance = (area_HW * self.squares + weight * (self.mean - mean[:, None, None]) ** 2).sum(axes) / total
        return mean, np.sqrt(variance)


@dataclass
class Summary:
    """One modality of an archive.

    Arguments:
        edges: of the histogram's bins, in the modality's unit.
        n_bytes: of the values; n_stored: of the files that hold them.
        loss_bound: largest error of the codec, in the modality's unit; 0 where it has none.
        moments: of every channel; None while nothing was added.
        share_L: share of the sphere that has values (mean over levels), of each day.
        histogram_CN: number of values in each bin; what lies beyond is in the outermost ones.
        low_C, high_C: least and largest value.
    """

    modality: Modality
    edges: np.ndarray
    n_bytes: int
    n_stored: int
    loss_bound: float
    moments: Moments | None = None
    share_L: list[float] = field(default_factory=list)
    histogram_CN: np.ndarray = field(init=False)
    low_C: np.ndarray = field(init=False)
    high_C: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = self.modality.n_channels
        self.histogram_CN = np.zeros((n, len(self.edges) - 1), np.int64)
        self.low_C, self.high_C = np.full(n, np.inf), np.full(n, -np.inf)

    def add(self, x_LCHW: np.ndarray, area_HW: np.ndarray) -> None:
        """The next days."""
        found = Moments.of(x_LCHW)
        self.moments = found if self.moments is None else self.moments.merged(found)
        seen = np.isfinite(x_LCHW)
        self.share_L += (seen * area_HW).sum((2, 3)).mean(axis=1).tolist()
        for channel in range(len(self.low_C)):
            x = x_LCHW[:, channel][seen[:, channel]]
            if len(x):
                self.low_C[channel] = min(self.low_C[channel], x.min())
                self.high_C[channel] = max(self.high_C[channel], x.max())
                self.histogram_CN[channel] += np.histogram(x.clip(self.edges[0], self.edges[-1]), self.edges)[0]


def bins(modality: Modality, first: np.ndarray) -> np.ndarray:
    """Edges of the histogram, (N + 1,): over what is possible; rain by the logarithm, for it is mostly little.

    Arguments:
        first: the first values, which a modality of unknown range is judged by.
    """
    if modality.standard_name == "lwe_precipitation_rate":
        high = RANGES[modality.standard_name][1]
        return np.r_[0.0, np.geomspace(LEAST_RAIN, high, N_BINS)]
    low, high = RANGES.get(modality.standard_name, _around(first))
    return np.linspace(low, high, 3 * N_BINS + 1)


def _around(x: np.ndarray) -> tuple[float, float]:
    seen = x[np.isfinite(x)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    half = (high - low) / 2 or 1.0
    return low - half, high + half


def summarise(archive: Archive) -> list[Summary]:
    """One summary a modality.

    Raises:
        ContractError: a chunk is damaged.
    """
    found = []
    for modality in archive.spec.modalities:
        with reading(archive.path):
            stored = array(zarr.open_group(str(archive.path), mode="r"), modality.name)
            blocks = _blocks(archive, stored, modality)
            summary = None
            for x_LCHW in blocks:
                summary = summary or _empty(stored, modality, x_LCHW)
                summary.add(x_LCHW, archive.spec.grid.area_weights)
        assert summary is not None  # an archive has at least a day
        found.append(summary)
    return found


def _empty(stored: zarr.Array[Any], modality: Modality, first: np.ndarray) -> Summary:
    loss_bound = float(stored.attrs.get("loss_bound", 0.0))  # type: ignore[arg-type]
    return Summary(modality, bins(modality, first), stored.nbytes, stored.nbytes_stored(), loss_bound)


def _blocks(archive: Archive, stored: zarr.Array[Any], modality: Modality) -> Iterator[np.ndarray]:
    """Whole chunks of days, x_LCHW of one modality."""
    day_bytes, chunk = stored.nbytes // stored.shape[0], stored.chunks[0]
    days = max(1, BLOCK_BYTES // day_bytes // chunk) * chunk
    starts = range(0, stored.shape[0], days)
    for start in track(starts, description=f"report {modality.name:13s}", transient=True):
        values = np.asarray(stored[start : start + days])
        yield values.reshape(len(values), modality.n_channels, *archive.spec.grid.shape)
