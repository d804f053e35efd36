"""What a network makes, to be looked at while it trains: reconstructions, or draws from the prior.

`images/step-000350.png` in the run's folder. Matplotlib is optional: without it there are no images.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slams import rng
from slams.contracts.shards import Manifest
from slams.denoise import NetworkDenoiser
from slams.posterior import SamplerConfig
from slams.samplers import DivergenceError, sample
from slams.sde import CosineSDE
from slams.spec import StateSpec
from slams.statistics import day_features
from train.config import TrainConfig
from train.data import VALIDATION, VALIDATION_SEED, Reader
from train.engine import Engine

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

SAMPLER = SamplerConfig(kind="multistep", steps=16)
DRAWS, CHANNELS = 2, 4  # shown of a score network
SHOWN_HPA = 500
PANEL_INCHES = (3.2, 1.7)
SIGNED = 0.1  # share of the range below which the other sign is rounding
log = logging.getLogger("slams.train")

Panels = list[list[tuple[str, np.ndarray, np.ndarray]]]  # rows of titles, maps, and the map that sets the scale


class Images:
    """Images of one validation window, the same at every validation and in every run."""

    def __init__(self, config: TrainConfig, manifest: Manifest, engine: Engine, reader: Reader) -> None:
        self.config, self.manifest, self.engine, self.reader = config, manifest, engine, reader
        windows = manifest.windows(VALIDATION, reader.lead + reader.length)
        self.window = int(windows[len(windows) // 2])
        if Figure is None:
            log.info("no images: matplotlib is not installed (the extra `plots`)")

    def draw(self, step: int) -> Path | None:
        """Make the image of a step, with the weights as they are; every process calls it.

        Returns:
            Where it lies, on rank 0; None where there is none.
        """
        if Figure is None:
            return None
        self.engine.train(False)
        with torch.no_grad(), self.engine.whole():
            panels = self._reconstruction() if self.config.model.kind == "autoencoder" else self._draws()
        self.engine.train(True)
        if self.engine.world.rank != 0 or not panels:
            return None
        path = Path(self.config.folder) / "images" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        figure(panels).savefig(path)
        return path

    def _reconstruction(self) -> Panels:
        """Truth, D(E(x)) and their difference, one level of each modality, in its unit."""
        network, device = self.engine.module.task.network, self.engine.world.device
        x, time = self.reader.windows(np.array([self.window]))[:, 0], self.reader.days(self.window)
        decoded = network.decode(network.encode(torch.from_numpy(x).to(device))).float().cpu().numpy()
        padded = np.concatenate([decoded, x[:, decoded.shape[1] :]], axis=1)  # what is not decoded is not shown
        truth, made = (self.manifest.statistics().physical(field, time)[0] for field in (x, padded))
        made[np.isnan(truth)] = np.nan
        rows = [(i, name) for i, name in _shown(self.manifest.spec) if i < network.n_decoded]
        error = made - truth
        return [
            [(name, truth[i], truth[i]), ("decoded", made[i], truth[i]), ("error", error[i], error[i])]
            for i, name in rows
        ]

    def _draws(self) -> Panels:
        """Middle days of unconditional draws, in standard deviations."""
        model, device = self.config.model, self.engine.world.device
        denoise = NetworkDenoiser(self.engine.module.task.network, CosineSDE(model.eta), model.prediction)
        features = day_features(self.reader.days(self.window)).astype(np.float32)
        day_BL5 = torch.from_numpy(features).to(device).expand(DRAWS, -1, -1)
        shape = (DRAWS, model.frames, *self.manifest.shape)
        noise = torch.from_numpy(rng.normal(VALIDATION_SEED, "validation", self.window, shape=shape)).to(device)
        try:
            z = sample(lambda z_t, t: denoise(z_t, t, day_BL5), SAMPLER, denoise.sde, lambda step: noise)
        except DivergenceError as error:
            log.info("no image of draws: %s", error)
            return []
        middle = z[:, model.frames // 2, :CHANNELS].float().cpu().numpy()
        return [[(f"draw {i}, channel {j}", z, middle) for j, z in enumerate(draw)] for i, draw in enumerate(middle)]


def _shown(spec: StateSpec) -> list[tuple[int, str]]:
    """One channel of each modality, with its name and unit: 500 hPa, or the middle one."""
    found = []
    for modality in spec.modalities:
        levels = modality.level_hpa
        at = levels.index(SHOWN_HPA) if SHOWN_HPA in levels else modality.n_channels // 2
        found.append((spec.channels(modality.name).start + at, f"{modality.channel_names[at]}, {modality.units}"))
    return found


def figure(panels: Panels) -> Any:
    """Maps in rows, each with a colour bar."""
    rows, columns = len(panels), len(panels[0])
    width, height = PANEL_INCHES
    found = Figure(figsize=(width * columns, height * rows), layout="constrained")
    for axes_row, row in zip(found.subplots(rows, columns, squeeze=False), panels, strict=True):
        for axes, (title, field, scale) in zip(axes_row, row, strict=True):
            image = axes.imshow(field, aspect="auto", **_colours(scale))
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
            found.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    return found


def _colours(scale: np.ndarray) -> dict[str, Any]:
    """From the least to the largest value, or symmetric about zero where both signs count."""
    low, high = float(np.nanmin(scale)), float(np.nanmax(scale))
    if min(-low, high) < SIGNED * max(-low, high):
        return {"cmap": "viridis", "vmin": low, "vmax": high}
    largest = max(-low, high)
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
