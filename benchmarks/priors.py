"""What is a Gaussian prior worth before any training? Its exact posterior mean beside EnOI, with the same observations.

    python benchmarks/priors.py [SCORE_CONFIG SAMPLE_CONFIG] [key.path=value ...]     (default: the study's at T31)

Each prior is fitted to the train years and conditioned on temperature as 8 x 8 block means, every day of the window, by
guidance at almost no noise with converged conjugate gradients: no sampling, so that priors differ by nothing else.
The mean of optimal interpolation by an ensemble (EnOI) of 300 windows of the season stands beside them. Appends a line
for each to priors.csv. (A trained network has no place here: at so little noise it amplifies its own errors, which is
why sampling begins and ends elsewhere.)
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.calibration import MOST_OBSERVATIONS, SYSTEMS
from benchmarks.twin import HALF_WINDOW, Twin
from slams.config import load
from slams.contracts.shards import open_shards
from slams.enoi import Choice
from slams.enoi_archive import analysis as enoi_analysis
from slams.enoi_observations import from_observations, superobservations
from slams.gaussian import GaussianPrior
from slams.guidance import guided
from slams.likelihood import Physical
from slams.patterns import season_of
from slams.posterior import GuidanceConfig
from slams.statistics import day_features
from train.config import TrainConfig
from train.prior import fit_prior

SYSTEM, ALPHA, ITERATIONS = "coarse-8", 1e-3, 80
PRIORS = {
    "as configured": {},
    "patterns localised at 6000 km": {"model.localisation_km": "6000"},
    "patterns not localised": {"model.localisation_km": "0"},
    "200 patterns": {"model.patterns": "200"},
    "1 pattern: zonal alone": {"model.patterns": "1"},
}
ENOI = [Choice(km, float("inf"), 0.7, season_days=60) for km in (4000, 6000, 10_000)]
ENOI_MEMBERS = 300
Denoise = Callable[[Tensor, Tensor, np.datetime64], Tensor]


def fitted(config: TrainConfig) -> GaussianPrior:
    manifest, model = open_shards(config.shards), config.model
    prior = GaussianPrior(model.frames, manifest.shape, model.modes, model.patterns, model.half_width_km)
    fit_prior(prior, config, manifest)
    return prior


def features(twin: Twin, day: np.datetime64) -> Tensor:
    return torch.from_numpy(day_features(twin.window(day))).float()[None]


def of_prior(twin: Twin, prior: GaussianPrior) -> Denoise:
    sde = twin.assimilator.sde

    def denoise(z: Tensor, t: Tensor, day: np.datetime64) -> Tensor:
        alpha, sigma = (scale(t).expand(len(z)) for scale in (sde.alpha, sde.sigma))
        return prior(z, alpha, sigma, season_of(features(twin, day)).expand(len(z)))

    return denoise


def posterior_mean(twin: Twin, denoise: Denoise, day: np.datetime64) -> np.ndarray:
    """The state of a day, x_CHW."""
    system, physical = twin.assimilator, Physical(twin.assimilator.statistics, twin.window(day), "cpu")
    decoder = system._decoder(0)
    likelihood = system._likelihood(twin.observed(SYSTEMS[SYSTEM], day), physical, decoder)
    guide = GuidanceConfig("mmps", iterations=ITERATIONS)
    step = guided(lambda z, t: denoise(z, t, day), likelihood, guide, system.sde)
    window = torch.zeros(1, 2 * HALF_WINDOW + 1, *system.shape_ZHW)
    with torch.no_grad():
        found = physical(decoder(step(window, torch.tensor(system.sde.time_of_alpha(ALPHA)))))
    return found.numpy()[0, HALF_WINDOW]


def of_enoi(twin: Twin, choice: Choice, day: np.datetime64) -> np.ndarray:
    days = np.arange(-HALF_WINDOW, HALF_WINDOW + 1)
    listed = from_observations(twin.observed(SYSTEMS[SYSTEM], day), twin.archive.spec, days)
    some = superobservations(listed, MOST_OBSERVATIONS)
    return enoi_analysis(twin.archive, twin.climatology, day, some, choice, 0, ENOI_MEMBERS)[1].mean(axis=0)


def rmse(twin: Twin, name: str, mean: Callable[[np.datetime64], np.ndarray]) -> None:
    part, weights = twin.archive.spec.channels(twin.state.name), twin.archive.spec.grid.area_weights
    began, square = time.perf_counter(), []
    for day in twin.dates:
        error = mean(day)[part] - twin.truth(day)[part]
        square.append((error**2 * weights).sum((1, 2)))
    value, took = float(np.sqrt(np.mean(square, axis=0)).mean()), time.perf_counter() - began
    print(f"{name:40s} RMSE of the posterior mean {value:.3f} K   {took:.0f} s", flush=True)
    path = Path(__file__).with_suffix(".csv")
    new = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(["date", "archive", "observed", "dates", "prior", "rmse_K"])
        rows.writerow([date.today(), twin.config.archive, SYSTEM, len(twin.dates), name, f"{value:.4f}"])


def main() -> None:
    paths = [word for word in sys.argv[1:] if "=" not in word] or [
        "configs/train/small_score.yaml",
        "configs/sample/small.yaml",
    ]
    changes = [word for word in sys.argv[1:] if "=" in word]
    twin = Twin(paths[1], ["period.every_days=60", "members=1", *changes], "runs/priors")
    for name, options in PRIORS.items():
        config = load(TrainConfig, paths[0], [f"{key}={value}" for key, value in options.items()])
        rmse(twin, name, partial(posterior_mean, twin, of_prior(twin, fitted(config))))
    for choice in ENOI:
        rmse(twin, f"EnOI, {choice.half_width_km:g} km", partial(of_enoi, twin, choice))


if __name__ == "__main__":
    main()
