"""Why a run saves and leaves before its end: a scheduler's signal, or its own time limit."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopRequest:
    """Arguments: minutes: after which `asked` is true by itself; 0 = never."""

    def __init__(self, minutes: float = 0.0) -> None:
        self._until = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._signalled = False

    def listen(self) -> None:
        """Heed the signals that schedulers send before their time limit, SIGTERM and SIGUSR1."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._heed)

    @property
    def asked(self) -> bool:
        return self._signalled or time.monotonic() >= self._until

    def _heed(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
