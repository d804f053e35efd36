"""What a model is judged by while it trains: its own loss on other years, and an autoencoder's error in kelvin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from slams.contracts.shards import Manifest
from slams.statistics import Statistics
from train.config import TrainConfig
from train.data import VALIDATION, Portion, Reader, loader, validation_noise
from train.engine import Engine, micro_batch

REPORT_CHUNK = 16
NOISE_BINS = 5  # equal parts of the diffusion time


class Validation:
    """Validation windows, chosen evenly over the split, the same at every validation and in every run."""

    def __init__(self, config: TrainConfig, manifest: Manifest, engine: Engine, reader: Reader) -> None:
        self.config, self.manifest, self.engine, self.reader = config, manifest, engine, reader
        self.windows = evenly(manifest.windows(VALIDATION, reader.lead + reader.length), config.validation_windows)
        self.noise = validation_noise(len(self.windows)) if config.model.kind == "score" else None
        self.statistics = manifest.statistics()

    def run(self) -> dict[str, float]:
        """Mean loss over the windows and, for an autoencoder, the reconstruction error; the weights as they are."""
        self.engine.agree_on_running_statistics()
        self.engine.train(False)
        with torch.no_grad():
            found = self._loss()
            if self.config.model.kind == "autoencoder":
                found |= self._reconstruction()
        self.engine.train(True)
        return found

    def _loss(self) -> dict[str, float]:
        """The mean, and for a score network that of each fifth of the diffusion time, by its middle."""
        total = torch.zeros(1 + NOISE_BINS, 2, dtype=torch.float64, device=self.engine.world.device)
        for portion, batch in loader(self._portions, self.reader, self.noise, self.config.data.workers):
            found = self.engine.forward(batch)
            if portion.step:
                total[0] += _sum(found["loss"].expand(len(portion.windows)))
                for each, t in zip(found.get("each", ()), batch.get("t", ()), strict=True):
                    total[1 + int(t * NOISE_BINS)] += _sum(each[None])
        sums = self.engine.world.mean(total).tolist()
        means = {f"validation/loss/t={(i + 0.5) / NOISE_BINS:.1f}": s / n for i, (s, n) in enumerate(sums[1:]) if n}
        return {"validation/loss": sums[0][0] / sums[0][1]} | means

    def _portions(self) -> Iterator[Portion]:
        """This process's chunks; where others have one more, the first again with ``step`` 0: it does not count.

        Every process makes as many forward passes as the others, which ZeRO 3 needs.
        """
        world = self.engine.world
        size = micro_batch(self.config.data.batch, self.config.engine, world.size)
        starts = list(range(0, len(self.windows), size))
        for i in range(0, len(starts), world.size):
            mine = i + world.rank
            first = starts[mine] if mine < len(starts) else 0
            windows = self.windows[first : first + size]
            yield Portion(int(mine < len(starts)), first, windows, np.zeros(len(windows), int))

    def _reconstruction(self) -> dict[str, float]:
        """Area-weighted RMSE of D(E(x)) for each decoded channel, in its unit."""
        windows = evenly(self.windows, self.config.validation_frames)
        task = self.engine.module.task
        network = task.network
        squared = np.zeros(network.n_decoded)
        seen = np.zeros(network.n_decoded)
        area = self.manifest.spec.grid.area_weights
        with self.engine.whole():
            for i in range(0, len(windows), REPORT_CHUNK):
                x_BCHW = self.reader.windows(windows[i : i + REPORT_CHUNK])[:, 0]
                z = network.encode(torch.from_numpy(x_BCHW).to(self.engine.world.device))
                time = np.concatenate([self.reader.days(w) for w in windows[i : i + REPORT_CHUNK]])
                error = reconstruction_error(x_BCHW, network.decode(z).float().cpu().numpy(), self.statistics, time)
                squared += (np.nan_to_num(error) ** 2 * area).sum(axis=(0, 2, 3))
                seen += (np.isfinite(error) * area).sum(axis=(0, 2, 3))
        names = self.manifest.spec.channel_names[: network.n_decoded]
        rmse = np.sqrt(squared / np.where(seen > 0, seen, np.nan))
        return {f"rmse/{name}": float(value) for name, value in zip(names, rmse, strict=True) if np.isfinite(value)}


def _sum(loss_B: torch.Tensor) -> torch.Tensor:
    """What a mean is made of: (sum, count)."""
    return torch.stack([loss_B.sum(), loss_B.new_tensor(len(loss_B))]).double()


def reconstruction_error(
    x_BCHW: np.ndarray, decoded_BCHW: np.ndarray, statistics: Statistics, time: np.ndarray
) -> np.ndarray:
    """Decoded minus true in physical units, for the channels that are decoded; NaN where the truth is missing."""
    padded = x_BCHW.copy()
    padded[:, : decoded_BCHW.shape[1]] = decoded_BCHW
    error = statistics.physical(padded, time) - statistics.physical(x_BCHW, time)
    return error[:, : decoded_BCHW.shape[1]]


def evenly(windows: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of them, evenly spread."""
    return windows[np.linspace(0, len(windows) - 1, min(limit, len(windows))).round().astype(int)]
