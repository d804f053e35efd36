"""What was written into an analysis, by whom and of what: one JSON file a finished unit, one a finished segment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slams.contracts.envelope import ContractError, check_header, read_json, write_json
from slams.contracts.product import Layout
from slams.contracts.storage import crc32, folder_in, is_file, reading, writing

UNIT, UNIT_VERSION = "slams-ledger", 1
SEGMENT, SEGMENT_VERSION = "slams-segment", 1
VERSIONS = {package.__name__: package.__version__ for package in (np, zarr)}
Crc32 = dict[str, int]


@dataclass(frozen=True)
class Ledger:
    """The ledger of a product at a path."""

    path: Path
    layout: Layout

    def finished(self, unit: str) -> dict[str, Any] | None:
        """The entry of a unit, or None.

        Raises:
            ContractError: an entry of another format, or damaged.
        """
        return read_unit(self.path, unit)

    def closed(self, unit: str) -> dict[str, Any]:
        """The entry of a unit.

        Raises:
            ContractError: there is none.
        """
        entry = self.finished(unit)
        if entry is None:
            raise ContractError(f"{self.path}: unit {unit} is not finished; the ledger has no entry of it")
        return entry

    def close_unit(self, unit: str, entry: dict[str, Any]) -> None:
        """Enter a unit; see `slams.contracts.analysis.Analysis.close_unit`."""
        where, members = self.where(unit, entry["days"]), np.array(entry["members"])
        self.layout.check(members, where)
        if self.layout.size is not None and unit != self.layout.unit_name(int(members[0]), int(where[0])):
            raise ValueError(f"unit: {unit!r} is not {self.layout.unit_name(int(members[0]), int(where[0]))!r}")
        told = {"format": UNIT, "version": UNIT_VERSION, "unit": unit}
        told |= {"written": datetime.now(UTC).isoformat(timespec="seconds"), "versions": VERSIONS}
        with writing(self.path):
            write_json(folder_in(self.path, "ledger") / f"{unit}.json", told | entry)

    def where(self, unit: str, days: list[str]) -> np.ndarray:
        """Positions of an entry's days on the time axis.

        Raises:
            ContractError: days that the product does not hold.
        """
        position = {str(day): i for i, day in enumerate(self.layout.time)}
        wrong = [day for day in days if day not in position]
        if wrong or not days:
            raise ContractError(f"{self.path}: unit {unit}: {wrong[0] if wrong else 'no day'} is no day of the product")
        return np.array([position[day] for day in days])

    def compare(self, unit: str, entry: dict[str, Any], found: Crc32) -> None:
        """Refuse a unit whose values, of those checksums, or whose departures are not those of its entry.

        Raises:
            ContractError: names the unit and the modality or the file.
        """
        written = entry.get("crc32")
        for name, of_values in found.items():
            said = written.get(name) if isinstance(written, dict) else written
            if said != of_values:
                raise ContractError(
                    f"{self.path}: unit {unit}: values of {name} are not those that were written; their CRC32 is "
                    f"{of_values}, in the ledger {said}; remove ledger/{unit}.json there and run again"
                )
        self._compare_departures(unit, entry.get("departures") or {})

    def _compare_departures(self, unit: str, told: dict[str, Any]) -> None:
        """Nothing is told of observations of latents, and no checksum by earlier programs."""
        if "crc32" not in told:
            return
        path = self.path / told["file"]
        if not is_file(path):
            raise ContractError(f"{self.path}: unit {unit}: {told['file']} is not there")
        if (found := crc32(path)) != told["crc32"]:
            raise ContractError(
                f"{self.path}: unit {unit}: {told['file']} is not what was written; its CRC32 is {found}, in the "
                f"ledger {told['crc32']}"
            )

    def segment(self, where: np.ndarray) -> dict[str, Any] | None:
        """The mark of a segment whose mean and spread stand, or None."""
        path = self.path / "segments" / f"{self.layout.segment_name(where)}.json"
        return _read(path, SEGMENT, SEGMENT_VERSION)

    def close_segment(self, where: np.ndarray, crc32: Crc32) -> None:
        """Mark a segment, by nothing that two who do it at once would write differently."""
        entry = {"format": SEGMENT, "version": SEGMENT_VERSION, "crc32": crc32}
        entry["days"] = [str(day) for day in self.layout.time[where]]
        with writing(self.path):
            write_json(folder_in(self.path, "segments") / f"{self.layout.segment_name(where)}.json", entry)

    def fingerprint(self, where: np.ndarray) -> str:
        """Checksum of what stands at some positions of a complete product, by what was written there."""
        told: dict[str, Any] = {"days": [str(day) for day in self.layout.time[where]]}
        for first in sorted({int(self.layout.segment(int(day))[0]) for day in where}):
            segment = self.layout.segment(first)
            told[self.layout.segment_name(segment)] = (self.segment(segment) or {}).get("crc32")
            told |= {unit: self.closed(unit)["crc32"] for unit in self.layout.unit_names(segment)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_unit(product: Path, unit: str) -> dict[str, Any] | None:
    """The entry of a unit in the ledger of a product, or None.

    Raises:
        ContractError: an entry of another format, or damaged.
    """
    return _read(product / "ledger" / f"{unit}.json", UNIT, UNIT_VERSION)


def _read(path: Path, kind: str, version: int) -> dict[str, Any] | None:
    with reading(path):
        if not is_file(path):
            return None
        entry = read_json(path, kind)
    check_header(entry, kind, version, path)
    return entry
