"""Reports in more number than memory holds: on the disk in parts, by stations or by days, of which one is held."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.reports import Reports

STATION_PARTS = 64
CODE = "code"


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder for as long as the work takes; what a killed program left there is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Parts:
    """Reports and their codes in files, one a part; what is in a part stays in the order in which it came.

    Arguments:
        folder: a new one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.files = folder, dict[int, pq.ParquetWriter]()

    def add(self, reports: Reports, code: np.ndarray, part: np.ndarray) -> None:
        """Some more, each into the part of that number."""
        columns = {**vars(reports), "time": reports.time.astype("datetime64[s]"), CODE: code}
        for number in np.unique(part).tolist():
            at = np.flatnonzero(part == number)
            table = pa.table({name: values[at] for name, values in columns.items()})
            if number not in self.files:
                self.files[number] = pq.ParquetWriter(self.folder / f"{number}.parquet", table.schema)
            self.files[number].write_table(table)

    def read(self) -> Iterator[tuple[Reports, np.ndarray]]:
        """Each part, in order of their numbers; nothing can be added any more."""
        for number in sorted(self.files):
            self.files[number].close()
            table = pq.read_table(self.folder / f"{number}.parquet")
            found = {name: table[name].to_numpy() for name in table.column_names}
            found["time"] = found["time"].astype("datetime64[m]")
            yield Reports(**{field.name: found[field.name] for field in fields(Reports)}), found[CODE]


def by_station(station_id: np.ndarray) -> np.ndarray:
    """Number of the part of each report, the same for all of a station, (N,)."""
    found = pa.array(station_id, pa.string()).dictionary_encode()
    numbers = np.array([zlib.crc32(name.encode()) % STATION_PARTS for name in found.dictionary.to_pylist()], int)
    return np.asarray(numbers[found.indices.to_numpy()])
