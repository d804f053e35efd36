"""Scores of an ensemble of fields against a truth, one number a channel, as `torchmetrics` metrics.

With members x_i (i = 1..M), truth y, area weights w (sum 1 over the sphere, `spec.Grid.area_weights`) and
<.> the w-weighted mean over every cell and date where y is known,

* ``EnsembleRMSE``   sqrt <(mean_i x_i - y)^2>,
* ``FairCRPS``       < mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1)) >,
* ``SpreadSkill``    sqrt((M + 1) / M <var_i x_i>) / sqrt <(mean_i x_i - y)^2>,
* ``RankHistogram``  <[exactly r members lie below y]>, r = 0..M.

Every metric takes ``update(x_MCHW, truth_CHW)`` date by date and keeps float64 sums alone, so that shares of
the work merge (by `merge_state`, or across processes) into what one pass would have given.

Missing values: a cell whose truth is NaN is left out with its weight. A member that is NaN where the truth is
known is not excused: the score of that channel is NaN. A channel whose truth was never known scores NaN.

Two habits of torchmetrics to know: `compute` gives a scalar in place of one channel, and remembers its answer
until the next `update` or `reset`, so merge before computing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


def fair_crps(error_MCHW: Tensor) -> Tensor:
    """Fair CRPS of each cell from the members' errors x_i - y, (C, H, W).

    The CRPS does not change when members and truth are shifted alike, so errors are enough, and keep more
    digits than temperatures near 300 K would. The double sum over pairs is one over sorted members.
    """
    n_members = len(error_MCHW)
    absolute = error_MCHW.abs().mean(dim=0)
    if n_members == 1:
        return absolute
    rank = torch.arange(1, n_members + 1, dtype=error_MCHW.dtype, device=error_MCHW.device)
    share = (2 * rank - n_members - 1) / (n_members * (n_members - 1))
    return absolute - torch.einsum("m,mchw->chw", share, error_MCHW.sort(dim=0).values)


def date_blocks(time: np.ndarray, longest_days: int = 5) -> np.ndarray:
    """Number of the block each date belongs to, (L,): a run of consecutive days, cut into pieces.

    Weather errors of neighbouring days resemble each other. What is resampled to find how sure a score is must be
    independent, so blocks are, not days; dates far apart are blocks of one.
    """
    gap = np.diff(np.asarray(time, "datetime64[D]")).astype(int) != 1
    record = np.concatenate([[0], np.cumsum(gap)])
    position = np.arange(len(record)) - np.searchsorted(record, record)
    _, block = np.unique(np.stack([record, position // longest_days]), axis=1, return_inverse=True)
    return block.reshape(-1)


def resampled_dates(block_L: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each date stands in each bootstrap sample of the blocks, (n_resamples, L)."""
    n_blocks = int(block_L.max()) + 1
    counts: np.ndarray = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples)[:, block_L]
    return counts


class AreaMean(Metric):
    """Area-weighted sums of cell values and of their weights; what the scores below have in common.

    Arguments:
        n_channels: C.
        weights_HW: area weight of each cell; only their ratios matter.
        n_sums: how many sums a channel are kept.
    """

    is_differentiable = False
    full_state_update = False
    weights: Tensor
    total: Tensor
    weight: Tensor

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, n_sums: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("weights", torch.as_tensor(weights_HW, dtype=torch.float64), persistent=False)
        self.add_state("total", torch.zeros(n_sums, n_channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(n_channels, dtype=torch.float64), dist_reduce_fx="sum")

    def _errors(self, x_MCHW: Tensor, truth_CHW: Tensor) -> Tensor:
        """Members minus truth in float64, after checking that the shapes belong together."""
        expected = (len(self.weight), *self.weights.shape)
        if x_MCHW.shape[1:] != expected or truth_CHW.shape != expected:
            raise ValueError(
                f"members {tuple(x_MCHW.shape)} and truth {tuple(truth_CHW.shape)}: (M, *{expected}) and {expected} "
                "are needed"
            )
        return x_MCHW.double() - truth_CHW.double()

    def _add(self, values_CHW: Iterable[Tensor], truth_CHW: Tensor) -> None:
        """Add cell values where the truth is known, one field for each sum."""
        known = ~truth_CHW.isnan()
        self.weight += (self.weights * known).sum(dim=(-2, -1))
        sums = [(self.weights * torch.where(known, value, 0.0)).sum(dim=(-2, -1)) for value in values_CHW]
        self.total += torch.stack(sums)

    def _means(self) -> Tensor:
        return self.total / self.weight

    def compute(self) -> Tensor:
        """The area mean of each channel, (C,)."""
        return self._means()[0]


class EnsembleRMSE(AreaMean):
    """Root-mean-square error of the ensemble mean, (C,).

    Units of the field, 0 (perfect) upwards. The root is taken last, over all cells and dates together, so the
    score is not the mean of daily RMSEs. With a reliable ensemble of M members it lies sqrt(1 + 1/M) above that
    of an infinite one. It misleads alone: a smooth mean always beats any single sharp field, and it says nothing
    of the spread. Reference: Rasp et al. 2024 (WeatherBench 2), section 3.
    """

    higher_is_better = False

    def update(self, x_MCHW: Tensor, truth_CHW: Tensor) -> None:
        error = self._errors(x_MCHW, truth_CHW).mean(dim=0)
        self._add([error.square()], truth_CHW)

    def compute(self) -> Tensor:
        return super().compute().sqrt()


class FairCRPS(AreaMean):
    """Fair continuous ranked probability score, (C,).

    Units of the field; smallest in expectation when the members are drawn from the truth's own distribution.
    Unbiased for an infinite ensemble at any M >= 2 (it may dip below 0 in a single cell); one member gives the
    absolute error, which is not fair to compare with an ensemble of doubtful spread. It judges each cell by
    itself: noise without any spatial structure scores as well as weather does. References: Ferro 2014;
    Zamo & Naveau 2018, the estimator they call fair.
    """

    higher_is_better = False

    def update(self, x_MCHW: Tensor, truth_CHW: Tensor) -> None:
        self._add([fair_crps(self._errors(x_MCHW, truth_CHW))], truth_CHW)


class SpreadSkill(AreaMean):
    """Ratio of ensemble spread to error of the mean, (C,).

    0 (no spread) upwards; 1 when the members are reliable, below 1 over-confident, above 1 under-confident.
    Spread is the root of the mean variance (divisor M - 1), not the mean of the roots, and (M + 1) / M accounts
    for the finite ensemble; without it a reliable ensemble of 8 reads 0.94. One member has no spread: 0. It misleads
    when too little spread here offsets too much there, or a bias hides in a large spread: read it beside the rank
    histogram. Reference: Fortin et al. 2014, equation (15).
    """

    higher_is_better = None

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, **kwargs: Any) -> None:
        super().__init__(n_channels, weights_HW, n_sums=2, **kwargs)

    def update(self, x_MCHW: Tensor, truth_CHW: Tensor) -> None:
        n_members, error = len(x_MCHW), self._errors(x_MCHW, truth_CHW)
        variance = error.var(dim=0) if n_members > 1 else error[0] * 0
        self._add([variance * (n_members + 1) / n_members, error.mean(dim=0).square()], truth_CHW)

    def compute(self) -> Tensor:
        variance, squared_error = self._means()
        # without spread the ratio is 0, also for a field without error
        return torch.where(variance == 0, 0.0, variance / squared_error).sqrt()


class RankHistogram(AreaMean):
    """How often the truth takes each rank among the members, (C, M + 1), summing to 1.

    Flat, 1 / (M + 1) everywhere, when truth and members are exchangeable; a U shape is too little spread, a dome
    too much, a slope a bias. Ties (dry cells) share their weight among the ranks they span. Flat is necessary, not
    enough: opposite biases of two regions can cancel. When the truth is itself an observation, add its
    error to the members first, else a good ensemble looks over-confident. Reference: Hamill 2001.
    """

    higher_is_better = None

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, n_members: int, **kwargs: Any) -> None:
        super().__init__(n_channels, weights_HW, n_sums=n_members + 1, **kwargs)

    def update(self, x_MCHW: Tensor, truth_CHW: Tensor) -> None:
        if len(x_MCHW) + 1 != len(self.total):
            raise ValueError(f"members: {len(x_MCHW)}; the histogram was made for {len(self.total) - 1}")
        error = self._errors(x_MCHW, truth_CHW)
        first, last = (error < 0).sum(dim=0), (error <= 0).sum(dim=0)
        share = torch.where(error.isnan().any(dim=0), torch.nan, 1.0 / (last - first + 1))
        ranks = range(len(self.total))
        self._add((torch.where((r < first) | (r > last), share * 0, share) for r in ranks), truth_CHW)

    def compute(self) -> Tensor:
        return self._means().T
