"""From one file in a provider's layout to the canonical one: names, dimensions, units, valid values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from data_prep.sources.files import lazy, located, open_raw
from data_prep.sources.quantity import Quantity, SourceError, find_name
from data_prep.sources.times import in_valid_time, instants

HORIZONTAL = ("latitude", "longitude")
VERSION = "expver"  # of an experiment at ECMWF
DIMENSIONS = {
    "time": ("time", "valid_time"),
    "level": ("level", "pressure_level", "isobaricInhPa", "isobaricInPa", "plev"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}
HPA_PER_UNIT = {"hPa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "Pa": 0.01}
CHUNK_BYTES = 2**25  # of one block of float32 along time
DEGREES_TOLERANCE = 1e-4  # coordinates of float32 files


@dataclass(frozen=True)
class Piece:
    """One decoded file: its field, the run it belongs to, and where it came from."""

    path: Path
    field: xr.DataArray
    run: str


def decode(path: str | Path, quantity: Quantity, level_hpa: Sequence[int] | None) -> Piece:
    """The quantity of one file over time, lazy, nothing read but headers and axes.

    Raises:
        SourceError: a file that cannot be used; on computing, a value outside the valid range.
    """
    path = located(path)
    raw, name = open_raw(path, quantity)
    field = _timed(path, _named(path, raw, name), raw)
    if level_hpa is not None:
        field = _levelled(path, field, level_hpa)
    dims = ("time", *(() if level_hpa is None else ("level",)), *HORIZONTAL)
    field = _horizontal(path, _shaped(path, field, dims))
    return Piece(path, _valued(path, field, quantity), str(raw.attrs.get("simulation_run", "")))


def decode_static(path: str | Path, quantity: Quantity) -> xr.DataArray:
    """The quantity as one field (latitude, longitude), the first time of it if there are several.

    Raises:
        SourceError: as `decode`.
    """
    path = located(path)
    raw, name = open_raw(path, quantity)
    field = _named(path, raw, name)
    if "time" in field.dims:
        field = _timed(path, field, raw).isel(time=0)
    field = _horizontal(path, _shaped(path, field.drop_vars("time", errors="ignore"), HORIZONTAL))
    return _valued(path, field, quantity)


# Names and coordinates


def _named(path: Path, raw: xr.Dataset, name: str) -> xr.DataArray:
    """The variable with its coordinates under canonical names."""
    present = {str(key) for key in raw.variables}
    names = {alias: dim for dim, aliases in DIMENSIONS.items() for alias in aliases if alias in present}
    field = raw[name].drop_vars(set(raw[name].coords) - set(names) - {VERSION})
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


def _timed(path: Path, field: xr.DataArray, raw: xr.Dataset) -> xr.DataArray:
    """The field with a time dimension of datetime64[ns], over the time that the file says it holds."""
    find_name(path, f"time of {field.name}", ("time",), field.coords)
    if "time" not in field.dims:
        field = field.expand_dims("time")
    field = field.assign_coords(time=("time", instants(path, field["time"], raw)))
    return in_valid_time(field, raw.attrs)


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
    field = _one_version(path, field)
    extra = [dim for dim in field.dims if dim not in dims and field.sizes[dim] == 1]
    field = field.squeeze(extra, drop=True).drop_vars(set(field.coords) - set(dims), errors="ignore")
    if set(field.dims) != set(dims):
        present = ", ".join(f"{dim} ({size})" for dim, size in field.sizes.items())
        raise SourceError(f"{path}: {field.name}: dimensions {present}; needed are {', '.join(dims)}")
    return _chunked(path, field).transpose(*dims)


def _one_version(path: Path, field: xr.DataArray) -> xr.DataArray:
    """Where a file of recent months holds final (1) and preliminary (5) ERA5 side by side, each padded with missing
    fields for the times of the other: the final where it is there."""
    if field.sizes.get(VERSION, 1) == 1 or VERSION not in field.coords:
        return field
    version = [str(value).lstrip("0") for value in field[VERSION].values]
    if sorted(version) != ["1", "5"]:
        raise SourceError(f"{path}: {VERSION}: {', '.join(version)}; 1 (final) and 5 (preliminary) are allowed")
    field = _chunked(path, field)
    final, preliminary = (field.isel({VERSION: version.index(name)}, drop=True) for name in ("1", "5"))
    return final.fillna(preliminary).assign_attrs(field.attrs)


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


# Values


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
