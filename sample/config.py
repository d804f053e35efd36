"""One assimilation: what is observed, by which model, drawn how, and how it is verified."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from slams.contracts.storage import place
from slams.posterior import GuidanceConfig, SamplerConfig


@dataclass(frozen=True)
class PeriodConfig:
    """Which days are analysed.

    Arguments:
        first_day, last_day: ISO dates.
        segment_days: consecutive days drawn together; a segment's halo comes on top.
        every_days: days from the start of one segment to the next; 0 = contiguous segments.
        halo_days: days on both sides of a segment that are drawn and thrown away, so that its first and last day
            see their future and past. Segments that follow one another share the noise of the days that they share;
            with 4 days no seam shows (tests/test_same_analysis.py), with 2 the change from day to day is 7 % larger
            where they join.
    """

    first_day: str
    last_day: str
    segment_days: int = 1
    every_days: int = 0
    halo_days: int = 4

    def __post_init__(self) -> None:
        for name in ("first_day", "last_day"):
            if not is_day(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not a date of the form 1989-01-31")
        if self.last_day < self.first_day:
            raise ValueError(f"last_day: {self.last_day} is before first_day, {self.first_day}")
        if self.segment_days < 1 or self.halo_days < 0:
            raise ValueError(f"segment_days, halo_days: {self.segment_days}, {self.halo_days}; at least 1 and 0")
        if self.every_days and self.every_days < self.segment_days:
            raise ValueError(f"every_days: {self.every_days} is less than segment_days, {self.segment_days}")


def is_day(text: str) -> bool:
    """Whether a text is an ISO date and nothing else that a library reads as one ("today", "1989-01", "NaT")."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True)
class EnoiConfig:
    """Ensemble optimal interpolation; of several widths and inflations the best on validation dates is taken.

    Arguments:
        half_width_km: of the localisation, to be tried; 0 = none.
        inflation: of the anomalies' variance, to be tried.
        half_width_days: of the localisation in time; 0 = none.
        season_days: anomalies are of days of the year so near the analysed one's.
        half_window_days: days before and after the analysed one whose observations are used.
        validation: observations of the archive's validation years, made as those that are assimilated; needed where
            there is a choice.
        tuning_dates: of those years.
    """

    half_width_km: list[float] = field(default_factory=lambda: [6000.0, 10_000.0])
    inflation: list[float] = field(default_factory=lambda: [0.7, 1.0])
    half_width_days: float = 0.0
    season_days: int = 60
    half_window_days: int = 2
    validation: str = ""
    tuning_dates: int = 4

    def __post_init__(self) -> None:
        for name in ("half_width_km", "inflation"):
            if not getattr(self, name):
                raise ValueError(f"{name}: [] is not allowed; at least one number")
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; finite numbers")
        for name, least in (("half_window_days", 0), ("tuning_dates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")

    @property
    def n_choices(self) -> int:
        return len(self.half_width_km) * len(self.inflation)


@dataclass(frozen=True)
class VerifyConfig:
    """How a run is verified.

    Arguments:
        bootstrap: resamples of the dates behind each confidence interval.
        folder: where scores and pictures go; empty = ``verify`` in the run's folder, unless that is a URL.
        observations: an observation set that was never assimilated, against which the members are verified as well;
            empty = none.
        processes: among which the dates are shared; the scores are the same, bit for bit, for any number.
        wandb: where page, tables and figures are logged, as one artifact; ``offline`` keeps the record in the folder.
        project: its name on wandb.
    """

    bootstrap: int = 1000
    folder: str = ""
    observations: str = ""
    processes: int = 1
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "slams"

    def __post_init__(self) -> None:
        for name in ("bootstrap", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")


@dataclass(frozen=True)
class SampleConfig:
    """An assimilation run.

    Arguments:
        folder: run folder, or the URL of one; the product is ``analysis.zarr`` in it.
        method: ``score``, drawn by the score network; or ``enoi``, ensemble optimal interpolation with anomalies of the
            archive's train years, the rival that a generative analysis has to beat.
        score: bundle of the score network.
        autoencoder: bundle of the autoencoder whose latents it learned; empty for a score network of states.
        observations: observation set.
        archive: the truth, for verification only, and the anomalies of the method ``enoi``.
        members: M.
        seed: of the ensemble.
        without: modalities withheld from the assimilation; the product is then ``analysis-without-NAME.zarr`` and
            stands in the verification beside the full one.
        error_inflation: factor on the error of each modality's observations, by name; 1 unless told. Full-resolution
            radiation and rain need about 6: their neighbours' errors are not independent.
        members_per_unit: members of a unit of work, which one process draws and writes; 0 = as many as memory_gib
            holds. A product keeps the units with which it was begun.
        memory_gib: what the networks may hold at once while members are drawn.
        background: archive or earlier analysis that holds the state of the day before each segment with its halo, for
            a score network trained with one; empty = the climatological prior.
        bf16: network evaluations in bfloat16.
        time_limit_minutes: leave, with a status that asks to be started again, before a unit that would end later;
            0 = no limit.
        keepbits: mantissa bits to which the product is rounded, a relative error of at most 2^-(keepbits + 1);
            0 = as drawn.
    """

    folder: str
    observations: str
    archive: str
    period: PeriodConfig
    method: Literal["score", "enoi"] = "score"
    score: str = ""
    autoencoder: str = ""
    members: int = 8
    seed: int = 0
    without: list[str] = field(default_factory=list)
    error_inflation: dict[str, float] = field(default_factory=dict)
    members_per_unit: int = 0
    memory_gib: float = 4.0
    background: str = ""
    bf16: bool = False
    time_limit_minutes: float = 0.0
    keepbits: int = 0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    enoi: EnoiConfig = field(default_factory=EnoiConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("members_per_unit", 0), ("time_limit_minutes", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        if not 0 <= self.keepbits <= 23:
            raise ValueError(f"keepbits: {self.keepbits} is not allowed; 0 to 23")
        if not 0 < self.memory_gib < math.inf:
            raise ValueError(f"memory_gib: {self.memory_gib} is not allowed; a number above 0")
        for name, factor in self.error_inflation.items():
            if not 0 < factor < math.inf:
                raise ValueError(f"error_inflation.{name}: {factor} is not allowed; a number above 0")
        self._check_method()
        if len(set(self.without)) != len(self.without):
            raise ValueError(f"without: {self.without} names a modality twice")

    def _check_method(self) -> None:
        if self.method == "score" and not self.score:
            raise ValueError("score: is empty; the bundle of a score network is needed")
        if self.method == "enoi" and self.enoi.n_choices > 1 and not self.enoi.validation:
            raise ValueError("enoi.validation: is empty, but half_width_km or inflation leave a choice to be made")
        if self.method == "enoi" and self.error_inflation:
            raise ValueError(f"error_inflation: {self.error_inflation} is not for the method enoi; {{}}")
        if self.method == "enoi" and self.period.halo_days < self.enoi.half_window_days:
            raise ValueError(
                f"period.halo_days: {self.period.halo_days} is less than enoi.half_window_days, "
                f"{self.enoi.half_window_days}"
            )

    @property
    def product(self) -> Path:
        """Where the analysis goes."""
        return place(self.folder) / ("analysis" + "".join(f"-without-{name}" for name in self.without) + ".zarr")
