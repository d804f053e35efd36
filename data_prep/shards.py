"""Archive -> shards: standardised frames in WebDataset tars in time order, then the manifest that indexes them."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from webdataset import TarWriter

from data_prep.config import PrepConfig, ShardsConfig
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import header, is_finished, sha256, write_json, written_aside
from slams.contracts.shards import COMPRESSOR, FORMAT, MEMBER, VERSION, encode_frame, open_shards
from slams.spec import StateSpec
from slams.statistics import Statistics


def plan(config: ShardsConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Path(config.path).exists() else f"to be written from {whole.archive.path}"
    return [f"shards {config.path}: {config.frames_per_shard} frames a shard: {done}"]


def run(config: ShardsConfig, whole: PrepConfig) -> None:
    """Write the shards of every split's days, unless they stand already.

    Raises:
        ContractError: no archive, or shards of another configuration in the way.
    """
    path, made_by = Path(config.path), to_dict(config) | {"archive": to_dict(whole.archive)}
    if path.exists() and is_finished(path, open_shards(path).document["config"], made_by):
        return
    archive = open_archive(whole.archive.path)
    with written_aside(path) as folder:
        write_shards(
            folder,
            _frames(archive),
            spec=archive.spec,
            statistics=archive.statistics(),
            frames_per_shard=config.frames_per_shard,
            keepbits=config.keepbits,
            document={"config": made_by, "content": "state", "splits": archive.splits},
        )


def _frames(archive: Archive) -> Iterator[tuple[np.datetime64, int, np.ndarray]]:
    """Standardised frames of every split in time order; a day on which a whole modality is missing is left out."""
    statistics = archive.statistics()
    days = np.sort(np.concatenate([archive.days(split) for split in archive.splits]))
    blocks = list(archive.blocks(days))
    for block in track(blocks, description="shards", transient=True):
        x = statistics.standardise(archive.read(block), archive.time[block])
        for i, frame in zip(block, x, strict=True):
            if np.isfinite(frame).any(axis=(1, 2)).all():
                yield archive.time[i], int(archive.run[i]), frame


def write_shards(
    folder: Path,
    frames: Iterable[tuple[np.datetime64, int, np.ndarray]],
    *,
    spec: StateSpec,
    statistics: Statistics,
    frames_per_shard: int,
    keepbits: int,
    document: dict[str, Any],
) -> None:
    """Write frames (valid day, run, values (C, H, W)) in time order, then the manifest.

    Arguments:
        document: ``config``, ``content``, ``splits``, and for latents ``autoencoder`` and ``latent``.
    """
    statistics.save(folder / "statistics.safetensors")
    shards: list[dict[str, Any]] = []
    writer: TarWriter | None = None
    shape: tuple[int, ...] = ()
    for i, (time, run, values) in enumerate(frames):
        if i % frames_per_shard == 0:
            _close(writer, folder, shards)
            shards.append({"file": f"frames-{len(shards):05d}.tar", "frames": []})
            writer = TarWriter(str(folder / shards[-1]["file"]), mtime=0)  # no clock: same frames, same bytes
        data, shape = encode_frame(values, keepbits), values.shape
        assert writer is not None
        writer.write({"__key__": str(time).replace("-", ""), MEMBER: data})
        entry = {"time": str(time), "run": int(run), "size": len(data), "crc32": zlib.crc32(data)}
        shards[-1]["frames"].append(entry)
    _close(writer, folder, shards)
    config = document.pop("config")
    manifest = header(FORMAT, VERSION, config) | document | {"spec": spec.to_json(), "shape": list(shape)}
    manifest |= {"codec": {"bitround_keepbits": keepbits, "compressor": COMPRESSOR.get_config()}}
    manifest |= {"statistics_sha256": sha256(folder / "statistics.safetensors"), "shards": shards}
    write_json(folder / "manifest.json", manifest)


def _close(writer: TarWriter | None, folder: Path, shards: list[dict[str, Any]]) -> None:
    """Close a shard and enter its size, checksum, and where each member's bytes begin."""
    if writer is None:
        return
    writer.close()
    path = folder / shards[-1]["file"]
    with tarfile.open(path) as tar:
        for frame, member in zip(shards[-1]["frames"], tar, strict=True):
            frame["offset"] = member.offset_data
    shards[-1] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
