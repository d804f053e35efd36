"""Observation operators against brute force, their adjoints by dot products, their tangents by finite differences."""

import numpy as np
import pytest
import torch

from slams.contracts.observations import Gridded, Operator, Stations
from slams.likelihood import Physical, latent_likelihood, physical_likelihood
from slams.observe import needed_cells, observe
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
CHAINED = Operator("block_mean", 2, Operator("subsample", 2))
OPERATORS = [
    Operator("identity"),
    Operator("block_mean", 2),
    Operator("subsample", 4),
    CHAINED,
    Operator("subsample", 2, Operator("block_mean", 2)),
    Operator("identity", 1, Operator("block_mean", 2, Operator("block_mean", 2))),
]


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


def test_a_chain_does_one_after_the_other():
    """Of the block means, the lower right one of every four."""
    x = states()
    found = observe(CHAINED, x)
    for column in range(2):
        block = x[..., 2:4, 4 * column + 2 : 4 * column + 4]
        torch.testing.assert_close(found[..., 0, column], block.mean(dim=(-1, -2)))
    assert found.shape == (*x.shape[:-2], 1, 2)


def test_weighted_block_means_of_block_means_are_those_of_the_larger_blocks():
    weight = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    twice = Operator("block_mean", 2, Operator("block_mean", 2))
    torch.testing.assert_close(observe(twice, states(), weight), observe(Operator("block_mean", 4), states(), weight))


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_looks_where_its_coordinates_say(operator):
    """Of the field of latitudes it must see its own latitudes, since every operator is a mean of cells."""
    mesh = np.meshgrid(SPEC.grid.latitude, SPEC.grid.longitude, indexing="ij")
    expected = np.meshgrid(*operator.coordinates(SPEC.grid), indexing="ij")
    for field, where in zip(mesh, expected, strict=True):
        np.testing.assert_allclose(observe(operator, torch.from_numpy(field)), where, rtol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_footprint_is_the_cells_that_an_observation_depends_on(operator):
    x = torch.zeros(4, 8, requires_grad=True)
    footprint = operator.footprint(SPEC.grid)
    for i, value in enumerate(observe(operator, x).flatten()):
        (depends,) = torch.autograd.grad(value, x, retain_graph=True)
        np.testing.assert_array_equal(footprint == i, depends.numpy() != 0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_written_and_read_again(operator):
    assert Operator.from_json(operator.to_json()) == operator


@pytest.mark.parametrize(("kind", "factor"), [("median", 2), ("block_mean", 0), ("identity", 2)])
def test_what_is_no_operator_is_refused(kind, factor):
    with pytest.raises(ValueError, match=f"(kind: '{kind}'|factor: {factor}) is not allowed"):
        Operator(kind, factor)


@pytest.mark.parametrize("operator", OPERATORS)
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


def gridded(masked=False):
    rain = np.full((3, 1, 2, 4), 2.0, np.float32)
    mask = np.zeros((3, 1, 2, 4), bool) if masked else np.broadcast_to(np.arange(4) < 2, (3, 1, 2, 4))
    t = np.full((3, 2, 1, 2), 250.0, np.float32)
    observed = [
        Gridded("temperature", Operator("block_mean", 4), t, np.full_like(t, 0.5), np.ones(t.shape, bool)),
        Gridded("precipitation", Operator("block_mean", 2), rain, np.full_like(rain, 0.1), mask.copy(), LAND),
    ]
    return observed[1:] if masked else observed


def stations(name, **changes):
    """Three reports of the third and second day: two that are used, one whose quality control failed."""
    found = {
        "name": name,
        "days": TIME,
        "frame": np.array([2, 1, 1]),
        "latitude": np.array([89.0, 10.0, -40.0]),  # the first one's neighbours lie across the pole
        "longitude": np.array([-170.0, 200.0, 355.0]),
        "level_hpa": np.array([600.0, 850.0, 700.0], np.float32),
        "value": np.array([230.0, 270.0, 9999.0], np.float32),
        "error_std": np.array([1.0, 2.0, np.nan], np.float32),
        "station_id": np.array(["a", "b", "c"], object),
        "qc": np.array([0, 0, 1], np.int8),
    }
    return Stations(**(found | changes))


def likelihood(observed=None, decode=lambda z, needed: z):
    return physical_likelihood(observed or gridded(), SPEC, decode, Physical(statistics(), TIME), UNRESOLVED)


def test_likelihood_stacks_what_was_observed_of_each_modality():
    seen = likelihood()
    n_temperature, n_rain = 3 * 2 * 1 * 2, 3 * 1 * 2 * 2
    assert seen.predict(states()).shape == (2, n_temperature + n_rain)
    assert seen.y_N.tolist() == pytest.approx([250.0] * n_temperature + [np.log(3.0)] * n_rain)
    assert seen.std_N.tolist() == pytest.approx([0.5] * n_temperature + [np.hypot(0.1, 0.3) / 3] * n_rain)
    assert (seen.scale_N > 0).all()
    assert seen.scale_N[:n_temperature].reshape(3, 2, 1, 2)[:, 1].numpy() == pytest.approx(5.0, rel=1e-4)


def test_inflation_is_of_one_modality_alone():
    plain = likelihood()
    more = physical_likelihood(
        gridded(), SPEC, lambda z, needed: z, Physical(statistics(), TIME), UNRESOLVED, {"precipitation": 3.0}
    )
    is_rain = torch.arange(len(plain.std_N)) >= 3 * 2 * 1 * 2
    torch.testing.assert_close(more.std_N, torch.where(is_rain, 3 * plain.std_N, plain.std_N))
    assert torch.equal(more.y_N, plain.y_N)


RAIN = stations("precipitation", value=np.array([1.0, 0.0, np.nan], np.float32))
SEEN = {
    "grid": gridded(),
    "stations": [stations("temperature"), RAIN],
    "both": [*gridded(), stations("temperature"), RAIN],
}


def test_likelihood_of_stations():
    """Each report against its own interpolation by hand: log p between 500 and 850 hPa, the cell of 10 N, 200 E."""
    seen, x = likelihood([stations("temperature")]), states()
    up = np.log(850 / 600) / np.log(850 / 500)
    kelvin = statistics().physical(x[0].numpy(), TIME)[1]
    # 10 N lies between the rows of 22.5 N and 22.5 S, 200 E between the columns of 157.5 E and 202.5 E
    rows, columns = {1: 32.5 / 45, 2: 12.5 / 45}, {3: 2.5 / 45, 4: 42.5 / 45}
    expected = sum(r * c * kelvin[1, row, column] for row, r in rows.items() for column, c in columns.items())
    assert seen.y_N.tolist() == [230.0, 270.0] and seen.std_N.tolist() == [1.0, 2.0]
    assert seen.predict(x)[0, 1].item() == pytest.approx(expected, rel=1e-5)
    assert seen.scale_N.tolist() == pytest.approx([up * 3 + (1 - up) * 5, 5.0])


def test_rain_of_stations_is_compared_in_logarithms_and_what_the_decoder_loses_is_added():
    seen = likelihood([RAIN])
    assert seen.y_N.tolist() == pytest.approx(np.log1p([1.0, 0.0]))
    assert seen.std_N.tolist() == pytest.approx([np.hypot(1.0, 0.3) / 2, np.hypot(2.0, 0.3)])


@pytest.mark.parametrize("kind", SEEN)
def test_tangent_by_finite_differences(kind):
    """Also through log(1 + rain): (h(x + e v) - h(x - e v)) / 2e against the derivative."""
    seen, x, v = likelihood(SEEN[kind]), states(), states(seed=3)
    _, tangent = torch.func.jvp(seen.predict, (x,), (v,))
    step = 1e-2
    difference = (seen.predict(x + step * v) - seen.predict(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("kind", SEEN)
def test_needed_cells_are_those_that_a_prediction_depends_on(kind):
    x = states().abs().requires_grad_()  # some rain everywhere: log(1 + rain) is flat below none
    predicted = likelihood(SEEN[kind]).predict(x)
    depends = sum(torch.autograd.grad(p, x, retain_graph=True)[0].abs() for p in predicted.sum(0))
    np.testing.assert_array_equal(needed_cells(SEEN[kind], SPEC), depends.amax(dim=(0, 2)).numpy() > 0)


@pytest.mark.parametrize("kind", SEEN)
def test_a_canvas_of_zeros_around_the_needed_cells_changes_nothing(kind):
    x, needed = states(), torch.from_numpy(needed_cells(SEEN[kind], SPEC))[:, None]
    predict = likelihood(SEEN[kind]).predict
    torch.testing.assert_close(predict(torch.where(needed, x, 0)), predict(x), rtol=0, atol=0)


def test_only_days_that_were_observed_are_decoded():
    decoded = []

    def decode(z, needed):
        decoded.append((z.clone(), needed))
        return z

    t, rain = gridded()
    t.mask[1:], rain.mask[:2] = False, False  # temperature on the first day, rain on the last
    seen, x = likelihood([t, rain], decode), states()
    predicted = seen.predict(x)
    torch.testing.assert_close(decoded[0][0], x[:, [0, 2]])
    np.testing.assert_array_equal(decoded[0][1], needed_cells([t, rain], SPEC)[[0, 2]])
    whole = likelihood().predict(x)  # 4 temperatures a day, then 4 of rain
    torch.testing.assert_close(predicted, torch.cat([whole[:, :4], whole[:, -4:]], dim=1), rtol=0, atol=0)


def test_observations_that_are_all_masked_are_refused():
    with pytest.raises(ValueError, match="every value of precipitation is masked"):
        likelihood(gridded(masked=True))
    failed = stations("temperature", qc=np.full(3, 2, np.int8))
    with pytest.raises(ValueError, match="every value of precipitation, temperature is masked"):
        likelihood([*gridded(masked=True), failed])


def test_latents_of_a_perfect_encoder_are_seen_as_the_state_is():
    """Where the latents are the standardised state, the misfit of both, in standard deviations, is one number."""
    z, operator = states(), Operator("block_mean", 2)
    statistics_ = statistics()
    harmonics = np.broadcast_to(statistics_.harmonics.mean((-2, -1), keepdims=True), statistics_.harmonics.shape).copy()
    plain = Statistics(harmonics, statistics_.std, np.zeros(3, bool), statistics_.observed)
    physical, mask = Physical(plain, TIME), np.zeros((3, 2, 2, 4), bool)
    mask[[0, 2], :, 0] = True
    truth = states(members=1, seed=9)
    kelvin = observe(operator, physical(truth))[0, :, :2].numpy()
    error = np.broadcast_to(0.1 * plain.std[:2], kelvin.shape).astype(np.float32)
    t = Gridded("temperature", operator, kelvin, error, mask)
    standard = np.where(mask, observe(operator, truth)[0, :, :2].numpy(), np.nan)
    latent = Gridded("latent", operator, standard, np.full_like(standard, 0.1), mask)
    left = physical_likelihood([t], SPEC, lambda z, needed: z, physical, torch.zeros(3))
    right = latent_likelihood(latent)
    misfit = [(seen.y_N - seen.predict(x)) / seen.std_N for seen, x in ((left, z), (right, z[:, :, :2]))]
    assert misfit[0].abs().mean() > 1
    torch.testing.assert_close(*misfit, rtol=1e-3, atol=1e-2)
    assert (right.scale_N == 1).all()


def test_latents_that_are_all_masked_are_refused():
    nothing = np.full((3, 2, 4, 8), np.nan, np.float32)
    with pytest.raises(ValueError, match="every value of latent is masked"):
        latent_likelihood(Gridded("latent", Operator("identity"), nothing, nothing, np.zeros(nothing.shape, bool)))
