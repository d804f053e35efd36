"""Checkpoints: one folder a step, complete or absent, with a checksum of every file in it.

``checkpoints/step-000123`` is written as ``step-000123.partial`` and renamed; a damaged one is set aside, said
aloud, and the one before it is used. Their files are DeepSpeed's and torch's: for this run alone, never a contract.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from slams.contracts.envelope import ContractError, read_json, sha256, write_json
from train.engine import Engine
from train.optim import Ema

KEPT = 2
log = logging.getLogger("slams.train")


class Checkpoints:
    """The checkpoints of a run; every process calls every method.

    Arguments:
        made_by: what must be the same when the run goes on: else the numbers would not be those of one run.
    """

    def __init__(self, folder: Path, engine: Engine, ema: Ema, made_by: dict[str, Any]) -> None:
        self.folder, self.engine, self.ema = folder, engine, ema
        self.world, self.made_by = engine.world, made_by

    def save(self, step: int, running: dict[str, float], report: dict[str, float]) -> None:
        """Write the state after ``step`` steps, the sums of the metrics since the last line, the last validation."""
        final = self.folder / _name(step)
        aside = final.with_name(final.name + ".partial")
        if self.world.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.world.barrier()
        self.engine.save(aside)
        if self.world.rank == self._ema_rank():
            torch.save(self.ema.average, aside / self._ema_file())
        self.world.barrier()
        if self.world.rank == 0:
            checksums = {str(p.relative_to(aside)): sha256(p) for p in sorted(aside.rglob("*")) if p.is_file()}
            state = {"running": running, "report": report, "made_by": self.made_by, "processes": self._processes()}
            write_json(aside / "state.json", state | {"sha256": checksums})
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            for old in self._steps()[:-KEPT]:
                shutil.rmtree(self.folder / _name(old))
        self.world.barrier()

    def restore(self) -> tuple[int, dict[str, float], dict[str, float]]:
        """Load the newest whole checkpoint and return what `save` was given; (0, {}, {}) if the run has none.

        Raises:
            ContractError: all are damaged, or the run was another one.
        """
        step = self.world.agree(self._newest() if self.world.rank == 0 else 0)
        if step == 0:
            return 0, {}, {}
        folder = self.folder / _name(step)
        state = read_json(folder / "state.json", "the state of a checkpoint")
        self._check(folder, state)
        self.engine.load(folder)
        self.ema.load(torch.load(folder / self._ema_file(), map_location=self.world.device, weights_only=True))
        return step, state["running"], state["report"]

    def _newest(self) -> int:
        found = self._steps()
        for step in reversed(found):
            damage = _damage(self.folder / _name(step))
            if damage is None:
                return step
            log.warning("checkpoint %s: %s; using the one before", self.folder / _name(step), damage)
        if found:
            raise ContractError(f"{self.folder}: no checkpoint there is whole; remove the folder to start again")
        return 0

    def _check(self, folder: Path, state: dict[str, Any]) -> None:
        other = [key for key, value in self.made_by.items() if state["made_by"].get(key) != value]
        if other:
            raise ContractError(f"{folder}: was made with another {', '.join(other)}; choose another folder")
        if state["processes"] != self._processes():
            raise ContractError(
                f"{folder}: was written by {state['processes']}, but this is {self._processes()}; "
                "go on as it began, or choose another folder"
            )

    def _processes(self) -> str:
        """What the files depend on: ZeRO writes a file for each process."""
        stage = self.engine.config.zero_stage
        return f"ZeRO stage {stage} with {self.world.size} process(es)" if stage else "ZeRO stage 0"

    def _ema_rank(self) -> int:
        return self.world.rank if self.engine.config.zero_stage == 3 else 0

    def _ema_file(self) -> str:
        return f"ema-{self._ema_rank():05d}.pt"

    def _steps(self) -> list[int]:
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*") if p.suffix == "")


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = read_json(folder / "state.json", "the state of a checkpoint")
    except ContractError as error:
        return str(error)
    for name, checksum in state["sha256"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != checksum:
            return f"the checksum of {name} does not match"
    return None
