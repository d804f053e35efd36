"""Processes and the DeepSpeed engine: the only file that sees deepspeed and torch.distributed.

Parameters stay float32 in every ZeRO stage; bf16 is autocast inside the module, so that the stages share one
numerical path.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # it warns when it must guess

import deepspeed
import deepspeed.ops
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from slams.config import ConfigError
from train import reshard
from train.execution import (
    BUCKET,
    Autocast,
    EngineConfig,
    Precision,
    check_machine,
    micro_batch,
    recompute_activations,
    resolve_precision,
)
from train.launch import ADDRESS, ALONE, LAUNCH_VARIABLES, Place, check_host, launch
from train.machine import Machine, check_together, this_machine

PATIENCE = timedelta(minutes=30)  # of a process for the others; DeepSpeed's own is 10 minutes
log = logging.getLogger("slams.train")


@dataclass(frozen=True)
class World:
    """The processes of a run, and what this one is among them."""

    rank: int
    size: int
    device: torch.device
    bf16: bool  # whether every process computes in that

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


@contextmanager
def opened_world(config: EngineConfig) -> Iterator[World]:
    """Join the other processes. They part in step only when the block ends well; else the launcher ends the others.

    Raises:
        ConfigError: the launcher's variables make no sense, or this machine cannot do what the configuration asks.
    """
    place = launch()
    device = _device(place.local_rank)
    check_machine(config, device)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    # No operator of DeepSpeed's own: it would try the compiler now, then build one for a minute; none is used.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed calls two collectives by names that torch is about to change, at every step of ZeRO 3.
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    # DeepSpeed and torch read these, whoever set the place.
    values = (place.rank, place.size, device.index or 0)
    os.environ |= dict(zip(LAUNCH_VARIABLES, map(str, values), strict=False))
    if place is ALONE:  # no launcher: an address that is set is somebody else's
        os.environ |= dict(zip(ADDRESS, ("localhost", str(_free_port())), strict=True))
    machines = _joined(place, device)
    world = World(place.rank, place.size, device, all(machine.bf16 for machine in machines))
    yield world
    world.barrier()
    deepspeed.comm.destroy_process_group()  # torch's alone would leave its groups in DeepSpeed's memory


def _joined(place: Place, device: torch.device) -> list[Machine]:
    """What every process computes on, once all have met.

    Raises:
        ConfigError: they do not come, or could only wait for each other.
    """
    check_host()
    if dist.is_initialized():  # by an earlier call, which failed
        deepspeed.comm.destroy_process_group()
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store = next(dist.rendezvous("env://", timeout=PATIENCE))[0]
        machines = _introduced(store, place, this_machine(device))
        check_together(machines)
        group = dist.PrefixStore("default_pg", store)
        dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.size, timeout=PATIENCE)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
    except dist.DistError as error:  # the port is taken, or the others never came
        address = ":".join(os.environ[name] for name in ADDRESS)
        raise ConfigError(f"environment: no process group at {address} ({str(error).splitlines()[0]})") from error
    log.info("%d process(es) on %s, %s", place.size, device.type, backend)
    return machines


def _device(local_rank: int) -> torch.device:
    """This process's GPU: the only one it sees, where the scheduler gives each task its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen > 1 and local_rank >= seen:
        raise ConfigError(f"environment: local rank {local_rank}, but this machine has {seen} GPUs; one process a GPU")
    device = torch.device("cuda", local_rank if seen > 1 else 0)
    torch.cuda.set_device(device)
    return device


def _introduced(store: dist.Store, place: Place, mine: Machine) -> list[Machine]:
    """What every process computes on, told before anything needs all of them."""
    ranks = [str(rank) for rank in range(place.size)]
    told, heard = dist.PrefixStore("told", store), dist.PrefixStore("heard", store)
    told.set(str(place.rank), json.dumps(mine))
    found = [Machine(*json.loads(value)) for value in told.multi_get(ranks)]
    heard.set(str(place.rank), "")
    if place.rank == 0:  # with it the store would end
        heard.wait(ranks)
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


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
        self.module = Autocast(task, world.device)
        self.compute_in(resolve_precision(config, world.bf16))
        if config.activation_checkpointing:
            recompute_activations(task)
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        self._trained = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
        settings = _settings(config, batch, micro_batch(batch, config, world.size))
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        if config.zero_stage == 3:
            _leave_alone_what_learns_nothing(self.module)
        if config.channels_last and config.zero_stage == 0:  # after initialize, which sends the weights as bytes
            task.to(memory_format=torch.channels_last)
        # One process has nobody to ask: flattening and copying the gradient would be for nothing.
        self._engine.enable_backward_allreduce = world.size > 1 or config.zero_stage > 0
        if config.compile:
            task.compile()
        self.parameters = list(task.parameters())
        # What never changes and lies in a file of its own: under ZeRO 3 every process would write it at every save.
        self.left_out: list[nn.Module] = []

    def compute_in(self, precision: Precision) -> None:
        """From now on. In float32 a GPU's convolutions keep its whole mantissa, which torch else shortens."""
        self.precision = precision
        self.module.enabled = torch.backends.cudnn.allow_tf32 = precision == "bf16"

    @property
    def n_parameters(self) -> int:
        """Numbers that are learned, over all processes."""
        return sum(map(reshard.numel, self.parameters))

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

    def agree_on_running_statistics(self) -> None:
        """Those of rank 0: batch norms differ between processes, which saw other samples."""
        norms = [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        for norm in norms if self.world.size > 1 else ():
            for buffer in norm.buffers():
                dist.broadcast(buffer, 0)

    def save(self, folder: Path) -> None:
        """Weights, optimizer and all buffers but those of `left_out`; every process calls it."""
        # The mark lets DeepSpeed's own converter change the number of processes later.
        mark = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        hooks = [part.register_state_dict_post_hook(_say_nothing) for part in self.left_out]
        try:
            self._engine.save_checkpoint(str(folder), tag="engine", client_state=mark, save_latest=False)
        finally:
            for hook in hooks:
                hook.remove()

    def load(self, folder: Path) -> None:
        """Restore exactly what `save` wrote, by as many processes at the same stage."""
        self._engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)

    def convert(self, folder: Path, target: Path) -> None:
        """Write what `save` wrote in DeepSpeed's universal form, a file for each parameter; one process calls it."""
        source = folder / "engine"
        if not any(source.glob("*_optim_states.pt")):
            return reshard.convert_whole(source, target, list(self._trained))
        told = {"input_folder": str(source), "output_folder": str(target / "form"), "strict": True}
        told |= {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
        target.mkdir(parents=True)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(SimpleNamespace(**told, inject_missing_state=False))

    def load_converted(self, folder: Path, converted: Path, step: int) -> None:
        """Restore what `convert` wrote, at any stage and number of processes.

        DeepSpeed's own reader of this form leaves buffers as they are, gives every group of the optimizer the
        first one's weight decay (stage 3), and reads neither from nor to stage 0: hence not used.

        Arguments:
            folder: the checkpoint, for its buffers.
            step: steps done.
        """
        reshard.begin_optimizer(self._optimizer, self._trained.values(), self.config.zero_stage, step)
        for name, parameter in self._trained.items():
            for key in reshard.KEYS:
                self._place(parameter, key, reshard.read_converted(converted, name, key))
        saved, lasting = reshard.read_module(folder / "engine"), self.module.state_dict()
        for name, buffer in self.module.named_buffers():
            if name in lasting and name in saved:
                buffer.copy_(saved[name])

    def _place(self, parameter: Tensor, key: str, whole: Tensor) -> None:
        """Set a weight or a moment, given whole, where this process holds it."""
        stage, part = self.config.zero_stage, reshard.part(parameter, whole, self.world.rank, self.world.size)
        if key == reshard.WEIGHT:
            getattr(parameter, "ds_tensor", parameter).data.copy_(part)
            if stage:
                (safe_set_local_fp32_param if stage == 3 else safe_set_full_fp32_param)(parameter, part)
        elif stage:
            (safe_set_local_optimizer_state if stage == 3 else safe_set_full_optimizer_state)(parameter, part, key)
        else:
            self._optimizer.state[parameter][key].copy_(part)

    def redistributed(self, saved: list[list[Tensor]]) -> list[Tensor]:
        """What this process holds of each parameter, given what `local` said on every process of another run."""
        rank, size = self.world.rank, self.world.size
        parts = zip(self.parameters, zip(*saved, strict=True), strict=True)
        return [reshard.part(p, reshard.join(p, found), rank, size) for p, found in parts]


def _say_nothing(part: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Remove from a module's state what a part of it has said."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _leave_alone_what_learns_nothing(module: nn.Module) -> None:
    """Remove ZeRO 3's hooks from modules without parameters, which it gathers nothing for.

    It expects every process to call the hooked modules in the same order, and hangs where one does not; but how
    often the Gaussian prior is called depends on the windows that a process has.
    """
    for part in module.modules():
        if next(part.parameters(), None) is None:
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()


def _settings(config: EngineConfig, batch: int, micro: int) -> dict[str, object]:
    """DeepSpeed's configuration. Clipping is always written: its default is 1.0, not none.

    Stage 0 is clipped in `Engine.step`, from the norm that was computed anyway.
    """
    zero: dict[str, object] = {"stage": config.zero_stage}
    zero |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    # Threshold 0: no small parameter stays whole between steps, so a share is all there is of it.
    zero |= {"stage3_param_persistence_threshold": 0}
    if config.offload:
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW everywhere: DeepSpeed's would have to be compiled
        "steps_per_print": 10**9,
    }
