"""Ensemble optimal interpolation as a method of analysis: the same observations, product and scores as the model's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from sample.config import SampleConfig
from sample.drawn import Drawn
from slams.baselines import climatology_of
from slams.contracts.archive import open_archive
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Observations, Observed, open_observations
from slams.enoi import Choice
from slams.enoi_archive import MOST_ANOMALIES, analysis, tune
from slams.enoi_observations import Listed, from_observations
from slams.spec import StateSpec


class Interpolator:
    """Anomalies of the train years, localised and tuned on validation dates (`slams.enoi`).

    Raises:
        ContractError, ValueError: no archive, or observations of validation years that do not belong to it.
    """

    def __init__(self, config: SampleConfig) -> None:
        self.config, self.wanted = config, config.enoi
        self.frames = 2 * self.wanted.half_window_days + 1
        e = config.enoi
        tried, days = product(e.half_width_km, e.inflation), e.half_width_days or np.inf
        self.choices = [Choice(km or np.inf, days, inflation, e.season_days) for km, inflation in tried]
        self.archive = open_archive(config.archive)
        self.statistics = climatology_of(self.archive)
        self.checksums = {"statistics_sha256": str(self.archive.attributes["statistics_sha256"])}
        self.validation = self._opened_validation() if len(self.choices) > 1 else None
        if self.validation is not None:
            self.checksums |= {"validation_sha256": self.validation.checksum}

    @property
    def spec(self) -> StateSpec:
        return self.archive.spec

    @property
    def prior(self) -> str:
        return "climatological, anomalies of the train years localised"

    @cached_property
    def choice(self) -> Choice:
        """The only one, or the best on dates of the validation years."""
        if self.validation is None:
            return self.choices[0]
        dates = self._whole_windows(self.validation.time)
        dates = dates[np.linspace(0, len(dates) - 1, self.wanted.tuning_dates).round().astype(int)]
        read = partial(self._read, self.validation)
        return tune(self.archive, self.statistics, dates, read, self.choices, self.config.members)[0]

    @property
    def told(self) -> dict[str, Any]:
        """For the ledger: what was chosen, null where nothing localises."""
        chosen = {name: value if np.isfinite(value) else None for name, value in asdict(self.choice).items()}
        return {"enoi": chosen}

    def draw(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None = None) -> Drawn:
        """Members on consecutive days; NaN on days whose window is not whole.

        Arguments:
            seen: what was observed on those days.
            z_b: for the interface's sake; the background is climatology.
        """
        x_MLCHW = np.full((len(members), len(days), self.spec.n_channels, *self.spec.grid.shape), np.nan, np.float32)
        for frame, observed in self._windows(seen, len(days)):
            _, drawn = analysis(
                self.archive, self.statistics, days[frame], observed, self.choice, self.config.seed, self.config.members
            )
            x_MLCHW[:, frame] = self._admissible(drawn[members])
        return Drawn(x_MLCHW, {})

    def seconds(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None) -> float:
        """What those days take, from a trial of one."""
        _ = self.choice
        began, k = time.perf_counter(), self.wanted.half_window_days
        self.draw([each.during(slice(0, self.frames)) for each in seen], days[: self.frames], members)
        return (time.perf_counter() - began) * (len(days) - 2 * k)

    def members_at_once(self, n_days: int) -> int:
        """All: a date's matrices are the same for each."""
        return self.config.members

    def held_bytes(self, n_days: int, n_members: int) -> int:
        """The anomalies of a season, in float32."""
        return 4 * MOST_ANOMALIES * self.spec.n_channels * int(np.prod(self.spec.grid.shape))

    def at_once(self, n_days: int) -> list[int]:
        return []

    threads = 0  # its matrices are solved in double precision and rounded to single

    def use_threads(self, number: int) -> None:
        """Nothing: see `threads`."""

    def _windows(self, seen: Sequence[Observed], n_days: int) -> Iterator[tuple[int, Listed]]:
        """Each day whose window is whole, and what was observed in that window."""
        k = self.wanted.half_window_days
        for frame in range(k, n_days - k):
            window = [each.during(slice(frame - k, frame + k + 1)) for each in seen]
            yield frame, from_observations(window, self.spec, np.arange(-k, k + 1))

    def _opened_validation(self) -> Observations:
        """The observations to tune with.

        Raises:
            ContractError: they are of another grid or other levels, or of fewer days than a window.
        """
        seen = open_observations(self.wanted.validation)
        for name in seen.names:
            if name not in self.spec.names or seen.spec.modality(name) != self.spec.modality(name):
                raise ContractError(f"{seen.path}: its {name} is not that of {self.archive.path}")
        if seen.spec.grid != self.spec.grid:
            raise ContractError(f"{seen.path}: has a grid of {seen.spec.grid.shape}, not {self.spec.grid.shape}")
        if not len(self._whole_windows(seen.time)):
            raise ContractError(f"{seen.path}: holds {len(seen.time)} days; a window has {self.frames}")
        return seen

    def _whole_windows(self, time: np.ndarray) -> np.ndarray:
        """The days whose window is whole."""
        return time[self.wanted.half_window_days : len(time) - self.wanted.half_window_days]

    def _read(self, seen: Observations, day: np.datetime64) -> Listed:
        around = np.arange(-self.wanted.half_window_days, self.wanted.half_window_days + 1)
        names = [name for name in seen.names if name not in self.config.without]
        return from_observations(seen.read_all(names, day + around), self.spec, around)

    def _admissible(self, x_MCHW: np.ndarray) -> np.ndarray:
        """Rain not below none, and nothing where a channel is never observed."""
        if "precipitation" in self.spec.names:
            rain = x_MCHW[:, self.spec.channels("precipitation")]
            np.maximum(rain, 0, out=rain)
        return np.where(self.statistics.observed, x_MCHW, np.nan)
