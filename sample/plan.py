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


def units(config: SampleConfig) -> list[Unit]:
    """All units of a run, segment by segment."""
    members = np.arange(config.members)
    blocks = [members[i : i + config.members_per_unit] for i in range(0, config.members, config.members_per_unit)]
    return [Unit(days, config.period.halo_days, block) for days in segments(config.period) for block in blocks]


def share(work: list[Unit], environment: Mapping[str, str]) -> list[Unit]:
    """The units of this process: every world-size-th, by the launcher's RANK and WORLD_SIZE.

    Raises:
        ValueError: only one of the two is set, or they do not fit each other.
    """
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    if (rank is None) != (world is None):
        raise ValueError(f"environment: RANK is {rank} and WORLD_SIZE is {world}; set both or neither")
    if rank is None or world is None:
        return work
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ValueError(f"environment: RANK {rank!r} and WORLD_SIZE {world!r}; 0 <= RANK < WORLD_SIZE is needed")
    return work[int(rank) :: int(world)]


def evaluations(config: SampleConfig) -> int:
    """Network evaluations (forward or backward, a window each) for one member of one segment."""
    return network_work(config.sampler, config.guidance).total
