"""What an assimilation may be given, through the real jobs: a background, latents, stations and fields, little memory.

Each on the small planet and the tiny networks of the chain; errors are computed here, from the files.
"""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from chain import DATES, MEMBERS, SCORE, finish, start
from matplotlib.collections import PathCollection, QuadMesh

from data_prep.__main__ import main as prepare
from sample import assimilator, figures
from sample.__main__ import main as assimilate
from sample.case import open_case
from sample.config import SampleConfig
from sample.run import Run
from slams import windows
from slams.config import load
from slams.contracts.observations import open_observations

pytestmark = pytest.mark.usefixtures("one_thread")

FIVE_DAYS = ("period.first_day=2003-01-11", "period.segment_days=5", "period.halo_days=0", "sampler.steps=6")
NOTHING = ("observe.precipitation.operator=none", "observe.olr.operator=none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("assimilation")


@pytest.fixture(scope="module")
def make(chain, folder):
    """A preparation of the chain with other words, once; gives the path of what it made."""

    def made(stage, name, *words):
        path = folder / name
        if not path.exists():
            assert prepare(chain.prep(stage, *words, f"{stage}.path={path}")[1:]) == 0
        return path

    return made


@pytest.fixture(scope="module")
def few(make):
    """Temperature at three stations, poorly measured."""
    words = (
        "observe.temperature.operator=stations",
        "observe.temperature.share=0.006",
        "observe.temperature.noise=0.5",
    )
    return make("observe", "few.zarr", *words, *NOTHING)


@pytest.fixture(scope="module")
def mixed(make):
    """Temperature at some stations, rain nowhere, longwave radiation everywhere."""
    words = ("observe.temperature.operator=stations", "observe.temperature.share=0.08")
    olr = ("observe.olr.operator=identity", "observe.precipitation.operator=none")
    return make("observe", "mixed.zarr", *words, *olr)


@pytest.fixture(scope="module")
def background(make):
    return make("background", "background.zarr", "background.error_share=0.3")


@pytest.fixture
def sample(chain, tmp_path):
    """A run of the chain's models with other words, in a folder of its own: status, or its product."""

    def words(*more, run="run"):
        return [*chain.sample(*more)[1:], f"folder={tmp_path / run}"]

    def drawn(*more, run="run"):
        assert assimilate(words(*more, run=run)) == 0
        return xr.open_zarr(tmp_path / run / "analysis.zarr")

    drawn.words = words
    return drawn


@pytest.fixture
def refused(sample, tmp_path, capsys):
    def said(*more):
        assert assimilate(sample.words(*more)) == 2
        error = capsys.readouterr().err
        assert error.startswith("sample: ") and error.count("\n") == 1 and not (tmp_path / "run").exists()
        return error

    return said


def scores_of(sample, folder, *words):
    assert assimilate(["verify", *sample.words(*words)]) == 0
    return json.loads((folder / "run" / "verify" / "scores.json").read_text())


def error(product, chain):
    """RMSE of the ensemble mean, area-weighted, mean over levels, K."""
    truth = xr.open_zarr(chain.folder / "archive.zarr").temperature.sel(time=product.time)
    squares = (product.temperature.mean("member") - truth) ** 2
    area = np.cos(np.deg2rad(product.latitude))
    return float(np.sqrt(squares.weighted(area).mean(("time", "latitude", "longitude"))).mean())


def test_a_background_brings_an_analysis_of_few_observations_nearer_the_truth(chain, sample, few, background):
    plain = sample(*FIVE_DAYS, f"observations={few}", run="plain")
    told = sample(*FIVE_DAYS, f"observations={few}", f"background={background}", run="told")
    assert plain.attrs["prior"] == "climatological"
    assert told.attrs["prior"] == f"conditioned on the background {background} of the day before each segment"
    assert error(told, chain) < 0.97 * error(plain, chain)
    # the planet forgets a quarter a day: the first day is told the most
    first, last = (slice(i, None, 5) for i in (0, 4))
    gain = [error(told.isel(time=i), chain) / error(plain.isel(time=i), chain) for i in (first, last)]
    assert gain[0] < 0.85 and gain[0] < gain[1]


def test_an_earlier_analysis_is_a_background(chain, sample, few):
    """The chain's own analysis holds each date, and each segment begins on the day after one."""
    earlier = chain.folder / "run" / "analysis.zarr"
    plain = sample(*FIVE_DAYS, f"observations={few}", run="plain")
    told = sample(*FIVE_DAYS, f"observations={few}", f"background={earlier}", run="told")
    assert told.attrs["prior"] == f"conditioned on the background {earlier} of the day before each segment"
    assert error(told, chain) < error(plain, chain)


def test_a_background_is_a_baseline_too(chain, sample, few, background, tmp_path):
    words = (*FIVE_DAYS, f"observations={few}", f"background={background}")
    sample(*words)
    scores = scores_of(sample, tmp_path, *words)
    truth, held = (xr.open_zarr(path).temperature for path in (chain.folder / "archive.zarr", background))
    area, squares = np.cos(np.deg2rad(truth.latitude)), []
    for day in scores["dates"]:
        began = next(np.datetime64(d) for d in reversed(scores["dates"][::5]) if d <= day)
        squares.append((held.sel(time=began - 1) - truth.sel(time=day)) ** 2)
    rmse = np.sqrt(xr.concat(squares, "day").weighted(area).mean(("day", "latitude", "longitude")))
    found = scores["systems"]["persistence"]["rmse"]
    np.testing.assert_allclose([found[str(level)] for level in scores["levels_hpa"]], rmse, rtol=1e-4)


def test_a_background_made_anew_is_another_one(sample, few, make, background, tmp_path, capsys):
    """At the same place, of the same archive, with twice the error: members of both would be mixed."""
    place = tmp_path / "guess.zarr"
    shutil.copytree(background, place)
    words = (*FIVE_DAYS, f"observations={few}", f"background={place}")
    sample(*words)
    assert assimilate(sample.words(*words)) == 0, "of the same one it is finished"
    shutil.rmtree(place)
    shutil.copytree(make("background", "worse.zarr", "background.error_share=0.6"), place)
    capsys.readouterr()
    assert assimilate(sample.words(*words)) == 2
    said = capsys.readouterr().err
    assert "background_sha256" in said and said.count("\n") == 1
    assert assimilate(["verify", *sample.words(*words)]) == 2
    assert f"was made with another background than {place} is now" in capsys.readouterr().err


def test_what_departures_need_of_a_withheld_modality_is_read_before_anything_is_drawn(chain, refused, tmp_path):
    """An error of none on one day that is kept; it would have stopped the run after each unit."""
    given = tmp_path / "given.zarr"
    shutil.copytree(chain.folder / "observations.zarr", given)
    seen = open_observations(given)
    day = int(np.flatnonzero(np.isin(seen.time, np.array(DATES, "datetime64[D]")))[0])
    zarr.open_group(given, mode="r+")["precipitation/error_std"][day] = 0
    said = refused(f"observations={given}", "without=[precipitation]")
    assert "precipitation" in said and "error" in said


def test_a_network_trained_without_a_background_refuses_one(chain, refused, background):
    finish(start(chain.train("score", "latents", 8, *SCORE, "model.background_error=0", name="plain-score")))
    said = refused(f"score={chain.folder}/plain-score/bundle", f"background={background}")
    assert "plain-score/bundle: was trained without a background; `background` must be empty" in said


@pytest.mark.parametrize("source", ["an archive", "an earlier analysis"])
def test_a_day_without_background_is_refused_before_anything_is_drawn(refused, background, chain, source):
    """The archive ends before the first segment; the analysis of single dates knows the first and not the second."""
    first, last, missing = ("01", "05", "2002-12-31") if source == "an archive" else ("11", "20", "2003-01-15")
    path = background if source == "an archive" else chain.folder / "run" / "analysis.zarr"
    period = (f"period.first_day=2003-01-{first}", f"period.last_day=2003-01-{last}", "period.every_days=0")
    said = refused(*FIVE_DAYS, *period, f"background={path}")
    assert f"{path}: holds no background of {missing}, the day before a segment" in said


def test_a_dry_run_names_the_prior(sample, capsys, background):
    conditioned = f"conditioned on the background {background} of the day before each segment"
    for words, prior in (((), "climatological"), ((f"background={background}",), conditioned)):
        assert assimilate([*sample.words(*words), "--dry-run"]) == 0
        assert f"prior: {prior}\n" in capsys.readouterr().out


def test_observed_latents_are_assimilated_and_verified(make, sample, tmp_path):
    """All latents, well measured: what is left is hardly more than what the autoencoder loses."""
    latent = ("observe.space=latent", "observe.latent.operator=identity", "observe.latent.noise=0.1")
    words = (f"observations={make('observe', 'latents.zarr', *latent)}",)
    sample(*words)
    scores = scores_of(sample, tmp_path, *words)
    assert set(scores["systems"]) == {"analysis", "climatology", "autoencoder"}  # nothing that could be interpolated
    rmse = {name: found["rmse"]["mean"] for name, found in scores["systems"].items()}
    assert rmse["autoencoder"] < rmse["analysis"] < 1.3 * rmse["autoencoder"] < rmse["climatology"]
    page = (tmp_path / "run" / "verify" / "report.html").read_text()
    assert "RMSE of climatology" in page and "interpolation" not in page.split("<h2>Where it comes from")[0]


def test_nothing_can_be_withheld_from_observed_latents(make, refused):
    path = make("observe", "latents-coarse.zarr", "observe.space=latent", "observe.latent.factor=2")
    assert "without: ['olr'] cannot be withheld from observations of latents" in refused(
        f"observations={path}", "without=[olr]"
    )


def test_stations_and_fields_are_assimilated_and_verified_together(sample, mixed, tmp_path):
    """Each tells of temperature what the other does not. (In 4 steps of 2 iterations, both are worse than one.)"""
    words = (f"observations={mixed}", "sampler.steps=8")
    for withheld in ("", "without=[temperature]", "without=[olr]"):
        sample(*words, *withheld.split())
    scores = scores_of(sample, tmp_path, *words)
    names = ("analysis", "analysis-without-olr", "analysis-without-temperature")
    assert set(scores["systems"]) == {*names, "anomaly_interpolation", "interpolation", "climatology", "autoencoder"}
    both, stations, fields = (scores["systems"][name]["rmse"]["mean"] for name in names)
    assert both < 0.9 * min(stations, fields) < scores["systems"]["climatology"]["rmse"]["mean"]
    both, stations, fields = (scores["other_modalities"]["olr"]["systems"][name]["rmse"]["mean"] for name in names)
    assert max(both, fields) < 0.5 * stations


def test_maps_show_stations_where_they_stand_and_fields_as_fields(sample, mixed):
    words = (f"observations={mixed}",)
    sample(*words)
    example = open_case(load(SampleConfig, sample.words()[0], sample.words(*words)[1:])).example(0)
    reports = open_observations(mixed).read_stations("temperature", np.array([DATES[0]], "datetime64[D]"))
    at_500 = reports.level_hpa == 500
    axes = figures.state_maps(example, example.spec.modality("temperature")).axes[1]
    (points,) = (found for found in axes.collections if isinstance(found, PathCollection))
    where = np.stack([(reports.longitude[at_500] + 180) % 360 - 180, reports.latitude[at_500]], axis=1)
    assert len(where) == round(0.08 * 16 * 32)
    np.testing.assert_allclose(points.get_offsets(), where)
    np.testing.assert_allclose(points.get_array(), reports.value[at_500])
    maps = figures.surface_maps(example, [example.spec.modality(name) for name in ("precipitation", "olr")])
    rain, olr = maps.axes[1], maps.axes[4]
    assert [text.get_text() for text in rain.texts] == ["not observed"]
    assert any(isinstance(found, QuadMesh) for found in olr.collections) and not olr.texts


def test_little_memory_changes_nothing_but_the_time(sample, mixed, background, monkeypatch):
    """A budget for every member at once, for one at a time, and for one window and one frame at a time."""
    batches, chunks = [], []
    drawn, checkpoint = assimilator.sample, windows.checkpoint

    def counted(denoise, config, sde, noise):
        batches[-1].append(len(noise(0)))
        return drawn(denoise, config, sde, noise)

    def chunked(*arguments, **words):
        chunks[-1] += 1
        return checkpoint(*arguments, **words)

    monkeypatch.setattr(assimilator, "sample", counted)
    monkeypatch.setattr(windows, "checkpoint", chunked)
    words = ("period.last_day=2003-01-12", "period.segment_days=3", "period.every_days=0", f"observations={mixed}")
    words += (f"background={background}",)  # which the first window alone is told, in whatever chunk it comes
    one = Run(load(SampleConfig, sample.words()[0], sample.words(*words)[1:])).method._trajectory_bytes(7)
    products = {}
    for name, budget in (("all", 100 * one), ("one", 1.5 * one), ("part", 0.001 * one)):
        batches.append([])
        chunks.append(0)
        products[name] = sample(*words, f"memory_gib={budget / 2**30}", run=name).load()
    assert batches == [[assimilator.PLACES], [1] * MEMBERS, [1] * MEMBERS]  # a free place is filled by another
    assert chunks == [0, 0, 4 * MEMBERS * (3 + 7)]  # at each of 4 steps, 3 windows and the 7 days with their halo
    for name in ("temperature", "precipitation", "olr"):
        spread = float(products["all"][name].std("member").mean())
        for other in ("one", "part"):
            np.testing.assert_allclose(products[other][name], products["all"][name], rtol=0, atol=2e-4 * spread)
