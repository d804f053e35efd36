"""Scores against brute force, closed forms and theorems, none of which shares their code."""

import itertools
import warnings

import numpy as np
import properscoring
import pytest
import scoringrules
import torch
import xarray as xr
from scipy.stats import norm

from slams.metrics import Bias, EnsembleRMSE, FairCRPS, RankHistogram, Spread, SpreadSkill, fair_crps
from slams.metrics.ensemble import in_order
from slams.spec import Grid

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own habits on import
    import xskillscore

GRID = Grid(8, 16)
WEIGHTS = GRID.area_weights
SCORES = (EnsembleRMSE, FairCRPS, SpreadSkill, Bias, Spread)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def updated(metric, *cases):
    for members, truth in cases:
        metric.update(members, truth)
    return metric


def scored(metric, *cases):
    # torchmetrics makes a scalar of one channel
    return np.atleast_1d(updated(metric, *cases).compute().numpy())


def test_one_member_scores_its_error_and_has_no_spread():
    truth, member = normal(0, 2, 8, 16), normal(1, 1, 2, 8, 16)
    absolute = (member[0] - truth).abs().numpy()
    np.testing.assert_allclose(scored(FairCRPS(2, WEIGHTS), (member, truth)), (absolute * WEIGHTS).sum(axis=(1, 2)))
    root = np.sqrt((absolute**2 * WEIGHTS).sum(axis=(1, 2)))
    np.testing.assert_allclose(scored(EnsembleRMSE(2, WEIGHTS), (member, truth)), root)
    np.testing.assert_array_equal(scored(SpreadSkill(2, WEIGHTS), (member, truth)), 0)
    np.testing.assert_array_equal(scored(SpreadSkill(2, WEIGHTS), (truth[None], truth)), 0)
    np.testing.assert_array_equal(scored(Spread(2, WEIGHTS), (member, truth)), 0)


def test_fair_crps_is_the_double_sum_over_pairs():
    truth, members = normal(0, 2, 8, 16), 280 + normal(1, 5, 2, 8, 16)
    pairs = sum((a - b).abs() for a in members for b in members)
    expected = (members - truth).abs().mean(dim=0) - pairs / (2 * 5 * 4)
    np.testing.assert_allclose(fair_crps(members - truth), expected, rtol=1e-10)


def test_fair_crps_differs_from_the_unfair_one_by_the_known_term():
    """properscoring divides the pairs by M^2, the fair score by M (M - 1)."""
    truth, members = normal(0, 1, 8, 16), normal(1, 6, 1, 8, 16)
    unfair = properscoring.crps_ensemble(truth.numpy(), members.numpy(), axis=0)
    absolute = np.abs(members.numpy() - truth.numpy()).mean(axis=0)
    np.testing.assert_allclose(fair_crps(members - truth), absolute - (absolute - unfair) * 6 / 5, rtol=1e-10)


@pytest.mark.parametrize("n_members", [2, 3, 7, 16, 50])
def test_fair_crps_is_that_of_scoringrules(n_members):
    truth, members = normal(0, 2, 8, 16), normal(1, n_members, 2, 8, 16)
    expected = scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=0, estimator="fair")
    np.testing.assert_allclose(fair_crps(members - truth), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_members", range(1, 13))
def test_the_network_sorts_any_number_of_members(n_members):
    """A network that sorts every sequence of zeros and ones sorts everything (Knuth 1973, the 0-1 principle)."""
    ones = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_members))).T.reshape(n_members, 1, 1, -1)
    assert torch.equal(torch.stack(in_order(ones)), ones.sort(dim=0).values)


def test_larger_ensembles_are_sorted_too():
    for n_members in (16, 17, 31, 50, 64):
        members = normal(n_members, n_members, 1, 8, 16)
        assert torch.equal(torch.stack(in_order(members)), members.sort(dim=0).values)


def test_scores_are_those_of_xskillscore():
    """It divides the pairs of the CRPS by M^2, as properscoring, and averages by the weights that it is given."""
    truth, members = normal(0, 2, 8, 16), normal(1, 6, 2, 8, 16) + 0.3
    dims, where = ["channel", "latitude", "longitude"], ["latitude", "longitude"]
    known, x = xr.DataArray(truth.numpy(), dims=dims), xr.DataArray(members.numpy(), dims=["member", *dims])
    weights = xr.DataArray(WEIGHTS, dims=where)
    case = (members, truth)
    rmse = xskillscore.rmse(known, x.mean("member"), dim=where, weights=weights)
    np.testing.assert_allclose(scored(EnsembleRMSE(2, WEIGHTS), case), rmse, rtol=1e-9)
    bias = xskillscore.me(x.mean("member"), known, dim=where, weights=weights)
    np.testing.assert_allclose(scored(Bias(2, WEIGHTS), case), bias, rtol=1e-9)
    unfair = xskillscore.crps_ensemble(known, x, dim=where, weights=weights)
    absolute = abs(x - known).mean("member").weighted(weights).mean(where)
    np.testing.assert_allclose(scored(FairCRPS(2, WEIGHTS), case), absolute - (absolute - unfair) * 6 / 5, rtol=1e-9)
    equal = np.full((8, 16), 1 / 128)  # its rank histogram counts cells
    counts = xskillscore.rank_histogram(known, x, dim=where)
    np.testing.assert_allclose(scored(RankHistogram(2, equal, 6), case), counts / 128, rtol=1e-9)


def test_bias_and_spread_are_those_of_numpy():
    truth, members = normal(0, 2, 8, 16), normal(1, 6, 2, 8, 16) + 0.3
    x, y = members.numpy(), truth.numpy()
    np.testing.assert_allclose(scored(Bias(2, WEIGHTS), (members, truth)), ((x.mean(0) - y) * WEIGHTS).sum((1, 2)))
    spread = np.sqrt((x.var(axis=0, ddof=1) * WEIGHTS).sum(axis=(1, 2)))
    np.testing.assert_allclose(scored(Spread(2, WEIGHTS), (members, truth)), spread)


def test_a_large_ensemble_reaches_the_gaussian_formula():
    members, mean, std = normal(3, 2000, 1, 8, 16), 0.7, 1.3
    z = -mean / std
    expected = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    # one cell's standard error is about 0.6 / sqrt(2000); the area mean of 128 cells is far inside it
    found = scored(FairCRPS(1, WEIGHTS), (mean + std * members, torch.zeros(1, 8, 16)))
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_fair_score_does_not_depend_on_the_number_of_members():
    cases = [(normal(i, 2, 1, 8, 16), normal(i + 999, 1, 8, 16)) for i in range(60)]
    few = scored(FairCRPS(1, WEIGHTS), *cases)[0]
    # truth and members from one normal distribution: E CRPS = 1 / sqrt(pi); 60 x 128 cells, standard error 0.012
    assert few == pytest.approx(1 / np.sqrt(np.pi), abs=0.04)


@pytest.fixture(scope="module")
def reliable():
    """Members and truth drawn alike about a common mean, 40 dates of 8 members."""
    common = [10 * normal(i + 5000, 1, 8, 16) for i in range(40)]
    return [(x + normal(i, 8, 1, 8, 16), x + normal(i + 999, 1, 8, 16)) for i, x in enumerate(common)]


def test_a_reliable_ensemble_has_ratio_one_and_flat_ranks(reliable):
    # 40 x 128 independent cells: standard error of the ratio 0.01, of a rank's share 0.005
    assert scored(SpreadSkill(1, WEIGHTS), *reliable)[0] == pytest.approx(1, abs=0.04)
    ranks = scored(RankHistogram(1, WEIGHTS, 8), *reliable)[0]
    np.testing.assert_allclose(ranks, 1 / 9, atol=0.02)
    assert ranks.sum() == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_spread_is_caught(reliable, factor):
    """Members stretched about their mean: var -> f^2 var, error of the mean unchanged."""
    stretched = [(x.mean(0) + factor * (x - x.mean(0)), y) for x, y in reliable]
    np.testing.assert_allclose(
        scored(SpreadSkill(1, WEIGHTS), *stretched), factor * scored(SpreadSkill(1, WEIGHTS), *reliable), rtol=1e-9
    )
    ranks = scored(RankHistogram(1, WEIGHTS, 8), *stretched)[0]
    ends, middle = ranks[[0, -1]].mean(), ranks[3:6].mean()
    assert ends > 2 * middle if factor < 1 else middle > 2 * ends


def test_a_bias_tilts_the_ranks(reliable):
    ranks = scored(RankHistogram(1, WEIGHTS, 8), *[(x + 1, y) for x, y in reliable])[0]
    assert ranks[0] > 0.25 > 0.05 > ranks[-1]


def test_ties_share_their_weight():
    """Three dry members and a dry truth: every rank is as likely."""
    dry = torch.zeros(3, 1, 8, 16)
    np.testing.assert_allclose(scored(RankHistogram(1, WEIGHTS, 3), (dry, dry[0])), np.full((1, 4), 0.25))


def metrics():
    return [score(1, WEIGHTS) for score in SCORES] + [RankHistogram(1, WEIGHTS, 8)]


def test_order_and_sharing_of_the_work_do_not_matter(reliable):
    for whole, backward, first, second in zip(metrics(), metrics(), metrics(), metrics(), strict=True):
        expected = scored(whole, *reliable)
        np.testing.assert_allclose(scored(backward, *reliable[::-1]), expected, rtol=1e-12)
        updated(first, *reliable[:13]).merge_state(updated(second, *reliable[13:]))
        np.testing.assert_allclose(np.atleast_1d(first.compute()), expected, rtol=1e-12)


def test_the_order_of_members_does_not_matter(reliable):
    for metric, shuffled in zip(metrics(), metrics(), strict=True):
        mixed = [(x[torch.randperm(8, generator=torch.Generator().manual_seed(1))], y) for x, y in reliable]
        np.testing.assert_allclose(scored(metric, *reliable), scored(shuffled, *mixed), rtol=1e-12)


def test_area_weights_by_hand():
    """Two rows a hemisphere: rows of 60 degrees width about the poles cover 1 - sin(45 deg) of their hemisphere."""
    grid, truth = Grid(4, 4), torch.zeros(1, 4, 4)
    member = torch.zeros(1, 1, 4, 4)
    member[..., 0, :] = 3.0
    polar = (1 - np.sin(np.pi / 4)) / 2
    np.testing.assert_allclose(scored(EnsembleRMSE(1, grid.area_weights), (member, truth)), 3 * np.sqrt(polar))
    np.testing.assert_allclose(scored(FairCRPS(1, grid.area_weights), (member, truth)), 3 * polar)


def test_missing_truth_is_left_out_with_its_weight(reliable):
    """A hole in the truth scores as if the weights there were zero, whatever the members hold in it."""
    hole = torch.zeros(1, 8, 16, dtype=torch.bool)
    hole[:, 2:5, 3:9] = True
    holed = [(torch.where(hole, torch.nan, x), torch.where(hole, torch.nan, y)) for x, y in reliable]
    without = WEIGHTS * ~hole[0].numpy()
    for score in SCORES:
        np.testing.assert_allclose(scored(score(1, WEIGHTS), *holed), scored(score(1, without), *reliable), rtol=1e-12)
    ranks = scored(RankHistogram(1, WEIGHTS, 8), *holed)
    np.testing.assert_allclose(ranks, scored(RankHistogram(1, without, 8), *reliable), rtol=1e-12)


def test_a_missing_member_is_not_excused(reliable):
    members, truth = reliable[0][0].clone(), reliable[0][1]
    members[3, 0, 4, 4] = torch.nan
    for metric in metrics():
        assert np.isnan(scored(metric, (members, truth))).any()


def test_a_channel_without_truth_has_no_score():
    truth = normal(0, 2, 8, 16)
    truth[1] = torch.nan
    assert list(np.isnan(scored(EnsembleRMSE(2, WEIGHTS), (truth[None].nan_to_num(0), truth)))) == [False, True]


@pytest.mark.parametrize("shape", [(4, 2, 8, 16), (4, 1, 16, 8), (1, 8, 16)])
def test_fields_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="are needed"):
        FairCRPS(1, WEIGHTS).update(torch.zeros(shape), torch.zeros(1, 8, 16))


def test_another_number_of_members_is_refused():
    with pytest.raises(ValueError, match="members: 4"):
        RankHistogram(1, WEIGHTS, 8).update(torch.zeros(4, 1, 8, 16), torch.zeros(1, 8, 16))
