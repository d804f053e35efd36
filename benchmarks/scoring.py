"""What scoring costs: a product of 365 days and 16 members verified, and the CRPS beside that of xskillscore.

``python -m benchmarks.scoring`` writes a product and its truth into a temporary folder and scores them as
``sample verify`` does (reading, every score of the analysis, the climatology and the truth, resamples), each run in a
process of its own; it prints wall time, processor time and peak memory. ``python -m benchmarks.scoring crps`` times the
CRPS of one date in interleaved pairs. Records: scoring.md.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from sample.case import Case
from sample.tally import Tally, tallied
from slams.contracts import analysis, archive
from slams.contracts.observations import Observations, open_observations, write_observations
from slams.metrics import FairCRPS
from slams.rng import generator
from slams.spec import OLR, PRECIPITATION, TEMPERATURE, Grid, StateSpec
from slams.statistics import Statistics
from slams.uncertainty import Bootstrap

DAYS = np.arange("2001-01-01", "2002-01-01", dtype="datetime64[D]")
MEMBERS, PAIRS, RESAMPLES, SEGMENT = 16, 15, 1000, 5
GRIDS = ((32, 64), (48, 96))


def write(folder: Path, shape: tuple[int, int]) -> None:
    """Truth: noise about 250 units; members: noise about the truth. Noise is what reads and compresses worst."""
    spec, rng = StateSpec(Grid(*shape), (TEMPERATURE, PRECIPITATION, OLR)), np.random.default_rng(0)
    n, attributes = spec.n_channels, {"config": {}, "splits": {"train": [2001, 2001]}, "missing_days": {}}
    truth = 250 + 10 * rng.standard_normal((len(DAYS), n, *shape), dtype=np.float32)
    group = archive.create(folder / "archive.zarr", spec, DAYS, np.zeros(len(DAYS), int), attributes)
    for modality in spec.modalities:
        values = truth[:, spec.channels(modality.name)]
        shaped = values.reshape(len(DAYS), *archive.field_shape(modality, shape))
        archive.write_block(group, modality.name, 0, shaped)
    harmonics = np.full((1, n, *shape), 250.0)
    std = np.full((n, 1, 1), 10, np.float32)
    statistics = Statistics(harmonics, std, np.zeros(n, bool), np.ones((n, *shape), bool))
    archive.finish(folder / "archive.zarr", statistics, [10.0] * n)
    product = analysis.create(folder / "analysis.zarr", spec, DAYS, MEMBERS, {"config": {}}, (MEMBERS, SEGMENT))
    for start in range(0, len(DAYS), SEGMENT):
        where = np.arange(start, min(start + SEGMENT, len(DAYS)))
        noise = 3 * rng.standard_normal((MEMBERS, len(where), n, *shape), dtype=np.float32)
        crc32 = product.write(np.arange(MEMBERS), where, truth[where] + noise)
        days = [str(day) for day in DAYS[where]]
        unit = f"{days[0]}_{days[-1]}_m000-{MEMBERS - 1:03d}"
        product.close_unit(unit, {"members": list(range(MEMBERS)), "days": days, "crc32": crc32})
    product.finish()
    write_observations(folder / "observations.zarr", spec, DAYS, [], {"config": {}})


def opened(folder: Path) -> Case:
    product, truth = analysis.open_analysis(folder / "analysis.zarr"), archive.open_archive(folder / "archive.zarr")
    observations: Observations = open_observations(folder / "observations.zarr")
    return Case({"analysis": product}, truth, observations, truth.statistics(), None, None, {})


def scored(folder: Path, processes: int) -> dict[str, float]:
    """Score once in this process (and those that it starts)."""
    began = time.perf_counter()
    case = opened(folder)
    found: Tally = tallied(case, processes)
    bootstrap = Bootstrap(case.time, RESAMPLES, generator(0, "validation"))
    for key in found.sums.found:
        found.sums.estimate(bootstrap, *key)
    wall = time.perf_counter() - began
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usage = [resource.getrusage(each) for each in whose]
    gib = [each.ru_maxrss / 2**20 for each in usage]  # of children: the largest of them
    cpu = sum(each.ru_utime + each.ru_stime for each in usage)
    return {"wall_s": wall, "cpu_s": cpu, "gib": gib[0] + (processes * gib[1] if processes > 1 else 0)}


def scoring(runs: int = 2) -> None:
    for shape in GRIDS:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), shape)
            for processes in (1, 2):
                command = [sys.executable, "-m", "benchmarks.scoring", "once", name, str(processes)]
                found = [json.loads(subprocess.run(command, check=True, stdout=-1).stdout) for _ in range(runs)]
                told = [f"{key} {' '.join(f'{run[key]:.2f}' for run in found)}" for key in found[0]]
                print(f"{shape[0]} x {shape[1]}, {processes} process(es): {'; '.join(told)}", flush=True)


def crps() -> None:
    """FairCRPS.update and xskillscore.crps_ensemble on the same date, in turn, in processor time."""
    warnings.simplefilter("ignore")
    import xskillscore

    torch.set_num_threads(1)
    for shape in GRIDS:
        grid, rng = Grid(*shape), np.random.default_rng(0)
        truth = rng.standard_normal((12, *shape), dtype=np.float32)
        x = rng.standard_normal((MEMBERS, 12, *shape), dtype=np.float32)
        dims, metric = ["channel", "latitude", "longitude"], FairCRPS(12, grid.area_weights)
        known, members = xr.DataArray(truth, dims=dims), xr.DataArray(x, dims=["member", *dims])
        weights = xr.DataArray(grid.area_weights, dims=dims[1:])
        ours, theirs = [], []
        for _ in range(PAIRS + 1):
            began = time.process_time()
            metric.update(torch.from_numpy(x), torch.from_numpy(truth))
            between = time.process_time()
            xskillscore.crps_ensemble(known, members, dim=dims[1:], weights=weights)
            ours.append(between - began)
            theirs.append(time.process_time() - between)
        ratio = np.array(theirs[1:]) / np.array(ours[1:])  # the first pair warms up
        times = f"{1e3 * np.median(ours[1:]):.1f} and {1e3 * np.median(theirs[1:]):.1f} ms"
        spread = f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
        print(f"{shape[0]} x {shape[1]}: {times}; xskillscore takes {spread} times as long, {PAIRS} pairs", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]:
        print(json.dumps(scored(Path(sys.argv[2]), int(sys.argv[3]))))
    elif sys.argv[1:] == ["crps"]:
        crps()
    else:
        scoring()
