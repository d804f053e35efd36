"""Files as each institution writes them come back as one field, day by day; what cannot be trusted is refused by name.

The values wanted come from the formula that `providers` fills its files with, at the coordinates that the reader gives:
so a wrong orientation, level, packing or day is a wrong value.
"""

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from netCDF4 import Dataset, num2date
from providers import (
    ERA5_LEVELS_HPA,
    chaosbench,
    climate_data_store_new,
    climate_data_store_old,
    era5_grib,
    era5_rain_grib,
    gauge_precipitation,
    google_analysis_ready,
    interpolated_olr,
    kelvin,
    millimetres,
    times,
    watts,
    weatherbench2,
)

from data_prep.__main__ import main
from data_prep.config import ArchiveConfig, SourcesConfig, VariableConfig
from data_prep.fields import open_fields
from data_prep.sources import (
    SourceError,
    find_files,
    fingerprint,
    open_olr,
    open_precipitation,
    open_static,
    open_temperature,
)
from data_prep.sources.daily import open_daily
from data_prep.sources.quantity import Quantity
from slams.contracts.archive import open_archive

DATA = Path(__file__).parent / "data"
ERA5 = DATA / "era5_tl31_19590102T00_10levels.nc"
GFS = DATA / "gfs_2011011012_f120_subset.grib2"
PACKING_K = 0.0011  # half of a step of the packed shorts
LEAP = "2004-02-28"  # every layout is read across a leap day


def day_names(field):
    return field.time.values.astype("datetime64[D]").astype(str).tolist()


def true_kelvin(field, hours=(0,)):
    """What the formula gives on the opened field's own axes, as the mean of those hours of each day."""
    axes = field.level.values, field.latitude.values, field.longitude.values
    return np.mean([kelvin(field.time.values + np.timedelta64(h, "h"), *axes) for h in hours], axis=0)


def assert_kelvin(field, hours=(0,), atol=1e-4):
    assert field.dims == ("time", "level", "latitude", "longitude") and field.dtype == np.float32
    assert (np.diff(field.latitude) < 0).all() and (np.diff(field.longitude) > 0).all()
    np.testing.assert_allclose(field, true_kelvin(field, hours), atol=atol)


# ERA5


@pytest.mark.parametrize("write", [climate_data_store_old, climate_data_store_new])
@pytest.mark.parametrize(("step_hours", "hours"), [(24, (0,)), (6, (0, 6, 12, 18))])
def test_climate_data_store_files(tmp_path, write, step_hours, hours):
    written = times(LEAP, 3 * 24 // step_hours, step_hours)
    opened = open_temperature([write(tmp_path / "t.nc", written)], ERA5_LEVELS_HPA)
    assert day_names(opened) == ["2004-02-28", "2004-02-29", "2004-03-01"]
    assert opened.level.values.tolist() == list(ERA5_LEVELS_HPA) and opened.shape[2:] == (25, 24)
    assert_kelvin(opened, hours, PACKING_K)


@pytest.mark.parametrize("boundary", ["2004-02-29T00", "2004-02-29T07"])
def test_final_and_preliminary_era5_in_one_file_are_one_field(tmp_path, boundary):
    path = climate_data_store_old(tmp_path / "t.nc", times(LEAP, 12, 6), preliminary_from=boundary)
    opened = open_temperature([path], [1000, 10])
    assert_kelvin(opened, (0, 6, 12, 18), PACKING_K)


def test_where_both_stand_the_final_era5_is_taken(tmp_path):
    path = climate_data_store_old(tmp_path / "t.nc", times(LEAP, 2), preliminary_from="2004-02-29")
    with Dataset(path, "a") as file:
        file["t"][:, 1] = 300.0
    opened = open_temperature([path], [500])
    assert_kelvin(opened[:1], atol=PACKING_K)
    np.testing.assert_allclose(opened[1], 300.0, atol=PACKING_K)  # the final is not there yet


def test_other_experiments_side_by_side_are_refused(tmp_path):
    path = climate_data_store_old(tmp_path / "t.nc", times(LEAP, 2), preliminary_from=LEAP)
    with Dataset(path, "a") as file:
        file["expver"][:] = [1, 7]
    with pytest.raises(SourceError, match=r"t\.nc: expver: 1, 7; 1 \(final\) and 5 \(preliminary\) are allowed"):
        open_temperature([path], [500])


def test_era5_in_grib(tmp_path):
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    path = era5_grib(tmp_path / "t.grib", times(LEAP, 8, 6), (850, 500))
    opened = open_temperature([path], [500, 850])
    assert day_names(opened) == ["2004-02-28", "2004-02-29"]
    assert_kelvin(opened, (0, 6, 12, 18), atol=0.002)  # 16 bits over some 40 K


@pytest.mark.parametrize("level_hpa", [(500,), (850, 500)])
def test_one_level_in_grib_is_a_level(tmp_path, level_hpa):
    """Which cfgrib gives as a scalar beside the field."""
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    path = era5_grib(tmp_path / "t.grib", times(LEAP, 2), level_hpa)
    assert_kelvin(open_temperature([path], [500]), atol=0.002)
    with pytest.raises(SourceError, match=r"t\.grib: t: no level 300 hPa; the file has .*500 hPa"):
        open_temperature([path], [300])


def test_months_of_rain_in_grib_that_share_a_forecast_are_joined(tmp_path):
    """The first hours of a month are of a forecast that began in the month before, whose file has the others of it."""
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    hours = times("2004-01-30", 4 * 24, 1)
    parts = [era5_rain_grib(tmp_path / f"{i}.grib", part) for i, part in enumerate(np.split(hours, 2))]
    opened = open_precipitation(parts)
    assert day_names(opened) == [f"2004-{day}" for day in ("01-29", "01-30", "01-31", "02-01", "02-02")]
    assert opened[[0, 4]].isnull().all() and opened[1:4].notnull().all()  # of those beside, some hours are elsewhere
    ends = opened.time.values[1:4, None] + np.arange(1, 25) * np.timedelta64(1, "h")
    rain = (kelvin(ends.ravel(), [0.0], opened.latitude.values, opened.longitude.values) - 190) / 10
    np.testing.assert_allclose(opened[1:4], rain.reshape(3, 24, 25, 24).mean(axis=1), rtol=1e-3)


@pytest.mark.parametrize(("versions", "said"), [(("0005", "0001"), r" \(expver 0001 and 0005\)"), (("0001",) * 2, "")])
def test_a_field_twice_in_a_grib_file_is_refused(tmp_path, versions, said):
    """As `cat` makes of a preliminary and a final file: of which cfgrib would take the one that comes first."""
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    parts = [
        era5_grib(tmp_path / "part.grib", times(LEAP, 2), (500, 850), setLocalDefinition=1, expver=version).read_bytes()
        for version in versions
    ]
    (tmp_path / "t.grib").write_bytes(b"".join(parts))
    said = rf"t\.grib: t at isobaricInhPa 500 of 2004-02-28T00:00 stands twice{said}; once is allowed"
    with pytest.raises(SourceError, match=said):
        open_temperature([tmp_path / "t.grib"], [850])


@pytest.mark.parametrize(("byte", "value"), [(14, 77), (17, 200), (20, 99)])  # month, unit of the step, kind of it
def test_a_damaged_header_in_grib_is_refused(tmp_path, byte, value):
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    path = era5_rain_grib(tmp_path / "p.grib", times(LEAP, 2))
    content = bytearray(path.read_bytes())
    content[8 + byte] = value
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"p\.grib: torn or damaged GRIB file"):
        open_precipitation([path])


def test_chaosbench_a_store_a_day(tmp_path):
    pattern = chaosbench(tmp_path, times(LEAP, 3))
    opened = open_temperature(find_files(pattern), ERA5_LEVELS_HPA)
    assert day_names(opened) == ["2004-02-28", "2004-02-29", "2004-03-01"]
    assert opened.shape == (3, 10, 121, 240)
    assert_kelvin(opened, atol=PACKING_K)


def test_the_climatology_of_chaosbench_is_no_day(tmp_path):
    chaosbench(tmp_path, times(LEAP, 1))
    with pytest.raises(SourceError, match=r"climatology_era5\.zarr: no temperature: it has .*mean.*; allowed are t"):
        open_temperature(find_files(f"{tmp_path}/*/*.zarr"), [500])


@pytest.mark.parametrize("form", [{}, {"consolidated": False}, {"zarr_format": 3}])
def test_weatherbench2_six_hourly_with_longitude_first(tmp_path, form):
    path = weatherbench2(tmp_path / "era5.zarr", times(LEAP, 12, 6), **form)
    opened = open_temperature([path], [1000, 500, 50])
    assert day_names(opened) == ["2004-02-28", "2004-02-29", "2004-03-01"] and opened.shape[2:] == (32, 64)
    assert opened.daily_value == "mean of 4 values a day"
    assert_kelvin(opened, (0, 6, 12, 18))


def test_weatherbench2_static_fields(tmp_path):
    static = open_static(weatherbench2(tmp_path / "era5.zarr", times(LEAP, 4, 6)))
    np.testing.assert_array_equal(static.land_fraction, np.tile(static.longitude.values < 180, (32, 1)))
    np.testing.assert_allclose(static.orography, np.tile(static.latitude.values[:, None] + 100, (1, 64)), rtol=1e-6)


def test_a_quantity_of_ones_own_is_read_by_the_same_door(tmp_path):
    names, messages = ("2m_temperature", "t2m"), (("2t", "surface"),)
    near = Quantity("t2m", "K", "air_temperature", names, messages, {"K": 1.0}, (150, 350))
    opened = open_daily([weatherbench2(tmp_path / "era5.zarr", times(LEAP, 4, 6))], near)
    assert opened.dims == ("time", "latitude", "longitude") and opened.name == "t2m"
    at_1000_hpa = open_temperature([tmp_path / "era5.zarr"], [1000])[:, 0]
    np.testing.assert_allclose(opened, at_1000_hpa + 1, rtol=1e-6)


def test_google_analysis_ready_era5_is_read_where_it_says_it_holds_data(tmp_path):
    opened = open_temperature([google_analysis_ready(tmp_path / "ar.zarr", LEAP, 3)], ERA5_LEVELS_HPA)
    assert day_names(opened) == ["2004-02-28", "2004-02-29", "2004-03-01"]  # of an axis from 1900 to 2050
    assert_kelvin(opened, range(24))


# Rain and radiation


def test_cpc_gauge_precipitation(tmp_path):
    years = [gauge_precipitation(tmp_path / "precip.2003.nc", times("2003-12-31", 1))]
    years += [gauge_precipitation(tmp_path / "precip.2004.nc", times("2004-02-28", 3))]
    opened = open_precipitation(years[::-1])
    assert day_names(opened) == ["2003-12-31", "2004-02-28", "2004-02-29", "2004-03-01"]
    assert opened.shape == (4, 360, 720) and opened.latitude[0] == 89.75 and opened.longitude[0] == 0.25
    expected = millimetres(opened.time.values, opened.latitude.values, opened.longitude.values)
    np.testing.assert_allclose(opened, expected, atol=1e-5)  # NaN where and only where the planet's ocean is


@pytest.mark.parametrize(("name", "step_hours", "hours"), [("olr.2xdaily.nc", 12, (0, 12)), ("olr.day.nc", 24, (0,))])
def test_noaa_interpolated_olr(tmp_path, name, step_hours, hours):
    written = times(LEAP, 3 * 24 // step_hours, step_hours)
    path = interpolated_olr(tmp_path / name, written, missing=[(0, 5, 7), (-1, 8, 9)])
    opened = open_olr([path])
    assert day_names(opened) == ["2004-02-28", "2004-02-29", "2004-03-01"] and opened.shape[1:] == (73, 144)
    axes = opened.latitude.values, opened.longitude.values
    expected = np.mean([watts(opened.time.values + np.timedelta64(h, "h"), *axes) for h in hours], axis=0)
    expected[0, 5, 7] = expected[2, 8, 9] = np.nan  # either mark of a missing value
    np.testing.assert_allclose(opened, expected, atol=0.0051)


# Days


def stamped(tmp_path, stamps, bounds=None, calendar="standard", values=None):
    """A small rain file with those times in hours since 2004-02-28, and, where given, bounds of each."""
    with Dataset(tmp_path / "p.nc", "w") as file:
        for name, axis in (("lat", [45.0, -45.0]), ("lon", [0.0, 120.0, 240.0]), ("time", stamps)):
            file.createDimension(name, len(axis))
            file.createVariable(name, "f8", (name,))[:] = axis
        file["time"].setncatts({"units": "hours since 2004-02-28", "calendar": calendar})
        if bounds is not None:
            file["time"].bounds = "time_bnds"
            file.createDimension("nv", 2)
            file.createVariable("time_bnds", "f8", ("time", "nv"))[:] = bounds
        file.createVariable("precip", "f4", ("time", "lat", "lon")).units = "mm/day"
        file["precip"][:] = np.arange(len(stamps))[:, None, None] if values is None else values
    return tmp_path / "p.nc"


@pytest.mark.parametrize(
    ("stamps", "bounds", "days"),
    [
        ([0, 24], None, ["2004-02-28", "2004-02-29"]),
        ([12, 36], None, ["2004-02-28", "2004-02-29"]),  # stamped at noon
        ([24, 48], [[0, 24], [24, 48]], ["2004-02-28", "2004-02-29"]),  # at the end of the day, and the bounds say so
        ([12, 24, 36, 48], [[0, 12], [12, 24], [24, 36], [36, 48]], ["2004-02-28", "2004-02-29"]),  # ends of half days
    ],
)
def test_a_value_counts_for_the_day_it_stands_for(tmp_path, stamps, bounds, days):
    opened = open_precipitation([stamped(tmp_path, stamps, bounds)])
    assert day_names(opened) == days
    n_a_day = len(stamps) // 2
    np.testing.assert_allclose(opened[:, 0, 0], [np.mean(np.arange(n_a_day)), np.mean(np.arange(n_a_day)) + n_a_day])


@pytest.mark.filterwarnings("ignore:Variable time has datetime type and a bounds variable")
def test_bounds_have_units_of_their_own(tmp_path):
    """As xarray writes days stamped at noon: time since noon of the first day, bounds since its midnight."""
    noon = times("2004-01-01T12", 3)
    start = noon.astype("datetime64[D]").astype("datetime64[ns]")
    latitude, longitude = np.array([45.0, -45.0]), np.array([0.0, 120.0, 240.0])
    fields = {
        "precip": (("time", "lat", "lon"), millimetres(noon, latitude, longitude), {"units": "mm/day"}),
        "time_bnds": (("time", "nv"), np.stack([start, start + np.timedelta64(1, "D")], axis=1)),
    }
    coords = {"time": ("time", noon, {"bounds": "time_bnds"}), "lat": latitude, "lon": longitude}
    xr.Dataset(fields, coords).to_netcdf(tmp_path / "p.nc")
    with Dataset(tmp_path / "p.nc") as file:
        assert "12:00" in file["time"].units and "00:00" in file["time_bnds"].units
    assert day_names(open_precipitation([tmp_path / "p.nc"])) == ["2004-01-01", "2004-01-02", "2004-01-03"]


def test_a_time_outside_its_bounds_is_refused(tmp_path):
    path = stamped(tmp_path, [12, 36], [[0, 24], [48, 72]])
    said = r"p\.nc: time_bnds: 2004-03-01T00:00:00 to 2004-03-02T00:00:00 for the time 2004-02-29T12:00:00, which must"
    with pytest.raises(SourceError, match=said):
        open_precipitation([path])


@pytest.mark.parametrize(("hours", "units", "allowed"), [(12, "m", False), (24, "m", True), (12, "mm/day", True)])
def test_totals_over_less_than_a_day_are_refused(tmp_path, hours, units, allowed):
    """One a day, over half of it: half of the day's rain, which least_mean is too low to see."""
    path = stamped(tmp_path, [hours, 24 + hours], [[0, hours], [24, 24 + hours]], values=np.full((2, 2, 3), 1.3e-3))
    with Dataset(path, "a") as file:
        file["precip"].units = units
    if allowed:
        assert open_precipitation([path]).sizes["time"] == 2
        return
    with pytest.raises(SourceError, match=r"p\.nc: precip: totals in 'm' over 12 hours; over whole days is allowed"):
        open_precipitation([path])


def with_further(folder, name, standard_name, units):
    """An archive of temperature and of a further variable, called precip in its file."""
    file = f"{folder}/further.nc"
    return ArchiveConfig(
        path="archive",
        sources=SourcesConfig(temperature=f"{folder}/t.nc", precipitation="", olr=""),
        n_latitude=4,
        n_longitude=8,
        train_years=[2004, 2004],
        validation_years=[2005, 2005],
        test_years=[2006, 2006],
        level_hpa=[500],
        variables=[VariableConfig(name, standard_name, units, file, ["precip"], [0, 99], on_levels=False)],
    )


@pytest.mark.parametrize(
    ("units", "standard_name", "refused"),
    [
        ("m", "lwe_thickness_of_water_evaporation_amount", True),
        ("J m**-2", "surface_downwelling_shortwave_flux_in_air", True),
        ("kg m**-2", "atmosphere_mass_content_of_water_vapor", False),
        ("W m-2", "surface_downwelling_shortwave_flux_in_air", False),
    ],
)
def test_a_further_variable_that_is_added_up_over_hours_is_not_averaged(tmp_path, units, standard_name, refused):
    """The mean of 24 hourly totals would stand for the day's total, in an unchanged unit."""
    climate_data_store_new(tmp_path / "t.nc", times(LEAP, 2), (500,))
    with Dataset(stamped(tmp_path, np.arange(48)), "a") as file:
        file["precip"].units = units
    (tmp_path / "p.nc").rename(tmp_path / "further.nc")
    config = with_further(tmp_path, "more", standard_name, units)
    if not refused:
        assert open_fields(config)["more"].sizes["time"] == 2
        return
    with pytest.raises(SourceError, match=r"further\.nc: precip: totals in '.*' at several times a day; one a day"):
        open_fields(config)


@pytest.mark.parametrize(("methods", "said"), [("time: point", "mean"), ("time: mean", "mean")])
def test_a_thickness_at_instants_is_no_total_where_its_file_says_so(tmp_path, methods, said):
    """Metres are not only what is added up; without a word of the file it stays refused, and one a day is no sum."""
    climate_data_store_new(tmp_path / "t.nc", times(LEAP, 2), (500,))
    with Dataset(stamped(tmp_path, np.arange(48)), "a") as file:
        file["precip"].units, file["precip"].cell_methods = "m", methods
    (tmp_path / "p.nc").rename(tmp_path / "further.nc")
    config = with_further(tmp_path, "ice", "sea_ice_thickness", "m")
    field = open_fields(config)["ice"]
    assert field.sizes["time"] == 2 and f"time: {said}" in field.attrs["cell_methods"]
    with Dataset(stamped(tmp_path, [0, 24], values=np.full((2, 2, 3), 1.0)), "a") as file:
        file["precip"].units = "m"
    (tmp_path / "p.nc").rename(tmp_path / "further.nc")
    assert "sum" not in open_fields(config)["ice"].attrs.get("cell_methods", "")


def test_means_of_a_month_are_refused(tmp_path):
    path = stamped(tmp_path, [0, 744], [[0, 744], [744, 1416]])
    with pytest.raises(SourceError, match=r"p\.nc: time_bnds: an interval of 31 days; 0 to 1 day is allowed"):
        open_precipitation([path])


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "365_day", "all_leap"])
def test_a_calendar_that_no_day_lived_by_is_refused(tmp_path, calendar):
    path = stamped(tmp_path, [0, 24], calendar=calendar)
    with pytest.raises(SourceError, match=rf"p\.nc: time: calendar '{calendar}'; allowed are standard, gregorian"):
        open_precipitation([path])


def test_a_day_twice_in_one_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"p\.nc: precipitation: day 2004-02-29 stands twice; once is allowed"):
        open_precipitation([stamped(tmp_path, [0, 24, 24, 48])])


def test_files_whose_days_alternate_are_put_in_order(tmp_path):
    days = times(LEAP, 6)
    paths = [climate_data_store_new(tmp_path / f"{i}.nc", days[i::2], (500,)) for i in (1, 0)]
    opened = open_temperature(paths, [500])
    assert day_names(opened) == days.astype("datetime64[D]").astype(str).tolist()
    assert_kelvin(opened)


def test_a_year_file_cut_short_has_the_days_it_has(tmp_path):
    whole = times("2004-01-01", 366)
    paths = [climate_data_store_new(tmp_path / "a.nc", whole[:20], (500,))]
    paths += [climate_data_store_new(tmp_path / "b.nc", whole[30:33], (500,))]
    opened = open_temperature(paths, [500])
    assert day_names(opened) == whole[[*range(20), *range(30, 33)]].astype("datetime64[D]").astype(str).tolist()
    assert_kelvin(opened)


def test_an_hour_that_is_missing_or_nan_makes_its_day_missing_and_no_other(tmp_path):
    values = np.ones((12, 2, 3))
    values[1] = np.nan
    stamps = np.delete(6 * np.arange(12), 10)  # of the third day
    opened = open_precipitation([stamped(tmp_path, stamps, values=np.delete(values, 10, axis=0))]).load()
    assert opened.isnull().all(("latitude", "longitude")).values.tolist() == [True, False, True]
    assert (opened[1] == 1).all()


def test_celsius_called_kelvin_is_refused(tmp_path):
    path = climate_data_store_new(tmp_path / "t.nc", times(LEAP, 1), (1000,))
    with Dataset(path, "a") as file:
        file["t"][:] = file["t"][:] - 273.15
    with pytest.raises(SourceError, match=r"t\.nc: temperature: value -?[\d.]+ K; allowed is 100 to 400"):
        open_temperature([path], [1000]).load()


@pytest.mark.parametrize(
    ("said", "bounds", "expected"),
    [
        ({}, None, None),
        ({}, [[0, 24], [24, 48]], "time: mean"),
        ({}, [[12, 12], [36, 36]], "time: point"),
        ({"cell_methods": "area: mean time: point"}, None, "time: point"),
        ({"cell_methods": "time: maximum (interval: 1 hour)"}, [[0, 24], [24, 48]], "time: maximum"),
        ({"units": "mm"}, None, "time: mean"),
        ({"units": "mm", "cell_methods": "time: sum"}, None, "time: mean"),  # millimetres a day are their rate
    ],
)
def test_a_single_value_a_day_is_what_its_file_says_it_is(tmp_path, said, bounds, expected):
    """A snapshot at 00 UTC is no daily mean; where the file says neither, nothing is claimed."""
    path = stamped(tmp_path, [12, 36], bounds)
    with Dataset(path, "a") as file:
        file["precip"].setncatts(said)
    opened = open_precipitation([path])
    assert opened.attrs.get("cell_methods") == expected and opened.daily_value.startswith("single value a day")


# Files that are not what their names say


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path):
    olr = interpolated_olr(tmp_path / "precip.2004.nc", times(LEAP, 2))
    with pytest.raises(SourceError, match=r"precip\.2004\.nc: no precipitation: it has .*olr.*; allowed are precip"):
        open_precipitation([olr])
    assert open_olr([olr]).shape == (2, 73, 144)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04", "a ZIP archive, as the Climate Data Store sends several files: unpack it first"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip: unpack it first"),
        (b"<!DOCTYPE html>", "a web page or XML, often the error message of a failed download"),
    ],
)
def test_what_a_download_left_under_the_name_is_said(tmp_path, content, said):
    (tmp_path / "t.nc").write_bytes(content)
    with pytest.raises(SourceError, match=rf"t\.nc: starts with .* \({said}\); only NetCDF, GRIB and Zarr"):
        open_temperature([tmp_path / "t.nc"], [500])


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(SourceError, match="a folder that is no Zarr store; allowed are a store, a file or a pattern"):
        open_temperature([tmp_path], [500])


def test_a_store_with_torn_metadata_is_refused(tmp_path):
    path = weatherbench2(tmp_path / "era5.zarr", times(LEAP, 4, 6))
    (path / ".zmetadata").write_text(json.dumps(json.loads((path / ".zmetadata").read_text()))[:500])
    with pytest.raises(SourceError, match=r"era5\.zarr: torn or damaged Zarr store"):
        open_temperature([path], [500])


def test_a_damaged_chunk_is_refused_when_it_is_read_and_not_before(tmp_path):
    [store] = find_files(chaosbench(tmp_path, times(LEAP, 1)))
    chunk = next(Path(store, "t").glob("0*"))
    chunk.write_bytes(chunk.read_bytes()[:100])
    opened = open_temperature([store], [500])
    with pytest.raises(SourceError, match=r"20040228\.zarr: damaged, a block cannot be read"):
        opened.load()


def test_a_chunk_that_is_gone_is_a_missing_day(tmp_path):
    path = google_analysis_ready(tmp_path / "ar.zarr", LEAP, 2)
    days = int((np.datetime64(LEAP) - np.datetime64("1900-01-01")).astype(int))
    [noon] = path.glob(f"temperature/{24 * days + 12}.*")
    noon.unlink()
    opened = open_temperature([path], [500]).load()
    assert opened[0].isnull().all() and opened[1].notnull().all()


# Stores at a distance


@pytest.fixture
def server(tmp_path):
    """A web server over tmp_path, as object stores answer over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_store_by_url_is_read_like_a_local_one(tmp_path, server):
    pytest.importorskip("aiohttp", reason="HTTP support is not installed")
    local = open_temperature([weatherbench2(tmp_path / "era5.zarr", times(LEAP, 8, 6))], [850, 500])
    [url] = find_files(f"{server}/era5.zarr")
    xr.testing.assert_identical(open_temperature([url], [850, 500]).load(), local.load())


def test_a_url_without_a_store_is_refused(tmp_path, server):
    pytest.importorskip("aiohttp", reason="HTTP support is not installed")
    (tmp_path / "t.nc").write_bytes(b"CDF\x01")
    with pytest.raises(SourceError, match=r"t\.nc: no Zarr store there; over a network only those are read"):
        open_temperature([f"{server}/t.nc"], [500])


def test_a_url_that_nothing_installed_reads_is_refused():
    with pytest.raises(SourceError, match=r"nowhere://bucket/era5\.zarr: .*nowhere"):
        open_temperature(["nowhere://bucket/era5.zarr"], [500])


def test_a_store_that_was_written_anew_is_known_by_its_fingerprint(tmp_path, server):
    pytest.importorskip("aiohttp", reason="HTTP support is not installed")
    path = weatherbench2(tmp_path / "era5.zarr", times(LEAP, 4, 6))
    before, by_url = fingerprint(path), fingerprint(f"{server}/era5.zarr")
    assert before == fingerprint(path) and by_url == fingerprint(f"{server}/era5.zarr")
    weatherbench2(path, times(LEAP, 400, 6))
    assert before != fingerprint(path) and by_url != fingerprint(f"{server}/era5.zarr")


def test_patterns_name_stores_of_a_file_system_by_url():
    store = zarr.storage.FsspecStore.from_url("memory://era5/a_20040228.zarr")
    zarr.open_group(store, mode="w", zarr_format=2)
    assert find_files("memory://era5/*_2004*.zarr") == ["memory:///era5/a_20040228.zarr"]
    assert find_files("memory://era5/*_2005*.zarr") == []


# Real files


def test_the_real_era5_state_is_the_file_read_by_hand():
    with Dataset(ERA5) as file:
        assert str(num2date(file["time"][...], file["time"].units))[:10] == "1959-01-02"
        raw, level = file["temperature"][:].filled(np.nan), file["level"][:]
        south_to_north = file["latitude"][:]
    opened = open_temperature([ERA5], ERA5_LEVELS_HPA)
    assert day_names(opened) == ["1959-01-02"] and south_to_north[0] < 0
    np.testing.assert_array_equal(opened.latitude, south_to_north[::-1])
    for i, level_hpa in enumerate(ERA5_LEVELS_HPA):
        by_hand = raw[list(level).index(level_hpa)].T[::-1]
        np.testing.assert_array_equal(opened[0, i], by_hand)


@pytest.fixture(scope="module")
def gfs():
    """The fields of the real GFS file by (name, kind of level, level), (latitude, longitude), read with ecCodes."""
    eccodes = pytest.importorskip("eccodes", reason="GRIB support is not installed", exc_type=ImportError)
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    found = {}
    with GFS.open("rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            key = tuple(eccodes.codes_get(message, name) for name in ("shortName", "typeOfLevel", "level"))
            found[key] = eccodes.codes_get_values(message).reshape(73, 144)
            eccodes.codes_release(message)
    return found


def test_the_real_gfs_fields_are_the_messages_read_by_hand(gfs):
    temperature, rain, olr = open_temperature([GFS], ERA5_LEVELS_HPA), open_precipitation([GFS]), open_olr([GFS])
    for field in (temperature, rain, olr):
        assert day_names(field) == ["2011-01-15"]  # 120 hours after noon of the 10th
        np.testing.assert_array_equal(field.latitude, np.arange(90, -91, -2.5))
    for i, level_hpa in enumerate(ERA5_LEVELS_HPA):
        np.testing.assert_allclose(temperature[0, i], gfs["t", "isobaricInhPa", level_hpa], rtol=1e-7)
    np.testing.assert_allclose(rain[0], 4 * gfs["tp", "surface", 0], rtol=1e-6)  # of six hours, in kg m-2
    np.testing.assert_allclose(olr[0], gfs["sulwrf", "nominalTop", 0], rtol=1e-7)


def test_cell_methods_of_the_real_gfs_fields(gfs):
    temperature, rain, olr = open_temperature([GFS], [500]), open_precipitation([GFS]), open_olr([GFS])
    assert [field.cell_methods for field in (temperature, rain, olr)] == ["time: point", "time: mean", "time: mean"]


def area_mean(field):
    """Over the globe, of rows at 90, 87.5, ... -90 degrees; each pole's row is a cap of half a step."""
    edges = np.sin(np.deg2rad(np.r_[90, np.arange(88.75, -90, -2.5), -90]))
    return float(np.average(field.mean(axis=1), weights=-np.diff(edges)))


ARCHIVE_OF_ONE_DAY = """
archive:
  path: {folder}/archive.zarr
  sources: {{temperature: "{gfs}", precipitation: "{gfs}", olr: "{gfs}", static: "{gfs}"}}
  n_latitude: 36
  n_longitude: 72
  train_years: [2011, 2011]
  validation_years: [2012, 2012]
  test_years: [2013, 2013]
  missing_days_allowed: 1095
  normalise: scalar
"""


def test_the_real_gfs_file_becomes_one_archive_day(gfs, tmp_path):
    config = tmp_path / "gfs.yaml"
    config.write_text(ARCHIVE_OF_ONE_DAY.format(folder=tmp_path, gfs=GFS))
    assert main(["archive", str(config)]) == 0
    archive = open_archive(tmp_path / "archive.zarr")
    [day] = archive.index_of([np.datetime64("2011-01-15")])
    [x_CHW] = archive.read(np.array([day]))
    assert archive.attributes["missing_days"]["olr"][13:15] == ["2011-01-14", "2011-01-16"]
    means = np.average(x_CHW.mean(axis=2), axis=1, weights=archive.spec.grid.area_weights[:, 0])
    by_hand = [area_mean(gfs["t", "isobaricInhPa", level]) for level in ERA5_LEVELS_HPA]
    by_hand += [4 * area_mean(gfs["tp", "surface", 0]), area_mean(gfs["sulwrf", "nominalTop", 0])]
    np.testing.assert_allclose(means, by_hand, rtol=1e-4)  # what the archive's rounding costs
    kelvin_500, mm_a_day, watts_m2 = means[list(ERA5_LEVELS_HPA).index(500)], means[10], means[11]
    assert 255 < kelvin_500 < 260 and 2 < mm_a_day < 4 and 225 < watts_m2 < 245  # as on the Earth
    assert (np.isnan(archive.read(np.array([day - 1, day + 1])))).all()


def test_an_archive_says_how_its_values_stand_for_day_and_cell(tmp_path):
    weatherbench2(tmp_path / "snapshots.zarr", times(LEAP, 2))
    gauge_precipitation(tmp_path / "rain.nc", times(LEAP, 2))
    interpolated_olr(tmp_path / "olr.nc", times(LEAP, 4, 12))
    (tmp_path / "prep.yaml").write_text(ARCHIVE_OF_ONE_DAY.format(folder=tmp_path, gfs=""))
    sources = {"temperature": "snapshots.zarr", "precipitation": "rain.nc", "olr": "olr.nc"}
    words = [f"archive.sources.{name}={tmp_path}/{file}" for name, file in sources.items()]
    words += [
        "archive.train_years=[2004,2004]",
        "archive.validation_years=[2005,2005]",
        "archive.test_years=[2006,2006]",
    ]
    words += ["archive.level_hpa=[500]", "archive.regrid.olr=nearest", "archive.decimals=null"]
    assert main(["archive", str(tmp_path / "prep.yaml"), *words]) == 0
    group = zarr.open_group(tmp_path / "archive.zarr", mode="r")
    found = {name: (group[name].attrs.get("cell_methods"), group[name].attrs["daily_value"]) for name in sources}
    single = "single value a day, taken as that day's value"
    assert found == {
        "temperature": ("area: mean", single),
        "precipitation": ("time: mean area: mean", single),
        "olr": ("time: mean", "mean of 2 values a day"),
    }
