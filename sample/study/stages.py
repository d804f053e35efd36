"""The stages of a study: commands of the jobs, each run as its user would, and a mark for each that is done.

A mark names the command and the marks of all that it stands on; where one of them is no longer the same, the stage
runs again, and its job then goes on, finds its work done, or refuses in a sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from sample.leave import AGAIN
from slams.contracts.envelope import read_json, write_json

MARKS, LOGS = "marks", "logs"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class StageError(RuntimeError):
    """A stage that failed; names its log."""


@dataclass(frozen=True)
class Stage:
    """A command.

    Arguments:
        name: of its mark and its log.
        commands: one after the other, as after ``python -m``.
        after: stages that it stands on.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[Stage, ...] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        """What its mark says: changes with the commands, its own and those it stands on."""
        said = [list(self.commands), [stage.key for stage in self.after]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def mark(self, folder: Path) -> Path:
        return folder / MARKS / f"{self._file}.json"

    def done(self, folder: Path) -> bool:
        """Whether it ran to its end, from the same."""
        mark = self.mark(folder)
        return mark.is_file() and read_json(mark, "the mark of a stage").get("key") == self.key

    def run(self, folder: Path, threads: int) -> None:
        """Run it, its words to its log.

        Raises:
            StageError: a command failed; says its last words.
        """
        log, began, processor = folder / LOGS / f"{self._file}.log", time.perf_counter(), 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in self.commands:
            status, spent = _run(command, log, threads)
            processor += spent
            if status:
                raise StageError(_words(self.name, log, status))
        done = {"key": self.key, "commands": [shlex.join(command) for command in self.commands]}
        seconds = {"seconds": round(time.perf_counter() - began, 1), "processor_seconds": round(processor, 1)}
        self.mark(folder).parent.mkdir(exist_ok=True)
        write_json(self.mark(folder), done | seconds)

    @property
    def _file(self) -> str:
        return self.name.replace("/", "--")


def _run(command: Sequence[str], log: Path, threads: int) -> tuple[int, float]:
    """Exit status and processor seconds of a job, which is no rank of whatever launched this program."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    environment = kept | {"OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _words(name: str, log: Path, status: int) -> str:
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
    left = "was interrupted" if status in (AGAIN, -2, 130) else f"ended with status {status}"
    return f"study: stage {name} {left}: {last} ({log})"


def complete(stages: Iterable[Stage], folder: Path, processes: int, threads: int, independent: bool = False) -> None:
    """Run those that are not done, so many at once; the first that fails is told when those under way have ended.

    Arguments:
        independent: the others run to their end all the same.

    Raises:
        StageError: one failed.
    """
    todo: Sequence[Stage] = [stage for stage in stages if not stage.done(folder)]
    failed: list[StageError] = []
    with Progress(transient=True) as bar, ThreadPoolExecutor(processes) as pool:
        task = bar.add_task("study", total=len(todo))

        def one(stage: Stage) -> None:
            if failed and not independent:
                return  # what failed may be what it stands on
            try:
                stage.run(folder, threads)
                told = "done"
            except StageError as error:
                failed.append(error)
                told = "failed"
            bar.advance(task)
            bar.console.print(f"study {folder.name}: {stage.name} {told}", highlight=False)

        list(pool.map(one, todo))
    if failed:
        raise failed[0]
