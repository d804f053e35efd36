"""Observations: what was measured of each modality, with its error and its operator. Zarr v3, and Parquet.

On a grid: one group a modality, named like it, with `value`, `error_std` (physical units) and `mask` (1 = observed),
each (time, [level,] y, x) on the operator's own grid, where needed the `weight` of each cell of the full grid, and the
operator in the attributes: ``block_mean`` with its ``factor``, ``subsample`` with its ``factor`` (every factor-th
cell), or ``identity``, and where a second one follows it, that one as ``then`` (`slams.contracts.gridded`). At
stations: one table, ``stations.parquet`` (`slams.contracts.stations`). A modality may be observed both ways.

A set whose attribute ``space`` is ``latent`` has the one group ``latent``, (time, channel, y, x), of standardised
latents; its attributes name their ``autoencoder`` (checksum), their moments (``latent``) and their ``latent_shape``.
What was simulated names the statistics of the archive that it was simulated from (``statistics_sha256``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slams.contracts import storage
from slams.contracts.archive import consolidate, read_time, reading, write_coordinate
from slams.contracts.envelope import ContractError, check_header, header
from slams.contracts.gridded import Field, Gridded, GriddedWriter, Operator, OperatorKind, read_gridded
from slams.contracts.stations import FILE, Stations, StationWriter, open_stations, read_stations
from slams.contracts.storage import is_file, place, writing
from slams.spec import Grid, Modality, StateSpec

__all__ = ["LATENT", "Gridded", "Observations", "Observed", "Operator", "OperatorKind", "Stations"]
__all__ += ["open_observations", "write_observations"]

FORMAT, VERSION = "slams-observations", 1
LATENT = Modality("latent", "state", "1", "")
CHECKED_DAYS, CHECKED_BYTES = 64, 2**28  # read at once, whichever is less


Observed = Gridded | Stations


@dataclass(frozen=True)
class Observations:
    """An opened observation set."""

    path: Path
    spec: StateSpec
    time: np.ndarray
    attributes: dict[str, Any]
    gridded: tuple[str, ...]
    stations: tuple[str, ...]

    @property
    def checksum(self) -> str:
        """Fingerprint of what was observed."""
        if "content_sha256" not in self.attributes:
            raise ContractError(f"{self.path}: has no content_sha256, as an early version left it; make it again")
        return str(self.attributes["content_sha256"])

    def check_truth(self, path: Path, statistics_sha256: str) -> None:
        """Refuse those that were simulated from another archive; what instruments saw names none.

        One that has grown since is the same; so is, though it should not, one of which only later years were corrected.

        Raises:
            ContractError: they were.
        """
        if self.attributes.get("statistics_sha256", statistics_sha256) != statistics_sha256:
            raise ContractError(
                f"{self.path}: was simulated from another archive than {path} is now; "
                "give that one, or remove the set and simulate it again"
            )

    @property
    def space(self) -> str:
        """``physical`` or ``latent``."""
        return str(self.attributes.get("space", "physical"))

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that were observed, on a grid or at stations."""
        return tuple(name for name in (*self.spec.names, LATENT.name) if name in self.gridded + self.stations)

    def read(self, name: str, days: np.ndarray) -> Gridded:
        """Observations of a modality on a grid on those days.

        Raises:
            ContractError: the modality was not observed so, a day lies outside the period, or what is used has an
                error that is no standard deviation, another unit, or values that cannot be in it.
        """
        if name not in self.gridded:
            raise ContractError(f"{self.path}: has no observations of {name!r} on a grid; it has {self._content}")
        where = self._where(days)
        return read_gridded(self.path, _field(self.spec, self.attributes, name), len(self.time), where)

    def read_stations(self, name: str, days: np.ndarray) -> Stations:
        """Observations of a modality at stations on those days; only those days' part of the table is read.

        Raises:
            ContractError: the modality was not observed so, a day lies outside the period, or see `read_stations`.
        """
        if name not in self.stations:
            raise ContractError(f"{self.path}: has no observations of {name!r} at stations; it has {self._content}")
        self._where(days)
        return read_stations(self.path / FILE, self.spec, name, days)

    def read_all(self, names: Iterable[str], days: np.ndarray) -> list[Observed]:
        """Everything of those modalities on those days, on grids and at stations.

        Raises:
            ContractError: as `read` and `read_stations`.
        """
        found: list[Observed] = []
        for name in names:
            if name in self.gridded or name not in self.stations:
                found.append(self.read(name, days))
            if name in self.stations:
                found.append(self.read_stations(name, days))
        return found

    def blocks(self, where: np.ndarray) -> Iterator[np.ndarray]:
        """Positions or days in blocks of so many as may be read at once."""
        day_bytes = 3 * 4 * self.spec.n_channels * int(np.prod(self.spec.grid.shape))
        size = max(1, min(CHECKED_DAYS, CHECKED_BYTES // day_bytes))
        yield from (where[i : i + size] for i in range(0, len(where), size))

    def check(self, names: Sequence[str], days: np.ndarray) -> np.ndarray:
        """Read, block by block, what a run is going to read, so that it is refused before anything is drawn.

        Returns:
            Whether anything was observed on each day, (L,).

        Raises:
            ContractError: as `read_all`, or a modality of which nothing is observed on any of those days.
        """
        unseen, observed = list(names), np.zeros(len(days), bool)
        for block in self.blocks(np.arange(len(days))):
            for seen in self.read_all(names, days[block]):
                observed[block] |= seen.observed_days
                if seen.name in unseen and seen.observed_days.any():
                    unseen.remove(seen.name)
        if unseen:
            period = f"from {days[0]} to {days[-1]}"
            raise ContractError(f"{self.path}: every value of {unseen[0]} is masked {period}; at least one is needed")
        return observed

    def check_latents(self, autoencoder: str, latent: dict[str, Any]) -> None:
        """Refuse observations of other latents than a score network learned.

        Arguments:
            autoencoder: checksum of the score network's autoencoder.
            latent: mean and standard deviation of each latent channel, by which it standardised them.

        Raises:
            ContractError: another autoencoder, other moments, or no observations of latents at all.
        """
        if self.space != "latent":
            raise ContractError(f"{self.path}: holds observations in {self.space} space, not of latents")
        if self.attributes["autoencoder"] != autoencoder or self.attributes["latent"] != latent:
            raise ContractError(f"{self.path}: observes the latents of another autoencoder than the score network's")

    @property
    def _content(self) -> str:
        parts = [*self.gridded, *(f"{name} at stations" for name in self.stations)]
        return ", ".join(parts) or "none"

    def _where(self, days: np.ndarray) -> np.ndarray:
        where = (np.asarray(days, "datetime64[D]") - self.time[0]).astype(int)
        outside = np.asarray(days)[(where < 0) | (where >= len(self.time))]
        if len(outside):
            raise ContractError(f"{self.path}: {outside[0]} is outside {self.time[0]} to {self.time[-1]}")
        return where


def _field(spec: StateSpec, attributes: dict[str, Any], name: str) -> Field:
    if name != LATENT.name:
        return Field(spec.modality(name), spec.grid, spec.modality(name).n_channels)
    n_channels, *shape = attributes["latent_shape"]
    return Field(LATENT, Grid(*shape), n_channels)


def write_observations(
    folder: Path, spec: StateSpec, time: np.ndarray, observed: Iterable[Observed], attributes: dict[str, Any]
) -> None:
    """Write observations of consecutive days into a folder (usually one written aside).

    Arguments:
        observed: one a modality, or blocks of consecutive days: on a grid those of one name follow one another from
            the first day to the last; at stations they may come in any order. One block at a time is held.
        attributes: ``config`` and whatever else describes where they come from; for latents ``space``,
            ``autoencoder``, ``latent`` and ``latent_shape`` (Z, h, w).

    Raises:
        ValueError: days that are not consecutive, missing days of a modality, or one whose every value is masked.
        ContractError: errors or values that no reader would take.
    """
    time = np.asarray(time, "datetime64[D]")
    if (np.diff(time).astype(int) != 1).any():
        raise ValueError(f"time: {time[0]} to {time[-1]} are not consecutive days; mask those without observations")
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    config = attributes.pop("config")
    found = header(FORMAT, VERSION, config) | {"Conventions": "CF-1.11", "spec": spec.to_json()}
    root.attrs.update(found | attributes)
    days = (time - np.datetime64("1900-01-01")).astype(np.int64)
    write_coordinate(root, "time", days, {"units": "days since 1900-01-01", "calendar": "proleptic_gregorian"})
    writer = _Writer(Path(folder), root, spec, time)
    for seen in observed:
        with writing(folder):
            writer.write(seen)
    writer.close()
    root.attrs["content_sha256"] = writer.fingerprint.hexdigest()
    root.attrs["gridded_sha256"] = writer.fingerprint.hexdigest(Gridded)
    consolidate(folder)


class Fingerprint:
    """Of every value, so that an analysis can tell which observations it was drawn from.

    Each array counts by itself, so that it does not depend on the blocks in which they come.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, Any] = {}
        self.operators: dict[str, Operator] = {}

    def add(self, seen: Observed) -> None:
        """Some days more; those of one name in the order of time."""
        for part, value in seen.content.items():
            name = f"{type(seen).__name__} {seen.name} {part}"
            self.hashes.setdefault(name, hashlib.sha256()).update(value)
        if isinstance(seen, Gridded):
            self.operators[seen.name] = seen.operator
            if seen.weight_HW is not None:  # once, and not with every block
                weight = np.ascontiguousarray(seen.weight_HW, np.float32)
                self.hashes[f"{Gridded.__name__} {seen.name} weight"] = hashlib.sha256(weight.tobytes())

    def hexdigest(self, kind: type[Observed] | None = None) -> str:
        """The fingerprint of what was added, or of what of it is of one kind."""
        found = hashlib.sha256()
        for name, part in sorted(self.hashes.items()):
            if kind is None or name.startswith(f"{kind.__name__} "):
                found.update(f"{name} {part.hexdigest()}".encode())
        for name, operator in sorted(self.operators.items()):
            found.update(f"{name} {operator}".encode())
        return found.hexdigest()


class _Writer:
    """An observation set in the making."""

    def __init__(self, folder: Path, root: zarr.Group, spec: StateSpec, time: np.ndarray) -> None:
        self.folder, self.root, self.spec, self.time = folder, root, spec, time
        self.gridded: dict[str, GriddedWriter] = {}
        self.stations: StationWriter | None = None
        self.seen: dict[str, bool] = {}
        self.fingerprint = Fingerprint()

    def write(self, seen: Observed) -> None:
        if isinstance(seen, Stations):
            self.stations = self.stations or StationWriter(self.folder / FILE, self.spec)
            self.stations.write(seen)
        else:
            if seen.name not in self.gridded:
                field = _field(self.spec, dict(self.root.attrs), seen.name)
                self.gridded[seen.name] = GriddedWriter(self.folder, field, self.time, seen)
            self.gridded[seen.name].write(seen)
        self.seen[seen.name] = self.seen.get(seen.name, False) or bool(seen.used.any())
        self.fingerprint.add(seen)

    def close(self) -> None:
        """Close the table, and refuse what is not whole."""
        if self.stations is not None:
            self.stations.close()
        for name, writer in self.gridded.items():
            if writer.rows != len(self.time):
                raise ValueError(f"{name}: {writer.rows} days were given; {len(self.time)} are needed")
        for name, seen in self.seen.items():
            if not seen:
                raise ValueError(f"{name}: every value is masked; leave it out, or observe some of it")


def open_observations(path: str | Path) -> Observations:
    """Open an observation set that lies in a folder or at a URL.

    Raises:
        ContractError: nothing there, another format or a newer version, or a table of stations that is none.
    """
    path = place(path)
    if not is_file(path / "zarr.json"):
        raise ContractError(f"{path}: no observations there; run `python -m data_prep observe` first")
    with storage.reading(path), reading(path):
        group = zarr.open_group(str(path), mode="r")
    check_header(dict(group.attrs), FORMAT, VERSION, path)
    spec = StateSpec.from_json(group.attrs["spec"])  # type: ignore[arg-type]
    with storage.reading(path), reading(path):
        time = read_time(group)
    gridded = tuple(name for name in (*spec.names, LATENT.name) if name in group)
    stations = open_stations(path / FILE, spec, time) if is_file(path / FILE) else ()
    return Observations(path, spec, time, dict(group.attrs), gridded, stations)
