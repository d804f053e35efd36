"""What reading costs: windows from shards by the training loader, against opening one Zarr a day for every sample.

    python benchmarks/loader.py [tiny | small]      # whose shards and trainings; default: tiny, after `make demo`

The published code keeps one Zarr store a day and opens the five of a window each time. The same days are written so
into a temporary folder, with xarray, and the same windows are read from both in turn, in processor time, which other
programs change little. Then some steps of the trainings say what share of a step is spent waiting for data.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from slams.config import load
from slams.contracts.envelope import ContractError
from slams.contracts.shards import open_shards
from slams.statistics import day_features
from train import loop
from train.config import TrainConfig
from train.data import TRAIN, Portion, Reader, loader
from train.engine import EngineConfig, opened_world

DAYS, LENGTH, BATCH, PAIRS, WARM_UP = 365, 5, 8, 15, 2
STEPS = 20


def write_days(manifest, folder):
    """One Zarr store for each of the first days, every modality a variable."""
    for frame in manifest.frames[:DAYS]:
        x_CHW, parts = manifest.read(frame), {}
        for modality in manifest.spec.modalities:
            levels = x_CHW[manifest.spec.channels(modality.name)]
            parts[modality.name] = ((f"level_{modality.name}", "latitude", "longitude"), levels)
        xr.Dataset(parts).to_zarr(folder / f"{frame.time}.zarr", zarr_format=2)


def read_days(folder, days, names):
    """A window (L, C, H, W) from one store a day."""
    frames = []
    for day in days:
        with xr.open_zarr(folder / f"{day}.zarr") as found:
            frames.append(np.concatenate([found[name].values for name in names]))
    return np.stack(frames)


def day_by_day(reader, folder, windows):
    """A batch as the published loader makes it; processor seconds and what was read."""
    began = time.process_time()
    x = np.stack([read_days(folder, reader.days(w), reader.manifest.spec.names) for w in windows])
    day = np.stack([day_features(reader.days(w)) for w in windows])
    return time.process_time() - began, {"x": torch.from_numpy(x), "day": torch.from_numpy(day)}


def from_shards(reader, windows):
    """A batch by the training loader, no frame remembered."""
    batches = iter(loader(lambda: iter([Portion(0, 0, 0, windows)]), reader, None, 0))
    began = time.process_time()
    _, batch = next(batches)
    return time.process_time() - began, batch


def compare(manifest, folder):
    """Seconds a batch of both, pair by pair."""
    write_days(manifest, folder)
    reader, generator = Reader(manifest, LENGTH, cache_frames=0), np.random.default_rng(0)
    starts = manifest.windows(TRAIN, LENGTH)
    starts = starts[starts <= DAYS - LENGTH]
    pairs = []
    for _ in range(WARM_UP + PAIRS):
        windows = generator.choice(starts, BATCH, replace=False)
        (theirs, expected), (ours, found) = day_by_day(reader, folder, windows), from_shards(reader, windows)
        assert torch.equal(torch.nan_to_num(expected["x"]), torch.nan_to_num(found["x"]))
        pairs.append((theirs, ours))
    return pairs[WARM_UP:]


def waiting(path, world, workers):
    """Share of some steps of a training that was spent waiting for data, and samples a second."""
    config = load(TrainConfig, path, [f"data.workers={workers}"])
    config = replace(config, folder=tempfile.mkdtemp(), wandb="disabled", samples=10**9)
    run = loop.Run(config, open_shards(config.shards), world)
    run.engine.train(True)
    batches, stop = run._batches(), loop.StopRequest()
    run._step(batches, stop)
    run.meter = loop.Meter({}, world.device)
    for _ in range(STEPS):
        run._step(batches, stop)
    line = run.meter.line(config.data.batch)
    return line["data_wait"], line["samples_per_s"]


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    trainings = [f"configs/train/{name}_{kind}.yaml" for kind in ("autoencoder", "score")]
    try:
        manifest, _ = (open_shards(load(TrainConfig, path).shards) for path in trainings)
    except ContractError as error:
        sys.exit(f"benchmarks/loader.py: {error}; `make demo` makes those of tiny")
    with tempfile.TemporaryDirectory() as folder:
        pairs = compare(manifest, Path(folder))
    theirs, ours = (statistics.median(column) / BATCH * 1e3 for column in zip(*pairs, strict=True))
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    print(f"{manifest.folder}: {manifest.shape}, windows of {LENGTH} days, {PAIRS} pairs of {BATCH} windows")
    print(f"one Zarr a day {theirs:.2f} ms, loader {ours:.2f} ms a window, processor time")
    print(f"ratio {statistics.median(ratios):.0f} (lowest {ratios[0]:.0f}, highest {ratios[-1]:.0f})")
    loop.fit_prior = lambda *given: None  # a step costs the same whatever the prior's numbers
    with opened_world(EngineConfig()) as world:
        for path in trainings:
            for workers in (0, 1):
                share, speed = waiting(path, world, workers)
                print(f"{path}, workers {workers}: waits {share:.2%} of {STEPS} steps, {speed:.1f} samples/s")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
