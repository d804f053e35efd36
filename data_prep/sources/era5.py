"""Reanalysis temperature on pressure levels (ERA5, WeatherBench 2, GFS) and the static surface fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from data_prep.sources.daily import open_daily
from data_prep.sources.decode import decode_static
from data_prep.sources.quantity import MissingVariableError, Quantity

STANDARD_GRAVITY_M_S2 = 9.80665

TEMPERATURE = Quantity(
    name="temperature",
    units="K",
    standard_name="air_temperature",
    variables=("t", "temperature"),
    grib=(("t", "isobaricInhPa"), ("t", "isobaricInPa")),
    factors={"K": 1.0, "kelvin": 1.0, "Kelvin": 1.0},
    valid_range=(100.0, 400.0),
    is_whole=True,
)
LAND_FRACTION = Quantity(
    name="land_fraction",
    units="1",
    standard_name="land_area_fraction",
    variables=("lsm", "land_fraction", "land_sea_mask"),
    grib=(("lsm", "surface"),),
    factors={"1": 1.0, "(0 - 1)": 1.0, "0-1": 1.0, "": 1.0},
    valid_range=(-1e-3, 1.001),  # interpolated masks overshoot by rounding; clipped afterwards
    default_units="1",
)
OROGRAPHY = Quantity(
    name="orography",
    units="m",
    standard_name="surface_altitude",
    variables=("orog", "orography", "z", "geopotential_at_surface"),
    grib=(("orog", "surface"), ("z", "surface")),
    factors={"m": 1.0, "gpm": 1.0, **dict.fromkeys(("m**2 s**-2", "m2 s-2"), 1 / STANDARD_GRAVITY_M_S2)},
    valid_range=(-1000.0, 9000.0),
    default_units="m",
)


def open_temperature(paths: Sequence[str | Path], level_hpa: Sequence[int]) -> xr.DataArray:
    """Daily temperature (time, level, latitude, longitude) in kelvin.

    Sub-daily fields are averaged over the UTC day; a single field a day is taken as that day's value, which
    the attribute ``daily_value`` says.

    Arguments:
        paths: NetCDF files, GRIB files or Zarr stores, in any order.
        level_hpa: pressure levels in the order wanted.

    Raises:
        SourceError: a file that cannot be used; on computing, a value outside 100..400 K.
    """
    return open_daily(paths, TEMPERATURE, tuple(level_hpa))


def open_static(path: str | Path) -> xr.Dataset:
    """Land fraction (latitude, longitude) in 0..1 and, where the file has it, orography in metres."""
    static = decode_static(path, LAND_FRACTION).clip(0.0, 1.0, keep_attrs=True).to_dataset()
    try:
        static["orography"] = decode_static(path, OROGRAPHY)
    except MissingVariableError:  # optional: many archives give the mask alone
        return static.load()
    return static.load()
