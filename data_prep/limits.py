"""Which reports of stations are wanted, what may be true of them, and how large their errors are: configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np


@dataclass(frozen=True)
class Limits:
    """Gross limits and standard errors of one variable, at some pressures; between these linear in log p.

    Arguments:
        low, high: values beyond are impossible, in the state's unit.
        error_std: of a report that brings no error of its own: the instrument's and what it does not represent.
        at_hpa: the pressures, ascending; empty, with one number in each of the others, for a field without levels.
    """

    low: list[float]
    high: list[float]
    error_std: list[float]
    at_hpa: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        needed = max(1, len(self.at_hpa))
        for name in ("low", "high", "error_std"):
            if len(getattr(self, name)) != needed:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; {needed} numbers, as at_hpa has")
        if self.at_hpa and not (self.at_hpa[0] > 0 and (np.diff(self.at_hpa) > 0).all()):
            raise ValueError(f"at_hpa: {self.at_hpa} is not allowed; pressures in ascending order")
        if not (np.array(self.low) < np.array(self.high)).all():
            raise ValueError(f"low: {self.low} is not allowed; each less than its high, {self.high}")
        if not (np.array(self.error_std) > 0).all():
            raise ValueError(f"error_std: {self.error_std} is not allowed; more than 0")

    def at(self, name: str, level_hpa: np.ndarray) -> np.ndarray:
        """``low``, ``high`` or ``error_std`` at those pressures, (N,)."""
        numbers = getattr(self, name)
        if not self.at_hpa:
            return np.full(len(level_hpa), numbers[0], np.float64)
        log_p = np.log(np.where(level_hpa > 0, level_hpa, self.at_hpa[0]))
        return np.asarray(np.interp(log_p, np.log(self.at_hpa), numbers))


# Errors of radiosondes: NCEP's table for its global assimilation, instrument and representativeness together, as DART
# ships it (NCAR/DART, obs_error/ncep_obs_err_mod.f90, rawin_temp_error). Limits are ours, made to catch a wrong sign,
# digit or unit, and wide: on the ground 184 K and 330 K have been measured (WMO, Weather and Climate Extremes Archive).
TEMPERATURE = Limits(
    at_hpa=[10, 20, 50, 100, 150, 200, 250, 300, 350, 500, 850, 900, 950, 1000],
    low=[160, 160, 160, 165, 170, 175, 180, 185, 188, 195, 195, 193, 190, 184],
    high=[315, 305, 275, 255, 255, 255, 255, 265, 272, 285, 320, 325, 330, 330],
    error_std=[1.5, 1.25, 0.9, 0.8, 1.0, 1.2, 1.2, 0.9, 0.8, 0.8, 0.8, 0.9, 1.1, 1.2],
)
# Record of a day: 1825 mm (WMO, La Reunion 1966). The error of a gauge against the mean of a cell is mostly what it
# does not represent; a broad guess, as is that of OLR: give your own.
PRECIPITATION = Limits(low=[0.0], high=[1900.0], error_std=[5.0])
OLR = Limits(low=[0.0], high=[500.0], error_std=[10.0])


def default_limits() -> dict[str, Limits]:
    """Limits of the variables that are known."""
    return {"temperature": TEMPERATURE, "precipitation": PRECIPITATION, "olr": OLR}


@dataclass(frozen=True)
class QualityConfig:
    """How reports are checked.

    Arguments:
        background_k: of the background check. 8 rejects less than 2 in 10,000 true values of the sample world at any
            level, 5 up to 3 in 1,000: the standard deviation is one number a level, and the tropics make it small.
        moved_km: how far from where it mostly is a station may report; ships of IGRA are excepted.
        limits: by variable.
    """

    background_k: float = 8.0
    moved_km: float = 50.0
    limits: dict[str, Limits] = field(default_factory=default_limits)

    def __post_init__(self) -> None:
        for name in ("background_k", "moved_km"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; more than 0")


@dataclass(frozen=True)
class StationsConfig:
    """Reports of real stations -> observations.

    Arguments:
        path: observation set to write, one of its own.
        first_day, last_day: ISO dates.
        variables: of the state, those that are kept.
        igra: glob pattern of IGRA version 2 files, text or zip; they give temperature.
        table: glob pattern of CSV or Parquet tables (`data_prep.sources.reports`).
    """

    path: str
    first_day: str
    last_day: str
    variables: list[str] = field(default_factory=lambda: ["temperature"])
    igra: str = ""
    table: str = ""
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        for name in ("first_day", "last_day"):
            _check_day(name, getattr(self, name))
        if self.last < self.first:
            raise ValueError(f"last_day: {self.last_day} is before first_day, {self.first_day}")
        if not (self.igra or self.table):
            raise ValueError("igra, table: both are empty; a glob pattern of files is needed")
        if not self.variables or len(set(self.variables)) != len(self.variables):
            raise ValueError(f"variables: {self.variables} is not allowed; at least one, each once")
        if not self.table and self.variables != ["temperature"]:
            raise ValueError(f"variables: {self.variables} is not allowed; IGRA files give ['temperature'] only")
        for name in self.variables:
            if name not in self.quality.limits:
                raise ValueError(f"quality.limits: has no {name!r}, one of variables; it has {[*self.quality.limits]}")

    @property
    def first(self) -> np.datetime64:
        return np.datetime64(self.first_day, "D")

    @property
    def last(self) -> np.datetime64:
        return np.datetime64(self.last_day, "D")


def _check_day(name: str, text: str) -> None:
    """A date as ISO writes it, and nothing else that a library reads as one ("today", "1989-01")."""
    try:
        whole = date.fromisoformat(text).isoformat() == text
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{name}: {text!r} is not a date of the form 1989-01-31")
