"""A raw file that is wrong as a whole goes through no stage: status 2, one sentence, and nothing half-written."""

import numpy as np
import pytest
import xarray as xr
from test_errors import raw, refused, spoil  # noqa: F401 - fixtures

from data_prep.__main__ import main as prepare
from slams.contracts.archive import open_archive
from slams.contracts.shards import open_shards


def of_a_fraction(share):
    return lambda dataset: dataset.assign(precip=(dataset.precip * share).assign_attrs(units="mm"))


@pytest.mark.parametrize("share", [1 / 1000, 1 / 24])
def test_metres_and_totals_of_an_hour_that_are_called_millimetres_a_day(raw, refused, share):
    path = spoil(raw, "precipitation", of_a_fraction(share))
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert f"{path}: precipitation: 0." in said and "if it is in 'mm'; at least 0.3 mm/day falls" in said
    assert not (raw.parent / "archive").exists()
    spoil(raw, "precipitation", of_a_fraction(1 / share))  # and what was done of the others is no hindrance
    assert prepare(["archive", str(raw.parent / "prep.yaml")]) == 0
    x = open_archive(raw.parent / "archive").read(slice(365, 730))
    assert 1 < np.nanmean(x[:, 10]) < 5


def without_level(dataset):
    dataset.t[100, 5] = np.nan  # 11 April, 500 hPa
    return dataset


def test_a_day_that_lacks_a_level_is_a_missing_day(raw, refused, capsys):
    """Listed, and missing on every level: `check` finds the archive sound, and no shard holds half a profile."""
    spoil(raw, "temperature", without_level)
    config = raw.parent / "prep.yaml"
    said = refused(prepare, "archive", config)
    assert "temperature: 1 of the 1095 days from 2001-01-01 to 2003-12-31 are missing (2002-04-11)" in said
    assert not (raw.parent / "archive").exists()
    allowed = "archive.missing_days_allowed=1"
    assert prepare(["archive", str(config), allowed]) == 0 and prepare(["shards", str(config), allowed]) == 0
    archive = open_archive(raw.parent / "archive")
    assert archive.attributes["missing_days"] == {"temperature": ["2002-04-11"], "precipitation": [], "olr": []}
    x = archive.read(slice(464, 467))
    assert np.isnan(x[1, :10]).all() and np.isfinite(x[[0, 2], :10]).all() and np.isfinite(x[:, 11]).all()
    assert prepare(["check", str(raw.parent / "archive")]) == 0, capsys.readouterr().out
    days = [str(frame.time) for frame in open_shards(raw.parent / "shards").frames]
    assert len(days) == 1094 and "2002-04-11" not in days


def test_a_hole_in_the_reanalysis(raw, refused):
    """One cell of one level; no regridding may fill it from its neighbours."""

    def change(dataset):
        dataset.t[100, 5, 3, 4] = np.nan
        return dataset

    path = spoil(raw, "temperature", change)
    for more in ([], ["archive.regrid.temperature=bilinear"], ["archive.missing_days_allowed=9"]):
        said = refused(prepare, "archive", raw.parent / "prep.yaml", *more)
        assert f"{path}: temperature at 500 hPa: 1 of 544 cells have no value on 2002-04-11; all or none" in said
    assert not (raw.parent / "archive").exists()


def test_holes_in_rain_and_radiation_are_none_of_the_archive(raw):
    """Gauges and swaths have them every day: what half of a cell was seen of is kept."""

    def change(dataset):
        dataset.olr[200:202, :4] = np.nan
        return dataset

    spoil(raw, "olr", change)
    assert prepare(["archive", str(raw.parent / "prep.yaml")]) == 0
    archive = open_archive(raw.parent / "archive")
    x = archive.read(slice(465, 466))
    assert archive.attributes["missing_days"]["olr"] == []
    assert np.isnan(x[0, 11, 0]).all() and np.isfinite(x[0, 11, 3:]).all() and np.isnan(x[0, 10]).any()


def westward(dataset):
    """Longitudes from -180, latitudes ascending."""
    dataset = dataset.assign_coords(longitude=(dataset.longitude + 180) % 360 - 180)
    return dataset.sortby("longitude").sortby("latitude")


def test_other_orders_of_the_axes_are_the_same_archive(raw):
    config = str(raw.parent / "prep.yaml")
    assert prepare(["archive", config]) == 0
    for year in (2001, 2002, 2003):
        path = spoil(raw, "temperature", westward, year)
    with xr.open_dataset(path) as found:
        assert found.longitude[0] == -180 and found.latitude[0] == -90
    other = raw.parent / "other"
    assert prepare(["archive", config, f"archive.path={other}"]) == 0
    expected, found = open_archive(raw.parent / "archive"), open_archive(other)
    np.testing.assert_array_equal(found.read(slice(None)), expected.read(slice(None)))
    assert found.statistics().digest == expected.statistics().digest


def with_a_day_twice(dataset):
    return xr.concat([dataset, dataset.isel(time=[100])], "time").sortby("time")


def with_360_days(dataset):
    dataset.time.attrs["calendar"] = "360_day"
    return dataset


@pytest.mark.parametrize("name", ["temperature", "precipitation"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_a_day_twice, "day 2002-04-11 stands twice; once is allowed"),
        (with_360_days, "calendar '360_day'; allowed"),
    ],
)
def test_times_that_cannot_be(raw, refused, name, change, told):
    path = spoil(raw, name, change)
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert str(path) in said and told in said
    assert not list(raw.parent.glob("archive*"))
