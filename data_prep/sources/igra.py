"""Soundings of the Integrated Global Radiosonde Archive, version 2 (NCEI), as text or as the .zip it comes in.

Each sounding is a header record and its level records, all of fixed width. What is read of them, columns from 1:

    header  1 '#', 2-12 ID, 14-17 YEAR, 19-20 MONTH, 22-23 DAY, 25-26 HOUR (UTC; 99 = missing), 28-31 RELTIME (release,
            HHMM; 99 = missing), 33-36 NUMLEV, 56-62 LAT and 64-71 LON (10000ths of a degree)
    level   1 LVLTYP1 (1 standard pressure, 2 other pressure, 3 no pressure), 2 LVLTYP2 (1 surface, 2 tropopause, 0),
            10-15 PRESS (Pa), 16 PFLAG, 23-27 TEMP (tenths of a degree C), 28 TFLAG

-9999 is missing, -8888 removed by the archive's quality assurance. A flag says which of its climatological checks a
value passed (A the first, B both) or blank, that none was made; a value that fails is removed, so no flag is a refusal.

A sounding's day is that of its nominal hour: one released at 23:03 for 00 UTC belongs to the next day, as its header
says. Where the hour is missing the release stands in for it, and noon where both are.

Reference: Durre, Vose and Wuertz (2006), J. Climate 19, 53-68; NCEI, igra2-data-format.txt.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from data_prep.sources.quantity import SourceError
from data_prep.sources.reports import ZERO_CELSIUS_K, Reports

HEADER_LENGTH, LEVEL_LENGTH = 71, 51
MISSING, REMOVED, NO_HOUR, NOON = -9999, -8888, 99, 12
FLAGS = " AB"
ABSOLUTE_ZERO = -2731  # tenths of a degree C
SHIP = "V"  # network of volunteer observing ships, third character of a station's name
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class _Header:
    station: str
    time: np.datetime64
    n_levels: int
    latitude: float
    longitude: float


def read_igra(path: Path, level_hpa: Iterable[int], first: np.datetime64, last: np.datetime64) -> Reports:
    """Temperatures (K) of a file's soundings at some pressures.

    Arguments:
        path: one station's file.
        level_hpa: pressures that are wanted; other levels are left out.
        first, last: days that are wanted; soundings of other days are passed over.

    Raises:
        SourceError: not such a file, a cut or damaged record, or a header whose count is not that of its records.
    """
    path, wanted = Path(path), {100 * level for level in level_hpa}
    rows: list[tuple[_Header, float, float]] = []
    with _text(path) as lines:
        records = _Records(path, lines)
        for header in records.headers():
            if first <= header.time.astype("datetime64[D]") <= last:
                rows += [(header, *level) for level in records.levels(header) if level[0] in wanted or level[0] < 0]
            else:
                records.skip(header)
    return _as_reports(rows)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """The file's text, whether it is packed or not."""
    try:
        with path.open("rb") as file:
            if file.read(4) != ZIP_MAGIC:
                file.seek(0)
                yield io.TextIOWrapper(file, "ascii", newline="\n")
                return
        with zipfile.ZipFile(path) as packed:
            if len(packed.namelist()) != 1:
                raise SourceError(f"{path}: holds {len(packed.namelist())} files; one station's file is needed")
            with packed.open(packed.namelist()[0]) as member:
                yield io.TextIOWrapper(member, "ascii", newline="\n")
    except UnicodeDecodeError:
        raise SourceError(f"{path}: is no IGRA file; it holds characters that are not ASCII") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


class _Records:
    """The records of a file in order, of which each knows its line."""

    def __init__(self, path: Path, lines: TextIO) -> None:
        self.path, self.lines, self.number, self.line = path, lines, 0, ""

    def _next(self) -> bool:
        self.line = self.lines.readline()
        self.number += 1
        return bool(self.line)

    def _wrong(self, what: str) -> SourceError:
        return SourceError(f"{self.path}: line {self.number}: {what}")

    def _number(self, name: str, start: int, end: int) -> int:
        """The whole number in columns start to end, counted from 1."""
        text = self.line[start - 1 : end].strip()
        if not text.removeprefix("-").isdecimal():
            raise self._wrong(f"{name} is {text!r}; a whole number is needed in columns {start} to {end}")
        return int(text)

    def _complete(self, length: int, kind: str) -> None:
        found = len(self.line.rstrip("\r\n"))
        if found < length:
            raise self._wrong(f"a {kind} record has {found} characters, so it is cut; {length} are needed")

    def headers(self) -> Iterator[_Header]:
        """Each header; its levels have to be read or skipped before the next is asked for."""
        while self._next():
            if self.line[0] != "#":
                if self.number == 1:
                    raise self._wrong(f"begins with {self.line[:12]!r}, so it is no IGRA file; '#' is needed")
                raise self._wrong("a level record follows the number that its header counts (NUMLEV); '#' is needed")
            self._complete(HEADER_LENGTH, "header")
            yield self._header()
        if self.number == 1:
            raise SourceError(f"{self.path}: is empty; an IGRA file is needed")

    def _header(self) -> _Header:
        n_levels = self._number("NUMLEV", 33, 36)
        if n_levels < 0:
            raise self._wrong(f"NUMLEV is {n_levels}; at least 0 is allowed")
        latitude, longitude = self._number("LAT", 56, 62) / 1e4, self._number("LON", 64, 71) / 1e4
        return _Header(self.line[1:12].strip(), self._time(), n_levels, latitude, longitude)

    def _time(self) -> np.datetime64:
        text = "-".join((self.line[13:17], self.line[18:20], self.line[21:23]))
        try:
            day = np.datetime64(text, "D")
        except ValueError:
            raise self._wrong(f"YEAR, MONTH, DAY are {text!r}; a date is needed") from None
        hour, release = self._number("HOUR", 25, 26), self._number("RELTIME", 28, 31)
        if not (0 <= hour < 24 or hour == NO_HOUR):
            raise self._wrong(f"HOUR is {hour}; 0 to 23, or {NO_HOUR} for missing, is allowed")
        if hour == NO_HOUR:
            hour = release // 100 if release // 100 < 24 else NOON
        return day + np.timedelta64(hour, "h") + np.timedelta64(0, "m")

    def skip(self, header: _Header) -> None:
        """Pass over the levels of a sounding."""
        for _ in range(header.n_levels):
            self._next_level(header)

    def _next_level(self, header: _Header) -> None:
        if not self._next() or self.line[0] == "#":
            raise self._wrong(
                f"the sounding of {header.station} at {header.time} ends here; its header counts {header.n_levels} "
                f"levels (NUMLEV)"
            )

    def levels(self, header: _Header) -> Iterator[tuple[int, float]]:
        """Pressure (Pa; negative where it was removed) and temperature (K; NaN where it was), where it was measured."""
        for _ in range(header.n_levels):
            self._next_level(header)
            self._complete(LEVEL_LENGTH, "level")
            self._check_codes()
            pressure, temperature = self._number("PRESS", 10, 15), self._number("TEMP", 23, 27)
            if pressure <= 0 and pressure not in (MISSING, REMOVED):
                raise self._wrong(f"PRESS is {pressure} Pa; more than 0, {MISSING} or {REMOVED} is allowed")
            if temperature < ABSOLUTE_ZERO and temperature not in (MISSING, REMOVED):
                raise self._wrong(
                    f"TEMP is {temperature} tenths of a degree C; {ABSOLUTE_ZERO} or more, {MISSING} or {REMOVED} is "
                    f"allowed"
                )
            if temperature != MISSING and pressure != MISSING:
                yield pressure, np.nan if temperature == REMOVED else temperature / 10 + ZERO_CELSIUS_K

    def _check_codes(self) -> None:
        for name, column, allowed in (("LVLTYP1", 1, "123"), ("LVLTYP2", 2, "012"), ("PFLAG", 16, FLAGS)):
            if self.line[column - 1] not in allowed:
                raise self._wrong(f"{name} is {self.line[column - 1]!r}; one of {allowed!r} is allowed")
        if self.line[27] not in FLAGS:
            raise self._wrong(f"TFLAG is {self.line[27]!r}; one of {FLAGS!r} is allowed")


def _as_reports(rows: list[tuple[_Header, float, float]]) -> Reports:
    headers = [header for header, _, _ in rows]
    pressure = np.array([pressure for _, pressure, _ in rows], np.float64)
    value = np.array([temperature for _, _, temperature in rows], np.float64)
    return Reports(
        time=np.array([header.time for header in headers], "datetime64[m]"),
        latitude=np.array([header.latitude for header in headers], np.float64),
        longitude=np.array([header.longitude for header in headers], np.float64),
        level_hpa=np.where(pressure > 0, pressure / 100, np.nan),
        variable=np.full(len(rows), "temperature", object),
        value=value,
        error_std=np.full(len(rows), np.nan),
        station_id=np.array([header.station for header in headers], object),
        refused=np.isnan(value) | (pressure < 0),
        moves=np.array([header.station[2:3] == SHIP for header in headers], bool),
    )
