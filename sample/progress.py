"""How far a process is: a bar on a terminal, a line for each unit in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Named(Protocol):
    """A piece of work that can be told from others."""

    @property
    def name(self) -> str: ...


Of = TypeVar("Of", bound=Named)


def progress(units: Sequence[Of], label: str) -> Iterator[Of]:
    """The units, one by one, each told when it is done."""
    console = Console()
    if not console.is_terminal:
        yield from _lines(units, label, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(units, description=label)


def _lines(units: Sequence[Of], label: str, console: Console) -> Iterator[Of]:
    began = time.monotonic()
    for done, unit in enumerate(units, start=1):
        yield unit
        left = timedelta(seconds=round((time.monotonic() - began) / done * (len(units) - done)))
        console.print(f"{label}: {unit.name}, {done} of {len(units)}, {left} left", highlight=False, soft_wrap=True)
