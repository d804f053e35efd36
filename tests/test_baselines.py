"""Baselines on fields whose answer is known without computing it."""

import numpy as np
import pytest

from slams import baselines
from slams.contracts.observations import Gridded, Operator
from slams.spec import TEMPERATURE, Grid, StateSpec
from slams.statistics import Statistics, day_features

GRID = Grid(16, 32)
SPEC = StateSpec(GRID, (TEMPERATURE,))
OPERATORS = [Operator("identity"), Operator("block_mean", 4), Operator("subsample", 4)]
each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)


def observed(operator, x_LCHW, mask=None):
    """Noise-free observations of fields, without the code under test."""
    f = operator.factor
    if operator.kind == "block_mean":
        value = np.stack([x_LCHW[..., i::f, j::f] for i in range(f) for j in range(f)]).mean(axis=0)
    else:
        value = x_LCHW[..., f // 2 :: f, f // 2 :: f]
    mask = np.ones(value.shape, bool) if mask is None else mask
    value = np.where(mask, value, np.nan).astype(np.float32)
    return Gridded("temperature", operator, value, np.ones_like(value), mask)


def fields(of_latitude=lambda phi: 0 * phi, of_longitude=lambda lam: 0 * lam):
    value = of_latitude(GRID.latitude)[:, None] + of_longitude(GRID.longitude)[None]
    return np.broadcast_to(value, (2, 3, *GRID.shape)).astype(np.float32)


def statistics(seed=0):
    rng = np.random.default_rng(seed)
    harmonics = 10 * rng.standard_normal((5, 3, *GRID.shape)) + 250
    return Statistics(harmonics, np.full((3, 1, 1), 4.0), np.zeros(3, bool), np.ones((3, *GRID.shape), bool))


DAYS = np.array(["2001-01-15", "2001-07-15"], "datetime64[D]")


@each_operator
def test_a_constant_is_kept_everywhere(operator):
    x = fields(lambda phi: 0 * phi + 273.25)
    np.testing.assert_allclose(baselines.interpolation(observed(operator, x), SPEC, 0 * x), x, rtol=1e-6)


@each_operator
def test_a_field_linear_in_latitude_is_exact_between_the_observed_rows(operator):
    x = fields(lambda phi: 250 + phi / 2)
    found = baselines.interpolation(observed(operator, x), SPEC, 0 * x)
    rows, _ = operator.coordinates(GRID)
    inside = (GRID.latitude <= rows[0]) & (GRID.latitude >= rows[-1])
    np.testing.assert_allclose(found[..., inside, :], x[..., inside, :], rtol=1e-6)
    # beyond them only the pole's mean is known, so that the field goes flat
    np.testing.assert_allclose(found[..., 0, :], 250 + rows[0] / 2, rtol=1e-6)


def test_longitude_wraps():
    """A wave seen at 8 places is as good at 0 degrees east as a quarter turn away."""
    x = fields(of_longitude=lambda lam: np.cos(np.deg2rad(lam)))
    found = baselines.interpolation(observed(Operator("block_mean", 4), x), SPEC, 0 * x)
    turned = baselines.interpolation(observed(Operator("block_mean", 4), np.roll(x, 8, axis=-1)), SPEC, 0 * x)
    np.testing.assert_allclose(np.roll(found, 8, axis=-1), turned, atol=1e-6)
    # a block's mean is 3 % below its middle, and a chord 8 % below its arc; at the poles a wave cannot be known
    assert np.abs(found - x)[..., 2:-2, :].max() < 0.12


def test_everything_observed_comes_back():
    x = np.random.default_rng(0).standard_normal((2, 3, *GRID.shape)).astype(np.float32)
    np.testing.assert_allclose(baselines.interpolation(observed(OPERATORS[0], x), SPEC, 0 * x), x, atol=1e-6)


def test_a_missing_observation_takes_its_neighbour_across_the_date_line():
    operator = Operator("block_mean", 4)
    mask = np.ones((2, 3, 4, 8), bool)
    mask[0, 1, :, 0] = mask[0, 1, :, 2:] = False
    found = baselines.interpolation(observed(operator, fields(of_longitude=lambda lam: lam), mask), SPEC, fields())
    np.testing.assert_allclose(found[0, 1], GRID.longitude[4:8].mean(), rtol=1e-6)
    assert np.ptp(found[1, 1]) > 100, "another day's mask must not matter"


def test_a_channel_without_observations_takes_the_background():
    mask = np.ones((2, 3, 4, 8), bool)
    mask[:, 2] = False
    seen = observed(Operator("block_mean", 4), fields(lambda phi: phi), mask)
    background = fields(lambda phi: 0 * phi + 7)
    np.testing.assert_array_equal(baselines.interpolation(seen, SPEC, background)[:, 2], 7)
    np.testing.assert_array_equal(baselines.anomaly_interpolation(seen, SPEC, background)[:, 2], 7)


@each_operator
def test_climatology_observed_gives_climatology(operator):
    known = baselines.climatology(statistics(), DAYS)
    found = baselines.anomaly_interpolation(observed(operator, known), SPEC, known)
    # float32 block means of the test and of the code may differ in the last digit
    np.testing.assert_allclose(found, known, rtol=3e-7)


def test_cells_that_count_nothing_do_not_enter():
    """Gauges stand on land: an ocean without any climatology changes nothing on land."""
    land = np.zeros(GRID.shape, np.float32)
    land[:, :18] = 1  # so that some blocks are half ocean
    known = baselines.climatology(statistics(), DAYS)
    operator = Operator("block_mean", 4)
    counts = observed(operator, land[None, None]).value
    value = np.where(counts > 0, observed(operator, known * land).value / np.maximum(counts, 1e-9), np.nan)
    seen = Gridded("temperature", operator, value, np.ones_like(value), np.isfinite(value), land)
    found = baselines.anomaly_interpolation(seen, SPEC, np.where(land > 0, known, np.nan).astype(np.float32))
    np.testing.assert_allclose(found[..., :18], known[..., :18], rtol=1e-5)


@each_operator
def test_a_departure_equal_everywhere_is_kept(operator):
    known = baselines.climatology(statistics(), DAYS)
    found = baselines.anomaly_interpolation(observed(operator, known + 2), SPEC, known)
    np.testing.assert_allclose(found, known + 2, rtol=1e-6)


def test_the_climatology_of_a_scalar_archive_is_fitted_cell_by_cell():
    """Years of a known annual cycle, with holes, in blocks: the cycle comes back; a cell never seen is marked."""
    truth = statistics(3)
    days = np.arange("2001-01-01", "2004-01-01", dtype="datetime64[D]")[::5]
    x = truth.climatology(days)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    x[:, 1, 5, 7] = np.nan
    found = baselines.fit_climatology((days[i : i + 50], x[i : i + 50]) for i in range(0, len(days), 50))
    assert not found.observed[1, 5, 7]
    assert found.observed.sum() == found.observed.size - 1
    difference = baselines.climatology(found, DAYS) - baselines.climatology(truth, DAYS)
    # the fit sees float32 fields near 250, whose last digit is 3e-5
    assert np.abs(difference[:, found.observed]).max() < 2e-4
    assert day_features(DAYS).shape[1] == len(found.harmonics)


def test_persistence_is_the_background_on_every_day():
    background = fields(lambda phi: phi)[0]
    held = baselines.persistence(background, 3)
    assert held.shape == (3, *background.shape)
    held[0] += 1  # a day of its own, so that changing one changes no other
    np.testing.assert_array_equal(held[1:], np.stack([background, background]))
