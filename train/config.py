"""The configuration of a training run: each part stands beside what it configures, this file composes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from slams.model import ModelConfig
from train.data import DataConfig
from train.engine import EngineConfig
from train.optim import OptimConfig

OWN_FOLDERS = ("bundles", "checkpoints", "images", "wandb")  # of a run, in its folder


@dataclass(frozen=True)
class TrainConfig:
    """A training run, whole. Its length and its intervals are in samples, so that they mean the same at any batch.

    Arguments:
        folder: the run's folder: metrics, checkpoints, the best bundle so far, logs.
        shards: shard set to train on, of states or latents.
        bundle: where the trained model goes: the one of the lowest validation loss.
        samples: windows that are learned from, counted each time; rounded up to whole batches.
        validate_every: samples between validations; there is always one at the end.
        validation_windows: at most that many, evenly over the validation years.
        validation_frames: at most that many validation frames in an autoencoder's reconstruction report.
        checkpoint_every: samples between checkpoints; there is always one at the end.
        log_every: samples between lines of metrics.
        time_limit_minutes: after which the run saves and leaves, to be started again; 0 = none.
        wandb: ``offline`` keeps the record in the run's folder.
        project: its name on wandb.
    """

    folder: str
    shards: str
    bundle: str
    model: ModelConfig
    data: DataConfig
    samples: int
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validate_every: int = 32_000
    validation_windows: int = 128
    validation_frames: int = 128
    checkpoint_every: int = 32_000
    log_every: int = 1600
    time_limit_minutes: float = 0.0
    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: str = "slams"

    def __post_init__(self) -> None:
        at_least_one = ("samples", "validate_every", "validation_windows", "validation_frames", "checkpoint_every")
        for name in (*at_least_one, "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is not allowed; at least 0")
        if self.time_limit_minutes < 0:
            raise ValueError(f"time_limit_minutes: {self.time_limit_minutes} is not allowed; at least 0")
        for name in ("folder", "bundle"):
            if "://" in getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; a folder, only `shards` may be a URL")
        self._check_bundle()
        if self.optim.warmup_samples >= self.samples:
            raise ValueError(f"optim.warmup_samples: {self.optim.warmup_samples} is not below samples: {self.samples}")

    def _check_bundle(self) -> None:
        folder, bundle = Path(self.folder).resolve(), Path(self.bundle).resolve()
        if bundle in (folder, *folder.parents):
            raise ValueError(f"bundle: {self.bundle} is not allowed; neither the run's folder nor one above it")
        for name in OWN_FOLDERS:
            if bundle.is_relative_to(folder / name):
                raise ValueError(f"bundle: {self.bundle} is not allowed; {folder / name} is for the run's own work")

    @property
    def steps(self) -> int:
        """Optimizer steps, one a global batch."""
        return math.ceil(self.samples / self.data.batch)

    def due(self, every: int, step: int) -> bool:
        """Whether a multiple of so many samples was reached with this step."""
        return step * self.data.batch // every > (step - 1) * self.data.batch // every
