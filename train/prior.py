"""Fitting the Gaussian prior that a flagship score network corrects, before the first step."""

from __future__ import annotations

import numpy as np

from slams import rng
from slams.config import ConfigError
from slams.contracts.envelope import ContractError
from slams.contracts.shards import Manifest
from slams.gaussian import GaussianPrior
from slams.samplers import LARGEST_STATE
from slams.statistics import DAYS_PER_YEAR
from train.config import TrainConfig
from train.data import TRAIN, Reader
from train.engine import Engine
from train.validation import evenly

FIT_WINDOWS = 3000  # held in memory at once, evenly spread over the train years


def fit_prior_of(engine: Engine, config: TrainConfig, manifest: Manifest) -> None:
    """Fit the prior of a task in training on one process, and give it to the others.

    Raises:
        ConfigError, ContractError: as `fit_prior`.
    """
    if engine.world.rank == 0:
        fit_prior(engine.module.task.network.prior, config, manifest)
    engine.agree_on_buffers()


def fit_prior(prior: GaussianPrior, config: TrainConfig, manifest: Manifest) -> None:
    """Fit it to windows of the train years.

    Raises:
        ConfigError: more patterns than half of the windows.
        ContractError: a value that no state has, naming its day.
    """
    reader = Reader(manifest, config.model.frames, config.data.cache_frames, lead=1)
    firsts = evenly(manifest.windows(TRAIN, 1 + config.model.frames), FIT_WINDOWS)
    if len(firsts) < 2 * config.model.patterns:
        raise ConfigError(
            f"model.patterns: {config.model.patterns} is more than half of the {len(firsts)} windows of the train split"
        )
    noise = np.stack([rng.normal(config.seed, "background", w, shape=manifest.shape) for w in firsts])
    prior.fit(_believable(reader, firsts), _share_of_year(reader, firsts), noise)


def _share_of_year(reader: Reader, firsts: np.ndarray) -> np.ndarray:
    """When in the year the middle of each window is, 0 to 1."""
    middle = np.array([reader.days(first)[reader.length // 2] for first in firsts], "datetime64[D]")
    return (middle - middle.astype("datetime64[Y]")).astype(float) / DAYS_PER_YEAR


def _believable(reader: Reader, firsts: np.ndarray) -> np.ndarray:
    """Windows with what is missing at its mean, as the network sees it: one absurd value would spoil a covariance.

    Raises:
        ContractError: a value that no state has, naming its day.
    """
    x = np.nan_to_num(reader.windows(firsts), posinf=np.inf, neginf=-np.inf)
    farthest_BL = np.abs(x).max(axis=(2, 3, 4))
    if farthest_BL.max() > LARGEST_STATE:
        window, frame = np.unravel_index(farthest_BL.argmax(), farthest_BL.shape)
        day = reader.frames[firsts[window] + frame].time
        far = f"{farthest_BL.max():.3g} standard deviations from the mean, {LARGEST_STATE:g} at most"
        raise ContractError(f"{reader.manifest.folder}: {day} is {far}; mend the archive, or leave the day out")
    return x
