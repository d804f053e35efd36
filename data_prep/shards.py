"""Archive -> shards: standardised frames in WebDataset tars in time order, then the manifest that indexes them."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from data_prep.config import ArchiveConfig, PrepConfig, ShardsConfig, comparable, content
from data_prep.fields import specification
from data_prep.work import Work
from data_prep.workers import workers
from slams.ahead import ahead
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import (
    SEAL,
    ContractError,
    alone,
    check_source,
    header,
    is_finished,
    seal,
    sha256,
    write_json,
)
from slams.contracts.shards import COMPRESSOR, FORMAT, MEMBER, VERSION, encode_frame, open_shards
from slams.contracts.storage import writing
from slams.spec import StateSpec
from slams.statistics import Statistics

MANIFEST = "manifest.json"
USTAR = tarfile.USTAR_FORMAT
LISTS = ("archive.variables",)  # of sections
USUAL_RATIO = 2  # by which frames are compressed
COPY = 1 << 20  # bytes; a frame in one piece, where it is no larger
FRAMES_AT_ONCE = 8
LISTS_ALL_MISSING = 2  # version of archives from which on a day that lacks one level is listed too
Timed = tuple[np.datetime64, int, np.ndarray]


def plan(config: ShardsConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Work(Path(config.path)).stands(MANIFEST) else f"to be written from {whole.archive.path}"
    spec = specification(whole.archive)
    frame_bytes = 4 * spec.n_channels * int(np.prod(spec.grid.shape)) / USUAL_RATIO
    size = f"{config.frames_per_shard} frames, about {config.frames_per_shard * frame_bytes / 2**20:.0f} MiB a shard"
    return [f"shards {config.path}: {size} (100 to 1000 suit an object store): {done}"]


def run(config: ShardsConfig, whole: PrepConfig) -> None:
    """Write the shards of every split's days, unless they stand already.

    Raises:
        ContractError: no archive, one of another configuration, or shards of another configuration in the way.
    """
    with alone(config.path):
        _run(config, whole)


def _run(config: ShardsConfig, whole: PrepConfig) -> None:
    work, made_by = Work(Path(config.path)), to_dict(config) | {"archive": to_dict(whole.archive)}
    work.tidy()
    old = open_shards(work.path).document if work.stands(MANIFEST) else {}
    stands = is_finished(work.path, comparable(old.get("config", {})), comparable(made_by))
    archive = open_archive(whole.archive.path)
    if stands:
        return check_source(work.path, old.get("archive_sha256"), archive.path, archive.content)
    _check_make(archive, whole.archive)
    made_of = {"config": comparable(made_by), "archive": archive.content}
    if not work.goes_on(made_of):
        work.aside.mkdir(parents=True)
        work.begun(made_of)
    missing = set().union(*archive.attributes["missing_days"].values())
    days = np.sort(np.concatenate([archive.days(split) for split in archive.splits]))
    days = days[[str(day) not in missing for day in archive.time[days]]]
    task = StateShard(archive.path, work.aside, config.keepbits)
    with workers(whole.workers) as in_order:
        every = parts(days, config.frames_per_shard)
        shards = work.complete(task, every, in_order, "shards", Intact(work.aside))
    document = {"config": made_by, "content": "state", "splits": archive.splits, "archive_sha256": archive.content}
    write_manifest(work.aside, shards, archive.spec, archive.statistics(), config.keepbits, document)
    work.become()


def _check_make(archive: Archive, config: ArchiveConfig) -> None:
    """Refuse an archive that the configuration's own section would not make.

    Raises:
        ContractError: naming the first field that differs.
    """
    for name, found, wanted in _differences(content(archive.attributes["config"]), to_dict(config), "archive"):
        raise ContractError(
            f"{archive.path}: was made with {name}={found!r}, but the configuration has {wanted!r}; give the one that "
            "it was made with, or another archive.path"
        )


def _differences(found: Any, wanted: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of every field that differs; one that is newer than what was found does not count."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found:
            yield from _differences(found[key], wanted.get(key), f"{name}.{key}")
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted) and name in LISTS:
        for i, pair in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(*pair, f"{name}.{i}")
    elif found != wanted:
        yield name, found, wanted


@dataclass(frozen=True)
class Part:
    """What one shard is made of: indices of days of an archive, or of frames of another shard set."""

    number: int
    where: tuple[int, ...]
    kind: str = "frames"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:05d}"


def parts(where: np.ndarray, size: int, kind: str = "frames") -> list[Part]:
    """So many at a time, in order."""
    starts = range(0, len(where), size)
    return [Part(i, tuple(where[start : start + size].tolist()), kind) for i, start in enumerate(starts)]


@dataclass(frozen=True)
class StateShard:
    """Writes a shard of standardised states; a day on which a whole channel is missing is left out."""

    archive: Path
    folder: Path
    keepbits: int

    def __call__(self, part: Part) -> dict[str, Any]:
        """Write a shard and return its entry in the manifest."""
        return write_shard(self.folder / f"{part.name}.tar", self._frames(np.array(part.where)), self.keepbits)

    def _frames(self, days: np.ndarray) -> Iterator[Timed]:
        archive = open_archive(self.archive)
        statistics = archive.statistics()
        standardised = (
            (block, statistics.standardise(archive.read(block), archive.time[block])) for block in archive.blocks(days)
        )
        for block, x in ahead(standardised):
            for i, frame in zip(block, x, strict=True):
                if np.isfinite(frame).any(axis=(1, 2)).all():
                    yield archive.time[i], int(archive.run[i]), frame
                elif archive.attributes["version"] >= LISTS_ALL_MISSING:
                    raise ContractError(
                        f"{archive.path}: {archive.time[i]}: a channel has no value, and the day is not listed as "
                        f"missing; `python -m data_prep check {archive.path}` says what is gone"
                    )


@dataclass(frozen=True)
class Intact:
    """Whether a shard of an earlier call is what was written: a machine that crashed may have kept less of it.

    Arguments:
        folder: where it lies.
    """

    folder: Path

    def __call__(self, entry: dict[str, Any]) -> bool:
        """By its entry in the manifest."""
        if not entry["frames"]:
            return True
        path = self.folder / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def write_shards(
    folder: Path,
    frames: Iterable[Timed],
    *,
    spec: StateSpec,
    statistics: Statistics,
    frames_per_shard: int,
    keepbits: int,
    document: dict[str, Any],
) -> None:
    """Write frames that come in time order, so many a shard, then the manifest; as `write_manifest` wants it."""
    shards = []
    remaining = iter(frames)
    while some := list(islice(remaining, frames_per_shard)):
        shards.append(write_shard(folder / f"frames-{len(shards):05d}.tar", some, keepbits))
    write_manifest(folder, shards, spec, statistics, keepbits, document)


def write_shard(path: Path, frames: Iterable[Timed], keepbits: int) -> dict[str, Any]:
    """Write frames (valid day, run, values (C, H, W)) and return the shard's entry in the manifest.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    found: list[dict[str, Any]] = []
    shape: tuple[int, ...] = ()
    # unbuffered: what a full disk refused would be refused again on closing, in other words
    with (
        path.open("wb", buffering=0) as file,
        tarfile.open(fileobj=(stream := Hashed(file)), mode="w", format=USTAR, copybufsize=COPY) as tar,
    ):
        for time, run, data, of_frame in chain.from_iterable(ahead(encoded(frames, keepbits))):
            member = tarfile.TarInfo(f"{str(time).replace('-', '')}.{MEMBER}")  # no clock: same frames, same bytes
            member.size = len(data)
            place = {"offset": tar.offset + tarfile.BLOCKSIZE, "size": len(data)}  # after the header
            tar.addfile(member, BytesIO(data))
            shape = of_frame
            found.append({"time": str(time), "run": int(run)} | place | {"crc32": isal_zlib.crc32(data)})
    if not found:
        path.unlink()
        return {"frames": []}
    entry = {"file": path.name, "frames": found, "bytes": path.stat().st_size, "sha256": stream.sha256.hexdigest()}
    return entry | {"shape": list(shape)}


def encoded(frames: Iterable[Timed], keepbits: int) -> Iterator[list[tuple[Any, int, bytes, tuple[int, ...]]]]:
    """Frames as they are written (valid day, run, bytes, shape), a few together: a step for a thread is not free."""
    remaining = iter(frames)
    while some := list(islice(remaining, FRAMES_AT_ONCE)):
        yield [(time, run, encode_frame(values, keepbits), values.shape) for time, run, values in some]


class Hashed:
    """An unbuffered file whose checksum is known when it is written, with no second look at it."""

    def __init__(self, file: FileIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        left = memoryview(data)
        with writing(self.file.name):
            while left:
                left = left[self.file.write(left) :]
        return len(data)

    def tell(self) -> int:
        return self.file.tell()


def write_manifest(
    folder: Path,
    shards: Sequence[dict[str, Any]],
    spec: StateSpec,
    statistics: Statistics,
    keepbits: int,
    document: dict[str, Any],
) -> None:
    """Write the manifest, and the statistics beside it.

    Arguments:
        shards: what `write_shard` returned, in time order.
        document: ``config``, ``content``, ``splits``, and for latents ``autoencoder`` and ``latent``.
    """
    statistics.save(folder / "statistics.safetensors")
    filled = [shard for shard in shards if shard["frames"]]
    entries = [{key: value for key, value in shard.items() if key != "shape"} for shard in filled]
    more = {key: value for key, value in document.items() if key != "config"}
    manifest = header(FORMAT, VERSION, document["config"]) | more
    manifest |= {"spec": spec.to_json(), "shape": filled[0]["shape"] if filled else []}
    manifest |= {"codec": {"bitround_keepbits": keepbits, "compressor": COMPRESSOR.get_config()}}
    manifest |= {"statistics_sha256": sha256(folder / "statistics.safetensors"), "shards": entries}
    write_json(folder / MANIFEST, manifest | {SEAL: seal(manifest)})
