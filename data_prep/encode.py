"""Shards of states -> shards of latents: the encoder applied once, so that the score network never needs it.

Latents are standardised a channel with the mean and standard deviation of the train years' latents, because the
perturbation kernel assumes unit variance; both numbers travel in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from data_prep.config import EncodeConfig, PrepConfig
from data_prep.shards import write_shards
from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.config import to_dict
from slams.contracts.bundle import check_same_make, open_bundle
from slams.contracts.envelope import is_finished, written_aside
from slams.contracts.shards import Frame, Manifest, open_shards
from slams.model import open_autoencoder


def plan(config: EncodeConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Path(config.path).exists() else f"to be encoded by {config.autoencoder}"
    return [f"latent shards {config.path}: {done}"]


def run(config: EncodeConfig, whole: PrepConfig) -> None:
    """Write the latent shards, unless they stand already.

    Raises:
        ContractError: the autoencoder was not trained on these shards' channels and statistics.
    """
    if whole.shards is None:
        raise ValueError("config: has no section 'shards', which this stage needs")
    source, bundle, path = open_shards(whole.shards.path), open_bundle(config.autoencoder), Path(config.path)
    check_same_make(bundle, source.spec, source.document["statistics_sha256"], source.folder)
    made_by = to_dict(config) | {"autoencoder_sha256": bundle.checksum}
    if path.exists() and is_finished(path, open_shards(path).document["config"], made_by):
        return
    network = open_autoencoder(bundle)
    latent = _moments(network, source, config.batch)
    with written_aside(path) as folder:
        write_shards(
            folder,
            _standardised(network, source, config.batch, latent),
            spec=source.spec,
            statistics=source.statistics(),
            frames_per_shard=config.frames_per_shard,
            keepbits=config.keepbits,
            document={
                "config": made_by,
                "content": "latent",
                "splits": source.document["splits"],
                "autoencoder": bundle.checksum,
                "latent": latent,
            },
        )


@torch.inference_mode()
def _encoded(
    network: Autoencoder | PaperAutoencoder, source: Manifest, frames: Sequence[Frame], batch: int, label: str
) -> Iterator[tuple[list[Frame], np.ndarray]]:
    """Latents in batches, (B, Z, h, w)."""
    for i in track(range(0, len(frames), batch), description=label, transient=True):
        part = list(frames[i : i + batch])
        x = torch.from_numpy(np.stack([source.read(frame) for frame in part]))
        yield part, network.encode(x).numpy()


def _moments(network: Autoencoder | PaperAutoencoder, source: Manifest, batch: int) -> dict[str, Any]:
    """Mean and standard deviation of each latent channel over the train years."""
    train = [source.frames[i] for i in source.windows("train", 1)]
    count, total, square = 0, np.zeros(1), np.zeros(1)
    for _, z in _encoded(network, source, train, batch, "latent statistics"):
        z = z.astype(np.float64)
        count += z[:, 0].size
        total, square = total + z.sum((0, 2, 3)), square + (z**2).sum((0, 2, 3))
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(square / count - mean**2).tolist()}


def _standardised(
    network: Autoencoder | PaperAutoencoder, source: Manifest, batch: int, latent: dict[str, Any]
) -> Iterator[tuple[np.datetime64, int, np.ndarray]]:
    mean, std = (np.array(latent[part], np.float32)[:, None, None] for part in ("mean", "std"))
    for part, z in _encoded(network, source, source.frames, batch, "latent shards"):
        for frame, values in zip(part, (z - mean) / std, strict=True):
            yield frame.time, frame.run, values
