"""The sums of every score of every system over the dates of a verification, by any number of processes.

The dates are cut into chunks of `CHUNK_DAYS`, whatever the number of processes; a chunk is scored by one process on one
thread, and chunks are merged in their order. So the numbers do not depend on who did what. One date and the one
before it are in memory, and of each date that was scored its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sample.case import Case
from sample.progress import progress
from sample.sums import OF_MEMBERS, Key, Pair, Sums
from slams import metrics
from slams.contracts.analysis import drawn
from slams.metrics.area import AreaMean

CHUNK_DAYS = 16
TRUTH = "truth"
SPECTRA = ("members", "mean", "truth", "increment")


@dataclass
class Tally:
    """What was summed over some dates.

    Arguments:
        sums: by date, of every system.
        n_members: of each system, on the date on which most were drawn.
        spectra: of the analysis of the state: sums (K, C) and weights (C,) over all dates.
        ranks: the same of its rank histogram, over the dates on which most members were drawn.
    """

    sums: Sums
    n_members: dict[str, int]
    spectra: dict[str, Pair]
    ranks: Pair

    @classmethod
    def joined(cls, parts: list[Tally]) -> Tally:
        """The tally of parts that follow one another in time."""
        spectra = {kind: _added([part.spectra[kind] for part in parts]) for kind in SPECTRA}
        sums = Sums.joined([part.sums for part in parts])
        most = {system: max(part.n_members[system] for part in parts) for system in parts[0].n_members}
        return cls(sums, most, spectra, _added([part.ranks for part in parts]))


def _added(pairs: list[Pair]) -> Pair:
    total, weight = zip(*pairs, strict=True)
    return np.sum(total, axis=0), np.sum(weight, axis=0)


def tallied(case: Case, processes: int = 1) -> Tally:
    """The tally of all dates of a case.

    Raises:
        ContractError: a level of the state's truth is missing altogether on a date.
    """
    days = np.arange(len(case.time))
    chunks = [days[start : start + CHUNK_DAYS] for start in range(0, len(days), CHUNK_DAYS)]
    named = [Chunk(f"{case.time[where[0]]} to {case.time[where[-1]]}") for where in chunks]
    with _scorers(case, min(processes, len(chunks))) as found:
        return Tally.joined([part for _, part in zip(progress(named, "verify"), found(chunks), strict=True)])


class Chunk(NamedTuple):
    """Dates that one process scores."""

    name: str


@contextmanager
def _scorers(case: Case, processes: int) -> Iterator[Callable[[list[np.ndarray]], Iterable[Tally]]]:
    """A function from chunks to their tallies, in order."""
    if processes == 1:
        yield lambda chunks: (tally(case, where) for where in chunks)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _given, (case,)) as pool:
        yield lambda chunks: pool.map(_tally_given, chunks)


def _given(case: Case) -> None:
    """In a process of a pool: the case it scores chunks of."""
    global _CASE  # the only way to give a process something once, not with each task
    _CASE = case


def _tally_given(where: np.ndarray) -> Tally:
    return tally(_CASE, where)


def tally(case: Case, where: np.ndarray) -> Tally:
    """The tally of consecutive positions on the time axis, (L,)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order have other last bits
    try:
        scorer = _Scorer(case)
        if where[0]:
            scorer.remember(int(where[0]) - 1)
        for position in where:
            scorer.add(int(position))
    finally:
        torch.set_num_threads(threads)
    return scorer.tally(case.time[where])


@dataclass
class _Fields:
    """A date: members x_MCHW of each system, NaN where one was not drawn, and the truth."""

    members: dict[str, Tensor] = field(default_factory=dict)
    truth: Tensor = field(default_factory=lambda: torch.empty(0))


class _Scorer:
    """Scores date after date of a case."""

    def __init__(self, case: Case) -> None:
        self.case, spec = case, case.spec
        n, weights = spec.n_channels, spec.grid.area_weights
        self.kinds: dict[str, AreaMean] = {
            "rmse": metrics.EnsembleRMSE(n, weights),
            "crps": metrics.FairCRPS(n, weights),
            "spread_skill": metrics.SpreadSkill(n, weights),
            "bias": metrics.Bias(n, weights),
            "spread": metrics.Spread(n, weights),
            "w1": metrics.Wasserstein(*case.scale, spec.grid.shape),
        }
        self.day_change = metrics.DayChange(n, weights)
        profiles = [m for m in spec.modalities if m.standard_name == "air_temperature" and len(m.level_hpa) > 1]
        self.unstable = {m.name: metrics.UnstableLayers(m.level_hpa, weights) for m in profiles}
        self.spectra = {kind: metrics.ZonalSpectrum(case.state.n_channels, weights) for kind in SPECTRA}
        self.most = int(case.analysis.n_drawn.max())
        self.ranks = metrics.RankHistogram(n, weights, self.most)
        self.before = _Fields()
        self.found: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        self.n_members: dict[str, int] = {}

    def remember(self, where: int) -> None:
        """The date before the first, for the change between the two."""
        self.before = self._read(where)

    def _read(self, where: int) -> _Fields:
        members = {system: torch.from_numpy(x) for system, x in self.case.systems(where)}
        return _Fields(members, torch.from_numpy(self.case.truth(where)))

    def add(self, where: int) -> None:
        """Score a date."""
        now, time = self._read(where), self.case.time
        follows = where > 0 and time[where] - time[where - 1] == np.timedelta64(1, "D")
        for system, members in now.members.items():
            x = members[drawn(members.numpy())]
            self.n_members[system] = max(len(x), self.n_members.get(system, 0))
            for score, kind in self.kinds.items():
                alone = score in OF_MEMBERS and len(x) == 1 < len(members)  # the last of many has no spread to count
                self._keep(system, score, _nothing(kind) if alone else kind.sums(x, now.truth))
            at_join = follows and self.case.is_join(where)
            self._keep(system, "day_change", self._changed(system, now, follows and not at_join))
            self._keep(system, "day_change_at_joins", self._changed(system, now, at_join))
            self._keep_unstable(system, x, now.truth)
        self._keep_unstable(TRUTH, now.truth[None], now.truth)
        analysis = now.members["analysis"]
        self._whole(analysis[drawn(analysis.numpy())], now.truth, where)
        self.before = now

    def _changed(self, system: str, now: _Fields, follows: bool) -> tuple[Tensor, Tensor]:
        """Sums of the change since the day before, of the members drawn on both; nothing where there is no such day."""
        if follows:
            one, other = self.before.members[system], now.members[system]
            both = torch.from_numpy(drawn(one.numpy()) & drawn(other.numpy()))
            if both.any():
                change, true_change = other[both].double() - one[both], now.truth.double() - self.before.truth
                return self.day_change.sums(change, true_change)
        return _nothing(self.day_change)

    def _keep(self, system: str, score: str, sums: tuple[Tensor, Tensor]) -> None:
        for modality in self.case.spec.modalities:
            part = self.case.spec.channels(modality.name)
            self.found.setdefault((system, modality.name, score), []).append((sums[0][:, part], sums[1][part]))

    def _keep_unstable(self, system: str, x: Tensor, truth: Tensor) -> None:
        for name, kind in self.unstable.items():
            part = self.case.spec.channels(name)
            self.found.setdefault((system, name, "unstable"), []).append(kind.sums(x[:, part], truth[part]))

    def _whole(self, x: Tensor, truth: Tensor, where: int) -> None:
        """What is kept of the analysis over all dates together."""
        if len(x) == self.most:  # ranks among fewer are others
            self.ranks.update(x, truth)
        part = self.case.spec.channels(self.case.state.name)
        guess, x, truth = torch.from_numpy(self.case.guess(where))[part], x[:, part], truth[part]
        mean = x.double().mean(dim=0, keepdim=True)
        given = {"members": x, "mean": mean, "truth": truth[None], "increment": mean - guess}
        for kind, fields in given.items():
            self.spectra[kind].update(fields, truth)

    def tally(self, time: np.ndarray) -> Tally:
        """What was summed."""
        found = {key: _stacked(pairs) for key, pairs in self.found.items()}
        spectra = {kind: _pair(spectrum) for kind, spectrum in self.spectra.items()}
        return Tally(Sums(time, found), self.n_members, spectra, _pair(self.ranks))


def _nothing(metric: AreaMean) -> tuple[Tensor, Tensor]:
    """Sums and weights of a date that does not count."""
    return torch.zeros_like(metric.total), torch.zeros_like(metric.weight)


def _pair(metric: AreaMean) -> Pair:
    return metric.total.numpy(), metric.weight.numpy()


def _stacked(pairs: Iterable[tuple[Tensor, Tensor]]) -> Pair:
    """Sums and weights of each date, (D, S, C) and (D, C)."""
    total, weight = zip(*pairs, strict=True)
    return torch.stack(total).numpy(), torch.stack(weight).numpy()
