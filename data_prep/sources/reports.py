"""Reports of stations: single measured values with place, time and level; and the plain table that holds them.

A table is a CSV file with a header line, or a Parquet file. Its columns are those of the contract's table
(`slams.contracts.stations`): `time` (ISO date, or date and time in UTC), `latitude`, `longitude`, `level_hpa` (empty
for a field without levels; the column may be missing), `variable`, `value`, `station_id`; `units`, the unit of the
value (in Parquet the metadata's ``units``, a JSON object {variable: unit}, will do); and where known `error_std` and
`qc` (0 = good, anything else = refused by whoever made the table).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_prep.sources.quantity import SourceError
from slams.contracts.measured import KELVIN
from slams.spec import Modality, StateSpec

ISO_UTC = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?)?")
NUMBERS, TEXTS = ("latitude", "longitude", "value", "level_hpa", "error_std", "qc"), ("variable", "station_id", "units")
REQUIRED = ("time", "latitude", "longitude", "variable", "value", "station_id")
CELSIUS, ZERO_CELSIUS_K = "degC", 273.15
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Reports:
    """Measured values, each array (N,), in the units of the state.

    Arguments:
        time: UTC, datetime64[m].
        latitude, longitude: degrees north and east, as they were given.
        level_hpa: NaN for a field without levels.
        variable, station_id: text.
        value: NaN where the provider removed it.
        error_std: NaN where the provider says none.
        refused: by the provider's own quality control.
        moves: a ship or the like, whose position says nothing about its next.
    """

    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    level_hpa: np.ndarray
    variable: np.ndarray
    value: np.ndarray
    error_std: np.ndarray
    station_id: np.ndarray
    refused: np.ndarray
    moves: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def take(self, where: np.ndarray) -> Reports:
        """Those of a mask, or at those positions."""
        return Reports(*(getattr(self, field.name)[where] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Reports]) -> Reports:
        """All of them, one part after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def read_table(path: Path, spec: StateSpec) -> Reports:
    """The reports of a CSV or Parquet table.

    Raises:
        SourceError: no such table, a column that is missing, or a row (the line in a CSV file) with an unknown
            variable, a unit that is not the variable's, something that is no number or date, or temperatures most of
            which cannot be in the unit that is said.
    """
    path = Path(path)
    columns, first = _columns(path)
    missing = [name for name in REQUIRED if name not in columns.column_names]
    if missing:
        raise SourceError(f"{path}: has no column {missing[0]!r}; {', '.join(REQUIRED)} are needed")
    rows = _Rows(path, columns, first)
    refused = rows.numbers("qc", default=0) != 0
    found = Reports(
        time=rows.times(),
        latitude=rows.numbers("latitude", needed=~refused),
        longitude=rows.numbers("longitude", needed=~refused),
        level_hpa=rows.numbers("level_hpa"),
        variable=rows.texts("variable", spec.names),
        value=rows.numbers("value", needed=~refused),
        error_std=rows.numbers("error_std"),
        station_id=rows.texts("station_id"),
        refused=refused,
        moves=np.zeros(columns.num_rows, bool),
    )
    units = rows.units(found.variable)
    for name in np.unique(found.variable):
        _to_units(rows, found, spec.modality(str(name)), units)
    return found


def _columns(path: Path) -> tuple[pa.Table, int]:
    """The table as it is, and the number that people know its first row by."""
    try:
        with path.open("rb") as file:
            if file.read(4) == PARQUET_MAGIC:
                return _parquet(path), 1
        with path.open() as text:
            names = text.readline().lstrip("\ufeff").strip().split(",")
        as_text = pa.csv.ConvertOptions(column_types={name.strip('"'): pa.string() for name in names})
        plain = pa.csv.ParseOptions(ignore_empty_lines=False)
        return pa.csv.read_csv(path, parse_options=plain, convert_options=as_text), 2
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise SourceError(f"{path}: cannot be read as a CSV or Parquet table ({reason})") from error


def _parquet(path: Path) -> pa.Table:
    """Every kind of text as plain text, and the metadata of the file, of which a schema's are only a part."""
    table = pq.read_table(path)
    for i, field in enumerate(table.schema):
        if pa.types.is_large_string(field.type) or pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table[i].cast(pa.string()))
    return table.replace_schema_metadata(pq.read_metadata(path).metadata)


class _Rows:
    """The columns of one table, each checked as it is asked for."""

    def __init__(self, path: Path, table: pa.Table, first: int) -> None:
        self.path, self.table, self.first = path, table, first

    def refuse(self, wrong: np.ndarray, name: str, allowed: str) -> None:
        """Name the first of the rows that are wrong.

        Raises:
            SourceError: there is one.
        """
        if wrong.any():
            row = int(wrong.argmax())
            found = self.table[name][row].as_py() if name in self.table.column_names else None
            word = "line" if self.first > 1 else "row"
            raise SourceError(f"{self.path}: {word} {row + self.first}: {name} is {found!r}; {allowed}")

    def numbers(self, name: str, default: float = np.nan, needed: np.ndarray | None = None) -> np.ndarray:
        """A column as float64, the default where it is empty.

        Arguments:
            needed: where it has to be there, and finite.
        """
        if name not in self.table.column_names:
            return np.full(self.table.num_rows, default)
        column = self.table[name]
        if pa.types.is_string(column.type):
            column = self._parsed(name, column)
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise SourceError(f"{self.path}: column {name!r} is of type {column.type}; numbers are needed")
        found = np.array(pc.fill_null(column.cast(pa.float64()), default).to_numpy())  # one that may be written to
        if needed is not None:
            self.refuse(needed & ~np.isfinite(found), name, "a finite number is needed")
        return found

    def _parsed(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        column = pc.if_else(blank, pa.scalar(None, pa.string()), pc.utf8_trim_whitespace(column))
        try:
            return column.cast(pa.float64())
        except pa.ArrowInvalid:
            wrong = np.array([text is not None and not _is_number(text) for text in column.to_pylist()])
            self.refuse(wrong, name, "a number is needed")
            raise

    def texts(self, name: str, allowed: Sequence[str] = ()) -> np.ndarray:
        """A column of text; nothing is empty."""
        column = self.table[name].cast(pa.string())
        found = np.asarray(pc.fill_null(column, "").to_numpy(), object)
        self.refuse(found == "", name, "a name is needed")
        if allowed:
            known = np.array(pc.is_in(column, pa.array(list(allowed))))
            self.refuse(~known, name, f"{', '.join(allowed)} is allowed")
        return found

    def times(self) -> np.ndarray:
        """Times in UTC, datetime64[m]."""
        column = self.table["time"]
        if not pa.types.is_string(column.type):
            if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
                raise SourceError(f"{self.path}: column 'time' is of type {column.type}; dates or times are needed")
            self.refuse(np.array(column.is_null()), "time", "a date is needed")
            return np.asarray(column.to_numpy().astype("datetime64[m]"))
        words = [word.strip() for word in pc.fill_null(column, "").to_pylist()]
        found = [_instant(word) for word in words]
        self.refuse(np.array([instant is None for instant in found], bool), "time", "an ISO date or UTC time is needed")
        return np.array(found, "datetime64[m]")

    def units(self, variable: np.ndarray) -> np.ndarray:
        """The unit that is said of each value."""
        if "units" in self.table.column_names:
            return self.texts("units")
        of = self._said_units()
        for name in np.unique(variable):
            if name not in of:
                raise SourceError(f"{self.path}: does not say the unit of {name}; a column 'units' is needed")
        return np.array([of[name] for name in variable], object)

    def _said_units(self) -> dict[str, str]:
        said = (self.table.schema.metadata or {}).get(b"units", b"{}")
        try:
            return dict(json.loads(said))
        except (ValueError, TypeError):
            raise SourceError(f"{self.path}: its metadata 'units' are {said!r}; {{variable: unit}} is needed") from None


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _instant(word: str) -> np.datetime64 | None:
    if not ISO_UTC.fullmatch(word):
        return None
    try:
        return np.datetime64(word.rstrip("Z"), "m")
    except ValueError:  # no such day
        return None


def _to_units(rows: _Rows, reports: Reports, modality: Modality, units: np.ndarray) -> None:
    """Bring the values of one variable to the state's unit, in place, and refuse a unit that cannot be true."""
    its = reports.variable == modality.name
    good = its & ~reports.refused
    allowed = (modality.units, CELSIUS) if modality.units == "K" else (modality.units,)
    rows.refuse(its & ~np.isin(units, allowed), "units", f"{' or '.join(allowed)} is allowed for {modality.name}")
    if modality.level_hpa:
        rows.refuse(good & ~(reports.level_hpa > 0), "level_hpa", f"{modality.name} needs a pressure, more than 0")
    reports.value[its & (units == CELSIUS)] += ZERO_CELSIUS_K
    low, high = KELVIN
    median = np.median(reports.value[good]) if good.any() and modality.units == "K" else low
    if not low <= median <= high:
        said = " or ".join(map(str, np.unique(units[good])))
        raise SourceError(
            f"{rows.path}: value: half of {modality.name} is beyond {median:g} K, so it is not in {said}; "
            f"{low:g} to {high:g} K is allowed"
        )
