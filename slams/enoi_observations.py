"""Observations as ensemble optimal interpolation takes them: a list of numbers, and a linear map from windows to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from slams.contracts.observations import Gridded, Stations
from slams.interpolate import usable
from slams.localisation import mesh_points, unit_vectors
from slams.observe import Interpolation, observe
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


def from_observations(seen: Sequence[Gridded | Stations], spec: StateSpec, day_L: np.ndarray) -> Listed:
    """Observations of modalities, gridded or at stations, as a list; what is masked or not usable is left out.

    Their errors are taken as they are: nothing is added for what the state cannot represent.

    Arguments:
        seen: all of the same L days.
        spec: of the state.
        day_L: those days, counted from the analysed one.

    Raises:
        ValueError: nothing was observed at all, not even a masked value.
    """
    if not seen:
        raise ValueError("observations: none of any modality; at least one is needed")
    day_L = np.asarray(day_L)
    parts = [_stations(s, spec, day_L) if isinstance(s, Stations) else _gridded(s, spec, day_L) for s in seen]
    names = ("value_N", "std_N", "point_N3", "day_N", "channel_N")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Listed(**columns, predict=lambda x: np.concatenate([part.predict(x) for part in parts], axis=1))


def _gridded(seen: Gridded, spec: StateSpec, day_L: np.ndarray) -> Listed:
    known, channels = seen.mask & np.isfinite(seen.value), spec.channels(seen.name)
    day, channel, row, column = np.nonzero(known)
    used = np.flatnonzero(known.any(axis=(1, 2, 3)))  # a window may end where observations do
    weight = None if seen.weight_HW is None else torch.from_numpy(seen.weight_HW)

    def predict(x_KLCHW: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(x_KLCHW[:, day_L[used] + x_KLCHW.shape[1] // 2, channels])
        return observe(seen.operator, x, weight).numpy()[:, known[used]]

    return Listed(
        value_N=seen.value[known].astype(np.float64),
        std_N=seen.error_std[known].astype(np.float64),
        point_N3=mesh_points(*seen.operator.coordinates(spec.grid))[row * known.shape[-1] + column],
        day_N=day_L[day],
        channel_N=channel + channels.start,
        predict=predict,
    )


def _stations(seen: Stations, spec: StateSpec, day_L: np.ndarray) -> Listed:
    used, at = usable(seen, spec)
    day_N, first = day_L[seen.frame[used]], spec.channels(seen.name).start
    nearest = at.weight.argmax(axis=1)

    def predict(x_KLCHW: np.ndarray) -> np.ndarray:
        frame_N, shape_CHW = day_N + x_KLCHW.shape[1] // 2, x_KLCHW.shape[2:]
        return Interpolation(at, frame_N, shape_CHW, first)(torch.from_numpy(x_KLCHW)).numpy()

    return Listed(
        value_N=seen.value[used].astype(np.float64),
        std_N=seen.error_std[used].astype(np.float64),
        point_N3=unit_vectors(seen.latitude[used], seen.longitude[used]),
        day_N=day_N,
        channel_N=first + at.channel[np.arange(len(used)), nearest],
        predict=predict,
    )


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
