"""Scores in observation space: by linear algebra, by exchangeable members, and by pandas from the same files."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sample.observation_figures import band_departures, departure_profiles, error_profiles, observation_ranks
from sample.observation_space import (
    Gathering,
    check_held_out,
    observation_space,
    of_departures,
    of_held_out,
    summary,
    write_csv,
)
from slams.contracts.analysis import open_analysis
from slams.contracts.departures import open_departures
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Stations, open_observations, write_observations
from slams.observation_space import (
    Rows,
    Tallies,
    band,
    chi_square,
    chi_square_with_spread,
    crps,
    desroziers,
    keyed_noise,
    nearest_level,
    numbers,
    rank_shares,
    season,
    spread_error_ratio,
)
from slams.spec import OLR, TEMPERATURE, Grid, StateSpec
from slams.uncertainty import widening

SPEC = StateSpec(Grid(16, 32), (TEMPERATURE, OLR))
N = 60_000


def sums(observed, error_std, background, analysis, noise=None):
    """Everything as one group."""
    rng, tallies = np.random.default_rng(1), Tallies(len(analysis))
    noise = rng.standard_normal(analysis.shape) if noise is None else noise
    tallies.add([np.zeros(len(observed), int)], Rows(observed, error_std, background, analysis, noise))
    return tallies.sums[(0,)]


# ---- the identities of a linear Gaussian system


class System:
    """Six correlated numbers of which three combinations are observed; a gain that believes `believed` times R."""

    def __init__(self, believed=1.0, cases=N // 3):
        rng = np.random.default_rng(7)
        apart = np.abs(np.arange(6)[:, None] - np.arange(6))
        b, self.r = 2.0 * 0.6**apart, 0.5
        h = np.zeros((3, 6))
        h[0, 0] = h[1, 2] = 1
        h[2, 3:] = 1 / 3
        self.hbht = h @ b @ h.T
        s, assumed = self.hbht + self.r * np.eye(3), self.hbht + believed * self.r * np.eye(3)
        gain = self.hbht @ np.linalg.inv(assumed)
        # what the formulas give with this gain, right or wrong: E[d_a d_b'] = (I - HK) S
        self.expected_r = np.trace((np.eye(3) - gain) @ s) / 3
        self.expected_hbht = np.trace(gain @ s) / 3
        self.haht = np.trace(self.hbht - gain @ self.hbht) / 3
        self.share_used = np.trace(gain) / 3
        background_error = rng.standard_normal((cases, 6)) @ np.linalg.cholesky(b).T @ h.T
        innovation = rng.standard_normal((cases, 3)) * np.sqrt(self.r) - background_error
        background = rng.normal(280, 10, (cases, 3)) + background_error
        analysis = background + innovation @ gain.T
        error = np.full(cases * 3, np.sqrt(believed * self.r))
        columns = (background + innovation, background, analysis)
        observed, background, analysis = (part.reshape(-1) for part in columns)
        self.sums = sums(observed, error, background, analysis[None])


WITHIN = 4 * np.sqrt(2 / N) * 3  # four standard errors of a product of unit Gaussians, the largest variance being 2.5


def test_with_the_optimal_gain_the_departures_give_back_the_errors():
    system = System()
    found = desroziers(system.sums)
    assert found["r"] == pytest.approx(system.r, abs=WITHIN)
    assert found["hbht"] == pytest.approx(np.trace(system.hbht) / 3, abs=WITHIN)
    assert found["haht"] == pytest.approx(system.haht, abs=WITHIN)
    assert found["r_stated"] == pytest.approx(system.r)
    assert chi_square(system.sums) == pytest.approx(1 - system.share_used, abs=WITHIN)


@pytest.mark.parametrize("believed", [0.25, 4.0])
def test_an_error_believed_wrongly_is_caught_and_corrected_in_the_right_direction(believed):
    system = System(believed)
    found = desroziers(system.sums)
    stated = believed * system.r
    assert found["r_stated"] == pytest.approx(stated)
    assert found["r"] == pytest.approx(system.expected_r, abs=WITHIN)
    assert found["hbht"] == pytest.approx(system.expected_hbht, abs=WITHIN)
    assert (found["r"] - stated) * (system.r - stated) > 0 and abs(found["r"] - stated) > 0.02
    assert abs(found["r"] - system.r) < abs(stated - system.r)


def test_biases_do_not_count_as_errors():
    """Ten times the error added to every background."""
    rng = np.random.default_rng(2)
    b, a = rng.standard_normal((2, N))
    zero = np.zeros(N)
    plain, biased = (desroziers(sums(zero, zero + 1, b + bias, (a + bias / 2)[None])) for bias in (0.0, 10.0))
    for name in ("r", "hbht", "haht"):
        assert biased[name] == pytest.approx(plain[name], abs=1e-9)


def test_the_sampling_error_of_few_members_is_no_part_of_what_the_analysis_error_is_said_to_be():
    """The mean of 4 members instead of the exact one: R, B and A of a scalar analysis whose statistics are right."""
    rng, variance, r, m = np.random.default_rng(8), 1.0, 0.5, 4
    truth = rng.normal(0, 10, N)
    b, y = truth + rng.normal(0, 1, N), truth + rng.normal(0, np.sqrt(r), N)
    mean = b + variance / (variance + r) * (y - b)
    a = variance * r / (variance + r)
    members = mean + rng.normal(0, np.sqrt(a), (m, N))
    found = desroziers(sums(y, np.full(N, np.sqrt(r)), b, members))
    for name, expected in (("r", r), ("hbht", variance), ("haht", a), ("spread", a)):
        assert found[name] == pytest.approx(expected, abs=0.02), name


# ---- reliability of what was withheld


def ensemble(spread=1.0, members=4):
    """Truth and members from one distribution, whose own centre varies; observations with an error of 0.8."""
    rng = np.random.default_rng(3)
    centre = rng.normal(250, 5, N)
    truth, error = centre + rng.standard_normal(N), np.full(N, 0.8)
    analysis = centre + spread * rng.standard_normal((members, N))
    return truth + error * rng.standard_normal(N), error, np.full(N, np.nan), analysis


def unevenness(found):
    """Chi-square of a flat histogram, N observations: its expectation is M, its variance 2 M."""
    shares = rank_shares(found)
    return N * ((shares - 1 / len(shares)) ** 2).sum() * len(shares)


def test_exchangeable_members_with_the_error_added_are_flat_and_their_ratios_one():
    found = sums(*ensemble())
    assert unevenness(found) < 4 + 4 * np.sqrt(8)
    error = 4 * np.sqrt(2 / N)
    assert spread_error_ratio(found) == pytest.approx(1, abs=error), "without (M + 1) / M it would be 0.93"
    many = sums(*ensemble(members=40))
    # variances of 40 members are known to within sqrt(2 / 39), of which the square counts, and once for their share
    assert chi_square_with_spread(many) == pytest.approx(1, abs=error + 2 / 39 * 0.61**2)


def test_few_members_raise_the_chi_square_by_what_an_f_distribution_says():
    """Without observation error it is F(1, M - 1), for M = 7 of mean 6 / 4 and variance 2 36 5 / (16 2)."""
    _, error, b, x = ensemble(members=8)
    found = sums(x[0], error * 1e-6, b, x[1:])  # one member is the truth of the others
    assert chi_square_with_spread(found) == pytest.approx(6 / 4, abs=4 * np.sqrt(360 / 32 / N))


def test_without_the_observations_error_good_members_look_over_confident():
    given = ensemble()
    shares = rank_shares(sums(*given, noise=np.zeros_like(given[-1])))
    assert min(shares[0], shares[-1]) > 1.15 / 5 and shares[1:-1].max() < 0.19


def test_too_little_spread_is_a_u_and_too_much_a_dome():
    little, much = (rank_shares(sums(*ensemble(spread))) for spread in (0.3, 2.5))
    assert min(little[0], little[-1]) > 1.3 / 5 > little[1:-1].max()
    assert max(much[0], much[-1]) < 0.8 / 5 < much[1:-1].min()
    ratios = [spread_error_ratio(sums(*ensemble(spread))) for spread in (0.3, 2.5)]
    assert ratios[0] < 0.8 and ratios[1] > 1.5


def test_the_crps_is_that_of_all_pairs():
    y, error, b, x = (part[..., :200] for part in ensemble())
    noise = np.random.default_rng(4).standard_normal(x.shape)
    noisy = x + error * noise
    pairs = np.abs(noisy[:, None] - noisy[None]).sum(axis=(0, 1)) / (2 * 4 * 3)
    expected = (np.abs(noisy - y).mean(axis=0) - pairs).mean()
    assert crps(sums(y, error, b, x, noise)) == pytest.approx(expected, rel=1e-12)
    # a member that is missing is not there; the others are scored as by themselves
    x[2] = np.nan
    kept = [0, 1, 3]
    without, alone = sums(y, error, b, x, noise), sums(y, error, b, x[kept], noise[kept])
    assert crps(without) == pytest.approx(crps(alone), rel=1e-12)
    assert chi_square_with_spread(without) == pytest.approx(chi_square_with_spread(alone), rel=1e-12)
    assert np.isnan(rank_shares(without)).all(), "ranks among fewer are others"


def test_one_member_has_no_spread_and_nothing_known_has_no_score():
    y, error, b, x = (part[..., :50] for part in ensemble(members=1))
    found = numbers(sums(y, error, b, x))
    assert found["spread"] == 0 and found["known"] == 50
    lost = numbers(sums(y, error, b, x * np.nan))
    assert (lost["rows"], lost["known"]) == (50, 0) and np.isnan(lost["o_minus_a_mean"]) and np.isnan(lost["crps"])


# ---- groups, shares and noise


def test_bands_seasons_and_levels_are_those_of_the_calendar_and_the_map():
    assert band(np.array([-90, -60.1, -60, -30.1, -29, 0, 29.9, 30, 59.9, 60, 90])).tolist() == [
        *(0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4)
    ]
    months = np.array([f"2001-{month:02d}-28" for month in range(1, 13)], "datetime64[D]")
    assert season(months).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0]
    # sqrt(500 * 700) = 591.6
    assert nearest_level(np.array([591, 592, 10, 2000]), TEMPERATURE.level_hpa).tolist() == [5, 6, 0, 9]


def columns(n=400, seed=0, days=("2001-01-01", "2001-01-02", "2001-01-20", "2001-07-01", "2001-11-01")):
    rng = np.random.default_rng(seed)
    modality = rng.choice(["temperature", "olr"], n)
    level = np.where(modality == "olr", np.nan, rng.uniform(10, 1000, n))
    x = rng.normal(250, 2, (3, n))
    x[:, rng.random(n) < 0.1] = np.nan
    return {
        "time": rng.choice(np.array(days, "datetime64[ms]"), n),
        "modality": modality.astype(object),
        "level_hpa": level.astype(np.float32),
        "latitude": rng.uniform(-90, 90, n),
        "longitude": rng.uniform(0, 360, n),
        "station_id": np.array([f"s{i % 50}" for i in range(n)], object),
        "observed": rng.normal(250, 3, n).astype(np.float32),
        "error_std": rng.uniform(0.5, 2, n).astype(np.float32),
        "assimilated": modality == "temperature",
        "background": rng.normal(250, 2, n).astype(np.float32),
    }, x.astype(np.float32)


def gathered(told, x, *parts, members=(0, 1, 2)):
    """Part after part."""
    found = Gathering(SPEC, np.array(members), 5)
    for part in parts:
        found.add({name: values[part] for name, values in told.items()}, x[:, part])
    return summary(found, 20)


def same(one, other):
    """Sums of float64 in another order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == (pytest.approx(other, rel=1e-9, abs=1e-9) if isinstance(one, float | int) else other)


def test_days_in_any_order_give_the_same():
    told, x = columns()
    whole = gathered(told, x, np.arange(400))
    day = told["time"].astype("datetime64[D]")
    shares = [np.random.default_rng(int(i)).permutation(np.flatnonzero(day == d)) for i, d in enumerate(np.unique(day))]
    assert same(gathered(told, x, *shares[::-1]), whole)
    assert whole["dates"] == {"first": "2001-01-01", "last": "2001-11-01", "number": 5}
    assert whole["confidence"]["blocks"] == 4, "two days in a row are one block"


def test_a_modality_has_the_blocks_on_which_it_was_observed():
    """Longwave radiation on two of five days that make four blocks; a resample without any of it does not count."""
    told, x = columns(1000)
    day = told["time"].astype("datetime64[D]")
    rare = (told["modality"] == "olr") & ~np.isin(day, np.array(["2001-01-20", "2001-07-01"], "datetime64[D]"))
    found = gathered(told, x, np.flatnonzero(~rare))["confidence"]
    of = {each["modality"]: each for each in found["of"]}
    assert (found["blocks"], of["temperature"]["blocks"], of["olr"]["blocks"]) == (4, 4, 2)
    alone = gathered(told, x, np.flatnonzero(~rare & (told["modality"] == "olr")))["confidence"]
    assert alone["blocks"] == 2
    for name in ("crps", "o_minus_a_std"):
        widths = [np.diff(each[name]) for each in (of["olr"], *alone["of"])]
        assert widths[0] == pytest.approx(widths[1], rel=0.5) and widths[0] > 0


def test_noise_belongs_to_an_observation_and_a_member():
    content = [np.random.default_rng(0).standard_normal(50), np.repeat(np.arange(10), 5)]
    found = keyed_noise(5, 100, "olr", [0, 1, 2], content)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(keyed_noise(5, 100, "olr", [0, 1, 2], [c[order] for c in content]), found[:, order])
    np.testing.assert_array_equal(keyed_noise(5, 100, "olr", [2], content)[0], found[2])
    for other in ((6, 100, "olr"), (5, 101, "olr"), (5, 100, "temperature")):
        assert not np.isin(keyed_noise(*other, [0, 1, 2], content), found).any()
    assert len(np.unique(found)) == 150


def test_intervals_come_from_blocks_of_days():
    """Two blocks, in which O - A is +1 and -1: a resample has one of them twice or both; widened as two need it."""
    days = ("2001-01-01", "2001-01-02", "2001-06-01", "2001-06-02")
    told, x = columns(days=days)
    up = told["time"] < np.datetime64("2001-03-01")
    told["observed"] = np.where(up, 1, -1).astype(np.float32)
    found = gathered(told, np.zeros_like(x), np.arange(400))
    everywhere = {"level_hpa": ("all", None), "band": ("all",), "season": ("all",)}
    rows = [row for row in found["groups"] if all(row[name] in which for name, which in everywhere.items())]
    for of in found["confidence"]["of"]:
        (row,) = (r for r in rows if (r["modality"], r["assimilated"]) == (of["modality"], of["assimilated"]))
        mean, std = row["o_minus_a_mean"], row["o_minus_a_std"]
        (low, high), of_std = of["o_minus_a_mean"], of["o_minus_a_std"]
        assert low < mean < high and high - low == pytest.approx(widening(2) * 2)
        assert of_std[1] - of_std[0] == pytest.approx(widening(2) * std)
    alone = gathered(told, x, np.flatnonzero(up))
    assert alone["confidence"]["blocks"] == 1 and alone["confidence"]["of"] == []


def test_the_last_of_many_members_has_no_spread_to_count():
    """Observations that one of three members alone can tell of are as if none could."""
    told, x = columns()
    alone, none = x.copy(), x.copy()
    alone[1:, :50], none[:, :50] = np.nan, np.nan
    every = np.arange(400)
    assert same(gathered(told, alone, every), gathered(told, none, every))
    assert not same(gathered(told, x, every), gathered(told, none, every))


def test_a_share_without_any_row_adds_nothing():
    told, x = columns()
    assert same(gathered(told, x, np.arange(0), np.arange(400)), gathered(told, x, np.arange(400)))


def test_other_members_are_refused():
    told, x = columns()
    with pytest.raises(ValueError, match="3 members; the sums are of 2"):
        gathered(told, x, np.arange(400), members=(0, 1))


# ---- products of the chain


@pytest.fixture(scope="module")
def product(chain):
    """The analysis without longwave radiation, which was withheld."""
    return chain.folder / "run" / "analysis-without-olr.zarr"


@pytest.fixture(scope="module")
def found(product):
    return observation_space(product, bootstrap=20)


def by_pandas(product):
    """Every row of the files beside the mean and variance of its members."""
    table = pd.concat(pd.read_parquet(path) for path in sorted((product / "departures").glob("*.parquet")))
    members = np.stack(table.analysis).astype(float)
    table["a"], table["s"] = table.observed - members.mean(axis=1), members.var(axis=1, ddof=1)
    table["b"] = table.observed.astype(float) - table.background
    table["r"] = table.error_std.astype(float) ** 2
    table["band"] = pd.cut(table.latitude, [-91, -60, -30, 30, 60, 91], right=False, labels=False)
    table["season"] = table.time.dt.month % 12 // 3
    return table, members.shape[1]


@pytest.mark.parametrize("marginal", [[], ["level_hpa"], ["band"], ["season"], ["level_hpa", "band"]], ids=str)
def test_every_number_is_what_pandas_finds_in_the_same_files(product, found, marginal):
    table, m = by_pandas(product)
    names = ["90S-60S", "60S-30S", "30S-30N", "30N-60N", "60N-90N"], ["DJF", "MAM", "JJA", "SON"]
    expected = 0
    for modality, of in table.groupby("modality"):
        if "level_hpa" in marginal and of.level_hpa.isna().all():
            continue
        for key, part in of.groupby(marginal) if marginal else [((), of)]:
            place = dict(zip(marginal, key, strict=True))
            wanted = {"level_hpa": None if of.level_hpa.isna().all() else "all", "band": "all", "season": "all"} | place
            wanted |= {n: names[n == "season"][int(place[n])] for n in ("band", "season") if n in place}
            row = next(
                g for g in found["departures"]["groups"] if g.items() >= ({"modality": modality} | wanted).items()
            )
            check(row, part, m)
            expected += 1
    told = [g for g in found["departures"]["groups"] if all((g[n] in ("all", None)) != (n in marginal) for n in
            ("level_hpa", "band", "season"))]  # fmt: skip
    assert len(told) == expected > 0


def check(row, part, m):
    total = part.r + part.s * (m + 1) / m
    covariance = np.cov(part.a, part.b, ddof=0)
    expected = {
        "assimilated": row["modality"] != "olr",
        "rows": len(part),
        "known": len(part),
        "o_minus_b_mean": part.b.mean(),
        "o_minus_b_std": part.b.std(ddof=0),
        "o_minus_a_mean": part.a.mean(),
        "o_minus_a_std": part.a.std(ddof=0),
        "chi_square": (part.a**2 / part.r).mean(),
        "chi_square_with_spread": (part.a**2 / total).mean(),
        "spread_error_ratio": np.sqrt(total.mean() / (part.a**2).mean()),
        "r": covariance[0, 1],
        "hbht": covariance[1, 1] - covariance[0, 1],
        "haht": covariance[0, 1] - covariance[0, 0] + part.s.mean() / m,
        "r_stated": part.r.mean(),
        "spread": part.s.mean(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert sum(row["rank_shares"]) == pytest.approx(1) and len(row["rank_shares"]) == m + 1


def test_what_is_said_is_json_and_counts_what_was_withheld(product, found, tmp_path):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    counts = found["departures"]["counts"]
    assert counts["olr"]["withheld"] == counts["olr"]["rows"] > 0 == counts["olr"]["assimilated"]
    assert counts["temperature"]["assimilated"] == counts["temperature"]["rows"] > 0
    assert found["background"]["temperature"] == "climatology of the day" and "held_out" not in found
    write_csv(tmp_path / "groups.csv", {"analysis": {}, "analysis-without-olr": found})
    with (tmp_path / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["departures"]["groups"])
    assert {row["product"] for row in rows} == {"analysis-without-olr"}
    assert float(rows[0]["crps"]) == found["departures"]["groups"][0]["crps"]


def test_of_one_member_nothing_is_said_that_needs_a_spread():
    spec, n = StateSpec(Grid(4, 8), (TEMPERATURE,)), 6
    columns = {name: np.zeros(n) for name in ("latitude", "longitude", "background")}
    columns |= {"time": np.repeat(np.array(["2003-01-01", "2003-02-01"], "datetime64[D]"), 3)}
    columns |= {"modality": np.array(["temperature"] * n), "station_id": np.array(["a"] * n)}
    columns |= {"observed": np.arange(n) + 1.0, "error_std": np.ones(n), "level_hpa": np.full(n, 500.0)}
    columns["assimilated"] = np.zeros(n, bool)
    for members in (1, 2):
        made = Gathering(spec, np.arange(members), 0)
        made.add(columns, np.arange(members)[:, None] + np.zeros(n))
        told = summary(made, 20)
        numbers, sure = told["groups"][0], told["confidence"]["of"][0]
        for name in ("chi_square_with_spread", "spread_error_ratio", "spread"):
            assert (numbers[name] is None) is (members == 1) and (name not in sure) is (members == 1)
        assert (None in numbers["rank_shares"]) is (members == 1)
        assert numbers["crps"] is not None and "crps" in sure


def test_segments_in_any_order_are_the_whole_product(product, found):
    departures = open_departures(product)
    other = Gathering(open_analysis(product).spec, departures.members, 0)
    for table in list(departures.segments())[::-1]:
        other.add_table(table)
    assert same(summary(other, 20), summary(of_departures(product), 20)) and found["departures"]["members"] == 3


def test_figures_show_the_numbers(found):
    groups = found["departures"]["groups"]
    profile = departure_profiles(groups, "temperature")
    levels = [g for g in groups if g["level_hpa"] not in ("all", None) and g["band"] == "all"]
    drawn = {line.get_label(): line for line in profile.axes[1].lines}
    for label, name in (("O - B", "o_minus_b_std"), ("O - A", "o_minus_a_std")):
        assert dict(zip(drawn[label].get_ydata(), drawn[label].get_xdata(), strict=True)) == {
            g["level_hpa"]: g[name] for g in levels
        }
    stated = next(x for x in error_profiles(groups, "temperature").axes[0].lines if "stated" in x.get_label())
    assert sorted(stated.get_xdata() ** 2) == pytest.approx(sorted(g["r_stated"] for g in levels))
    assert departure_profiles(groups, "olr") is error_profiles(groups, "olr") is None
    ranks = observation_ranks(groups)
    assert [axes.get_title(loc="left") for axes in ranks.axes] == [
        "temperature, assimilated",
        "precipitation, assimilated",
        "olr, withheld",
    ]
    assert sum(bar.get_height() for bar in ranks.axes[2].patches) == pytest.approx(4)
    assert len(band_departures(groups).axes) == 3


# ---- held out


@pytest.fixture(scope="module")
def held_out(chain, product, tmp_path_factory):
    """Soundings at cell centres and levels, of the truth with noise, one of another day and one below all levels."""
    truth, analysis = xr.open_zarr(chain.folder / "archive.zarr"), open_analysis(product)
    days = np.arange(analysis.time[0], analysis.time[-1] + 1)
    rng, n = np.random.default_rng(9), 300
    frame = np.sort(rng.choice(np.searchsorted(days, analysis.time), n))
    frame[-1] = frame[-1] - 1  # a day that was not analysed
    row, column = rng.integers(0, 16, n), rng.integers(0, 32, n)
    level = rng.integers(0, 10, n)
    at = {
        "time": xr.DataArray(days[frame], dims="n"),
        "latitude": xr.DataArray(analysis.spec.grid.latitude[row], dims="n"),
        "longitude": xr.DataArray(analysis.spec.grid.longitude[column], dims="n"),
        "level": xr.DataArray(np.array(TEMPERATURE.level_hpa)[level], dims="n"),
    }
    noise = rng.standard_normal(n)
    value = truth.temperature.sel(at, method="nearest").to_numpy() + 0.7 * noise
    pressure = at["level"].to_numpy().astype(np.float32)
    pressure[0] = 1050
    seen = Stations(
        "temperature",
        days,
        frame,
        at["latitude"].to_numpy(),
        at["longitude"].to_numpy(),
        pressure,
        value.astype(np.float32),
        np.full(n, 0.7, np.float32),
        np.array([f"s{i}" for i in range(n)], object),
        np.zeros(n, np.int8),
    )
    path = tmp_path_factory.mktemp("held") / "observations"
    write_observations(path, analysis.spec, days, [seen], {"config": {}})
    inside = slice(1, n - 1)
    return path, {name: index[inside] for name, index in at.items()}, seen.value[inside].astype(float)


def test_held_out_stations_are_compared_with_the_members_at_their_place(product, held_out):
    path, at, value = held_out
    found = observation_space(product, path, bootstrap=20)["held_out"]
    members = (
        xr.open_zarr(product).temperature.sel(at, method="nearest").transpose("member", ...).to_numpy().astype(float)
    )
    error, spread = value - members.mean(axis=0), members.var(axis=0, ddof=1)
    row = found["groups"][0]
    assert (row["rows"], row["assimilated"], row["o_minus_b_mean"]) == (298, False, None)
    assert row["o_minus_a_mean"] == pytest.approx(error.mean(), abs=1e-4)
    assert row["o_minus_a_std"] == pytest.approx(error.std(), rel=1e-4)
    total = 0.49 + spread * 4 / 3
    assert row["chi_square_with_spread"] == pytest.approx((error**2 / total).mean(), rel=1e-4)
    assert row["spread_error_ratio"] == pytest.approx(np.sqrt(total.mean() / (error**2).mean()), rel=1e-4)
    assert row["crps"] > 0 and sum(row["rank_shares"]) == pytest.approx(1)
    by_level = {g["level_hpa"]: g["rows"] for g in found["groups"] if g["level_hpa"] != "all" and g["band"] == "all"}
    levels, counts = np.unique(at["level"], return_counts=True)
    assert by_level == dict(zip(levels.tolist(), counts.tolist(), strict=True))
    assert found["observations_sha256"] == open_observations(path).checksum
    profile = departure_profiles(found["groups"], "temperature")
    assert [line.get_label() for line in profile.axes[1].lines] == ["O - A"]


def test_reports_that_failed_their_quality_control_are_counted(product, tmp_path):
    """On the product's days; they are no rows."""
    analysis = open_analysis(product)
    days = np.arange(analysis.time[0] - 1, analysis.time[-1] + 1)
    frame = np.sort(np.r_[0, np.searchsorted(days, analysis.time)])
    n = len(frame)
    whole, value = np.zeros(n), np.full(n, 250, np.float32)
    place = (whole, whole, value + 250, value, value * 0 + 1)
    qc = np.ones(n, np.int8)
    qc[-1] = 0
    seen = Stations("temperature", days, frame, *place, np.array(["a"] * n, object), qc)
    write_observations(tmp_path / "rejected", analysis.spec, days, [seen], {"config": {}})
    counts = observation_space(product, tmp_path / "rejected", bootstrap=20)["held_out"]["counts"]
    told = {"rows": 1, "assimilated": 0, "withheld": 1, "unknown": 0, "rejected": len(analysis.time) - 1}
    assert counts == {"temperature": told}


def test_a_set_that_was_assimilated_is_refused(chain, product):
    for refuse in (of_held_out, check_held_out):
        given = chain.folder / "observations.zarr"
        with pytest.raises(ContractError, match=r"was assimilated in .*; observations that were not are needed"):
            refuse(product, open_observations(given) if refuse is of_held_out else given)


def written(folder, spec, days):
    n = len(days)
    whole, value = np.zeros(n), np.full(n, 250, np.float32)
    seen = Stations(
        "temperature", days, np.arange(n), whole, whole, value + 250, value, value * 0 + 1,
        np.array(["a"] * n, object), np.zeros(n, np.int8),
    )  # fmt: skip
    write_observations(folder, spec, days, [seen], {"config": {}})
    return open_observations(folder)


def test_another_grid_and_other_days_are_refused(product, tmp_path):
    analysis = open_analysis(product)
    coarse = StateSpec(Grid(8, 16), analysis.spec.modalities)
    with pytest.raises(ContractError, match=r"\(8, 16\)\) is not what .* holds"):
        of_held_out(product, written(tmp_path / "coarse", coarse, analysis.time[:1]))
    with pytest.raises(ContractError, match="observes nothing on any day of"):
        of_held_out(product, written(tmp_path / "later", analysis.spec, analysis.time[-1:] + 30))
