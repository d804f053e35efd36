"""Archive -> simulated observations: y = H(x) + noise, for experiments whose truth is known.

The noise of a day and modality is keyed by (seed, day, modality), so a longer period holds the same values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data_prep.config import ObserveConfig, ObservedConfig, PrepConfig
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import is_finished, written_aside
from slams.contracts.observations import Gridded, Operator, open_observations, write_observations
from slams.observe import observe
from slams.rng import normal
from slams.spec import Modality


def plan(config: ObserveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Path(config.path).exists() else f"to be simulated from {whole.archive.path}"
    return [f"observations {config.path} of the {config.split} years: {done}"]


def run(config: ObserveConfig, whole: PrepConfig) -> None:
    """Write the observations, unless they stand already.

    Raises:
        ContractError: no archive, or no such split.
        ValueError: an operator that does not divide the grid.
    """
    path, made_by = Path(config.path), to_dict(config) | {"archive": to_dict(whole.archive)}
    if path.exists() and is_finished(path, open_observations(path).attributes["config"], made_by):
        return
    archive = open_archive(whole.archive.path)
    days = archive.days(config.split)
    observed = []
    for number, modality in enumerate(archive.spec.modalities):
        how: ObservedConfig = getattr(config, modality.name)
        operator = how.as_operator()
        if operator is not None:
            observed.append(_observed(archive, days, number, modality, operator, how.noise, config.seed))
    with written_aside(path) as folder:
        attributes = {"config": made_by, "source": f"simulated from the {config.split} years of {whole.archive.path}"}
        write_observations(folder, archive.spec, archive.time[days], observed, attributes)


def _observed(
    archive: Archive, days: np.ndarray, number: int, modality: Modality, operator: Operator, noise: float, seed: int
) -> Gridded:
    """All days of one modality. A block's mean is over the cells where the modality is ever observed."""
    part = archive.spec.channels(modality.name)
    ever = archive.statistics().observed[part].all(axis=0).astype(np.float32)
    weight = None if ever.all() else ever
    std_C = noise * np.array(archive.attributes["global_std"][part], np.float32)
    blocks = [
        _block(archive, block, part, operator, weight, std_C, (seed, number)) for block in archive.blocks(days)
    ]
    value = np.concatenate(blocks)
    error = np.broadcast_to(std_C[None, :, None, None], value.shape).astype(np.float32)
    return Gridded(modality.name, operator, value, error, np.isfinite(value), weight)


def _block(
    archive: Archive,
    block: np.ndarray,
    part: slice,
    operator: Operator,
    weight_HW: np.ndarray | None,
    std_C: np.ndarray,
    key: tuple[int, int],
) -> np.ndarray:
    """Noisy observations (L, C, y, x) of consecutive days, NaN where nothing of a block was observed."""
    x = archive.read(block)[:, part]
    weight = None if weight_HW is None else torch.from_numpy(weight_HW)
    # Where a cell counts and its value is missing, its block is missing.
    filled = x if weight_HW is None else np.where(weight_HW > 0, x, 0)
    value = observe(operator, torch.from_numpy(filled), weight).numpy()
    if weight is not None:
        value = np.where(observe(Operator(operator.kind, operator.factor), weight).numpy() > 0, value, np.nan)
    seed, number = key
    days = archive.time[block].astype(int)
    error = [normal(seed, "observation", int(day), number, shape=value.shape[1:]) for day in days]
    return (value + np.stack(error) * std_C[:, None, None]).astype(np.float32)
