"""A single-observation test: what one temperature observation does to an analysis, in space, level and time.

For a Gaussian prior of covariance B the increment of one observation that departs by d from it is the textbook's

    B H' (H B H' + R)^-1 d,

a picture of the prior's covariances with the place observed. Here it is the mean over members of the analysis given
y = H(x_b) + d minus the analysis given y = H(x_b), from the same noise: for a Gaussian prior exactly the formula, with
any number of members. Minus the prior itself, in place of an observation that departs by nothing, the members' shrunken
noise would remain, of the size spread / sqrt(M). H(x_b) is the mean of prior members from that noise, and R what the
assimilation takes: the error given, and what the autoencoder cannot represent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sample.config import is_day
from sample.departures import listed
from slams.contracts.observations import Observed, Stations
from slams.interpolate import horizontal, usable
from slams.spec import Grid, Modality, StateSpec

NAME = "temperature"
EARTH_KM = 6371.0
FIT_KM = 5000.0  # farther away there is no increment to fit, but there are many cells
WIDTHS_KM = np.geomspace(50, FIT_KM, 400)


class Members(Protocol):
    """What is looked at of a drawing: members in physical units, NaN where they could not be drawn."""

    @property
    def x_MLCHW(self) -> np.ndarray: ...


class Method(Protocol):
    """What draws, such as a `sample.assimilator.Assimilator`."""

    spec: StateSpec
    unresolved_C: Tensor

    def draw(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None) -> Members:
        """Members of the posterior, and without observations of the prior."""


@dataclass(frozen=True)
class Single:
    """One observation.

    Arguments:
        latitude, longitude: degrees north and east.
        level_hpa: pressure, within the model's levels.
        day: ISO date.
        departure_k: y - H(x_b), K.
        error_k: standard deviation of its error, K.
    """

    latitude: float
    longitude: float
    level_hpa: float
    day: str
    departure_k: float = 1.0
    error_k: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("latitude", -90, 90), ("longitude", -180, 360), ("departure_k", -100, 100)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; {low} to {high}")
        for name in ("level_hpa", "error_k"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a number above 0")
        if not is_day(self.day):
            raise ValueError(f"day: {self.day!r} is not a date of the form 1989-01-31")

    def stations(self, days: np.ndarray, value: float) -> Stations:
        """It, on its day, as what an analysis is given."""
        numbers = {name: np.array([getattr(self, name)]) for name in ("latitude", "longitude", "level_hpa")}
        numbers |= {"value": np.array([value]), "error_std": np.array([self.error_k])}
        frame, identity = np.flatnonzero(days == np.datetime64(self.day)), np.array(["single"], object)
        return Stations(NAME, days, frame, station_id=identity, qc=np.zeros(1, np.int8), **numbers)


@dataclass(frozen=True)
class Increment:
    """What came of it.

    Arguments:
        days: of the window, (L,).
        x_LCHW: mean over members, of the temperature alone, K.
        n_members: how many of the members could be drawn.
        at_place: H of it, K.
        prior_std, error_std: of H(x) over prior members and of the observation in the assimilation, K.
    """

    single: Single
    modality: Modality
    grid: Grid
    days: np.ndarray
    x_LCHW: np.ndarray
    n_members: int
    at_place: float
    prior_std: float
    error_std: float

    @property
    def frame(self) -> int:
        """The observed day's place in the window."""
        return int(np.flatnonzero(self.days == np.datetime64(self.single.day))[0])

    @property
    def channel(self) -> int:
        """The level nearest in the logarithm of pressure."""
        return int(np.abs(np.log(np.array(self.modality.level_hpa) / self.single.level_hpa)).argmin())

    @property
    def column_LC(self) -> np.ndarray:
        """Above and below the place, on each day, K."""
        cell, weight = horizontal(*(np.array([v]) for v in (self.single.latitude, self.single.longitude)), self.grid)
        return np.asarray(self.x_LCHW.reshape(*self.x_LCHW.shape[:2], -1)[..., cell[0]] @ weight[0])

    @property
    def gaussian(self) -> float:
        """At the place, if the prior were Gaussian with its members' variance: d s^2 / (s^2 + R), K."""
        return self.single.departure_k * self.prior_std**2 / (self.prior_std**2 + self.error_std**2)


def increment(
    method: Method,
    single: Single,
    days: np.ndarray,
    members: np.ndarray,
    z_b: Tensor | None = None,
    inflation: float = 1.0,
) -> Increment:
    """Draw it.

    Arguments:
        days: consecutive days around the observed one.
        members: their numbers; one is enough where the prior is Gaussian.
        z_b: background of the day before, or none.
        inflation: factor on the error of temperature that the method takes.

    Raises:
        ValueError: the model has no temperature, or the place lies beyond its levels.
        FloatingPointError: no member could be drawn.
    """
    spec, frame = method.spec, int(np.flatnonzero(days == np.datetime64(single.day))[0])
    check_place(spec, single)
    observed = listed(single.stations(days[[frame]], 0.0), spec)
    prior = method.draw([], days, members, z_b).x_MLCHW
    h_M = observed.evaluate(prior[:, frame])[:, 0]
    before = float(np.nanmean(h_M)) if np.isfinite(h_M).any() else math.nan
    both = [method.draw([single.stations(days, before + d)], days, members, z_b) for d in (single.departure_k, 0.0)]
    with_d, with_0 = (each.x_MLCHW for each in both)
    x_MLCHW = (with_d - with_0)[:, :, spec.channels(NAME)]
    again = [*both[0].diverged, *both[1].diverged]  # was drawn from another noise, so the difference is no increment
    drawn = np.isfinite(x_MLCHW).all(axis=(1, 2, 3, 4)) & np.isfinite(h_M) & ~np.isin(members, again)
    if not drawn.any():
        raise FloatingPointError(f"members: none of {len(members)} could be drawn; take more sampler.steps")
    at_place = (observed.evaluate(with_d[:, frame]) - observed.evaluate(with_0[:, frame]))[drawn].mean()
    prior_std = float(h_M[drawn].std(ddof=1)) if drawn.sum() > 1 else math.nan
    error = inflation * math.hypot(single.error_k, _unresolved(method, single, days))
    found = x_MLCHW[drawn].mean(axis=0, dtype=np.float64)
    about = (single, spec.modality(NAME), spec.grid, days)
    return Increment(*about, found, int(drawn.sum()), float(at_place), prior_std, error)


def check_place(spec: StateSpec, single: Single) -> None:
    """Refuse a place that no analysis would use.

    Raises:
        ValueError: the model has no temperature, or the place lies beyond its levels.
    """
    levels = spec.modality(NAME).level_hpa
    if not min(levels) <= single.level_hpa <= max(levels):
        raise ValueError(f"level_hpa: {single.level_hpa:g} is not allowed; {min(levels)} to {max(levels)}")


def _unresolved(method: Method, single: Single, days: np.ndarray) -> float:
    """What the decoder cannot represent there, interpolated as the likelihood does, K."""
    _, at = usable(single.stations(days, 0.0), method.spec)
    unresolved = method.unresolved_C[method.spec.channels(NAME)].cpu().numpy()
    return float((at.weight[0] * unresolved[at.channel[0]]).sum())


def half_width_km(field_HW: np.ndarray, latitude: float, longitude: float, grid: Grid) -> float:
    """Distance at which an increment falls to half: the h of a exp(-ln 2 (distance / h)^2) fitted to it.

    Least squares over the cells within 5000 km, by area; a is free. Of an increment that is broader along one
    direction it is a mean; one that has no maximum at the place, or is narrower than a cell, has no h worth the name.
    """
    rows, columns = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude - longitude)
    place = np.deg2rad(latitude)
    half_chord = np.sin((rows - place) / 2) ** 2 + np.cos(rows) * np.cos(place) * np.sin(columns / 2) ** 2
    distance = 2 * EARTH_KM * np.arcsin(np.sqrt(half_chord.clip(0, 1)))
    near = distance < FIT_KM
    value, weight = field_HW[near], grid.area_weights[near]
    shapes = np.exp(-np.log(2) * (distance[near] / WIDTHS_KM[:, None]) ** 2)
    most = np.maximum(shapes**2 @ weight, np.finfo(float).tiny)  # 0 where a bell falls between all cells
    fitted = (shapes @ (weight * value)) ** 2 / most  # of the sum of squares, by the best a
    return float(WIDTHS_KM[fitted.argmax()])


def described(found: Increment) -> dict[str, Any]:
    """What increment.json holds, in K and km; null where there is nothing to divide by.

    Returns:
        ``observation``; ``members``; ``at_place_k``; ``largest``, where it is and its ``value_k``; ``half_width_km`` on
        the level and day observed; ``by_level_k`` and ``by_day_k`` at the place; ``gaussian``, ``prior_std_k`` and
        ``error_std_k`` with the ``increment_k`` that they make, and ``ratio`` of ``at_place_k`` to it, known to within
        about sqrt(2 / M) of the prior's variance.
    """
    single, grid, levels = found.single, found.grid, found.modality.level_hpa
    frame, channel, column = found.frame, found.channel, found.column_LC
    where = np.unravel_index(np.abs(found.x_LCHW).argmax(), found.x_LCHW.shape)
    largest = {
        "value_k": float(found.x_LCHW[where]),
        "day": str(found.days[where[0]]),
        "level_hpa": levels[where[1]],
        "latitude": float(grid.latitude[where[2]]),
        "longitude": float(grid.longitude[where[3]]),
    }
    width = half_width_km(found.x_LCHW[frame, channel], single.latitude, single.longitude, grid)
    gaussian = {"prior_std_k": found.prior_std, "error_std_k": found.error_std, "increment_k": found.gaussian}
    gaussian["ratio"] = found.at_place / found.gaussian if found.gaussian else math.nan
    return {
        "observation": asdict(single),
        "members": found.n_members,
        "at_place_k": found.at_place,
        "largest": largest,
        "half_width_km": width if largest["value_k"] else None,
        "by_level_k": {str(level): float(v) for level, v in zip(levels, column[frame], strict=True)},
        "by_day_k": {str(day): float(v) for day, v in zip(found.days, column[:, channel], strict=True)},
        "gaussian": {name: value if math.isfinite(value) else None for name, value in gaussian.items()},
    }
