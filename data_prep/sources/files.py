"""Opening one raw file, NetCDF or GRIB, whatever its name says; refusing anything else in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from pathlib import Path

import dask.array
import numpy as np
import xarray as xr
from scipy.io import netcdf_file

from data_prep.sources.quantity import Quantity, SourceError, find_name

CLASSIC_MAGIC = (b"CDF\x01", b"CDF\x02")
NETCDF_MAGIC = (b"\x89HDF", b"CDF\x05", *CLASSIC_MAGIC)
GRIB_MAGIC = b"GRIB"


def open_raw(path: Path, quantity: Quantity) -> tuple[xr.Dataset, str]:
    """The dataset that holds the quantity, nothing read but headers, and the variable's name in it.

    Raises:
        SourceError: no such file, another format, a torn file, or none of the quantity's variables.
    """
    magic = _first_bytes(path)
    if magic == GRIB_MAGIC:
        # cfgrib and its C library are an optional dependency, needed by none who has NetCDF files only
        from data_prep.sources import grib

        return grib.open_grib(path, quantity)
    if magic not in NETCDF_MAGIC:
        raise SourceError(f"{path}: starts with {magic!r}; only NetCDF and GRIB files are read")
    if magic in CLASSIC_MAGIC:
        _refuse_torn_classic(path)
    dataset = _open_netcdf(path)
    return dataset, find_name(path, quantity.name, quantity.variables, dataset.variables)


def lazy(path: Path, field: xr.DataArray, chunks: dict[Hashable, int]) -> xr.DataArray:
    """The field in dask blocks, each of which names the file if it cannot be read."""
    if field.chunks is not None:
        return field.chunk(chunks)
    sizes = [chunks[dim] for dim in field.dims]
    meta = np.empty((0,) * field.ndim, field.dtype)
    return field.copy(data=dask.array.from_array(_OnDisk(path, field.variable), sizes, name=False, meta=meta))


class _OnDisk:
    """An array still in its file, as dask wants it."""

    def __init__(self, path: Path, variable: xr.Variable) -> None:
        self.path, self.variable = path, variable
        self.shape, self.ndim, self.dtype = variable.shape, variable.ndim, variable.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        try:
            return self.variable[key].values
        except (OSError, RuntimeError) as error:  # what netCDF4 raises for a damaged block
            raise SourceError(f"{self.path}: damaged, a block cannot be read: {error}") from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error


def _refuse_torn_classic(path: Path) -> None:
    """The NetCDF library reads zeros past the end of a cut classic file; scipy finds the data too short."""
    try:
        netcdf_file(path, mmap=True).close()
    except (ValueError, TypeError, IndexError) as error:
        raise SourceError(f"{path}: torn or damaged NetCDF file: {error}") from error


def _open_netcdf(path: Path) -> xr.Dataset:
    """The dataset with packing and fill values decoded and times left as numbers."""
    with warnings.catch_warnings():
        # _FillValue and missing_value may differ; xarray then masks both, which is what is meant
        warnings.filterwarnings("ignore", "variable .* has multiple fill values", xr.SerializationWarning)
        try:
            return xr.open_dataset(path, engine="netcdf4", decode_times=False, cache=False)
        except OSError as error:
            raise SourceError(f"{path}: torn or damaged NetCDF file: {error.strerror or error}") from error
