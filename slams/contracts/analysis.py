"""Analysis: the posterior ensemble, the product. Zarr v3, CF 1.11, opened by `xarray.open_zarr`.

For each modality ``NAME`` (member, time, [level,] latitude, longitude) in physical units, and, segment by segment,
``NAME_mean`` and ``NAME_spread`` (ensemble standard deviation, M - 1) of the ``n_members_drawn``. An inner chunk is one
member at one time; a Zarr shard, one object, holds the members and days of one unit of work, because writers that
share a shard lose one another's chunks without an error. What is not drawn yet reads as NaN, never as half a field.

``ledger/`` holds one JSON file a finished unit: what made it, and the CRC32 of what was written; ``segments/`` one for
each segment whose mean and spread stand; ``complete.json`` says that all was read again and is what was written.
A product may lie at a URL. There an object appears whole or not at all, as a file does that is renamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slams.contracts import archive, storage
from slams.contracts.archive import array, field_shape, read_time
from slams.contracts.envelope import ContractError, check_header, read_json, write_json
from slams.contracts.ledger import Crc32, Ledger
from slams.contracts.product import COUNT, FORMAT, VERSION, Layout, Moments, build, checksum, stored
from slams.contracts.storage import is_file, place, writing
from slams.spec import StateSpec


@dataclass(frozen=True)
class Analysis:
    """An opened product."""

    path: Path
    spec: StateSpec
    time: np.ndarray
    n_members: int
    attributes: dict[str, Any]

    @property
    def unit(self) -> tuple[int, int]:
        """Members and days of a unit of work; the last along either axis may be smaller. (1, 1) without a layout."""
        return self._layout.unit

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.attributes, self.time, self.n_members)

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self.path, self._layout)

    @cached_property
    def _readable(self) -> zarr.Group:
        """Its metadata are gathered and never change."""
        return zarr.open_group(str(self.path), mode="r")

    # ---- members

    def write(self, members: np.ndarray, where: np.ndarray, x_MLCHW: np.ndarray) -> Crc32:
        """Write a unit: each of its modalities appears at once, or, where the process dies, not at all.

        Arguments:
            members: member numbers, (M,).
            where: positions on the time axis, (L,).
            x_MLCHW: physical units, in channel order; a member that could not be drawn is NaN.

        Returns:
            CRC32 of what stands there by modality: little-endian float32, day by day and in it member by member.

        Raises:
            ValueError: the members and days are not exactly those of a unit of the product's layout.
        """
        self._layout.check(members, where)
        crc32: Crc32 = {}
        with writing(self.path):
            group = zarr.open_group(str(self.path), mode="r+")
        for modality in self.spec.modalities:
            values = stored(x_MLCHW[:, :, self.spec.channels(modality.name)], int(self.attributes.get("keepbits", 0)))
            shape = (*values.shape[:2], *field_shape(modality, self.spec.grid.shape))
            with writing(self.path):
                self._make_way(array(group, modality.name), members, where)
                _whole(array(group, modality.name)).oindex[_span(members), _span(where)] = values.reshape(shape)
            crc32[modality.name] = checksum(values.swapaxes(0, 1))
        return crc32

    def _make_way(self, field: zarr.Array[Any], members: np.ndarray, where: np.ndarray) -> None:
        """Remove what stands of a unit: zarr would read it first, and stop where it is damaged."""
        whole_members, whole_days = self._layout.unit
        if self._layout.size is not None:
            place = (int(members[0]) // whole_members, int(where[0]) // whole_days, *(0 for _ in field.shape[2:]))
            (self.path / field.basename / field.metadata.encode_chunk_key(place)).unlink(missing_ok=True)

    @property
    def n_drawn(self) -> np.ndarray:
        """Members that mean and spread of each day are made of, (T,); 0 where they are not written yet."""
        with self._reading():
            return np.asarray(array(self._readable, COUNT)[:])

    def read(self, where: int) -> np.ndarray:
        """All members at one time, x_MCHW in physical units; NaN where not drawn yet."""
        with self._reading():
            parts = [np.asarray(array(self._readable, name)[:, where]) for name in self.spec.names]
        shape = (self.n_members, -1, *self.spec.grid.shape)
        return np.concatenate([part.reshape(shape) for part in parts], axis=1)

    # ---- the ledger

    def finished(self, unit: str) -> dict[str, Any] | None:
        """The ledger's entry of a unit, or None.

        Raises:
            ContractError: an entry of another format, or damaged.
        """
        return self._ledger.finished(unit)

    def close_unit(self, unit: str, entry: dict[str, Any]) -> None:
        """Enter a unit in the ledger, after its data.

        Arguments:
            unit: its name; in a product with a layout first and last day and member, 2003-01-10_2003-01-14_m000-003.
            entry: ``members``, ``days`` (ISO), ``crc32`` (what `write` returned), and whatever else tells how it was
                made: seed, checksums, seconds, reasons of redraws. Versions and the time of writing are added.

        Raises:
            ValueError: the entry's members and days are not those of a unit of that name.
        """
        self._ledger.close_unit(unit, entry)

    def verify(self, unit: str) -> None:
        """Read what stands of a unit and compare it with the ledger.

        Raises:
            ContractError: no such entry, a damaged shard, or other values than were written; names the unit.
        """
        entry, crc32 = self._ledger.closed(unit), Crc32()
        for day in self._ledger.where(unit, entry["days"]):
            for member in entry["members"]:
                crc32 = _added(crc32, self._read_one(member, int(day), unit))
        self._ledger.compare(unit, entry, crc32)

    def fingerprint(self, where: np.ndarray) -> str:
        """Checksum of what stands at some positions of a complete product; only the ledger is read."""
        return self._ledger.fingerprint(where)

    # ---- mean and spread

    def finish_segment(self, where: np.ndarray) -> None:
        """Write mean, spread and number of members of a segment whose units are all drawn; once is enough.

        Its units are verified on the way. Two processes may do it at once: they write the same bytes.

        Arguments:
            where: positions of the segment on the time axis, (L,).

        Raises:
            ValueError: the days are not exactly those of a segment.
            ContractError: a unit is not finished, or is not what the ledger says.
        """
        if self._ledger.segment(where) is not None:
            return
        entries = {unit: self._ledger.closed(unit) for unit in self._layout.unit_names(where)}
        found: dict[str, Crc32] = {unit: {} for unit in entries}
        moments = [self._moments(int(day), found) for day in where]
        for unit, entry in entries.items():
            self._ledger.compare(unit, entry, found[unit])
        self._ledger.close_segment(where, self._write_moments(where, moments))

    def _moments(self, day: int, crc32: dict[str, Crc32]) -> tuple[dict[str, np.ndarray], int]:
        """Mean and spread of a day, (C, H, W) each, and number of members; one member is held at a time."""
        moments = Moments((self.spec.n_channels, *self.spec.grid.shape))
        for member in range(self.n_members):
            unit = self._layout.unit_name(member, day)
            fields = self._read_one(member, day, unit)
            if unit in crc32:
                crc32[unit] = _added(crc32[unit], fields)
            moments.add(np.concatenate([x.reshape(-1, *self.spec.grid.shape) for x in fields.values()]))
        return {"mean": stored(moments.mean), "spread": stored(moments.spread)}, moments.n

    def _write_moments(self, where: np.ndarray, moments: list[tuple[dict[str, np.ndarray], int]]) -> Crc32:
        crc32: Crc32 = {}
        with writing(self.path):
            group = zarr.open_group(str(self.path), mode="r+")
        for modality in self.spec.modalities:
            part, shape = self.spec.channels(modality.name), field_shape(modality, self.spec.grid.shape)
            for kind in ("mean", "spread"):
                name = f"{modality.name}_{kind}"
                values = np.stack([found[kind][part].reshape(shape) for found, _ in moments])
                with writing(self.path):
                    _whole(array(group, name))[_span(where)] = values
                crc32[name] = checksum(values)
        with writing(self.path):
            array(group, COUNT)[_span(where)] = np.array([n for _, n in moments], np.int32)
        return crc32

    def _verify_segment(self, where: np.ndarray, entry: dict[str, Any]) -> None:
        with self._reading():
            found = {name: np.asarray(array(self._readable, name)[_span(where)]) for name in entry["crc32"]}
        for name, values in found.items():
            if checksum(stored(values)) != entry["crc32"][name]:
                days = f"{entry['days'][0]} to {entry['days'][-1]}"
                raise ContractError(f"{self.path}: {name} of {days} is not what was written; the CRC32 is another")

    # ---- the end

    @property
    def is_complete(self) -> bool:
        """Whether mean and spread were written, the last thing that is done."""
        return is_file(self.path / "complete.json")

    def finish(self) -> None:
        """Finish the segments that are left, read all again, and mark the product as complete.

        What has been read again is noted until all is, so that a process that had no time for it is gone on from.

        Raises:
            ContractError: a unit is not finished, or is not what the ledger says.
        """
        notes = self.path / "reading.json"
        read = read_json(notes, "what was read again")["segments"] if is_file(notes) else []
        for where in self._layout.segments:
            entry, name = self._ledger.segment(where), self._layout.segment_name(where)
            if entry is None:
                self.finish_segment(where)
            elif name not in read:
                for unit in self._layout.unit_names(where):
                    self.verify(unit)
                self._verify_segment(where, entry)
            if name not in read:
                read.append(name)
                with writing(self.path):
                    write_json(notes, {"segments": read})
        with writing(self.path):
            write_json(self.path / "complete.json", {"times": len(self.time), "members": self.n_members})
            notes.unlink(missing_ok=True)

    def _read_one(self, member: int, day: int, unit: str) -> dict[str, np.ndarray]:
        """A member at one time, by modality, as it is stored."""
        with self._reading(f": unit {unit}"):
            return {name: stored(np.asarray(array(self._readable, name)[member, day])) for name in self.spec.names}

    @contextmanager
    def _reading(self, what: str = "") -> Iterator[None]:
        with storage.reading(self.path), archive.reading(f"{self.path}{what}"):
            yield


def _added(crc32: Crc32, fields: dict[str, np.ndarray]) -> Crc32:
    """The checksums with some fields more."""
    return {name: checksum(values, crc32.get(name, 0)) for name, values in fields.items()}


def _span(where: np.ndarray) -> slice | np.ndarray:
    """Consecutive positions as a slice: an object that is covered by one is written without being read."""
    consecutive = len(where) and (np.diff(where) == 1).all()
    return slice(int(where[0]), int(where[-1]) + 1) if consecutive else where


def _whole(field: zarr.Array[Any]) -> zarr.Array[Any]:
    """A field all of whose chunks are written, of missing members too: what is not there was never drawn, or lost."""
    return field.with_config({"write_empty_chunks": True})


def drawn(x_MCHW: np.ndarray) -> np.ndarray:
    """Which members there are, (M,): one that diverged at every attempt is missing altogether."""
    found: np.ndarray = np.isfinite(x_MCHW).any(axis=(1, 2, 3))
    return found


def stands(path: str | Path) -> bool:
    """Whether a product was begun there.

    Raises:
        ContractError: an object store that does not answer.
    """
    return is_file(place(path) / "zarr.json")


def create(
    path: str | Path,
    spec: StateSpec,
    time: np.ndarray,
    n_members: int,
    attributes: dict[str, Any],
    unit: tuple[int, int] | None = None,
    keepbits: int = 0,
) -> Analysis:
    """An empty product. Several processes may begin one at once; it is then that of the first.

    Arguments:
        time: valid days, datetime64[D], increasing.
        attributes: ``config`` and the checksums of bundles and observations.
        unit: members and days that are written together; None for members and days written one by one.
        keepbits: of the mantissa of each value of the members, rounded to nearest: a relative error of at most
            2^-(keepbits + 1), for a smaller product; 0 keeps all of them.

    Raises:
        ValueError: a unit without members or days, or keepbits outside 0 to 23.
        ContractError: something else lies there, or another product is just being begun there.
    """
    if not 0 <= keepbits <= 23:
        raise ValueError(f"keepbits: {keepbits} is not allowed; 0 to 23")
    path = place(path)
    with writing(path), storage.aside(path) as folder:
        build(folder, spec, np.asarray(time, "datetime64[D]"), n_members, attributes, unit, keepbits)
        storage.appear(folder, path, last="zarr.json")
    return open_analysis(path)


def open_analysis(path: str | Path) -> Analysis:
    """Open a product that lies in a folder or at a URL.

    Raises:
        ContractError: nothing there, another format or a newer version.
    """
    path = place(path)
    if not stands(path):
        raise ContractError(f"{path}: no analysis there; run `python -m sample` first")
    with storage.reading(path), archive.reading(path):
        group = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
    check_header(attributes, FORMAT, VERSION, path)
    with storage.reading(path), archive.reading(path):
        time, n_members = read_time(group), array(group, "member").shape[0]
    return Analysis(path, StateSpec.from_json(attributes["spec"]), time, n_members, attributes)
