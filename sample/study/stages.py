"""The stages of a study: commands of the jobs, each run as its user would, and a mark for each that is done.

A mark names the commands, the content of the files that they name, and the marks of all that the stage stands on; where
one of them is no longer the same, the stage runs again, and its job then goes on, finds its work done, or refuses in a
sentence. Programs that share a folder take turns at a stage, by a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sample.leave import AGAIN, Leave, leaving_on_signals
from slams.config import meaning
from slams.contracts.envelope import read_json, write_json

MARKS, LOGS = "marks", "logs"
# what tells a process which of many it is: a job of a study is whole
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER += ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_ID")
ARRAY = "SLURM_ARRAY_"


class StageError(RuntimeError):
    """A stage that failed; names its log."""


class StoppedError(RuntimeError):
    """A stage that was not begun, or whose job left to be started again: there is no time left."""


@dataclass(frozen=True)
class Stage:
    """A command.

    Arguments:
        name: of its mark and its log.
        commands: one after the other, as after ``python -m``.
        after: stages that it stands on.
        files: that it stands on, beside the configurations that its commands name.
        leaves: what is there when it is done.
        label: what tables call it.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[Stage, ...] = field(default=(), repr=False)
    files: tuple[str, ...] = ()
    leaves: str = ""
    label: str = ""

    @property
    def key(self) -> str:
        """What its mark says: changes with the commands, its own and those it stands on."""
        files = (*(word for command in self.commands for word in command if word.endswith(".yaml")), *self.files)
        said = [list(self.commands), [stage.key for stage in self.after], [_content(file) for file in files]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def mark(self, folder: Path) -> Path:
        return folder / MARKS / f"{self.file}.json"

    def done(self, folder: Path) -> bool:
        """Whether it ran to its end, from the same."""
        mark = self.mark(folder)
        if self.leaves and not Path(self.leaves).exists():
            return False
        return mark.is_file() and read_json(mark, "the mark of a stage").get("key") == self.key

    def run(self, folder: Path, threads: int, jobs: Jobs) -> None:
        """Run it, unless another program has meanwhile; its words go to its log.

        Raises:
            StageError: a command failed, and says its last words, or left nothing.
            StoppedError: it was not begun, or left before its end to be started again.
        """
        log = folder / LOGS / f"{self.file}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        key = self.key  # of the files as they are now: what changes while it runs it may not have read
        for command in self.commands:
            began = time.perf_counter()
            status, processor = jobs.run(command, log, threads)
            self._spent(folder, key, time.perf_counter() - began, processor)
            if status == AGAIN:
                raise StoppedError
            if status:
                raise StageError(_words(self.name, log, f"ended with status {status}"))
        if self.leaves and not Path(self.leaves).exists():
            raise StageError(_words(self.name, log, f"left no {self.leaves}"))
        write_json(self.mark(folder), self._marked(folder, key) | {"key": key})

    def _spent(self, folder: Path, key: str, seconds: float, processor: float) -> None:
        """Add to what it has cost: an interrupted one goes on where it was, and its earlier runs count."""
        mark = self._marked(folder, key)
        sums = {"seconds": mark["seconds"] + seconds, "processor_seconds": mark["processor_seconds"] + processor}
        self.mark(folder).parent.mkdir(exist_ok=True)
        begun = {"key": "", "begun": key}
        write_json(self.mark(folder), mark | begun | {name: round(value, 3) for name, value in sums.items()})

    def _marked(self, folder: Path, key: str) -> dict[str, Any]:
        """Its mark; a new one if what left the one that is there was other commands, or made from something else."""
        there = read_json(self.mark(folder), "the mark of a stage") if self.mark(folder).is_file() else {}
        if there.get("begun") == key:
            return there
        commands = [shlex.join(command) for command in self.commands]
        return {"commands": commands, "seconds": 0.0, "processor_seconds": 0.0}

    @property
    def file(self) -> str:
        return self.name.replace("/", "--")


def _content(file: str) -> str:
    path = Path(file)
    if path.is_file() and path.suffix == ".yaml":
        return meaning(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class Jobs:
    """The jobs under way, each a process that is no rank of whatever launched this program."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.stopped = False
        self._starting = Lock()  # none starts between the word to stop and the signals

    def run(self, command: Sequence[str], log: Path, threads: int) -> tuple[int, float]:
        """Exit status and processor seconds of a job.

        Raises:
            StoppedError: none is begun any more.
        """
        kept = {k: value for k, value in os.environ.items() if k not in LAUNCHER and not k.startswith(ARRAY)}
        environment = kept | {"OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as file:
            with self._starting:
                if self.stopped:
                    raise StoppedError
                process = subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, env=environment
                )
                self.running.add(process.pid)
            _, status, used = os.wait4(process.pid, 0)
        self.running.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_utime + used.ru_stime

    def stop(self) -> None:
        """Begin none any more, and ask those under way to leave; they save what they have."""
        with self._starting:
            self.stopped = True
        for pid in tuple(self.running):
            with suppress(ProcessLookupError):  # a scheduler may have asked it before
                os.kill(pid, signal.SIGTERM)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One program at a time, of all that share the folder; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _words(name: str, log: Path, how: str) -> str:
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
    return f"study: stage {name} {how}: {last} ({log})"


def complete(stages: Iterable[Stage], folder: Path, processes: int, threads: int, independent: bool = False) -> None:
    """Run those that are not done, so many at once; the first that fails is told when those under way have ended.

    Arguments:
        independent: the others run to their end all the same.

    Raises:
        StageError: one failed.
        Leave: a signal asked to, and the jobs were asked too, or one of them has left for want of time: no other is
            begun, and those under way were waited for.
    """
    todo: Sequence[Stage] = [stage for stage in stages if not stage.done(folder)]
    failed: list[StageError] = []
    jobs = Jobs()
    console = Console()
    progress = Progress(transient=True, console=console, disable=not console.is_terminal)
    with progress as bar, ThreadPoolExecutor(processes) as pool:
        task = bar.add_task("study", total=len(todo))

        def one(stage: Stage) -> None:
            if jobs.stopped or (failed and not independent):
                return  # what failed may be what it stands on
            try:
                with locked(folder / MARKS / f"{stage.file}.lock"):
                    if not stage.done(folder):
                        stage.run(folder, threads, jobs)
                told = "done"
            except StageError as error:
                failed.append(error)
                told = "failed"
            except StoppedError:
                jobs.stopped = True
                told = "is to go on"
            bar.advance(task)
            console.print(f"study {folder.name}: {stage.name} {told}", highlight=False)

        try:
            with leaving_on_signals():
                list(pool.map(one, todo))
        except Leave:
            jobs.stop()
            raise
    if jobs.stopped:
        sys.stderr.writelines(f"{error}\n" for error in failed)  # which whoever starts it again would not hear of
        raise Leave
    if failed:
        raise failed[0]
