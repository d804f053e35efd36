"""Intervals of scores against theory: their width, how often they hold the truth, and that pairing is paired."""

import numpy as np
import pytest
import torch

from slams.metrics import EnsembleRMSE, SpreadSkill, Wasserstein
from slams.uncertainty import Bootstrap, date_blocks, resampled_dates, widening

APART = np.datetime64("2001-01-01") + 10 * np.arange(200)  # every date a block of its own


def mean(total, weight):
    return total[..., 0, :] / weight


def estimated(values, days=APART, value=mean, resamples=2000, seed=0):
    """Sums of a score of one sum a date, of one channel, with weight 1."""
    total = np.asarray(values, float).reshape(len(days), 1, -1)
    bootstrap = Bootstrap(days, resamples, np.random.default_rng(seed))
    return bootstrap.estimate(value, total, np.ones((len(days), total.shape[-1])))


def test_days_in_a_row_are_one_block_of_at_most_five():
    year = np.arange("2001-01-01", "2001-02-01", dtype="datetime64[D]")
    days = np.concatenate([year[:7], year[10:12], year[20:21]])
    np.testing.assert_array_equal(date_blocks(days), [0, 0, 0, 0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(date_blocks(days[0] + np.arange(0, 20, 2)), [0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    counts = resampled_dates(date_blocks(days), 400, np.random.default_rng(0))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 4])
    # four draws of four blocks: each is expected once, with standard error sqrt(3/4 / 400)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)


def test_the_interval_is_as_wide_as_theory_has_it():
    """The mean of 200 independent normal numbers: its standard error is 1 / sqrt(200), 1.96 of them on either side."""
    values = np.random.default_rng(1).normal(size=200)
    low, high = estimated(values).interval(0)
    expected = 2 * 1.96 * values.std() / np.sqrt(200)
    # 2000 resamples know a 2.5 % quantile to about 4 % of the half width
    assert high - low == pytest.approx(expected, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * expected)


@pytest.mark.parametrize(("n", "trials", "least", "most"), [(60, 200, 0.88, 0.99), (6, 600, 0.92, 0.98)])
def test_it_holds_the_truth_as_often_as_it_says(n, trials, least, most):
    """0.95; standard errors 0.015 and 0.009. Of six blocks the percentile interval alone holds it 0.84 times."""
    rng, held = np.random.default_rng(2), 0
    for seed in range(trials):
        low, high = estimated(rng.normal(3, 1, size=n), APART[:n], resamples=400, seed=seed).interval(0)
        held += low <= 3 <= high
    assert least <= held / trials <= most


@pytest.mark.parametrize("n", [2, 3, 6, 24])
def test_it_is_as_wide_as_students(n):
    """Beside the standard error of a mean and the table of t by hand."""
    t = {2: 12.706, 3: 4.303, 6: 2.571, 24: 2.069}[n]
    assert widening(n) * 1.95996 * np.sqrt((n - 1) / n) == pytest.approx(t, abs=1e-3)


def test_dependent_days_make_it_wider():
    """Numbers that are the same for five days in a row are 40 numbers, not 200: the interval is sqrt(5) as wide."""
    days = np.datetime64("2001-01-01") + np.arange(200)
    values = np.repeat(np.random.default_rng(3).normal(size=40), 5)
    wide, narrow = (estimated(values, time).interval(0) for time in (days, APART))
    assert np.diff(wide) / np.diff(narrow) == pytest.approx(np.sqrt(5), rel=0.12)


def test_a_resample_is_the_score_of_the_dates_drawn():
    """A root and a ratio of two channels: by hand, date by date, from the same counts."""
    rng, days = np.random.default_rng(4), APART[:12]
    total, weight = rng.uniform(1, 2, (12, 2, 3)), rng.uniform(1, 2, (12, 3))
    for kind in (EnsembleRMSE, SpreadSkill):
        found = Bootstrap(days, 70, np.random.default_rng(5)).estimate(kind.value, total, weight)
        counts = resampled_dates(date_blocks(days), 70, np.random.default_rng(5))
        for drawn, count in zip(found.drawn, counts, strict=True):
            s, w = (np.concatenate([[x[d]] * n for d, n in enumerate(count) if n]).sum(axis=0) for x in (total, weight))
            expected = np.sqrt(s[0] / (w if kind is EnsembleRMSE else s[1]))
            np.testing.assert_allclose(drawn, [*expected, expected.mean()], rtol=1e-12)


def test_the_interval_of_a_distance_has_the_distance_in_its_middle():
    """W1 is convex in what is pooled, so that resamples of few dates lie above it, of like distributions far above."""
    rng, days = np.random.default_rng(9), APART[:24]
    kind, inside, sides, above = Wasserstein(np.zeros(1), np.ones(1), (4, 8)), 0, [], []
    for seed in range(40):
        truth, x = rng.normal(0, 1, (2, 24, 1, 4, 8))
        sums = [kind.sums(torch.from_numpy(a)[None], torch.from_numpy(b)) for a, b in zip(x, truth, strict=True)]
        total, weight = (np.stack([part.numpy() for part in parts]) for parts in zip(*sums, strict=True))
        found = Bootstrap(days, 200, np.random.default_rng(seed)).estimate(kind.value, total, weight)
        (low, high), value = found.interval(0), found.value[0]
        inside += low < value < high
        sides.append(((low + high) / 2 - value) / (high - low))
        above.append((found.drawn[:, 0].mean() - value) / (high - low))
    assert inside == 40 and abs(np.mean(sides)) < 0.15 < 0.2 < np.mean(above)


def test_a_difference_is_paired():
    """Two systems that differ by 0.1 on every date, however much the dates differ, differ surely."""
    hard = np.random.default_rng(6).normal(0, 5, size=200)
    one, other = estimated(hard), estimated(hard + 0.1)
    difference = one.minus(other)
    assert difference.interval(0) == pytest.approx((-0.1, -0.1)) and difference.significant(0)
    alone = one.interval(0)
    assert alone[1] - alone[0] > 1, "each by itself is not known to a tenth"
    assert not one.minus(one).significant(-1)


def test_a_chance_difference_is_seldom_called_significant():
    rng, called = np.random.default_rng(7), 0
    for seed in range(200):
        values = rng.normal(size=(2, 60))
        one, other = (estimated(v, APART[:60], resamples=400, seed=seed) for v in values)
        called += one.minus(other).significant(0)
    assert called / 200 <= 0.12  # 0.06 expected, standard error 0.017


def test_one_block_has_no_interval():
    days = np.datetime64("2001-01-01") + np.arange(5)
    found = estimated(np.arange(5.0), days)
    assert found.value == pytest.approx([2, 2])
    assert found.interval(0) is None and found.interval(-1) is None and not found.significant(0)


def test_blocks_that_do_not_count_make_no_interval():
    """A channel that is known in one block of three: no interval for it, nor for the mean; the other has one."""
    days, weight = APART[:3], np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    total = np.array([[[1.0, 5.0]], [[2.0, 0.0]], [[3.0, 0.0]]])
    found = Bootstrap(days, 100, np.random.default_rng(0)).estimate(EnsembleRMSE.value, total**2, weight)
    assert found.value[1] == 5 and found.interval(1) is None and found.interval(-1) is None
    low, high = found.interval(0)
    assert low < 1 and high > 3, "three blocks say little"


def test_sums_of_other_dates_are_refused():
    bootstrap = Bootstrap(APART[:3], 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="2 and 2 dates; 3 are needed"):
        bootstrap.estimate(mean, np.ones((2, 1, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="no date"):
        Bootstrap(APART[:0], 10, np.random.default_rng(0))
