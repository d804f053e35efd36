"""A product's members as `cfgrib` shows a GRIB file of them: ECMWF's names, units and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from slams.contracts.analysis import Analysis
from slams.contracts.envelope import ContractError
from slams.spec import Modality

RENAMED = {"member": "number", "level": "isobaricInhPa"}
OLR_NAME = "Top net long-wave (thermal) radiation"
RAIN = (1e-3, "surface", "accum", "unknown")  # m of one day; the table knows no CF name
OLR = (-86400.0, "nominalTop", "accum")  # J m-2 of one day, downwards


@dataclass(frozen=True)
class Parameter:
    """An entry of ECMWF's parameter table (https://codes.ecmwf.int/grib/param-db/).

    Arguments:
        standard_name, given: the field and its unit in a product.
        short_name, number, name, units: of the parameter.
        factor: from a product's unit to the parameter's.
        surface: GRIB's type of level; none for a field on pressure levels.
        step_type: averaged or accumulated over the day.
        cf_name: what the table calls it, where that is not the standard name.
    """

    standard_name: str
    given: str
    short_name: str
    number: int
    name: str
    units: str
    factor: float = 1.0
    surface: str = ""
    step_type: str = "avg"
    cf_name: str = ""


PARAMETERS = (
    Parameter("air_temperature", "K", "t", 130, "Temperature", "K"),
    Parameter("specific_humidity", "kg kg-1", "q", 133, "Specific humidity", "kg kg**-1"),
    Parameter("eastward_wind", "m s-1", "u", 131, "U component of wind", "m s**-1"),
    Parameter("northward_wind", "m s-1", "v", 132, "V component of wind", "m s**-1"),
    Parameter("geopotential", "m2 s-2", "z", 129, "Geopotential", "m**2 s**-2"),
    Parameter("lwe_precipitation_rate", "mm/day", "tp", 228, "Total precipitation", "m", *RAIN),
    Parameter("toa_outgoing_longwave_flux", "W m-2", "ttr", 179, OLR_NAME, "J m**-2", *OLR),
)


COORDINATES = {
    "number": {"units": "1", "standard_name": "realization", "long_name": "ensemble member numerical id"},
    "time": {"standard_name": "forecast_reference_time", "long_name": "initial time of forecast"},
    "isobaricInhPa": {
        "units": "hPa",
        "positive": "down",
        "stored_direction": "decreasing",
        "standard_name": "air_pressure",
        "long_name": "pressure",
    },
    "latitude": {
        "units": "degrees_north",
        "standard_name": "latitude",
        "long_name": "latitude",
        "stored_direction": "decreasing",
    },
    "longitude": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
}


def parameters(product: Analysis) -> dict[str, Parameter]:
    """The GRIB parameter of each modality.

    Raises:
        ContractError: there is none.
    """
    return {modality.name: _parameter(product.path, modality) for modality in product.spec.modalities}


def _parameter(path: Path, modality: Modality) -> Parameter:
    for known in PARAMETERS:
        same = (known.standard_name, known.given) == (modality.standard_name, modality.units)
        if same and bool(modality.level_hpa) != bool(known.surface):
            return known
    raise ContractError(
        f"{path}: no GRIB parameter is known for {modality.name} ({modality.standard_name}, {modality.units}); "
        "choose --format netcdf"
    )


def as_grib(product: Analysis, part: xr.Dataset) -> xr.Dataset:
    """Members with the names, attributes and order that `cfgrib` gives them."""
    known = parameters(product)
    part = part[list(known)].drop_attrs()
    if "level" in part.dims:
        part = part.sortby("level", ascending=False)
    part = part.rename({old: new for old, new in RENAMED.items() if old in part.dims})
    grid = _grid_attributes(product)
    for name, parameter in known.items():
        part[name].attrs = _grib_attributes(parameter) | grid | {"factor": parameter.factor}
    for name, attributes in COORDINATES.items():
        if name in part.dims:
            part[name].attrs = dict(attributes)
    days = {"units": "days since 1900-01-01", "calendar": "proleptic_gregorian"}
    part["time"].attrs |= days
    part["valid_time"] = ("time", part.time.values + 1, days | {"standard_name": "time", "long_name": "time"})
    hours = {"units": "hours", "standard_name": "forecast_period", "long_name": "time since forecast_reference_time"}
    part["step"] = ((), 24.0, hours)
    for name in known:
        part[name].attrs["coordinates"] = "step valid_time"
    return part.rename({name: parameter.short_name for name, parameter in known.items()})


def _grib_attributes(known: Parameter) -> dict[str, Any]:
    cf_name = known.cf_name or known.standard_name
    return {
        "GRIB_paramId": known.number,
        "GRIB_shortName": known.short_name,
        "GRIB_name": known.name,
        "GRIB_units": known.units,
        "GRIB_cfName": cf_name,
        "GRIB_cfVarName": known.short_name,
        "GRIB_typeOfLevel": known.surface or "isobaricInhPa",
        "GRIB_stepType": known.step_type,
        "GRIB_dataType": "an",
        "GRIB_gridType": "regular_ll",
        "long_name": known.name,
        "units": known.units,
        "standard_name": cf_name,
    }


def _grid_attributes(product: Analysis) -> dict[str, Any]:
    grid = product.spec.grid
    return {
        "GRIB_Nx": grid.n_longitude,
        "GRIB_Ny": grid.n_latitude,
        "GRIB_numberOfPoints": grid.n_latitude * grid.n_longitude,
        "GRIB_iDirectionIncrementInDegrees": 360 / grid.n_longitude,
        "GRIB_jDirectionIncrementInDegrees": 180 / grid.n_latitude,
        "GRIB_iScansNegatively": 0,
        "GRIB_jScansPositively": 0,
        "GRIB_jPointsAreConsecutive": 0,
        "GRIB_latitudeOfFirstGridPointInDegrees": float(grid.latitude[0]),
        "GRIB_latitudeOfLastGridPointInDegrees": float(grid.latitude[-1]),
        "GRIB_longitudeOfFirstGridPointInDegrees": float(grid.longitude[0]),
        "GRIB_longitudeOfLastGridPointInDegrees": float(grid.longitude[-1]),
        "GRIB_totalNumber": product.n_members,
    }
