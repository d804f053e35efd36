"""What a run tells: lines of metrics, a progress bar or a log, wandb, and a card of the machine.

Everything is written inside the run's folder. Only rank 0 tells anything.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import wandb
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slams.config import ConfigError, digest, to_dict, to_yaml
from slams.contracts.envelope import provenance, sha256, write_json
from slams.contracts.shards import Manifest
from train.config import TrainConfig
from train.cost import GIB, count
from train.engine import Engine
from train.execution import Precision
from train.export import LOSS

Part = Literal["data", "forward", "backward", "step", "communication"]
# Beginnings of the names of what depends on the machine and its clock, and differs between runs that are the same.
CLOCK = ("samples_per_s", "data_wait", "seconds/", "memory_gib", "flops_per_s", "utilisation")
NOT_SAID = ("rmse/", "seconds/", "flops_per_s")  # written, but too much for a line of the log
CEILING_SECONDS = 0.3
log = logging.getLogger("slams.train")


class Meter:
    """Means since the last line, and where the time went. Its sums are part of a checkpoint.

    Arguments:
        running: sums to go on from.
        device: of the run; on a GPU the parts of a step are timed there, by events that nobody waits for.
    """

    def __init__(self, running: dict[str, float], device: torch.device) -> None:
        self.sums, self.device = dict(running), device
        self.seconds: dict[str, float] = {}
        self.paused = 0.0
        self.steps, self.since = 0, time.perf_counter()
        self._passing: list[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Add what happens inside to a part of the step.

        ``communication`` is what can be told apart: agreeing on the loss, which on several processes is mostly waiting
        for the slowest. Gradients travel within ``backward``, and under ZeRO weights within ``forward``, ``backward``
        and ``step``. ``data`` is how long this process waited for a batch; reading ahead is no part of it.
        """
        if self.device.type == "cuda" and part != "data":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._passing.append((part, begin, end))
        else:
            began = time.perf_counter()
            yield
            self._spent(part, time.perf_counter() - began)

    def add(self, values: dict[str, float]) -> None:
        self.steps += 1
        for name, value in {**values, "count": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self._read(wait=False)

    def line(self, batch: int) -> dict[str, float]:
        """The means, the throughput, the share of time spent waiting for data, seconds a step, the peak of memory."""
        means = {name: total / self.sums["count"] for name, total in self.sums.items() if name != "count"}
        self._read(wait=True)
        seconds = time.perf_counter() - self.since - self.paused
        waited = self.seconds.get("data", 0.0) / seconds
        speed = {"samples_per_s": round(self.steps * batch / seconds, 3), "data_wait": round(waited, 4)}
        parts = {f"seconds/{part}": round(spent / self.steps, 6) for part, spent in self.seconds.items()}
        return means | speed | parts | {"memory_gib": round(peak_memory(self.device) / GIB, 3)}

    def _read(self, wait: bool) -> None:
        """Take the times of the events that have passed, or of all."""
        while self._passing and (wait or self._passing[0][2].query()):
            part, begin, end = self._passing.pop(0)
            end.synchronize()
            self._spent(part, begin.elapsed_time(end) / 1000)

    def _spent(self, part: Part, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def peak_memory(device: torch.device) -> int:
    """The most that tensors held on a GPU, or this process in main memory, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def ceiling(device: torch.device, precision: Precision) -> float:
    """FLOP/s of the fastest of some products of square matrices on a device, in a run's precision."""
    # few milliseconds each, so that some pass undisturbed where other programs run as well
    size = 8192 if device.type == "cuda" else 512 * math.isqrt(torch.get_num_threads())
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    # numbers as they come: a GPU at its limit of power multiplies ones faster
    a = torch.randn(size, size, generator=torch.Generator(device).manual_seed(0), dtype=kind, device=device)
    fastest = float("inf")
    until = time.perf_counter() + CEILING_SECONDS
    while fastest == float("inf") or time.perf_counter() < until:
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for it
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * size**3 / fastest


class Telemetry:
    """The run's folder, its metrics and its progress.

    Arguments:
        step: where the run begins; what was written of later steps is taken back.
        owes_validation: whether the run begins with validating that step; what was written of that is taken back too.
    """

    def __init__(
        self, config: TrainConfig, manifest: Manifest, engine: Engine, step: int, owes_validation: bool
    ) -> None:
        self.speaks, self.steps = engine.world.rank == 0, config.steps
        if not self.speaks:
            return
        folder = Path(config.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _forget_after(self.path, step, owes_validation)
        self.flops = count(config, manifest).flops
        self.ceiling = engine.world.size * ceiling(engine.world.device, engine.precision)
        (folder / "config.yaml").write_text(to_yaml(config))
        speed = {"flops_per_sample": self.flops, "ceiling_flops_per_s": self.ceiling}
        write_json(folder / "environment.json", environment(config, manifest, engine) | speed)
        self._wandb = _open_wandb(config, folder)
        self._bar = _bar() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=config.steps, completed=step, loss="")
            self._bar.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics; where the throughput is in it, what part of the ceiling that is."""
        if not self.speaks:
            return
        if "samples_per_s" in values:
            flops_per_s = values["samples_per_s"] * self.flops
            values = values | {"flops_per_s": flops_per_s, "utilisation": round(flops_per_s / self.ceiling, 4)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        self._wandb.log(values, step=step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{values.get('loss', float('nan')):.4g}")
        else:
            told = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith(NOT_SAID))
            log.info("step %d/%d  %s", step, self.steps, told)

    def show(self, step: int, image: Path | None) -> None:
        """An image that lies in the run's folder, if there is one, on wandb too."""
        if self.speaks and image is not None:
            self._wandb.log({"images": wandb.Image(str(image))}, step=step)

    def close(self, status: int) -> None:
        if self.speaks:
            if self._bar is not None:
                self._bar.stop()
            self._wandb.finish(exit_code=status)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("loss {task.fields[loss]}"))


def _forget_after(path: Path, step: int, owes_validation: bool) -> None:
    """Take back the lines of what will be made again, and a line cut short by a kill."""

    def stays(line: dict[str, float]) -> bool:
        return line["step"] < step or (line["step"] == step and not (owes_validation and LOSS in line))

    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    aside = path.with_name(path.name + ".partial")
    aside.write_text("".join(line for line in whole if stays(json.loads(line))))
    aside.replace(path)


def _open_wandb(config: TrainConfig, folder: Path) -> Any:
    """A wandb run that goes on under the same id."""
    if config.wandb == "disabled":
        return wandb.init(mode="disabled")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, str((folder / "wandb").resolve()))
    mark = folder / "wandb" / "id"
    if not mark.exists():
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(secrets.token_hex(4))
    try:
        return _wandb_run(config, folder, mark.read_text())
    except wandb.errors.Error as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"wandb: online is not possible here ({said}); offline keeps the record for later") from None


def _wandb_run(config: TrainConfig, folder: Path, identity: str) -> Any:
    return wandb.init(
        project=config.project,
        id=identity,
        resume="allow" if config.wandb == "online" else None,
        dir=folder,
        config=to_dict(config),
        mode=config.wandb,
        settings=wandb.Settings(silent=True, console="off"),
    )


def environment(config: TrainConfig, manifest: Manifest, engine: Engine) -> dict[str, Any]:
    """A card of the run: what it was told, the data, the machine and the programs, beside the throughput."""
    on_gpu = engine.world.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu"
    return provenance() | {
        "config_digest": digest(config),
        "manifest_sha256": sha256(manifest.folder / "manifest.json"),
        "damaged_days": [str(manifest.frames[i].time) for i in sorted(manifest.unusable)],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processes": engine.world.size,
        "threads": torch.get_num_threads(),
        "precision": engine.precision,
    }
