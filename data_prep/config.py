"""The whole preparation of one data set: one YAML, one section a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from data_prep.limits import StationsConfig
from data_prep.masks import SwathConfig
from data_prep.regrid import RegridConfig
from data_prep.workers import WorkersConfig
from data_prep.world import WorldConfig
from slams.contracts.gridded import Operator, OperatorKind
from slams.spec import PAPER_LEVELS_HPA, Grid
from slams.statistics import Kind

YEAR_RANGE = (1800, 2200)
AXES = ("time", "run", "level", "latitude", "longitude")
MASKS = ("land", "ocean", "swath", "network")


@dataclass(frozen=True)
class SourcesConfig:
    """Where the raw archives lie: a glob pattern of files or Zarr stores, relative to the working directory, or a URL.

    An empty pattern leaves that modality out. `static` gives land-sea mask and orography.
    """

    temperature: str
    precipitation: str = ""
    olr: str = ""
    static: str = ""


@dataclass(frozen=True)
class VariableConfig:
    """A further variable of the state, on the levels of temperature or at the surface.

    Arguments:
        name, standard_name: in the archive; the latter from the CF table.
        units: in the files and in the archive; files in another unit are refused.
        files: pattern, as in `SourcesConfig`.
        short_names: of it in the files, best first; in GRIB the shortName.
        valid_range: smallest and largest value allowed; any other is refused.
        on_levels: whether it has the levels of temperature.
        regrid: how it comes onto the grid.
        decimals: of each value that are kept, in its unit; null keeps as many as `ArchiveConfig.decimals` says.
    """

    name: str
    standard_name: str
    units: str
    files: str
    short_names: list[str]
    valid_range: list[float]
    on_levels: bool = True
    regrid: Literal["conservative", "bilinear", "nearest"] = "conservative"
    decimals: int | None = None

    def __post_init__(self) -> None:
        _check_decimals(self.decimals)
        if self.name in (*(source.name for source in fields(SourcesConfig)), *AXES):
            raise ValueError(f"name: {self.name!r} is taken")
        if len(self.valid_range) != 2 or not self.valid_range[0] < self.valid_range[1]:
            raise ValueError(f"valid_range: {self.valid_range} is not allowed; [smallest, largest]")
        if not self.short_names:
            raise ValueError("short_names: none is not allowed; at least one")


@dataclass(frozen=True)
class ArchiveConfig:
    """Raw archives -> one clean archive.

    Arguments:
        path: the archive to write.
        n_latitude, n_longitude: target grid.
        level_hpa: levels of temperature, in channel order.
        train_years, validation_years, test_years: first and last year of each split; they may not overlap.
        missing_days_allowed: days of the splits a modality may lack before the stage refuses; such a day stays missing.
        normalise: ``scalar`` (the paper) or ``anomaly`` (from a smooth day-of-year climatology).
        log_precipitation: standardise log(1 + rain) in place of rain.
        variables: further variables of the state, after the others in channel order.
        decimals: of each value that are kept, in its unit (2: an error of 0.005 at most); null keeps every bit. An
            error of more than a hundredth of a channel's standard deviation is refused.
        regrid: the method of each modality.
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
    decimals: int | None = 2
    variables: list[VariableConfig] = field(default_factory=list)
    regrid: RegridConfig = field(default_factory=RegridConfig)

    def __post_init__(self) -> None:
        _check_decimals(self.decimals)
        Grid(self.n_latitude, self.n_longitude)
        if len({variable.name for variable in self.variables}) < len(self.variables):
            raise ValueError("variables: no name may stand twice")
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


def content(archive: Mapping[str, Any]) -> dict[str, Any]:
    """What an archive's section says of its values: neither where it lies nor how much it may lack."""
    return {key: value for key, value in archive.items() if key not in ("path", "missing_days_allowed")}


def comparable(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a stage says that it was made by: all but where it lies, and of its archive what `content` says."""
    return {key: content(value) if key == "archive" else value for key, value in made_by.items() if key != "path"}


def _check_decimals(decimals: int | None) -> None:
    if decimals is not None and decimals < 0:
        raise ValueError(f"decimals: {decimals} is not allowed; at least 0, or null")


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
class OnGridConfig:
    """How fields are observed through an operator on their grid.

    Arguments:
        operator: ``identity``, ``block_mean`` or ``subsample``.
        factor: cells a block.
        keep_every: of what the operator gives, every how many-th value is kept in each direction.
        every_days: observed on every so many-th day, from the first of the split on.
        noise: standard deviation of the error, in units of each channel's global standard deviation; of latents, in
            units of the standardised latents (the published code adds it to latents of whatever scale they have).
    """

    operator: Literal["identity", "block_mean", "subsample"] = "block_mean"
    factor: int = 8
    keep_every: int = 1
    every_days: int = 1
    noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("keep_every", "every_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        _check_noise("noise", self.noise)
        if self.operator in get_args(OperatorKind):
            self.as_operator()

    def as_operator(self) -> Operator:
        """The operator on the grid.

        Raises:
            ValueError: a factor below 1, or an operator that is none on a grid.
        """
        kept = Operator("subsample", self.keep_every) if self.keep_every > 1 else None
        return Operator(self.operator, 1 if self.operator == "identity" else self.factor, kept)


def _check_noise(name: str, noise: float) -> None:
    if not 0 < noise < math.inf:
        raise ValueError(f"{name}: {noise} is not allowed; more than 0 and finite")


@dataclass(frozen=True)
class ObservedConfig(OnGridConfig):
    """How one modality is observed in a simulated observing system.

    Arguments:
        operator: also ``none`` (not observed), or ``stations``: random places, the same every day, all levels.
        share: stations, or cells of the mask ``network``, as a share of the grid's cells (of the operator's grid).
        masks: where it is observed, all of: ``land``, ``ocean``, ``swath`` (of a polar orbiter), ``network`` (a random
            share of the cells, the same every day); empty means everywhere.
        swath: of the mask of that name.
        noise_by_level: as `noise`, one a level in channel order, and in its place; empty where all have `noise`.
    """

    operator: Literal["none", "identity", "block_mean", "subsample", "stations"] = "block_mean"
    share: float = 0.01
    masks: list[str] = field(default_factory=list)
    swath: SwathConfig = field(default_factory=SwathConfig)
    noise_by_level: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for noise in self.noise_by_level:
            _check_noise("noise_by_level", noise)
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not allowed; more than 0, at most 1")
        for mask in self.masks:
            if mask not in MASKS:
                raise ValueError(f"masks: {mask!r} is not allowed; {', '.join(MASKS)}")
        if self.operator == "stations" and ("network" in self.masks or self.keep_every > 1):
            raise ValueError("masks, keep_every: stations are a network already; `share` says how dense")


@dataclass(frozen=True)
class ObserveConfig:
    """Archive -> simulated observations of one split, for experiments with a known truth.

    Arguments:
        path: observation set to write.
        split: whose days are observed.
        seed: of the observation errors and of what is placed by chance.
        space: ``physical``, each modality as its section says; or ``latent``, the published experiment: the latents of
            the true states (section `encode`) as `latent` says, and no modality itself.
    """

    path: str
    split: str = "test"
    seed: int = 0
    space: Literal["physical", "latent"] = "physical"
    temperature: ObservedConfig = field(default_factory=ObservedConfig)
    precipitation: ObservedConfig = field(default_factory=ObservedConfig)
    olr: ObservedConfig = field(default_factory=ObservedConfig)
    latent: OnGridConfig = field(default_factory=OnGridConfig)


@dataclass(frozen=True)
class BackgroundConfig:
    """Archive -> simulated backgrounds (first guesses) of one split.

    Arguments:
        path: archive to write.
        split: whose days.
        error_share: error of the background, as a share of the climatological spread.
        seed: of the errors.
    """

    path: str
    split: str = "test"
    error_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.error_share <= 0:
            raise ValueError(f"error_share: {self.error_share} is not allowed; more than 0")


@dataclass(frozen=True)
class PrepConfig:
    """One data set. A stage needs its own section and no other."""

    archive: ArchiveConfig
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    world: WorldConfig | None = None
    shards: ShardsConfig | None = None
    encode: EncodeConfig | None = None
    observe: ObserveConfig | None = None
    background: BackgroundConfig | None = None
    stations: StationsConfig | None = None
