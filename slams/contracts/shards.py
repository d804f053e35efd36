"""Shards: frames in time order in WebDataset tars, with a manifest that indexes every member.

A sample is one frame: key ``YYYYMMDD``, member ``frame.blosc`` = float32 (C, H, W), rounded to a stated number
of mantissa bits and compressed by numcodecs. The manifest gives each member's offset, size and CRC32, so a
window of frames can be read in any order, straight from the tars, and no damage passes unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numcodecs import BitRound, Blosc, blosc

from slams.contracts.archive import read_statistics
from slams.contracts.envelope import SEAL, ContractError, check_header, check_seal, read_json
from slams.contracts.storage import place, read_range, reading, sizes
from slams.spec import StateSpec
from slams.statistics import Statistics

FORMAT, VERSION = "slams-shards", 2
SEALED = 2  # from which version on the manifest has a checksum of its own content
MEMBER = "frame.blosc"
# nearly as small as zstd, and read four times as fast (benchmarks/loader.md); the reader takes any Blosc codec
COMPRESSOR = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)
LARGEST_GAP = 4096  # bytes between frames that are read together: a tar's headers, not another frame


def encode_frame(frame_CHW: np.ndarray, keepbits: int) -> bytes:
    """A frame as bytes, each value rounded to that many mantissa bits (relative error below 2^-keepbits)."""
    rounded = BitRound(keepbits=keepbits).encode(np.ascontiguousarray(frame_CHW, np.float32))
    return bytes(COMPRESSOR.encode(rounded))


def decode_frame(data: bytes | memoryview, into_CHW: np.ndarray) -> None:
    """The inverse of `encode_frame`, but for the rounding, into memory that exists: new memory costs as much again."""
    blosc.decompress(data, into_CHW)


@dataclass(frozen=True)
class Frame:
    """Where one frame lies: its valid day, its continuous run, and its bytes in a shard."""

    time: np.datetime64
    run: int
    shard: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """An opened shard set.

    Arguments:
        unusable: frames that no window may contain, by their index.
    """

    folder: Path
    document: dict[str, Any]
    unusable: frozenset[int] = frozenset()

    @property
    def spec(self) -> StateSpec:
        return StateSpec.from_json(self.document["spec"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one frame, (C, H, W), or (Z, H, W) for latents."""
        return tuple(self.document["shape"])

    @property
    def content(self) -> str:
        """``state`` or ``latent``."""
        return str(self.document["content"])

    @cached_property
    def files(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.document["shards"]]

    @cached_property
    def frames(self) -> list[Frame]:
        """Every frame, in time order."""
        return [
            Frame(np.datetime64(f["time"], "D"), f["run"], i, f["offset"], f["size"], f["crc32"])
            for i, shard in enumerate(self.document["shards"])
            for f in shard["frames"]
        ]

    def statistics(self) -> Statistics:
        return read_statistics(self.folder, self.document["statistics_sha256"])

    def check(self) -> None:
        """Whether the manifest says what was written.

        Raises:
            ContractError: it was changed or damaged.
        """
        path, is_old = self.folder / "manifest.json", self.document["version"] < SEALED
        check_seal(self.document.get(SEAL), self.document, is_old, path)

    def windows(self, split: str, length: int) -> np.ndarray:
        """First frame of every window of ``length`` consecutive usable days inside a split and a run, (N,).

        Raises:
            ContractError: no such split, or no such window in it.
        """
        if split not in self.document["splits"]:
            raise ContractError(f"{self.folder}: has no split {split!r}; it has {', '.join(self.document['splits'])}")
        first, last = self.document["splits"][split]
        time = np.array([f.time for f in self.frames])
        run = np.array([f.run for f in self.frames])
        year = time.astype("datetime64[Y]").astype(int) + 1970
        inside = (year >= first) & (year <= last)
        start = np.arange(len(time) - length + 1)
        end = start + length - 1
        whole = (time[end] - time[start]).astype(int) == length - 1
        whole &= (run[start] == run[end]) & inside[start] & inside[end]
        unusable_before = np.cumsum([0, *(i in self.unusable for i in range(len(time)))])
        found = start[whole & (unusable_before[end + 1] == unusable_before[start])]
        if not len(found):
            raise ContractError(f"{self.folder}: split {split!r} holds no window of {length} consecutive days")
        return found

    def read(self, frame: Frame) -> np.ndarray:
        """One frame, verified.

        Raises:
            ContractError: the shard is missing, cut short, or its bytes are not those that were written.
        """
        return self.read_all([frame])[0]

    def read_all(self, frames: Sequence[Frame]) -> np.ndarray:
        """Frames, (N, C, H, W), verified.

        Raises:
            ContractError: as `read`.
        """
        x_NCHW = np.empty((len(frames), *self.shape), np.float32)
        self.read_into(x_NCHW, frames)
        return x_NCHW

    def read_into(self, into: Iterable[np.ndarray], frames: Sequence[Frame]) -> None:
        """Fill one array (C, H, W) a frame; those that are neighbours in a shard by one request.

        Raises:
            ContractError: as `read`.
        """
        read = (data for part in _neighbours(frames) for data in self._bytes(part))
        for data, into_CHW in zip(read, into, strict=True):
            decode_frame(data, into_CHW)

    def damaged(self, shard: int) -> list[tuple[int, str]]:
        """Frames of a shard that cannot be read, and why."""
        found = []
        for i, frame in enumerate(self.frames):
            if frame.shard == shard:
                try:
                    list(self._bytes([frame]))
                except (ContractError, OSError) as error:
                    found.append((i, str(error)))
        return found

    def _bytes(self, frames: Sequence[Frame]) -> Iterator[memoryview]:
        """What a shard holds of frames that lie side by side, each with the right checksum."""
        path, start = self.files[frames[0].shard], frames[0].offset
        try:
            data = memoryview(read_range(path, start, frames[-1].offset + frames[-1].size))
        except FileNotFoundError:
            raise ContractError(f"{path}: no such file, though the manifest lists it") from None
        for frame in frames:
            part = data[frame.offset - start : frame.offset - start + frame.size]
            if len(part) != frame.size or isal_zlib.crc32(part) != frame.crc32:
                raise ContractError(f"{path}: the checksum of frame {frame.time} does not match; the shard is damaged")
            yield part


def _neighbours(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Frames in runs that lie side by side in one shard."""
    part: list[Frame] = []
    for frame in frames:
        if part:
            last = part[-1]
            gap = frame.offset - (last.offset + last.size)
            if frame.shard != last.shard or not 0 <= gap <= LARGEST_GAP:
                yield part
                part = []
        part.append(frame)
    if part:
        yield part


def open_shards(folder: str | Path, complete: bool = True) -> Manifest:
    """Open a shard set that lies in a folder or at a URL.

    Arguments:
        complete: whether the manifest must be as it was written, and every shard there in its full size.

    Raises:
        ContractError: no manifest, a damaged one, another format, a newer version, or a shard of another size.
    """
    folder = place(folder)
    with reading(folder):
        document = read_json(folder / "manifest.json", "a shard set (`python -m data_prep shards`)")
    check_header(document, FORMAT, VERSION, folder)
    manifest = Manifest(folder, document)
    if complete:
        manifest.check()
        found = sizes(folder)
        for shard in document["shards"]:
            size = found.get(shard["file"], -1)
            if size != shard["bytes"]:
                raise ContractError(
                    f"{folder / shard['file']}: {max(size, 0)} bytes, but the manifest says {shard['bytes']}"
                )
    return manifest
