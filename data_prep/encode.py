"""Shards of states -> shards of latents: the encoder applied once, so that the score network never needs it.

Latents are standardised a channel with the mean and standard deviation of the train years' latents, because the
perturbation kernel assumes unit variance; both numbers travel in the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.config import EncodeConfig, PrepConfig, comparable
from data_prep.shards import MANIFEST, Intact, Part, Timed, parts, write_manifest, write_shard
from data_prep.work import Work
from data_prep.workers import workers
from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.config import to_dict
from slams.contracts.bundle import check_same_make, open_bundle
from slams.contracts.envelope import alone, check_source, is_finished
from slams.contracts.shards import Frame, Manifest, open_shards
from slams.model import open_autoencoder

STATISTICS_FRAMES = 512  # a task
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plan(config: EncodeConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Work(Path(config.path)).stands(MANIFEST) else f"to be encoded by {config.autoencoder}"
    return [f"latent shards {config.path}: {done}"]


def run(config: EncodeConfig, whole: PrepConfig) -> None:
    """Write the latent shards, unless they stand already.

    Raises:
        ContractError: the autoencoder was not trained on these shards' channels and statistics.
    """
    with alone(config.path):
        _run(config, whole)


def _run(config: EncodeConfig, whole: PrepConfig) -> None:
    if whole.shards is None:
        raise ValueError("config: has no section 'shards', which this stage needs")
    source, bundle, work = open_shards(whole.shards.path), open_bundle(config.autoencoder), Work(Path(config.path))
    check_same_make(bundle, source.spec, source.document["statistics_sha256"], source.folder)
    made_by = to_dict(config) | {"autoencoder_sha256": bundle.checksum}
    work.tidy()
    content, made_from = source.document.get("archive_sha256", ""), _content(source)
    old = open_shards(work.path).document if work.stands(MANIFEST) else {}
    if is_finished(work.path, old.get("config"), made_by):
        check_source(work.path, old.get("archive_sha256"), source.folder, content)
        return check_source(work.path, old.get("shards_sha256"), source.folder, made_from)
    made_of = {"config": comparable(made_by), "shards": made_from}
    if not work.goes_on(made_of):
        work.aside.mkdir(parents=True)
        work.begun(made_of)
    splits = {"splits": source.document["splits"], "autoencoder": bundle.checksum, "archive_sha256": content}
    splits |= {"shards_sha256": made_from}
    with workers(whole.workers) as in_order:
        train = parts(source.windows("train", 1), STATISTICS_FRAMES, "statistics")
        given = config.autoencoder, bundle.checksum, source.folder, config.batch
        latent = moments(work.complete(Moments(*given), train, in_order, "latent statistics"))
        shard = LatentShard(*given, work.aside, config.keepbits, latent)
        every = parts(np.arange(len(source.frames)), config.frames_per_shard)
        shards = work.complete(shard, every, in_order, "latent shards", Intact(work.aside))
    document = {"config": made_by, "content": "latent"} | splits | {"latent": latent}
    write_manifest(work.aside, shards, source.spec, source.statistics(), config.keepbits, document)
    work.become()


def _content(source: Manifest) -> str:
    """Checksum of what a shard set holds."""
    return hashlib.sha256("".join(shard["sha256"] for shard in source.document["shards"]).encode()).hexdigest()


@lru_cache(maxsize=1)
def _network(autoencoder: str, checksum: str) -> Autoencoder | PaperAutoencoder:
    """Opened once a process, and again where another bundle lies there; on this machine's GPU if it has one."""
    torch.backends.cudnn.allow_tf32 = False  # else a GPU's latents are those of a CPU to 1e-3 only
    return open_autoencoder(open_bundle(autoencoder)).to(DEVICE)


def _encode(network: Autoencoder | PaperAutoencoder, x_BCHW: np.ndarray) -> np.ndarray:
    """Latents, (B, Z, h, w), by one thread: how many share the work would show in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return network.encode(torch.from_numpy(x_BCHW).to(DEVICE)).cpu().numpy()
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Encoder:
    """Latents of frames of a shard set.

    Arguments:
        autoencoder, checksum: its bundle, and which one.
        source: shard set of states.
        batch: frames encoded at once.
    """

    autoencoder: str
    checksum: str
    source: Path
    batch: int

    @torch.inference_mode()
    def encoded(self, where: tuple[int, ...]) -> Iterator[tuple[list[Frame], np.ndarray]]:
        """Frames and their latents in batches, (B, Z, h, w)."""
        source, network = open_shards(self.source), _network(self.autoencoder, self.checksum)
        for i in range(0, len(where), self.batch):
            part = [source.frames[j] for j in where[i : i + self.batch]]
            yield part, _encode(network, source.read_all(part))


@dataclass(frozen=True)
class Moments(Encoder):
    """Sums of latents over frames."""

    def __call__(self, part: Part) -> dict[str, Any]:
        """Number of values, and their sum and sum of squares by channel."""
        count, total, square = 0, np.zeros(1), np.zeros(1)
        for _, z in self.encoded(part.where):
            z = z.astype(np.float64)
            count += z[:, 0].size
            total, square = total + z.sum((0, 2, 3)), square + (z**2).sum((0, 2, 3))
        return {"count": count, "total": total.tolist(), "square": square.tolist()}


def moments(sums: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each latent channel."""
    count = sum(part["count"] for part in sums)
    mean, square = (np.sum([part[name] for part in sums], axis=0) / count for name in ("total", "square"))
    return {"mean": mean.tolist(), "std": np.sqrt(square - mean**2).tolist()}


@dataclass(frozen=True)
class LatentShard(Encoder):
    """Writes a shard of standardised latents."""

    folder: Path
    keepbits: int
    latent: dict[str, Any]

    def __call__(self, part: Part) -> dict[str, Any]:
        """Write a shard and return its entry in the manifest."""
        return write_shard(self.folder / f"{part.name}.tar", self._standardised(part), self.keepbits)

    def _standardised(self, part: Part) -> Iterator[Timed]:
        mean, std = (np.array(self.latent[name], np.float32)[:, None, None] for name in ("mean", "std"))
        for frames, z in self.encoded(part.where):
            for frame, values in zip(frames, (z - mean) / std, strict=True):
                yield frame.time, frame.run, values
