"""The archive in blocks, whole chunks of one modality: each is written once, by any process, and shares no file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from data_prep.config import ArchiveConfig
from data_prep.fields import Files, days_of, open_fields
from data_prep.stores import absent, named, read
from slams.config import digest
from slams.contracts.archive import Archive, array, open_archive, write_block
from slams.contracts.envelope import ContractError

BLOCK_BYTES, BLOCK_DAYS = 2**24, 384


@dataclass(frozen=True)
class Block:
    """Days ``start`` to ``stop`` of one modality."""

    modality: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.modality}-{self.start:06d}-{self.stop:06d}"


def blocks(group: zarr.Group, names: list[str], n_days: int) -> list[Block]:
    """Every block of an archive; no two share a chunk."""
    found = []
    for name in names:
        field = array(group, name)
        chunk, day_bytes = field.chunks[0], 4 * int(np.prod(field.shape[1:]))
        days = max(1, min(BLOCK_DAYS, BLOCK_BYTES // day_bytes) // chunk) * chunk
        found += [Block(name, start, min(start + days, n_days)) for start in range(0, n_days, days)]
    return found


@dataclass(frozen=True)
class Writer:
    """Writes blocks into an archive that is being made.

    Arguments:
        config: of the stage.
        files: what `fingerprints` says of its raw files.
        folder: the archive aside.
        first_day: of the archive.
        n_before: days from the first on that it holds already; their raw files are not read.
    """

    config: ArchiveConfig
    files: Files
    folder: Path
    first_day: np.datetime64
    n_before: int = 0

    def __call__(self, block: Block) -> dict[str, Any]:
        """Write a block; says which of its new days are missing: no value, or none of a level."""
        field = opened(self.config, self.files)[block.modality]
        held = max(0, self.n_before - block.start)
        days = (days_of(field) - self.first_day).astype(int) - block.start
        found = np.flatnonzero((days >= held) & (days < block.stop - block.start))
        missing = np.arange(held, block.stop - block.start)
        if len(found):  # what is not written reads as missing
            missing = self._write(block, field, held, days[found], found)
        return {"missing_days": (self.first_day + block.start + missing).astype(str).tolist()}

    def _write(self, block: Block, field: xr.DataArray, held: int, days: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Put what was found in the field on days of the block, beside what is held; says which others are missing."""
        group = zarr.open_group(self.folder, mode="r+", use_consolidated=False)
        values = np.full((block.stop - block.start, *field.shape[1:]), np.nan, np.float32)
        if held:
            values[:held] = self._held(block, held)
        values[days] = field[found].compute(scheduler="synchronous").values
        missing = held + np.flatnonzero(is_missing(values[held:]))
        values[missing] = np.nan  # half a profile is no state
        write_block(group, block.modality, block.start, values)
        return missing

    def _held(self, block: Block, n_days: int) -> np.ndarray:
        """What the archive that stands says of the first days of a block.

        Raises:
            ContractError: it has lost them.
        """
        part = Block(block.modality, block.start, block.start + n_days)
        values, lost = read_block(open_archive(self.config.path), part)
        if values is None:
            raise ContractError(f"{lost[0]}; put it back there, as the archive grows from what it holds")
        return values


def read_block(archive: Archive, block: Block) -> tuple[np.ndarray | None, list[str]]:
    """Its values, or None, and a line for each file that is not there or cannot be read, or that lacks a day's values.

    A chunk of which every day is missing was not written.
    """
    path, gone = str(archive.path), []
    field = array(zarr.open_group(path, mode="r", use_consolidated=False), block.modality)
    seen = days_with_values(archive, block.modality)[block.start : block.stop]
    for start in range(block.start, block.stop, field.chunks[0]):
        where = slice(start, min(start + field.chunks[0], block.stop))
        if seen[start - block.start : where.stop - block.start].any():
            when = named(archive.time[where])
            gone += [f"{file}: {when}: no such file" for file in absent(path, field, (where,))]
    where = slice(block.start, block.stop)
    values, wrong = (None, gone) if gone else read(path, field, (where,), named(archive.time[where]))
    if values is None:
        return None, wrong
    empty = archive.time[where][seen & is_missing(values)]
    what = f"{path}/{block.modality}: {named(empty)}: no value, though not listed as missing"
    return (None, [what]) if len(empty) else (values, [])


def days_with_values(archive: Archive, modality: str) -> np.ndarray:
    """Days that are not listed as missing, (time,)."""
    return ~np.isin(archive.time, np.array(archive.attributes["missing_days"][modality], "datetime64[D]"))


def is_missing(values: np.ndarray) -> np.ndarray:
    """Days on which a modality, or one of its levels, has no value, (L,), of (L, [C,] H, W)."""
    is_empty = ~np.isfinite(values).any(axis=(-2, -1))
    return np.asarray(is_empty.reshape(len(values), -1).any(axis=1))


def opened(config: ArchiveConfig, files: Files) -> dict[str, xr.DataArray]:
    """The fields of a configuration in those files, opened once a process as long as they are the same."""
    key = json.dumps([digest(config), files])
    if key not in _fields:
        _fields.clear()
        _fields[key] = open_fields(config, files)
    return _fields[key]


_fields: dict[str, dict[str, xr.DataArray]] = {}
