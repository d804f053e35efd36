"""Bundles of a run: one at each validation, the best and the newest kept; at the end the best one is the model.

``bundles/step-000350`` in the run's folder is a bundle like any other, ready for sampling while training goes on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from slams.config import to_dict
from slams.contracts.bundle import DOCUMENT, Weights, open_bundle, write_bundle
from slams.contracts.envelope import write_json, written_aside
from slams.contracts.shards import Manifest
from train.config import TrainConfig
from train.engine import Engine
from train.optim import Ema

LOSS, BEST_LOSS, BEST_STEP = "validation/loss", "validation/best", "validation/best_step"
log = logging.getLogger("slams.train")


def with_best(report: dict[str, float], step: int, before: dict[str, float]) -> dict[str, float]:
    """A validation's report with the lowest loss so far and its step, given the report before it."""
    if report[LOSS] < before.get(BEST_LOSS, np.inf):
        return report | {BEST_LOSS: report[LOSS], BEST_STEP: step}
    return report | {name: before[name] for name in (BEST_LOSS, BEST_STEP)}


class Exports:
    """The bundles of a run; every process calls `write`."""

    def __init__(self, config: TrainConfig, manifest: Manifest, engine: Engine, ema: Ema) -> None:
        self.config, self.manifest, self.engine, self.ema = config, manifest, engine, ema
        self.folder = Path(config.folder) / "bundles"
        Path(config.bundle).parent.mkdir(parents=True, exist_ok=True)  # a place where it cannot go is found now

    def write(self, step: int, report: dict[str, float]) -> None:
        """The bundle of a step: averaged and last weights, with what its use needs."""
        network = self.engine.module.task.network
        raw = self._copied(lambda: network.state_dict().items())
        with self.ema.applied():
            averaged = raw | self._copied(network.named_parameters)
        if self.engine.world.rank != 0:
            return
        path = self._path(step)
        shutil.rmtree(path, ignore_errors=True)
        document = {"config": to_dict(self.config), "model": to_dict(self.config.model), "report": report}
        document |= {"input": list(self.manifest.shape), "precision": self.engine.precision}
        if self.manifest.content == "latent":
            document |= {key: self.manifest.document[key] for key in ("autoencoder", "latent")}
        with written_aside(path) as aside:
            write_bundle(aside, {"ema": averaged, "raw": raw}, self.manifest.spec, self.manifest.statistics(), document)

    def forget(self, report: dict[str, float]) -> None:
        """Remove all but the newest and the best; once a checkpoint stands that will not ask for them again."""
        if self.engine.world.rank == 0 and BEST_STEP in report:
            newest = max(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*") if p.suffix == "")
            kept = {self._path(newest), self._path(int(report[BEST_STEP]))}
            for old in {*self.folder.glob("step-*")} - kept:
                shutil.rmtree(old)

    def finish(self, report: dict[str, float]) -> None:
        """Put the best where the configuration wants it, as the work of today's configuration.

        One that was changed on the way, as accumulation may be, else would not know its own work again.
        """
        if self.engine.world.rank == 0:
            best = self._path(int(report[BEST_STEP]))
            with written_aside(self.config.bundle) as aside:
                shutil.copytree(best, aside, dirs_exist_ok=True)
                write_json(aside / DOCUMENT, open_bundle(aside).document | {"config": to_dict(self.config)})
            log.info("%s: written; step %d had the lowest validation loss", self.config.bundle, report[BEST_STEP])

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _copied(self, named: Callable[[], Iterable[tuple[str, Tensor]]]) -> Weights:
        """Copies in rank 0's main memory; nobody else needs them, though under ZeRO 3 all gather them."""
        with self.engine.whole():
            wanted = named() if self.engine.world.rank == 0 else ()
            return {name: value.detach().to("cpu", copy=True).numpy() for name, value in wanted}
