"""Zarr stores, local or by URL: WeatherBench 2, Google's analysis-ready ERA5, ChaosBench's store a day."""

from __future__ import annotations

import warnings
from pathlib import Path

import xarray as xr

from data_prep.sources.quantity import SourceError
from slams.contracts.envelope import ContractError
from slams.contracts.storage import reading

MARKS = (".zmetadata", ".zgroup", "zarr.json")


def metadata_of(path: Path) -> Path | None:
    """The file that says that a Zarr group, of format 2 or 3, lies there; None where none does.

    Raises:
        SourceError: a URL that cannot be reached.
    """
    try:
        with reading(path):
            return next((path / mark for mark in MARKS if (path / mark).exists()), None)
    except ContractError as error:
        raise SourceError(str(error)) from error


def open_store(path: Path) -> xr.Dataset:
    """The store with packing and fill values decoded, times left as numbers and nothing read but the axes.

    A chunk that is not there reads as missing values, as the format has it.

    Raises:
        SourceError: a store whose metadata or axes cannot be read.
    """
    with warnings.catch_warnings():
        # a store without consolidated metadata is read file by file
        warnings.filterwarnings("ignore", ".*consolidated metadata", RuntimeWarning)
        # _FillValue and missing_value may differ; xarray then masks both, which is what is meant
        warnings.filterwarnings("ignore", "variable .* has multiple fill values", xr.SerializationWarning)
        try:
            return xr.open_dataset(str(path), engine="zarr", chunks=None, decode_times=False, cache=False)
        except Exception as error:  # of JSON, of a codec, of a network: each has its own
            raise SourceError(f"{path}: torn or damaged Zarr store: {error}") from error
