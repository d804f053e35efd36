"""What an archive is made of: the raw files of a configuration as daily fields on its grid, nothing read yet."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote

import numpy as np
import xarray as xr
import zarr
from rich.progress import track

from data_prep.config import ArchiveConfig, VariableConfig
from data_prep.regrid import Method, conservative, regrid
from data_prep.sources import (
    SourceError,
    find_files,
    fingerprint,
    open_olr,
    open_precipitation,
    open_static,
    open_temperature,
)
from data_prep.sources.cpc import PRECIPITATION as RAIN
from data_prep.sources.daily import open_daily
from data_prep.sources.decode import decode
from data_prep.sources.era5 import TEMPERATURE
from data_prep.sources.files import located
from data_prep.sources.olr import OLR as RADIATION
from data_prep.sources.quantity import Quantity
from slams.contracts.archive import array
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec

Files = dict[str, list[list[str | int]]]
ARRAY_METADATA = (".zarray", "zarr.json")
PRESSURE_LEVELS = ("isobaricInhPa", "isobaricInPa")
SURFACE_LEVELS = ("surface", "heightAboveGround", "meanSea", "entireAtmosphere")
OF_A_VALUE = ("cell_methods", "daily_value")
# Units of what providers add up over time, and words of standard names of what has such a unit at an instant.
AMOUNTS = ("m", "mm", "kg m-2", "kg m**-2", "J m-2", "J m**-2")
OF_AN_INSTANT = ("content", "height", "altitude", "depth", "boundary_layer", "surface_snow_amount")


def specification(config: ArchiveConfig) -> StateSpec:
    """Grid and modalities of the archive."""
    temperature = Modality("temperature", "state", "K", "air_temperature", tuple(config.level_hpa))
    given = [(PRECIPITATION, config.sources.precipitation), (OLR, config.sources.olr)]
    grid = Grid(config.n_latitude, config.n_longitude)
    further = (Modality(v.name, "state", v.units, v.standard_name, _levels(config, v)) for v in config.variables)
    return StateSpec(grid, (temperature, *(modality for modality, pattern in given if pattern), *further))


def _levels(config: ArchiveConfig, variable: VariableConfig) -> tuple[int, ...]:
    return tuple(config.level_hpa) if variable.on_levels else ()


def kept_decimals(config: ArchiveConfig) -> dict[str, int]:
    """How many decimals of each modality are kept; all of one that is not named."""
    given = dict.fromkeys(specification(config).names, config.decimals)
    given |= {variable.name: variable.decimals for variable in config.variables if variable.decimals is not None}
    return {name: decimals for name, decimals in given.items() if decimals is not None}


def period(config: ArchiveConfig) -> np.ndarray:
    """Every day of the archive, datetime64[D]."""
    years = [*config.train_years, *config.validation_years, *config.test_years]
    return np.arange(np.datetime64(f"{min(years)}-01-01", "D"), np.datetime64(f"{max(years) + 1}-01-01", "D"))


def open_fields(config: ArchiveConfig, files: Files | None = None) -> dict[str, xr.DataArray]:
    """Each modality (time, [level,] latitude, longitude) on the archive's grid, lazily.

    Arguments:
        files: those that are read, as `fingerprints` says; by default all that the patterns name.

    Raises:
        SourceError: a pattern without files, or a file that is not what it should be.
    """

    def paths(name: str, pattern: str) -> list[str]:
        return _files(name, pattern) if files is None else [str(path) for path, *_ in files[name]]

    sources = config.sources
    fields = {"temperature": open_temperature(paths("temperature", sources.temperature), config.level_hpa)}
    if sources.precipitation:
        fields["precipitation"] = open_precipitation(paths("precipitation", sources.precipitation))
    if sources.olr:
        fields["olr"] = open_olr(paths("olr", sources.olr))
    grid = specification(config).grid
    found = {name: _on_grid(field, grid, getattr(config.regrid, name)) for name, field in fields.items()}
    for v in config.variables:
        opened = open_daily(paths(v.name, v.files), _quantity(v), _levels(config, v) or None)
        found[v.name] = _on_grid(opened, grid, v.regrid)
    return found


def _on_grid(field: xr.DataArray, grid: Grid, method: Method) -> xr.DataArray:
    """The field on the grid, its cell methods with what that makes of a value."""
    methods = [field.attrs.get("cell_methods", ""), "area: mean" if method == "conservative" else ""]
    return regrid(field, grid, method).assign_attrs(cell_methods=" ".join(filter(None, methods)))


def describe(group: zarr.Group, fields: dict[str, xr.DataArray]) -> None:
    """Have the fields of an archive say how a value stands for its day and its cell, as those they are made of."""
    for name, field in fields.items():
        array(group, name).attrs.update({key: field.attrs[key] for key in OF_A_VALUE if field.attrs[key]})


def _quantity(variable: VariableConfig) -> Quantity:
    places = PRESSURE_LEVELS if variable.on_levels else SURFACE_LEVELS
    return Quantity(
        name=variable.name,
        units=variable.units,
        standard_name=variable.standard_name,
        variables=tuple(variable.short_names),
        grib=tuple((name, place) for name in variable.short_names for place in places),
        factors={variable.units: 1.0},
        valid_range=(variable.valid_range[0], variable.valid_range[1]),
        totals=(variable.units,) if _adds_up(variable) else (),
    )


def _adds_up(variable: VariableConfig) -> bool:
    """Whether a value may be a total since another time, so that the mean of a day's values is no value of the day."""
    return variable.units in AMOUNTS and not any(word in variable.standard_name for word in OF_AN_INSTANT)


def static_fields(config: ArchiveConfig) -> dict[str, np.ndarray]:
    """Static fields (latitude, longitude) on the archive's grid, where a file of them was given."""
    if not config.sources.static:
        return {}
    found, grid = open_static(_files("static", config.sources.static)[0]), specification(config).grid
    return {str(name): np.asarray(conservative(field, grid), np.float32) for name, field in found.items()}


def fingerprints(config: ArchiveConfig) -> Files:
    """Name, size and time of change of every raw file that gives a day of the period, by modality.

    They tell whether a file is still the one that was read. Of a Zarr store they are those of the variable's own
    metadata, which then follow by name: the store's change with every day that a provider adds. Under ``static`` that
    of the static fields, if it is there. Where no file gives a day, all count.

    Raises:
        SourceError: a pattern without files, or a file that is not what it should be.
    """
    sources, levels = config.sources, tuple(config.level_hpa)
    given: dict[str, tuple[str, Quantity, tuple[int, ...]]] = {
        "temperature": (sources.temperature, TEMPERATURE, levels)
    }
    for name, pattern, quantity in (("precipitation", sources.precipitation, RAIN), ("olr", sources.olr, RADIATION)):
        given |= {name: (pattern, quantity, ())} if pattern else {}
    given |= {v.name: (v.files, _quantity(v), _levels(config, v)) for v in config.variables}
    found = {name: _of_period(_files(name, pattern), *how, period(config)) for name, (pattern, *how) in given.items()}
    return found | {"static": [fingerprint(path) for path in find_files(sources.static)[:1]] if sources.static else []}


def _of_period(
    paths: list[str], quantity: Quantity, level_hpa: tuple[int, ...], time: np.ndarray
) -> list[list[str | int]]:
    found, used = [], []
    for path in track(paths, f"files of {quantity.name}", transient=True, disable=not sys.stdout.isatty()):
        piece = decode(path, quantity, level_hpa or None)
        found.append(_fingerprint(path, _member(path, piece.variable)))
        days = piece.time.astype("datetime64[D]")
        used.append(bool(((days >= time[0]) & (days <= time[-1])).any()))
    return [entry for entry, is_used in zip(found, used, strict=True) if is_used or not any(used)]


def _member(path: str, variable: str) -> str:
    """The metadata of a variable of a Zarr store, seen from the store; nothing where there are none."""
    names = (f"{variable}/{name}" for name in ARRAY_METADATA)
    return next((name for name in names if (located(path) / name).is_file()), "")


def _fingerprint(path: str, member: str = "") -> list[str | int]:
    if not member:
        return fingerprint(path)
    _, *found = fingerprint(f"{path.rstrip('/')}/{member}")
    return [path, *found, member]


def changed(raw_files: Files) -> list[str]:
    """Those that are others than they were. They may be gone.

    Arguments:
        raw_files: what `fingerprints` said before.
    """
    return [str(before[0]) for entries in raw_files.values() for before in entries if _has_changed(before)]


def _has_changed(before: list[str | int]) -> bool:
    path, _, _, *member = before
    try:
        return _fingerprint(str(path), *map(str, member)) != before
    except (SourceError, OSError):  # gone, or out of reach
        return False


def refuse_changed(raw_files: Files, archive: str) -> None:
    """Refuse to let an archive stand, or grow, whose raw files are others than when it was made. They may be gone.

    Arguments:
        raw_files: what `fingerprints` said when it was made.

    Raises:
        SourceError: naming the first of those that changed.
    """
    for before in (at for entries in raw_files.values() for at in entries if _has_changed(at)):
        raise SourceError(
            f"{before[0]}: has changed since {archive} was made of it; remove {archive} to build it anew, or put "
            f"back the file as it was{_touched(*before)}"
        )


def _touched(path: str | int, size: str | int, time_ns: str | int, *member: str | int) -> str:
    """What to do about a file whose time alone is another, as after a copy or where what is old is swept away."""
    if member or not (file := Path(str(path))).is_file() or file.stat().st_size != size:
        return ""
    seconds, rest = divmod(int(time_ns), 10**9)
    command = f"touch -d @{seconds}.{rest:09d} {quote(str(path))}"
    return f"; it is as long as it was, and if nothing but its time is new: {command}"


def days_of(field: xr.DataArray) -> np.ndarray:
    """Valid days of a field, datetime64[D]."""
    return np.asarray(field["time"].values, "datetime64[D]")


def _files(name: str, pattern: str) -> list[str]:
    found = find_files(pattern)
    if not found:
        raise SourceError(f"sources.{name}: no file matches {pattern}")
    return found
