"""Fitting the Gaussian prior that a flagship score network corrects, before the first step.

``prior.safetensors`` in the run's folder holds it: fitted once, whatever stops the run, and no part of its checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from slams import rng
from slams.config import ConfigError
from slams.contracts.envelope import ContractError, seal
from slams.contracts.shards import Manifest
from slams.gaussian import GaussianPrior
from slams.samplers import LARGEST_STATE
from slams.statistics import DAYS_PER_YEAR
from slams.tensors import save_tensors
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data import TRAIN, Reader
from train.engine import Engine
from train.validation import evenly

FILE = "prior.safetensors"
FIT_WINDOWS = 3000  # held in memory at once, evenly spread over the train years
MADE_OF = ("frames", "patterns", "modes", "localisation_km", "background_error")  # what a prior is, of `ModelConfig`
LONGEST_FIT, LOOK_EVERY = 6 * 3600.0, 0.5  # seconds


def fit_prior_of(engine: Engine, config: TrainConfig, manifest: Manifest, checkpoints: Checkpoints, step: int) -> None:
    """Give a task in training its prior, which one process fits before the first step.

    The others look for its file: a fit may take longer than processes wait for each other's messages.

    Raises:
        ConfigError, ContractError: as `fit_prior`; the file does not come.
    """
    prior, path = engine.module.task.network.prior, Path(config.folder) / FILE
    source = _source(config, manifest)

    def stands() -> bool:  # after the first step the run has its prior, and the checkpoint has vouched for the file
        return path.exists() if step else _is_fitted_to(path, source)

    if engine.world.rank == 0 and not stands():
        if step == 0:  # else it came with the checkpoint, as in earlier versions
            fit_prior(prior, config, manifest)
        _write(path, prior, source)
    _wait(stands, path)
    with safe_open(path, framework="pt") as file:
        for name, buffer in prior.state_dict().items():
            buffer.copy_(file.get_tensor(name))
    engine.left_out.append(prior)
    checkpoints.needs(path)


def _source(config: TrainConfig, manifest: Manifest) -> str:
    """Fingerprint of all that a prior is made of."""
    model = {name: getattr(config.model, name) for name in MADE_OF}
    return seal(model | {"seed": config.seed, "shards": manifest.document, "unusable": sorted(manifest.unusable)})


def _is_fitted_to(path: Path, source: str) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("fitted_to") == source
    except (FileNotFoundError, SafetensorError):  # none, or torn by a crash of the machine
        return False


def _write(path: Path, prior: GaussianPrior, source: str) -> None:
    aside = path.with_name(path.name + ".partial")
    arrays = {name: value.cpu().numpy() for name, value in prior.state_dict().items()}
    save_tensors(aside, arrays, {"fitted_to": source})
    aside.rename(path)


def _wait(stands: Callable[[], bool], path: Path) -> None:
    until = time.monotonic() + LONGEST_FIT
    while not stands():
        if time.monotonic() > until:
            hours = LONGEST_FIT / 3600
            raise ConfigError(f"{path}: process 0 has not fitted it within {hours:g} hours; see what it says")
        time.sleep(LOOK_EVERY)


def fit_prior(prior: GaussianPrior, config: TrainConfig, manifest: Manifest) -> None:
    """Fit it to windows of the train years.

    Raises:
        ConfigError: more patterns than half of the windows.
        ContractError: a value that no state has, naming its day.
    """
    firsts = fit_windows(config, manifest)
    reader = Reader(manifest, config.model.frames, config.data.cache_frames, lead=1)
    noise = np.stack([rng.normal(config.seed, "background", w, shape=manifest.shape) for w in firsts])
    prior.fit(_believable(reader, firsts), _share_of_year(reader, firsts), noise)


def fit_windows(config: TrainConfig, manifest: Manifest) -> np.ndarray:
    """First frames of the windows that it is fitted to, each with the day before.

    Raises:
        ConfigError: more patterns than half of them.
    """
    firsts = evenly(manifest.windows(TRAIN, 1 + config.model.frames), FIT_WINDOWS)
    if len(firsts) < 2 * config.model.patterns:
        raise ConfigError(
            f"model.patterns: {config.model.patterns} is more than half of the {len(firsts)} windows of the train split"
        )
    return firsts


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
