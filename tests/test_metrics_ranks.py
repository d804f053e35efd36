"""Scores of a group of processes are those of one. A file of its own: processes that it starts import little."""

import numpy as np
import torch
import torch.multiprocessing

from slams import metrics
from slams.spec import Grid

WEIGHTS = Grid(8, 16).area_weights


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


DATES = [(normal(i, 8, 2, 8, 16), normal(i + 999, 2, 8, 16)) for i in range(7)]


def found(dates):
    """Every score of some dates."""
    kinds = ("Bias", "EnsembleRMSE", "FairCRPS", "Spread", "SpreadSkill", "DayChange", "ZonalSpectrum")
    every = [getattr(metrics, kind)(2, WEIGHTS) for kind in kinds]
    every += [metrics.RankHistogram(2, WEIGHTS, 8), metrics.Wasserstein([0, 0], [1, 1], (8, 16))]
    every.append(metrics.UnstableLayers((500, 850), WEIGHTS))
    for metric in every:
        for date in dates:
            metric.update(*date)
    return [np.atleast_1d(metric.compute().numpy()) for metric in every]


def share(rank, size, folder):
    """One process of a group: some of the dates, unevenly shared, and then the scores of all."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=size, rank=rank)
    np.savez(f"{folder}/{rank}.npz", *found(DATES[rank::size]))
    torch.distributed.destroy_process_group()


def test_processes_of_a_group_find_what_one_finds(tmp_path):
    torch.multiprocessing.spawn(share, (2, tmp_path), nprocs=2)
    expected = found(DATES)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as file:
            assert len(file) == len(expected)
            for theirs, ours in zip(file.values(), expected, strict=True):
                np.testing.assert_allclose(theirs, ours, rtol=1e-12)
