"""What keeps a run from harm, numbers that are none, and what is said of harm done."""

from __future__ import annotations

import math
import re
from pathlib import Path

from slams.contracts.envelope import write_json

NAMED_WINDOWS = 32
# What torch says of what befalls a run, as patterns, and what that means.
MISHAPS = (
    (
        "^OutOfMemoryError|allocate memory|ALLOC_FAILED",
        "data.batch: the memory is too small for a step; make it smaller, engine.accumulation larger, or "
        "engine.activation_checkpointing true",
    ),
    (
        "DataLoader worker",
        "data.workers: a reading process was ended, most often for want of main memory; take fewer, or less of "
        "data.cache_frames",
    ),
    (
        "^Dist[A-Za-z]*Error|gloo|NCCL",
        "another process was lost, and its own log may say why; the same command goes on from the last checkpoint",
    ),
)


class NonFiniteStepError(RuntimeError):
    """A loss or the gradient is not a number; the weights are still those of the step before."""


def check_finite(found: dict[str, float], step: int, rank: int, days: list[str], folder: Path) -> None:
    """Stop where a number is none, naming the days that the batch's windows begin on.

    Raises:
        NonFiniteStepError: a report lies in the run's folder.
    """
    wrong = [f"{name} {value}" for name, value in found.items() if not math.isfinite(value)]
    if wrong:
        report = folder / f"stopped-at-step-{step}-process-{rank}.json"
        write_json(report, {"step": step, "values": {k: str(v) for k, v in found.items()}, "windows": days})
        raise NonFiniteStepError(
            f"step {step}: {', '.join(wrong)}; nothing of that is saved. Process {rank} had "
            f"windows that begin on {', '.join(days[:NAMED_WINDOWS])} ({report})"
        )


def explained(error: RuntimeError) -> str | None:
    """One sentence on what torch says, where that is no mistake of the program."""
    said = f"{type(error).__name__}: {error}"
    for pattern, sentence in MISHAPS:
        if re.search(pattern, said):
            return f"{sentence} ({str(error).strip().splitlines()[0]})"
    return None
