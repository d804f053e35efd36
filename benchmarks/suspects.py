"""What habits of the published code do to the published networks, as far as no other training is needed to see it.

    python benchmarks/suspects.py     # after the networks of configs/studies/paper.yaml, system TPO

The published case: 1-29 January of a year never trained on; W1 of pooled values of every fourth day, in z-scores, by
SciPy. Batch normalisation with the statistics of what is just being encoded, as where nobody calls `eval()`; the
scale of latents that nobody standardised; statistics over all years; how foreign rows are that a circular padding
makes neighbours across the poles; how little a score network of nothing but convolutions, padded so, and a score of
pooled values know of where on the globe they are; and which scales of the analyses lose their strength where
observations are coarse.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wasserstein_distance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slams.contracts.analysis import open_analysis
from slams.contracts.archive import open_archive
from slams.contracts.bundle import open_bundle
from slams.model import open_autoencoder, open_score

FOLDER = Path("runs/studies/paper/TPO")
DAYS = np.arange("1991-01-01", "1991-01-30", dtype="datetime64[D]")
SCORED, UPPER = slice(None, None, 4), 4  # every fourth day; levels of 10 to 200 hPa come first
SHIFT = 8  # rows, 45 degrees


def round_trip(network, x_LCHW, frames_at_once):
    """D(E(x)) with statistics of the batch, of so many frames at once, or, for 0, those of training."""
    network.train(bool(frames_at_once))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # a batch leaves no trace
    with torch.no_grad():
        parts = torch.from_numpy(x_LCHW).split(frames_at_once or len(x_LCHW))
        return torch.cat([network.decode(network.encode(part)) for part in parts]).numpy()


def w1(x_LCHW, truth_LCHW):
    """By level."""
    return np.array(
        [wasserstein_distance(x_LCHW[:, c].ravel(), truth_LCHW[:, c].ravel()) for c in range(x_LCHW.shape[1])]
    )


def floors(network, x_LCHW):
    """Rows of the table: W1 of all levels, the upper ones and the lower ones, and the root-mean-square error."""
    n = network.n_decoded
    truth = x_LCHW[SCORED, :n]
    for name, frames in (("of training", 0), ("of the 29 days", len(DAYS)), ("of each day", 1)):
        found = round_trip(network, x_LCHW, frames)[SCORED]
        each, error = w1(found, truth), np.sqrt(((found - truth) ** 2).mean())
        yield name, each.mean(), each[:UPPER].mean(), each[UPPER:].mean(), error


def moved(archive):
    """How far mean and standard deviation of each channel move if all years count: in train standard deviations."""
    every_day = np.arange(len(archive.time))
    train, every = (archive.read(days).astype(np.float64) for days in (archive.days("train"), every_day))
    mean, std = (part(train, axis=(0, 2, 3)) for part in (np.nanmean, np.nanstd))
    return np.abs(np.nanmean(every, axis=(0, 2, 3)) - mean) / std, np.abs(np.nanstd(every, axis=(0, 2, 3)) / std - 1)


def across_the_pole(x_LCHW):
    """Root-mean-square difference of the first and last row, beside that of neighbouring rows, by level."""
    step = np.sqrt(((x_LCHW[:, :, 1:] - x_LCHW[:, :, :-1]) ** 2).mean(axis=(0, 2, 3)))
    return np.sqrt(((x_LCHW[:, :, 0] - x_LCHW[:, :, -1]) ** 2).mean(axis=(0, 2))) / step


def answers_to_a_shifted_globe(denoise, latents_LZHW):
    """Largest difference, over the largest value, of the shifted answer and the answer to latents shifted so."""
    window, t = latents_LZHW[None, :5], torch.tensor([0.5])
    day = torch.zeros(1, 5, 5)  # it has no calendar
    noisy = window + torch.randn(window.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, other = denoise(noisy, t, day), denoise(noisy.roll(SHIFT, dims=-2), t, day)
    return float((answer.roll(SHIFT, dims=-2) - other).abs().max() / answer.abs().max())


def amplitudes(x_LCHW):
    """Standard deviation along the latitudes of zonal means, and of zonal waves 1 to 3 and 4 on: mean over the rest."""
    waves = np.fft.rfft(x_LCHW, axis=-1) / x_LCHW.shape[-1]
    planetary, others = (np.sqrt(2 * (np.abs(part) ** 2).sum(axis=-1)) for part in (waves[..., 1:4], waves[..., 4:]))
    return waves[..., 0].real.std(axis=-1).mean(), planetary.mean(), others.mean()


def scales(truth, statistics):
    """Rows of the table of amplitudes, in z-scores: the truth, then two systems in three settings."""
    yield "truth", amplitudes(truth)
    for setting, system in product(("coarse-4", "coarse-8", "coarse-12"), ("pixel", "ex-situ")):
        found = open_analysis(FOLDER.parent / "cases" / setting / system / "analysis.zarr")
        x = np.concatenate([found.read(where) for where in range(len(found.time))[SCORED]])
        n = x.shape[1]  # temperatures alone
        yield f"{setting}, {system}", amplitudes((x - statistics.mean(DAYS[SCORED])[:, :n]) / statistics.std[:n])


def main():
    if not (FOLDER / "score" / "bundle").exists():
        sys.exit(f"benchmarks/suspects.py: {FOLDER}: no networks; run the study configs/studies/paper.yaml")
    torch.set_num_threads(1)
    archive, bundle = open_archive(FOLDER / "archive.zarr"), open_bundle(FOLDER / "autoencoder" / "bundle")
    network = open_autoencoder(bundle)
    x = bundle.statistics().standardise(archive.read(archive.index_of(DAYS)), DAYS)
    print("| batch statistics | W1, all levels | 10-200 hPa | 300-1000 hPa | RMSE (z) |\n|---|--:|--:|--:|--:|")
    for name, *numbers in floors(network, x):
        print(f"| {name} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    network.eval()
    with torch.no_grad():
        latents = network.encode(torch.from_numpy(x))
    std, mean = latents.std(dim=(0, 2, 3)), latents.mean(dim=(0, 2, 3))
    print("latents as they come: std", [f"{v:.2f}" for v in std.tolist()], "mean", [f"{v:.2f}" for v in mean.tolist()])
    shift, scale = moved(archive)
    print(f"all years for the train years: means move by {shift.max():.4f} std, std by {scale.max():.4f} of itself")
    apart = across_the_pole(np.nan_to_num(x[:, : network.n_decoded]))
    print(f"rows joined by circular padding differ {apart.min():.1f} to {apart.max():.1f} times as much as neighbours")
    denoise, _ = open_score(open_bundle(FOLDER / "score" / "bundle"))
    told = answers_to_a_shifted_globe(denoise, (latents - mean[:, None, None]) / std[:, None, None])
    truth = x[SCORED, : network.n_decoded]
    moved_globe = np.roll(truth, SHIFT, axis=2)
    score, error = w1(moved_globe, truth).mean(), np.sqrt(((moved_globe - truth) ** 2).mean())
    print(f"globe shifted by {SHIFT} rows: the score network's answer shifts with it, but for {told:.0e}")
    print(f"truth shifted by {SHIFT} rows: W1 {score:.3f}, RMSE {error:.2f} (z)")

    print("| | zonal mean | waves 1-3 | waves 4 on |\n|---|--:|--:|--:|")
    for name, found in scales(truth, bundle.statistics()):
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |")


if __name__ == "__main__":
    main()
