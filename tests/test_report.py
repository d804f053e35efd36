"""The archive's page is whole HTML, shows what is missing, and its numbers are those that xarray finds."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
import yaml

from data_prep.__main__ import main
from data_prep.report import page_path, spans
from data_prep.stations import REPORT
from data_prep.summary import Summary, summarise
from slams.contracts import archive as contract
from slams.contracts.archive import open_archive
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics

AIR = Modality("temperature", "state", "K", "air_temperature", (100, 500, 850))
SPEC = StateSpec(Grid(6, 12), (AIR, PRECIPITATION, OLR))
DAYS = np.arange("2000-01-01", "2002-01-01", dtype="datetime64[D]")
GONE = ["2000-02-29", "2001-05-06", "2001-05-07"]
VOID = ("meta", "img", "br", "link")


class Page(HTMLParser):
    """The tables as {first cell: other cells}, the text, and whether every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.images, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.table = {row[0]: row[1:] for row in self.rows if row}

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if not {"td", "th"}.isdisjoint(self.open):
            self.rows[-1][-1] += data


def values():
    numbers = np.random.default_rng(0)
    x = 250 + 10 * numbers.standard_normal((len(DAYS), 5, *SPEC.grid.shape))
    x[:, 3] = numbers.gamma(0.3, 10, x[:, 3].shape)
    x[:, 3, :, 5:] = np.nan  # no gauges at sea
    x[np.isin(DAYS, np.array(GONE, "datetime64[D]")), 4] = np.nan
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An archive, its configuration, and the page."""
    folder = tmp_path_factory.mktemp("report")
    x = values()
    missing = {"temperature": [], "precipitation": [], "olr": GONE}
    attributes = {
        "config": {"decimals": 7},
        "splits": {"train": [2000, 2000], "test": [2001, 2001]},
        "missing_days": missing,
    }
    group = contract.create(folder / "archive.zarr", SPEC, DAYS, np.zeros(len(DAYS), np.int32), attributes)
    for name in SPEC.names:
        contract.write_block(
            group, name, 0, x[:, SPEC.channels(name)].squeeze(1) if name != "temperature" else x[:, :3]
        )
    group["olr"].attrs["loss_bound"] = 0.05
    land = {"land_fraction": np.tile(np.arange(12) < 5, (6, 1)).astype(np.float32)}
    shape = (5, 1, 1)
    statistics = Statistics(np.zeros((1, *shape)), np.ones(shape), np.zeros(5, bool), np.ones((5, 6, 12), bool), land)
    contract.finish(folder / "archive.zarr", statistics, [1.0] * 5)
    years = {"train_years": [2000, 2000], "validation_years": [2002, 2002], "test_years": [2001, 2001]}
    section = {
        "path": str(folder / "archive.zarr"),
        "sources": {"temperature": "t"},
        "n_latitude": 6,
        "n_longitude": 12,
    }
    (folder / "prep.yaml").write_text(yaml.safe_dump({"archive": section | years}))
    assert main(["report", str(folder / "prep.yaml")]) == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return Page((made / "archive_report.html").read_text())


def test_it_needs_nothing_but_itself(made, page):
    text = (made / "archive_report.html").read_text()
    assert "http" not in text.replace("https://", "http://").split("<pre>")[0]
    assert len(page.images) == 5 and all(
        i["src"].startswith("data:image/png;base64,") and i["alt"] for i in page.images
    )
    assert not (made / "archive_report.html.partial").exists()


def test_it_names_what_made_the_archive_and_not_what_was_given(made):
    text = (made / "archive_report.html").read_text()
    assert "decimals: 7" in text and "n_latitude: 6" not in text


def test_it_shows_the_missing_days(page):
    assert page.table["olr"] is not None
    rows = [row for row in page.rows if row[0] == "olr" and "2000-02-29" in row[-1]]
    assert rows == [["olr", "3", f"{300 / len(DAYS):.2f} %", "2000-02-29, 2001-05-06 to 2001-05-07"]]


def test_its_numbers_are_those_of_xarray(made, page):
    data = xr.open_zarr(made / "archive.zarr", consolidated=True).load()
    weights = xr.DataArray(SPEC.grid.area_weights, dims=("latitude", "longitude"))
    fields = {f"temperature_{v} (K)": data.temperature.sel(level=v) for v in AIR.level_hpa}
    fields |= {"precipitation (mm/day)": data.precipitation, "olr (W m-2)": data.olr}
    for name, field in fields.items():
        field = field.astype(float)
        weighted = field.weighted(weights)
        expected = [weighted.mean(), weighted.std(), field.min(), field.max()]
        assert [float(cell) for cell in page.table[name][:4]] == pytest.approx([float(v) for v in expected], abs=6e-4)
        share = 100 * float(field.notnull().weighted(weights).mean())
        assert float(page.table[name][4].rstrip(" %")) == pytest.approx(share, abs=0.06)


def test_maps_and_histograms_are_those_of_xarray_whatever_the_blocks(made, monkeypatch):
    data = xr.open_zarr(made / "archive.zarr", consolidated=True).load()
    for size in (2**25, 1):
        monkeypatch.setattr("data_prep.summary.BLOCK_BYTES", size)
        for summary in summarise(open_archive(made / "archive.zarr")):
            field = data[summary.modality.name].astype(float)
            mean, std = field.mean("time").values, field.std("time").values
            shape = summary.moments.mean.shape
            seen = summary.moments.count > 0
            np.testing.assert_allclose(summary.moments.mean[seen], mean.reshape(shape)[seen], rtol=1e-9)
            np.testing.assert_allclose(summary.moments.std, std.reshape(shape), rtol=1e-7)
            levels = field.values.reshape(len(DAYS), shape[0], -1)
            for channel in range(shape[0]):
                x = levels[:, channel][np.isfinite(levels[:, channel])]
                np.testing.assert_array_equal(summary.histogram_CN[channel], np.histogram(x, summary.edges)[0])
                assert summary.histogram_CN[channel].sum() == x.size


def test_it_shows_what_was_rejected_of_the_reports(made, tmp_path):
    """Where the quality control has left its counts, and not else."""
    config = yaml.safe_load((made / "prep.yaml").read_text())
    config["stations"] = {
        "path": f"{tmp_path}/stations",
        "igra": "*",
        "first_day": "2000-01-01",
        "last_day": "2000-01-02",
    }
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    page = made / "archive_report.html"
    before = page.read_text()
    try:
        assert main(["report", str(tmp_path / "prep.yaml")]) == 0
        assert "Reports of stations" not in page.read_text()
        counts = [
            {"variable": "temperature", "level_hpa": 500, "used": 1234, "background": 5},
            {"variable": "temperature", "level_hpa": 850, "used": 99, "gross": 7},
        ]
        (tmp_path / "stations").mkdir()
        told = {"codes": {"used": 0, "gross": 1, "background": 2}, "counts": counts, "background": {}}
        (tmp_path / "stations" / REPORT).write_text(json.dumps(told))
        assert main(["report", str(tmp_path / "prep.yaml")]) == 0
        found = Page(page.read_text())
        assert "Reports of stations: used, and rejected by what" in found.text
        assert ["", "used", "gross", "background"] in found.rows
        assert found.table["temperature 500"] == ["1234", "0", "5"]
        assert found.table["temperature 850"] == ["99", "7", "0"]
    finally:
        page.write_text(before)


def test_sizes_are_those_on_disk(made, page):
    for name in SPEC.names:
        stored = sum(path.stat().st_size for path in (made / "archive.zarr" / name).rglob("*") if path.is_file())
        (row,) = [row for row in page.rows if row[0] == name and row[1].endswith(" MB")]
        raw = 4 * len(DAYS) * SPEC.modality(name).n_channels * 6 * 12
        assert row[1:3] == [f"{stored / 1e6:.2f} MB", f"{raw / stored:.2f}"]
        assert row[3] == ("0.05 W m-2" if name == "olr" else "none")


def test_values_beyond_what_is_possible_are_counted_at_the_end(made, tmp_path):
    """A histogram that loses values would look sound."""
    x = np.full((3, 1, 6, 12), 5000.0, np.float32)
    summary = summarise(open_archive(made / "archive.zarr"))[0]
    before = summary.histogram_CN[:, -1].copy()
    summary.add(np.repeat(x, 3, axis=1), SPEC.grid.area_weights)
    assert (summary.histogram_CN[:, -1] - before == x.size).all() and (summary.high_C == 5000).all()


def test_consecutive_days_are_named_together():
    assert spans([]) == []
    assert spans(["2001-01-02", "2000-12-31", "2001-01-01", "2001-02-01"]) == ["2000-12-31 to 2001-01-02", "2001-02-01"]


def test_without_an_archive_it_is_refused(made, tmp_path, capsys):
    assert main(["report", str(made / "prep.yaml"), f"archive.path={tmp_path}/none.zarr"]) == 2
    assert "no archive there" in capsys.readouterr().err
    assert not page_path(tmp_path / "none.zarr").exists()


def test_no_more_than_a_block_of_days_is_held(made, monkeypatch):
    held, add = [], Summary.add
    monkeypatch.setattr("data_prep.summary.BLOCK_BYTES", 120_000)  # one chunk of temperature, four of rain
    monkeypatch.setattr(Summary, "add", lambda self, x, area: (held.append(x.nbytes), add(self, x, area)))
    summarise(open_archive(made / "archive.zarr"))
    assert max(held) <= 120_000 and sum(held) == 4 * values().size
