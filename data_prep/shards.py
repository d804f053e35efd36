"""Write frames as shards: WebDataset tars in time order, then the manifest that indexes them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from slams.contracts.envelope import header, sha256, write_json
from slams.contracts.shards import COMPRESSOR, FORMAT, MEMBER, VERSION, encode_frame
from slams.spec import StateSpec
from slams.statistics import Statistics

TAR_BLOCK = 512


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
            writer, offset = TarWriter(str(folder / shards[-1]["file"])), 0
        data, shape = encode_frame(values, keepbits), values.shape
        assert writer is not None
        writer.write({"__key__": str(time).replace("-", ""), MEMBER: data})
        entry = {"time": str(time), "run": int(run), "offset": offset + TAR_BLOCK, "size": len(data)}
        shards[-1]["frames"].append(entry | {"crc32": zlib.crc32(data)})
        offset += TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK
    _close(writer, folder, shards)
    config = document.pop("config")
    manifest = header(FORMAT, VERSION, config) | document | {"spec": spec.to_json(), "shape": list(shape)}
    manifest |= {"codec": {"bitround_keepbits": keepbits, "compressor": COMPRESSOR.get_config()}}
    manifest |= {"statistics_sha256": sha256(folder / "statistics.safetensors"), "shards": shards}
    write_json(folder / "manifest.json", manifest)


def _close(writer: TarWriter | None, folder: Path, shards: list[dict[str, Any]]) -> None:
    if writer is not None:
        writer.close()
        path = folder / shards[-1]["file"]
        shards[-1] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
