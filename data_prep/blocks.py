"""The archive in blocks: whole chunks of one modality, each written once and then marked, so that a stop costs one.

While it is made, the archive lies beside its name as ``NAME.partial``, and its marks in ``NAME.blocks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from data_prep.config import ArchiveConfig
from data_prep.fields import days_of, open_fields
from slams.config import digest
from slams.contracts.archive import array, write_block
from slams.contracts.envelope import read_json, write_json

BLOCK_BYTES, BLOCK_DAYS = 2**26, 384
_fields: dict[str, dict[str, xr.DataArray]] = {}  # of the configuration that this process works on


@dataclass(frozen=True)
class Block:
    """Days ``start`` to ``stop`` of one modality."""

    name: str
    start: int
    stop: int

    def mark(self, marks: Path) -> Path:
        """The file that says that it is written."""
        return marks / f"{self.name}-{self.start:06d}-{self.stop:06d}.json"


def blocks(group: zarr.Group, names: list[str], n_days: int) -> list[Block]:
    """Every block of an archive; no two share a chunk."""
    found = []
    for name in names:
        field = array(group, name)
        chunk, day_bytes = field.chunks[0], 4 * int(np.prod(field.shape[1:]))
        days = max(1, min(BLOCK_DAYS, BLOCK_BYTES // day_bytes) // chunk) * chunk
        found += [Block(name, start, min(start + days, n_days)) for start in range(0, n_days, days)]
    return found


def missing_days(marks: Path, block: Block) -> list[str]:
    """Days of a finished block that hold no value."""
    return list(read_json(block.mark(marks), "the mark of a finished block")["missing_days"])


@dataclass(frozen=True)
class Writer:
    """Writes blocks into an archive that is being made.

    Arguments:
        config: of the stage.
        folder: the archive aside.
        marks: the folder of marks.
        first_day: of the archive.
    """

    config: ArchiveConfig
    folder: Path
    marks: Path
    first_day: np.datetime64

    def __call__(self, block: Block) -> Block:
        """Write a block, then its mark."""
        field = self._field(block.name)
        days = (days_of(field) - self.first_day).astype(int) - block.start
        found = np.flatnonzero((days >= 0) & (days < block.stop - block.start))
        values = np.full((block.stop - block.start, *field.shape[1:]), np.nan, np.float32)
        values[days[found]] = field[found].compute(scheduler="synchronous").values
        write_block(zarr.open_group(self.folder, mode="r+", use_consolidated=False), block.name, block.start, values)
        missing = np.flatnonzero(~np.isfinite(values).any(axis=tuple(range(1, values.ndim))))
        days_missing = (self.first_day + block.start + missing).astype(str).tolist()
        write_json(block.mark(self.marks), {"missing_days": days_missing})
        return block

    def _field(self, name: str) -> xr.DataArray:
        """The sources are opened once a process."""
        key = digest(self.config)
        if key not in _fields:
            _fields.clear()
            _fields[key] = open_fields(self.config)
        return _fields[key][name]
