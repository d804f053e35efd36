"""What habits of the published code do to its analyses, one by one: those that a network has to be trained with.

    python benchmarks/habits.py [HABIT ...]     # after configs/studies/paper.yaml; 15 minutes of one core a habit

The study's system with rain and OLR, but for one thing: its latents as they come and not standardised, so that the
kernel and the noise of 0.1 are of another scale; edges of the score network joined as on a sphere and not, as
published, top to bottom; or observations whose stated 0.1 is a variance. Scored as the study scores it, W1 of every
fourth day.
"""

import json
import shlex
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.__main__ import main as data_prep
from sample.__main__ import main as sample
from sample.study.config import StudyConfig
from sample.study.plan import planned, preparations
from slams.config import load
from slams.unet import UNet
from train.__main__ import run as train

STUDY, SYSTEM, DATA, SETTINGS = "configs/studies/paper.yaml", "ex-situ", "TPO", ("coarse-4", "coarse-12", "gap-4")
SHAPE = (32, 64)


def as_they_come(sums):
    """In place of the moments of the latents."""
    n = len(sums[0]["total"])
    return {"mean": [0.0] * n, "std": [1.0] * n}


# of each habit what makes it, what is made anew for it, and what is changed in its observations
HABITS = {
    "latents-as-they-come": (partial(patch, "data_prep.encode.moments", as_they_come), ("latents", "score"), ()),
    "edges-as-on-a-sphere": (partial(patch, "slams.model.UNet", partial(UNet, padding="sphere")), ("score",), ()),
    "noise-as-a-variance": (nullcontext, (), ("observe.latent.noise=0.316",)),
}


def run(job, *words):
    if job(list(words)):
        sys.exit(f"benchmarks/habits.py: failed: {shlex.join(words)}")


def prepared(config, folder, anew):
    """Words for the sampler and for the observations, where encoding and training are done."""
    of_data = [stage for stage in preparations(config) if f"{config.folder}/{DATA}/" in str(stage.commands)]
    (_, *encode), (_, *fit) = (stage.commands[0] for stage in of_data[3:])
    drawn, seen = [], []
    if "latents" in anew:
        seen.append(f"encode.path={folder}/latents")
        run(data_prep, *encode, *seen)
        fit.append(f"shards={folder}/latents")
    if "score" in anew:
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
    for habit in sys.argv[1:] or HABITS:
        made, anew, observed = HABITS[habit]
        folder = f"{config.folder}/habits/{habit}"
        with made():
            drawn, seen = prepared(config, folder, anew)
            for setting in SETTINGS:
                case = plan.cases[setting, SYSTEM]
                observations = f"{folder}/{setting}.zarr"
                run(data_prep, *case.after[0].commands[0][1:], *seen, *observed, f"observe.path={observations}")
                place = [f"folder={folder}/{setting}", f"observations={observations}"]
                for _, *words in case.commands:
                    run(sample, *words, *drawn, *place)
                ours, theirs = scores(plan.folder((setting, SYSTEM))), scores(f"{folder}/{setting}")
                cells = [f"{value:.3f}" for pair in zip(ours, theirs, strict=True) for value in pair]
                print(f"| {habit} | {setting} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
