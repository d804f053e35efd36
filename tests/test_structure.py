"""Distributions, spectra, profiles and daily changes against SciPy, Parseval, and fields known in closed form."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from slams.metrics import DayChange, UnstableLayers, Wasserstein, ZonalSpectrum
from slams.metrics.structure import zonal_power
from slams.spec import Grid

GRID = Grid(8, 16)
WEIGHTS = GRID.area_weights
WIDTH = Wasserstein.WIDTH


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def scored(metric, *cases):
    for members, truth in cases:
        metric.update(members, truth)
    return np.atleast_1d(metric.compute().numpy())


def distance(*cases, centre=0.0, scale=1.0):
    shape = cases[0][1].shape
    return scored(Wasserstein(np.full(shape[0], centre), np.full(shape[0], scale), shape[1:]), *cases)


def pooled(cases, c):
    return [np.concatenate([x[..., c, :, :].numpy().ravel() for x in side]) for side in zip(*cases, strict=True)]


CASES = {
    "shifted": lambda i: (normal(i, 3, 2, 8, 16) + 0.7, normal(i + 50, 2, 8, 16)),
    "stretched": lambda i: (1.5 * normal(i, 3, 2, 8, 16), normal(i + 50, 2, 8, 16)),
    "alike": lambda i: (normal(i, 3, 2, 8, 16), normal(i + 50, 2, 8, 16)),
    "rain": lambda i: (normal(i, 3, 2, 8, 16).clamp(0), normal(i + 50, 2, 8, 16).sub(0.5).clamp(0)),
    "far out": lambda i: (normal(i, 3, 2, 8, 16) * 30, normal(i + 50, 2, 8, 16)),
    "all beyond": lambda i: (normal(i, 3, 2, 8, 16) + 90, normal(i + 50, 2, 8, 16) + 80),
}


@pytest.mark.parametrize("name", CASES)
def test_w1_is_that_of_scipy_within_its_bound(name):
    """Never above, and below by at most what is promised: half a cell times the shares in cells of a crossing."""
    cases = [CASES[name](i) for i in range(4)]
    found = distance(*cases)
    for c in range(2):
        x, y = pooled(cases, c)
        exact = wasserstein_distance(x, y)
        inside = (np.abs(x) < 4).any() or (np.abs(y) < 4).any()
        crossed = crossing_shares(x, y) if inside else 0
        assert exact - WIDTH / 2 * crossed - beyond(x, y) - 1e-9 <= found[c] <= exact + 1e-9


def crossing_shares(x, y):
    """Shares of both in the cells within reach in which the cumulative distributions cross, by brute force."""
    edges = np.arange(-4, 4 + WIDTH / 2, WIDTH)
    values = np.sort(np.concatenate([x, y]))
    gap = np.searchsorted(np.sort(x), values, "right") / len(x) - np.searchsorted(np.sort(y), values, "right") / len(y)
    at = np.searchsorted(np.sort(x), edges, "right") / len(x) - np.searchsorted(np.sort(y), edges, "right") / len(y)
    total = 0.0
    for k in range(len(edges) - 1):
        within = (values >= edges[k]) & (values < edges[k + 1])
        gaps = np.append(gap[within], at[k])
        if (gaps > 0).any() and (gaps < 0).any():
            total += sum(((v >= edges[k]) & (v < edges[k + 1])).mean() for v in (x, y))
    return total


def beyond(x, y):
    """What cancels outside the reach, by brute force: the area between the two minus the difference of means."""
    lost = 0.0
    for sign in (1, -1):
        a, b = (np.maximum(sign * v, 4) for v in (x, y))
        lost += wasserstein_distance(a, b) - abs(a.mean() - b.mean())
    return lost


def test_w1_of_smooth_distributions_is_scipys_to_a_thousandth():
    cases = [(1.2 * normal(i, 4, 1, 8, 16) + 0.1, normal(i + 99, 1, 8, 16)) for i in range(40)]
    assert distance(*cases)[0] == pytest.approx(wasserstein_distance(*pooled(cases, 0)), abs=1e-3)


def test_w1_counts_in_units_of_the_scale_about_any_centre():
    members, truth = normal(0, 3, 1, 8, 16) + 0.5, normal(1, 1, 8, 16)
    kelvin = distance((members * 12 + 250, truth * 12 + 250), centre=250.0, scale=12.0)
    np.testing.assert_allclose(kelvin, distance((members, truth)), rtol=1e-9)
    off = distance((members * 12 + 250, truth * 12 + 250), centre=243.0, scale=12.0)
    np.testing.assert_allclose(off, kelvin, atol=WIDTH / 10)


def test_w1_of_one_member_is_that_of_the_published_code():
    """scipy's distance of one flattened draw and the flattened truth, in z-scores, poles counted like the rest."""
    members, truth = normal(0, 3, 2, 8, 16) + 1, normal(1, 2, 8, 16)
    expected = [wasserstein_distance(truth[c].flatten(), members[0, c].flatten()) for c in range(2)]
    np.testing.assert_allclose(distance((members[:1], truth)), expected, atol=2e-3)


def test_w1_leaves_out_what_is_not_known_and_excuses_no_missing_member():
    members, truth = normal(0, 3, 1, 8, 16) + 1, normal(1, 1, 8, 16)
    truth[0, :4] = torch.nan
    members[:, 0, :2] = torch.nan
    expected = wasserstein_distance(members[:, 0, 4:].flatten(), truth[0, 4:].flatten())
    assert distance((members, truth))[0] == pytest.approx(expected, abs=1e-3)
    members[1, 0, 6, 6] = torch.nan
    assert np.isnan(distance((members, truth))[0])


def test_the_spectrum_sums_to_the_mean_square():
    for columns in (16, 15):  # with and without a shortest wave that stands for itself
        weights = Grid(8, columns).area_weights
        x = normal(2, 3, 2, 8, columns)
        found = scored(ZonalSpectrum(2, weights), (x, x[0]))
        assert found.shape == (2, columns // 2 + 1)
        expected = (x.square().mean(0).numpy() * weights).sum(axis=(1, 2))
        np.testing.assert_allclose(found.sum(axis=1), expected, rtol=1e-12)


def test_a_wave_stands_at_its_wavenumber():
    """A cosine of amplitude 3 and 5 waves has power 9 / 2 there; a constant stands at 0, the shortest wave at W / 2."""
    longitude = 2 * np.pi * np.arange(16) / 16
    for wavenumber, power in ((5, 4.5), (0, 9.0), (8, 9.0)):
        wave = torch.from_numpy(3 * np.cos(wavenumber * longitude))
        np.testing.assert_allclose(zonal_power(wave), np.eye(9)[wavenumber] * power, atol=1e-12)


def test_white_noise_is_flat_and_rows_count_by_their_area():
    noise = normal(3, 400, 1, 8, 16)
    found = scored(ZonalSpectrum(1, WEIGHTS), (noise, noise[0]))[0]
    # each of the 15 pairs of waves has 1 / 8, the two ends half; about 3000 rows: standard error of a share 2 %
    np.testing.assert_allclose(found * 16, [1, *[2] * 7, 1], rtol=0.15)
    polar = torch.zeros(1, 1, 8, 16)
    polar[..., 0, :] = 1
    share = (1 - np.sin(np.deg2rad(67.5))) / 2
    assert scored(ZonalSpectrum(1, WEIGHTS), (polar, polar[0]))[0, 0] == pytest.approx(share)


def test_a_row_that_is_not_known_all_around_is_left_out_with_its_weight():
    x, truth = normal(4, 2, 1, 8, 16), normal(5, 1, 8, 16)
    truth[0, 3, 3] = torch.nan
    x[:, 0, 3] = torch.nan
    without = WEIGHTS.copy()
    without[3] = 0
    expected = scored(ZonalSpectrum(1, without), (x.nan_to_num(0), truth.nan_to_num(0)))
    np.testing.assert_allclose(scored(ZonalSpectrum(1, WEIGHTS), (x, truth)), expected, rtol=1e-12)
    x[1, 0, 5, 5] = torch.nan
    assert np.isnan(scored(ZonalSpectrum(1, WEIGHTS), (x, truth))).any()


LEVELS = (1000, 500, 850, 100)  # in no order


def profile(lapse):
    """T of dry air at each level that falls by `lapse` times the adiabat: T = 300 K (p / p0)^(lapse 2/7)."""
    column = 300 * (np.array(LEVELS) / 1000) ** (lapse * 2 / 7)
    return torch.from_numpy(np.broadcast_to(column[:, None, None], (4, 8, 16)).copy())


@pytest.mark.parametrize(("lapse", "unstable"), [(0.0, 0), (0.99, 0), (1.01, 1), (1.5, 1)])
def test_a_profile_is_unstable_beyond_the_dry_adiabat(lapse, unstable):
    found = scored(UnstableLayers(LEVELS, WEIGHTS), (profile(lapse)[None], profile(0)))
    np.testing.assert_array_equal(found, [unstable] * 3)


def test_unstable_layers_are_counted_from_the_top_by_area_and_member():
    """Half the members, the northern hemisphere, between 850 and 1000 hPa alone."""
    x = profile(0.5)[None].repeat(2, 1, 1, 1)
    x[0, 0, :4] += 30  # 1000 hPa
    np.testing.assert_allclose(scored(UnstableLayers(LEVELS, WEIGHTS), (x, profile(0))), [0, 0, 0.25], atol=1e-12)
    truth = profile(0)
    truth[2, :4] = torch.nan  # 850 hPa: the two layers that it bounds are known in the south alone
    np.testing.assert_allclose(scored(UnstableLayers(LEVELS, WEIGHTS), (x, truth)), [0, 0, 0], atol=1e-12)
    x[1, 3, 6, 6] = torch.nan
    assert list(np.isnan(scored(UnstableLayers(LEVELS, WEIGHTS), (x, truth)))) == [True, False, False]


@pytest.mark.parametrize("level_hpa", [(500,), (500, 500, 850)])
def test_layers_need_two_levels(level_hpa):
    with pytest.raises(ValueError, match="level_hpa"):
        UnstableLayers(level_hpa, WEIGHTS)


def test_day_change_is_the_ratio_of_root_mean_squares():
    change, true_change = normal(6, 3, 2, 8, 16), normal(7, 2, 8, 16)
    np.testing.assert_allclose(scored(DayChange(2, WEIGHTS), (2 * true_change[None], true_change)), 2)
    rms = [np.sqrt((np.square(v) * WEIGHTS).sum(axis=(-2, -1))) for v in (change.numpy(), true_change.numpy())]
    expected = np.sqrt(np.square(rms[0]).mean(axis=0)) / rms[1]
    np.testing.assert_allclose(scored(DayChange(2, WEIGHTS), (change, true_change)), expected)
    np.testing.assert_array_equal(scored(DayChange(2, WEIGHTS), (change * 0, true_change)), 0)


def test_a_day_change_counts_where_the_truths_is_known_and_a_member_without_one_is_no_score():
    change, true_change = normal(6, 3, 2, 8, 16), normal(7, 2, 8, 16)
    hole = torch.zeros(2, 8, 16, dtype=torch.bool)
    hole[0, 2:5] = True
    holed = torch.where(hole, torch.nan, change), torch.where(hole, torch.nan, true_change)
    found = scored(DayChange(2, WEIGHTS), holed)
    weight = torch.as_tensor(WEIGHTS) * ~hole
    rms = [((v.double() ** 2).nan_to_num(0) * weight).sum(dim=(-2, -1)) for v in holed]
    np.testing.assert_allclose(found, (rms[0].mean(dim=0) / rms[1]).sqrt())
    np.testing.assert_array_equal(scored(DayChange(2, WEIGHTS), (change, holed[1])), found)  # beside no truth
    change[1, 1, 6, 6] = torch.nan
    assert list(np.isnan(scored(DayChange(2, WEIGHTS), (change, holed[1])))) == [False, True]
    unknown = torch.full_like(true_change, torch.nan)
    assert np.isnan(scored(DayChange(2, WEIGHTS), (normal(6, 3, 2, 8, 16), unknown))).all()


@pytest.mark.parametrize(
    "metric", [ZonalSpectrum(2, WEIGHTS), DayChange(2, WEIGHTS), Wasserstein([0, 0], [1, 1], (8, 16))]
)
def test_fields_of_another_shape_are_refused(metric):
    with pytest.raises(ValueError, match="are needed"):
        metric.update(torch.zeros(3, 1, 8, 16), torch.zeros(1, 8, 16))
