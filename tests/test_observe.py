"""Observation operators against brute force, their adjoints by dot products, their tangents by finite differences."""

import numpy as np
import pytest
import torch

from slams.contracts.observations import Gridded, Operator
from slams.likelihood import Physical, physical_likelihood
from slams.observe import observe
from slams.rng import normal
from slams.spec import Grid, Modality, StateSpec
from slams.statistics import Statistics

SPEC = StateSpec(
    Grid(4, 8),
    (
        Modality("temperature", "state", "K", "air_temperature", (500, 850)),
        Modality("precipitation", "in_situ", "mm/day", "lwe_precipitation_rate"),
    ),
)
UNRESOLVED = torch.tensor([0.0, 0.0, 0.3])
TIME = np.arange("1990-03-01", "1990-03-04", dtype="datetime64[D]")
LAND = np.zeros((4, 8), np.float32)
LAND[:, :5] = 1


def statistics():
    harmonics = normal(0, "observation", shape=(5, 3, 4, 8)) * 0.1
    harmonics[0, :2] += 250
    harmonics[0, 2] += 1
    std = np.array([3.0, 5.0, 0.5], np.float32)[:, None, None]
    return Statistics(harmonics, std, np.array([False, False, True]), np.ones((3, 4, 8), bool))


def states(members=2, seed=1):
    return torch.from_numpy(normal(seed, "observation", shape=(members, len(TIME), 3, 4, 8)))


@pytest.mark.parametrize("weight", [None, LAND])
def test_block_mean_is_the_mean_of_the_block(weight):
    x = states()
    found = observe(Operator("block_mean", 2), x, None if weight is None else torch.from_numpy(weight))
    counts = np.ones((4, 8)) if weight is None else weight
    for row in range(2):
        for column in range(4):
            inside = np.s_[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            w = counts[inside]
            block = x.numpy()[..., inside[0], inside[1]]
            expected = (block * w).sum((-1, -2)) / w.sum() if w.sum() else 0.0
            np.testing.assert_allclose(found[..., row, column], expected, rtol=1e-5, atol=1e-6)


def test_subsample_takes_the_cells_whose_coordinates_it_names():
    operator = Operator("subsample", 2)
    latitude, longitude = operator.coordinates(SPEC.grid)
    rows = np.searchsorted(-SPEC.grid.latitude, -latitude)
    columns = np.searchsorted(SPEC.grid.longitude, longitude)
    x = states()
    np.testing.assert_array_equal(observe(operator, x), x[..., rows[:, None], columns])


def test_an_operator_that_does_not_divide_the_field_is_refused():
    with pytest.raises(ValueError, match="factor: 3 does not divide the field of 4 x 8 cells"):
        observe(Operator("block_mean", 3), states())


@pytest.mark.parametrize("operator", [Operator("block_mean", 2), Operator("subsample", 4), Operator("identity")])
def test_adjoint_by_dot_product(operator):
    """<H x, y> = <x, H' y>, H' by automatic differentiation, with an independent y."""
    x = states().double().requires_grad_()
    seen = observe(operator, x, torch.from_numpy(LAND).double())
    y = torch.from_numpy(normal(2, "observation", shape=seen.shape)).double()
    (adjoint,) = torch.autograd.grad(seen, x, y)
    assert (seen * y).sum().item() == pytest.approx((x * adjoint).sum().item(), rel=1e-10)


def test_physical_units_are_those_of_the_statistics():
    found = Physical(statistics(), TIME)(states())
    for member, x in zip(found, states(), strict=True):
        np.testing.assert_allclose(member, statistics().physical(x.numpy(), TIME), rtol=1e-4, atol=1e-4)


def likelihood(masked=False):
    rain = np.full((3, 1, 2, 4), 2.0, np.float32)
    mask = np.zeros((3, 1, 2, 4), bool) if masked else np.broadcast_to(np.arange(4) < 2, (3, 1, 2, 4))
    t = np.full((3, 2, 1, 2), 250.0, np.float32)
    observed = [
        Gridded("temperature", Operator("block_mean", 4), t, np.full_like(t, 0.5), np.ones(t.shape, bool)),
        Gridded("precipitation", Operator("block_mean", 2), rain, np.full_like(rain, 0.1), mask.copy(), LAND),
    ]
    physical = Physical(statistics(), TIME)
    return physical_likelihood(observed[1:] if masked else observed, SPEC, lambda z, needed: z, physical, UNRESOLVED)


def test_likelihood_stacks_what_was_observed_of_each_modality():
    seen = likelihood()
    n_temperature, n_rain = 3 * 2 * 1 * 2, 3 * 1 * 2 * 2
    assert seen.predict(states()).shape == (2, n_temperature + n_rain)
    assert seen.y_N.tolist() == pytest.approx([250.0] * n_temperature + [np.log(3.0)] * n_rain)
    assert seen.std_N.tolist() == pytest.approx([0.5] * n_temperature + [np.hypot(0.1, 0.3) / 3] * n_rain)
    assert (seen.scale_N > 0).all()
    assert seen.scale_N[:n_temperature].reshape(3, 2, 1, 2)[:, 1].numpy() == pytest.approx(5.0, rel=1e-4)


def test_tangent_by_finite_differences():
    """Also through log(1 + rain): (h(x + e v) - h(x - e v)) / 2e against the derivative."""
    seen, x, v = likelihood(), states(), states(seed=3)
    _, tangent = torch.func.jvp(seen.predict, (x,), (v,))
    step = 1e-2
    difference = (seen.predict(x + step * v) - seen.predict(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=2e-2, atol=5e-2)


def test_observations_that_are_all_masked_are_refused():
    with pytest.raises(ValueError, match="every value of precipitation is masked"):
        likelihood(masked=True)
