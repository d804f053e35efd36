"""What a run costs, known before it begins: arithmetic, and the memory of a process.

The task is built and passed through once, forward and backward, with tensors that have a shape but no numbers, so that
a network too large for this machine is counted like any other. What is counted are model FLOPs: what is computed a
second time to save memory does not count.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from slams.contracts.shards import Manifest
from slams.model import build_task
from slams.statistics import N_HARMONICS
from train.config import TrainConfig
from train.execution import BUCKET, Autocast, micro_batch, recompute_activations, resolve_precision
from train.machine import computes_in_bf16
from train.prior import fit_windows

GIB = 2**30
FLOAT = 4  # bytes; weights, gradients, moments and average are float32 in every ZeRO stage
LIVE = 1_000_000_000  # numbers that stage 3 keeps gathered, DeepSpeed's default
ASSUMED_PROCESSES = (1, 8, 64)


@dataclass(frozen=True)
class Pass:
    """One micro-batch, forward and backward.

    Arguments:
        parameters: of the network.
        buffers: bytes of what is fitted and not learned, the Gaussian prior above all.
        activations: bytes, the most that lives at once beside weights, buffers and gradients.
        flops: model FLOPs of a sample.
    """

    parameters: int
    buffers: int
    activations: int
    flops: float


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds while it trains.

    Arguments:
        weights, gradients, average: float32; ``average`` is the moving average of the weights.
        optimizer: the two moments of AdamW, and under ZeRO the copy of the weights that it moves.
        buffers, activations: see `Pass`.
        exchange: DeepSpeed's buffers for other processes' numbers.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    buffers: float
    exchange: float
    activations: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))


def memory(passed: Pass, stage: int, processes: int) -> Memory:
    """What a process of so many holds under a ZeRO stage (Rajbhandari et al. 2020, figure 1, in float32).

    With ``engine.offload`` what is told of the optimizer lies in main memory.
    """
    whole = FLOAT * passed.parameters
    share = whole / processes
    gathered = FLOAT * min(passed.parameters, LIVE) if stage == 3 else 0
    bucket = FLOAT * BUCKET if stage else FLOAT * min(passed.parameters, BUCKET) * (processes > 1)
    return Memory(
        weights=share if stage == 3 else whole,
        gradients=share if stage >= 2 else whole,
        optimizer=3 * share if stage else 2 * whole,
        average=share if stage == 3 else whole,
        buffers=passed.buffers,
        exchange=bucket + gathered,
        activations=passed.activations,
    )


def count(config: TrainConfig, manifest: Manifest, windows: int = 1) -> Pass:
    """Pass so many windows through the task of a configuration."""
    once = _passed(config, manifest, windows)
    if not config.engine.activation_checkpointing:
        return once
    return replace(once, activations=_passed(config, manifest, windows, recompute_activations).activations)


def _passed(
    config: TrainConfig, manifest: Manifest, windows: int, prepare: Callable[[nn.Module], None] = nn.Module.train
) -> Pass:
    """Of the ways that a batch can go through the Gaussian prior, all windows without a background is counted."""
    device, bf16 = torch.device(accelerator()), resolve_precision(config.engine, computes_in_bf16()) == "bf16"
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = _task(config, manifest, device)
        prepare(task)
        batch = {name: torch.empty(shape, device=device) for name, shape in _shapes(config, manifest, windows)}
        flops, live = FlopCounterMode(display=False), LiveMemory([*task.parameters(), *task.buffers(), *batch.values()])
        _forget_gradients(task, live)
        with Undecided(), flops, live:
            Autocast(task, device, bf16)(batch)["loss"].backward()
    return Pass(
        parameters=sum(p.numel() for p in task.parameters()),
        buffers=sum(b.untyped_storage().nbytes() for b in task.buffers()),
        activations=live.peak + sum(x.untyped_storage().nbytes() for x in batch.values()),
        flops=flops.get_total_flops() / windows,
    )


def _task(config: TrainConfig, manifest: Manifest, device: torch.device) -> nn.Module:
    with torch.device(device):
        task = build_task(config.model, manifest.spec, manifest.shape, manifest.statistics())
    for module in task.modules():  # what was made of arrays lies in main memory; `Module.to` refuses imagined tensors
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return task


def _shapes(config: TrainConfig, manifest: Manifest, windows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a batch, as `train.data.loader` makes it."""
    model = config.model
    window = (windows, model.lead + model.frames, *manifest.shape)
    yield "x", window
    yield "day", (windows, model.frames, 1 + 2 * N_HARMONICS)
    if model.kind == "score":
        yield from (("noise", window), ("t", (windows,)), ("chance", (windows,)))


class Undecided(TorchFunctionMode):
    """Answers with no where a network asks something of numbers that are not there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return False if func is Tensor.__bool__ else func(*args, **(kwargs or {}))


class LiveMemory(TorchDispatchMode):
    """The most memory that results of operations hold at once: `peak`, bytes.

    Arguments:
        known: tensors that do not count.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._bytes = {storage._cdata: 0 for storage in self._known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return found

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._bytes:
            self._bytes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._bytes.pop(key)

    def forget(self, tensor: Tensor) -> None:
        """Count a tensor elsewhere from now on."""
        key = tensor.untyped_storage()._cdata
        self.now -= self._bytes[key]
        self._bytes[key] = 0


def _forget_gradients(task: nn.Module, live: LiveMemory) -> None:
    for parameter in task.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: live.forget(p.grad))


def accelerator() -> str:
    """Where a run on this machine computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def available() -> int:
    """Memory of the device, or the machine's where there is none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else physical_memory()


def physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cached_bytes(config: TrainConfig, manifest: Manifest) -> int:
    """Decoded frames that the reading processes of one training process keep, in main memory."""
    readers = config.data.workers or 1
    return readers * min(config.data.cache_frames, len(manifest.frames)) * _frame_bytes(manifest)


def fit_bytes(config: TrainConfig, manifest: Manifest) -> int:
    """Main memory that fitting the Gaussian prior takes on rank 0.

    The windows with the day before each, the same again while one is made of the other, and noise for one day.
    """
    if not config.model.corrects_gaussian:
        return 0
    return len(fit_windows(config, manifest)) * (2 * (1 + config.model.frames) + 1) * _frame_bytes(manifest)


def _frame_bytes(manifest: Manifest) -> int:
    channels, height, width = manifest.shape
    return FLOAT * channels * height * width


def estimate(config: TrainConfig, manifest: Manifest, processes: int) -> list[str]:
    """What a run of so many processes would cost, in lines, with what other numbers of processes would hold.

    Raises:
        ValueError: the machine has too little memory for it; the sentence names a field, what is needed and what there
            is.
    """
    divided = config.data.batch / config.engine.accumulation
    numbers = sorted({processes, *(n for n in ASSUMED_PROCESSES if divided % n == 0)})
    passed = {n: count(config, manifest, micro_batch(config.data.batch, config.engine, n)) for n in numbers}
    check_fits(config, manifest, memory(passed[processes], config.engine.zero_stage, processes))
    names = ("ZeRO", "processes", *(field.name for field in fields(Memory)), "total")
    cached, fitted = (held / GIB for held in (cached_bytes(config, manifest), fit_bytes(config, manifest)))
    return [
        f"parameters: {passed[processes].parameters}, precision {resolve_precision(config.engine, computes_in_bf16())}",
        f"arithmetic: {passed[processes].flops / 1e9:.4g} GFLOP a sample, forward and backward",
        "memory of one process in GiB:",
        "  ".join(names),
        *(_row(names, stage, n, memory(passed[n], stage, n)) for n in numbers for stage in range(4)),
        f"main memory besides: {cached:.2f} GiB of frames, {fitted:.2f} GiB while the prior is fitted",
    ]


def _row(names: Sequence[str], stage: int, processes: int, held: Memory) -> str:
    cells = [str(stage), str(processes), *(f"{value / GIB:.2f}" for value in (*astuple(held), held.total))]
    return "  ".join(cell.rjust(len(name)) for name, cell in zip(names, cells, strict=True))


def check_fits(config: TrainConfig, manifest: Manifest, held: Memory) -> None:
    """Refuse what this machine has no memory for.

    Raises:
        ValueError: naming a field that would change it.
    """
    cached, moved = cached_bytes(config, manifest), held.optimizer if config.engine.offload else 0.0
    host = {"data.cache_frames": cached, "engine.offload": moved}
    parts = {"engine.accumulation": held.activations, "engine.zero_stage": held.total - held.activations - moved}
    _refuse(config, parts | ({} if torch.cuda.is_available() else host), available())
    _refuse(config, host | {"model.frames": fit_bytes(config, manifest)}, physical_memory())


def _refuse(config: TrainConfig, parts: dict[str, float], there: float) -> None:
    needed = sum(parts.values())
    if needed > there:
        field = max(parts, key=lambda name: parts[name])
        section, name = field.split(".")
        amounts = f"a process needs {needed / GIB:.3g} GiB, and this machine has {there / GIB:.3g} GiB"
        raise ValueError(f"{field}: with {getattr(getattr(config, section), name)} {amounts}")
