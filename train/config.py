"""The configuration of a training run: each part stands beside what it configures, this file composes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from slams.model import ModelConfig
from train.data import DataConfig
from train.engine import EngineConfig
from train.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run, whole.

    Arguments:
        folder: the run's folder: metrics, checkpoints, logs.
        shards: shard set to train on, of states or latents.
        bundle: where the trained model goes.
        steps: optimizer steps.
        validate_every: steps between validations; there is always one at the end.
        validation_batches: at most that many global batches of validation windows.
        validation_frames: at most that many validation frames in an autoencoder's reconstruction report.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        log_every: steps between lines of metrics.
        wandb: ``offline`` keeps the record in the run's folder.
        project: its name on wandb.
    """

    folder: str
    shards: str
    bundle: str
    model: ModelConfig
    data: DataConfig
    steps: int
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validate_every: int = 1000
    validation_batches: int = 4
    validation_frames: int = 128
    checkpoint_every: int = 1000
    log_every: int = 50
    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: str = "slams"

    def __post_init__(self) -> None:
        at_least_one = ("steps", "validate_every", "validation_batches", "validation_frames", "checkpoint_every")
        for name in (*at_least_one, "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is not allowed; at least 0")
        if self.optim.warmup_steps >= self.steps:
            raise ValueError(f"optim.warmup_steps: {self.optim.warmup_steps} is not below steps: {self.steps}")
