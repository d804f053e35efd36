"""What a run tells: lines of metrics, a progress bar or a log, wandb, and a card of the machine.

Everything is written inside the run's folder. Only rank 0 tells anything.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import torch
import wandb
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slams.config import to_dict, to_yaml
from slams.contracts.envelope import provenance, write_json
from train.config import TrainConfig
from train.engine import World, resolve_precision

log = logging.getLogger("slams.train")


class Meter:
    """Means since the last line, and where the time went. Its sums are part of a checkpoint."""

    def __init__(self, running: dict[str, float]) -> None:
        self.sums = dict(running)
        self.waited = self.paused = 0.0
        self.steps, self.since = 0, time.perf_counter()

    def add(self, values: dict[str, float]) -> None:
        self.steps += 1
        for name, value in {**values, "count": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def line(self, batch: int) -> dict[str, float]:
        """The means, the throughput and the share of time spent waiting for data."""
        means = {name: total / self.sums["count"] for name, total in self.sums.items() if name != "count"}
        seconds = time.perf_counter() - self.since - self.paused
        speed = {"samples_per_s": round(self.steps * batch / seconds, 3), "data_wait": round(self.waited / seconds, 4)}
        return means | speed


class Telemetry:
    """The run's folder, its metrics and its progress.

    Arguments:
        step: where the run begins; what was written of later steps is taken back.
    """

    def __init__(self, config: TrainConfig, world: World, step: int) -> None:
        self.speaks, self.steps = world.rank == 0, config.steps
        if not self.speaks:
            return
        folder = Path(config.folder)
        self.path = folder / "metrics.jsonl"
        _forget_after(self.path, step)
        (folder / "config.yaml").write_text(to_yaml(config))
        write_json(folder / "environment.json", environment(config, world))
        self._wandb = _open_wandb(config, folder)
        self._bar = _bar() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=config.steps, completed=step, loss="")
            self._bar.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics."""
        if not self.speaks:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        self._wandb.log(values, step=step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{values.get('loss', float('nan')):.4g}")
        else:
            told = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith("rmse/"))
            log.info("step %d/%d  %s", step, self.steps, told)

    def close(self, status: int) -> None:
        if self.speaks:
            if self._bar is not None:
                self._bar.stop()
            self._wandb.finish(exit_code=status)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("loss {task.fields[loss]}"))


def _forget_after(path: Path, step: int) -> None:
    """Take back the lines of steps that will be made again, and a line cut short by a kill."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    aside = path.with_name(path.name + ".partial")
    aside.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
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
    return wandb.init(
        project=config.project,
        id=mark.read_text(),
        resume="allow" if config.wandb == "online" else None,
        dir=folder,
        config=to_dict(config),
        mode=config.wandb,
        settings=wandb.Settings(silent=True, console="off"),
    )


def environment(config: TrainConfig, world: World) -> dict[str, Any]:
    """A card of the machine and the programs, to be read beside the throughput."""
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor() or "cpu"
    return provenance() | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(config.engine),
    }
