"""Observations as ensemble optimal interpolation takes them: a list of numbers, and a linear map from windows to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from slams.contracts.observations import Gridded
from slams.localisation import mesh_points
from slams.observe import observe
from slams.spec import StateSpec

BOX_DEG = (0.5, 90.0)  # smallest and largest; of the largest, six cover the sphere
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Listed:
    """What was observed in a window of days around the analysed one.

    Arguments:
        value_N, std_N: value and standard deviation of its error, physical units.
        point_N3: where, on the unit sphere (`slams.localisation.unit_vectors`).
        day_N: when, in whole days from the analysed day.
        channel_N: of which channel; only observations of one channel and day are ever averaged.
        predict: what these observations would be of windows x_KLCHW in physical units, (K, N); linear. The windows
            are of 2 k + 1 days around the analysed one, k = `half_window`.

    Raises:
        ValueError: lengths differ, a value is missing or an error is not positive.
    """

    value_N: np.ndarray
    std_N: np.ndarray
    point_N3: np.ndarray
    day_N: np.ndarray
    channel_N: np.ndarray
    predict: Predict

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.value_N, self.std_N, self.point_N3, self.day_N, self.channel_N)]
        if len(set(lengths)) > 1:
            raise ValueError(f"observations: {lengths} values, errors, points, days, channels; as many of each")
        if not np.isfinite(self.value_N).all():
            raise ValueError("value: not a finite number; what is missing is left out")
        wrong = ~((self.std_N > 0) & np.isfinite(self.std_N))
        if wrong.any():
            raise ValueError(f"std: {self.std_N[wrong][0]} is not allowed; more than 0 and finite")

    @property
    def half_window(self) -> int:
        """k of the windows of 2 k + 1 days that `predict` takes."""
        return int(np.abs(self.day_N).max(initial=0))


def from_gridded(seen: Sequence[Gridded], spec: StateSpec, day_L: np.ndarray) -> Listed:
    """Gridded observations as a list; what is masked or not a number is left out.

    Arguments:
        seen: one a modality, each of the same L days.
        spec: of the state.
        day_L: those days, counted from the analysed one.

    Raises:
        ValueError: nothing was observed at all, not even a masked value.
    """
    if not seen:
        raise ValueError("observations: none of any modality; at least one is needed")
    parts = [_Part(gridded, spec, np.asarray(day_L)) for gridded in seen]
    names = ("value_N", "std_N", "point_N3", "day_N", "channel_N")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Listed(**columns, predict=lambda x: np.concatenate([part.predict(x) for part in parts], axis=1))


class _Part:
    """One modality's observations."""

    def __init__(self, seen: Gridded, spec: StateSpec, day_L: np.ndarray) -> None:
        self.seen, self.frames, self.channels = seen, day_L, spec.channels(seen.name)
        self.known = seen.mask & np.isfinite(seen.value)
        day, channel, row, column = np.nonzero(self.known)
        self.value_N = seen.value[self.known].astype(np.float64)
        self.std_N = seen.error_std[self.known].astype(np.float64)
        self.point_N3 = mesh_points(*seen.operator.coordinates(spec.grid))[row * seen.value.shape[-1] + column]
        self.day_N, self.channel_N = day_L[day], channel + self.channels.start

    def predict(self, x_KLCHW: np.ndarray) -> np.ndarray:
        days = self.frames + x_KLCHW.shape[1] // 2
        used = [d for d in range(len(days)) if self.known[d].any()]  # a window may end where observations do
        x = torch.from_numpy(x_KLCHW[:, days[used], self.channels])
        weight = None if self.seen.weight_HW is None else torch.from_numpy(self.seen.weight_HW)
        return observe(self.seen.operator, x, weight).numpy()[:, self.known[used]]


def superobservations(observed: Listed, most: int) -> Listed:
    """No more than so many observations: means over boxes of the sphere, each of one channel and day.

    A mean is weighted by the inverse error variances and has the error (sum 1 / std^2)^(-1/2): errors are taken to be
    independent. The boxes are about square, and grow until they are few enough. An observation set no larger than
    `most` is returned as it is. Reference: Lorenc 1981.

    Raises:
        ValueError: too many are left even of the largest boxes.
    """
    if len(observed.value_N) <= most:
        return observed
    size_deg, largest = BOX_DEG
    first, box_N = _boxes(observed, size_deg)
    while len(first) > most and size_deg < largest:
        size_deg = min(1.25 * size_deg, largest)
        first, box_N = _boxes(observed, size_deg)
    if len(first) > most:
        raise ValueError(
            f"observations: at most {most} are wanted; {len(first)} are left of boxes of {largest:g} degrees"
        )
    precision_N = observed.std_N**-2.0
    precision = np.bincount(box_N, precision_N)
    mean = csr_array((precision_N / precision[box_N], (np.arange(len(box_N)), box_N)))
    middle = mean.T @ observed.point_N3
    return Listed(
        value_N=observed.value_N @ mean,
        std_N=precision**-0.5,
        point_N3=middle / np.linalg.norm(middle, axis=1, keepdims=True),
        day_N=observed.day_N[first],
        channel_N=observed.channel_N[first],
        predict=lambda x_KLCHW: observed.predict(x_KLCHW) @ mean,
    )


def _boxes(observed: Listed, size_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """The first observation of each box, and the box of each observation: belts of latitude cut into squares."""
    x, y, z = observed.point_N3.T
    belts = round(180 / size_deg)
    belt = np.minimum((np.arcsin(np.clip(z, -1, 1)) / np.pi + 0.5) * belts, belts - 1).astype(int)
    squares = np.round(2 * belts * np.sin(np.pi * (belt + 0.5) / belts))  # 3 at the poles, however many belts
    square = np.floor(np.arctan2(y, x) / (2 * np.pi) % 1 * squares)
    rows = np.stack([observed.day_N, observed.channel_N, belt, square], axis=1)
    _, first, box = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, box.reshape(-1)
