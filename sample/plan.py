"""Segments x members -> units of work. Which rank draws a unit changes nothing in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sample.config import PeriodConfig, SampleConfig
from slams.posterior import network_work


@dataclass(frozen=True)
class Unit:
    """One segment of days for one block of members.

    Arguments:
        days: valid days that are kept, (L,).
        halo: days drawn and thrown away on each side.
        members: member numbers.
    """

    days: np.ndarray
    halo: int
    members: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.days[0]}_{self.days[-1]}_m{self.members[0]:03d}-{self.members[-1]:03d}"

    @property
    def all_days(self) -> np.ndarray:
        """The kept days with their halo."""
        return np.arange(self.days[0] - self.halo, self.days[-1] + self.halo + 1)


def segments(period: PeriodConfig) -> list[np.ndarray]:
    """Kept days of each segment, in order; the last is cut at the period's end."""
    first, last = np.datetime64(period.first_day, "D"), np.datetime64(period.last_day, "D")
    starts = np.arange(first, last + 1, period.every_days or period.segment_days)
    return [np.arange(start, min(start + period.segment_days, last + 1)) for start in starts]


def units(config: SampleConfig, members_per_unit: int) -> list[Unit]:
    """All units of a run, segment by segment."""
    members = np.arange(config.members)
    blocks = [members[i : i + members_per_unit] for i in range(0, config.members, members_per_unit)]
    return [Unit(days, config.period.halo_days, block) for days in segments(config.period) for block in blocks]


def by_segment(work: list[Unit]) -> dict[np.datetime64, list[Unit]]:
    """Units by the first day that they keep."""
    found: dict[np.datetime64, list[Unit]] = {}
    for unit in work:
        found.setdefault(unit.days[0], []).append(unit)
    return found


def share(work: list[Unit], environment: Mapping[str, str]) -> list[Unit]:
    """The units of this process: every n-th, by its number among those of its launcher, within those of a job array.

    A launcher sets RANK and WORLD_SIZE; `srun` alone SLURM_PROCID and SLURM_NTASKS, which a batch script has too, but
    without a step.

    Raises:
        ValueError: half of what a launcher or an array sets, or what does not fit together.
    """
    launched = environment.keys() & {"RANK", "WORLD_SIZE"} or "SLURM_STEP_ID" not in environment
    rank, ranks = _place(environment, *(("RANK", "WORLD_SIZE") if launched else ("SLURM_PROCID", "SLURM_NTASKS")), "0")
    task, tasks = _place(environment, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
    return work[task * ranks + rank :: tasks * ranks]


def _place(environment: Mapping[str, str], number: str, count: str, first: str) -> tuple[int, int]:
    """Which one of how many, by names that are both set or both not."""
    if environment.get(number) is None and environment.get(count) is None:
        return 0, 1
    said = {name: environment.get(name, "") for name in (number, count)}
    lowest, step = environment.get(first, "0"), environment.get("SLURM_ARRAY_TASK_STEP", "1") if first != "0" else "1"
    whole = all(value.isdigit() for value in (*said.values(), lowest, step))
    place = (int(said[number]) - int(lowest)) // int(step) if whole else -1
    if not whole or not 0 <= place < int(said[count]):
        given = " and ".join(f"{name} {value!r}" for name, value in said.items())
        allowed = f"whole numbers, 0 <= {number} < {count} counted from {lowest}, or neither is needed"
        raise ValueError(f"environment: {given}; {allowed}")
    return place, int(said[count])


def evaluations(config: SampleConfig) -> int:
    """Network evaluations (forward or backward, a window each) for one member of one segment."""
    return network_work(config.sampler, config.guidance).total
