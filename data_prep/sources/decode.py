"""From a provider's layout to the canonical one: dimensions, units, valid values, days.

Steps of `open_daily`: each file is decoded by itself (`_decode`), the files are joined in time (`_join`), and
the samples of a UTC day become that day's mean (`_daily`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from xarray.coders import CFDatetimeCoder

from data_prep.sources.files import lazy, open_raw
from data_prep.sources.quantity import Quantity, SourceError, find_name

HORIZONTAL = ("latitude", "longitude")
DIMENSIONS = {
    "time": ("time", "valid_time"),
    "level": ("level", "pressure_level", "isobaricInhPa", "isobaricInPa", "plev"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}
HPA_PER_UNIT = {"hPa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "Pa": 0.01}
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
CHUNK_BYTES = 2**25  # of one block of float32 along time
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")
DEGREES_TOLERANCE = 1e-4  # coordinates of float32 files


@dataclass(frozen=True)
class Piece:
    """One decoded file: its field, the run it belongs to, and where it came from."""

    path: Path
    field: xr.DataArray
    run: str


def open_daily(
    paths: Sequence[str | Path], quantity: Quantity, level_hpa: Sequence[int] | None = None
) -> xr.DataArray:
    """The files as one daily field (time[, level], latitude, longitude), lazy, float32, canonical units.

    Arguments:
        paths: one file or many, in any order.
        quantity: what to read.
        level_hpa: pressure levels in the order wanted; None for a field without levels.

    Raises:
        SourceError: a file that cannot be used, or files that do not fit together.
    """
    if isinstance(paths, (str, Path)) or not len(paths):
        raise SourceError(f"paths: {paths!r} for {quantity.name}; a list of at least one file is needed")
    pieces = [_decode(Path(path), quantity, level_hpa) for path in paths]
    return _daily(*_join(pieces), quantity)


def decode_static(path: Path, quantity: Quantity) -> xr.DataArray:
    """The quantity as one field (latitude, longitude), the first time of it if there are several."""
    raw, name = open_raw(path, quantity)
    field = _named(path, raw, name)
    if "time" in field.dims:
        field = field.isel(time=0)
    field = _horizontal(path, _shaped(path, field.drop_vars("time", errors="ignore"), HORIZONTAL))
    return _valued(path, field, quantity)


def _decode(path: Path, quantity: Quantity, level_hpa: Sequence[int] | None) -> Piece:
    raw, name = open_raw(path, quantity)
    field = _timed(path, _named(path, raw, name))
    if level_hpa is not None:
        field = _levelled(path, field, level_hpa)
    dims = ("time", *(() if level_hpa is None else ("level",)), *HORIZONTAL)
    field = _horizontal(path, _shaped(path, field, dims))
    return Piece(path, _valued(path, field, quantity), str(raw.attrs.get("simulation_run", "")))


# One file: names and coordinates


def _named(path: Path, raw: xr.Dataset, name: str) -> xr.DataArray:
    """The variable with its coordinates under canonical names."""
    present = {str(key) for key in raw.variables}
    names = {alias: dim for dim, aliases in DIMENSIONS.items() for alias in aliases if alias in present}
    field = raw[name].drop_vars(set(raw[name].coords) - set(names))
    for alias, dim in names.items():
        # a scalar that the file does not list under `coordinates` is a plain variable to xarray
        if dim in ("time", "level") and alias not in field.coords and raw[alias].ndim == 0:
            field = field.assign_coords({alias: raw[alias]})
    names = {alias: dim for alias, dim in names.items() if alias in field.coords}
    if len(set(names.values())) < len(names):
        raise SourceError(f"{path}: {name} has coordinates {', '.join(names)}; one a dimension is allowed")
    for dim in ("latitude", "longitude"):
        find_name(path, f"{dim} dimension of {name}", DIMENSIONS[dim], names)
    return field.rename(names)


def _timed(path: Path, field: xr.DataArray) -> xr.DataArray:
    """The field with a time dimension of datetime64[ns]."""
    find_name(path, f"time of {field.name}", ("time",), field.coords)
    if "time" not in field.dims:
        field = field.expand_dims("time")
    return field.assign_coords(time=_instants(path, field["time"]))


def _instants(path: Path, time: xr.DataArray) -> np.ndarray:
    if time.dtype.kind != "M":
        time = _decoded_time(path, time)
    if time.dtype.kind != "M":
        raise SourceError(f"{path}: time: starts at {time.values[0]}; dates from 1678 to 2261 are allowed")
    instants = time.values.astype("datetime64[ns]")
    if np.isnat(instants).any():
        raise SourceError(f"{path}: time: has missing values; every field needs its time")
    return instants


def _decoded_time(path: Path, time: xr.DataArray) -> xr.DataArray:
    calendar, units = time.attrs.get("calendar", "standard"), time.attrs.get("units", "")
    if str(calendar).lower() not in CALENDARS:
        raise SourceError(f"{path}: time: calendar {calendar!r}; allowed are {', '.join(CALENDARS)}")
    if " since " not in units:
        raise SourceError(f"{path}: time: units {units!r}; needed is for example 'hours since 1900-01-01'")
    numbers = xr.Dataset({"time": ("time", time.values, time.attrs)})
    with warnings.catch_warnings():
        # "hours since 1-1-1" in older NOAA files: xarray rightly takes the first number for the year
        warnings.filterwarnings("ignore", "Ambiguous reference date string", xr.SerializationWarning)
        # dates beyond datetime64[ns] stay objects, which the caller refuses
        warnings.filterwarnings("ignore", "Unable to decode time axis", xr.SerializationWarning)
        try:
            return xr.decode_cf(numbers, decode_times=CFDatetimeCoder(time_unit="ns"))["time"]
        except ValueError as error:
            raise SourceError(f"{path}: time: units {units!r} do not give dates: {error}") from error


def _levelled(path: Path, field: xr.DataArray, level_hpa: Sequence[int]) -> xr.DataArray:
    """The asked levels in the asked order."""
    find_name(path, f"pressure levels of {field.name}", ("level",), field.coords)
    if "level" not in field.dims:
        field = field.expand_dims("level")
    units = field["level"].attrs.get("units", "hPa")
    if units not in HPA_PER_UNIT:
        raise SourceError(f"{path}: level: units {units!r}; allowed are {', '.join(HPA_PER_UNIT)}")
    present_hpa = field["level"].values.astype(float) * HPA_PER_UNIT[units]
    same = np.isclose(present_hpa[None, :], np.asarray(level_hpa, float)[:, None], rtol=1e-4)
    for level, found in zip(level_hpa, same, strict=True):
        if not found.any():
            present = ", ".join(f"{value:g}" for value in present_hpa)
            raise SourceError(f"{path}: {field.name}: no level {level} hPa; the file has {present} hPa")
    chosen = field.isel(level=same.argmax(axis=1))
    return chosen.assign_coords(level=("level", np.asarray(level_hpa, int), {"units": "hPa"}))


def _shaped(path: Path, field: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    """Exactly those dimensions in that order, in blocks; others are dropped where they have one entry."""
    extra = [dim for dim in field.dims if dim not in dims and field.sizes[dim] == 1]
    field = field.squeeze(extra, drop=True).drop_vars(set(field.coords) - set(dims))
    if set(field.dims) != set(dims):
        present = ", ".join(f"{dim} ({size})" for dim, size in field.sizes.items())
        raise SourceError(f"{path}: {field.name}: dimensions {present}; needed are {', '.join(dims)}")
    return _chunked(path, field).transpose(*dims)


def _horizontal(path: Path, field: xr.DataArray) -> xr.DataArray:
    """Latitude from north to south, longitude from 0 eastwards, a repeated meridian dropped."""
    latitude = field["latitude"].values.astype(float)
    longitude = field["longitude"].values.astype(float) % 360.0
    longitude[longitude > 360.0 - DEGREES_TOLERANCE] = 0.0
    order = np.argsort(longitude, kind="stable")
    first = np.diff(longitude[order], prepend=-1.0) > DEGREES_TOLERANCE
    if not (np.abs(latitude) <= 90.0).all() or not _strictly_monotonic(latitude):
        raise SourceError(f"{path}: latitude: not strictly monotonic within -90..90 degrees")
    field = field.assign_coords(latitude=latitude, longitude=longitude)
    if latitude[0] < latitude[-1]:
        field = field.isel(latitude=slice(None, None, -1))
    kept = order[first]
    return field if np.array_equal(kept, np.arange(longitude.size)) else field.isel(longitude=kept)


def _strictly_monotonic(values: np.ndarray) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _chunked(path: Path, field: xr.DataArray) -> xr.DataArray:
    """Blocks of whole maps along time, so that no later step needs more than one block at a time."""
    bytes_per_time = 4 * field.size // max(1, field.sizes.get("time", 1))
    times = max(1, CHUNK_BYTES // max(1, bytes_per_time))
    return lazy(path, field, {dim: times if dim == "time" else -1 for dim in field.dims})


# One file: values


def _valued(path: Path, field: xr.DataArray, quantity: Quantity) -> xr.DataArray:
    """Canonical units as float32, every block checked against the valid range when it is computed."""
    units = _units(path, field, quantity)
    _refuse_totals_within_a_day(path, field, quantity, units)
    checked = xr.apply_ufunc(
        _convert,
        field,
        kwargs={"factor": quantity.factors[units], "quantity": quantity, "path": path},
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    attrs = {"units": quantity.units, "standard_name": quantity.standard_name}
    return checked.rename(quantity.name).drop_attrs(deep=False).assign_attrs(attrs).drop_encoding()


def _units(path: Path, field: xr.DataArray, quantity: Quantity) -> str:
    units = field.attrs.get("units", quantity.default_units)
    if units not in quantity.factors:
        allowed = ", ".join(repr(unit) for unit in quantity.factors)
        raise SourceError(f"{path}: {field.name}: units {units!r}; allowed are {allowed}")
    return units


def _refuse_totals_within_a_day(path: Path, field: xr.DataArray, quantity: Quantity, units: str) -> None:
    """A total in a file with several times a day says not over which part of the day it was taken."""
    if units in quantity.totals and "time" in field.dims:
        day = field["time"].values.astype("datetime64[D]")
        if len(np.unique(day)) < len(np.unique(field["time"].values)):
            raise SourceError(
                f"{path}: {field.name}: totals in {units!r} at several times a day; one a day is allowed"
            )


def _convert(values: np.ndarray, factor: float, quantity: Quantity, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):  # an undeclared fill value may overflow; it is refused below
        converted = np.multiply(values, factor, dtype=np.float32, casting="unsafe")
    low, high = quantity.valid_range
    bad = (converted < low) | (converted > high)  # a missing value, NaN, is neither
    if bad.any():
        value = f"{converted[bad][0]:g} {quantity.units}"
        raise SourceError(f"{path}: {quantity.name}: value {value}; allowed is {low:g} to {high:g}")
    return converted


# Many files


def _join(pieces: list[Piece]) -> tuple[xr.DataArray, np.ndarray]:
    """All samples in order of time, and the run of each."""
    for piece in pieces[1:]:
        _refuse_other_grid(pieces[0], piece)
    _refuse_mixed_steps(pieces)
    times = np.concatenate([piece.field["time"].values for piece in pieces])
    origin = np.repeat(np.arange(len(pieces)), [piece.field.sizes["time"] for piece in pieces])
    order = np.argsort(times, kind="stable")
    _refuse_duplicates(pieces, times[order], origin[order])
    joined = xr.concat(
        [piece.field for piece in pieces], "time", coords="minimal", compat="override", join="override"
    )
    if not np.array_equal(order, np.arange(order.size)):
        joined = joined.isel(time=order)
    return joined, np.array([piece.run for piece in pieces])[origin[order]]


def _refuse_other_grid(first: Piece, other: Piece) -> None:
    for dim in ("latitude", "longitude"):
        a, b = first.field[dim].values, other.field[dim].values
        if a.shape != b.shape or np.abs(a - b).max() > DEGREES_TOLERANCE:
            raise SourceError(f"{other.path}: {dim}: differs from {first.path}; files of one grid are needed")


def _refuse_mixed_steps(pieces: list[Piece]) -> None:
    """Files sampled 6-hourly beside files sampled daily would leave the daily ones looking incomplete."""
    found: dict[np.timedelta64, Path] = {}
    for piece in pieces:
        instants = np.unique(piece.field["time"].values)
        if instants.size > 1:
            found.setdefault(min(DAY, np.diff(instants).min()), piece.path)
    if len(found) > 1:
        steps = ", ".join(f"{step / np.timedelta64(1, 'h'):g} h in {path}" for step, path in found.items())
        raise SourceError(f"{pieces[0].field.name}: sampled every {steps}; one step for all files is allowed")


def _refuse_duplicates(pieces: list[Piece], times: np.ndarray, origin: np.ndarray) -> None:
    """Refuse an instant that stands twice, and a day that two runs claim."""
    days = times.astype("datetime64[D]")
    run = np.array([piece.run for piece in pieces])[origin]
    twice = (times[1:] == times[:-1]) | ((days[1:] == days[:-1]) & (run[1:] != run[:-1]))
    if twice.any():
        at = int(twice.argmax())
        files = " and ".join(dict.fromkeys(str(pieces[i].path) for i in (origin[at], origin[at + 1])))
        raise SourceError(f"{files}: {pieces[0].field.name}: day {days[at]} stands twice; once is allowed")


def _daily(samples: xr.DataArray, run: np.ndarray, quantity: Quantity) -> xr.DataArray:
    """Means over the UTC day; a day that lacks some of its samples is missing, not a mean of the rest."""
    times = samples["time"].values
    days, first = np.unique(times.astype("datetime64[D]"), return_index=True)
    if len(days) == len(times):
        daily, how = samples, "single value a day, taken as that day's value"
    else:
        instants = _lattice(times, days, quantity)
        n_a_day = instants.shape[1]
        full = samples if np.array_equal(instants.ravel(), times) else samples.reindex(time=instants.ravel())
        full = full.drop_vars("time")
        # a sum of strided slices, not a reshape: dask would first gather whole days into one block
        total = sum(full.isel(time=slice(i, None, n_a_day)) for i in range(n_a_day))
        daily, how = total / n_a_day, f"mean of {n_a_day} values a day"
    daily = daily.assign_coords(time=days.astype("datetime64[ns]"), run=("time", run[first].astype(str)))
    return daily.assign_attrs(samples.attrs | {"cell_methods": "time: mean", "daily_value": how})


def _lattice(times: np.ndarray, days: np.ndarray, quantity: Quantity) -> np.ndarray:
    """The instants that complete days would hold (day, sample), from the shortest step between two times."""
    step = np.diff(times).min()
    phase = (times - times.astype("datetime64[D]")).min() % step
    if DAY % step or ((times - times.astype("datetime64[D]") - phase) % step).any():
        raise SourceError(
            f"{quantity.name}: times every {step / np.timedelta64(1, 'h'):g} h, some off that step; "
            "an even division of the day is needed"
        )
    return days.astype("datetime64[ns]")[:, None] + phase + step * np.arange(DAY // step)
