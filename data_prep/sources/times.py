"""When a sample is valid: numbers in a file -> instants in UTC, of real calendars only.

An interval counts for the day in which its middle lies, so that a total stamped with the end of its day is not
counted for the next one. Only bounds (or, in GRIB, steps) tell an interval's end from its beginning; without them
the time is taken as it stands.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.coders import CFDatetimeCoder

from data_prep.sources.quantity import SourceError

CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")
ROUNDING = np.timedelta64(1, "s")  # of the same instant in two units


def instants(path: Path, time: xr.DataArray, raw: xr.Dataset) -> np.ndarray:
    """The time of each sample, datetime64[ns] (time,): the middle of its bounds, where the file has any.

    Raises:
        SourceError: another calendar, no unit, a missing time, an interval of more than a day or without its time.
    """
    found = intervals(path, time, raw)
    if found is None:
        return _decoded(path, time.values, time.attrs)
    start, end = found
    return start + (end - start) // 2


def intervals(path: Path, time: xr.DataArray, raw: xr.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Beginning and end of the interval of each sample, datetime64[ns] (time,); None where the file has no bounds.

    Raises:
        SourceError: as of `instants`.
    """
    bounds = raw.get(time.attrs.get("bounds", ""))
    if bounds is None:
        return None
    attributes = time.attrs | bounds.attrs  # those that it has itself are its own
    start, end = (_decoded(path, values, attributes) for values in bounds.values.reshape(-1, 2).T)
    longest = (end - start).max(initial=np.timedelta64(0))
    if longest > DAY or (end < start).any():
        raise SourceError(f"{path}: {bounds.name}: an interval of {longest / DAY:g} days; 0 to 1 day is allowed")
    _refuse_outside(path, str(bounds.name), _decoded(path, time.values, time.attrs), start, end)
    return start, end


def _refuse_outside(path: Path, name: str, time: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    outside = np.flatnonzero((time < start - ROUNDING) | (time > end + ROUNDING))
    if len(outside):
        stamp, *interval = (values[outside[0]].astype("datetime64[s]") for values in (time, start, end))
        raise SourceError(
            f"{path}: {name}: {' to '.join(map(str, interval))} for the time {stamp}, which must lie in it"
        )


def held(time: np.ndarray, attributes: dict[Any, Any]) -> slice:
    """The samples that a store says it holds: Google's has a time axis from 1900 to 2050, whatever is there."""
    first = attributes.get("valid_time_start")
    last = attributes.get("valid_time_stop_era5t", attributes.get("valid_time_stop"))
    if first is None or last is None:
        return slice(0, len(time))
    day = time.astype("datetime64[D]")
    within = np.flatnonzero((day >= np.datetime64(first, "D")) & (day <= np.datetime64(last, "D")))
    return slice(int(within[0]), int(within[-1]) + 1) if len(within) else slice(0, 0)


def _decoded(path: Path, numbers: np.ndarray, attributes: dict[Any, Any]) -> np.ndarray:
    found = numbers if numbers.dtype.kind == "M" else _as_dates(path, np.atleast_1d(numbers), attributes)
    if found.dtype.kind != "M":
        raise SourceError(f"{path}: time: starts at {found[0]}; dates from 1678 to 2261 are allowed")
    found = found.astype("datetime64[ns]")
    if np.isnat(found).any():
        raise SourceError(f"{path}: time: has missing values; every field needs its time")
    return found


def _as_dates(path: Path, numbers: np.ndarray, attributes: dict[Any, Any]) -> np.ndarray:
    calendar, units = attributes.get("calendar", "standard"), attributes.get("units", "")
    if str(calendar).lower() not in CALENDARS:
        raise SourceError(f"{path}: time: calendar {calendar!r}; allowed are {', '.join(CALENDARS)}")
    if " since " not in units:
        raise SourceError(f"{path}: time: units {units!r}; needed is for example 'hours since 1900-01-01'")
    dataset = xr.Dataset({"time": ("time", numbers, {"units": units, "calendar": calendar})})
    with warnings.catch_warnings():
        # "hours since 1-1-1" in older NOAA files: xarray rightly takes the first number for the year
        warnings.filterwarnings("ignore", "Ambiguous reference date string", xr.SerializationWarning)
        # dates beyond datetime64[ns] stay objects, which the caller refuses
        warnings.filterwarnings("ignore", "Unable to decode time axis", xr.SerializationWarning)
        try:
            return xr.decode_cf(dataset, decode_times=CFDatetimeCoder(time_unit="ns"))["time"].values
        except ValueError as error:
            raise SourceError(f"{path}: time: units {units!r} do not give dates: {error}") from error
