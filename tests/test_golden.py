"""Twenty steps of each tiny preset give the losses that are stored, digit for digit: no change goes unnoticed.

The data are made here, since the sample world takes minutes; everything else is the preset's own. The instruction
sets are held at AVX2, which every machine of the last ten years has, so that the kernels are the same: those of torch,
of oneDNN and MKL under it, and of NumPy's OpenBLAS.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from crew import ROOT, finish, start_crew

from data_prep.shards import write_shards
from slams import rng
from slams.contracts.envelope import written_aside
from slams.spec import OLR, PRECIPITATION, TEMPERATURE, Grid, StateSpec
from slams.statistics import Statistics

GOLDEN = ROOT / "tests" / "golden" / "loss.txt"
PRESETS = ("tiny_autoencoder", "tiny_score")
STEPS = 20
KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
KERNELS |= {"OPENBLAS_CORETYPE": "Haswell"}


def write_data(folder, content, shape):
    """300 train days and 60 validation days of noise that decorrelates in some days."""
    spec = StateSpec(Grid(32, 64), (TEMPERATURE, PRECIPITATION, OLR))
    observed = np.ones((spec.n_channels, *spec.grid.shape), bool)
    observed[10, :, 40:] = False  # no gauges at sea
    statistics = Statistics(
        np.full((1, spec.n_channels, 1, 1), 2.0),
        np.full((spec.n_channels, 1, 1), 3.0),
        np.arange(spec.n_channels) == 10,
        observed,
        {"land_fraction": observed[10].astype(np.float32)},
    )
    known = observed if content == "state" else np.ones(shape, bool)

    def frames():
        for run, (first, n_days) in enumerate((("2001-01-01", 300), ("2005-01-01", 60))):
            x = rng.normal(0, "observation", run, shape=shape)
            for day in range(n_days):
                x = 0.8 * x + 0.6 * rng.normal(0, "observation", run, day, shape=shape)
                yield np.datetime64(first) + day, run, np.where(known, x, np.nan).astype(np.float32)

    document = {"config": {}, "content": content, "splits": {"train": [2001, 2001], "validation": [2005, 2005]}}
    latent = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    document |= {"autoencoder": "none", "latent": latent} if content == "latent" else {}
    with written_aside(folder) as aside:
        write_shards(
            aside, frames(), spec=spec, statistics=statistics, frames_per_shard=100, keepbits=12, document=document
        )
    return folder


def losses(folder):
    """A line for each step of each preset, with loss and norm of the gradient; at the end, the validation loss."""
    shards = {
        "tiny_autoencoder": write_data(folder / "state", "state", (12, 32, 64)),
        "tiny_score": write_data(folder / "latent", "latent", (16, 8, 16)),
    }
    jobs = []
    for preset in PRESETS:
        path = ROOT / "configs" / "train" / f"{preset}.yaml"
        batch = yaml.safe_load(path.read_text())["data"]["batch"]
        words = {"folder": folder / preset, "bundle": folder / preset / "bundle", "shards": shards[preset]}
        words |= {"samples": STEPS * batch, "optim.warmup_samples": 5 * batch, "log_every": batch}
        words |= {"validation_windows": 32, "validation_frames": 8}
        words |= {"engine.precision": "fp32", "engine.torch_threads": 1, "wandb": "disabled"}
        words |= {"model.patterns": 20} if preset == "tiny_score" else {}  # few for few days
        jobs.append([[str(path), *(f"{k}={v}" for k, v in words.items())], False])
    finish(start_crew(jobs, 1, "variables", **KERNELS))
    for preset in PRESETS:
        for line in map(json.loads, (folder / preset / "metrics.jsonl").read_text().splitlines()):
            named = [line[name] for name in ("loss", "gradient_norm", "validation/loss") if name in line]
            yield " ".join([preset, str(line["step"]), *(f"{value:.9g}" for value in named)])


def heading():
    return f"# torch {torch.__version__}"


def test_twenty_steps_are_those_that_are_stored(tmp_path):
    stored = GOLDEN.read_text().splitlines()
    if heading() != stored[0]:
        pytest.skip(f"the record was made by {stored[0][2:]}, this is torch {torch.__version__}")
    assert list(losses(tmp_path)) == stored[1:], "if it is meant: python tests/test_golden.py"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text("\n".join([heading(), *losses(Path(folder))]) + "\n")
