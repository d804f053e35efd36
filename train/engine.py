"""Processes and the DeepSpeed engine: the only file that sees deepspeed and torch.distributed.

One process, `torchrun` and `srun` are told apart by five environment variables alone. Parameters stay float32 in
every ZeRO stage; bf16 is autocast inside the module, so that the stages share one numerical path.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # it warns when it must guess

import deepspeed
import deepspeed.ops
import torch.distributed as dist

from slams.config import ConfigError

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EngineConfig:
    """How the step is executed; none of it is known to the network.

    Arguments:
        zero_stage: what DeepSpeed partitions over the processes: 0 nothing, 1 optimizer, 2 gradients, 3 weights.
        precision: ``bf16`` is autocast with float32 weights; ``auto`` is bf16 where the machine computes in it.
        gradient_clipping: largest norm of the gradient; 0 for none.
        accumulation: micro-batches a step on each process; the global batch stays what it is.
        channels_last: memory format of the weights; where ZeRO is at work they lie flat, and it has no effect.
        torch_threads: threads a process; 0 leaves torch's choice.
    """

    zero_stage: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_clipping: float = 1.0
    accumulation: int = 1
    channels_last: bool = True
    torch_threads: int = 0

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: {self.zero_stage} is not allowed; 0, 1, 2 or 3")
        if self.gradient_clipping < 0:
            raise ValueError(f"gradient_clipping: {self.gradient_clipping} is not allowed; at least 0")
        if self.accumulation < 1 or self.torch_threads < 0:
            raise ValueError(
                f"accumulation, torch_threads: {self.accumulation}, {self.torch_threads}; at least 1 and at least 0"
            )


@dataclass(frozen=True)
class World:
    """The processes of a run, and what this one is among them."""

    rank: int
    size: int
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, the same on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def agree(self, value: int) -> int:
        """The value that rank 0 holds."""
        found = torch.tensor(value, device=self.device)
        if self.size > 1:
            dist.broadcast(found, 0)
        return int(found)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def launch() -> tuple[int, int, int]:
    """Rank, number of processes and local rank, as the launcher set them; one process if it set nothing.

    Raises:
        ConfigError: only some of the variables are set.
    """
    missing = [name for name in LAUNCH_VARIABLES if name not in os.environ]
    if len(missing) == len(LAUNCH_VARIABLES):
        return 0, 1, 0
    if missing:
        given = [name for name in LAUNCH_VARIABLES if name in os.environ]
        raise ConfigError(f"environment: {', '.join(given)} set, but not {', '.join(missing)}; set all five or none")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


@contextmanager
def opened_world(config: EngineConfig) -> Iterator[World]:
    """Join the other processes. They part in step only when the block ends well; else the launcher ends the others."""
    rank, size, local_rank = launch()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    # No operator of DeepSpeed's own: it would try the compiler now, then build one for a minute; none is used.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed calls two collectives by names that torch is about to change, at every step of ZeRO 3.
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    if size == 1 and "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    world = World(rank, size, device)
    yield world
    world.barrier()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def resolve_precision(config: EngineConfig) -> Precision:
    """What ``auto`` means on this machine."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    known = torch.cpu.get_capabilities()
    return "bf16" if known.get("amx_bf16") or known.get("avx512_bf16") else "fp32"


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

    def __init__(self, task: nn.Module, device: torch.device, enabled: bool) -> None:
        super().__init__()
        self.task, self.kind, self.enabled = task, device.type, enabled

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.enabled):
            return self.task(batch)


class Engine:
    """A task under DeepSpeed: forward, backward, step, save, load.

    Arguments:
        task: batch -> {"loss": scalar, ...}.
        optimizer: over the task's parameters; DeepSpeed partitions it.
        batch: the global batch.
    """

    def __init__(
        self, task: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig, world: World, batch: int
    ) -> None:
        self.config, self.world = config, world
        self.precision = resolve_precision(config)
        self.module = Autocast(task, world.device, self.precision == "bf16")
        settings = _settings(config, batch, micro_batch(batch, config, world.size))
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        if config.channels_last and config.zero_stage == 0:  # after initialize, which sends the weights as bytes
            task.to(memory_format=torch.channels_last)
        # One process has nobody to ask: flattening and copying the gradient would be for nothing.
        self._engine.enable_backward_allreduce = world.size > 1 or config.zero_stage > 0
        self.parameters = list(task.parameters())

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        on_device = {name: value.to(self.world.device, non_blocking=True) for name, value in batch.items()}
        return self._engine(on_device)

    def train(self, mode: bool) -> None:
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def gradient_norm(self) -> Tensor | None:
        """Norm of the whole gradient before the step; known only where gradients are not partitioned."""
        if self.config.zero_stage > 0:
            return None
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, learning_rate: float, norm: Tensor | None) -> float | None:
        """Move the weights, at the end of a step's micro-batches; clears the gradient.

        Arguments:
            norm: what `gradient_norm` said.

        Returns:
            The norm of the gradient, where it is known only now.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if norm is not None and self.config.gradient_clipping:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.gradient_clipping, norm)
        self._engine.step()
        late = self._engine.get_global_grad_norm() if norm is None else None
        return None if late is None else float(late)

    def accumulate(self) -> None:
        """End a micro-batch that is not the step's last."""
        self._engine.step()

    def local(self) -> list[Tensor]:
        """What this process holds of each parameter: all of it, or under ZeRO 3 its share."""
        return [getattr(p, "ds_tensor", p).detach() for p in self.parameters]

    def whole(self) -> AbstractContextManager[None]:
        """Within it every process holds every parameter whole, to be read."""
        return deepspeed.zero.GatheredParameters(self.parameters) if self.config.zero_stage == 3 else nullcontext()

    def agree_on_buffers(self) -> None:
        """Running statistics differ between processes, which saw other samples: take those of rank 0."""
        if self.world.size > 1:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, 0)

    def save(self, folder: Path) -> None:
        """Weights and optimizer; every process calls it."""
        # The mark lets DeepSpeed's own converter change the number of processes later.
        mark = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self._engine.save_checkpoint(str(folder), tag="engine", client_state=mark, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restore exactly what `save` wrote."""
        self._engine.load_checkpoint(str(folder), tag="engine")


def _settings(config: EngineConfig, batch: int, micro: int) -> dict[str, object]:
    """DeepSpeed's configuration. Clipping is always written: its default is 1.0, not none.

    Stage 0 is clipped in `Engine.step`, from the norm that was computed anyway.
    """
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping if config.zero_stage else 0.0,
        # Threshold 0: no small parameter stays whole between steps, so a share is all there is of it.
        "zero_optimization": {"stage": config.zero_stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
