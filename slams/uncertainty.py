"""How sure a score is: a bootstrap over blocks of dates, for any score that is a function of sums over the dates.

A score of a period is v(sum_d s_d, sum_d w_d) with the sums s_d and weights w_d of each date d (`slams.metrics`). A
resample draws as many blocks of dates as there are, with replacement, and its score is v(sum_d n_d s_d, sum_d n_d w_d),
n_d how often the date was drawn. The interval holds the middle 95 % of the resamples' scores, centred on the score and
widened for few blocks: a score that is not linear in its sums, as W1, lies on one side of its own resamples.
The same n_d for two systems on the same dates make their difference paired: what both find hard falls out.

References: Kuensch 1989, the block bootstrap; Efron & Tibshirani 1993, section 13.3, the percentile interval;
Hamill 1999, paired resampling of forecasts; Hesterberg 2015, section 4.2, why the percentile interval of few is too
narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
BATCH = 64  # resamples whose sums are held at once
Value = Callable[[np.ndarray, np.ndarray], np.ndarray]


def date_blocks(time: np.ndarray, longest_days: int = 5) -> np.ndarray:
    """Number of the block each date belongs to, (L,): dates less than so many days apart, cut into pieces as long.

    Weather errors of neighbouring days resemble each other, whether all of them are scored or every second one. What
    is resampled to find how sure a score is must be independent, so blocks are, not days; dates far apart are blocks of
    one.
    """
    day = np.asarray(time, "datetime64[D]").astype(int)
    record = np.concatenate([[0], np.cumsum(np.diff(day) >= longest_days)])
    position = (day - day[np.searchsorted(record, record)]) // longest_days
    _, block = np.unique(np.stack([record, position], axis=0), axis=1, return_inverse=True)
    return block.reshape(-1)


def resampled_blocks(n_blocks: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each block stands in each bootstrap sample, (n_resamples, n_blocks)."""
    counts: np.ndarray = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples)
    return counts


def resampled_dates(block_L: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each date stands in each bootstrap sample of the blocks, (n_resamples, L)."""
    return resampled_blocks(int(block_L.max()) + 1, n_resamples, rng)[:, block_L]


def widening(n_blocks: int) -> float:
    """By how much the percentile interval of so many blocks is too narrow: Student's half-width over its own.

    Of the mean of K normal numbers, resamples have a standard deviation of sqrt((K - 1) / K) of the standard error, and
    that is itself only an estimate of K - 1 degrees of freedom: of 24 blocks 8 %, of 6 blocks 44 %.
    """
    p = (1 + LEVEL) / 2
    return float(stats.t.ppf(p, n_blocks - 1) / (stats.norm.ppf(p) * np.sqrt((n_blocks - 1) / n_blocks)))


def interval(value: float, drawn_R: np.ndarray, n_blocks: int) -> tuple[float, float]:
    """Low and high end for a score of at least two blocks: the middle `LEVEL` of its resamples, centred and widened."""
    wider, centre = widening(n_blocks), drawn_R.mean()
    low, high = np.quantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value + wider * (low - centre)), float(value + wider * (high - centre))


@dataclass(frozen=True)
class Estimate:
    """A score by channel and, last, its mean over the channels.

    Arguments:
        value: (C + 1,).
        drawn: the same of each resample, (R, C + 1); NaN where a resample holds no date that counts.
        n_blocks: how many blocks count, (C + 1,); from two on there is an interval.
    """

    value: np.ndarray
    drawn: np.ndarray
    n_blocks: np.ndarray

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference; both on the same dates, by the same `Bootstrap`."""
        return Estimate(self.value - other.value, self.drawn - other.drawn, self.common_blocks(other))

    def common_blocks(self, other: Estimate) -> np.ndarray:
        """How many count for a number made of both."""
        return np.minimum(self.n_blocks, other.n_blocks)

    def interval(self, channel: int) -> tuple[float, float] | None:
        """Low and high end for a channel (-1: the mean); None for one block, which tells nothing of others."""
        drawn = self.drawn[:, channel]
        drawn = drawn[np.isfinite(drawn)]
        if self.n_blocks[channel] < 2 or not len(drawn):
            return None
        return interval(float(self.value[channel]), drawn, int(self.n_blocks[channel]))

    def significant(self, channel: int) -> bool:
        """Whether the interval of a channel excludes 0; without an interval, nothing is shown."""
        between = self.interval(channel)
        return between is not None and (between[0] > 0 or between[1] < 0)


class Bootstrap:
    """Resamples of some dates, the same for every score and system that is estimated by it.

    Arguments:
        time: dates in increasing order, datetime64[D], (D,).
        n_resamples: R.
        rng: where they are drawn from; the same one gives the same resamples.

    Raises:
        ValueError: no date.
    """

    def __init__(self, time: np.ndarray, n_resamples: int, rng: np.random.Generator) -> None:
        if not len(time):
            raise ValueError("time: has no date; at least one is needed")
        self.block_D = date_blocks(time)
        self.n_blocks = int(self.block_D.max()) + 1
        self.counts_RK = resampled_blocks(self.n_blocks, n_resamples, rng).astype(np.float64)

    def estimate(self, value: Value, total_DSC: np.ndarray, weight_DC: np.ndarray) -> Estimate:
        """A score and its resamples from sums and weights of each date.

        Arguments:
            value: (..., S, C) and (..., C) to (..., C), as the metrics have it.

        Raises:
            ValueError: sums of another number of dates.
        """
        if not len(total_DSC) == len(weight_DC) == len(self.block_D):
            raise ValueError(f"sums: of {len(total_DSC)} and {len(weight_DC)} dates; {len(self.block_D)} are needed")
        total_KSC, weight_KC = self._by_block(total_DSC), self._by_block(weight_DC)
        batches = np.array_split(self.counts_RK, range(BATCH, len(self.counts_RK), BATCH))
        drawn = [value(np.tensordot(n_RK, total_KSC, 1), n_RK @ weight_KC) for n_RK in batches]
        n_blocks = (weight_KC > 0).sum(axis=0)
        point = value(total_KSC.sum(axis=0), weight_KC.sum(axis=0))
        return Estimate(_with_mean(point), _with_mean(np.concatenate(drawn)), np.append(n_blocks, n_blocks.min()))

    def _by_block(self, sums: np.ndarray) -> np.ndarray:
        found = np.zeros((self.n_blocks, *sums.shape[1:]))
        np.add.at(found, self.block_D, sums)
        return found


def _with_mean(score: np.ndarray) -> np.ndarray:
    return np.concatenate([score, score.mean(axis=-1, keepdims=True)], axis=-1)
