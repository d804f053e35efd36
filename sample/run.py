"""The method and observations of a run, and how a unit of its work is analysed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from sample.assimilator import Assimilator
from sample.background import FirstGuess
from sample.config import SampleConfig
from sample.drawn import Drawn
from sample.optimal import Interpolator
from sample.plan import Unit, units
from slams.config import to_dict
from slams.contracts.analysis import open_analysis, stands
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Observations, Observed, open_observations
from slams.spec import StateSpec
from slams.statistics import Statistics

# on what is drawn
WITHOUT_EFFECT = ("verify", "members_per_unit", "memory_gib", "folder", "archive", "time_limit_minutes")
OF_METHOD = {"score": ("score", "autoencoder", "background", "bf16", "error_inflation", "sampler", "guidance")}
OF_METHOD |= {"enoi": ("enoi",)}


class Run:
    """The method and observations of a run; `analyse` makes one unit.

    Raises:
        ContractError, ValueError: bundles, observations and configuration that do not belong together.
    """

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.method = Interpolator(config) if config.method == "enoi" else Assimilator(config)
        self.observations = open_observations(config.observations)
        self.observed = _observed_names(config, self.method, self.observations)
        self.first_guess = _first_guess(config, self.method)

    @property
    def spec(self) -> StateSpec:
        return self.method.spec

    @property
    def statistics(self) -> Statistics:
        return self.method.statistics

    def check_days(self, work: list[Unit]) -> None:
        """Refuse days without observations or background before anything is written.

        Arguments:
            work: all units of a run, whoever draws them: a cluster refuses what one process refuses.

        Raises:
            ContractError: naming the day, or a segment without any observation.
            ValueError: a segment is shorter than a window of the score network.
        """
        segments = {unit.days[0]: unit.all_days for unit in work}.values()
        if min(map(len, segments)) < self.method.frames:
            raise ValueError(
                f"period.segment_days, halo_days: a segment of {min(map(len, segments))} days, halo included, is left; "
                f"at least {self.method.frames}, a window, are needed"
            )
        for days in segments:
            self.first_guess_of(days)
        every_day = np.unique(np.concatenate(list(segments)))
        observed_days = every_day[self.observations.check(self.observed, every_day)]
        withheld = [name for name in self.config.without if name in self.observations.names]
        for days in self.observations.blocks(np.unique(np.concatenate([unit.days for unit in work]))):
            self.observations.read_all(withheld, days)  # departures will
        for days in segments:
            if not np.isin(days, observed_days).any():
                raise ContractError(
                    f"{self.observations.path}: nothing is observed from {days[0]} to {days[-1]}, a segment with its "
                    "halo; leave those days out of the period, or take longer segments"
                )

    def analyse(self, unit: Unit, first_guess_CHW: np.ndarray | None) -> Drawn:
        """Members of a unit on its kept days.

        Arguments:
            first_guess_CHW: what `first_guess_of` gives for its days.
        """
        drawn = self.method.draw(*self._given(unit, first_guess_CHW))
        return replace(drawn, x_MLCHW=drawn.x_MLCHW[:, unit.halo : unit.halo + len(unit.days)])

    def seconds(self, unit: Unit) -> float:
        """What a unit takes, from a trial."""
        return self.method.seconds(*self._given(unit, self.first_guess_of(unit.all_days)))

    def _given(
        self, unit: Unit, first_guess_CHW: np.ndarray | None
    ) -> tuple[list[Observed], np.ndarray, np.ndarray, Tensor | None]:
        """Observations, days, members and background, as the method takes them."""
        days = unit.all_days
        z_b = None
        if first_guess_CHW is not None and isinstance(self.method, Assimilator):
            z_b = self.method.encode(first_guess_CHW, days[:1] - 1)
        return self.observations.read_all(self.observed, days), days, unit.members, z_b

    def first_guess_of(self, days: np.ndarray) -> np.ndarray | None:
        """The state of the day before, x_CHW in physical units, or none."""
        return None if self.first_guess is None else self.first_guess.read(days[0] - 1)

    def units(self) -> list[Unit]:
        """The units of the run, of the size with which its product was begun, and with as many threads.

        Raises:
            ValueError: the configuration asks for another size.
        """
        n_days = self.config.period.segment_days + 2 * self.config.period.halo_days
        asked, path = self.config.members_per_unit, self.config.product
        size = min(asked or self.method.members_at_once(n_days), self.config.members)
        if stands(path):
            product = open_analysis(path)
            self.method.use_threads(int(product.attributes["config"].get("threads", 0)))
            begun, _ = product.unit
            if asked and size != begun:
                raise ValueError(f"members_per_unit: {asked}, but {path} was begun in units of {begun}; 0 takes those")
            size = begun
        return units(self.config, size)

    @property
    def checksums(self) -> dict[str, str]:
        """Of what the product is made of."""
        guess = {} if self.first_guess is None else {"background_sha256": self.first_guess.checksum}
        return self.method.checksums | {"observations_sha256": self.observations.checksum} | guess

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the product's content: the configuration, less what only shares the work, and the checksums."""
        others = [name for method, names in OF_METHOD.items() if method != self.config.method for name in names]
        content = {k: v for k, v in to_dict(self.config).items() if k not in (*WITHOUT_EFFECT, *others)}
        n_days = self.config.period.segment_days + 2 * self.config.period.halo_days
        drawing = {"drawn_at_once": self.method.at_once(n_days), "threads": self.method.threads}
        return content | self.checksums | drawing

    @property
    def prior(self) -> str:
        """Which prior the members are drawn with, in words."""
        if self.first_guess is None:
            return self.method.prior
        return f"conditioned on the background {self.first_guess.path} of the day before each segment"


def _first_guess(config: SampleConfig, method: Assimilator | Interpolator) -> FirstGuess | None:
    if not config.background:
        return None
    if isinstance(method, Interpolator):
        raise ValueError(f"background: {config.background} is not for the method enoi, whose background is climatology")
    if not method.model.background_error:
        raise ContractError(f"{config.score}: was trained without a background; `background` must be empty")
    return FirstGuess(config.background, method.score.spec)


def _observed_names(config: SampleConfig, method: Assimilator | Interpolator, observations: Observations) -> list[str]:
    spec = method.spec
    for name in (*config.without, *config.error_inflation):
        spec.modality(name)
    if observations.space == "latent":
        return _latents(config, method, observations)
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


def _latents(config: SampleConfig, method: Assimilator | Interpolator, observations: Observations) -> list[str]:
    if isinstance(method, Interpolator):
        raise ValueError(f"method: enoi cannot assimilate {observations.path}, which observes latents")
    if config.without:
        raise ValueError(f"without: {config.without} cannot be withheld from observations of latents; []")
    if config.error_inflation:
        raise ValueError(f"error_inflation: {config.error_inflation} is not for observations of latents; {{}}")
    learned = method.score.document
    observations.check_latents(learned.get("autoencoder", ""), learned.get("latent", {}))
    return list(observations.names)
