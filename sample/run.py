"""The models and observations of a run, and how a unit of its work is analysed."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from sample.assimilator import Assimilator, Drawn
from sample.background import FirstGuess
from sample.config import SampleConfig
from sample.plan import Unit, units
from slams.config import to_dict
from slams.contracts.analysis import open_analysis, stands
from slams.contracts.envelope import ContractError
from slams.contracts.observations import open_observations

# on what is drawn
WITHOUT_EFFECT = ("verify", "members_per_unit", "memory_gib", "folder", "archive", "time_limit_minutes")


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

        Arguments:
            work: all units of a run, whoever draws them: a cluster refuses what one process refuses.

        Raises:
            ContractError: naming the day.
            ValueError: a segment is shorter than a window of the score network.
        """
        segments = {unit.days[0]: unit.all_days for unit in work}.values()
        if min(map(len, segments)) < self.model.frames:
            raise ValueError(
                f"period.segment_days, halo_days: a segment of {min(map(len, segments))} days, halo included, is left; "
                f"at least {self.model.frames}, a window of {self.score.folder}, are needed"
            )
        for days in segments:
            self.first_guess_of(days)
        self.observations.check(self.observed, np.unique(np.concatenate(list(segments))))

    def analyse(self, unit: Unit, first_guess_CHW: np.ndarray | None) -> Drawn:
        """Members of a unit on its kept days, given what `first_guess_of` said of all of them."""
        days = unit.all_days
        seen = self.observations.read_all(self.observed, days)
        background = None if first_guess_CHW is None else self.encode(first_guess_CHW, days[:1] - 1)
        drawn = self.draw(seen, days, unit.members, background)
        return replace(drawn, x_MLCHW=drawn.x_MLCHW[:, unit.halo : unit.halo + len(unit.days)])

    def seconds(self, unit: Unit) -> float:
        """What a unit takes, from trials of one and of two steps."""
        steps = self.config.sampler.steps
        _, one, two = (self._trial(unit, n) for n in (1, 1, 2))  # the first also pays for what is done once
        return one + (steps - 1) * max(two - one, 0.0)

    def _trial(self, unit: Unit, steps: int) -> float:
        made = copy(self)
        made.config = replace(self.config, sampler=replace(self.config.sampler, steps=steps))
        began = time.perf_counter()
        made.analyse(unit, made.first_guess_of(unit.all_days))
        return time.perf_counter() - began

    def first_guess_of(self, days: np.ndarray) -> np.ndarray | None:
        """The state of the day before, x_CHW in physical units, or none."""
        return None if self.first_guess is None else self.first_guess.read(days[0] - 1)

    def units(self) -> list[Unit]:
        """The units of the run, of the size with which its product was begun.

        Raises:
            ValueError: the configuration asks for another size.
        """
        n_days = self.config.period.segment_days + 2 * self.config.period.halo_days
        asked, path = self.config.members_per_unit, self.config.product
        size = min(asked or self.members_at_once(n_days), self.config.members)
        if stands(path):
            begun, _ = open_analysis(path).unit
            if asked and size != begun:
                raise ValueError(f"members_per_unit: {asked}, but {path} was begun in units of {begun}; 0 takes those")
            size = begun
        return units(self.config, size)

    @property
    def checksums(self) -> dict[str, str]:
        """Of what the product is made of."""
        found = {"score_sha256": self.score.checksum, "observations_sha256": self.observations.checksum}
        return found | ({"autoencoder_sha256": self.bundle.checksum} if self.bundle else {})

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the product's content: the configuration, less what only shares the work, and the checksums."""
        content = {k: v for k, v in to_dict(self.config).items() if k not in WITHOUT_EFFECT}
        n_days = self.config.period.segment_days + 2 * self.config.period.halo_days
        return content | self.checksums | {"drawn_at_once": self.at_once(n_days)}

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
