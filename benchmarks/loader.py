"""What reading costs: windows from shards by the training loader, against opening one Zarr a day for every sample.

    python benchmarks/loader.py [tiny | small]      # whose shards and trainings; default: tiny, after `make demo`

The published code keeps one Zarr store a day and opens the five of a window each time. The same days are written so
into a temporary folder, with xarray, and the same windows are read from both in turn, in processor time, which other
programs change little. Then some steps of the trainings say what share of a step is spent waiting for data.
"""

import os
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

DAYS, LENGTH, BATCH, ROUNDS, WARM_UP = 365, 5, 8, 21, 2
STEPS, FIRST_STEPS = 40, 5


def variables(manifest):
    """Channels of each variable of a store."""
    if manifest.content == "latent":
        return {"latent": slice(None)}
    return {name: manifest.spec.channels(name) for name in manifest.spec.names}


def write_days(manifest, folder):
    """One Zarr store for each of the first days, every modality a variable."""
    for frame in manifest.frames[:DAYS]:
        x_CHW = manifest.read(frame)
        parts = {name: ((f"level_{name}", "y", "x"), x_CHW[part]) for name, part in variables(manifest).items()}
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
    x = np.stack([read_days(folder, reader.days(w), variables(reader.manifest)) for w in windows])
    day = np.stack([day_features(reader.days(w)) for w in windows])
    return time.process_time() - began, {"x": torch.from_numpy(x), "day": torch.from_numpy(day)}


def from_shards(reader, windows):
    """A batch by the training loader, the same."""
    batches = loader(lambda: iter([Portion(0, 0, windows, np.zeros(len(windows), int))]), reader, None, 0)
    began = time.process_time()
    _, batch = next(batches)
    return time.process_time() - began, batch


def compare(manifest, folder):
    """Seconds a batch, round by round: one Zarr a day, the loader, the loader that remembers every frame."""
    write_days(manifest, folder)
    forgets, remembers = (Reader(manifest, LENGTH, cache_frames=n) for n in (0, DAYS))
    starts, generator = manifest.windows(TRAIN, LENGTH), np.random.default_rng(0)
    starts = starts[starts <= DAYS - LENGTH]
    remembers.windows(starts)
    rounds = []
    for _ in range(WARM_UP + ROUNDS):
        windows = generator.choice(starts, BATCH, replace=False)
        found = [day_by_day(forgets, folder, windows), from_shards(forgets, windows), from_shards(remembers, windows)]
        for _, batch in found[1:]:
            assert torch.equal(torch.nan_to_num(batch["x"]), torch.nan_to_num(found[0][1]["x"]))
        rounds.append([seconds for seconds, _ in found])
    return np.array(rounds[WARM_UP:])


def waiting(path, world, workers):
    """Share of some steps of a training that was spent waiting for data, and samples a second."""
    config = load(TrainConfig, path, [f"data.workers={workers}"])
    config = replace(config, folder=tempfile.mkdtemp(), wandb="disabled", samples=10**9)
    run = loop.Run(config, open_shards(config.shards), world)
    run.engine.train(True)
    batches, stop = run._batches(), loop.StopRequest()
    for _ in range(FIRST_STEPS):
        run._step(batches, stop)
    run.meter = loop.Meter({}, world.device)
    for _ in range(STEPS):
        run._step(batches, stop)
    line = run.meter.line(config.data.batch)
    return line["data_wait"], line["samples_per_s"]


def tell(manifest, seconds):
    """The rounds of a shard set, in three lines."""
    print(
        f"{manifest.folder} {manifest.shape}, one Zarr a day: {np.median(seconds[:, 0]) / BATCH * 1e3:.2f} ms a window"
    )
    for i, name in ((1, "every frame decoded anew"), (2, "frames remembered")):
        ratio = seconds[:, 0] / seconds[:, i]
        spread = f"ratio {np.median(ratio):.0f} (lowest {ratio.min():.0f}, highest {ratio.max():.0f})"
        print(f"loader, {name}: {np.median(seconds[:, i]) / BATCH * 1e3:.2f} ms a window, {spread}")


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    trainings = [f"configs/train/{name}_{kind}.yaml" for kind in ("autoencoder", "score")]
    try:
        sets = [open_shards(load(TrainConfig, path).shards) for path in trainings]
    except ContractError as error:
        sys.exit(f"benchmarks/loader.py: {error}; `make demo` makes those of tiny")
    print(f"{ROUNDS} rounds of {BATCH} windows of {LENGTH} days, processor time")
    for manifest in sets:
        with tempfile.TemporaryDirectory() as folder:
            tell(manifest, compare(manifest, Path(folder)))
    loop.fit_prior_of = lambda *given: None  # a step costs the same whatever the prior's numbers
    with opened_world(EngineConfig()) as world:
        for path in trainings:
            for workers in (0, 1):
                share, speed = waiting(path, world, workers)
                print(f"{path}, workers {workers}: waits {share:.2%} of {STEPS} steps, {speed:.1f} samples/s")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
