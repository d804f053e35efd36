"""Archive -> simulated observations: y = H(x) + noise, for experiments whose truth is known.

The noise of a day and modality is keyed by (seed, day, modality), so a longer period holds the same values, and a mask
changes none of those that it leaves. In latent space it is the latents of the truth that are observed, as the encode
stage left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.config import ObserveConfig, ObservedConfig, PrepConfig
from data_prep.systems import GriddedSystem, StationSystem
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import ContractError, check_source, is_finished, written_aside
from slams.contracts.observations import LATENT, Gridded, Observed, open_observations, write_observations
from slams.contracts.shards import Frame, Manifest, open_shards
from slams.observe import observe
from slams.rng import normal
from slams.spec import Grid, StateSpec

LATENT_NUMBER = -1  # in the noise's key, where modalities have 0, 1, ...
DAYS_AT_ONCE = 64

# specification, days, blocks of observations, and what a set's attributes add
Planned = tuple[StateSpec, np.ndarray, Iterator[Observed], dict[str, Any]]


def plan(config: ObserveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    source = f"{whole.encode.path} (latents)" if config.space == "latent" and whole.encode else whole.archive.path
    done = "stand already" if Path(config.path).exists() else f"to be simulated from {source}"
    return [f"observations {config.path} of the {config.split} years: {done}"]


def run(config: ObserveConfig, whole: PrepConfig) -> None:
    """Write the observations, unless they stand already.

    Raises:
        ContractError: no archive or latent shards, or no such split, or those that stand are of another archive.
        ValueError: a system that does not fit the grid, the levels or the masks, or that sees nothing at all.
    """
    path, made_by = Path(config.path), to_dict(config) | {"archive": to_dict(whole.archive)}
    if config.space == "latent":
        latents = _open_latents(whole)
        made_by |= {"encode": to_dict(whole.encode), "autoencoder_sha256": latents.document["autoencoder"]}
        source, content = latents.folder, latents.document.get("archive_sha256", "")
        statistics_sha256 = latents.document["statistics_sha256"]
    else:
        archive = open_archive(whole.archive.path)
        source, content = archive.path, archive.content
        statistics_sha256 = archive.attributes["statistics_sha256"]
    if path.exists() and is_finished(path, (found := open_observations(path)).attributes["config"], made_by):
        return check_source(path, found.attributes.get("archive_sha256"), source, content)
    told = {"source": f"simulated from the {config.split} years of {source}"}
    told |= {"archive_sha256": content, "statistics_sha256": statistics_sha256}
    planned = _latents(config, latents) if config.space == "latent" else _states(config, archive)
    spec, time, blocks, attributes = planned
    with written_aside(path) as folder:
        write_observations(folder, spec, time, blocks, {"config": made_by, "space": config.space} | told | attributes)


def _states(config: ObserveConfig, archive: Archive) -> Planned:
    """Every system is checked before any observes."""
    days, statistics = archive.days(config.split), archive.statistics()
    systems: list[GriddedSystem | StationSystem] = []
    for number, modality in enumerate(archive.spec.modalities):
        how: ObservedConfig = getattr(config, modality.name, ObservedConfig("none"))
        if how.operator != "none":
            kind = StationSystem if how.operator == "stations" else GriddedSystem
            systems.append(kind(archive, statistics, modality, how, int(days[0]), number, config.seed))
    if not systems:
        raise ValueError(f"operator: none for {', '.join(archive.spec.names)}; one of them has to be observed")
    size = min(DAYS_AT_ONCE, archive.days_at_once)
    blocks = (system.observed(block) for system in systems for block in archive.blocks(days, size))
    return archive.spec, archive.time[days], blocks, {}


def _open_latents(whole: PrepConfig) -> Manifest:
    if whole.encode is None:
        raise ValueError("config: has no section 'encode', whose latents observations in latent space are made of")
    latents = open_shards(whole.encode.path)
    if latents.content != "latent":
        raise ContractError(f"{latents.folder}: holds {latents.content}s, not latents")
    return latents


def _latents(config: ObserveConfig, latents: Manifest) -> Planned:
    """Days that the shards lack are masked: the set's own days are consecutive."""
    frames = {f.time: f for f in (latents.frames[i] for i in latents.windows(config.split, 1))}
    time = np.arange(min(frames), max(frames) + 1)
    config.latent.as_operator().coordinates(Grid(*latents.shape[1:]))
    blocks = (
        _observed_latents(config, latents, frames, time, np.arange(i, min(i + DAYS_AT_ONCE, len(time))))
        for i in range(0, len(time), DAYS_AT_ONCE)
    )
    made_of = {key: latents.document[key] for key in ("autoencoder", "latent")} | {"latent_shape": latents.shape}
    return latents.spec, time, blocks, made_of


def _observed_latents(
    config: ObserveConfig, latents: Manifest, frames: dict[np.datetime64, Frame], time: np.ndarray, block: np.ndarray
) -> Gridded:
    """y_z = A(z) + noise of consecutive days, in units of the standardised latents; keyed as a modality's."""
    how, missing = config.latent, np.full(latents.shape, np.nan, np.float32)
    operator = how.as_operator()
    z = [latents.read(frames[time[i]]) if i % how.every_days == 0 and time[i] in frames else missing for i in block]
    clean = observe(operator, torch.from_numpy(np.stack(z))).numpy()
    shape, days = clean.shape[1:], time[block].astype(int)
    noise = [normal(config.seed, "observation", int(day), LATENT_NUMBER, shape=shape) for day in days]
    value = (clean + how.noise * np.stack(noise)).astype(np.float32)
    return Gridded(LATENT.name, operator, value, np.full_like(value, how.noise), np.isfinite(value))
