"""Ensemble optimal interpolation as a method of the sampling job: what `slams.enoi_archive` gives, in the product."""

import json

import numpy as np
import pytest
import xarray as xr
from chain import finish, start

from sample.__main__ import main as sample
from slams.contracts.archive import open_archive
from slams.contracts.observations import open_observations
from slams.enoi import Choice
from slams.enoi_archive import analysis
from slams.enoi_observations import from_observations

pytestmark = pytest.mark.usefixtures("one_thread")

DAYS = ("period.first_day=2003-04-10", "period.last_day=2003-04-12", "period.segment_days=3", "period.every_days=0")
ONE = ("method=enoi", "enoi.half_width_km=[6000]", "enoi.inflation=[0.7]")


@pytest.fixture(scope="module")
def product(chain):
    assert sample(chain.sample(*DAYS, *ONE, run="enoi")[1:]) == 0
    return chain.folder / "enoi" / "analysis.zarr"


def test_product_holds_the_analyses_of_each_day_and_its_window(chain, product):
    archive, seen = open_archive(chain.folder / "archive.zarr"), open_observations(chain.folder / "observations.zarr")
    day, around = np.datetime64("2003-04-11"), np.arange(-2, 3)
    listed = from_observations(seen.read_all(seen.names, day + around), archive.spec, around)
    choice = Choice(6000, np.inf, 0.7, season_days=60)
    _, members = analysis(archive, archive.statistics(), day, listed, choice, 0, 3)
    drawn = xr.open_zarr(product).sel(time=day).temperature.values
    np.testing.assert_allclose(drawn, members[:, archive.spec.channels("temperature")], rtol=1e-6)


def test_rain_is_not_below_none_and_known_on_land_alone(product):
    rain = xr.open_zarr(product).precipitation.values
    assert np.nanmin(rain) == 0
    assert np.isnan(rain).any() and np.isfinite(rain).any()


def test_days_and_processes_do_not_change_it(chain, product, monkeypatch):
    words = (*DAYS, "period.segment_days=1", "members_per_unit=2", *ONE)
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert sample(chain.sample(*words, run="enoi-shared")[1:]) == 0
    shared = xr.open_zarr(chain.folder / "enoi-shared" / "analysis.zarr").temperature.values
    np.testing.assert_array_equal(shared, xr.open_zarr(product).temperature.values)


def test_choice_is_the_best_of_those_tried_on_validation_dates(chain, monkeypatch):
    """Anomalies shrunk to a hundredth leave the climatology, and no tuning would take them."""
    validation = f"{chain.folder}/validation.zarr"
    finish(start(chain.prep("observe", "observe.split=validation", f"observe.path={validation}")))
    tuned = ("method=enoi", "enoi.half_width_km=[6000]", f"enoi.validation={validation}", "enoi.inflation=[0.0001,0.7]")
    assert sample(chain.sample(*DAYS, *tuned, run="enoi-tuned")[1:]) == 0
    found, given = (xr.open_zarr(chain.folder / name / "analysis.zarr").temperature for name in ("enoi-tuned", "enoi"))
    np.testing.assert_array_equal(found.values, given.values)
    (entry,) = (chain.folder / "enoi-tuned" / "analysis.zarr" / "ledger").glob("*.json")
    told = json.loads(entry.read_text())
    assert told["enoi"]["inflation"] == 0.7 and told["enoi"]["half_width_days"] is None


def test_a_half_width_of_none_leaves_the_anomalies_as_they_are(chain, product):
    """The far field is then corrected by chance correlations, which the localisation would have cut off."""
    assert sample(chain.sample(*DAYS, *ONE, "enoi.half_width_km=[0]", run="enoi-free")[1:]) == 0
    found, given = (xr.open_zarr(chain.folder / name / "analysis.zarr").temperature for name in ("enoi-free", "enoi"))
    assert (found != given).any()
    (entry,) = (chain.folder / "enoi-free" / "analysis.zarr" / "ledger").glob("*.json")
    assert json.loads(entry.read_text())["enoi"]["half_width_km"] is None


def test_it_beats_the_climatology_that_it_starts_from(chain, product):
    assert sample(["verify", *chain.sample(*DAYS, *ONE, "verify.bootstrap=20", run="enoi")[1:]]) == 0
    systems = json.loads((chain.folder / "enoi" / "verify" / "scores.json").read_text())["systems"]
    assert systems["analysis"]["rmse"]["mean"] < 0.9 * systems["climatology"]["rmse"]["mean"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("method=enoi",), "enoi.validation: is empty"),
        ((*ONE, "period.halo_days=1"), "period.halo_days: 1 is less than enoi.half_window_days, 2"),
        ((*ONE, "enoi.half_width_km=[]"), "half_width_km: [] is not allowed"),
        ((*ONE, "enoi.half_width_km=[30000]"), "half_width_km"),
        ((*ONE, "enoi.half_width_km=[.inf]"), "half_width_km: [inf] is not allowed; finite numbers"),
        ((*ONE, "error_inflation={olr: 6}"), "error_inflation: {'olr': 6.0} is not for the method enoi"),
        (("method=enoi", "enoi.validation=nowhere.zarr"), "nowhere.zarr: "),
        ((*ONE, "background=x"), "background: x is not for the method enoi"),
        (("score=",), "score"),
        ((*ONE, "method=3dvar"), "method"),
    ],
)
def test_bad_choice_is_one_sentence(chain, capsys, words, named):
    assert sample(chain.sample(*DAYS, *words, run="enoi-bad")[1:]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1
    assert not (chain.folder / "enoi-bad").exists()


def test_dry_run_tells_time_without_a_network(chain, capsys):
    assert sample([*chain.sample(*DAYS, *ONE, run="enoi-dry")[1:], "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "network evaluations" not in out and "s a unit" in out
    assert not (chain.folder / "enoi-dry").exists()
