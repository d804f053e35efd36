"""What an archive is made of: the raw files of a configuration as daily fields on its grid, nothing read yet."""

from __future__ import annotations

import numpy as np
import xarray as xr

from data_prep.config import ArchiveConfig, VariableConfig
from data_prep.regrid import conservative, regrid
from data_prep.sources import (
    SourceError,
    find_files,
    fingerprint,
    open_olr,
    open_precipitation,
    open_static,
    open_temperature,
)
from data_prep.sources.daily import open_daily
from data_prep.sources.quantity import Quantity
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec

PRESSURE_LEVELS = ("isobaricInhPa", "isobaricInPa")
SURFACE_LEVELS = ("surface", "heightAboveGround", "meanSea", "entireAtmosphere")


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


def open_fields(config: ArchiveConfig) -> dict[str, xr.DataArray]:
    """Each modality (time, [level,] latitude, longitude) on the archive's grid, lazily.

    Raises:
        SourceError: a pattern without files, or a file that is not what it should be.
    """
    sources = config.sources
    fields = {"temperature": open_temperature(_files("temperature", sources.temperature), config.level_hpa)}
    if sources.precipitation:
        fields["precipitation"] = open_precipitation(_files("precipitation", sources.precipitation))
    if sources.olr:
        fields["olr"] = open_olr(_files("olr", sources.olr))
    grid = specification(config).grid
    found = {name: regrid(field, grid, getattr(config.regrid, name)) for name, field in fields.items()}
    return found | {v.name: regrid(_further(config, v), grid, v.regrid) for v in config.variables}


def _further(config: ArchiveConfig, variable: VariableConfig) -> xr.DataArray:
    places = PRESSURE_LEVELS if variable.on_levels else SURFACE_LEVELS
    quantity = Quantity(
        name=variable.name,
        units=variable.units,
        standard_name=variable.standard_name,
        variables=tuple(variable.short_names),
        grib=tuple((name, place) for name in variable.short_names for place in places),
        factors={variable.units: 1.0},
        valid_range=(variable.valid_range[0], variable.valid_range[1]),
    )
    return open_daily(_files(variable.name, variable.files), quantity, _levels(config, variable) or None)


def static_fields(config: ArchiveConfig) -> dict[str, np.ndarray]:
    """Static fields (latitude, longitude) on the archive's grid, where a file of them was given."""
    if not config.sources.static:
        return {}
    found, grid = open_static(_files("static", config.sources.static)[0]), specification(config).grid
    return {str(name): np.asarray(conservative(field, grid), np.float32) for name, field in found.items()}


def fingerprints(config: ArchiveConfig) -> dict[str, list[list[str | int]]]:
    """Name, size and time of change of every raw file, by modality: whether they are still those that were read.

    Under ``static`` that of the static fields, if it is there.
    """
    sources = config.sources
    patterns = {"temperature": sources.temperature, "precipitation": sources.precipitation, "olr": sources.olr}
    given = {name: pattern for name, pattern in patterns.items() if pattern}
    given |= {variable.name: variable.files for variable in config.variables}
    found = {name: _files(name, pattern) for name, pattern in given.items()}
    found["static"] = find_files(sources.static)[:1] if sources.static else []
    return {name: [fingerprint(path) for path in paths] for name, paths in found.items()}


def refuse_changed(raw_files: dict[str, list[list[str | int]]], archive: str) -> None:
    """Refuse to let an archive stand, or grow, whose raw files are others than when it was made. They may be gone.

    Arguments:
        raw_files: what `fingerprints` said when it was made.

    Raises:
        SourceError: naming the first of those that changed.
    """
    for path, *before in (entry for entries in raw_files.values() for entry in entries):
        try:
            _, *now = fingerprint(str(path))
        except (SourceError, OSError):  # gone, or out of reach
            continue
        if now != before:
            raise SourceError(
                f"{path}: has changed since {archive} was made of it; remove {archive} to build it anew, or put "
                "back the file as it was"
            )


def days_of(field: xr.DataArray) -> np.ndarray:
    """Valid days of a field, datetime64[D]."""
    return np.asarray(field["time"].values, "datetime64[D]")


def _files(name: str, pattern: str) -> list[str]:
    found = find_files(pattern)
    if not found:
        raise SourceError(f"sources.{name}: no file matches {pattern}")
    return found
