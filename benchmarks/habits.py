"""What habits of the published code do to its analyses, one by one: those that a network has to be trained with.

    python benchmarks/habits.py [HABIT ...]     # after configs/studies/paper.yaml; 5 to 20 minutes of one core a habit

The study's system with rain and OLR, but for one thing: its latents as they come and not standardised, so that the
kernel and the noise of 0.1 are of another scale; edges of the score network joined as on a sphere and not, as
published, top to bottom; observations whose stated 0.1 is a variance; an ocean where it never rains, which nobody
gauged; or a score network that is told its latitude, where the published one, all convolutions, is the same for a
shifted globe. Scored as the study scores it, W1 of every fourth day.
"""

import json
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.__main__ import main as data_prep
from sample.__main__ import main as sample
from sample.study.config import StudyConfig
from sample.study.plan import planned, preparations
from slams.autoencoder import PaperAutoencoder
from slams.config import load
from slams.contracts.archive import open_archive
from slams.spec import Grid
from slams.unet import UNet
from train.__main__ import run as train

STUDY, SYSTEM, DATA, SETTINGS = "configs/studies/paper.yaml", "ex-situ", "TPO", ("coarse-4", "coarse-12", "gap-4")
SHAPE = (32, 64)


def as_they_come(sums):
    """In place of the moments of the latents."""
    n = len(sums[0]["total"])
    return {"mean": [0.0] * n, "std": [1.0] * n}


def ocean_without_rain():
    """Rain that nobody gauged is 0 mm/day for the autoencoder, and not its mean."""
    archive = open_archive(f"{load(StudyConfig, STUDY).folder}/{DATA}/archive.zarr")
    channel, shape = archive.spec.channels("precipitation"), (1, archive.spec.n_channels, *SHAPE)
    dry = float(archive.statistics().standardise(np.zeros(shape, np.float32), archive.time[:1])[0, channel].min())

    def encode(network, x_BCHW):
        rain = x_BCHW.clone()
        rain[:, channel] = torch.nan_to_num(rain[:, channel], nan=dry)
        return network.encoder(torch.nan_to_num(rain))

    return patch.object(PaperAutoencoder, "encode", encode)


def told_its_latitude():
    """Sine and cosine of the latitude as two more channels of the score network."""
    latitude = torch.from_numpy(np.deg2rad(Grid(*SHAPE).latitude)).float()
    static = torch.stack([latitude.sin(), latitude.cos()])[:, :, None].repeat(1, 1, SHAPE[1])
    return patch("slams.model.UNet", partial(UNet, static_SHW=static))


class Habit(NamedTuple):
    """What makes it, what is made anew for it, and what is changed in its observations."""

    made: Callable[[], AbstractContextManager]
    anew: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()


HABITS = {
    "latents-as-they-come": Habit(partial(patch, "data_prep.encode.moments", as_they_come), ("latents", "score")),
    "edges-as-on-a-sphere": Habit(partial(patch, "slams.model.UNet", partial(UNet, padding="sphere")), ("score",)),
    "noise-as-a-variance": Habit(nullcontext, observed=("observe.latent.noise=0.316",)),
    "ocean-without-rain": Habit(ocean_without_rain, ("autoencoder", "latents", "score")),
    "told-its-latitude": Habit(told_its_latitude, ("score",)),
}


def run(job, *words):
    if job(list(words)):
        sys.exit(f"benchmarks/habits.py: failed: {shlex.join(words)}")


def prepared(config, folder, habit):
    """Words for the sampler and for the observations, where encoding and training are done."""
    of_data = [stage for stage in preparations(config) if f"{config.folder}/{DATA}/" in str(stage.commands)]
    (_, *code), (_, *encode), (_, *fit) = (stage.commands[0] for stage in of_data[2:])
    drawn, seen = [], []
    if "autoencoder" in habit.anew:
        bundle = f"{folder}/autoencoder/bundle"
        run(train, *code, f"folder={folder}/autoencoder", f"bundle={bundle}")
        drawn.append(f"autoencoder={bundle}")
        seen.append(f"encode.autoencoder={bundle}")
    if "latents" in habit.anew:
        seen.append(f"encode.path={folder}/latents")
        run(data_prep, *encode, *seen)
        fit.append(f"shards={folder}/latents")
    if "score" in habit.anew:
        run(train, *fit, f"folder={folder}/score", f"bundle={folder}/score/bundle")
        drawn.append(f"score={folder}/score/bundle")
    return drawn, seen


def scores(folder):
    found = json.loads(Path(folder, "verify", "scores.json").read_text())["confidence"]["systems"]["analysis"]
    return [found[name]["value"] for name in ("w1", "rmse")]


def main():
    config = load(StudyConfig, STUDY)
    plan = planned(config, SHAPE)
    print("| habit | setting | W1: study | with it | RMSE (K): study | with it |\n|---|---|--:|--:|--:|--:|")
    for name in sys.argv[1:] or HABITS:
        habit, folder = HABITS[name], f"{config.folder}/habits/{name}"
        with habit.made():
            drawn, seen = prepared(config, folder, habit)
            for setting in SETTINGS:
                case = plan.cases[setting, SYSTEM]
                observations = f"{folder}/{setting}.zarr"
                run(data_prep, *case.after[0].commands[0][1:], *seen, *habit.observed, f"observe.path={observations}")
                place = [f"folder={folder}/{setting}", f"observations={observations}"]
                for _, *words in case.commands:
                    run(sample, *words, *drawn, *place)
                ours, theirs = scores(plan.folder((setting, SYSTEM))), scores(f"{folder}/{setting}")
                cells = [f"{value:.3f}" for pair in zip(ours, theirs, strict=True) for value in pair]
                print(f"| {name} | {setting} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
