"""Simulated observing systems: what they see of a known truth, where, and when."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep import observe
from data_prep.config import (
    ArchiveConfig,
    EncodeConfig,
    ObserveConfig,
    ObservedConfig,
    OnGridConfig,
    PrepConfig,
    SourcesConfig,
)
from data_prep.masks import SwathConfig, random_network, random_places, seen_by_swath
from data_prep.shards import write_shards
from slams.contracts import archive
from slams.contracts.envelope import ContractError, written_aside
from slams.contracts.observations import Operator, open_observations
from slams.rng import normal
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics

LEVELS = (300, 850)
GRID = Grid(16, 32)
SPEC = StateSpec(GRID, (Modality("temperature", "state", "K", "air_temperature", LEVELS), PRECIPITATION, OLR))
DAYS = np.datetime64("2001-12-30") + np.arange(12)  # two days of the year before the split
STD = [10.0, 5.0, 4.0, 30.0]
LAND = (np.arange(32) < 16) * np.ones((16, 1))
NOTHING = ObservedConfig(operator="none")


@pytest.fixture(scope="module")
def truth():
    """Temperature by latitude and level, rain on land only, longwave radiation at random; (T, C, H, W)."""
    x = np.random.default_rng(0).normal(240, 30, (len(DAYS), SPEC.n_channels, *GRID.shape)).astype(np.float32)
    x[:, 0], x[:, 1] = 240 + GRID.latitude[:, None] / 3, 280 - GRID.latitude[:, None] / 6
    x[:, 2] = np.where(LAND > 0, np.abs(x[:, 2]), np.nan)
    return x


@pytest.fixture(scope="module")
def whole(tmp_path_factory, truth):
    """The configuration of an archive of that truth, which stands."""
    path = tmp_path_factory.mktemp("truth") / "archive"
    attributes = {"config": {}, "splits": {"test": [2002, 2002]}, "missing_days": {}}
    group = archive.create(path, SPEC, DAYS, np.zeros(len(DAYS), int), attributes)
    for modality in SPEC.modalities:
        part, shape = truth[:, SPEC.channels(modality.name)], archive.field_shape(modality, GRID.shape)
        archive.write_block(group, modality.name, 0, part.reshape(len(DAYS), *shape))
    observed = np.isfinite(truth[0])
    one = np.ones((SPEC.n_channels, 1, 1), np.float32)
    statistics = Statistics(np.zeros_like(one)[None], one, np.zeros(4, bool), observed, {"land_fraction": LAND})
    archive.finish(path, statistics, STD)
    years = {"train_years": [1990, 1990], "validation_years": [1991, 1991], "test_years": [2002, 2002]}
    return PrepConfig(ArchiveConfig(str(path), SourcesConfig("none"), *GRID.shape, **years))


@pytest.fixture
def simulate(tmp_path, whole):
    """Observe with the systems given, and open what was observed."""
    numbers = iter(range(100))

    def run(seed=0, **systems):
        path = tmp_path / str(next(numbers))
        systems = {name: NOTHING for name in SPEC.names} | systems
        config = ObserveConfig(str(path), seed=seed, **systems)
        observe.run(config, whole)
        return open_observations(path)

    return run


def system(operator="identity", **options):
    return ObservedConfig(operator=operator, **options)


def fields(found, name="olr"):
    return found.read(name, found.time)


# ---- what is seen, and with which error


def test_only_so_many_days_are_held_as_fit(simulate, monkeypatch):
    systems = {"temperature": system(), "precipitation": system("stations"), "olr": system("block_mean", factor=4)}
    at_once, read, sizes = simulate(**systems), archive.Archive.read, []
    monkeypatch.setattr(archive, "BLOCK_BYTES", 3 * 4 * SPEC.n_channels * GRID.n_latitude * GRID.n_longitude)
    monkeypatch.setattr(archive.Archive, "read", lambda self, where: sizes.append(len(where)) or read(self, where))
    assert simulate(**systems).checksum == at_once.checksum and max(sizes) == 3


def test_errors_are_the_keyed_noise_of_the_day_and_the_modality(simulate, truth):
    seen = fields(simulate(seed=5, olr=system("block_mean", factor=4, noise=0.5)))
    for day, value in zip(DAYS[2:], seen.value, strict=True):
        x = truth[(day - DAYS[0]).astype(int), 3].reshape(4, 4, 8, 4).mean(axis=(1, 3))
        error = normal(5, "observation", int(day.astype(int)), 2, shape=(1, 4, 8))[0]
        np.testing.assert_allclose(value[0], x + 0.5 * STD[3] * error, rtol=1e-5)
    np.testing.assert_allclose(seen.error_std, 0.5 * STD[3])


def test_every_level_may_have_an_error_of_its_own(simulate):
    seen = fields(simulate(temperature=system(noise_by_level=[0.2, 0.6])), "temperature")
    np.testing.assert_allclose(seen.error_std[:, :, 0, 0], [[2.0, 3.0]] * 10, rtol=1e-6)
    departure = seen.value - fields(simulate(temperature=system(noise=1e-6)), "temperature").value
    np.testing.assert_allclose(departure.std(axis=(0, 2, 3)), [2.0, 3.0], rtol=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"masks": ["land"]},
        {"masks": ["ocean"]},
        {"masks": ["network"], "share": 0.1},
        {"masks": ["swath"]},
        {"masks": ["land", "network", "swath"], "share": 0.5},
        {"every_days": 3},
    ],
)
def test_a_mask_takes_away_and_changes_nothing_of_what_it_leaves(simulate, options):
    all_, some = fields(simulate(olr=system())), fields(simulate(olr=system(**options)))
    assert 0 < some.mask.sum() < all_.mask.sum()
    np.testing.assert_array_equal(some.value[some.mask], all_.value[some.mask])
    assert np.isnan(some.value[~some.mask]).all()


def test_land_and_ocean_are_what_mostly_is(simulate):
    land, ocean = (fields(simulate(olr=system("block_mean", factor=4, masks=[m]))).mask for m in ("land", "ocean"))
    assert land[..., :4].all() and not land[..., 4:].any() and (land ^ ocean).all()


def test_every_third_day_from_the_first_of_the_split(simulate):
    seen = fields(simulate(olr=system(every_days=3)))
    assert seen.mask.all(axis=(1, 2, 3)).tolist() == [i % 3 == 0 for i in range(10)]


def test_of_the_block_means_every_second_is_kept(simulate):
    seen = fields(simulate(olr=system("block_mean", factor=2, keep_every=4)))
    assert seen.operator == Operator("block_mean", 2, Operator("subsample", 4)) and seen.value.shape == (10, 1, 2, 4)


# ---- stations


def test_stations_stand_where_they_stood_and_report_what_the_field_is_there(simulate):
    found = simulate(temperature=system("stations", share=0.1, noise=1e-6))
    seen = found.read_stations("temperature", found.time)
    n = round(0.1 * 16 * 32)
    assert len(seen.value) == 10 * n * 2 and len(set(seen.station_id)) == n
    for i in range(n):
        here = seen.station_id == f"temperature-{i:05d}"
        assert len(set(seen.latitude[here])) == len(set(seen.longitude[here])) == 1 and here.sum() == 20
    inside = np.abs(seen.latitude) < GRID.latitude[0]  # beyond, the field is even in the distance from the pole
    warm, cold = 280 - seen.latitude / 6, 240 + seen.latitude / 3
    expected = np.where(seen.level_hpa == 850, warm, cold)
    np.testing.assert_allclose(seen.value[inside], expected[inside], atol=0.02)


def test_reports_have_the_error_that_they_state(simulate):
    exact, noisy = (simulate(temperature=system("stations", share=0.2, noise=n)) for n in (1e-6, 0.3))
    exact, noisy = (found.read_stations("temperature", found.time) for found in (exact, noisy))
    np.testing.assert_allclose(noisy.error_std, np.where(noisy.level_hpa == 850, 1.5, 3.0), rtol=1e-6)
    scaled = (noisy.value - exact.value) / noisy.error_std
    assert abs(scaled.mean()) < 4 / np.sqrt(len(scaled)) and scaled.std() == pytest.approx(1, abs=0.06)


def test_no_gauge_floats_on_the_ocean_and_masks_hold_for_stations(simulate):
    found = simulate(precipitation=system("stations", share=0.5), olr=system("stations", share=0.5, masks=["ocean"]))
    rain, olr = (found.read_stations(name, found.time) for name in ("precipitation", "olr"))
    assert (rain.longitude < 180).all() and len(set(rain.station_id)) > 80
    assert (olr.longitude > 180 - 12).all() and len(set(olr.station_id)) > 80


def test_more_stations_are_the_same_ones_and_others():
    few, many = random_places(50, 1, 0), random_places(200, 1, 0)
    np.testing.assert_array_equal(few, np.array(many)[:, :50])
    assert not np.array_equal(few, random_places(50, 1, 1)) and not np.array_equal(few, random_places(50, 2, 0))


def test_stations_are_uniform_on_the_sphere():
    """The mean position, and the share within 30 degrees of a pole, 1 - sin 60."""
    latitude, longitude = np.deg2rad(random_places(20_000, 0, 0))
    mean = [(np.cos(latitude) * f(longitude)).mean() for f in (np.cos, np.sin)] + [np.sin(latitude).mean()]
    assert np.abs(mean).max() < 4 / np.sqrt(3 * 20_000)
    assert (np.abs(latitude) > np.pi / 3).mean() == pytest.approx(1 - np.sin(np.pi / 3), abs=0.01)


def test_a_random_network_is_a_share_of_the_cells_in_proportion_to_their_area():
    area = GRID.area_weights.ravel()
    chosen = sum(random_network(area, 0.05, seed, 0) for seed in range(400))
    assert chosen.sum() == 400 * round(0.05 * 512)
    rows = chosen.reshape(GRID.shape).sum(axis=1) / chosen.sum()
    np.testing.assert_allclose(rows, GRID.area_weights.sum(axis=1), atol=0.015)
    assert (random_network(area, 0.05, 3, 0) <= random_network(area, 0.2, 3, 0)).all()


# ---- the orbit


def test_the_orbit_is_that_of_a_weather_satellite():
    """NOAA-20: 98.7 degrees, 824 km, 14.2 orbits a day; Landsat 8: 98.2 degrees, 14.57 (233 orbits in 16 days)."""
    assert SwathConfig(inclination_deg=98.7).orbits_per_day == pytest.approx(14.2, abs=0.03)
    assert SwathConfig(inclination_deg=98.2).orbits_per_day == pytest.approx(233 / 16, abs=0.03)


def test_the_track_crosses_the_equator_at_one_local_hour_and_turns_where_the_orbit_does():
    config = SwathConfig(crossing_hour=13.5)
    latitude, longitude = config.track(np.datetime64("2003-05-06"))
    assert latitude.max() == pytest.approx(180 - 98.7, abs=0.01)
    north = np.flatnonzero((latitude[:-1] < 0) & (latitude[1:] >= 0))
    local_hour = (longitude[north] / 15 + north * 10 / 3600) % 24
    assert len(north) in (14, 15) and np.abs(local_hour - 13.5).max() < 0.02


def rotation(angle, axis):
    c, s = np.cos(angle), np.sin(angle)
    i, j = {"x": (1, 2), "z": (0, 1)}[axis]
    found = np.zeros((len(angle), 3, 3)) + np.eye(3)
    found[:, i, i] = found[:, j, j] = c
    found[:, i, j], found[:, j, i] = -s, s
    return found


@pytest.mark.parametrize("width_km", [600, 2300])
def test_the_share_of_the_globe_that_is_seen_in_a_day(width_km):
    """Against random points that turn with the Earth under an orbit built of rotation matrices, in seconds of a day."""
    config, rng = SwathConfig(width_km), np.random.default_rng(0)
    points = rng.normal(size=(3000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    t = np.arange(0, 1, 20 / 86400)
    start = 2 * np.pi * (10957 * config.orbits_per_day % 1)  # days from 1970 to 2000
    along, node = start + 2 * np.pi * t * config.orbits_per_day, np.deg2rad(15 * (13.5 - 24 * t))
    tilt = np.full(len(t), np.deg2rad(98.7))
    satellite = (rotation(node, "z") @ rotation(tilt, "x") @ rotation(along, "z"))[:, :, 0]
    expected = ((points @ satellite.T).max(axis=1) > np.cos(width_km / 2 / 6371)).mean()
    mesh = [axis.ravel() for axis in np.meshgrid(Grid(60, 120).latitude, Grid(60, 120).longitude, indexing="ij")]
    seen = seen_by_swath(config, *mesh, np.array(["2000-01-01"], "M8[D]"))[0]
    assert (seen * Grid(60, 120).area_weights.ravel()).sum() == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(3000))
    assert 0.2 < expected < 1


def test_the_swaths_drift_and_soon_have_seen_every_cell():
    mesh = [axis.ravel() for axis in np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")]
    seen = seen_by_swath(SwathConfig(1400), *mesh, np.datetime64("2000-01-01") + np.arange(10))
    assert not seen.all(axis=1).any() and seen.any(axis=0).all()
    assert all((left != right).any() for left, right in zip(seen[:-1], seen[1:], strict=True))
    later = seen_by_swath(SwathConfig(1400), *mesh, np.datetime64("2000-01-04") + np.arange(7))
    np.testing.assert_array_equal(later, seen[3:])


# ---- the latents


@pytest.fixture
def latents(tmp_path, whole):
    """Latent shards of the archive's days, one of them missing, and the configuration that names them."""
    z = np.random.default_rng(1).normal(size=(len(DAYS), 5, 8, 16)).astype(np.float32)
    frames = ((day, 0, frame) for day, frame in zip(DAYS, z, strict=True) if day != DAYS[6])
    made = {"content": "latent", "autoencoder": "abc", "latent": {"mean": [0.0] * 5, "std": [1.0] * 5}}
    document = {"config": {}, "splits": {"test": [2002, 2002]}} | made
    statistics = archive.open_archive(whole.archive.path).statistics()
    with written_aside(tmp_path / "latents") as aside:
        options = {"frames_per_shard": 4, "keepbits": 23, "document": document}
        write_shards(aside, frames, spec=SPEC, statistics=statistics, **options)
    encode = EncodeConfig(str(tmp_path / "latents"), "autoencoder")
    return z, replace(whole, encode=encode)


def test_latents_are_observed_through_the_operator_with_noise_in_their_units(tmp_path, latents):
    z, whole = latents
    how = OnGridConfig("block_mean", factor=4, every_days=2, noise=0.3)
    observe.run(ObserveConfig(str(tmp_path / "set"), space="latent", latent=how), whole)
    found = open_observations(tmp_path / "set")
    seen = found.read("latent", found.time)
    assert found.space == "latent" and found.names == ("latent",) and found.spec == SPEC
    assert seen.value.shape == (10, 5, 2, 4) and (seen.error_std == np.float32(0.3)).all()
    days = [0, 2, 6, 8]  # of the split; on its fourth, an observed one, the shards have nothing
    assert np.flatnonzero(seen.mask.all(axis=(1, 2, 3))).tolist() == days and seen.mask.sum() == 4 * 40
    clean = z[2:].reshape(10, 5, 2, 4, 4, 4).mean(axis=(3, 5))
    error = (seen.value - clean)[days] / 0.3
    assert abs(error.mean()) < 4 / np.sqrt(160) and error.std() == pytest.approx(1, abs=0.2)
    found.check_latents("abc", {"mean": [0.0] * 5, "std": [1.0] * 5})


def test_latents_of_another_autoencoder_or_of_no_encoder_are_refused(tmp_path, latents, simulate):
    _, whole = latents
    config = ObserveConfig(str(tmp_path / "set"), space="latent")
    with pytest.raises(ValueError, match="has no section 'encode'"):
        observe.run(config, replace(whole, encode=None))
    observe.run(config, whole)
    found, moments = open_observations(tmp_path / "set"), {"mean": [0.0] * 5, "std": [1.0] * 5}
    for checksum, latent in (("abd", moments), ("abc", {"mean": [0.1] * 5, "std": [1.0] * 5})):
        with pytest.raises(ContractError, match="the latents of another autoencoder than the score network's"):
            found.check_latents(checksum, latent)
    with pytest.raises(ContractError, match="holds observations in physical space, not of latents"):
        simulate(olr=system()).check_latents("abc", moments)


# ---- what cannot be


@pytest.mark.parametrize(
    ("systems", "sentence"),
    [
        ({}, "operator: none for temperature, precipitation, olr; one of them has to be observed"),
        ({"olr": system("block_mean", factor=3)}, "factor: 3 does not divide the grid of 16 x 32 cells"),
        ({"olr": system("block_mean", factor=4, keep_every=3)}, "factor: 3 does not divide the grid of 4 x 8 cells"),
        ({"temperature": system(noise_by_level=[1.0])}, "noise_by_level: 1 numbers for 2 levels of temperature"),
        ({"precipitation": system(masks=["ocean"])}, "precipitation: every value is masked; leave it out"),
    ],
)
def test_a_system_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, simulate, systems, sentence):
    with pytest.raises(ValueError, match=sentence):
        simulate(**systems)
    assert not (tmp_path / "0").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noise": 0.0}, "noise: 0.0 is not allowed"),
        ({"noise": float("nan")}, "noise: nan is not allowed"),
        ({"noise_by_level": [0.1, -1.0]}, "noise_by_level: -1.0 is not allowed"),
        ({"factor": 0}, "factor: 0 is not allowed"),
        ({"keep_every": 0}, "keep_every: 0 is not allowed"),
        ({"every_days": 0}, "every_days: 0 is not allowed"),
        ({"share": 0.0}, "share: 0.0 is not allowed"),
        ({"share": 1.5}, "share: 1.5 is not allowed"),
        ({"masks": ["sea"]}, "masks: 'sea' is not allowed; land, ocean, swath, network"),
        ({"operator": "stations", "masks": ["network"]}, "stations are a network already"),
    ],
)
def test_an_option_out_of_range_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ObservedConfig(**{"operator": "block_mean"} | options)


@pytest.mark.parametrize("options", [{"width_km": 0}, {"inclination_deg": 51.6}, {"crossing_hour": 24}])
def test_an_orbit_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: .* is not allowed"):
        SwathConfig(**options)
