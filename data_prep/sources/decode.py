"""From one file in a provider's layout to the canonical one: names, dimensions, units, valid values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from data_prep.sources.files import located, open_raw, read_values
from data_prep.sources.plausible import refuse_holes, refuse_too_little
from data_prep.sources.quantity import Quantity, SourceError, find_name
from data_prep.sources.times import DAY, held, instants, intervals

HORIZONTAL = ("latitude", "longitude")
VERSION = "expver"  # of an experiment at ECMWF
DIMENSIONS = {
    "time": ("time", "valid_time"),
    "level": ("level", "pressure_level", "isobaricInhPa", "isobaricInPa", "plev"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}
HPA_PER_UNIT = {"hPa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "Pa": 0.01}
SMALLEST_GRID = 2  # points each way; a zonal mean has one
DEGREES_TOLERANCE = 1e-4  # coordinates of float32 files
DAY_TOLERANCE = np.timedelta64(1, "m")  # of a day that ends at 23:59:59


@dataclass(frozen=True)
class Axis:
    """A horizontal axis in canonical order, and which of the file's entries that takes.

    Arguments:
        degrees: latitude from north to south, or longitude from 0 eastwards.
        where: entry of the file for each.
    """

    degrees: np.ndarray
    where: slice | np.ndarray

    def shared(self, other: Axis) -> Axis:
        """The other, where it is the same."""
        same = np.array_equal(self.degrees, other.degrees) and type(self.where) is type(other.where)
        return other if same and np.array_equal(self.where, other.where) else self


@dataclass(frozen=True)
class Piece:
    """One quantity of one file, still in the file; small, as there may be one for each of forty years' days.

    Arguments:
        variable: its name in the file.
        fields: as the file has it; what is missing in one is taken from the next.
        dims: canonical dimensions of what is read, time aside.
        time: of each sample, datetime64[ns] (sample,); empty for a static field.
        level_hpa: of the levels, if it has any.
        shape: of one sample, ([level,] latitude, longitude).
        units: as the file has them.
        run: the simulation that it belongs to.
        over_time: what a value is of the time that it stands for, as CF's cell methods name it (``mean``, ``point``);
            empty where the file does not say.
    """

    path: Path
    quantity: Quantity
    variable: str
    fields: tuple[xr.Variable, ...]
    dims: tuple[str, ...]
    time: np.ndarray
    latitude: Axis
    longitude: Axis
    level_hpa: tuple[int, ...]
    shape: tuple[int, ...]
    units: str
    run: str
    over_time: str = ""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start to stop in canonical form, float32 (sample, [level,] latitude, longitude).

        Raises:
            SourceError: a damaged block, a value outside the valid range, a mean over the Earth that cannot be, a hole.
        """
        values = self._values(self.fields[0], start, stop)
        for field in self.fields[1:]:
            values = np.where(np.isnan(values), self._values(field, start, stop), values)
        values = _converted(self.path, values, self.quantity.factors[self.units], self.quantity)
        refuse_holes(self.path, self.quantity, values, self.time[start:stop], self.level_hpa)
        refuse_too_little(self.path, self.quantity, self.units, values, (self.latitude.degrees, self.longitude.degrees))
        return values

    def _values(self, field: xr.Variable, start: int, stop: int) -> np.ndarray:
        if "time" in field.dims:
            field = field.isel(time=slice(start, stop))
        values = read_values(self.path, field)
        values = values.transpose([field.dims.index(dim) for dim in ("time", *self.dims) if dim in field.dims])
        # in two steps: numpy would pair the entries of two lists
        values = values[..., self.latitude.where, :][..., self.longitude.where]
        return values.reshape(stop - start, *self.shape)


def decode(path: str | Path, quantity: Quantity, level_hpa: Sequence[int] | None) -> Piece:
    """The quantity of one file over time, nothing read but headers and axes.

    Raises:
        SourceError: a file that cannot be used.
    """
    path = located(path)
    raw, name = open_raw(path, quantity)
    field = _named(path, raw, name)
    find_name(path, f"time of {name}", ("time",), field.coords)
    time = instants(path, field["time"], raw)
    within = held(time, raw.attrs)
    found = intervals(path, field["time"], raw)
    lengths = None if found is None else found[1] - found[0]
    over_time = _over_time(field, quantity, lengths)
    if is_total(str(field.attrs.get("units")), over_time, quantity):
        _refuse_parts_of_a_day(path, field, time, lengths)
    if "time" in field.dims:
        field = field.isel(time=within)
    return replace(_piece(path, quantity, raw, field, time[within], level_hpa), over_time=over_time)


def decode_static(path: str | Path, quantity: Quantity) -> xr.DataArray:
    """The quantity as one field (latitude, longitude), the first time of it if there are several.

    Raises:
        SourceError: a file that cannot be used, a damaged block, a value outside the valid range.
    """
    path = located(path)
    raw, name = open_raw(path, quantity)
    field = _named(path, raw, name)
    if "time" in field.dims:
        field = field.isel(time=held(instants(path, field["time"], raw), raw.attrs)).isel(time=0)
    piece = _piece(path, quantity, raw, field, np.zeros(0, "datetime64[ns]"), None)
    coords = {"latitude": piece.latitude.degrees, "longitude": piece.longitude.degrees}
    return xr.DataArray(piece.read(0, 1)[0], coords, name=quantity.name, attrs=quantity.attributes)


def _piece(
    path: Path,
    quantity: Quantity,
    raw: xr.Dataset,
    field: xr.DataArray,
    time: np.ndarray,
    level_hpa: Sequence[int] | None,
) -> Piece:
    units = _units(path, field, quantity)
    if level_hpa is not None:
        field = _levelled(path, field, level_hpa)
    levels = () if level_hpa is None else ("level",)
    latitude, longitude = _latitude(path, field), _longitude(field)
    for name, axis in (("latitude", latitude), ("longitude", longitude)):
        if len(axis.degrees) < SMALLEST_GRID:
            raise SourceError(f"{path}: {name}: {len(axis.degrees)} value; a map has at least {SMALLEST_GRID}")
    field = _shaped(path, field, (*levels, *HORIZONTAL))
    shape = (*(() if level_hpa is None else (len(level_hpa),)), len(latitude.degrees), len(longitude.degrees))
    run, dims = str(raw.attrs.get("simulation_run", "")), (*levels, *HORIZONTAL)
    fields = tuple(version.variable for version in _versions(path, field))
    name, level_hpa = str(field.name), tuple(level_hpa or ())
    return Piece(path, quantity, name, fields, dims, time, latitude, longitude, level_hpa, shape, units, run)


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


def _levelled(path: Path, field: xr.DataArray, level_hpa: Sequence[int]) -> xr.DataArray:
    """The asked levels in the asked order."""
    find_name(path, f"pressure levels of {field.name}", ("level",), field.coords)
    units = field["level"].attrs.get("units", "hPa")
    if units not in HPA_PER_UNIT:
        raise SourceError(f"{path}: level: units {units!r}; allowed are {', '.join(HPA_PER_UNIT)}")
    present_hpa = np.atleast_1d(field["level"].values).astype(float) * HPA_PER_UNIT[units]
    same = np.isclose(present_hpa[None, :], np.asarray(level_hpa, float)[:, None], rtol=1e-4)
    for level, found in zip(level_hpa, same, strict=True):
        if not found.any():
            present = ", ".join(f"{value:g}" for value in present_hpa)
            raise SourceError(f"{path}: {field.name}: no level {level} hPa; the file has {present} hPa")
    return field.isel(level=same.argmax(axis=1)) if "level" in field.dims else field


def _shaped(path: Path, field: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    """Those dimensions and time, as far as the file has more than one entry of them, and no other."""
    extra = [dim for dim in field.dims if dim not in ("time", *dims) and field.sizes[dim] == 1]
    field = field.squeeze(extra, drop=True)
    strange = set(field.dims) - {"time", VERSION, *dims}
    if strange or not set(HORIZONTAL) <= set(field.dims):
        present = ", ".join(f"{dim} ({size})" for dim, size in field.sizes.items())
        raise SourceError(f"{path}: {field.name}: dimensions {present}; needed are {', '.join(('time', *dims))}")
    return field


def _versions(path: Path, field: xr.DataArray) -> tuple[xr.DataArray, ...]:
    """Final ERA5 (1) before preliminary (5): a file of recent months holds both side by side, each padded with missing
    fields for the times of the other."""
    if VERSION not in field.dims:
        return (field,)
    version = [str(value).lstrip("0") for value in field[VERSION].values]
    if sorted(version) != ["1", "5"]:
        raise SourceError(f"{path}: {VERSION}: {', '.join(version)}; 1 (final) and 5 (preliminary) are allowed")
    return tuple(field.isel({VERSION: version.index(name)}) for name in ("1", "5"))


def _latitude(path: Path, field: xr.DataArray) -> Axis:
    """From north to south."""
    degrees = np.atleast_1d(field["latitude"].values).astype(float)
    steps = np.diff(degrees)
    if not (np.abs(degrees) <= 90.0).all() or not ((steps > 0).all() or (steps < 0).all()):
        raise SourceError(f"{path}: latitude: not strictly monotonic within -90..90 degrees")
    order = slice(None, None, -1 if degrees[0] < degrees[-1] else 1)
    return Axis(degrees[order], order)


def _longitude(field: xr.DataArray) -> Axis:
    """From 0 eastwards, a repeated meridian dropped."""
    degrees = np.atleast_1d(field["longitude"].values).astype(float) % 360.0
    degrees[degrees > 360.0 - DEGREES_TOLERANCE] = 0.0
    order = np.argsort(degrees, kind="stable")
    kept = order[np.diff(degrees[order], prepend=-1.0) > DEGREES_TOLERANCE]
    return Axis(degrees[kept], slice(None) if np.array_equal(kept, np.arange(degrees.size)) else kept)


# Values


def _units(path: Path, field: xr.DataArray, quantity: Quantity) -> str:
    units = field.attrs.get("units", quantity.default_units)
    if units not in quantity.factors:
        allowed = ", ".join(repr(unit) for unit in quantity.factors)
        raise SourceError(f"{path}: {field.name}: units {units!r}; allowed are {allowed}")
    return units


def _over_time(field: xr.DataArray, quantity: Quantity, lengths: np.ndarray | None) -> str:
    """As `Piece` has it, of a file whose samples have intervals of those lengths, or none."""
    said = re.search(r"time: (\w+)", str(field.attrs.get("cell_methods", "")))
    if said and said[1] != "sum":
        return said[1]
    if said:
        return "sum" if quantity.units in quantity.totals else "mean"
    if field.attrs.get("units") in quantity.totals and quantity.units not in quantity.totals:
        return "mean"  # a rate from the total of a day
    if lengths is None:
        return ""
    return "mean" if lengths.any() else "point"


def is_total(units: str, over_time: str, quantity: Quantity) -> bool:
    """Whether values may be totals since another time: by their unit, unless that has other uses and the file tells."""
    other = over_time in ("point", "mean") and quantity.units in quantity.totals
    return units in quantity.totals and not other


def _refuse_parts_of_a_day(path: Path, field: xr.DataArray, time: np.ndarray, lengths: np.ndarray | None) -> None:
    """Refuse totals over something else than a day; without bounds, several a day say not over which part of it."""
    units = field.attrs.get("units")
    if len(np.unique(time.astype("datetime64[D]"))) < len(np.unique(time)):
        raise SourceError(f"{path}: {field.name}: totals in {units!r} at several times a day; one a day is allowed")
    shortest = DAY if lengths is None else lengths.min(initial=DAY)
    if shortest < DAY - DAY_TOLERANCE:
        hours = f"{shortest / np.timedelta64(1, 'h'):g} hours"
        raise SourceError(f"{path}: {field.name}: totals in {units!r} over {hours}; over whole days is allowed")


def _converted(path: Path, values: np.ndarray, factor: float, quantity: Quantity) -> np.ndarray:
    with np.errstate(over="ignore"):  # an undeclared fill value may overflow; it is refused below
        converted = np.multiply(values, factor, dtype=np.float32, casting="unsafe")
    low, high = quantity.valid_range
    bad = (converted < low) | (converted > high)  # a missing value, NaN, is neither
    if bad.any():
        value = f"{converted[bad][0]:g} {quantity.units}"
        raise SourceError(f"{path}: {quantity.name}: value {value}; allowed is {low:g} to {high:g}")
    return converted
