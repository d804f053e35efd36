"""When a process leaves before its work is done: a scheduler's signal, or its own time limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

PASSED = 1e-3  # minutes: what is left of a limit that has passed is next to nothing, and not no limit
AGAIN = 75  # the status of one that should be started again (EX_TEMPFAIL of sysexits.h)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before their time limit


class Leave(BaseException):
    """A scheduler's signal has come. What is being drawn is lost, nothing else: a unit is written at once."""


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Within it, those signals raise `Leave`."""
    before = [signal.signal(number, _leave) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Leave


def minutes_left(asked: float, environment: Mapping[str, str]) -> float:
    """Minutes until the sooner of two limits: that asked for, and the end that a scheduler tells; 0 = neither."""
    told = environment.get("SLURM_JOB_END_TIME", "")
    scheduled = max((int(told) - time.time()) / 60, PASSED) if told.isdigit() else 0.0
    return min((minutes for minutes in (asked, scheduled) if minutes > 0), default=0.0)


class Clock:
    """Whether there is time for one more unit.

    Arguments:
        minutes: from now on; 0 = no limit.
        unit_seconds: what a unit is expected to take.

    Raises:
        ValueError: not even one unit fits.
    """

    def __init__(self, minutes: float, unit_seconds: float) -> None:
        if minutes and unit_seconds > 60 * minutes:
            raise ValueError(
                f"time_limit_minutes, or the scheduler's limit: {minutes:.3g} is too short for one unit, which takes "
                f"{unit_seconds / 60:.2g}; more is needed, or smaller units"
            )
        self.longest = unit_seconds
        self.begun = time.monotonic()
        self.until = self.begun + 60 * minutes if minutes else float("inf")

    def allows(self) -> bool:
        """Whether a unit as long as the longest so far would end in time; asked before each."""
        now = time.monotonic()
        self.longest, self.begun = max(self.longest, now - self.begun), now
        return now + self.longest <= self.until
