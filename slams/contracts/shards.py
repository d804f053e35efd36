"""Shards: frames in time order in WebDataset tars, with a manifest that indexes every member.

A sample is one frame: key ``YYYYMMDD``, member ``frame.blosc`` = float32 (C, H, W), rounded to a stated number
of mantissa bits and compressed by numcodecs. The manifest gives each member's offset, size and CRC32, so a
window of frames can be read in any order, straight from the tars, and no damage passes unseen.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import BitRound, Blosc

from slams.contracts.archive import read_statistics
from slams.contracts.envelope import ContractError, check_header, read_json
from slams.spec import StateSpec
from slams.statistics import Statistics

FORMAT, VERSION = "slams-shards", 1
MEMBER = "frame.blosc"
COMPRESSOR = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)


def encode_frame(frame_CHW: np.ndarray, keepbits: int) -> bytes:
    """A frame as bytes, each value rounded to that many mantissa bits (relative error below 2^-keepbits)."""
    rounded = BitRound(keepbits=keepbits).encode(np.ascontiguousarray(frame_CHW, np.float32))
    return bytes(COMPRESSOR.encode(rounded))


def decode_frame(data: bytes, shape_CHW: tuple[int, ...]) -> np.ndarray:
    """The inverse of `encode_frame`, but for the rounding."""
    return np.frombuffer(COMPRESSOR.decode(data), np.float32).reshape(shape_CHW)


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
    """An opened shard set."""

    folder: Path
    document: dict[str, Any]

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

    def windows(self, split: str, length: int) -> np.ndarray:
        """First frame of every window of ``length`` consecutive days inside a split and a run, (N,).

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
        found = start[whole & (run[start] == run[end]) & inside[start] & inside[end]]
        if not len(found):
            raise ContractError(f"{self.folder}: split {split!r} holds no window of {length} consecutive days")
        return found

    def read(self, frame: Frame) -> np.ndarray:
        """One frame, verified.

        Raises:
            ContractError: the shard is missing, cut short, or its bytes are not those that were written.
        """
        path = self.files[frame.shard]
        try:
            with path.open("rb") as file:
                file.seek(frame.offset)
                data = file.read(frame.size)
        except FileNotFoundError:
            raise ContractError(f"{path}: no such file, though the manifest lists it") from None
        if len(data) != frame.size or zlib.crc32(data) != frame.crc32:
            raise ContractError(f"{path}: the checksum of frame {frame.time} does not match; the shard is damaged")
        return decode_frame(data, self.shape)


def open_shards(folder: str | Path) -> Manifest:
    """Open a shard set.

    Raises:
        ContractError: no manifest, another format, a newer version, or a shard of another size.
    """
    folder = Path(folder)
    document = read_json(folder / "manifest.json", "a shard set (`python -m data_prep shards`)")
    check_header(document, FORMAT, VERSION, folder)
    for shard in document["shards"]:
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else -1
        if size != shard["bytes"]:
            raise ContractError(f"{path}: {max(size, 0)} bytes, but the manifest says {shard['bytes']}")
    return Manifest(folder, document)
