"""One unit of work end to end: observations -> guided denoiser -> sampler -> decoder -> product."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sample.assimilator import Assimilator
from sample.background import FirstGuess
from sample.config import SampleConfig
from sample.plan import Unit, evaluations, segments, share, units
from slams.config import to_dict
from slams.contracts.analysis import Analysis, create, open_analysis
from slams.contracts.envelope import ContractError, is_finished, provenance
from slams.contracts.observations import open_observations

WITHOUT_EFFECT = ("verify", "members_per_unit", "memory_gib", "folder", "archive")  # on what is drawn


class Run(Assimilator):
    """The models and observations of a run; `analyse` makes one unit.

    Raises:
        ContractError, ValueError: bundles, observations and configuration that do not belong together.
    """

    def __init__(self, config: SampleConfig) -> None:
        super().__init__(config)
        self.observations = open_observations(config.observations)
        self.observed = _observed_names(config, self)
        self.first_guess = _first_guess(config, self)

    def check_days(self, work: list[Unit]) -> None:
        """Refuse days without observations or background before anything is written.

        Raises:
            ContractError: naming the day.
        """
        for days in {unit.days[0]: unit.all_days for unit in work}.values():
            self._background(days)
        self.observations.check(self.observed, np.unique(np.concatenate([unit.all_days for unit in work])))

    def analyse(self, unit: Unit) -> np.ndarray:
        """Members of a unit on its kept days, x_MLCHW in physical units.

        Raises:
            FloatingPointError: a member diverged, named with its day.
        """
        days = unit.all_days
        seen = self.observations.read_all(self.observed, days)
        x_MLCHW = self.draw(seen, days, unit.members, self._background(days))
        return x_MLCHW[:, unit.halo : unit.halo + len(unit.days)]

    def _background(self, days: np.ndarray) -> Tensor | None:
        if self.first_guess is None:
            return None
        before = days[:1] - 1
        return self.encode(self.first_guess.read(before[0]), before)

    @property
    def prior(self) -> str:
        """Which prior the members are drawn with, in words."""
        if self.first_guess is None:
            return "climatological"
        return f"conditioned on the background {self.first_guess.path} of the day before each segment"


def _first_guess(config: SampleConfig, models: Assimilator) -> FirstGuess | None:
    if not config.background:
        return None
    if not models.model.background_error:
        raise ContractError(f"{config.score}: was trained without a background; `background` must be empty")
    return FirstGuess(config.background, models.score.spec)


def _observed_names(config: SampleConfig, models: Run) -> list[str]:
    observations, spec = models.observations, models.spec
    for name in (*config.without, *config.error_inflation):
        spec.modality(name)
    if observations.space == "latent":
        if config.without:
            raise ValueError(f"without: {config.without} cannot be withheld from observations of latents; []")
        if config.error_inflation:
            raise ValueError(f"error_inflation: {config.error_inflation} is not for observations of latents; {{}}")
        learned = models.score.document
        observations.check_latents(learned.get("autoencoder", ""), learned.get("latent", {}))
        return list(observations.names)
    for name in observations.names:
        given, known = observations.spec.modality(name), next((m for m in spec.modalities if m.name == name), None)
        if known is not None and (given != known or observations.spec.grid != spec.grid):
            raise ContractError(
                f"{observations.path}: {name} ({', '.join(given.channel_names)}; {given.units}; "
                f"{observations.spec.grid.shape}) is not what the model analyses"
            )
    names = [name for name in observations.names if name in spec.names and name not in config.without]
    if not names:
        raise ValueError(f"without: {config.without} leaves no modality to assimilate")
    return names


def plan(config: SampleConfig) -> list[str]:
    """What a run would do, for people."""
    work = units(config)
    done = sum((config.product / "ledger" / f"{unit.name}.json").is_file() for unit in work)
    window = config.period.segment_days + 2 * config.period.halo_days
    return [
        f"product {config.product}: {len(segments(config.period))} segments of {window} days, halo included, "
        f"{config.members} members",
        f"units {len(work)}, finished {done}; {evaluations(config)} network evaluations a member and window",
        f"prior: {'background ' + config.background if config.background else 'climatological'}",
    ]


def run(config: SampleConfig) -> None:
    """Draw what is missing of this process's share; the process that finishes last closes the product.

    Raises:
        ContractError, ValueError: see `Run`.
    """
    work = units(config)
    mine = share(work, os.environ)
    assimilator = Run(config)
    assimilator.check_days(work)
    product = _product(config, assimilator)
    todo = [unit for unit in mine if product.finished(unit.name) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        for unit in bar.track(todo, description=f"sample {config.product.name}"):
            _draw_and_write(assimilator, product, unit)
    if not product.is_complete and all(product.finished(unit.name) for unit in work):
        product.finish()


def _draw_and_write(assimilator: Run, product: Analysis, unit: Unit) -> None:
    began = time.perf_counter()
    x = assimilator.analyse(unit)
    crc32 = product.write(unit.members, np.searchsorted(product.time, unit.days), x)
    entry = {"days": [str(day) for day in unit.days], "members": unit.members.tolist(), "crc32": crc32}
    entry |= {"seed": assimilator.config.seed, "seconds": round(time.perf_counter() - began, 3)}
    product.close_unit(unit.name, entry | {"provenance": provenance()})


def _product(config: SampleConfig, assimilator: Run) -> Analysis:
    """The product to write into: the one that stands, if the same configuration began it, or a new one."""
    made_by = _made_by(config, assimilator)
    path = config.product
    if path.exists():
        product = open_analysis(path)
        is_finished(path, product.attributes["config"], made_by)
        return product
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    time_axis = np.concatenate(segments(config.period))
    attributes = {
        "config": made_by,
        "title": "SLAMS ensemble of analyses",
        "prior": assimilator.prior,
        "assimilated": assimilator.observed,
    }
    create(aside, assimilator.spec, time_axis, config.members, attributes)
    _claim(aside, path)
    return open_analysis(path)


def _claim(aside: Path, path: Path) -> None:
    """Rename into place; where another process was first, its empty product serves as well."""
    try:
        aside.rename(path)
    except OSError:
        if not path.exists():
            raise
        for leftover in sorted(aside.rglob("*"), reverse=True):
            leftover.rmdir() if leftover.is_dir() else leftover.unlink()
        aside.rmdir()


def _made_by(config: SampleConfig, assimilator: Run) -> dict[str, Any]:
    """What decides the product's content: the configuration, less what only shares the work, and the checksums."""
    content = {k: v for k, v in to_dict(config).items() if k not in WITHOUT_EFFECT}
    return content | {
        "score_sha256": assimilator.score.checksum,
        "observations_sha256": assimilator.observations.checksum,
    }
