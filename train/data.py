"""Batches in an order that is a function of (seed, epoch) alone.

plan -> read -> collate, a WebDataset pipeline. The plan says which windows make which global batch; a process
takes its contiguous part of each, so that any number of processes sees the same global batches, and starting at
any step costs nothing. Diffusion times and noise are keyed by step, window and epoch, never by process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
import torch
import webdataset as wds
from cachetools import LRUCache
from torch import Tensor
from torch.utils.data import get_worker_info

from slams import rng
from slams.ahead import ahead
from slams.config import ConfigError
from slams.contracts.shards import Manifest
from slams.statistics import day_features

TRAIN, VALIDATION = "train", "validation"
VALIDATION_SEED = 0  # fixed, so that runs with other seeds are scored on the same noise
SMALLEST_TIME = 1e-5


@dataclass(frozen=True)
class DataConfig:
    """How windows are read.

    Arguments:
        batch: the global batch, windows a step over all processes.
        workers: reading processes beside each training process; 0 reads in the training process, a batch ahead.
        cache_frames: decoded frames kept in memory, in each reading process.
        damaged: what a frame that cannot be read does: ``stop`` the run, or ``skip`` the windows that contain it.
            ``skip`` reads every shard once before it begins, and a run that goes on after new damage goes on with
            other windows.
    """

    batch: int
    workers: int = 0
    cache_frames: int = 1024
    damaged: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch: {self.batch} is not allowed; at least 1")
        if self.workers < 0 or self.cache_frames < 0:
            raise ValueError(f"workers, cache_frames: {self.workers}, {self.cache_frames}; at least 0")

    @property
    def stops_at_damage(self) -> bool:
        return self.damaged == "stop"


@dataclass(frozen=True)
class Portion:
    """One micro-batch of one process: which windows, each of which epoch, and where it begins in the global batch."""

    step: int
    position: int
    windows: np.ndarray
    epochs: np.ndarray


Batch = tuple[Portion, dict[str, Tensor]]
Noise = Callable[[Portion, tuple[int, ...]], dict[str, np.ndarray]]


def steps_per_epoch(n_windows: int, batch: int) -> int:
    """Batches in an epoch; the last may end in the next epoch.

    Raises:
        ConfigError: a batch would hold the same window twice.
    """
    if n_windows < batch:
        raise ConfigError(f"data.batch: {batch} is larger than the {n_windows} windows of the train split")
    return math.ceil(n_windows / batch)


def plan(
    windows: np.ndarray, *, seed: int, batch: int, rank: int, size: int, accumulation: int, start: int, stop: int
) -> Iterator[Portion]:
    """The portions of process ``rank`` of ``size``, steps ``start`` to ``stop``.

    The epochs follow each other without a break, each window once in each, in its own order; batches are cut from that.
    """
    share = batch // size
    micro = share // accumulation

    @lru_cache(maxsize=2)  # a batch lies in two epochs at most
    def ordered(epoch: int) -> np.ndarray:
        return windows[rng.generator(seed, "data-order", epoch).permutation(len(windows))]

    for step in range(start, stop):
        for first in range(rank * share, (rank + 1) * share, micro):
            epochs, index = np.divmod(step * batch + np.arange(first, first + micro), len(windows))
            found = np.array([ordered(int(e))[i] for e, i in zip(epochs, index, strict=True)])
            yield Portion(step, first, found, epochs)


def stratified_times(generator: np.random.Generator, count: int) -> np.ndarray:
    """Times in (0, 1), one in each of ``count`` equal intervals, in random order: the loss varies less."""
    t = (generator.permutation(count) + generator.random(count)) / count
    return np.clip(t, SMALLEST_TIME, 1 - SMALLEST_TIME).astype(np.float32)


def training_noise(seed: int, batch: int) -> Noise:
    """Diffusion times and noise of a portion of a global batch, and the chance by which backgrounds are dropped."""

    def noise(portion: Portion, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        t = stratified_times(rng.generator(seed, "diffusion-time", portion.step), batch)
        keys = list(zip(portion.epochs, portion.windows, strict=True))
        eps = [rng.normal(seed, "diffusion-noise", *key, shape=shape) for key in keys]
        chance = [rng.generator(seed, "background", *key).random() for key in keys]
        t = t[portion.position : portion.position + len(eps)]
        return {"t": t, "noise": np.stack(eps), "chance": np.array(chance, np.float32)}

    return noise


def validation_noise(count: int) -> Noise:
    """The same for validation windows: fixed for ever, whatever the run."""
    times = stratified_times(rng.generator(VALIDATION_SEED, "validation"), count)

    def noise(portion: Portion, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        eps = [rng.normal(VALIDATION_SEED, "validation", w, shape=shape) for w in portion.windows]
        chance = [rng.generator(VALIDATION_SEED, "background", w).random() for w in portion.windows]
        t = times[portion.position : portion.position + len(eps)]
        return {"t": t, "noise": np.stack(eps), "chance": np.array(chance, np.float32)}

    return noise


class Reader:
    """Frames and windows of a shard set, decoded frames cached: neighbouring windows share them.

    Arguments:
        length: days a window.
        lead: days read before each window.
    """

    def __init__(self, manifest: Manifest, length: int, cache_frames: int, lead: int = 0) -> None:
        self.manifest, self.length, self.lead = manifest, length, lead
        self.frames = manifest.frames
        self._cache: LRUCache[int, np.ndarray] = LRUCache(cache_frames)
        self._lock = Lock()  # a validation may read while the next training batch is read ahead

    def days(self, window: int) -> np.ndarray:
        """Valid days of the window read from that frame on, (L,)."""
        first = window + self.lead
        return np.array([frame.time for frame in self.frames[first : first + self.length]])

    def windows(self, firsts: np.ndarray) -> np.ndarray:
        """What is read from those frames on, (B, lead + L, C, H, W)."""
        x = np.empty((len(firsts), self.lead + self.length, *self.manifest.shape), np.float32)
        with self._lock:
            self._fill(x, firsts)
        return x

    def _fill(self, x_BLCHW: np.ndarray, firsts: np.ndarray) -> None:
        """Frames that are not remembered are read once each, in the order in which they lie."""
        missing: dict[int, list[np.ndarray]] = {}
        for x_LCHW, first in zip(x_BLCHW, firsts, strict=True):
            for frame, into in enumerate(x_LCHW, int(first)):
                if (remembered := self._cache.get(frame)) is None:
                    missing.setdefault(frame, []).append(into)
                else:
                    into[:] = remembered
        wanted = sorted(missing)
        self.manifest.read_into([missing[frame][0] for frame in wanted], [self.frames[frame] for frame in wanted])
        for read, *others in missing.values():
            for into in others:
                into[:] = read
        if self._cache.maxsize:
            self._cache.update({frame: missing[frame][0].copy() for frame in wanted})


def loader(
    portions: Callable[[], Iterable[Portion]], reader: Reader, noise: Noise | None, workers: int
) -> Iterator[Batch]:
    """Batches in the order of the plan, read ahead by ``workers`` processes, or by a thread of this one."""

    def read(portion: Portion) -> tuple[Portion, np.ndarray]:
        return portion, reader.windows(portion.windows)

    def collate(read: tuple[Portion, np.ndarray]) -> Batch:
        portion, x = read
        arrays = {"x": x, "day": np.stack([day_features(reader.days(w)) for w in portion.windows]).astype(np.float32)}
        if noise is not None:
            arrays |= noise(portion, x.shape[1:])
        return portion, {name: torch.from_numpy(value) for name, value in arrays.items()}

    pipeline = wds.DataPipeline(portions, _by_worker, wds.map(read), wds.map(collate))
    # fork: the workers touch no device, and share what the reader holds
    context = "fork" if workers else None
    pin = torch.cuda.is_available()
    read_ahead = wds.WebLoader(
        pipeline, batch_size=None, num_workers=workers, multiprocessing_context=context, pin_memory=pin
    )
    return ahead(_from_processes(read_ahead) if workers else read_ahead)


def _from_processes(batches: Iterable[Batch]) -> Iterator[Batch]:
    """A process that is killed breaks its pipe before it counts as dead; torch knows only the second.

    Raises:
        RuntimeError: a reading process was lost.
    """
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        if "DataLoader worker" in str(error):  # what the process itself met, and sent here
            raise
        raise RuntimeError(f"DataLoader worker: its pipe broke, {error or type(error).__name__}") from error


def _by_worker(portions: Iterable[Portion]) -> Iterator[Portion]:
    """Every n-th portion: the loader takes them from its n workers in turn, so the order stays."""
    worker = get_worker_info()
    for i, portion in enumerate(portions):
        if worker is None or i % worker.num_workers == worker.id:
            yield portion
