"""Stations: values at points anywhere on the sphere. One Parquet table, ``stations.parquet`` in an observation set.

One row a value: `time` (valid day, UTC), `latitude`, `longitude` (degrees), `level_hpa` (null for a field without
levels), `variable` (the modality), `value`, `error_std` (its units), `station_id`, and `qc`, 0 where the value may be
used. The file's metadata holds format, version and the unit of each variable. Rows may stand in any order; in order
of time, few of them are read to find a few days. Pages carry a CRC32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slams.contracts import storage
from slams.contracts.envelope import ContractError, check_header
from slams.contracts.measured import check_values
from slams.spec import Modality, StateSpec

FORMAT, VERSION = "slams-stations", 1
FILE = "stations.parquet"
COLUMNS: dict[str, pa.DataType] = {
    "time": pa.date32(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "level_hpa": pa.float32(),
    "variable": pa.string(),
    "value": pa.float32(),
    "error_std": pa.float32(),
    "station_id": pa.string(),
    "qc": pa.int8(),
}
UNITS = {"latitude": "degrees_north", "longitude": "degrees_east", "level_hpa": "hPa"}
LATITUDE, LONGITUDE = (-90.0, 90.0), (-180.0, 360.0)


@dataclass(frozen=True)
class Stations:
    """Station values of one modality on some days, each array (N,).

    Arguments:
        name: of the modality.
        days: the days asked for, datetime64[D], (L,).
        frame: which of those days a value is of.
        latitude, longitude: degrees north and east.
        level_hpa: pressure; NaN for a field without levels.
        value, error_std: in the modality's units.
        station_id: text.
        qc: 0 where the value may be used.
    """

    name: str
    days: np.ndarray
    frame: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    level_hpa: np.ndarray
    value: np.ndarray
    error_std: np.ndarray
    station_id: np.ndarray
    qc: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Values that passed their quality control."""
        return (self.qc == 0) & np.isfinite(self.value)

    @property
    def observed_days(self) -> np.ndarray:
        """Whether anything was observed that may be used, (L,)."""
        return np.isin(np.arange(len(self.days)), self.frame[self.used])

    def during(self, frames: slice) -> Stations:
        """Of consecutive ones among its days."""
        first, stop, _ = frames.indices(len(self.days))
        on = (self.frame >= first) & (self.frame < stop)
        columns = {name: getattr(self, name)[on] for name in COLUMNS if name not in ("time", "variable")}
        return replace(self, days=self.days[frames], frame=self.frame[on] - first, **columns)

    @property
    def time(self) -> np.ndarray:
        """Valid day of each value, datetime64[D]."""
        return np.asarray(self.days[self.frame])

    @property
    def content(self) -> dict[str, bytes]:
        """What a fingerprint is taken of."""
        parts = {name: getattr(self, name) for name in COLUMNS if name not in ("variable", "station_id")}
        ids = "\n".join([*map(str, self.station_id), ""])
        return {name: np.ascontiguousarray(part).tobytes() for name, part in parts.items()} | {"id": ids.encode()}


class StationWriter:
    """A table in the making; close it, or it cannot be read."""

    def __init__(self, path: Path, spec: StateSpec) -> None:
        fields = [pa.field(n, kind, metadata={"units": UNITS.get(n, "")}) for n, kind in COLUMNS.items()]
        self.path, self.spec, self.units = path, spec, dict[str, str]()
        self.file = pq.ParquetWriter(path, pa.schema(fields), compression="zstd", write_page_checksum=True)

    def write(self, seen: Stations) -> None:
        """Add the values of some days, as one row group.

        Raises:
            ContractError: a place, an error or a value that no reader would take.
        """
        modality = self.spec.modality(seen.name)
        _check(self.path, modality, seen)
        self.units[seen.name] = modality.units
        columns = {name: getattr(seen, name, None) for name in COLUMNS}
        columns["variable"] = np.full(len(seen.value), seen.name, object)
        # from_pandas: a NaN pressure is a null one
        arrays = [pa.array(columns[n], kind, from_pandas=n == "level_hpa") for n, kind in COLUMNS.items()]
        self.file.write_table(pa.Table.from_arrays(arrays, schema=self.file.schema))

    def close(self) -> None:
        """Finish the file."""
        self.file.add_key_value_metadata({"format": FORMAT, "version": str(VERSION), "units": json.dumps(self.units)})
        self.file.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which table is damaged.

    Raises:
        ContractError: pyarrow cannot read it, or a page's checksum is another.
    """
    try:
        yield
    except ContractError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ContractError(f"{path}: damaged, it cannot be read ({reason})") from error


def open_stations(path: Path, spec: StateSpec, period: np.ndarray) -> tuple[str, ...]:
    """The modalities of a table, whose metadata are checked; no value is read.

    Arguments:
        period: every day of the observation set.

    Raises:
        ContractError: not such a table, a column of another name or type, another unit, or a day outside the period.
    """
    with storage.reading(path), _reading(path), path.open("rb") as table:
        file = pq.read_metadata(table)
        schema = file.schema.to_arrow_schema()
    said = {key.decode(): value.decode() for key, value in (file.metadata or {}).items() if key != b"ARROW:schema"}
    version = said.get("version", "")
    check_header(said | {"version": int(version) if version.isdigit() else version}, FORMAT, VERSION, path)
    _check_schema(path, schema)
    names = _check_units(path, said, spec)
    _check_period(path, file, schema.names.index("time"), period)
    return names


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for name, kind in COLUMNS.items():
        if name not in schema.names:
            raise ContractError(f"{path}: has no column {name!r}; {', '.join(COLUMNS)} are needed")
        if schema.field(name).type != kind:
            raise ContractError(f"{path}: column {name!r} is of type {schema.field(name).type}; {kind} is needed")


def _check_units(path: Path, said: dict[str, str], spec: StateSpec) -> tuple[str, ...]:
    try:
        units: dict[str, str] = dict(json.loads(said.get("units", "")))
    except (ValueError, TypeError):
        raise ContractError(f"{path}: its metadata lack 'units', a JSON object {{variable: unit}}") from None
    for name, unit in units.items():
        if name not in spec.names:
            raise ContractError(f"{path}: variable {name!r} is not one of {', '.join(spec.names)}")
        if unit != spec.modality(name).units:
            raise ContractError(f"{path}: {name} is in {unit!r}; {spec.modality(name).units!r} is needed")
    return tuple(name for name in spec.names if name in units)


def _check_period(path: Path, file: pq.FileMetaData, column: int, period: np.ndarray) -> None:
    """By the row groups' statistics, which every writer keeps of dates."""
    for i in range(file.num_row_groups):
        statistics = file.row_group(i).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            continue
        for day in (np.datetime64(statistics.min, "D"), np.datetime64(statistics.max, "D")):
            if not period[0] <= day <= period[-1]:
                raise ContractError(f"{path}: {day} is outside {period[0]} to {period[-1]}")


def read_stations(path: Path, spec: StateSpec, name: str, days: np.ndarray) -> Stations:
    """The values of a modality on those days. Row groups of other days stay unread.

    Raises:
        ContractError: a damaged page, an unknown variable, or values as in `StationWriter.write`.
    """
    days = np.asarray(days, "datetime64[D]")
    wanted: Any = [("time", ">=", days.min().item()), ("time", "<=", days.max().item())]
    with storage.reading(path), _reading(path), path.open("rb") as file:
        table = pq.read_table(file, columns=list(COLUMNS), filters=wanted, page_checksum_verification=True)
    unknown = [v for v in pc.unique(table["variable"]).to_pylist() if v not in spec.names]
    if unknown:
        raise ContractError(f"{path}: variable {unknown[0]!r} is not one of {', '.join(spec.names)}")
    table = table.filter(pc.equal(table["variable"], name))
    found = {n: table[n].to_numpy() for n in COLUMNS if n not in ("time", "variable")}
    order = np.argsort(days, kind="stable")
    time = table["time"].to_numpy().astype("datetime64[D]")
    frame = order[np.searchsorted(days[order], time).clip(max=len(days) - 1)]
    asked = days[frame] == time
    seen = Stations(name, days, frame[asked], **{n: values[asked] for n, values in found.items()})
    _check(path, spec.modality(name), seen)
    return seen


def _check(path: Path, modality: Modality, seen: Stations) -> None:
    """Only what is used has to be right."""
    used = seen.used
    for name, (low, high) in {"latitude": LATITUDE, "longitude": LONGITUDE}.items():
        place = getattr(seen, name)[used]
        wrong = ~((place >= low) & (place <= high))
        if wrong.any():
            raise ContractError(
                f"{path}: {name} of {modality.name} is {place[wrong][0]}; {low:g} to {high:g} is allowed"
            )
    wrong = ~(seen.level_hpa[used] > 0)
    if modality.level_hpa and wrong.any():
        found = seen.level_hpa[used][wrong][0]
        raise ContractError(f"{path}: level_hpa of {modality.name} is {found}; a pressure, more than 0 is needed")
    check_values(path, modality, seen.value[used], seen.error_std[used])
