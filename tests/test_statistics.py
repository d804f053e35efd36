"""The statistics are the same in whatever bands they are computed, and hold little beside the sums over the days."""

import tracemalloc

import numpy as np
import pytest

from data_prep import stats
from data_prep.stats import Sums
from slams.statistics import day_features

SHAPE, N_CHANNELS = (91, 180), 3
TIME = np.arange("2001-01-01", "2002-03-01", 3, dtype="datetime64[D]")


@pytest.fixture
def sums():
    """Of days of which one channel is whole, one is seen on half of the cells, and one lacks a value here and there."""
    generator = np.random.default_rng(0)
    found = Sums.empty(5, N_CHANNELS, SHAPE)
    for day in TIME:
        x = generator.normal(size=(1, N_CHANNELS, *SHAPE)).astype(np.float32)
        x[:, 1, :, 90:] = np.nan
        x[:, 2][generator.random((1, *SHAPE)) < 0.2] = np.nan
        found.add(x, day_features(np.array([day])))
    return found


def test_bands_change_no_bit(sums, monkeypatch):
    area = np.cos(np.linspace(-1.5, 1.5, SHAPE[0]))[:, None] * np.ones(SHAPE)
    observed = sums.count >= 10
    whole = sums.solve()
    squares = sums.squares(whole)
    for n_bytes, n_bands in ((2**24, 1), (5 * 5 * 8 * 180 * 10, 10), (1, 91)):
        monkeypatch.setattr(stats, "BAND_BYTES", n_bytes)
        assert len(sums.bands()) == n_bands
        harmonics, std = stats._fitted(sums, observed, area)
        np.testing.assert_array_equal(harmonics, whole.astype(np.float32))
        weight = area * observed
        np.testing.assert_array_equal(std, np.sqrt((squares * weight).sum((1, 2)) / (sums.count * weight).sum((1, 2))))


def test_little_is_held_beside_the_sums(sums, monkeypatch):
    """Less than one matrix for each cell of one channel, 25 numbers, but for the result itself."""
    monkeypatch.setattr(stats, "BAND_BYTES", 2**18)
    observed, area = sums.count >= 10, np.ones(SHAPE)
    matrices = 25 * 8 * SHAPE[0] * SHAPE[1]
    x = np.full((1, N_CHANNELS, *SHAPE), np.nan, np.float32)
    x[:, 0] = 0
    tracemalloc.start()
    try:
        harmonics, _ = stats._fitted(sums, observed, area)
        assert tracemalloc.get_traced_memory()[1] < harmonics.nbytes + matrices / 2
        del harmonics
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        sums.add(x, day_features(TIME[:1]))
        assert tracemalloc.get_traced_memory()[1] - before < matrices
    finally:
        tracemalloc.stop()


def test_a_season_that_was_never_seen_is_not_made_up():
    """Two years of days of which one channel is seen from June on alone: its mean there, and no annual cycle."""
    time = np.arange("2001-01-01", "2003-01-01", dtype="datetime64[D]")
    x = np.random.default_rng(0).normal(5, 1, size=(len(time), 2, 1, 1)).astype(np.float32)
    x[time - time.astype("datetime64[Y]") < np.timedelta64(151, "D"), 1] = np.nan
    sums = Sums.empty(5, 2, (1, 1))
    sums.add(x, day_features(time))
    found = sums.solve()[..., 0, 0]
    basis = day_features(time)
    np.testing.assert_allclose(found[:, 0], np.linalg.lstsq(basis, x[:, 0, 0, 0].astype(float))[0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], [np.nanmean(x[:, 1].astype(float)), 0, 0, 0, 0], rtol=1e-6)
