"""The whole preparation of one data set: one YAML, one section a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_prep.world import WorldConfig
from slams.contracts.observations import Operator, OperatorKind
from slams.spec import PAPER_LEVELS_HPA, Grid
from slams.statistics import Kind

YEAR_RANGE = (1800, 2200)


@dataclass(frozen=True)
class SourcesConfig:
    """Where the raw archives lie: glob patterns, relative to the working directory.

    An empty pattern leaves that modality out. `static` gives land-sea mask and orography.
    """

    temperature: str
    precipitation: str = ""
    olr: str = ""
    static: str = ""


@dataclass(frozen=True)
class ArchiveConfig:
    """Raw archives -> one clean archive.

    Arguments:
        path: the archive to write.
        n_latitude, n_longitude: target grid.
        level_hpa: levels of temperature, in channel order.
        train_years, validation_years, test_years: first and last year of each split; they may not overlap.
        missing_days_allowed: days a modality may lack before the stage refuses; a missing day stays missing.
        normalise: ``scalar`` (the paper) or ``anomaly`` (from a smooth day-of-year climatology).
        log_precipitation: standardise log(1 + rain) in place of rain.
    """

    path: str
    sources: SourcesConfig
    n_latitude: int
    n_longitude: int
    train_years: list[int]
    validation_years: list[int]
    test_years: list[int]
    level_hpa: list[int] = field(default_factory=lambda: list(PAPER_LEVELS_HPA))
    missing_days_allowed: int = 0
    normalise: Kind = "anomaly"
    log_precipitation: bool = False

    def __post_init__(self) -> None:
        Grid(self.n_latitude, self.n_longitude)
        taken: dict[int, str] = {}
        for name in ("train_years", "validation_years", "test_years"):
            first, last = _years(name, getattr(self, name))
            for year in range(first, last + 1):
                if year in taken:
                    raise ValueError(f"{name}: {year} belongs to {taken[year]} already; splits may not overlap")
                taken[year] = name
        if self.missing_days_allowed < 0:
            raise ValueError(f"missing_days_allowed: {self.missing_days_allowed} is not allowed; at least 0")
        if not self.level_hpa or len(set(self.level_hpa)) != len(self.level_hpa):
            raise ValueError(f"level_hpa: {self.level_hpa} is not allowed; at least one level, each once")


def _years(name: str, value: list[int]) -> tuple[int, int]:
    low, high = YEAR_RANGE
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name}: {value} is not allowed; [first, last] between {low} and {high}")
    return value[0], value[1]


@dataclass(frozen=True)
class ShardsConfig:
    """Archive -> shards of standardised frames.

    Arguments:
        path: folder to write.
        frames_per_shard: frames a tar.
        keepbits: mantissa bits kept of each value; 12 is a relative error below 1.3e-4.
    """

    path: str
    frames_per_shard: int = 512
    keepbits: int = 12

    def __post_init__(self) -> None:
        if self.frames_per_shard < 1:
            raise ValueError(f"frames_per_shard: {self.frames_per_shard} is not allowed; at least 1")
        if not 1 <= self.keepbits <= 23:
            raise ValueError(f"keepbits: {self.keepbits} is not allowed; 1 to 23")


@dataclass(frozen=True)
class EncodeConfig:
    """Shards of states -> shards of standardised latents.

    Arguments:
        path: folder to write.
        autoencoder: bundle of a trained autoencoder.
        batch: frames encoded at once.
    """

    path: str
    autoencoder: str
    frames_per_shard: int = 512
    keepbits: int = 12
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch: {self.batch} is not allowed; at least 1")
        ShardsConfig(self.path, self.frames_per_shard, self.keepbits)


@dataclass(frozen=True)
class ObservedConfig:
    """How one modality is observed in a simulated observing system.

    Arguments:
        operator: ``none`` (not observed), ``identity``, ``block_mean`` or ``subsample``.
        factor: cells a block.
        noise: standard deviation of the error, in units of each channel's global standard deviation.
    """

    operator: Literal["none", "identity", "block_mean", "subsample"] = "block_mean"
    factor: int = 8
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.noise <= 0:
            raise ValueError(f"noise: {self.noise} is not allowed; more than 0")
        self.as_operator()

    def as_operator(self) -> Operator | None:
        """The operator, or None where nothing is observed."""
        if self.operator == "none":
            return None
        kind: OperatorKind = self.operator
        return Operator(kind, 1 if kind == "identity" else self.factor)


@dataclass(frozen=True)
class ObserveConfig:
    """Archive -> simulated observations of one split, for experiments with a known truth.

    Arguments:
        path: observation set to write.
        split: whose days are observed.
        seed: of the observation errors.
    """

    path: str
    split: str = "test"
    seed: int = 0
    temperature: ObservedConfig = field(default_factory=ObservedConfig)
    precipitation: ObservedConfig = field(default_factory=ObservedConfig)
    olr: ObservedConfig = field(default_factory=ObservedConfig)


@dataclass(frozen=True)
class PrepConfig:
    """One data set. A stage needs its own section and no other."""

    archive: ArchiveConfig
    world: WorldConfig | None = None
    shards: ShardsConfig | None = None
    encode: EncodeConfig | None = None
    observe: ObserveConfig | None = None
