"""Ensemble optimal interpolation as a method of analysis: the same observations, product and scores as the model's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import product

import numpy as np
from torch import Tensor

from sample.config import SampleConfig
from sample.drawn import Drawn
from slams.baselines import climatology_of
from slams.contracts.archive import open_archive
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
        e = config.enoi
        tried = product(e.half_width_km, e.inflation)
        self.choices = [Choice(km, e.half_width_days, inflation, e.season_days) for km, inflation in tried]
        self.archive = open_archive(config.archive)
        self.statistics = climatology_of(self.archive)
        self.checksums = {"statistics_sha256": str(self.archive.attributes["statistics_sha256"])}
        self.frames = 2 * self.wanted.half_window_days + 1

    @property
    def spec(self) -> StateSpec:
        return self.archive.spec

    @property
    def prior(self) -> str:
        return "climatological, anomalies of the train years localised"

    @cached_property
    def choice(self) -> Choice:
        """The only one, or the best on dates of the validation years."""
        if len(self.choices) == 1:
            return self.choices[0]
        seen, k = open_observations(self.wanted.validation), self.wanted.half_window_days
        within = seen.time[k : len(seen.time) - k]
        dates = within[np.linspace(0, len(within) - 1, self.wanted.tuning_dates).round().astype(int)]
        read = partial(self._read, seen)
        return tune(self.archive, self.statistics, dates, read, self.choices, self.config.members)[0]

    def draw(
        self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None = None
    ) -> Drawn:
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

    def _windows(self, seen: Sequence[Observed], n_days: int) -> Iterator[tuple[int, Listed]]:
        """Each day whose window is whole, and what was observed in that window."""
        k = self.wanted.half_window_days
        for frame in range(k, n_days - k):
            window = [each.during(slice(frame - k, frame + k + 1)) for each in seen]
            yield frame, from_observations(window, self.spec, np.arange(-k, k + 1))

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
