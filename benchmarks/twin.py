"""Twin experiments: the truth is known, observations of it are simulated, and systems are scored on the same dates.

What the programs beside this file share. Every result is a JSON file in the study's folder, found again by its name,
so that a study goes on where it was stopped.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.config import ObservedConfig
from data_prep.systems import GriddedSystem, StationSystem
from sample.assimilator import Assimilator
from sample.config import SampleConfig
from sample.plan import segments
from slams.config import load
from slams.contracts.archive import open_archive
from slams.contracts.observations import Observed
from slams.metrics import EnsembleRMSE, FairCRPS, RankHistogram, SpreadSkill, date_blocks, resampled_dates
from slams.posterior import GuidanceConfig, SamplerConfig
from slams.rng import generator

HALF_WINDOW = 2
RESAMPLES = 2000
Members = Callable[[np.datetime64], np.ndarray]


@dataclass
class Score:
    """Scores of the state by level over all dates, and by date for paired differences.

    Arguments:
        rmse, crps, spread_skill: by level.
        daily_square, daily_crps: mean square error and CRPS, date by level.
        ranks: level by rank, shares.
        seconds, cpu_seconds: wall and processor time of drawing; the second does not mind a busy machine.
    """

    rmse: list[float]
    crps: list[float]
    spread_skill: list[float]
    daily_square: list[list[float]]
    daily_crps: list[list[float]]
    ranks: list[list[float]]
    seconds: float
    cpu_seconds: float
    more: dict[str, Any] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Mean over the levels."""
        return float(np.mean(getattr(self, name)))


class Twin:
    """One archive, one model, one set of dates.

    Arguments:
        config: of a sampling run; its observations are not used.
        folder: where results are kept.
    """

    def __init__(self, config: str, overrides: Sequence[str], folder: str | Path) -> None:
        self.config, self.folder = load(SampleConfig, config, list(overrides)), Path(folder)
        self.archive = open_archive(self.config.archive)
        self.climatology = self.archive.statistics()
        self.dates, self.split = np.concatenate(segments(self.config.period)), "test"
        self.state = next(m for m in self.archive.spec.modalities if m.role == "state")

    @cached_property
    def assimilator(self) -> Assimilator:
        return Assimilator(self.config)

    def on_validation(self, count: int) -> Twin:
        """The same on dates of the validation years, for tuning."""
        other, days = copy.copy(self), self.archive.time[self.archive.days("validation")][HALF_WINDOW:-HALF_WINDOW]
        other.dates, other.split = days[np.linspace(0, len(days) - 1, count).round().astype(int)], "validation"
        return other

    def observed(self, how: dict[str, ObservedConfig], day: np.datetime64) -> list[Observed]:
        """Simulated observations of the window around a day."""
        numbers = {m.name: i for i, m in enumerate(self.archive.spec.modalities)}
        first = int(self.archive.days(self.split)[0])
        block = self.archive.index_of(self.window(day))
        found = []
        for name, each in how.items():
            kind = StationSystem if each.operator == "stations" else GriddedSystem
            modality = self.archive.spec.modality(name)
            found.append(kind(self.archive, self.climatology, modality, each, first, numbers[name], 0).observed(block))
        return found

    @staticmethod
    def window(day: np.datetime64) -> np.ndarray:
        return day + np.arange(-HALF_WINDOW, HALF_WINDOW + 1)

    def truth(self, day: np.datetime64) -> np.ndarray:
        """x_CHW."""
        return self.archive.read(self.archive.index_of([day]))[0]

    def analysis(
        self, how: dict[str, ObservedConfig], sampler: SamplerConfig, guidance: GuidanceConfig, **changes: Any
    ) -> Members:
        """The generative analysis of a day, x_MCHW."""
        system = copy.copy(self.assimilator)
        system.config = replace(self.config, sampler=sampler, guidance=guidance, **changes)
        members = np.arange(system.config.members)

        def draw(day: np.datetime64) -> np.ndarray:
            drawn = system.draw(self.observed(how, day), self.window(day), members)
            for reasons in drawn.diverged.values():
                raise FloatingPointError(reasons[0])  # a way of drawing that needs other noise is no way
            return drawn.x_MLCHW[:, HALF_WINDOW]

        return draw

    def score(self, name: str, draw: Members, **more: Any) -> Score:
        """The score of a system, from its file if it is there."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return Score(**json.loads(path.read_text()))
        found = self.measured(draw)
        found.more = more
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found.__dict__))
        print(
            f"{name:44s} RMSE {found.mean('rmse'):.3f}  CRPS {found.mean('crps'):.3f}  spread-skill "
            f"{found.mean('spread_skill'):.2f}  {found.seconds:.0f} s, CPU {found.cpu_seconds:.0f} s",
            flush=True,
        )
        return found

    def measured(self, draw: Members) -> Score:
        """The score of a system, kept nowhere."""
        part, weights = self.archive.spec.channels(self.state.name), self.archive.spec.grid.area_weights
        n = self.state.n_channels
        rmse, crps, spread = EnsembleRMSE(n, weights), FairCRPS(n, weights), SpreadSkill(n, weights)
        ranks: RankHistogram | None = None
        daily_square, daily_crps, seconds, cpu_seconds = [], [], 0.0, 0.0
        for day in self.dates:
            began, cpu_began = time.perf_counter(), time.process_time()
            members = draw(day)
            seconds += time.perf_counter() - began
            cpu_seconds += time.process_time() - cpu_began
            x, truth = torch.from_numpy(members[:, part]), torch.from_numpy(self.truth(day)[part])
            ranks = ranks or RankHistogram(n, weights, len(x))
            ranks.update(x, truth)
            spread.update(x, truth)
            daily_square.append((rmse(x, truth) ** 2).tolist())
            daily_crps.append(crps(x, truth).tolist())
        assert ranks is not None
        totals = [metric.compute().tolist() for metric in (rmse, crps, spread)]
        shares = ranks.compute().reshape(n, -1).tolist()
        return Score(*totals, daily_square, daily_crps, shares, seconds, cpu_seconds)

    def difference(self, one: Score, other: Score) -> dict[str, list[float]]:
        """CRPS of one minus the other, paired by date: by level and (last) their mean, with its 95 % interval."""
        daily = np.array(one.daily_crps) - np.array(other.daily_crps)
        daily = np.concatenate([daily, daily.mean(axis=1, keepdims=True)], axis=1)
        counts = resampled_dates(date_blocks(self.dates), RESAMPLES, generator(0, "validation"))
        drawn = counts @ daily / counts.sum(axis=1, keepdims=True)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return {"difference": daily.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
