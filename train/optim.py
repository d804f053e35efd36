"""The optimizer's parameter groups, its schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

EMA_RAMP = 0.05  # the half-life is at most this share of the samples seen (Karras et al. 2024)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and the average of the weights.

    Arguments:
        learning_rate: the peak.
        weight_decay: of matrices, kernels and the scales (C, 1, 1) of norms over channels; of vectors, which biases
            and the scales of other norms are, none.
        schedule: after the warm-up, ``cosine`` or ``linear`` to zero, or ``constant``.
        warmup_samples: of a linear rise from zero.
        ema_half_life_samples: samples after which a weight counts half in the average.
    """

    learning_rate: float = 2e-4
    weight_decay: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_samples: int = 0
    ema_half_life_samples: int = 5000

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate, weight_decay: {self.learning_rate}, {self.weight_decay}; above 0 and at least 0"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1, beta2: {self.beta1}, {self.beta2}; at least 0 and below 1")
        if self.warmup_samples < 0 or self.ema_half_life_samples < 1:
            raise ValueError(
                f"warmup_samples, ema_half_life_samples: {self.warmup_samples}, {self.ema_half_life_samples}; "
                "at least 0 and at least 1"
            )


def build_optimizer(task: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW without decay of vectors: biases, and the scales of most norms."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=betas, fused=True)


def learning_rate(config: OptimConfig, samples: int, batch: int, last: int) -> float:
    """The rate of the step that begins after so many samples of ``last``, a function of them alone: nothing to save."""
    if samples < config.warmup_samples:
        return config.learning_rate * (samples + batch) / (config.warmup_samples + batch)
    progress = (samples - config.warmup_samples) / max(1, last - config.warmup_samples)
    left = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * left[config.schedule]


class Ema:
    """Exponential moving average of the weights, in float32.

    Arguments:
        weights: the tensors to follow; they are read at each `update`.
        half_life_samples: samples after which a weight counts half.
        batch: samples a step.
    """

    def __init__(self, weights: list[Tensor], half_life_samples: int, batch: int) -> None:
        self.weights, self.half_life, self.batch = weights, half_life_samples, batch
        self.average = [w.detach().clone().float() for w in weights]

    def update(self, steps_done: int) -> None:
        """Follow the weights after a step."""
        half_life = min(self.half_life, EMA_RAMP * steps_done * self.batch)
        torch._foreach_lerp_(self.average, self.weights, 1 - 0.5 ** (self.batch / half_life))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the network holds the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def load(self, average: list[Tensor]) -> None:
        """Restore what was saved of `average`."""
        for mine, saved in zip(self.average, average, strict=True):
            mine.copy_(saved)
