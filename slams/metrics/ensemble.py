"""Scores of members and their mean in each cell: errors, spread, and how the one predicts the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.metrics.area import AreaMean, mean


class Bias(AreaMean):
    """Error of the ensemble mean with its sign, (C,).

    Units of the field; 0 is best, positive is too large. Unbiased for any number of members. It misleads alone: errors
    of opposite sign cancel, between regions, seasons and hours of the day, so that 0 is no proof of skill; a bias
    beside a small RMSE is what one can correct. Reference: Jolliffe & Stephenson 2012, chapter 5.
    """

    higher_is_better = None

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        return self._summed([self._errors(x_MCHW, truth_CHW).mean(dim=0)], truth_CHW)


class EnsembleRMSE(AreaMean):
    """Root-mean-square error of the ensemble mean, (C,).

    Units of the field, 0 (perfect) upwards. The root is taken last, over all cells and dates together, so the
    score is not the mean of daily RMSEs. With a reliable ensemble of M members it lies sqrt(1 + 1/M) above that
    of an infinite one. It misleads alone: a smooth mean always beats any single sharp field, and it says nothing
    of the spread. Reference: Rasp et al. 2024 (WeatherBench 2), section 3.
    """

    higher_is_better = False

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        return self._summed([self._errors(x_MCHW, truth_CHW).mean(dim=0).square()], truth_CHW)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.sqrt(mean(total, weight)[..., 0, :])


class FairCRPS(AreaMean):
    """Fair continuous ranked probability score, (C,).

    Units of the field; smallest in expectation when the members are drawn from the truth's own distribution.
    Unbiased for an infinite ensemble at any M >= 2 (it may dip below 0 in a single cell); one member gives the
    absolute error, which is not fair to compare with an ensemble of doubtful spread. It judges each cell by
    itself: noise without any spatial structure scores as well as weather does. References: Ferro 2014;
    Zamo & Naveau 2018, the estimator they call fair.
    """

    higher_is_better = False

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        return self._summed([fair_crps(self._errors(x_MCHW, truth_CHW))], truth_CHW)


class Spread(AreaMean):
    """Standard deviation of the members about their mean, (C,).

    Units of the field, 0 upwards: the root of the mean variance (divisor M - 1, unbiased), not the mean of the roots.
    One member has none: 0. It is no score: it says how sure the ensemble is, and whether rightly so is told by the
    ratio to the error, `SpreadSkill`. Reference: Fortin et al. 2014.
    """

    higher_is_better = None

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        return self._summed([variance(self._errors(x_MCHW, truth_CHW))], truth_CHW)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.sqrt(mean(total, weight)[..., 0, :])


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

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        n_members, error = len(x_MCHW), self._errors(x_MCHW, truth_CHW)
        inflated = variance(error) * (n_members + 1) / n_members
        return self._summed([inflated, error.mean(dim=0).square()], truth_CHW)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found = mean(total, weight)
        spread, error = found[..., 0, :], found[..., 1, :]
        with np.errstate(invalid="ignore", divide="ignore"):
            # without spread the ratio is 0, also for a field without error
            return np.sqrt(np.where(spread == 0, 0.0, spread / error))


class RankHistogram(AreaMean):
    """How often the truth takes each rank among the members, (C, M + 1), summing to 1.

    0 to 1 each, and flat, 1 / (M + 1) everywhere, when truth and members are exchangeable, for any M; a U shape is too
    little spread, a dome too much, a slope a bias. Neighbouring cells are not independent: unevenness by chance is that
    of far fewer truths than there are cells. Ties (dry cells) share their weight among the ranks they span. Flat is
    necessary, not enough: opposite biases of two regions can cancel. When the truth is itself an observation, add its
    error to the members first, else a good ensemble looks over-confident. Reference: Hamill 2001.
    """

    higher_is_better = None

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, n_members: int, **kwargs: Any) -> None:
        super().__init__(n_channels, weights_HW, n_sums=n_members + 1, **kwargs)

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        if len(x_MCHW) + 1 != len(self.total):
            raise ValueError(f"members: {len(x_MCHW)}; the histogram was made for {len(self.total) - 1}")
        error = self._errors(x_MCHW, truth_CHW)
        first, last = (error < 0).sum(dim=0), (error <= 0).sum(dim=0)
        share = torch.where(error.isnan().any(dim=0), torch.nan, 1.0 / (last - first + 1))
        ranks = range(len(self.total))
        return self._summed((torch.where((r < first) | (r > last), share * 0, share) for r in ranks), truth_CHW)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.moveaxis(mean(total, weight), -2, -1)


def fair_crps(error_MCHW: Tensor) -> Tensor:
    """Fair CRPS of each cell from the members' errors x_i - y, (C, H, W).

    The CRPS does not change when members and truth are shifted alike, so errors are enough, and keep more
    digits than temperatures near 300 K would. The double sum over pairs is one over sorted members.
    """
    n_members = len(error_MCHW)
    absolute = error_MCHW.abs().mean(dim=0)
    if n_members == 1:
        return absolute
    pairs = torch.zeros_like(absolute)
    for rank, error_CHW in enumerate(in_order(error_MCHW)):
        pairs += (2 * rank + 1 - n_members) / (n_members * (n_members - 1)) * error_CHW
    return absolute - pairs


def variance(x_MCHW: Tensor) -> Tensor:
    """Variance over the members (divisor M - 1), (C, H, W); 0 for one. A third of the time that `Tensor.var` takes."""
    anomaly = x_MCHW - x_MCHW.mean(dim=0)
    return anomaly.square().sum(dim=0) / max(1, len(x_MCHW) - 1)


def in_order(x_MCHW: Tensor) -> list[Tensor]:
    """The members' values in increasing order cell by cell, M fields; NaN anywhere makes NaN, at least at one rank.

    A sorting network: every comparison is one of whole fields, a tenth of the time that sorting along the members
    takes. Reference: Batcher 1968, the odd-even merge sort.
    """
    rows = list(x_MCHW)
    for i, j in _comparisons(len(rows)):
        rows[i], rows[j] = torch.minimum(rows[i], rows[j]), torch.maximum(rows[i], rows[j])
    return rows


def _comparisons(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's network for any n: pairs (i, j), i < j, of which the smaller goes to i."""
    merged = 1
    while merged < n:
        apart = merged
        while apart:
            for i in range(apart % merged, n - apart):
                in_one_block = i // (2 * merged) == (i + apart) // (2 * merged)
                if (i - apart % merged) // apart % 2 == 0 and in_one_block:
                    yield i, i + apart
            apart //= 2
        merged *= 2
