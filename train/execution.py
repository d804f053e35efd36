"""How a step is executed, unknown to the networks: in which precision, in how many parts, recomputing activations."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slams.autoencoder import ResidualBlock
from slams.config import ConfigError
from slams.unet import Block, ModulatedBlock

RESIDUAL_BLOCKS = (Block, ModulatedBlock, ResidualBlock)
BUCKET = 50_000_000  # numbers exchanged at once under ZeRO; DeepSpeed's default, ten times as many, takes 2 GB
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EngineConfig:
    """How the step is executed; none of it is known to the network.

    Arguments:
        zero_stage: what DeepSpeed partitions over the processes: 0 nothing, 1 optimizer, 2 gradients, 3 weights.
        precision: ``bf16`` is autocast with float32 weights; ``auto`` is bf16 where all machines compute in it,
            and in a run that goes on what it was before.
        gradient_clipping: largest norm of the gradient; 0 for none.
        accumulation: micro-batches a step on each process; the global batch stays what it is.
        channels_last: memory format of the weights; where ZeRO is at work they lie flat, and it has no effect.
        torch_threads: threads a process; 0 leaves torch's choice.
        activation_checkpointing: keep less for the backward pass and compute residual blocks twice; same gradient.
        offload: keep the optimizer in the processor's memory, for a GPU that is too small (ZeRO stage 1 and above).
        compile: run the task through `torch.compile`; the first steps take a minute.
    """

    zero_stage: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_clipping: float = 1.0
    accumulation: int = 1
    channels_last: bool = True
    torch_threads: int = 0
    activation_checkpointing: bool = False
    offload: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: {self.zero_stage} is not allowed; 0, 1, 2 or 3")
        if self.gradient_clipping < 0:
            raise ValueError(f"gradient_clipping: {self.gradient_clipping} is not allowed; at least 0")
        if self.accumulation < 1 or self.torch_threads < 0:
            raise ValueError(
                f"accumulation, torch_threads: {self.accumulation}, {self.torch_threads}; at least 1 and at least 0"
            )
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: true is not allowed with zero_stage 0, which moves nothing; 1, 2 or 3")


def resolve_precision(config: EngineConfig, bf16: bool) -> Precision:
    """What ``auto`` means where every process computes in bf16, or not every one does."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if bf16 else "fp32"


def micro_batch(batch: int, config: EngineConfig, n_processes: int) -> int:
    """Windows a micro-batch on one process.

    Raises:
        ConfigError: the global batch does not divide.
    """
    parts = n_processes * config.accumulation
    if batch % parts:
        raise ConfigError(
            f"data.batch: {batch} does not divide over {n_processes} processes x {config.accumulation} "
            f"micro-batches; a multiple of {parts} is needed"
        )
    return batch // parts


class Autocast(nn.Module):
    """The task computed in bf16 where that is safe. Inside the module, so that DeepSpeed sees float32 alone."""

    def __init__(self, task: nn.Module, device: torch.device, enabled: bool = False) -> None:
        super().__init__()
        self.task, self.kind, self.enabled = task, device.type, enabled

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.enabled):
            return self.task(batch)


def recompute_activations(task: nn.Module) -> None:
    """Keep only what enters each residual block, and compute the block again when its gradient is due.

    Raises:
        ConfigError: the network has no residual blocks.
    """
    blocks = [module for module in task.modules() if isinstance(module, RESIDUAL_BLOCKS)]
    if not blocks:
        raise ConfigError("engine.activation_checkpointing: true is not allowed; this network has no residual blocks")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def check_machine(config: EngineConfig, device: torch.device) -> None:
    """Refuse what this machine cannot do.

    Raises:
        ConfigError: nothing to offload from, or no C++ compiler, which `torch.compile` needs on a CPU.
    """
    if device.type != "cpu":
        return
    if config.offload:
        raise ConfigError("engine.offload: true needs a GPU; without one the optimizer is in this memory anyway")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and shutil.which(compiler) is None:
        raise ConfigError(f"engine.compile: true needs a C++ compiler, but {compiler} is not found; set it to false")
