"""One unit of work end to end: observations -> guided denoiser -> sampler -> decoder -> product."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sample.config import SampleConfig
from sample.plan import Unit, evaluations, segments, share, units
from slams.config import to_dict
from slams.contracts.analysis import Analysis, create, open_analysis
from slams.contracts.bundle import Bundle, open_bundle
from slams.contracts.envelope import ContractError, is_finished, provenance
from slams.contracts.observations import Observations, open_observations
from slams.guidance import guided
from slams.likelihood import Physical, physical_likelihood
from slams.model import open_autoencoder, open_score
from slams.rng import normal
from slams.samplers import Noise, sample
from slams.sde import CosineSDE
from slams.spec import StateSpec
from slams.statistics import day_features
from slams.windows import windowed

Decode = Callable[[Tensor], Tensor]
LARGEST_DEPARTURE = 20  # standard deviations of the state; the sample world's train years reach 12


class Assimilator:
    """The loaded models and observations of a run; `draw` makes one unit.

    Raises:
        ContractError, ValueError: bundles, observations and configuration that do not belong together.
    """

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.score = open_bundle(config.score)
        self.denoise, self.model = open_score(self.score)
        self.sde = CosineSDE(self.model.eta)
        self.statistics = self.score.statistics()
        self.spec, self.decode, self.unresolved = _decoder(config, self.score)
        self.observations = open_observations(config.observations)
        self.observed = _observed_names(config, self.observations, self.spec)

    def check_days(self, work: list[Unit]) -> None:
        """Refuse days that were not observed before anything is written.

        Raises:
            ContractError: naming the day.
        """
        for unit in (work[0], work[-1]):
            for name in self.observed:
                self.observations.read(name, unit.all_days[[0, -1]])

    def draw(self, unit: Unit) -> np.ndarray:
        """Members of a unit on its kept days, x_MLCHW in physical units.

        Raises:
            FloatingPointError: a member diverged, named with its days.
        """
        days = unit.all_days
        physical = Physical(self.statistics, days)
        seen = [self.observations.read(name, days) for name in self.observed]
        likelihood = physical_likelihood(seen, self.spec, self.decode, physical, self.unresolved)
        prior = windowed(self.denoise, self.model.frames, torch.from_numpy(day_features(days)).float())
        posterior = guided(prior, likelihood, self.config.guidance, self.sde)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16), torch.no_grad():
            z = sample(posterior, self.config.sampler, self.sde, self._noise(unit))
            decoded = self.decode(z).float()
        refuse_diverged(unit, decoded[:, :, self.spec.channels(self.spec.names[0])])
        return self._admissible(physical(decoded).numpy()[:, unit.halo : unit.halo + len(unit.days)])

    def _admissible(self, x_MLCHW: np.ndarray) -> np.ndarray:
        """Rain not below none, which a linear decoder may give, and nothing where a channel is never observed."""
        if "precipitation" in self.spec.names:
            rain = x_MLCHW[:, :, self.spec.channels("precipitation")]
            np.maximum(rain, 0, out=rain)
        return np.where(self.statistics.observed[: self.spec.n_channels], x_MLCHW, np.nan)

    def _noise(self, unit: Unit) -> Noise:
        """Noise keyed by (seed, member, valid day, step): a frame's is its own, whoever draws it, in any segment."""
        shape = tuple(self.score.document["input"])
        frames = unit.all_days.astype(int)
        seed = self.config.seed

        def noise(step: int) -> Tensor:
            parts = [[normal(seed, "sampler", m, day, step, shape=shape) for day in frames] for m in unit.members]
            return torch.from_numpy(np.array(parts))

        return noise


def refuse_diverged(unit: Unit, state_MLCHW: Tensor) -> None:
    """Refuse members whose standardised state has left the world: nothing of a diverged unit is ever written.

    Raises:
        FloatingPointError: naming the member, its days and how far it went.
    """
    farthest = state_MLCHW.abs().amax(dim=(1, 2, 3, 4))
    for member, departure in zip(unit.members, farthest.tolist(), strict=True):
        if not departure < LARGEST_DEPARTURE:  # also where it is not a number
            raise FloatingPointError(
                f"member {member} of {unit.days[0]} to {unit.days[-1]} diverged: {departure:.3g} std from the "
                f"climatology, {LARGEST_DEPARTURE} at most; take more sampler.steps or a larger sampler.start_alpha"
            )


def _decoder(config: SampleConfig, score: Bundle) -> tuple[StateSpec, Decode, Tensor]:
    """Latents (B, L, Z, h, w) -> standardised channels (B, L, C, H, W), which channels those are, and the root mean
    square of what the autoencoder loses of each, in physical units, as it was measured on validation years."""
    wanted = score.document.get("autoencoder")
    if not config.autoencoder:
        if wanted:
            raise ContractError(f"{score.folder}: learned latents; `autoencoder` must name the bundle that made them")
        return score.spec, lambda z: z, torch.zeros(score.spec.n_channels)
    bundle = open_bundle(config.autoencoder)
    if bundle.checksum != wanted:
        raise ContractError(f"{score.folder}: learned the latents of another autoencoder than {bundle.folder}")
    network = open_autoencoder(bundle)
    latent = score.document["latent"]
    mean, std = (torch.tensor(latent[part])[:, None, None] for part in ("mean", "std"))
    spec = bundle.spec if network.n_decoded == bundle.spec.n_channels else bundle.spec.subset(bundle.spec.names[:1])
    if not bundle.document.get("report"):
        raise ContractError(f"{bundle.folder}: holds no reconstruction report; train it to its end")
    lost = torch.tensor([bundle.document["report"][f"rmse/{name}"] for name in spec.channel_names])
    return spec, lambda z: network.decode((z * std + mean).flatten(0, 1)).unflatten(0, z.shape[:2]), lost


def _observed_names(config: SampleConfig, observations: Observations, spec: StateSpec) -> list[str]:
    for name in config.without:
        spec.modality(name)
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
    ]


def run(config: SampleConfig) -> None:
    """Draw what is missing of this process's share; the process that finishes last closes the product.

    Raises:
        ContractError, ValueError: see `Assimilator`.
    """
    work = units(config)
    mine = share(work, os.environ)
    assimilator = Assimilator(config)
    assimilator.check_days(work)
    product = _product(config, assimilator)
    todo = [unit for unit in mine if product.finished(unit.name) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        for unit in bar.track(todo, description=f"sample {config.product.name}"):
            _draw_and_write(assimilator, product, unit)
    if not product.is_complete and all(product.finished(unit.name) for unit in work):
        product.finish()


def _draw_and_write(assimilator: Assimilator, product: Analysis, unit: Unit) -> None:
    began = time.perf_counter()
    x = assimilator.draw(unit)
    crc32 = product.write(unit.members, np.searchsorted(product.time, unit.days), x)
    entry = {"days": [str(day) for day in unit.days], "members": unit.members.tolist(), "crc32": crc32}
    entry |= {"seed": assimilator.config.seed, "seconds": round(time.perf_counter() - began, 3)}
    product.close_unit(unit.name, entry | {"provenance": provenance()})


def _product(config: SampleConfig, assimilator: Assimilator) -> Analysis:
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
        "prior": "climatological",
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


def _made_by(config: SampleConfig, assimilator: Assimilator) -> dict[str, Any]:
    """What decides the product's content: the configuration, less what only shares the work, and the checksums."""
    content = {k: v for k, v in to_dict(config).items() if k not in ("verify", "members_per_unit", "folder", "archive")}
    return content | {
        "score_sha256": assimilator.score.checksum,
        "observations_sha256": assimilator.observations.checksum,
    }
