"""Ensemble optimal interpolation against dense matrices, the Kalman formula, and archives whose days are numbered."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from slams import enoi, enoi_archive
from slams.contracts import archive as archives
from slams.contracts.observations import Gridded, Operator, Stations
from slams.enoi import Choice, Ensemble, Gain, analyse
from slams.enoi_observations import Listed, from_observations, superobservations
from slams.localisation import WIDEST_KM, Localisation, distance_km, gaspari_cohn, mesh_points, unit_vectors
from slams.spec import Grid, Modality, StateSpec
from slams.statistics import Statistics

GRID, L, C = Grid(4, 8), 3, 2
SIZE = L * C * 4 * 8
ANYWHERE = Choice(np.inf, np.inf)


def rng(seed=0):
    return np.random.default_rng(seed)


def listed(n=20, seed=1):
    """Random linear observations of random places and days; several of them share each place, as levels do."""
    draw = rng(seed)
    operator = draw.standard_normal((n, SIZE))
    places = draw.integers(0, max(1, n // 2), n)
    latitude, longitude, day = 180 * draw.random(n) - 90, 360 * draw.random(n), draw.integers(-1, 2, n)
    points = unit_vectors(latitude[places], longitude[places])
    value, std = 10 * draw.standard_normal(n), draw.uniform(1, 3, n)
    day = np.where(np.arange(n) == 0, 1, day[places])  # so that the window is three days long
    found = Listed(value, std, points, day, np.zeros(n, int), lambda x: x.reshape(len(x), -1) @ operator.T)
    return found, operator


def ensemble(observed, n_members=50, seed=2):
    """Anomalies of few directions, so that days, channels and cells are correlated."""
    draw = rng(seed)
    x_KLCHW = (draw.standard_normal((n_members, 24)) @ draw.standard_normal((24, SIZE))).reshape(-1, L, C, *GRID.shape)
    return Ensemble(x_KLCHW[:, 1], observed.predict(x_KLCHW)), x_KLCHW


def textbook_gaspari_cohn(z):
    """Equation 4.10 as printed."""
    if z <= 1:
        return -(z**5) / 4 + z**4 / 2 + 5 * z**3 / 8 - 5 * z**2 / 3 + 1
    if z <= 2:
        return z**5 / 12 - z**4 / 2 + 5 * z**3 / 8 + 5 * z**2 / 3 - 5 * z + 4 - 2 / (3 * z)
    return 0


def rho_of(points_A3, day_A, points_B3, day_B, choice):
    """Localisation pair by pair, distance by the chord."""
    rho = np.empty((len(points_A3), len(points_B3)))
    for i, j in np.ndindex(*rho.shape):
        chord = np.linalg.norm(points_A3[i] - points_B3[j])
        z = 2 * np.arcsin(min(1, chord / 2)) * 6371.0 / choice.half_width_km
        days = abs(day_A[i] - day_B[j]) / choice.half_width_days
        rho[i, j] = textbook_gaspari_cohn(z) * textbook_gaspari_cohn(days)
    return rho


def dense(x_KLCHW, operator, observed, choice):
    """Covariances from whole windows in one matrix: of the centre day with the observations, and among these."""
    flat = x_KLCHW.reshape(len(x_KLCHW), -1)
    covariance = choice.inflation * flat.T @ flat / len(flat)
    centre = np.arange(SIZE).reshape(L, -1)[1]
    cells = np.tile(mesh_points(GRID.latitude, GRID.longitude), (C, 1))
    near = rho_of(cells, np.zeros(len(cells)), observed.point_N3, observed.day_N, choice)
    among = rho_of(observed.point_N3, observed.day_N, observed.point_N3, observed.day_N, choice)
    return near * (covariance @ operator.T)[centre], among * (operator @ covariance @ operator.T), covariance


CHOICES = [ANYWHERE, Choice(3000, 1.5, 0.6), Choice(9000, np.inf, 2.0), Choice(np.inf, 0.8)]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_gain_is_that_of_dense_matrices(choice):
    observed, operator = listed()
    anomalies, x = ensemble(observed)
    to_centre, among, _ = dense(x, operator, observed, choice)
    expected = to_centre @ np.linalg.inv(among + np.diag(observed.std_N**2))
    found = Gain(anomalies, observed, GRID, choice)(np.eye(20)).reshape(20, -1).T
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_a_large_gaussian_ensemble_gives_the_kalman_posterior():
    """Mean and covariance of the exact posterior, within the sampling error of K anomalies and M members."""
    observed, operator = listed(n=6)
    draw, n_anomalies, n_members = rng(3), 4000, 1500
    root = draw.standard_normal((SIZE, 12)) + 0.3 * np.eye(SIZE, 12)
    covariance = root @ root.T
    x = (draw.standard_normal((n_anomalies, 12)) @ root.T).reshape(n_anomalies, L, C, *GRID.shape)
    gain = Gain(Ensemble(x[:, 1], observed.predict(x)), observed, GRID, ANYWHERE)
    known = draw.standard_normal((L, C, *GRID.shape))
    mean, members = analyse(gain, observed, known, n_members=n_members)

    among = operator @ covariance @ operator.T + np.diag(observed.std_N**2)
    kalman = np.linalg.solve(among, operator @ covariance).T
    centre = np.arange(SIZE).reshape(L, -1)[1]
    prior = covariance[np.ix_(centre, centre)]
    posterior = (covariance - kalman @ operator @ covariance)[np.ix_(centre, centre)]
    increment = (kalman @ (observed.value_N - operator @ known.ravel()))[centre]
    found = mean.ravel() - known[1].ravel()
    # covariances of K anomalies err by sqrt(2 / K) = 2 %, which the gain hands on
    np.testing.assert_allclose(found, increment, atol=0.06 * np.abs(increment).max())
    deviation = members.reshape(n_members, -1) - mean.ravel()
    assert (np.abs(deviation.mean(axis=0)) < 5 * np.sqrt(np.diag(posterior) / n_members)).all()
    error = np.linalg.norm(deviation.T @ deviation / n_members - posterior) / np.linalg.norm(posterior)
    # M draws of some 12 directions: sqrt(13 / M) = 9 % at most, and 2 % from the gain; the prior errs by far more
    assert error < 0.12 < 0.5 < np.linalg.norm(prior - posterior) / np.linalg.norm(posterior)


@pytest.mark.parametrize("inflation", [0.5, 1.0, 2.0])
def test_the_spread_of_the_members_is_the_analysis_error(inflation):
    """With perturbed observations and inflated backgrounds; without either the spread is far too small."""
    observed, operator = listed()
    choice = replace(ANYWHERE, inflation=inflation)
    anomalies, x = ensemble(observed, n_members=1500)
    to_centre, among, covariance = dense(x, operator, observed, choice)
    centre = np.arange(SIZE).reshape(L, -1)[1]
    gain = np.linalg.solve(among + np.diag(observed.std_N**2), to_centre.T).T
    expected = np.diag(covariance)[centre] - np.einsum("gn,gn->g", gain, to_centre)
    _, members = analyse(Gain(anomalies, observed, GRID, choice), observed, np.zeros((L, C, 4, 8)), n_members=1500)
    found = members.reshape(1500, -1).var(axis=0)
    # relative error of a variance from M draws: sqrt(2 / M) = 3.7 % in each of 64 cells
    np.testing.assert_allclose(found, expected, rtol=5 * np.sqrt(2 / 1500))


def test_one_observation_gives_its_covariances_column():
    observed, operator = listed(n=1)
    anomalies, x = ensemble(observed)
    choice = Choice(4000, 5)
    to_centre, among, _ = dense(x, operator, observed, choice)
    mean, _ = analyse(Gain(anomalies, observed, GRID, choice), observed, np.zeros((L, C, 4, 8)))
    expected = to_centre[:, 0] * observed.value_N[0] / (among[0, 0] + observed.std_N[0] ** 2)
    np.testing.assert_allclose(mean.ravel(), expected, rtol=1e-5, atol=1e-6)
    far = distance_km(mesh_points(GRID.latitude, GRID.longitude), observed.point_N3)[:, 0] > 8000
    assert far.any() and not mean.reshape(C, -1)[:, far].any()


def test_the_size_of_the_blocks_does_not_matter(monkeypatch):
    observed, _ = listed()
    anomalies, _ = ensemble(observed)
    departure = rng(4).standard_normal((3, 20))
    whole = Gain(anomalies, observed, GRID, CHOICES[1])(departure)
    monkeypatch.setattr(enoi, "BLOCK", 7)
    np.testing.assert_allclose(Gain(anomalies, observed, GRID, CHOICES[1])(departure), whole, rtol=1e-10, atol=1e-12)


def test_a_member_depends_on_its_number_and_not_on_how_many_there_are():
    observed, _ = listed()
    gain, known = Gain(ensemble(observed)[0], observed, GRID, CHOICES[1]), np.zeros((L, C, 4, 8))
    few, many = (analyse(gain, observed, known, (7, 1), n)[1] for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)
    other = analyse(gain, observed, known, (7, 2), 2)[1]
    assert np.abs(other - few).max() > 0.1


def test_without_observations_the_analysis_is_climatology():
    empty = np.zeros(0)
    nothing = Listed(empty, empty, np.zeros((0, 3)), empty.astype(int), empty, lambda x: np.zeros((len(x), 0)))
    x = rng().standard_normal((9, 1, C, *GRID.shape))
    gain = Gain(Ensemble(x[:, 0], nothing.predict(x)), nothing, GRID, CHOICES[1])
    known = rng(1).standard_normal((1, C, *GRID.shape))
    mean, members = analyse(gain, nothing, known, n_members=2)
    np.testing.assert_array_equal(mean, known[0].astype(np.float32))
    assert np.abs(members - mean).min(axis=(1, 2, 3)).max() > 0


# Localisation


def test_gaspari_cohn_is_a_cone_convolved_with_itself_in_space():
    """G(z) = int h(x) h(x - z) d3x / int h^2 with h = max(0, 1 - |x|), summed over a cylinder's cells."""
    along, across = np.linspace(-1, 3, 801), (np.arange(400) + 0.5) / 400

    def overlap(z):
        a, b = np.meshgrid(along, across, indexing="ij")
        cone, moved = (np.maximum(0, 1 - np.hypot(a - shift, b)) for shift in (0, z))
        return (cone * moved * b).sum()

    z = np.array([0, 0.3, 0.7, 1, 1.3, 1.8, 2, 2.5])
    np.testing.assert_allclose(gaspari_cohn(z), [overlap(v) / overlap(0) for v in z], atol=1e-4)


def test_gaspari_cohn_begins_at_one_ends_at_twice_the_half_width_and_is_smooth():
    assert gaspari_cohn(np.array(0)) == 1
    assert gaspari_cohn(np.array([2, 2.0001, 5, np.inf])).max() < 1e-12
    assert gaspari_cohn(np.array(1)) == pytest.approx(5 / 24)
    h = 1e-5
    for z in (0.0, 1.0, 2.0):
        left, here, right = gaspari_cohn(np.array([z - h, z, z + h]))
        assert abs(right - here) < 3 * h and abs(here - left) < 3 * h
        assert abs((right - here) / h - (here - left) / h) < 1e-3


@pytest.mark.parametrize("half_width_km", [300, 3000, WIDEST_KM])
def test_the_localisation_is_positive_semi_definite_on_the_sphere(half_width_km):
    draw = rng(5)
    points = draw.standard_normal((300, 3))
    places = np.column_stack([points / np.linalg.norm(points, axis=1)[:, None], draw.integers(-2, 3, 300)])
    rho = Localisation(half_width_km, 1.5)(places, places)
    np.testing.assert_allclose(np.diag(rho), 1)
    assert np.linalg.eigvalsh(rho)[0] > -1e-9


def test_distances_are_those_of_the_globe():
    paris, sydney, pole = unit_vectors(np.array([48.8566, -33.8688, 90]), np.array([2.3522, 151.2093, 77]))
    # 16 960 km by published tables, for the sphere and for the ellipsoid within 0.3 %
    assert distance_km(paris[None], sydney[None])[0, 0] == pytest.approx(16_960, rel=3e-3)
    assert distance_km(paris[None], pole[None])[0, 0] == pytest.approx((90 - 48.8566) / 360 * 40_030, rel=1e-4)


# Observations as a list

SPEC = StateSpec(GRID, (Modality("temperature", "state", "K", "air_temperature", (500, 850)),))
OPERATORS = [Operator("identity"), Operator("block_mean", 2), Operator("subsample", 2)]


def gridded(operator, x_LCHW, mask=None):
    f = operator.factor
    if operator.kind == "block_mean":
        value = np.stack([x_LCHW[..., i::f, j::f] for i, j in itertools.product(range(f), repeat=2)]).mean(axis=0)
    else:
        value = x_LCHW[..., f // 2 :: f, f // 2 :: f]
    mask = np.ones(value.shape, bool) if mask is None else mask
    return Gridded("temperature", operator, value.astype(np.float32), np.full(value.shape, 0.5, np.float32), mask)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)
def test_a_window_predicts_the_observations_that_were_made_of_it(operator):
    x = rng().standard_normal((5, C, *GRID.shape)).astype(np.float32)
    seen = gridded(operator, x, mask=rng(1).random(gridded(operator, x).value.shape) < 0.7)
    found = from_observations([seen], SPEC, np.arange(-2, 3))
    assert found.half_window == 2 and len(found.value_N) == seen.mask.sum()
    np.testing.assert_allclose(found.predict(x[None])[0], found.value_N, atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)
def test_an_observation_stands_where_and_when_it_was_made(operator):
    """Fields that hold their own latitude, day and channel."""
    latitude = np.broadcast_to(GRID.latitude[:, None], GRID.shape)
    fields = np.stack([latitude, latitude + 1000])[None] + 10_000 * np.arange(3)[:, None, None, None]
    found = from_observations([gridded(operator, fields)], SPEC, np.arange(-1, 2))
    day, rest = np.divmod(found.value_N + 500, 10_000)
    np.testing.assert_array_equal(found.day_N, day - 1)
    np.testing.assert_array_equal(found.channel_N, np.round((rest - 500) / 1000))
    north = np.rad2deg(np.arcsin(found.point_N3[:, 2]))
    np.testing.assert_allclose(north, rest - 500 - 1000 * found.channel_N, atol=1e-3)


def test_a_station_sees_its_own_place_level_and_day():
    """Fields linear in latitude and in log-pressure, which interpolation between neighbours keeps exactly."""
    n, draw = 12, rng(9)
    latitude, longitude, frame = draw.uniform(-60, 60, n), draw.uniform(0, 360, n), draw.integers(0, 3, n)
    level, qc = draw.uniform(510, 840, n), (np.arange(n) == 4).astype(np.int8)
    window = np.arange(np.datetime64("2001-01-01"), np.datetime64("2001-01-04"))
    value, std = draw.standard_normal(n), draw.uniform(1, 2, n)
    seen = Stations("temperature", window, frame, latitude, longitude, level, value, std, np.full(n, "a"), qc)
    found = from_observations([seen], SPEC, np.array([0, 1, 2]))
    good = qc == 0
    np.testing.assert_array_equal(found.value_N, value[good])
    np.testing.assert_array_equal(found.std_N, std[good])
    np.testing.assert_array_equal(found.day_N, frame[good])
    np.testing.assert_array_equal(found.channel_N, np.log(level[good]) > np.log(500 * 850) / 2)
    np.testing.assert_allclose(np.rad2deg(np.arcsin(found.point_N3[:, 2])), latitude[good])
    height = np.log([500.0, 850.0])[None, :, None, None] + np.arange(-2, 3)[:, None, None, None] * 100
    x = np.broadcast_to(height + GRID.latitude[:, None] / 10, (5, C, *GRID.shape)).copy()
    expected = np.log(level) + frame * 100 + latitude / 10
    np.testing.assert_allclose(found.predict(x[None])[0], expected[good], rtol=1e-6)


@pytest.mark.parametrize("days", [(-1, 0), (0, 1)], ids=["end", "beginning"])
def test_a_window_cut_off_by_the_record_predicts_the_same(days):
    x = rng().standard_normal((5, C, *GRID.shape)).astype(np.float32)
    whole = from_observations([gridded(OPERATORS[1], x)], SPEC, np.arange(-2, 3))
    cut = from_observations([gridded(OPERATORS[1], x[np.add(days, 2)])], SPEC, np.array(days))
    assert cut.half_window == 1
    same = np.isin(whole.day_N, days)
    np.testing.assert_allclose(cut.predict(x[None, 1:4]), whole.predict(x[None])[:, same], rtol=1e-6)


def test_what_is_masked_or_missing_changes_nothing():
    """A wild value that is masked, one that is not a number, and ones never made: the same analysis."""
    x = rng().standard_normal((3, C, *GRID.shape)).astype(np.float32)
    seen, mask = gridded(OPERATORS[1], x), np.ones((3, C, 2, 4), bool)
    mask[1, 0, 0, 2] = mask[2, 1, 1, 0] = False
    wild = replace(seen, value=np.where(mask, seen.value, 1e9), mask=mask)
    missing = replace(seen, value=np.where(mask, seen.value, np.nan), error_std=np.where(mask, 0.5, np.nan))
    useless = replace(seen, error_std=np.where(mask, seen.error_std, 1e9))
    anomalies = rng(1).standard_normal((30, 3, C, *GRID.shape)).astype(np.float32)

    def analysed(given):
        found = from_observations([given], SPEC, np.arange(-1, 2))
        gain = Gain(Ensemble(anomalies[:, 1], found.predict(anomalies)), found, GRID, CHOICES[2])
        return analyse(gain, found, np.zeros((3, C, *GRID.shape), np.float32))[0]

    np.testing.assert_array_equal(analysed(wild), analysed(missing))
    np.testing.assert_allclose(analysed(wild), analysed(useless), atol=1e-6)
    assert np.abs(analysed(wild) - analysed(seen)).max() > 1e-3


def test_observations_of_one_thing_may_be_averaged_without_loss():
    """Five measurements of each quantity, of unequal errors: the same analysis from their means."""
    observed = replace(listed(n=8)[0], channel_N=np.arange(8))
    draw, copy = rng(6), np.tile(np.arange(8), 5)
    repeated = Listed(
        observed.value_N[copy] + draw.standard_normal(40),
        draw.uniform(0.5, 2, 40),
        observed.point_N3[copy],
        observed.day_N[copy],
        observed.channel_N[copy],
        lambda x: observed.predict(x)[:, copy],
    )
    mean = superobservations(repeated, 8)
    assert len(mean.value_N) == 8
    x = ensemble(observed)[1]
    known = np.zeros((L, C, *GRID.shape))
    full, few = (
        analyse(Gain(Ensemble(x[:, 1], o.predict(x)), o, GRID, CHOICES[1]), o, known)[0] for o in (repeated, mean)
    )
    np.testing.assert_allclose(few, full, atol=1e-5)


@pytest.mark.parametrize("most", [12, 30, 60, 300])
def test_superobservations_are_as_many_as_wanted_and_means_of_neighbours(most):
    latitude = np.tile(np.broadcast_to(Grid(10, 40).latitude[:, None], (10, 40)).ravel(), 2)
    points = np.tile(mesh_points(Grid(10, 40).latitude, Grid(10, 40).longitude), (2, 1))
    day = np.repeat([-1, 0], 400)
    std, channel = np.full(800, 2.0), np.zeros(800, int)
    full = Listed(latitude, std, points, day, channel, lambda x: x[:, 0, 0].reshape(len(x), -1))
    few = superobservations(full, most)
    assert most / 3 <= len(few.value_N) <= most
    assert set(few.day_N) == {-1, 0}
    counts = 4.0 / few.std_N**2
    np.testing.assert_allclose(counts.sum(), 800)
    np.testing.assert_allclose(counts, counts.round())
    np.testing.assert_allclose(few.predict(latitude.reshape(1, 1, 1, 20, 40))[0], few.value_N)
    size = np.sqrt(4 * np.pi / (len(few.value_N) / 2))
    here = np.rad2deg(np.arcsin(few.point_N3[:, 2]))
    assert np.abs(here - few.value_N).max() < np.rad2deg(size) / 2


def test_few_observations_are_left_alone():
    observed, _ = listed()
    assert superobservations(observed, 20) is observed


# Archives

FIRST = np.datetime64("2001-01-01")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Five years whose every field holds the number of its day; a run ends within 2002; one channel misses a day."""
    folder = tmp_path_factory.mktemp("archive") / "archive.zarr"
    time = np.arange(FIRST, np.datetime64("2006-01-01"))
    run = (time >= np.datetime64("2002-06-01")).astype(np.int32)
    splits = {"train": [2001, 2003], "validation": [2004, 2004], "test": [2005, 2005]}
    root = archives.create(folder, SPEC, time, run, {"config": {}, "splits": splits, "missing_days": {}})
    x = np.broadcast_to(np.arange(len(time), dtype=np.float32)[:, None, None, None], (len(time), C, *GRID.shape)).copy()
    x[np.datetime64("2003-06-10") - FIRST == np.arange(len(time)), 1] = np.nan
    x[np.datetime64("2001-06-10") - FIRST == np.arange(len(time)), 1, 2, 3] = np.nan
    archives.write_block(root, "temperature", 0, x)
    archives.finish(folder, statistics(), [1.0, 1.0])
    return archives.open_archive(folder)


def statistics(mean=0.0):
    harmonics = np.full((1, C, *GRID.shape), mean)
    return Statistics(harmonics, np.ones((C, 1, 1)), np.zeros(C, bool), np.ones((C, *GRID.shape), bool))


def three_days():
    """One observation on each of three days: the mean of channel 0 plus 1000 times that of channel 1."""
    return Listed(
        np.zeros(3), np.ones(3), unit_vectors(np.zeros(3), np.zeros(3)), np.arange(-1, 2), np.zeros(3, int),
        lambda x: x.mean(axis=(-2, -1)) @ np.array([1.0, 1000.0]),
    )  # fmt: skip


def test_anomalies_are_whole_windows_of_the_season_of_the_train_years(opened):
    day = np.datetime64("2005-06-03")
    found = enoi_archive.season_ensemble(opened, statistics(), day, three_days(), 20)
    days = FIRST + found.centre_KCHW[:, 0, 0, 0].astype(int)
    across = ["2002-05-31", "2002-06-01"]  # a window may not cross the end of a run
    missing = ["2003-06-09", "2003-06-10", "2003-06-11"]  # nor hold a day without its channel
    left_out = np.array([*across, *missing], "datetime64[D]")
    # a year is no whole number of days, which moves the edges of the season by less than one
    sure, possible = (
        np.concatenate([np.datetime64(f"{y}-06-03") + np.arange(-n, n + 1) for y in (2001, 2002, 2003)])
        for n in (19, 21)
    )
    assert set(np.setdiff1d(sure, left_out)) <= set(days) <= set(np.setdiff1d(possible, left_out))
    hole = days == np.datetime64("2001-06-10")
    np.testing.assert_array_equal(found.centre_KCHW[hole, 1, 2, 3], 0)
    around = ~np.isin(days, np.datetime64("2001-06-10") + np.arange(-1, 2))
    number = (days - FIRST).astype(float)[around, None] + np.arange(-1, 2)
    np.testing.assert_allclose(found.predicted_KN[around], 1001 * number, rtol=1e-6)


def test_anomalies_are_departures_from_climatology(opened):
    day = np.datetime64("2005-03-03")
    plain, departures = (
        enoi_archive.season_ensemble(opened, statistics(mean), day, three_days(), 10) for mean in (0.0, 12.0)
    )
    np.testing.assert_allclose(plain.centre_KCHW - departures.centre_KCHW, 12, rtol=1e-6)


def test_a_season_wraps_over_the_new_year(opened):
    found = enoi_archive.season_ensemble(opened, statistics(), np.datetime64("2005-01-02"), three_days(), 5)
    months = (FIRST + found.centre_KCHW[:, 0, 0, 0].astype(int)).astype("datetime64[M]").astype(int) % 12
    assert set(months) == {0, 11}


def test_a_train_date_does_not_see_its_own_season(opened):
    found = enoi_archive.season_ensemble(opened, statistics(), np.datetime64("2002-08-03"), three_days(), 20)
    years = (FIRST + found.centre_KCHW[:, 0, 0, 0].astype(int)).astype("datetime64[Y]").astype(int) + 1970
    assert set(years) == {2001, 2003}


def test_many_anomalies_are_drawn_evenly(opened, monkeypatch):
    monkeypatch.setattr(enoi_archive, "MOST_ANOMALIES", 9)
    found = enoi_archive.season_ensemble(opened, statistics(), np.datetime64("2005-09-03"), three_days(), 20)
    years = (FIRST + found.centre_KCHW[:, 0, 0, 0].astype(int)).astype("datetime64[Y]").astype(int) + 1970
    np.testing.assert_array_equal(np.bincount(years)[2001:], [3, 3, 3])


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    """Train, validation and test years of smooth noise around a constant; a place knows nothing of the far side."""
    folder = tmp_path_factory.mktemp("weather") / "archive.zarr"
    time = np.arange(FIRST, np.datetime64("2004-01-01"))
    splits = {"train": [2001, 2001], "validation": [2002, 2002], "test": [2003, 2003]}
    attributes = {"config": {}, "splits": splits, "missing_days": {}}
    root = archives.create(folder, SPEC, time, np.zeros(len(time), np.int32), attributes)
    cells = mesh_points(GRID.latitude, GRID.longitude)
    near = np.exp(-((distance_km(cells, cells) / 3000) ** 2))
    noise = rng(8).standard_normal((len(time), C, len(cells))) @ np.linalg.cholesky(near + 1e-6 * np.eye(len(cells))).T
    archives.write_block(root, "temperature", 0, (250 + noise.reshape(len(time), C, *GRID.shape)).astype(np.float32))
    archives.finish(folder, statistics(250.0), [1.0, 1.0])
    return archives.open_archive(folder)


def seen_on(weather):
    """Every second cell of a day, with a small error."""

    def observe(day):
        x = weather.read(weather.index_of([day]))
        noise = 0.1 * rng(int(day.astype(int))).standard_normal((1, C, 2, 4))
        seen = gridded(Operator("subsample", 2), x + np.kron(noise, np.ones((2, 2))))
        return from_observations([replace(seen, error_std=np.full(seen.value.shape, 0.1))], SPEC, np.array([0]))

    return observe


DATES = np.arange("2002-02-01", "2002-12-01", 30, dtype="datetime64[D]")


def test_tuning_finds_the_scale_and_scores_as_brute_force_does(weather):
    blind, far, near = Choice(4000, 1, 1e-9), Choice(np.inf, 1, 1.0, 15), Choice(6000, 1, 1.0, 15)
    best, table = enoi_archive.tune(weather, statistics(250.0), DATES, seen_on(weather), [blind, far, near])
    assert best == near and table[near] < min(table[far], table[blind])
    truth = weather.read(weather.index_of(DATES))
    area = GRID.area_weights
    # an analysis that trusts nothing is climatology
    of_climatology = np.sqrt((area * (truth - 250) ** 2).sum(axis=(-2, -1)).mean(axis=0)).mean()
    assert table[blind] == pytest.approx(of_climatology, rel=1e-4)
    found = [enoi_archive.analysis(weather, statistics(250.0), d, seen_on(weather)(d), near)[0] for d in DATES]
    assert table[near] == pytest.approx(
        np.sqrt((area * (truth - np.stack(found)) ** 2).sum(axis=(-2, -1)).mean(axis=0)).mean(), rel=1e-5
    )


def test_tuning_by_crps_finds_the_inflation_that_rmse_hardly_sees(weather):
    """Members of ten times the background variance are spread far too wide, however good their mean."""
    few = [Choice(6000, 1, a, 60) for a in (1.0, 10.0)]
    observe, day = seen_on(weather), DATES[0]
    best, table = enoi_archive.tune(weather, statistics(250.0), DATES[:4], observe, few, n_members=6)
    assert best.inflation == 1 and table[few[1]] > 1.2 * table[few[0]]
    _, alone = enoi_archive.tune(weather, statistics(250.0), [day], observe, few[:1], n_members=6)
    _, members = enoi_archive.analysis(weather, statistics(250.0), day, observe(day), few[0], 0, 6)
    truth, area = weather.read(weather.index_of([day]))[0], GRID.area_weights
    apart = np.abs(members[:, None] - members[None]).sum(axis=(0, 1)) / (2 * 6 * 5)
    crps = np.abs(members - truth).mean(axis=0) - apart
    assert alone[few[0]] == pytest.approx((area * crps).sum(axis=(-2, -1)).mean(), rel=1e-5)


def test_members_of_a_date_err_like_their_spread(weather):
    """Over dates, the truth lies about the analysis as the members do."""
    known, choice = statistics(250.0), Choice(9000, 1, 1.0, 60)
    square, spread = [], []
    for day in DATES:
        mean, members = enoi_archive.analysis(weather, known, day, seen_on(weather)(day), choice, 3, 8)
        square.append((mean - weather.read(weather.index_of([day]))[0]) ** 2)
        spread.append(members.var(axis=0, ddof=1))
    # some 200 independent numbers: sqrt(2 / 200) = 10 %; the gain of 120 anomalies is not the best one
    assert np.mean(spread) / np.mean(square) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda w: Choice(0, 1), "half_width_km: 0 is not allowed; more than 0"),
        (lambda w: Choice(12_000, 1), "half_width_km: 12000 is not allowed; up to 10008, or infinite"),
        (lambda w: Choice(1000, float("nan")), "half_width_days: nan is not allowed"),
        (lambda w: Choice(1000, 1, -1), "inflation: -1 is not allowed"),
        (lambda w: Choice(1000, 1, 1, 0), "season_days: 0 is not allowed"),
        (lambda w: tuned(w, ["2003-01-05"]), "dates: 2003-01-05 is not of the validation years, 2002-01-01"),
        (lambda w: tuned(w, ["2001-01-05"]), "dates: 2001-01-05 is not of the validation years"),
        (lambda w: tuned(w, []), "dates: none given"),
        (lambda w: tuned(w, DATES, []), "choices: none given"),
        (lambda w: replace(listed()[0], value_N=np.full(20, np.nan)), "value: not a finite number"),
        (lambda w: replace(listed()[0], std_N=np.zeros(20)), "std: 0.0 is not allowed"),
        (lambda w: replace(listed()[0], day_N=np.zeros(3)), r"observations: \[20, 20, 20, 3, 20\] values"),
        (lambda w: from_observations([], SPEC, np.zeros(1)), "observations: none of any modality"),
        (lambda w: superobservations(replace(listed()[0], channel_N=np.arange(20)), 3), "observations: at most 3"),
        (lambda w: another_ensemble(), "ensemble: sees 5 observations, not 20"),
        (lambda w: too_many_members(), "members: 51 are more than the 50"),
        (lambda w: one_window(w), "season_days: 3 around 2001-07-01 leave no two whole train windows"),
    ],
)
def test_a_mistake_is_one_sentence(weather, call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call(weather)


def tuned(weather, dates, choices=(ANYWHERE,)):
    days = np.array(dates, "datetime64[D]")
    return enoi_archive.tune(weather, statistics(250.0), days, seen_on(weather), choices)


def another_ensemble():
    return Gain(Ensemble(np.zeros((3, C, 4, 8)), np.zeros((3, 5))), listed()[0], GRID, ANYWHERE)


def too_many_members():
    observed, _ = listed()
    return analyse(Gain(ensemble(observed)[0], observed, GRID, ANYWHERE), observed, np.zeros((L, C, 4, 8)), (0, 0), 51)


def one_window(weather):
    return enoi_archive.season_ensemble(weather, statistics(250.0), np.datetime64("2001-07-01"), three_days(), 3)


def test_too_many_observations_are_refused_by_the_gain_and_averaged_by_the_analysis(weather, monkeypatch):
    monkeypatch.setattr(enoi, "MOST_OBSERVATIONS", 12)
    monkeypatch.setattr(enoi_archive, "MOST_OBSERVATIONS", 12)
    observed, _ = listed()
    with pytest.raises(ValueError, match="observations: 20 are more than 12"):
        Gain(ensemble(observed)[0], observed, GRID, ANYWHERE)
    day, known = DATES[0], statistics(250.0)
    mean, _ = enoi_archive.analysis(weather, known, day, seen_on(weather)(day), Choice(6000, 1))
    truth = weather.read(weather.index_of([day]))[0]
    assert np.mean((mean - truth) ** 2) < 0.9 * np.mean((250 - truth) ** 2)
