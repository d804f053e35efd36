"""A result in the making: it lies beside its name until it is whole, and what is done of it survives a stop.

``NAME.partial`` is the result aside; ``NAME.marks`` holds a file for each task that is done, and a note of what the
result is made of: work that lies there is gone on with only if that is still the same.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.progress import track

from data_prep.workers import InOrder
from slams.contracts.envelope import ContractError, read_json, write_json

NOTE = "made_of.json"


class Task(Protocol):
    """A part of the work, told apart by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Work:
    """The result of that path, in the making."""

    path: Path

    @property
    def aside(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def marks(self) -> Path:
        return self.path.with_name(self.path.name + ".marks")

    @property
    def _before(self) -> Path:
        return self.path.with_name(self.path.name + ".before")

    def tidy(self) -> None:
        """Finish what a stop between the last steps left: the name free, or what had it, or the marks, still there."""
        if self._before.exists() and not self.path.exists():
            self._before.rename(self.path)
        shutil.rmtree(self._before, ignore_errors=True)
        if self.path.exists() and not self.aside.exists():
            shutil.rmtree(self.marks, ignore_errors=True)

    def stands(self, document: str) -> bool:
        """Whether a result has the name; each of its kind has that document.

        Raises:
            ContractError: something else has the name.
        """
        if self.path.exists() and not (self.path / document).exists():
            raise ContractError(f"{self.path}: is there, and without {document}; remove it or choose another name")
        return self.path.exists()

    def goes_on(self, made_of: dict[str, Any]) -> bool:
        """Whether work on the same lies there. Else what lies there is removed, which is told, and the work begins."""
        note = self.marks / NOTE
        before = read_json(note, "the note of what it is made of") if note.exists() else made_of
        if self.aside.exists() and note.exists() and before == made_of:
            return True
        if n_done := self.n_done():
            other = ", ".join(key for key in made_of if before.get(key) != made_of[key])
            why = f"different: {other}" if other else "incomplete"
            sys.stdout.write(f"{self.path}: {n_done} finished parts are made anew ({why})\n")
        note.unlink(missing_ok=True)  # first, so that whoever stops here leaves nothing that could be gone on with
        for folder in (self.marks, self.aside):
            shutil.rmtree(folder, ignore_errors=True)
        return False

    def begun(self, made_of: dict[str, Any]) -> None:
        """Say of what, once the folder aside stands."""
        self.marks.mkdir(parents=True)
        write_json(self.marks / NOTE, made_of)

    def complete(
        self,
        function: Callable[[T], dict[str, Any]],
        tasks: Sequence[T],
        in_order: InOrder,
        label: str,
        intact: Callable[[dict[str, Any]], bool] | None = None,
    ) -> list[dict[str, Any]]:
        """What the function says of each task, done now or before.

        Arguments:
            intact: whether what was done before is still there, of what was said of it; else it is done again.
        """
        if intact is not None:
            self._forget_lost(tasks, in_order, intact)
        pending = [task for task in tasks if not self._mark(task).exists()]
        results = track(in_order(function, pending), description=label, total=len(pending), transient=True)
        for task, result in zip(pending, results, strict=True):
            write_json(self._mark(task), result)
        return [read_json(self._mark(task), "the mark of a task") for task in tasks]

    def _forget_lost(self, tasks: Sequence[T], in_order: InOrder, intact: Callable[[dict[str, Any]], bool]) -> None:
        done = [task for task in tasks if self._mark(task).exists()]
        told = [read_json(self._mark(task), "the mark of a task") for task in done]
        for task, is_intact in zip(done, in_order(intact, told), strict=True):
            if not is_intact:
                self.forget(task)

    def forget(self, task: Task) -> None:
        """Have a task that is done done again by the next call."""
        self._mark(task).unlink()

    def n_done(self) -> int:
        """Tasks that are done."""
        return len(list(self.marks.glob("*.json"))) - (self.marks / NOTE).exists()

    def _mark(self, task: Task) -> Path:
        return self.marks / f"{task.name}.json"

    def become(self) -> None:
        """The result aside takes the name; one that had it is removed."""
        for left in self.aside.rglob("*.partial"):  # by a stop within the writing of a file
            left.unlink()
        if self.path.exists():
            self.path.rename(self._before)
        self.aside.rename(self.path)
        shutil.rmtree(self._before, ignore_errors=True)
        shutil.rmtree(self.marks)
