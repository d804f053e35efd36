"""`verify` on products whose errors are known in closed form: the numbers, the page, and what it refuses."""

import contextlib
import csv
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import wandb
import xarray as xr
import zarr
from scipy.stats import wasserstein_distance
from test_report import Page

from sample.background import FirstGuess
from sample.case import open_case
from sample.config import PeriodConfig, SampleConfig, VerifyConfig
from sample.sums import read_sums
from sample.tally import tallied
from sample.verify import verify
from slams.contracts import analysis, archive
from slams.contracts.bundle import write_bundle
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Gridded, Operator, Stations, open_observations, write_observations
from slams.model import ModelConfig, build
from slams.rng import generator
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics
from slams.uncertainty import Bootstrap

GRID = Grid(8, 16)
TEMPERATURE = Modality("temperature", "state", "K", "air_temperature", (100, 500, 850))
SPEC = StateSpec(GRID, (TEMPERATURE, PRECIPITATION, OLR))
DAYS = np.arange("2001-01-01", "2001-03-01", dtype="datetime64[D]")
CASES = DAYS[[3, 4, 5, 20, 40]]
# The climatology is flat: 200, 250, 280 K, no rain-logarithm, 230 W m-2; the truth lies 2 above or below it by turns.
FLAT = np.array([200, 250, 280, 3, 230], np.float32)
LAND = np.zeros(GRID.shape, np.float32)
LAND[2:6, 3:11] = 1
OFFSETS = np.array([-1.0, 1.0, 3.0])


def truth(days):
    sign = np.where(np.arange(len(days)) % 2, 2.0, -2.0)[:, None, None, None]
    x = np.broadcast_to(FLAT[None, :, None, None] + sign, (len(days), 5, *GRID.shape)).astype(np.float32)
    x[:, 3] = np.where(LAND > 0, x[:, 3], np.nan)
    return x


def statistics(kind="anomaly"):
    shape = GRID.shape if kind == "anomaly" else (1, 1)
    harmonics = np.zeros((5 if kind == "anomaly" else 1, 5, *shape))
    harmonics[0] = FLAT[:, None, None]
    observed = np.ones((5, *GRID.shape), bool)
    observed[3] = LAND > 0
    std = np.ones((5, 1, 1), np.float32)
    return Statistics(harmonics, std, np.zeros(5, bool), observed, {"land_fraction": LAND})


def write_archive(folder, kind="anomaly", config=None):
    attributes = {
        "config": config or {},
        "splits": {"train": [2001, 2001], "test": [2001, 2001]},
        "missing_days": {},
    }
    group = archive.create(folder, SPEC, DAYS, np.zeros(len(DAYS), int), attributes)
    for modality in SPEC.modalities:
        x = truth(DAYS)[:, SPEC.channels(modality.name)]
        shape = archive.field_shape(modality, GRID.shape)
        archive.write_block(group, modality.name, 0, x.reshape(len(DAYS), *shape))
    archive.finish(folder, statistics(kind), [1.0] * 5)


def write_observed(folder):
    """Temperature in blocks, without error; OLR sub-sampled and 4 too high; no rain."""
    x = truth(DAYS)
    temperature = x[:, :3, ::2, ::2]
    olr = x[:, 4:, 1::2, 1::2] + 4
    observed = [
        Gridded("temperature", Operator("block_mean", 2), temperature, np.ones_like(temperature), temperature > 0),
        Gridded("olr", Operator("subsample", 2), olr, np.ones_like(olr), olr > 0),
    ]
    write_observations(folder, SPEC, DAYS, observed, {"config": {}})


def write_product(path, offsets, days=CASES, spec=SPEC, finished=True, **made_of):
    """Members = truth + offset, larger by the level's number: at level c the error is (c + 1) times the offset."""
    attributes = {"config": {"score_sha256": "5c0e", **made_of}, "prior": "flat"}
    product = analysis.create(path, spec, days, len(offsets), attributes)
    x = truth(DAYS)[np.searchsorted(DAYS, days)]
    scale = np.array([1, 2, 3, 1, 1])[:, None, None]
    members = np.stack([x + offset * scale for offset in offsets])
    product.write(np.arange(len(offsets)), np.arange(len(days)), members)
    if finished:
        product.finish()


def make(folder):
    """An archive, observations and one product; the configuration of its verification."""
    write_archive(folder / "archive.zarr")
    write_observed(folder / "observations.zarr")
    (folder / "run").mkdir()
    write_product(folder / "run" / "analysis.zarr", OFFSETS)
    period = PeriodConfig("2001-01-04", "2001-02-10")
    run, verifying = str(folder / "run"), VerifyConfig(bootstrap=50)
    observations, truths = str(folder / "observations.zarr"), str(folder / "archive.zarr")
    where = {"folder": run, "score": "score", "observations": observations, "archive": truths}
    return SampleConfig(**where, period=period, members=3, verify=verifying)


@pytest.fixture
def config(tmp_path):
    return make(tmp_path)


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """Three products verified once: scores, what was printed, and the folder of the results."""
    folder = tmp_path_factory.mktemp("verified")
    config, printed = make(folder), io.StringIO()
    write_product(folder / "run" / "analysis-without-olr.zarr", OFFSETS + 0.5)
    write_product(folder / "run" / "analysis-without-olr-without-precipitation.zarr", OFFSETS)
    with contextlib.redirect_stdout(printed):
        scores = verify(config)
    return scores, printed.getvalue(), folder / "run" / "verify"


def levels(*values):
    return pytest.approx(dict(zip(("100", "500", "850"), values, strict=True)) | {"mean": np.mean(values)}, abs=2e-5)


def test_the_numbers_are_those_of_the_closed_form(verified):
    scores, _, folder = verified
    assert scores == json.loads((folder / "scores.json").read_text())
    assert next(iter(scores["systems"])) == "analysis"
    systems = scores["systems"]
    # offsets -1, 1, 3: mean 1, variance 4; absolute mean 5/3, pairs (2 + 4 + 2) * 2 / (2 * 3 * 2) = 4/3
    assert systems["analysis"]["rmse"] == levels(1, 2, 3)
    assert systems["analysis"]["crps"] == levels(1 / 3, 2 / 3, 1)
    assert systems["analysis"]["spread_skill"] == levels(*[np.sqrt(4 / 3 * 4)] * 3)
    # offsets -0.5, 1.5, 3.5: mean 1.5, absolute mean 5.5/3
    assert systems["analysis-without-olr"]["rmse"] == levels(1.5, 3, 4.5)
    assert systems["analysis-without-olr"]["crps"] == levels(0.5, 1, 1.5)
    assert systems["climatology"]["rmse"] == systems["climatology"]["crps"] == levels(2, 2, 2)
    for exact in ("interpolation", "anomaly_interpolation", "autoencoder"):
        assert systems[exact]["rmse"] == systems[exact]["crps"] == levels(0, 0, 0)
    for single in ("climatology", "interpolation", "anomaly_interpolation", "autoencoder"):
        assert systems[single]["spread_skill"] == levels(0, 0, 0)
    assert scores["units"] == "K"
    assert scores["members"] == 3
    assert scores["dates"] == [str(day) for day in CASES]


def test_other_modalities_are_scored_where_their_truth_is_known(verified):
    others = verified[0]["other_modalities"]
    assert others["precipitation"]["units"] == "mm/day"
    assert others["precipitation"]["systems"]["analysis"]["rmse"]["mean"] == pytest.approx(1, abs=1e-5)
    assert others["precipitation"]["systems"]["interpolation"]["rmse"]["mean"] == pytest.approx(2, abs=1e-5)
    assert others["olr"]["systems"]["interpolation"]["rmse"]["mean"] == pytest.approx(4, abs=1e-4)


def test_withholding_is_a_paired_difference(verified):
    """Both products' errors are the same on every date, so that the difference is certain."""
    scores = verified[0]
    cost = scores["withholding"]
    assert list(cost) == ["olr", "olr and precipitation"]
    assert cost["olr"]["rmse"]["value"] == pytest.approx(1, abs=1e-5)
    assert cost["olr"]["rmse"]["interval"] == pytest.approx([1, 1], abs=1e-5)
    assert cost["olr and precipitation"]["crps"] == {"value": 0, "interval": [0, 0]}
    assert scores["confidence"]["blocks"] == 3, "three days in a row are one block"
    assert scores["confidence"]["analysis_minus"]["climatology"]["rmse"]["value"] == pytest.approx(0, abs=1e-5)


def test_the_page_stands_alone(verified):
    folder = verified[2]
    page = (folder / "report.html").read_text()
    text = re.sub(r'src="data:[^"]*"', "", page)
    assert "//" not in text, "no address outside the page"
    assert set(re.findall(r'src="(.{10})', page)) == {"data:image"}
    read = text.split("</style>")[-1].split("<h2>Where it comes from")[0]
    assert not re.search(r"\b(nan|inf|None)\b", read, re.IGNORECASE)
    assert 'name="viewport"' in text
    cost = "Withholding olr changes the RMSE by +1.000 K"
    for said in ("RMSE of 2.00 K", cost, "does not beat", "5c0e", "bootstrap: 50"):
        assert said in text, said
    names = {path.stem for path in folder.glob("*.png")}
    assert {"maps", "profiles", "others"} < names and len(names) == page.count("<figure>")
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


def test_the_table_and_where_the_page_is_are_printed(verified):
    _, printed, folder = verified
    assert printed.rstrip("\n").split("\n")[-1] == str(folder / "report.html")
    assert "anomaly interpolation" in printed
    assert "which excludes 0" in printed.replace("\n", " ")


def test_the_csv_holds_the_same_numbers(verified):
    scores, _, folder = verified
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        table = scores if row["variable"] == "temperature" else scores["other_modalities"][row["variable"]]
        where = row["system"], row["score"], row["level_hpa"]
        assert float(row["value"]) == table["systems"][where[0]][where[1]][where[2]]
        if row["low"]:
            between = table["intervals"][where[0]][where[1]][where[2]]
            assert [float(row["low"]), float(row["high"])] == between
    ensembles, single = 3, 4
    # rmse, crps, spread-skill, bias, w1 and day-change of every system, the spread of ensembles; unstable layers
    of_a_level = ensembles * 7 + single * 6
    assert len(rows) == of_a_level * (3 + 1) + 7 * (2 + 1) + 2 * of_a_level
    # no interval: of the spread-skill of single members, and of the day-change, of which only one block has any
    assert sum(row["low"] == "" for row in rows) == (single + 7) * (4 + 1 + 1)


def test_the_new_scores_are_those_of_the_closed_form(verified):
    systems = verified[0]["systems"]
    # offsets -1, 1, 3 times the level's number: mean 1, standard deviation 2; the scale is 1
    assert systems["analysis"]["bias"] == levels(1, 2, 3)
    assert systems["analysis"]["spread"] == levels(2, 4, 6)
    assert "spread" not in systems["climatology"], "one member has none"
    # the truth is as often 2 above as below; members are moved by (-1, 1, 3) c, so cell by cell W1 <= 5/3 c
    days = np.searchsorted(DAYS, CASES)
    values = np.array([2.0 if day % 2 else -2.0 for day in days])
    for c, level in enumerate(("100", "500", "850"), start=1):
        pooled = np.concatenate([values + offset * c for offset in OFFSETS])
        assert systems["analysis"]["w1"][level] == pytest.approx(wasserstein_distance(pooled, values), abs=1e-4)
    # every day is 4 above or below the one before, in members and truth; the climatology stands still
    assert systems["analysis"]["day_change"] == levels(1, 1, 1)
    assert systems["climatology"]["day_change"] == levels(0, 0, 0)
    # 200 K at 100 hPa lies above 250 K at 500 hPa: theta 386 and 305 K; and 280 K at 850 hPa has 293 K
    assert systems["analysis"]["unstable"] == verified[0]["truth"]["unstable"] == {"500": 0, "850": 0, "mean": 0}


def test_a_layer_that_is_steeper_than_the_dry_adiabat_is_named(config):
    """60 K more at 850 hPa: theta falls from 345 K there to 305 K at 500 hPa, in every member."""
    zarr.open_group(Path(config.folder) / "analysis.zarr", mode="r+")["temperature"][:, :, 2] += 60
    scores = verify(config)
    assert scores["systems"]["analysis"]["unstable"] == {"500": 0, "850": 1, "mean": 0.5}
    assert scores["truth"]["unstable"] == {"500": 0, "850": 0, "mean": 0}


def test_a_seam_is_seen_where_segments_join(config):
    """Two segments of two days; the second lies 1 too high, so that members move by 5 where the truth moves by 4."""
    days, path = DAYS[3:7], Path(config.folder) / "analysis.zarr"
    shutil.rmtree(path)
    product = analysis.create(path, SPEC, days, 3, {"config": {"score_sha256": "5c0e"}, "prior": "flat"}, unit=(3, 2))
    x = truth(DAYS)[3:7] + np.array([0, 0, 1, 1], np.float32)[:, None, None, None]
    for where in (np.array([0, 1]), np.array([2, 3])):
        members = x[where] + OFFSETS.astype(np.float32)[:, None, None, None, None]
        crc32 = product.write(np.arange(3), where, members)
        entry = {"members": [0, 1, 2], "days": [str(day) for day in days[where]], "crc32": crc32}
        product.close_unit(f"{days[where[0]]}_{days[where[1]]}_m000-002", entry)
    product.finish()
    systems = verify(config)["systems"]
    found = systems["analysis"]
    assert found["day_change_at_joins"]["mean"] == pytest.approx(5 / 4)
    assert found["day_change"]["mean"] == pytest.approx(1), "away from it"
    assert systems["climatology"]["day_change_at_joins"]["mean"] == 0


def test_differences_are_paired_and_say_whether_they_are_significant(verified):
    scores = verified[0]
    found = scores["differences"]["analysis-without-olr"]
    assert set(found) == {"rmse", "crps", "spread_skill", "bias", "spread", "w1", "unstable", "day_change"}
    assert found["rmse"]["500"]["value"] == pytest.approx(-1, abs=1e-5) and found["rmse"]["500"]["significant"]
    assert found["bias"]["mean"]["interval"] == pytest.approx([-1, -1], abs=1e-5)
    same = scores["differences"]["analysis-without-olr-without-precipitation"]
    assert not any(each["significant"] or each["value"] for levels in same.values() for each in levels.values())
    assert "spread_skill" not in scores["differences"]["climatology"], "one member has no spread to compare"
    assert "interval" not in found["day_change"]["mean"], "three days in a row are one block"
    minus = scores["confidence"]["analysis_minus"]["analysis-without-olr"]
    assert {score: levels["mean"] for score, levels in found.items()} == minus


def test_spectra_and_ranks_are_those_of_the_closed_form(verified):
    scores = verified[0]
    for c, level in enumerate(("100", "500", "850")):
        spectrum = scores["spectra"][level]
        assert spectrum["wavenumber"] == list(range(9))
        days = FLAT[c] + np.where(np.searchsorted(DAYS, CASES) % 2, 2.0, -2.0)
        assert spectrum["truth"] == pytest.approx([np.mean(days**2)] + [0] * 8, rel=1e-6, abs=1e-9)
        offset = np.where(np.searchsorted(DAYS, CASES) % 2, 2.0, -2.0) + c + 1
        assert spectrum["increment"][0] == pytest.approx(np.mean(offset**2), rel=1e-4), "mean minus climatology"
        assert scores["ranks"][level] == [0, 1, 0, 0], "one member of three lies below the truth"


def test_sums_are_read_again_and_give_the_same_scores(verified):
    scores, _, folder = verified
    sums = read_sums(folder)
    assert np.array_equal(sums.time, CASES)
    for score, found in scores["systems"]["analysis"].items():
        whole = sums.whole("analysis", "temperature", score)
        assert [*whole, whole.mean()] == pytest.approx(list(found.values()), abs=1e-12), score
    # the same pairing as the verification's own, by the resamples of the run's seed
    bootstrap = Bootstrap(sums.time, 50, generator(0, "validation"))
    one, other = (sums.estimate(bootstrap, name, "temperature", "crps") for name in ("analysis", "climatology"))
    assert list(one.minus(other).interval(-1)) == scores["differences"]["climatology"]["crps"]["mean"]["interval"]
    some = sums.on(CASES[1:3])
    assert some.daily("analysis", "temperature", "rmse") == pytest.approx(np.array([[1, 2, 3]] * 2), abs=2e-5)
    with pytest.raises(ContractError, match="hold no 2001-01-07"):
        sums.on(CASES + 1)
    with pytest.raises(ContractError, match="hold no crps of ozone"):
        sums.whole("analysis", "ozone", "crps")


def test_no_sums_and_damaged_ones_are_told_apart(tmp_path):
    with pytest.raises(ContractError, match="no sums there"):
        read_sums(tmp_path)
    for damaged in (b"PK" + bytes(100), b""):
        (tmp_path / "sums.npz").write_bytes(damaged)
        with pytest.raises(ContractError, match="damaged"):
            read_sums(tmp_path)
    for absent in ({"dates": DAYS, "a/b/crps/total": np.zeros((1, 1, 1))}, {"a/b/crps/weight": np.zeros((1, 1))}):
        np.savez(tmp_path / "sums.npz", **absent)
        with pytest.raises(ContractError, match="damaged"):
            read_sums(tmp_path)


@pytest.fixture
def weather(config, tmp_path):
    """A run of 40 days and 4 members that are noise about the truth."""
    days, rng = DAYS[:40], np.random.default_rng(0)
    x = truth(days)
    members = (x + rng.normal(size=(4, *x.shape)) * [[[0.5]], [[1]], [[2]], [[1]], [[3]]]).astype(np.float32)
    product = analysis.create(tmp_path / "weather" / "analysis.zarr", SPEC, days, 4, {"config": {}})
    product.write(np.arange(4), np.arange(40), members)
    product.finish()
    return replace(config, folder=str(tmp_path / "weather"))


def test_scores_are_those_of_xarray_by_names_of_dimensions(weather):
    """As WeatherBench-X reads a product: nothing of ours but the two files."""
    found = verify(weather)
    with xr.open_zarr(f"{weather.folder}/analysis.zarr") as product, xr.open_zarr(weather.archive) as archive:
        for name, where in (("temperature", found["systems"]), ("precipitation", found["other_modalities"])):
            scores = where["analysis"] if name == "temperature" else where[name]["systems"]["analysis"]
            known = archive[name].sel(time=product.time).load().astype("float64")
            x = product[name].load().astype("float64")
            edges = np.deg2rad(np.linspace(90, -90, known.sizes["latitude"] + 1))
            weight = xr.DataArray(-np.diff(np.sin(edges)), dims="latitude")
            every = ["time", "latitude", "longitude"]
            error = x.mean("member") - known
            variance = x.fillna(0).var("member", ddof=1).where(known.notnull())
            pairs = abs(x - x.rename(member="other")).sum(["member", "other"]) / (2 * 4 * 3)
            crps = (abs(x - known).mean("member", skipna=False) - pairs).weighted(weight).mean(every)
            rmse, spread = (np.sqrt(f.weighted(weight).mean(every)) for f in (error**2, variance))
            bias = error.weighted(weight).mean(every)
            expected = {"crps": crps, "rmse": rmse, "spread": spread, "bias": bias}
            expected["spread_skill"] = np.sqrt(5 / 4) * spread / rmse
            for score, values in expected.items():
                ours = list(scores[score].values())[:-1] or list(scores[score].values())
                np.testing.assert_allclose(ours, np.atleast_1d(values), rtol=1e-6, err_msg=f"{score} of {name}")


def test_scores_do_not_depend_on_processes_or_chunks(weather, monkeypatch):
    """The scores are functions of what is compared here: bit for bit between processes."""
    case = open_case(weather)
    one, shared = tallied(case), tallied(case, processes=2)
    assert one.n_members == shared.n_members and one.sums.found.keys() == shared.sums.found.keys()
    wholes = [*zip(one.spectra.values(), shared.spectra.values(), strict=True), (one.ranks, shared.ranks)]
    for ours, theirs in [(one.sums.found[key], shared.sums.found[key]) for key in one.sums.found] + wholes:
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.setattr("sample.tally.CHUNK_DAYS", 7)
    by_week = tallied(case)
    for key in one.sums.found:
        for a, b in zip(one.sums.found[key], by_week.sums.found[key], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(key))
    for kind, (total, _) in one.spectra.items():  # of all dates, added in another order
        np.testing.assert_allclose(by_week.spectra[kind][0], total, rtol=1e-12)


def test_page_tables_and_figures_are_one_artifact_on_wandb(config, tmp_path, monkeypatch):
    """Logged once, however often the same is verified; nothing without being asked."""
    logged = []
    original = wandb.Run.log_artifact
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda run, made: (logged.append(made), original(run, made))[1])
    asked = replace(config, verify=replace(config.verify, folder=str(tmp_path / "page"), wandb="offline"))
    for each in (replace(asked, verify=replace(asked.verify, wandb="disabled")), asked, asked):
        verify(each)
    (artifact,) = (each for each in logged if each.type == "verification")
    names = set(artifact.manifest.entries)
    assert {"report.html", "scores.csv", "scores.json", "maps.png", "maps.svg"} <= names
    assert names == {path.name for path in (tmp_path / "page").iterdir()} - {"sums.npz", "wandb"}
    assert list((tmp_path / "page" / "wandb").glob("offline-run-*/*.wandb"))


def test_verifying_again_changes_nothing(config):
    assert verify(config) == verify(config)


def test_one_member_has_no_spread(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "single"))
    write_product(tmp_path / "single" / "analysis.zarr", [1.0], days=CASES[:1])
    scores = verify(config)
    assert scores["systems"]["analysis"]["crps"] == scores["systems"]["analysis"]["rmse"] == levels(1, 2, 3)
    assert scores["systems"]["analysis"]["spread_skill"] == levels(0, 0, 0)
    assert "interval" not in scores["confidence"]["systems"]["analysis"]["rmse"], "one date cannot say how sure it is"
    page = (tmp_path / "single" / "verify" / "report.html").read_text()
    assert page.count("One member has no spread") == 1
    shown = re.sub(r"<p class.*?</p>|<details>.*?</details>|<style>.*?</style>", "", page, flags=re.DOTALL).lower()
    for absent in ("spread", "rank", "reliable"):
        assert absent not in shown, absent
    assert not (tmp_path / "single" / "verify" / "ranks.png").exists()


def test_every_number_of_the_page_has_its_interval(verified):
    scores, _, folder = verified
    page = Page((folder / "report.html").read_text())

    def cell(table, system, score, form, level="mean"):
        value = table["systems"][system][score][level]
        low, high = table["intervals"][system][score][level]
        return f"{value:{form}}{low:{form}} to {high:{form}}"

    state, by_level, olr = ([row[1:] for row in page.rows if row[0] == "analysis" and len(row) == n] for n in (6, 4, 3))
    told = {"rmse": ".2f", "crps": ".2f", "spread_skill": ".2f", "bias": "+.3f", "w1": ".3f"}
    assert state == [[cell(scores, "analysis", score, form) for score, form in told.items()]]
    for row, score in zip(by_level, ("rmse", "crps", "spread_skill"), strict=True):
        assert row == [cell(scores, "analysis", score, ".2f", level) for level in ("100", "500", "850")]
    assert [cell(scores["other_modalities"]["olr"], "analysis", score, ".2f") for score in ("rmse", "crps")] in olr
    assert [row[3] for row in page.rows if row[0] == "climatology" and len(row) == 6] == ["-"]


def test_an_archive_standardised_by_single_numbers_still_has_a_climatology(config, tmp_path):
    """The truth is the mean plus and minus 2 on alternate days, which no annual cycle explains."""
    write_archive(tmp_path / "scalar.zarr", "scalar")
    scores = verify(replace(config, archive=str(tmp_path / "scalar.zarr")))
    assert scores["systems"]["climatology"]["rmse"]["mean"] == pytest.approx(2, abs=0.2)


def test_a_product_of_temperature_alone_is_verified(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "alone"))
    spec = SPEC.subset(("temperature",))
    product = analysis.create(tmp_path / "alone" / "analysis.zarr", spec, CASES, 2, {"config": {}})
    x = truth(DAYS)[np.searchsorted(DAYS, CASES), :3]
    product.write(np.arange(2), np.arange(len(CASES)), np.stack([x, x + 2]))
    product.finish()
    scores = verify(config)
    assert scores["other_modalities"] == {}
    assert scores["systems"]["analysis"]["rmse"] == levels(1, 1, 1)


@pytest.mark.parametrize(("network", "knows"), [("paper", 0), ("base", 2)])
def test_the_autoencoder_is_scored_on_what_it_decodes(config, tmp_path, network, knows):
    """A network of zeros decodes the mean, so that its error is the climatology's, 2."""
    model = ModelConfig("autoencoder", network, hidden=[4], blocks=[1])
    weights = build(model, SPEC, (5, *GRID.shape), statistics()).state_dict()
    zeros = {name: np.zeros_like(w.numpy()) if w.is_floating_point() else w.numpy() for name, w in weights.items()}
    document = {"config": {}, "model": asdict(model), "input": [5, *GRID.shape]}
    folder = tmp_path / "autoencoder"
    folder.mkdir()
    write_bundle(folder, {"ema": zeros}, SPEC, statistics(), document)
    scores = verify(replace(config, autoencoder=str(folder)))
    assert scores["has_autoencoder"]
    assert scores["systems"]["autoencoder"]["rmse"] == levels(2, 2, 2)
    others = [table["systems"].get("autoencoder") for table in scores["other_modalities"].values()]
    assert [found["rmse"]["mean"] for found in others if found] == pytest.approx([2] * knows, abs=1e-5)
    assert "truth encoded and decoded" in (tmp_path / "run" / "verify" / "report.html").read_text()
    write_product(tmp_path / "run" / "analysis-without-x.zarr", OFFSETS, autoencoder_sha256="0" * 64)
    refused(replace(config, autoencoder=str(folder)), "was made with another autoencoder than .*; give that one")


def refused(config, match):
    with pytest.raises(ContractError, match=match) as error:
        verify(config)
    assert "\n" not in str(error.value)


def test_no_product_is_refused(config, tmp_path):
    refused(replace(config, folder=str(tmp_path / "nothing")), "no analysis there")


def test_an_unfinished_product_is_refused(config, tmp_path):
    write_product(tmp_path / "run" / "analysis-without-olr.zarr", OFFSETS, finished=False)
    refused(config, r"analysis-without-olr.zarr: is not finished")


def test_products_of_other_days_are_refused(config, tmp_path):
    write_product(tmp_path / "run" / "analysis-without-olr.zarr", OFFSETS, days=CASES + 1)
    refused(config, "other valid days")


def test_days_outside_the_truth_are_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "late"))
    spec = SPEC.subset(("temperature",))
    product = analysis.create(tmp_path / "late" / "analysis.zarr", spec, CASES + 3650, 1, {"config": {}})
    product.finish()
    refused(config, "2011-01-02 is outside 2001-01-01 to 2001-02-28")


def test_another_grid_is_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "coarse"))
    spec = StateSpec(Grid(4, 8), (TEMPERATURE,))
    analysis.create(tmp_path / "coarse" / "analysis.zarr", spec, CASES, 1, {"config": {}}).finish()
    refused(config, r"has a grid of \(8, 16\)")


def test_other_units_are_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "celsius"))
    spec = StateSpec(GRID, (replace(TEMPERATURE, units="degC"),))
    analysis.create(tmp_path / "celsius" / "analysis.zarr", spec, CASES, 1, {"config": {}}).finish()
    refused(config, "levels or units of temperature are not those of")


def test_other_observations_than_were_assimilated_are_refused(config, tmp_path):
    """The baselines would have been given others than the analysis."""
    given = open_observations(config.observations).checksum
    write_product(tmp_path / "run" / "analysis-without-olr.zarr", OFFSETS, observations_sha256=given)
    assert set(open_case(config).products) == {"analysis", "analysis-without-olr"}
    x = truth(DAYS)[:, :3]
    seen = Gridded("temperature", Operator("subsample", 1), x + 1, np.ones_like(x), x > 0)
    write_observations(tmp_path / "other.zarr", SPEC, DAYS, [seen], {"config": {}})
    match = "other.zarr: is not what was assimilated in .*analysis-without-olr.zarr; give that set"
    refused(replace(config, observations=str(tmp_path / "other.zarr")), match)


def test_observations_of_another_truth_are_refused(config, tmp_path):
    """As where an archive was made anew, of another world, at the same place."""
    zarr.open_group(config.observations, mode="r+").attrs["statistics_sha256"] = "0" * 64
    refused(config, "was simulated from another archive than .*archive.zarr is now; give that one")


def test_another_background_than_the_products_is_refused(config, tmp_path):
    """Persistence and the increment would have been another's."""
    write_product(tmp_path / "run" / "analysis-without-x.zarr", OFFSETS, background="before.zarr")
    refused(config, "was made with another background than none: before.zarr; give that one")
    shutil.rmtree(tmp_path / "run" / "analysis-without-x.zarr")
    shutil.rmtree(tmp_path / "run" / "analysis.zarr")
    write_product(tmp_path / "run" / "analysis.zarr", OFFSETS, background=config.archive, background_sha256="0" * 64)
    given = replace(config, background=config.archive)
    refused(given, "was made with another background than .*archive.zarr is now: .*archive.zarr; give that one")


def test_a_background_is_told_by_what_it_is_made_of(config, tmp_path):
    own = FirstGuess(config.archive, SPEC).checksum
    shutil.copytree(config.archive, tmp_path / "copy.zarr")
    assert FirstGuess(tmp_path / "copy.zarr", SPEC).checksum == own
    for name, config_of_it in (("weak", {"error_share": 0.3}), ("strong", {"error_share": 0.6})):
        write_archive(tmp_path / f"{name}.zarr", config=config_of_it)
    weak, strong = (FirstGuess(tmp_path / f"{name}.zarr", SPEC).checksum for name in ("weak", "strong"))
    assert len({own, weak, strong}) == 3
    found = []
    for name, offset in (("one", 0.0), ("again", 0.0), ("other", 0.5)):
        path = tmp_path / f"{name}.zarr"
        product = analysis.create(path, SPEC, CASES[:1], 1, {"config": {}}, unit=(1, 1))
        crc32 = product.write(np.arange(1), np.arange(1), truth(CASES[:1])[None] + np.float32(offset))
        entry = {"members": [0], "days": [str(CASES[0])], "crc32": crc32}
        product.close_unit(f"{CASES[0]}_{CASES[0]}_m000-000", entry)
        product.finish()
        found.append(FirstGuess(path, SPEC).checksum)
    assert found[0] == found[1] != found[2]


def test_the_background_of_a_date_is_that_of_the_segments_it_was_drawn_in(config, tmp_path):
    """Segments of two days with a halo of one, whatever period the verification is given."""
    made = asdict(PeriodConfig("2001-01-04", "2001-01-07", segment_days=2, halo_days=1))
    write_product(tmp_path / "lain" / "analysis.zarr", OFFSETS, days=DAYS[3:7], period=made, background=config.archive)
    period = PeriodConfig("2001-01-03", "2001-02-28", segment_days=5, halo_days=4)
    case = open_case(replace(config, folder=str(tmp_path / "lain"), background=config.archive, period=period))
    before = [str(case.before[day]) for day in DAYS[3:7]]
    assert before == ["2001-01-02", "2001-01-02", "2001-01-04", "2001-01-04"]


def test_a_cell_that_the_train_years_hardly_observed_is_no_hole_in_the_analysis(config, tmp_path):
    """A gauge on the coast that the truth knows, and of which no analysis holds anything."""
    group = zarr.open_group(config.archive, mode="r+")
    shore = tuple(np.argwhere(LAND == 0)[0])
    group["precipitation"][(slice(None), *shore)] = 5.0
    zarr.open_group(Path(config.folder) / "analysis.zarr", mode="r+")["precipitation"][(..., *shore)] = np.nan
    scores = verify(config)
    assert scores["not_verified"] == []
    rain = scores["other_modalities"]["precipitation"]["systems"]["analysis"]
    assert rain["rmse"]["mean"] == pytest.approx(1, abs=1e-5)


def test_rain_below_none_is_none_of_every_system(config, tmp_path, monkeypatch):
    """The climatology is 3 and gauges say 8 below the truth of 1 or 5: none, and so errors of 1 and 5."""
    x = truth(DAYS)[:, 3:4] - 8
    given = Gridded("precipitation", Operator("subsample", 1), x, np.ones_like(x), np.isfinite(x))
    write_observations(tmp_path / "low.zarr", SPEC, DAYS, [given], {"config": {}})
    case = open_case(replace(config, observations=str(tmp_path / "low.zarr")))
    systems = dict(case.systems(0))
    for name in ("interpolation", "anomaly_interpolation"):
        assert systems[name][0, 3][LAND > 0] == pytest.approx(0)
    below = statistics()
    below.harmonics[0, 3] = -1
    wet = replace(case, climatology=below, first_guess=FirstGuess(config.archive, SPEC), before={CASES[0]: CASES[0]})
    monkeypatch.setattr(FirstGuess, "read", lambda *_: truth(DAYS)[0] - 9)
    for name, x in wet.systems(0):
        assert name == "analysis" or not (x[:, 3] < 0).any(), name
    assert not (wet.guess(0)[3] < 0).any()


def test_a_gauge_on_the_coast_departs_from_the_climatology_of_the_land(config, tmp_path):
    """Between a cell of land, of 3 mm/day, and one of sea, where nothing is known; it reports 3 and so no departure."""
    row, last = np.argwhere(LAND > 0).max(axis=0)
    n, longitude = 1, np.array([GRID.longitude[last] + 0.45 * 360 / GRID.n_longitude])
    seen = Stations(
        "precipitation", CASES[:1], np.zeros(n, int), GRID.latitude[[row]], longitude, np.full(n, np.nan, np.float32),
        np.full(n, 3, np.float32), np.ones(n, np.float32), np.array(["a"], object), np.zeros(n, np.int8),
    )  # fmt: skip
    write_observations(tmp_path / "coast", SPEC, CASES[:1], [seen], {"config": {}})
    systems = dict(open_case(replace(config, observations=str(tmp_path / "coast"))).systems(0))
    assert systems["anomaly_interpolation"][0, 3][LAND > 0] == pytest.approx(3)


def test_segments_of_one_day_join_every_day(config):
    days, path = DAYS[3:6], Path(config.folder) / "analysis.zarr"
    shutil.rmtree(path)
    product = analysis.create(path, SPEC, days, 3, {"config": {}, "prior": "flat"}, unit=(3, 1))
    for where, day in enumerate(days):
        members = truth(DAYS)[3 + where][None, None] + OFFSETS.astype(np.float32)[:, None, None, None, None]
        crc32 = product.write(np.arange(3), np.array([where]), members)
        product.close_unit(f"{day}_{day}_m000-002", {"members": [0, 1, 2], "days": [str(day)], "crc32": crc32})
    product.finish()
    found = verify(config)["systems"]["analysis"]
    assert "day_change" not in found and found["day_change_at_joins"]["mean"] == pytest.approx(1)


def test_a_truth_that_never_changes_gives_no_pace(config):
    group = zarr.open_group(config.archive, mode="r+")
    group["temperature"][:] = group["temperature"][:1]
    assert "day_change" not in verify(config)["systems"]["analysis"]


def test_one_survivor_of_two_has_a_page_without_a_spread(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "survived"))
    write_product(tmp_path / "survived" / "analysis.zarr", [1.0, np.nan])
    scores = verify(config)
    assert scores["members"] == 2 and "spread_skill" not in scores["systems"]["analysis"]
    page = (tmp_path / "survived" / "verify" / "report.html").read_text()
    assert "On no date two members could be drawn" in page and "(1 is reliable)" not in page


def test_scores_of_before_do_not_stand_beside_what_is_being_written(config, monkeypatch):
    verify(config)
    folder = Path(config.folder) / "verify"
    before = (folder / "scores.csv").read_bytes()

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sample.report.write_text", full)
    monkeypatch.setattr("sample.verify.write_text", full)
    with pytest.raises(OSError, match=r"scores\.csv"):
        verify(replace(config, seed=5))
    assert not (folder / "scores.json").exists() and (folder / "scores.csv").read_bytes() == before


def test_a_copy_of_a_product_is_no_withheld_modality(config):
    path = Path(config.folder)
    shutil.copytree(path / "analysis.zarr", path / "analysis_backup.zarr")
    assert list(open_case(config).products) == ["analysis"]


def test_stations_are_compared_with_the_climatology_where_they_stand(config, tmp_path):
    """Stations between cells and levels report the climatology there, which is far from that of the cell they are in:
    there is no departure, and c + I(y - H c) is c."""
    rng, n = np.random.default_rng(0), 400
    latitude, longitude = rng.uniform(-80, 80, n), rng.uniform(0, 360, n)
    level = np.exp(rng.uniform(np.log(100), np.log(850), n)).astype(np.float32)
    known = np.interp(np.log(level), np.log([100, 500, 850]), FLAT[:3]).astype(np.float32)
    whole = np.zeros(n, int)
    seen = Stations(
        "temperature", CASES[:1], whole, latitude, longitude, level, known,
        np.ones(n, np.float32), np.array(["a"] * n, object), np.zeros(n, np.int8),
    )  # fmt: skip
    write_observations(tmp_path / "stations", SPEC, CASES[:1], [seen], {"config": {}})
    case = open_case(replace(config, observations=str(tmp_path / "stations")))
    systems = dict(case.systems(0))
    found = systems["anomaly_interpolation"][0, :3] - FLAT[:3, None, None]
    assert np.abs(found).max() < 1e-3
    plain = systems["interpolation"][0, :3] - FLAT[:3, None, None]
    assert np.abs(plain).mean() > 3, "values are filed under the nearest level"


def test_a_hole_in_the_product_is_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "holed"))
    write_product(tmp_path / "holed" / "analysis.zarr", [0.0, 1.0])
    zarr.open_group(tmp_path / "holed" / "analysis.zarr", mode="r+")["temperature"][1, 0, 0, 2, 3] = np.nan
    refused(config, "temperature has missing or infinite values")


def test_a_day_on_which_all_members_diverged_is_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "bare"))
    write_product(tmp_path / "bare" / "analysis.zarr", [np.nan, np.nan])
    refused(config, "holds no member on 5 of 5 days, the first 2001-01-04: all diverged")


def test_a_modality_that_the_analysis_lacks_in_part_is_left_out_in_a_sentence(config, tmp_path, capsys):
    """The truth of rain is known on land; the autoencoder has it, so that nothing but the analysis is to blame."""
    config = replace(config, folder=str(tmp_path / "holed"))
    write_product(tmp_path / "holed" / "analysis.zarr", [0.0, 1.0])
    zarr.open_group(tmp_path / "holed" / "analysis.zarr", mode="r+")["precipitation"][1, 0, 3, 5] = np.nan
    scores = verify(config)
    assert scores["not_verified"] == ["precipitation"] and list(scores["other_modalities"]) == ["olr"]
    sentence = "Not verified: precipitation, of which the analysis lacks values where the truth has them."
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in (tmp_path / "holed" / "verify" / "report.html").read_text()


def test_a_folder_of_results_that_is_a_url_is_refused(config):
    with pytest.raises(ValueError, match=r"verify.folder: s3://b/v is a URL; a folder on this machine is needed"):
        verify(replace(config, verify=replace(config.verify, folder="s3://b/v")))


def test_unusable_observations_are_refused_before_anything_is_scored(config, tmp_path, monkeypatch):
    monkeypatch.setattr("sample.verify.tallied", lambda *_: pytest.fail("scored"))
    write_product(tmp_path / "run" / "analysis-without-olr.zarr", OFFSETS)
    coarse = StateSpec(Grid(4, 8), (TEMPERATURE,))
    x = np.full((1, 3, 4, 8), 250, np.float32)
    seen = Gridded("temperature", Operator("subsample", 1), x, np.ones_like(x), x > 0)
    write_observations(tmp_path / "held.zarr", coarse, CASES[:1], [seen], {"config": {}})
    refused(replace(config, verify=replace(config.verify, observations=str(tmp_path / "held.zarr"))), "is not what")


def test_every_product_is_told_in_observation_space(verified):
    scores = verified[0]
    names = ["analysis", "analysis-without-olr", "analysis-without-olr-without-precipitation"]
    assert list(scores["observation_space"]) == names
    products = [found["product"].rpartition("/")[2] for found in scores["observation_space"].values()]
    assert products == [f"{name}.zarr" for name in names]


def test_a_member_that_could_not_be_drawn_is_left_out(config, tmp_path):
    """The scores are those of the members there are."""
    found = []
    for name, offsets in (("lost", [0.0, np.nan, 1.0]), ("fewer", [0.0, 1.0])):
        write_product(tmp_path / name / "analysis.zarr", offsets)
        found.append(verify(replace(config, folder=str(tmp_path / name)))["systems"]["analysis"])
    assert found[0] == found[1]


@pytest.mark.parametrize("chunk", [2, 16])
def test_members_that_are_missing_on_the_last_date_take_no_interval_away(config, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("sample.tally.CHUNK_DAYS", chunk)
    config = replace(config, folder=str(tmp_path / "lost"))
    product = analysis.create(tmp_path / "lost" / "analysis.zarr", SPEC, CASES, 3, {"config": {}})
    x = truth(DAYS)[np.searchsorted(DAYS, CASES)]
    members = np.stack([x + offset for offset in OFFSETS])
    members[1:, -1] = np.nan
    product.write(np.arange(3), np.arange(len(CASES)), members)
    product.finish()
    scores = verify(config)
    assert scores["ensemble_size"]["analysis"] == 3 and scores["ensemble_size"]["climatology"] == 1
    assert set(scores["intervals"]["analysis"]["spread_skill"]) == {"100", "500", "850", "mean"}
    # a variance of 4 and a squared error of 1, times the level's number squared: of the dates that have a spread alone
    assert scores["systems"]["analysis"]["spread_skill"] == levels(*[np.sqrt(4 * 4 / 3)] * 3)


def test_sums_are_of_double_precision(config):
    found = tallied(open_case(config)).sums.found
    assert {total.dtype for total, _ in found.values()} == {np.dtype(np.float64)}
