"""Archive: daily fields of every modality on one grid, Zarr v3 with CF metadata, in physical units.

One array a modality, (time, [level,] latitude, longitude) float32, NaN where missing; `time` is the valid
day (UTC); `run` numbers the continuous simulations or records, so that no window crosses from one to the
next. Chunks carry a CRC32C. Group attributes hold the specification, the years of each split, the missing
days and the provenance; ``statistics.safetensors`` beside the arrays holds the train-year statistics.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numcodecs import Quantize
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ZarrUserWarning

from slams.contracts.envelope import (
    SEAL,
    ContractError,
    check_header,
    check_seal,
    header,
    read_json,
    seal,
    sha256,
    write_json,
)
from slams.contracts.storage import is_file, place, writing
from slams.spec import Modality, StateSpec
from slams.statistics import Statistics

FORMAT, VERSION = "slams-archive", 2
SEALED = 2  # from which version on the metadata have a checksum of their own content
METADATA, STATISTICS, RAW_FILES = "zarr.json", "statistics.safetensors", "raw_files.json"
EPOCH = np.datetime64("1900-01-01", "D")
CHUNK_BYTES, CHUNK_DAYS = 4 * 2**20, 128
BLOCK_BYTES = 2**24  # of float32 fields held at once; what is computed from them may take fifteen times as much
Years = tuple[int, int]


def codecs() -> tuple[BloscCodec, Crc32cCodec]:
    """Lossless, and any flipped bit is found on reading."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()


def write_coordinate(group: zarr.Group, name: str, values: np.ndarray, attributes: dict[str, Any]) -> None:
    """A one-dimensional CF coordinate in one chunk."""
    axis = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=values.shape,
        dimension_names=[name],
        compressors=codecs(),
    )
    axis[:] = values
    axis.attrs.update(attributes)


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Say which store is damaged, where zarr says only that something is.

    Raises:
        ContractError: a chunk or the metadata cannot be read.
    """
    try:
        yield
    except ContractError:
        raise
    except (ValueError, RuntimeError) as error:  # a checksum, a codec, or the JSON of the metadata
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ContractError(f"{path}: damaged, it cannot be read ({reason})") from error


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a group, by its path.

    Raises:
        ContractError: there is none.
    """
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        raise ContractError(f"{group.store_path}: holds no array {name!r}")
    return found


def write_axes(group: zarr.Group, time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """The CF coordinates that every gridded contract shares."""
    _write_time(group, time)
    north = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    write_coordinate(group, "latitude", np.asarray(latitude, np.float64), north)
    east = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    write_coordinate(group, "longitude", np.asarray(longitude, np.float64), east)


def _write_time(group: zarr.Group, time: np.ndarray) -> None:
    days = (np.asarray(time, "datetime64[D]") - EPOCH).astype(np.int64)
    when = {"standard_name": "time", "units": f"days since {EPOCH}", "calendar": "proleptic_gregorian", "axis": "T"}
    write_coordinate(group, "time", days, when | {"long_name": "valid day (UTC)"})


def _write_run(group: zarr.Group, run: np.ndarray) -> None:
    how: dict[str, Any] = {"dtype": "int32", "dimension_names": ["time"], "compressors": codecs()}
    how["fill_value"] = -1  # which no run is: numbers that were lost do not read as one long run
    numbers = group.create_array("run", shape=run.shape, chunks=run.shape, **how)
    numbers[:] = run
    numbers.attrs["long_name"] = "number of the continuous record; windows never cross from one to the next"


def write_levels(group: zarr.Group, spec: StateSpec) -> None:
    """The pressure axis, where a modality has one. All modalities with levels share it."""
    levels = {m.level_hpa for m in spec.modalities if m.level_hpa}
    if len(levels) > 1:
        raise ContractError(f"modalities: levels {sorted(levels)} differ; one pressure axis is allowed")
    for level_hpa in levels:
        attributes = {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"}
        write_coordinate(group, "level", np.asarray(level_hpa, np.int32), attributes)


def consolidate(folder: Path) -> None:
    """Gather the metadata in one file, for readers over a network.

    Not warned of: the files beside the arrays (statistics, ledger), which are none of zarr's, and that version 3 of
    the format does not yet say how metadata are gathered, which every reader at hand can do without.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(folder)


def read_time(group: zarr.Group) -> np.ndarray:
    """Valid days as datetime64[D]."""
    return EPOCH + np.asarray(array(group, "time")[:]).astype("timedelta64[D]")


def dimensions(modality: Modality) -> tuple[str, ...]:
    """Names of the dimensions of a modality's field at one time."""
    return ("level", "latitude", "longitude") if modality.level_hpa else ("latitude", "longitude")


def field_shape(modality: Modality, shape_HW: tuple[int, int]) -> tuple[int, ...]:
    """Shape of a modality's field at one time on a grid of that shape."""
    return (len(modality.level_hpa), *shape_HW) if modality.level_hpa else shape_HW


def create(
    folder: Path,
    spec: StateSpec,
    time: np.ndarray,
    run: np.ndarray,
    attributes: dict[str, Any],
    decimals: dict[str, int] | None = None,
) -> zarr.Group:
    """An archive with axes and empty fields, to be filled by `write_block`.

    Arguments:
        folder: where, usually a folder written aside.
        time: every day of the period, datetime64[D], (T,).
        run: number of the continuous run of each day, (T,).
        attributes: ``config``, ``splits`` {name: [first, last year]}, ``missing_days`` {modality: [day]}.
        decimals: modality -> decimals of each value that are kept, in its unit; all of them of one that is not named.
    """
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    config = attributes.pop("config")
    found = header(FORMAT, VERSION, config) | {"Conventions": "CF-1.11", "spec": spec.to_json()}
    group.attrs.update(found | attributes)
    write_axes(group, time, spec.grid.latitude, spec.grid.longitude)
    write_levels(group, spec)
    _write_run(group, run)
    for modality in spec.modalities:
        _create_field(group, modality, spec, len(time), (decimals or {}).get(modality.name))
    return group


def _create_field(group: zarr.Group, modality: Modality, spec: StateSpec, n_time: int, decimals: int | None) -> None:
    shape = field_shape(modality, spec.grid.shape)
    days = max(1, min(CHUNK_DAYS, CHUNK_BYTES // (4 * int(np.prod(shape)))))
    field = group.create_array(
        modality.name,
        shape=(n_time, *shape),
        chunks=(days, *shape),
        dtype="float32",
        fill_value=np.nan,
        compressors=codecs(),
        dimension_names=["time", *dimensions(modality)],
    )
    field.attrs.update({"standard_name": modality.standard_name, "units": modality.units})
    if decimals is not None:
        field.attrs.update({"decimals": decimals, "loss_bound": 0.5 * 10.0**-decimals})


def extend(folder: Path, time: np.ndarray, run: np.ndarray) -> zarr.Group:
    """An archive with a longer time axis, whose new days are empty.

    Arguments:
        folder: a copy that nobody reads; it may share its files with the original by hard links.
        time, run: as `create` takes them, for the whole period.
    """
    group = zarr.open_group(folder, mode="a", use_consolidated=False)
    group.attrs.put({key: value for key, value in group.attrs.items() if key != SEAL} | {"version": VERSION})
    for modality in StateSpec.from_json(cast(Any, group.attrs["spec"])).modalities:
        field = array(group, modality.name)
        field.resize((len(time), *field.shape[1:]))
    del group["time"], group["run"]
    _write_time(group, time)
    _write_run(group, run)
    return group


def write_block(group: zarr.Group, name: str, start: int, values: np.ndarray) -> None:
    """Fill consecutive days of one modality, values (days, [level,] latitude, longitude).

    Where the field keeps so many decimals only, a value is moved by ``loss_bound`` at most. What is stored is plain
    float32, which any reader knows; the bits that were cleared compress away.
    """
    field = array(group, name)
    decimals = cast("int | None", field.attrs.get("decimals"))
    if decimals is not None:
        values = Quantize(decimals, "f4").encode(np.asarray(values, np.float32)).reshape(values.shape)
    with writing(group.store_path):
        field[start : start + len(values)] = values


def finish(
    folder: Path, statistics: Statistics, global_std: list[float], raw_files: dict[str, Any] | None = None
) -> None:
    """Add the statistics, the list of raw files and their checksums, then consolidate the metadata and seal them.

    Arguments:
        raw_files: modality -> [[name, size, time of change], ...] of those it was made of, as far as known.
        global_std: standard deviation of each channel over all cells and train days, in physical units.
    """
    statistics.save(folder / STATISTICS)
    group = zarr.open_group(folder, mode="a")
    group.attrs["statistics_sha256"] = sha256(folder / STATISTICS)
    group.attrs["global_std"] = global_std
    if raw_files is not None:
        write_json(folder / RAW_FILES, raw_files)
        group.attrs["raw_files_sha256"] = sha256(folder / RAW_FILES)
    consolidate(folder)
    metadata = read_json(folder / METADATA, "the metadata of the archive")
    metadata["attributes"].pop(SEAL, None)  # of one that was stopped after this, before it took its name
    metadata["attributes"][SEAL] = seal(metadata)
    write_json(folder / METADATA, metadata)


@dataclass(frozen=True)
class Archive:
    """An opened archive; `read` returns the days asked for, in channel order."""

    path: Path
    spec: StateSpec
    time: np.ndarray
    run: np.ndarray
    splits: dict[str, Years]
    attributes: dict[str, Any]

    def read(self, where: slice | np.ndarray) -> np.ndarray:
        """Fields x_LCHW of those days in physical units, NaN where missing."""
        where = _consecutive(where)
        with reading(self.path):
            group = zarr.open_group(str(self.path), mode="r")
            fields = [array(group, modality.name) for modality in self.spec.modalities]
            found = [np.asarray(f[where] if isinstance(where, slice) else f.oindex[where]) for f in fields]
        parts = []
        for modality, values in zip(self.spec.modalities, found, strict=True):
            parts.append(values.reshape(len(values), modality.n_channels, *self.spec.grid.shape))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    @property
    def days_at_once(self) -> int:
        """As many as fit into `BLOCK_BYTES`."""
        return max(1, BLOCK_BYTES // (4 * self.spec.n_channels * int(np.prod(self.spec.grid.shape))))

    def blocks(self, where: np.ndarray, size: int | None = None) -> Iterator[np.ndarray]:
        """Indices in blocks, so that nothing is loaded whole; by default of `days_at_once`."""
        size = size or self.days_at_once
        yield from (where[i : i + size] for i in range(0, len(where), size))

    def statistics(self) -> Statistics:
        """The train-year statistics.

        Raises:
            ContractError: missing, or not those the archive was closed with.
        """
        return read_statistics(self.path, self.attributes.get("statistics_sha256"))

    @property
    def content(self) -> str:
        """Changes with its train years and with the raw files that it was made of."""
        told = [self.attributes.get(name, "") for name in ("statistics_sha256", "raw_files_sha256")]
        return hashlib.sha256("".join(told).encode()).hexdigest()

    def raw_files(self) -> dict[str, Any]:
        """What it was made of, as `finish` took it; nothing where an earlier version made it.

        Raises:
            ContractError: missing, or not what the archive was closed with.
        """
        checksum = self.attributes.get("raw_files_sha256")
        if checksum is None:
            return {}
        found = read_json(self.path / RAW_FILES, "the list of its raw files")
        if sha256(self.path / RAW_FILES) != checksum:
            raise ContractError(f"{self.path / RAW_FILES}: the checksum does not match; it was changed or damaged")
        return found

    def days(self, split: str) -> np.ndarray:
        """Indices of the days of a split.

        Raises:
            ContractError: the archive has no such split.
        """
        if split not in self.splits:
            raise ContractError(f"{self.path}: has no split {split!r}; it has {', '.join(self.splits)}")
        first, last = self.splits[split]
        year = self.time.astype("datetime64[Y]").astype(int) + 1970
        return np.flatnonzero((year >= first) & (year <= last))

    def index_of(self, days: Iterable[np.datetime64]) -> np.ndarray:
        """Positions of those days.

        Raises:
            ContractError: a day outside the archive, named.
        """
        wanted = np.asarray(list(days), "datetime64[D]")
        where = (wanted - self.time[0]).astype(int)
        outside = wanted[(where < 0) | (where >= len(self.time))]
        if len(outside):
            raise ContractError(f"{self.path}: {outside[0]} is outside {self.time[0]} to {self.time[-1]}")
        return where


def _consecutive(where: slice | np.ndarray) -> slice | np.ndarray:
    """Consecutive indices as a slice, which zarr reads twice as fast."""
    if isinstance(where, slice) or not len(where) or (np.diff(where) != 1).any():
        return where
    return slice(int(where[0]), int(where[-1]) + 1)


def read_statistics(folder: Path, checksum: str | None) -> Statistics:
    """Statistics beside a contract, verified.

    Raises:
        ContractError: the file is missing or its checksum is another.
    """
    path = folder / STATISTICS
    if not path.is_file():
        raise ContractError(f"{path}: no such file; the statistics are missing")
    if sha256(path) != checksum:
        raise ContractError(f"{path}: the checksum does not match; the file was changed or damaged")
    return Statistics.load(path)


def open_archive(path: str | Path, is_whole: bool = True) -> Archive:
    """Open an archive that lies in a folder or at a URL.

    Arguments:
        is_whole: whether it must have been finished, and its metadata be as they were written.

    Raises:
        ContractError: nothing there, damaged metadata, another format or a newer version.
    """
    path = place(path)
    if not is_file(path / METADATA):
        raise ContractError(f"{path}: no archive there; run `python -m data_prep archive` first")
    with reading(path):
        group = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
    check_header(attributes, FORMAT, VERSION, path)
    if is_whole:
        _check_metadata(path)
    splits = {name: (int(a), int(b)) for name, (a, b) in attributes["splits"].items()}
    with reading(path):
        time, run = read_time(group), np.asarray(array(group, "run")[:])
    return Archive(path, StateSpec.from_json(attributes["spec"]), time, run, splits, attributes)


def _check_metadata(path: Path) -> None:
    """Those of the group and, gathered with them, of its arrays."""
    metadata = read_json(path / METADATA, "the metadata of an archive")
    attributes = metadata["attributes"]
    found = attributes.pop(SEAL, None)
    check_seal(found, metadata, attributes["version"] < SEALED, path / METADATA)
