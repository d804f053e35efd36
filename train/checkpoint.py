"""Checkpoints: one folder a step, complete or absent, with a checksum of every file in it.

``checkpoints/step-000123`` is written as ``step-000123.partial`` and renamed; a damaged one is renamed to
``.damaged``, said aloud, and the one before it is used. Their files are DeepSpeed's and torch's: for this run alone,
never a contract. What a run has once and for all lies beside them, and its checksum in them. The same number of
processes at the same ZeRO stage goes on bit for bit; another one through DeepSpeed's universal form, written beside for
as long as it is read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slams.contracts.envelope import ContractError, read_json, sha256, write_json
from train.engine import Engine
from train.optim import Ema

STATE, WHAT = "state.json", "the state of a checkpoint"
log = logging.getLogger("slams.train")


class Checkpoints:
    """The checkpoints of a run; every process calls every method.

    Arguments:
        made_by: what must be the same, as the precision must, when the run goes on: else the numbers would not be those
            of one run.
        keep: checkpoints that stay, the newest ones; the best one stays besides.
    """

    def __init__(self, folder: Path, engine: Engine, ema: Ema, made_by: dict[str, Any], keep: int = 2) -> None:
        self.folder, self.engine, self.ema = folder, engine, ema
        self.world, self.made_by, self.keep = engine.world, made_by, keep
        self._needed: dict[str, str] = {}

    def needs(self, path: Path) -> None:
        """Know a file beside the folder, without which, as it is now, no checkpoint is whole."""
        if self.world.rank == 0:
            self._needed[f"../../{path.name}"] = sha256(path)

    def save(self, step: int, running: dict[str, float], report: dict[str, float], owes_validation: bool) -> None:
        """Write the state after ``step`` steps, the sums of the metrics since the last line, the last validation.

        Arguments:
            owes_validation: whether the step is to be validated, and was not yet.
        """
        final = self.folder / _name(step)
        aside = final.with_name(final.name + ".partial")
        if self.world.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.world.barrier()
        with _writing(aside):
            self.engine.save(aside)
            if self.world.rank == self._ema_rank():
                torch.save(self.ema.average, aside / self._ema_file())
        self.world.barrier()
        if self.world.rank == 0:
            written = {str(p.relative_to(aside)): sha256(p) for p in sorted(aside.rglob("*")) if p.is_file()}
            state = {"running": running, "report": report, "made_by": self._identity(), "processes": self._processes()}
            state |= {"owes_validation": owes_validation, "sha256": written | self._needed}
            write_json(aside / STATE, state)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            self._forget()
        self.world.barrier()

    def validated(self, step: int, report: dict[str, float], best: bool) -> None:
        """Bring a validation into the checkpoint of its step, which stands.

        Arguments:
            best: the best so far: it stays until a better one comes.
        """
        if self.world.rank == 0:
            path = self.folder / _name(step) / STATE
            found = {"report": report, "best": best, "owes_validation": False}
            write_json(path, read_json(path, WHAT) | found)
            self._forget()

    def _forget(self) -> None:
        """Remove all but the newest and the best."""
        steps = self._steps()
        best = [step for step in steps if _is_best(self.folder / _name(step))]
        for old in set(steps[: -self.keep]) - set(best[-1:]):
            shutil.rmtree(self.folder / _name(old))

    def restore(self) -> tuple[int, dict[str, float], dict[str, float], bool]:
        """Load the newest whole checkpoint and return what `save` was given; (0, {}, {}, False) if the run has none.

        Raises:
            ContractError: all are damaged, or the run was another one.
        """
        step = self.world.agree(self._newest() if self.world.rank == 0 else 0)
        if step == 0:
            return 0, {}, {}, False
        folder = self.folder / _name(step)
        state = read_json(folder / STATE, WHAT)
        self._check(folder, state)
        if state["processes"] == self._processes():
            self.engine.load(folder)
        else:
            self._load_converted(folder, step, state["processes"])
        saved = [torch.load(p, map_location="cpu", weights_only=True) for p in sorted(folder.glob("ema-*.pt"))]
        self.ema.load(self.engine.redistributed(saved))
        return step, state["running"], state["report"], state.get("owes_validation", False)

    def _load_converted(self, folder: Path, step: int, processes: str) -> None:
        """Go on with another number of processes or at another ZeRO stage."""
        converted = folder.with_name(folder.name + ".universal")
        if self.world.rank == 0:
            log.info("%s: written by %s, going on with %s", folder, processes, self._processes())
            shutil.rmtree(converted, ignore_errors=True)
            self.engine.convert(folder, converted)
        self.world.barrier()
        self.engine.load_converted(folder, converted, step)
        self.world.barrier()
        if self.world.rank == 0:
            shutil.rmtree(converted)

    def _newest(self) -> int:
        """The newest whole one; damaged ones are set aside, unless there is no other."""
        damaged = []
        for step in reversed(self._steps()):
            folder = self.folder / _name(step)
            damage = _damage(folder)
            if damage is None:
                for path in damaged:
                    aside = path.with_name(path.name + ".damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                return step
            log.warning("checkpoint %s: %s; set aside, using the one before", folder, damage)
            damaged.append(folder)
        if damaged:
            raise ContractError(f"{self.folder}: no checkpoint there is whole; remove the folder to start again")
        return 0

    def _identity(self) -> dict[str, Any]:
        return self.made_by | {"precision": self.engine.precision}

    def _check(self, folder: Path, state: dict[str, Any]) -> None:
        if self.engine.config.precision == "auto":
            self.engine.compute_in(state["made_by"]["precision"])
        other = [key for key, value in self._identity().items() if state["made_by"].get(key) != value]
        if other:
            raise ContractError(f"{folder}: was made with another {', '.join(other)}; choose another folder")

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


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what torch says of a full disk into one sentence.

    Raises:
        OSError: names the folder.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if "inline_container" not in said:  # of torch's writer
            raise
        raise OSError(f"{folder}: cannot be written ({said})") from error


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _is_best(folder: Path) -> bool:
    state = folder / STATE  # missing where a removal was cut short
    return state.exists() and read_json(state, WHAT).get("best", False)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = read_json(folder / STATE, WHAT)
    except ContractError as error:
        return str(error)
    for name, checksum in state["sha256"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != checksum:
            return f"the checksum of {name} does not match"
    return None
