"""Opening one raw file, NetCDF, GRIB or Zarr, whatever its name says; refusing anything else in one sentence."""

from __future__ import annotations

import warnings
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import xarray as xr
from fsspec.core import url_to_fs
from scipy.io import netcdf_file

from data_prep.sources import zarrs
from data_prep.sources.quantity import Quantity, SourceError, find_name
from slams.contracts.envelope import ContractError
from slams.contracts.storage import place, reading

# Each open file keeps its library's chunk cache, 64 MB: by default 128 of them, 8 GB.
xr.set_options(file_cache_maxsize=4)

CLASSIC_MAGIC = (b"CDF\x01", b"CDF\x02")
NETCDF_MAGIC = (b"\x89HDF", *CLASSIC_MAGIC)
GRIB_MAGIC = b"GRIB"
# what a download leaves under the name of a data file
HINTS = {
    b"PK\x03\x04": " (a ZIP archive, as the Climate Data Store sends several files: unpack it first)",
    b"\x1f\x8b\x08": " (compressed with gzip: unpack it first)",
    b"CDF\x05": " (NetCDF of 64-bit data, which reads as zeros where the file is cut: `nccopy -k nc4` it first)",
    b"<": " (a web page or XML, often the error message of a failed download)",
}


def find_files(pattern: str) -> list[str]:
    """The files, Zarr stores and URLs that a glob pattern names, sorted; a URL without wildcards stands for itself.

    Raises:
        ContractError: a URL of a kind that no installed package reads, or one that cannot be listed.
    """
    if "://" not in pattern:
        return sorted(glob(pattern))  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses
    if not has_magic(pattern):
        return [pattern]
    with reading(pattern):
        system, inside = url_to_fs(pattern)
        return sorted(str(system.unstrip_protocol(name)) for name in system.glob(inside))


def fingerprint(path: str | Path) -> list[str | int]:
    """Name, size in bytes and time of change of a raw file, of a store its metadata's: whether it is what was read.

    Raises:
        SourceError: a URL that cannot be reached.
        OSError: no such file.
    """
    place = located(path)
    found = (zarrs.metadata_of(place) or place).stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def located(path: str | Path) -> Path:
    """A path or a URL as something that is used as a path.

    Raises:
        SourceError: a URL of a kind that no installed package reads.
    """
    try:
        return place(path)
    except ContractError as error:
        raise SourceError(str(error)) from error


def open_raw(path: Path, quantity: Quantity) -> tuple[xr.Dataset, str]:
    """The dataset that holds the quantity, nothing read but headers, and the variable's name in it.

    Raises:
        SourceError: no such file, another format, a torn file, or none of the quantity's variables.
    """
    if zarrs.metadata_of(path) is not None:
        dataset = zarrs.open_store(path)
        return dataset, find_name(path, quantity.name, quantity.variables, dataset.variables)
    magic = _first_bytes(path)
    if magic == GRIB_MAGIC:
        # cfgrib and its C library are an optional dependency, needed by none who has NetCDF files only
        from data_prep.sources import grib

        return grib.open_grib(path, quantity)
    if magic not in NETCDF_MAGIC:
        hint = next((hint for start, hint in HINTS.items() if magic.startswith(start)), "")
        raise SourceError(f"{path}: starts with {magic!r}{hint}; only NetCDF, GRIB and Zarr are read")
    if magic in CLASSIC_MAGIC:
        _refuse_torn_classic(path)
    dataset = _open_netcdf(path)
    return dataset, find_name(path, quantity.name, quantity.variables, dataset.variables)


def read_values(path: Path, field: xr.DataArray | xr.Variable) -> np.ndarray:
    """The values of a lazy field.

    Raises:
        SourceError: a block that is damaged, or out of reach.
    """
    try:
        return np.asarray(field.compute(scheduler="synchronous").values)
    except SourceError:
        raise
    except Exception as error:  # each format, codec and network has its own
        raise SourceError(f"{path}: damaged, a block cannot be read: {error}") from error


def _first_bytes(path: Path) -> bytes:
    if not isinstance(path, Path):
        raise SourceError(f"{path}: no Zarr store there; over a network only those are read")
    if path.is_dir():
        raise SourceError(f"{path}: a folder that is no Zarr store; allowed are a store, a file or a pattern of them")
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
