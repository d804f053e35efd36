"""`verify` on products whose errors are known in closed form: the numbers, the page, and what it refuses."""

import contextlib
import csv
import io
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import zarr

from sample.config import PeriodConfig, SampleConfig, VerifyConfig
from sample.verify import verify
from slams.contracts import analysis, archive
from slams.contracts.bundle import write_bundle
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Gridded, Operator, write_observations
from slams.metrics import date_blocks, resampled_dates
from slams.model import ModelConfig, build
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics

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


def write_archive(folder, kind="anomaly"):
    attributes = {"config": {}, "splits": {"train": [2001, 2001], "test": [2001, 2001]}, "missing_days": {}}
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


def write_product(path, offsets, days=CASES, spec=SPEC, finished=True):
    """Members = truth + offset, larger by the level's number: at level c the error is (c + 1) times the offset."""
    product = analysis.create(path, spec, days, len(offsets), {"config": {"score_sha256": "5c0e"}, "prior": "flat"})
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
    assert not re.search(r"\b(nan|inf|None)\b", text.split("<h2>Where it comes from")[0], re.IGNORECASE)
    assert 'name="viewport"' in text
    cost = "Withholding olr changes the RMSE by +1.000 K"
    for said in ("RMSE of 2.00 K", cost, "does not beat", "5c0e", "bootstrap: 50"):
        assert said in text, said
    for name in ("maps.png", "profiles.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


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
    assert sum(row["low"] == "" for row in rows) == single * (4 + 1 + 1), "what is said of spread, by single members"


def test_verifying_again_changes_nothing(config):
    assert verify(config) == verify(config)


def test_one_member_has_no_spread(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "single"))
    write_product(tmp_path / "single" / "analysis.zarr", [1.0], days=CASES[:1])
    scores = verify(config)
    assert scores["systems"]["analysis"]["crps"] == scores["systems"]["analysis"]["rmse"] == levels(1, 2, 3)
    assert scores["systems"]["analysis"]["spread_skill"] == levels(0, 0, 0)
    assert "interval" not in scores["confidence"]["systems"]["analysis"]["rmse"], "one date cannot say how sure it is"


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


def test_a_hole_in_the_product_is_refused(config, tmp_path):
    config = replace(config, folder=str(tmp_path / "holed"))
    write_product(tmp_path / "holed" / "analysis.zarr", [0.0, 1.0])
    zarr.open_group(tmp_path / "holed" / "analysis.zarr", mode="r+")["temperature"][1, 0, 0, 2, 3] = np.nan
    refused(config, "temperature has missing or infinite values")


def test_a_member_that_could_not_be_drawn_is_left_out(config, tmp_path):
    """The scores are those of the members there are."""
    found = []
    for name, offsets in (("lost", [0.0, np.nan, 1.0]), ("fewer", [0.0, 1.0])):
        write_product(tmp_path / name / "analysis.zarr", offsets)
        found.append(verify(replace(config, folder=str(tmp_path / name)))["systems"]["analysis"])
    assert found[0] == found[1]


def test_days_in_a_row_are_one_block_of_at_most_five():
    days = np.concatenate([DAYS[:7], DAYS[10:12], DAYS[20:21]])
    np.testing.assert_array_equal(date_blocks(days), [0, 0, 0, 0, 0, 1, 1, 2, 2, 3])
    counts = resampled_dates(date_blocks(days), 400, np.random.default_rng(0))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 4])
    # four draws of four blocks: each is expected once, with standard error sqrt(3/4 / 400)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)
