"""Departures: every observation of an analysis beside its background and its analysed members, H(x_b) and H(x_a).

One Parquet file a finished unit of work, ``departures/UNIT.parquet`` in the product, one row an observation that was
assimilated or withheld, in order of time: `time` (valid day, UTC), `modality`, `level_hpa` (null for a field without
levels), `latitude`, `longitude` (degrees), `station_id` (null on a grid), `observed` and its `error_std` as given,
`assimilated` (false where its modality was withheld), `background` = H(x_b), and `analysis` = H(x_a) of each member of
the unit, a list of fixed size. All are in the modality's units; what the state does not know is null.

The metadata hold format, version, the unit's `days` and `members`, the `units` and the `background` of each modality,
in words, and the checksum of the observations: no clock, so the same content is the same bytes. Pages carry a CRC32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from isal import isal_zlib

from slams.contracts.envelope import ContractError, check_header
from slams.contracts.ledger import read_unit
from slams.contracts.storage import aside, crc32, folder_in, is_file, place, reading, writing

FORMAT, VERSION = "slams-departures", 1
FOLDER, SUFFIX = "departures", ".parquet"
COLUMNS: dict[str, pa.DataType] = {
    "time": pa.timestamp("ms"),
    "modality": pa.string(),
    "level_hpa": pa.float32(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "station_id": pa.string(),
    "observed": pa.float32(),
    "error_std": pa.float32(),
    "assimilated": pa.bool_(),
    "background": pa.float32(),
}
MEMBERS = "analysis"
REPEATING = ["time", "modality", "level_hpa", "latitude", "longitude", "station_id", "error_std"]
SPLIT = ["observed", "background", "analysis.list.element"]  # a fifth less, written faster
ATTRIBUTES = ("days", "members", "units", "background", "observations_sha256")
CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


class DeparturesWriter:
    """The file of a unit in the making, one row group a block of rows."""

    def __init__(self, file: Any, members: np.ndarray, attributes: dict[str, Any]) -> None:
        self.n_members = len(members)
        found = {"format": FORMAT, "version": str(VERSION)}
        found |= {name: json.dumps(value) for name, value in attributes.items()}
        self.checksums: dict[str, int] = {}  # for the ledger, once the file is closed
        schema = _schema(self.n_members).with_metadata(found)
        self.file = pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=REPEATING,
            use_byte_stream_split=SPLIT,
            write_page_checksum=True,
        )

    def write(self, columns: dict[str, Any], analysis_MN: np.ndarray) -> None:
        """Add rows, in order of time.

        Arguments:
            columns: by the names of `COLUMNS`, each (N,), the time as datetime64; NaN and None are null.
            analysis_MN: H(x_a); NaN is null.
        """
        columns = columns | {"time": columns["time"].astype("datetime64[ms]")}  # pyarrow misreads days as milliseconds
        arrays = [pa.array(columns[name], kind, from_pandas=True) for name, kind in COLUMNS.items()]
        arrays.append(_lists(analysis_MN.T, self.n_members))
        self.file.write_table(pa.Table.from_arrays(arrays, schema=self.file.schema))


def _schema(n_members: int) -> pa.Schema:
    return pa.schema([*COLUMNS.items(), (MEMBERS, pa.list_(pa.float32(), n_members))])


def _lists(values_NM: np.ndarray, n_members: int) -> pa.Array:
    flat = np.ascontiguousarray(values_NM, np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, from_pandas=True), n_members)


@contextmanager
def departures_file(
    product: str | Path, unit: str, days: np.ndarray, members: np.ndarray, attributes: dict[str, Any]
) -> Iterator[DeparturesWriter]:
    """Write the file of a unit aside and give it its name when the block ends well; one that stands is replaced.

    Arguments:
        product: folder or URL of the analysis.
        days: kept days of the unit, (L,).
        members: their numbers, (M,).
        attributes: ``units`` and ``background`` by modality, ``observations_sha256``.

    Raises:
        OSError: names what could not be written.
    """
    path = place(product) / FOLDER / f"{unit}{SUFFIX}"
    with writing(path):
        folder_in(place(product), FOLDER)
    numbers = {"days": [str(day) for day in days], "members": [int(member) for member in members]}
    with writing(path), aside(path) as made:
        with made.open("wb") as file:
            writer = DeparturesWriter(file, members, numbers | attributes)
            with closing(writer.file):
                yield writer
            file.flush()
            os.fsync(file.fileno())
        with made.open("rb") as file:
            writer.checksums |= {"crc32": crc32(made), "footer_crc32": isal_zlib.crc32(_footer(file))}
        if isinstance(path, Path):
            made.replace(path)
        else:
            system, inside = url_to_fs(str(path), **path.storage_options)
            system.put_file(str(made), inside)  # a store shows an object when it is whole


@dataclass(frozen=True)
class UnitFile:
    """The file of one unit, its metadata read: ``days``, ``members``, ``units``, ``background``."""

    path: Path
    attributes: dict[str, Any]

    @property
    def members(self) -> list[int]:
        return list(self.attributes["members"])

    def read(self, where: pc.Expression | None) -> pa.Table:
        """Its rows, every page's checksum compared.

        Raises:
            ContractError: a page is damaged.
        """
        with _refusing_damage(self.path):
            system, inside = url_to_fs(str(self.path))
            return ds.dataset(inside, filesystem=system, format=CHECKED).to_table(filter=where)


@dataclass(frozen=True)
class Departures:
    """The departures of an analysis; nothing is read before it is asked for.

    Arguments:
        files: those of each segment of days, in order of time, and in it by member.
        members: numbers of all members that any file holds, (M,), in the order of the lists in `analysis`.
    """

    path: Path
    files: tuple[tuple[UnitFile, ...], ...]
    members: np.ndarray

    @property
    def background(self) -> dict[str, str]:
        """What H(x_b) is of in the first segment, in words by modality."""
        return dict(self.files[0][0].attributes["background"]) if self.files else {}

    def segments(self, where: pc.Expression | None = None) -> Iterator[pa.Table]:
        """The rows of one segment after the other, each with all of its members; no more than one is held.

        Arguments:
            where: keeps some of the rows, e.g. ``pyarrow.compute.field("modality") == "temperature"``.

        Raises:
            ContractError: a damaged page, or units of a segment with different observations.
        """
        for files in self.files:
            yield self._joined(files, where)

    def read(self, where: pc.Expression | None = None) -> pa.Table:
        """All rows as one table.

        Raises:
            ContractError: as `segments`.
        """
        return pa.concat_tables([_schema(len(self.members)).empty_table(), *self.segments(where)])

    def _joined(self, files: tuple[UnitFile, ...], where: pc.Expression | None) -> pa.Table:
        """Members of a file that is not there yet are null."""
        parts = [file.read(where) for file in files]
        first = parts[0].select(list(COLUMNS))
        analysis_NM = np.full((len(first), len(self.members)), np.nan, np.float32)
        for file, part in zip(files, parts, strict=True):
            if not part.select(list(COLUMNS)).equals(first):
                raise ContractError(f"{file.path}: holds other observations than {files[0].path.name}")
            flat = part[MEMBERS].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            analysis_NM[:, np.searchsorted(self.members, file.members)] = flat.reshape(len(first), len(file.members))
        lists = _lists(analysis_NM, len(self.members))
        return first.append_column(MEMBERS, lists).replace_schema_metadata(None)


def open_departures(product: str | Path) -> Departures:
    """Open the departures of an analysis; of every file the metadata are read.

    An analysis of observations of latents has none, and gives no rows.

    Raises:
        ContractError: no analysis there, a damaged file, one of another format or a newer version, a member that stands
            in two files of a segment, or a finished unit whose file is missing.
    """
    path = place(product)
    with reading(path):
        if not is_file(path / "zarr.json"):
            raise ContractError(f"{path}: no analysis there; run `python -m sample` first")
        found = sorted((path / FOLDER).glob(f"*{SUFFIX}")) if (path / FOLDER).is_dir() else []
        finished = sorted(entry.stem for entry in (path / "ledger").glob("*.json"))
    lost = [unit for unit in finished if unit not in {file.stem for file in found}]
    if lost and (found or "file" in ((read_unit(path, lost[0]) or {}).get("departures") or {})):
        raise ContractError(f"{path / FOLDER}: has no file of {lost[0]}, a finished unit")
    entries = [read_unit(path, file.stem) or {} for file in found]
    files = sorted(map(_open, found, entries), key=lambda file: (file.attributes["days"], file.members))
    segments = tuple(tuple(of_days) for _, of_days in groupby(files, key=lambda file: file.attributes["days"]))
    for of_days in segments:
        _check_members(of_days)
    return Departures(path, segments, np.unique([member for file in files for member in file.members]).astype(int))


def _open(path: Path, entry: dict[str, Any]) -> UnitFile:
    with _refusing_damage(path), path.open("rb") as file:
        _check_footer(path, isal_zlib.crc32(_footer(file)), entry.get("departures") or {})
        schema = pq.read_schema(file)
        said = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = said.get("version", "")
    check_header(said | {"version": int(version) if version.isdigit() else version}, FORMAT, VERSION, path)
    try:
        attributes = {name: json.loads(said[name]) for name in ATTRIBUTES}
    except (KeyError, ValueError) as error:
        raise ContractError(f"{path}: its metadata lack {error}, or it is no JSON") from None
    if not schema.equals(_schema(len(attributes["members"]))):
        raise ContractError(f"{path}: its columns are not those of {FORMAT}, {', '.join([*COLUMNS, MEMBERS])}")
    return UnitFile(path, attributes)


def _check_footer(path: Path, crc32: int, told: dict[str, Any]) -> None:
    """Earlier programs have told the ledger nothing of it."""
    if (said := told.get("footer_crc32", crc32)) != crc32:
        raise ContractError(
            f"{path}: its metadata are not what was written; their CRC32 is {crc32}, in the ledger {said}"
        )


def _footer(file: BinaryIO) -> bytes:
    """The metadata, their length and the last word: what no checksum of a page covers."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    return file.read()


def _check_members(files: tuple[UnitFile, ...]) -> None:
    seen: dict[int, Path] = {}
    for file in files:
        for member in file.members:
            if member in seen:
                raise ContractError(f"{file.path}: member {member} stands in {seen[member].name} as well")
            seen[member] = file.path


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    """Say which file is damaged.

    Raises:
        ContractError: pyarrow cannot read it, or a page's checksum is another.
    """
    try:
        with reading(path):
            yield
    except ContractError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ContractError(f"{path}: damaged, it cannot be read ({reason})") from error
