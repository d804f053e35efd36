"""A finished product as NetCDF4 files, one a month, for programs that read no Zarr.

``netcdf`` keeps the product's names and units (CF 1.11) and adds bounds, ensemble mean and spread. ``grib-netcdf``
holds the members as `cfgrib` shows a GRIB file of them: names, units and numbers of ECMWF's parameter table, dimensions
number, time, isobaricInhPa, latitude, longitude. There a day is a forecast step: its values are averaged or accumulated
over the 24 hours from `time` to `valid_time`, and fluxes count downwards, so that what leaves is negative.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import product as pairs
from pathlib import Path
from typing import Any, Literal

import netCDF4
import numpy as np
import xarray as xr

from sample.grib import as_grib, parameters
from sample.progress import progress
from slams.contracts import archive, storage
from slams.contracts.analysis import Analysis, open_analysis
from slams.contracts.envelope import ContractError
from slams.spec import Grid

Format = Literal["netcdf", "grib-netcdf"]
FORMATS: tuple[Format, ...] = ("netcdf", "grib-netcdf")
FINGERPRINT = "slams_fingerprint"
VERSION = 1  # of what is written; another one is another content
DEFLATE = {"compression": "zlib", "complevel": 4, "shuffle": True, "fletcher32": True}


@dataclass(frozen=True)
class Month:
    """One file.

    Arguments:
        path: its name.
        where: positions of its days on the product's time axis.
    """

    path: Path
    where: np.ndarray

    @property
    def name(self) -> str:
        return self.path.name


def main(words: list[str]) -> int:
    """`python -m sample export ...`."""
    parser = argparse.ArgumentParser("sample export", description=__doc__)
    parser.add_argument("product", help="folder or URL of a finished analysis")
    parser.add_argument("folder", help="where the files go, on this machine")
    parser.add_argument("--days", nargs=2, metavar=("FIRST", "LAST"), help="ISO dates; all days without")
    parser.add_argument("--format", choices=FORMATS, default="netcdf")
    given = parser.parse_args(words)
    export(given.product, given.folder, given.days, given.format)
    return 0


def export(
    path: str | Path, folder: str | Path, days: Sequence[str] | None = None, kind: Format = "netcdf"
) -> list[Path]:
    """Write the days of a product, month by month; what stands already with the same content is left.

    Arguments:
        days: first and last, ISO dates; None for all.

    Returns:
        The files.

    Raises:
        ContractError: no finished product, a file of another content in the way, or a field without GRIB parameter.
        ValueError: days that the product does not hold, or a folder that is a URL.
        OSError: a file that cannot be written.
    """
    if "://" in str(folder):  # which netCDF cannot write to, and a path would take for the name of a folder here
        raise ValueError(f"folder: {folder} is not allowed; a folder of this machine, from which files can be copied")
    folder = Path(folder)
    product = open_analysis(path)
    if not product.is_complete:
        raise ContractError(f"{product.path}: is not finished; run `python -m sample` again to finish it")
    if kind == "grib-netcdf":
        parameters(product)
    months = _months(product, folder, _chosen(product, days), kind)
    todo = [month for month in months if not _stands(product, month, kind)]
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(product) as fields:
        for month in progress(todo, f"export {product.path.name}"):
            _write(product, fields, month, kind)
    return [month.path for month in months]


def _chosen(product: Analysis, days: Sequence[str] | None) -> np.ndarray:
    """Positions of the days."""
    if days is None:
        return np.arange(len(product.time))
    for day in days:
        _check_date(day)
    first, last = (np.datetime64(day, "D") for day in days)
    held = f"{product.path} holds {product.time[0]} to {product.time[-1]}"
    if not product.time[0] <= first <= last <= product.time[-1]:
        raise ValueError(f"days: {first} to {last} is not allowed; {held}")
    where = np.flatnonzero((product.time >= first) & (product.time <= last))
    if not len(where):
        raise ValueError(f"days: {first} to {last} are none of the product's; {held}, not every day of them")
    return where


def _check_date(day: str) -> None:
    try:
        date.fromisoformat(day)
    except ValueError:
        raise ValueError(f"days: {day!r} is not a date of the form 1989-01-31") from None


def _months(product: Analysis, folder: Path, where: np.ndarray, kind: Format) -> list[Month]:
    month = product.time[where].astype("datetime64[M]")
    stem = product.path.name.removesuffix(".zarr") + ("_grib" if kind == "grib-netcdf" else "")
    return [Month(folder / f"{stem}_{name}.nc", where[month == name]) for name in np.unique(month)]


def _fingerprint(product: Analysis, month: Month, kind: Format) -> str:
    told = [kind, VERSION, product.spec.digest, product.attributes["config"], product.fingerprint(month.where)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _stands(product: Analysis, month: Month, kind: Format) -> bool:
    """Whether a file is there; it has its name only when it is whole."""
    if not month.path.exists():
        return False
    try:
        with netCDF4.Dataset(month.path) as found:
            content = getattr(found, FINGERPRINT, "")
    except OSError:
        content = ""
    if content != _fingerprint(product, month, kind):
        raise ContractError(f"{month.path}: exists already with another content; remove it or choose another folder")
    return True


@contextmanager
def _opened(product: Analysis) -> Iterator[xr.Dataset]:
    """The product, of which nothing is read yet."""
    with storage.reading(product.path), archive.reading(product.path):
        fields = xr.open_zarr(str(product.path), chunks=None, decode_times=False)
    with fields:
        yield fields


def _write(product: Analysis, fields: xr.Dataset, month: Month, kind: Format) -> None:
    part = fields.isel(time=month.where)
    part = as_grib(product, part) if kind == "grib-netcdf" else _with_bounds(product, part)
    told = {name: v if isinstance(v, str | int | float) else json.dumps(v) for name, v in fields.attrs.items()}
    told |= {"format": "slams-export", FINGERPRINT: _fingerprint(product, month, kind)}
    aside = month.path.with_name(f"{month.name}.partial")
    try:
        with netCDF4.Dataset(aside, "w", format="NETCDF4") as file:
            file.setncatts(told)
            _define(file, part)
            for name in part.variables:
                _fill(product, file[name], part[name])
        aside.replace(month.path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{month.path}: cannot be written ({error})") from error
    finally:
        aside.unlink(missing_ok=True)


def _define(file: netCDF4.Dataset, part: xr.Dataset) -> None:
    for name, size in part.sizes.items():
        file.createDimension(name, None if name == "time" else size)  # months can be joined along it
    for name, field in part.variables.items():
        is_map = field.dims[-2:] == ("latitude", "longitude")
        leading = sum(d in ("member", "number", "time") for d in field.dims)
        chunks = [*[1] * leading, *field.shape[leading:]] if is_map else None
        packed: dict[str, Any] = DEFLATE | {"chunksizes": chunks, "fill_value": np.float32(np.nan)} if is_map else {}
        made = file.createVariable(name, field.dtype.newbyteorder("="), field.dims, **packed)
        made.setncatts({key: value for key, value in field.attrs.items() if key not in ("factor", "_FillValue")})


def _fill(product: Analysis, made: netCDF4.Variable, field: xr.DataArray) -> None:
    """One map of one member at a time, all levels of it."""
    leading = [field.sizes[d] for d in field.dims if d in ("member", "number", "time")] if field.ndim > 2 else []
    for at in pairs(*map(range, leading)):
        with storage.reading(product.path), archive.reading(product.path):
            values = field[at].values
        made[at or ...] = values * np.asarray(field.attrs.get("factor", 1), values.dtype)


def _with_bounds(product: Analysis, part: xr.Dataset) -> xr.Dataset:
    """Time first, as CDO wants it, and the edges of days and cells, over which the values are means."""
    grid: Grid = product.spec.grid
    edges = {"latitude": grid.latitude_bounds, "longitude": grid.longitude_bounds}
    bounds = {name: np.stack([edge[:-1], edge[1:]], axis=1) for name, edge in edges.items()}
    bounds["time"] = part.time.values[:, None] + np.array([0, 1])
    for name, values in bounds.items():
        part[name].attrs["bounds"] = f"{name}_bnds"
        part[f"{name}_bnds"] = ((name, "bnds"), values)
    return part.transpose("time", ...)
