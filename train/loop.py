"""The training run: one counter, straight.

A step: read, forward, backward, look at the loss, move the weights, follow with the average. Everything that must
survive a stop is a function of the counter or lies in a checkpoint, so the same command goes on where it ended.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slams import rng
from slams.config import to_dict
from slams.contracts.bundle import open_bundle
from slams.contracts.envelope import ContractError, alone, is_finished
from slams.contracts.shards import Manifest
from slams.model import build_task
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.damage import opened, usable
from train.data import TRAIN, Reader, loader, plan, steps_per_epoch, training_noise
from train.engine import Engine, World, micro_batch, opened_world
from train.export import BEST_STEP, Exports, with_best
from train.guard import check_finite
from train.images import Images
from train.optim import Ema, build_optimizer, learning_rate
from train.prior import fit_prior_of
from train.stop import StopRequest
from train.telemetry import Meter, Telemetry
from train.validation import Validation

DONE, FAILED, STOPPED_EARLY = 0, 1, 75  # EX_TEMPFAIL: the same command goes on
log = logging.getLogger("slams.train")


def train(config: TrainConfig) -> int:
    """Train to the end, or from where an earlier call stopped, and write the bundle.

    Returns:
        0 when the bundle stands, 75 when a signal or the time limit stopped it and the same command goes on later.

    Raises:
        ConfigError, ContractError: a mistake in what was given.
        NonFiniteStepError: training went wrong.
    """
    if finished(config):
        log.info("%s: finished already", config.bundle)
        return DONE
    stop = StopRequest(config.time_limit_minutes)
    manifest = opened(config.shards, config.data)
    folder = Path(config.folder)
    with opened_world(config.engine) as world, alone(folder, folder / "lock") if world.rank == 0 else nullcontext():
        stop.listen()  # now: while the others are waited for, a signal ends the process
        run = Run(config, usable(manifest, config.data, world), world)
        status = FAILED
        try:
            status = run.train(stop)
            if status == DONE:
                run.exports.finish(run.report)
        finally:
            run.telemetry.close(status)
    return status


def finished(config: TrainConfig) -> bool:
    """Whether the bundle stands already, made by this configuration."""
    found = open_bundle(config.bundle).document["config"] if Path(config.bundle).exists() else None
    return is_finished(config.bundle, found, to_dict(config))


def initial_task(config: TrainConfig, manifest: Manifest) -> nn.Module:
    """The task with the weights of step 0, the same on every process.

    Raises:
        ContractError: an autoencoder is to learn latents.
    """
    if config.model.kind == "autoencoder" and manifest.content != "state":
        raise ContractError(f"{config.shards}: holds {manifest.content} frames; an autoencoder learns states")
    torch.manual_seed(rng.seed(config.seed, "init") % 2**63)
    return build_task(config.model, manifest.spec, manifest.shape, manifest.statistics())


class Run:
    """A run between its start and its end; `step` counts the optimizer's steps."""

    def __init__(self, config: TrainConfig, manifest: Manifest, world: World) -> None:
        self.config, self.manifest, self.world = config, manifest, world
        micro_batch(config.data.batch, config.engine, world.size)
        lead = config.model.lead
        self.windows = manifest.windows(TRAIN, lead + config.model.frames)
        steps_per_epoch(len(self.windows), config.data.batch)
        self.reader = Reader(manifest, config.model.frames, config.data.cache_frames, lead)
        self.engine = self._engine()
        self.ema = Ema(self.engine.local(), config.optim.ema_half_life_samples, config.data.batch)
        self.validation = Validation(config, manifest, self.engine, self.reader)
        self.exports = Exports(config, manifest, self.engine, self.ema)
        self.images = Images(config, manifest, self.engine, self.reader)
        made_by = _identity(config, manifest)
        self.checkpoints = Checkpoints(Path(config.folder) / "checkpoints", self.engine, self.ema, made_by)
        self.step, running, self.report, self.owes_validation = self.checkpoints.restore()
        self.telemetry = Telemetry(config, manifest, self.engine, self.step, self.owes_validation)
        self.meter = Meter(running, world.device)
        if config.model.corrects_gaussian:
            fit_prior_of(self.engine, config, manifest, self.checkpoints, self.step)

    def _engine(self) -> Engine:
        task = initial_task(self.config, self.manifest).to(self.world.device)
        optimizer = build_optimizer(task, self.config.optim)
        return Engine(task, optimizer, self.config.engine, self.world, self.config.data.batch)

    def train(self, stop: StopRequest) -> int:
        """Steps until the last, or until a signal asks to stop.

        A step is saved before it is validated: whatever a validation dies of, the steps are not lost with it.
        """
        config = self.config
        batches = self._batches()
        self.engine.train(True)
        if self.owes_validation:
            self._validate(saved=True)
        while self.step < config.steps:
            stopping = self._step(batches, stop)
            last = self.step == config.steps
            if last or config.due(config.log_every, self.step):
                self._log()
            self.owes_validation = last or config.due(config.validate_every, self.step)
            saved = last or stopping or config.due(config.checkpoint_every, self.step)
            if saved:
                self._checkpoint()
            if stopping:
                log.warning("asked to stop: saved step %d of %d; the same command goes on", self.step, config.steps)
                return STOPPED_EARLY
            if self.owes_validation:
                self._validate(saved)
        return DONE

    def _batches(self) -> Any:
        config, world = self.config, self.world

        def portions() -> Any:
            return plan(
                self.windows,
                seed=config.seed,
                batch=config.data.batch,
                rank=world.rank,
                size=world.size,
                accumulation=config.engine.accumulation,
                start=self.step,
                stop=config.steps,
            )

        noise = training_noise(config.seed, config.data.batch) if config.model.kind == "score" else None
        return loader(portions, self.reader, noise, config.data.workers)

    def _step(self, batches: Any, stop: StopRequest) -> bool:
        """One optimizer step; whether any process was asked to stop."""
        # What a network draws for itself (dropout) is keyed by step and process.
        torch.manual_seed(rng.seed(self.config.seed, "init", self.step, self.world.rank) % 2**63)
        n_micro, total, windows = self.config.engine.accumulation, {}, []
        for i in range(n_micro):
            with self.meter.timed("data"):
                portion, batch = next(batches)
            windows.extend(portion.windows)
            with self.meter.timed("forward"):
                values = self.engine.forward(batch)
            with self.meter.timed("backward"):
                self.engine.backward(values["loss"])
            for name, value in values.items():
                if value.ndim == 0:
                    total[name] = total.get(name, 0.0) + value.detach().float() / n_micro
            if i < n_micro - 1:
                self.engine.accumulate()
        with self.meter.timed("step"):
            norm = self.engine.gradient_norm()
        with self.meter.timed("communication"):
            found = self._agree(total, norm, stop.asked)
        stopping = found.pop("stop") > 0
        self._check_finite(found, windows)
        batch, steps = self.config.data.batch, self.config.steps
        rate = learning_rate(self.config.optim, self.step * batch, batch, steps * batch)
        with self.meter.timed("step"):
            late = self.engine.step(rate, norm)
        if late is not None:
            found["gradient_norm"] = late
            self._check_finite(found, windows)
        self.step += 1
        with self.meter.timed("step"):
            self.ema.update(self.step)
        self.meter.add(found | {"learning_rate": rate})
        return stopping

    def _agree(self, total: dict[str, Any], norm: torch.Tensor | None, stop: bool) -> dict[str, float]:
        """Means over the processes, in one message: all see the same loss, and all stop at the same step."""
        named = total | ({} if norm is None else {"gradient_norm": norm})
        values = torch.stack([*named.values(), total["loss"].new_tensor(float(stop))])
        return dict(zip([*named, "stop"], self.world.mean(values).tolist(), strict=True))

    def _check_finite(self, found: dict[str, float], windows: list[int]) -> None:
        days = [str(self.reader.days(w)[0]) for w in windows]
        check_finite(found, self.step, self.world.rank, days, Path(self.config.folder))

    def _log(self) -> None:
        samples = {"samples": self.step * self.config.data.batch}
        self.telemetry.write(self.step, samples | self.meter.line(self.config.data.batch))
        self.meter = Meter({}, self.world.device)

    def _validate(self, saved: bool) -> None:
        """Judge the averaged weights and leave a bundle of them; the checkpoint of a saved step learns of it."""
        began = time.perf_counter()
        with self.ema.applied():
            found = self.validation.run()
            self._check_finite(found, self.validation.windows)
            image = self.images.draw(self.step)
        self.report = with_best(found, self.step, self.report)
        self.telemetry.write(self.step, self.report)
        self.telemetry.show(self.step, image)
        self.exports.write(self.step, self.report)
        self.owes_validation = False
        if saved:
            self.checkpoints.validated(self.step, self.report, best=self.report[BEST_STEP] == self.step)
            self.exports.forget(self.report)
        self.meter.paused += time.perf_counter() - began

    def _checkpoint(self) -> None:
        began = time.perf_counter()
        self.engine.agree_on_running_statistics()
        self.checkpoints.save(self.step, self.meter.sums, self.report, self.owes_validation)
        self.exports.forget(self.report)
        self.meter.paused += time.perf_counter() - began


def _identity(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What may not change when a run goes on."""
    whole = to_dict(config)
    found = {name: whole[name] for name in ("seed", "samples", "validation_windows", "model", "optim")}
    found |= {"batch": config.data.batch, "gradient_clipping": config.engine.gradient_clipping}
    found |= {"frames": len(manifest.frames), "splits": manifest.document["splits"]}
    found |= {"spec": manifest.spec.digest, "statistics": manifest.document["statistics_sha256"]}
    # latents of another autoencoder are other data, even where their shape is the same
    return found | {"shape": list(manifest.shape), "autoencoder": manifest.document.get("autoencoder", "")}
