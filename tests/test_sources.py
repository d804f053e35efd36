"""Raw files in each provider's layout come back with known values; every unusable file is refused by name."""

import shutil
import subprocess
import sys
import tracemalloc
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from netCDF4 import Dataset, date2num
from world import LEVELS_HPA, write_world

from data_prep.sources import SourceError, open_olr, open_precipitation, open_static, open_temperature

DATA = Path(__file__).parent / "data"
ERA5 = DATA / "era5_tl31_19590102T00_10levels.nc"
GFS = DATA / "gfs_2011011012_f120_subset.grib2"
LATITUDE, LONGITUDE = np.arange(80.0, -81, -20), np.arange(0.0, 360, 30)


def days(first, n, step_hours=24):
    return np.datetime64(first, "ns") + np.arange(n) * np.timedelta64(step_hours, "h")


def kelvin(times, levels=(500, 850)):
    """A field in which time, level, row and column can all be told from the value."""
    t, z, y, x = np.ogrid[: len(times), : len(levels), : len(LATITUDE), : len(LONGITUDE)]
    coords = {"time": times, "level": list(levels), "latitude": LATITUDE, "longitude": LONGITUDE}
    return xr.DataArray(200.0 + t + 20 * z + y + x / 16, coords, name="t", attrs={"units": "K"})


def surface(name, times, value, units):
    values = value + np.arange(len(times) * 9 * 12).reshape(len(times), 9, 12) / 1000
    coords = {"time": times, "lat": LATITUDE, "lon": LONGITUDE}
    return xr.DataArray(values, coords, name=name, attrs={"units": units})


def rain(times, value=1.0, units="mm"):
    return surface("precip", times, value, units)


def save(field, path, run=None, **encoding):
    dataset = field.to_dataset()
    dataset.attrs = {} if run is None else {"simulation_run": run}
    dataset.to_netcdf(path, encoding={field.name: encoding, **{c: {} for c in dataset.coords}})
    return path


def test_little_is_kept_of_each_of_many_files(tmp_path):
    """Of forty years with a file a day every process would else hold a gigabyte of axes."""
    coords = {"lat": np.linspace(90, -90, 721), "lon": np.arange(0, 360, 0.25)}
    for i, day in enumerate(days("2001-01-01", 30)):
        field = xr.DataArray(
            np.ones((1, 721, 1440), np.float32), coords | {"time": [day]}, ("time", "lat", "lon"), "precip"
        )
        save(field.assign_attrs(units="mm"), tmp_path / f"{i:02d}.nc", zlib=True, complevel=1)
    files = sorted(tmp_path.glob("*.nc"))
    open_precipitation(files)  # what is kept once
    tracemalloc.start()
    try:
        field = open_precipitation(files)
        assert tracemalloc.get_traced_memory()[0] < 30 * (721 + 1440) * 8 and len(field.time) == 30
    finally:
        tracemalloc.stop()


def global_mean(field):
    weights = np.cos(np.deg2rad(field.latitude))
    return field.load().weighted(weights).mean(("latitude", "longitude")).values


def assert_canonical(field):
    assert field.dtype == np.float32 and field.chunks is not None
    assert field.dims == ("time", *(("level",) if "level" in field.dims else ()), "latitude", "longitude")
    assert (np.diff(field.latitude) < 0).all() and (np.diff(field.longitude) > 0).all()
    assert field.longitude[0] >= 0 and field.longitude[-1] < 360
    times = field.time.values
    assert times.dtype == "datetime64[ns]" and (np.diff(times) > np.timedelta64(0)).all()
    assert (times == times.astype("datetime64[D]")).all()
    assert field.run.dims == ("time",) and field.run.dtype.kind == "U"


# Layouts


def test_the_sample_world_is_read_back(tmp_path):
    write_world(tmp_path, [2003, 2004], days_per_year=60)
    temperature = open_temperature([tmp_path / f"era5_t.{y}.nc" for y in (2004, 2003)], LEVELS_HPA)
    precipitation = open_precipitation([tmp_path / f"precip.{y}.nc" for y in (2003, 2004)])
    olr = open_olr([str(tmp_path / f"olr.2xdaily.{y}.nc") for y in (2003, 2004)])
    for field in (temperature, precipitation, olr):
        assert_canonical(field)
        assert field.sizes["time"] == 120 and set(field.run.values) == {"synthetic"}
        assert field.time.values[59:61].astype("datetime64[D]").astype(str).tolist() == [
            "2003-03-01",
            "2004-01-01",
        ]
    assert (temperature.units, precipitation.units, olr.units) == ("K", "mm/day", "W m-2")
    assert olr.daily_value == "mean of 2 values a day"
    assert temperature.daily_value == "single value a day, taken as that day's value"
    with xr.open_dataset(tmp_path / "olr.2xdaily.2004.nc") as raw:
        expected = raw.olr.values.reshape(60, 2, *raw.olr.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(olr[60:], expected, rtol=1e-6)
    assert 0.3 < float(precipitation.isnull().mean()) < 0.8  # the ocean is missing, not dry
    static = open_static(tmp_path / "static.nc")
    assert static.land_fraction.shape == (17, 32) and float(static.land_fraction.min()) >= 0
    assert static.orography.units == "m"


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"level": "pressure_level", "time": "valid_time"},
        {"latitude": "lat", "longitude": "lon", "t": "temperature"},
        {"level": "plev"},
    ],
)
@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_names_and_order_of_dimensions_do_not_matter(tmp_path, names, dims):
    times = days("2004-02-28", 3)  # across a leap day
    field = kelvin(times)
    shuffled = field.transpose(*(field.dims[i] for i in dims)).rename({k: v for k, v in names.items() if k != "t"})
    path = save(shuffled.rename(names.get("t", "t")), tmp_path / "t.nc")
    opened = open_temperature([path], [850, 500])
    assert_canonical(opened)
    assert opened.level.values.tolist() == [850, 500]
    np.testing.assert_allclose(opened, field.sel(level=[850, 500]), rtol=1e-6)
    np.testing.assert_array_equal(opened.time, times)


@pytest.mark.parametrize("units", ["Pa", "hPa", "millibars"])
def test_level_units(tmp_path, units):
    field = kelvin(days("2000-01-01", 1))
    factor = 100.0 if units == "Pa" else 1.0
    field = field.assign_coords(level=("level", field.level.values * factor, {"units": units}))
    np.testing.assert_allclose(open_temperature([save(field, tmp_path / "t.nc")], [500, 850]), field, rtol=1e-6)


def test_a_scalar_time_and_extra_entries_are_accepted(tmp_path):
    field = kelvin(days("2000-01-01", 1))
    scalar = field.isel(time=0).expand_dims(expver=["0001"]).assign_coords(number=0)
    opened = open_temperature([save(scalar, tmp_path / "t.nc")], [500, 850])
    assert_canonical(opened)
    np.testing.assert_allclose(opened, field, rtol=1e-6)


def test_latitude_and_longitude_are_turned(tmp_path):
    field = kelvin(days("2000-01-01", 2))
    west = field.assign_coords(longitude=(LONGITUDE + 180) % 360 - 180).sortby("longitude")[:, :, ::-1]
    assert west.longitude[0] == -180 and west.latitude[0] == -80
    opened = open_temperature([save(west, tmp_path / "t.nc")], [500, 850])
    assert_canonical(opened)
    np.testing.assert_array_equal(opened.longitude, LONGITUDE)
    np.testing.assert_allclose(opened, field, rtol=1e-6)


def test_a_repeated_meridian_is_dropped(tmp_path):
    field = kelvin(days("2000-01-01", 1))
    closed = xr.concat([field, field[..., :1].assign_coords(longitude=[360.0])], "longitude")
    np.testing.assert_allclose(open_temperature([save(closed, tmp_path / "t.nc")], [500, 850]), field, rtol=1e-6)


def test_packed_values_and_both_fill_conventions(tmp_path):
    field = rain(days("2000-01-01", 2), 10.0)
    field[0, 0, 0], field[1, 2, 3] = np.nan, np.nan
    path = save(field, tmp_path / "packed.nc", dtype="int16", scale_factor=0.1, add_offset=5.0, _FillValue=-32767)
    np.testing.assert_allclose(open_precipitation([path]), field, atol=0.0501)
    np.testing.assert_array_equal(open_precipitation([path]).isnull(), field.isnull())
    path = save(field, tmp_path / "missing.nc", dtype="float32", _FillValue=None, missing_value=np.float32(-9.97e36))
    np.testing.assert_allclose(open_precipitation([path]), field, rtol=1e-6)
    filled = field.copy()
    filled[0, 0, 0], filled[1, 2, 3] = -999.0, -9.97e36
    filled.attrs |= {"missing_value": np.float32(-999.0), "_FillValue": np.float32(-9.97e36)}
    path = save(filled.astype("float32"), tmp_path / "both.nc")
    np.testing.assert_allclose(open_precipitation([path]), field, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "factor"),
    [("mm", 1), ("mm day-1", 1), ("mm/day", 1), ("kg m-2 day-1", 1), ("kg m-2 s-1", 86400), ("m", 1000)],
)
def test_precipitation_units(tmp_path, units, factor):
    field = rain(days("2000-01-01", 2))
    path = save((field / factor).assign_attrs(units=units), tmp_path / "p.nc")
    opened = open_precipitation([path])
    assert opened.name == "precipitation" and opened.units == "mm/day"
    np.testing.assert_allclose(opened, field, rtol=1e-5)


@pytest.mark.parametrize("units", ["hours since 1800-01-01", "hours since 1-1-1 00:00:0.0", "days since 1900-1-1"])
def test_epochs(tmp_path, units):
    field = rain(days("2000-02-28", 3))
    numbers = date2num([datetime(2000, 2, 28), datetime(2000, 2, 29), datetime(2000, 3, 1)], units, "standard")
    path = save(field.assign_coords(time=("time", numbers, {"units": units})), tmp_path / "p.nc")
    np.testing.assert_array_equal(open_precipitation([path]).time, field.time)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("hours", "units 'hours'; needed is for example"),
        ("hours since then", "units 'hours since then' do not give dates"),
        ("days since 0850-01-01", "starts at 0850-01-01.*; dates from 1678 to 2261"),
    ],
)
def test_times_that_are_no_dates_are_refused(tmp_path, units, message):
    field = rain(days("2000-01-01", 2)).assign_coords(time=("time", [0, 1], {"units": units}))
    with pytest.raises(SourceError, match=message):
        open_precipitation([save(field, tmp_path / "p.nc")])


@pytest.mark.parametrize("units", ["W/m^2", "W m-2", "W m**-2"])
def test_olr_units(tmp_path, units):
    field = surface("olr", days("2000-01-01", 4, 12), 230.0, units)
    np.testing.assert_allclose(
        open_olr([save(field, tmp_path / "o.nc")]), (field.values[::2] + field.values[1::2]) / 2, rtol=1e-6
    )


def test_small_negative_rain_is_zero(tmp_path):
    field = rain(days("2000-01-01", 1))
    field[:, 3:5] = -0.01
    opened = open_precipitation([save(field, tmp_path / "p.nc")])
    assert (opened[:, 3:5] == 0).all() and (opened[:, 5:] > 0.9).all()


def test_geopotential_becomes_orography(tmp_path):
    dims = ("time", "latitude", "longitude")
    fields = {
        "lsm": (dims, np.full((1, 9, 12), 0.25), {"units": "(0 - 1)"}),
        "z": (dims, np.full((1, 9, 12), 9806.65), {"units": "m**2 s**-2"}),
    }
    coords = {"time": days("2000-01-01", 1), "latitude": LATITUDE[::-1], "longitude": LONGITUDE}
    xr.Dataset(fields, coords).to_netcdf(tmp_path / "static.nc")
    static = open_static(tmp_path / "static.nc")
    assert static.land_fraction.dims == ("latitude", "longitude") and static.latitude[0] == 80
    np.testing.assert_allclose(static.orography, 1000.0, rtol=1e-6)
    np.testing.assert_allclose(static.land_fraction, 0.25)


# Days and runs


@pytest.mark.parametrize("step_hours", [1, 6, 12])
def test_sub_daily_temperature_becomes_the_mean_of_the_utc_day(tmp_path, step_hours):
    n_a_day = 24 // step_hours
    field = kelvin(days("2004-02-28", 3 * n_a_day, step_hours))
    parts = [save(part, tmp_path / f"{i}.nc") for i, part in enumerate((field[: n_a_day + 1], field[n_a_day + 1 :]))]
    opened = open_temperature(parts[::-1], [500, 850])
    assert_canonical(opened)
    expected = field.values.reshape(3, n_a_day, 2, 9, 12).mean(axis=1)
    np.testing.assert_allclose(opened, expected, rtol=1e-6)
    assert opened.time.values.astype("datetime64[D]").astype(str).tolist() == [
        "2004-02-28",
        "2004-02-29",
        "2004-03-01",
    ]


def test_totals_of_half_days_in_files_of_their_own_are_refused(tmp_path):
    """Each file has one time a day; their mean would be half of the day's rain."""
    halves = [save(rain(days(f"2001-01-01T{hour:02d}", 3), 1.3), tmp_path / f"{hour}.nc") for hour in (0, 12)]
    with pytest.raises(
        SourceError, match=r"0\.nc: precipitation: totals in 'mm', 2 a day with those of the other files"
    ):
        open_precipitation(halves)
    assert open_precipitation(halves[:1]).sizes["time"] == 3


@pytest.mark.parametrize("dim", ["latitude", "longitude"])
def test_what_is_no_map_is_refused(tmp_path, dim):
    """A zonal mean, which would pass for the whole globe, and a single row."""
    path = save(kelvin(days("2001-01-01", 2)).isel({dim: [0]}), tmp_path / "t.nc")
    with pytest.raises(SourceError, match=rf"t\.nc: {dim}: 1 value; a map has at least 2"):
        open_temperature([path], [500, 850])


def test_a_form_of_netcdf_that_reads_as_zeros_where_it_is_cut_is_refused(tmp_path):
    with Dataset(tmp_path / "t.nc", "w", format="NETCDF3_64BIT_DATA") as file:
        file.createDimension("time", 4)
        file.createVariable("t", "f4", ("time",))[:] = 1
    with pytest.raises(SourceError, match=r"64-bit data, which reads as zeros where the file is cut: `nccopy -k nc4`"):
        open_temperature([tmp_path / "t.nc"], [500, 850])


def test_a_day_with_a_missing_half_is_missing(tmp_path):
    field = surface("olr", days("2000-01-01", 8, 12), 230.0, "W/m^2")
    field[2, 0, 0] = np.nan  # one cell of one half of day 2
    opened = open_olr([save(field.drop_isel(time=5), tmp_path / "o.nc")]).load()  # a whole half of day 3
    assert opened.sizes["time"] == 4
    assert np.isnan(opened[1, 0, 0]) and int(opened[1].isnull().sum()) == 1
    assert opened[2].isnull().all() and opened[[0, 3]].notnull().all()


def test_gaps_between_days_stay_gaps(tmp_path):
    field = rain(days("2000-01-01", 5)).isel(time=[0, 1, 4])
    opened = open_precipitation([save(field, tmp_path / "p.nc")])
    np.testing.assert_array_equal(opened.time, field.time)


def test_the_run_of_each_day(tmp_path):
    field = rain(days("2000-01-01", 4))
    paths = [save(field[2:], tmp_path / "b.nc", run="second"), save(field[:2], tmp_path / "a.nc")]
    assert open_precipitation(paths).run.values.tolist() == ["", "", "second", "second"]


def test_nothing_is_read_before_it_is_needed(tmp_path):
    field = kelvin(days("2000-01-01", 2)).where(False, 5.0).assign_attrs(units="K")
    opened = open_temperature([save(field, tmp_path / "t.nc")], [500])
    with pytest.raises(SourceError, match=r"t\.nc: temperature: value 5 K; allowed is 100 to 400"):
        opened.load()


def test_no_optional_package_is_loaded_for_netcdf():
    code = "import sys, data_prep.sources; print({'torch', 'cfgrib', 'eccodes'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"


# Real files


def test_real_era5():
    opened = open_temperature([ERA5], LEVELS_HPA)
    assert_canonical(opened)
    assert opened.time.values.astype("datetime64[D]").astype(str).tolist() == ["1959-01-02"]
    assert 255 < global_mean(opened.sel(level=500)) < 260
    assert 284 < global_mean(opened.sel(level=1000)) < 290
    north, south = opened.sel(level=10)[0, 3].mean(), opened.sel(level=10)[0, -4].mean()
    assert north < south  # the polar night of January, in the north


@pytest.fixture
def gfs(tmp_path):
    """A copy, to see what appears beside it."""
    pytest.importorskip("cfgrib", reason="GRIB support is not installed", exc_type=ImportError)
    return Path(shutil.copy(GFS, tmp_path))


def test_real_gfs(gfs):
    temperature, precipitation, olr = (
        open_temperature([gfs], LEVELS_HPA),
        open_precipitation([gfs]),
        open_olr([gfs]),
    )
    for field in (temperature, precipitation, olr):
        assert_canonical(field)
        assert field.time.values.astype("datetime64[D]").astype(str).tolist() == ["2011-01-15"]
    assert 255 < global_mean(temperature.sel(level=500)) < 260
    assert 2 < global_mean(precipitation) < 4
    assert 220 < global_mean(olr) < 250
    static = open_static(gfs)
    assert 0.25 < global_mean(static.land_fraction) < 0.33 and float(static.orography.max()) > 4000
    assert [path.name for path in gfs.parent.iterdir()] == [gfs.name]


def messages(path, **keys):
    """The messages of a GRIB file with these keys, as ecCodes handles."""
    import eccodes

    with path.open("rb") as file:
        while (message := eccodes.codes_grib_new_from_file(file)) is not None:
            if all(eccodes.codes_get(message, key) == value for key, value in keys.items()):
                yield message
            else:
                eccodes.codes_release(message)


def write_message(path, message, **changes):
    import eccodes

    copy = eccodes.codes_clone(message)
    for key, value in changes.items():
        eccodes.codes_set(copy, key, value)
    with path.open("ab") as file:
        eccodes.codes_write(copy, file)
    eccodes.codes_release(copy)


def test_accumulated_and_mean_rain_agree_in_grib(gfs, tmp_path):
    for name in ("tp", "prate"):
        write_message(tmp_path / f"{name}.grib2", next(messages(gfs, shortName=name)))
    accumulated, rate = (open_precipitation([tmp_path / f"{name}.grib2"]) for name in ("tp", "prate"))
    np.testing.assert_allclose(accumulated, rate, atol=0.4)  # the accumulation is packed to 0.1 mm in 6 h
    np.testing.assert_allclose(global_mean(accumulated), global_mean(rate), rtol=0.05)


def test_rain_accumulated_until_midnight_belongs_to_the_day_it_fell_on(gfs, tmp_path):
    raw, path = next(messages(gfs, shortName="tp")), tmp_path / "day.grib2"
    for end in (114, 120, 126, 132, 138, 144):  # 06 UTC of the 15th to 12 UTC of the 16th
        write_message(path, raw, stepRange=f"{end - 6}-{end}")
    opened = open_precipitation([path])
    assert opened.time.values.astype("datetime64[D]").astype(str).tolist() == ["2011-01-15", "2011-01-16"]
    assert opened[0].notnull().all() and opened[1].isnull().all()  # the 16th is not complete


def test_accumulations_of_several_lengths_are_refused(gfs, tmp_path):
    raw, path = next(messages(gfs, shortName="tp")), tmp_path / "mixed.grib2"
    for steps in ("114-120", "114-126"):
        write_message(path, raw, stepRange=steps)
    with pytest.raises(SourceError, match=r"mixed\.grib2: tp over intervals of 360, 720 minutes; one is allowed"):
        open_precipitation([path])


def test_torn_grib(gfs):
    gfs.write_bytes(gfs.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="torn or damaged GRIB"):
        open_olr([gfs])


def test_grib_without_the_field(gfs, tmp_path):
    write_message(tmp_path / "surface.grib2", next(messages(gfs, shortName="sulwrf", typeOfLevel="surface")))
    with pytest.raises(SourceError, match="no olr: it has sulwrf at surface; allowed are sulwrf at nominalTop"):
        open_olr([tmp_path / "surface.grib2"])


# Refusals


@pytest.mark.parametrize("content", [b"", b"not a data file", b"PK\x03\x04zip"])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "x.nc").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.nc: starts with .*; only NetCDF, GRIB and Zarr"):
        open_precipitation([tmp_path / "x.nc"])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"none\.nc: cannot be read: No such file"):
        open_precipitation([tmp_path / "none.nc"])


@pytest.mark.parametrize("paths", [[], "precip.nc"])
def test_no_list_of_files_is_refused(paths):
    with pytest.raises(SourceError, match="a list of at least one file is needed"):
        open_precipitation(paths)


@pytest.mark.parametrize("form", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_torn_netcdf(tmp_path, form, kept):
    path = tmp_path / "torn.nc"
    rain(days("2000-01-01", 60)).to_dataset().to_netcdf(path, format=form)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(SourceError, match=r"torn\.nc: torn or damaged NetCDF"):
        open_precipitation([path])


def test_a_damaged_block_names_its_file(tmp_path):
    field = rain(days("2000-01-01", 60)) * np.random.default_rng(0).random((60, 9, 12))
    path = save(field.assign_attrs(units="mm"), tmp_path / "damaged.nc", zlib=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"damaged\.nc: damaged, a block cannot be read"):
        open_precipitation([path]).load()


def with_units(units):
    return kelvin(days("2000-01-01", 1)).assign_attrs(units=units)


TEMPERATURE_REFUSALS = {
    "another variable": (
        kelvin(days("2000-01-01", 1)).rename("u"),
        "no temperature: it has .*u.*allowed are t",
    ),
    "celsius": (with_units("degC"), "t: units 'degC'; allowed are 'K', 'kelvin'"),
    "celsius called kelvin": (with_units("K") - 273.15, "value -73.15 K; allowed is 100 to 400"),
    "no units": (kelvin(days("2000-01-01", 1)).drop_attrs(), "units None; allowed"),
    "level": (kelvin(days("2000-01-01", 1), (300, 850)), "no level 500 hPa; the file has 300, 850 hPa"),
    "level units": (
        with_units("K").assign_coords(level=("level", [5, 6], {"units": "km"})),
        "level: units 'km'; allowed are hPa",
    ),
    "no levels": (kelvin(days("2000-01-01", 1)).isel(level=0, drop=True), "no pressure levels of t"),
    "no time": (kelvin(days("2000-01-01", 1)).isel(time=0, drop=True), "no time of t"),
    "no latitude": (with_units("K").rename(latitude="y"), "no latitude dimension of t"),
    "an ensemble": (
        xr.concat([with_units("K")] * 2, "number"),
        r"dimensions number \(2\).*; needed are time, level, latitude, longitude",
    ),
    "folded latitude": (
        with_units("K").assign_coords(latitude=np.abs(LATITUDE)),
        "latitude: not strictly monotonic",
    ),
    "irregular hours": (
        xr.concat([kelvin(days("2000-01-01", 2, 5)), kelvin(days("2000-01-01T13", 1))], "time"),
        "times every 5 h, some off that step",
    ),
}


@pytest.mark.parametrize("case", TEMPERATURE_REFUSALS)
def test_temperature_refusals(tmp_path, case):
    field, message = TEMPERATURE_REFUSALS[case]
    attrs = {} if case == "no units" else field.attrs | {"units": field.attrs.get("units", "K")}
    path = save(field.assign_attrs(attrs), tmp_path / "t.nc")
    with pytest.raises(SourceError, match=message):
        open_temperature([path], [500, 850]).load()


LAND = xr.DataArray(LONGITUDE[None] % 120 < 30, coords={"lon": LONGITUDE}, dims=("_", "lon")).isel(_=0)


@pytest.mark.parametrize(
    "part",
    [
        lambda field: field.isel(lat=slice(2, 5), lon=slice(0, 4)),  # of the subtropics
        lambda field: field.where(field.lon < 60),  # a network of one continent, on a grid of the Earth
        lambda field: field.isel(time=[0]).where(False),
    ],
)
def test_a_region_may_be_dry(tmp_path, part):
    """A quarter of the Earth and more has rain in its mean, whatever the day; less need not."""
    field = part(rain(days("2000-01-01", 3)) / 1000)
    opened = open_precipitation([save(field, tmp_path / "p.nc")])
    np.testing.assert_allclose(opened, field, rtol=1e-5)


def test_little_rain_of_the_whole_earth_is_read(tmp_path):
    """A sixth of what falls, the driest that nobody has seen; ten of its eleven days are missing."""
    field = rain(days("2000-01-01", 11)).where(np.arange(11)[:, None, None] == 4) * 0 + 0.45
    np.testing.assert_allclose(open_precipitation([save(field, tmp_path / "p.nc")]), field)


RAIN_REFUSALS = {
    "inches": (rain(days("2000-01-01", 1), units="inch"), "units 'inch'; allowed are 'mm'"),
    "an undeclared fill value": (
        rain(days("2000-01-01", 1), -9.97e36),
        "value -9.97e.36 mm/day; allowed is -0.1 to",
    ),
    "metres called millimetres a second": (
        rain(days("2000-01-01", 1), 1.0, "kg m-2 s-1"),
        "value 86400 mm/day; allowed",
    ),
    "metres called millimetres": (
        rain(days("2000-01-01", 3), 2.6e-3) / 1000,
        r"p.nc: precipitation: 0.000\d+ mm/day in the mean over what is observed, if it is in 'mm'; at least 0.3 mm",
    ),
    "metres called millimetres, on land": (
        rain(days("2000-01-01", 3)).where(LAND) / 1000,
        r"p.nc: precipitation: 0.00\d+ mm/day in the mean over what is observed, if it is in 'mm'",
    ),
    "an hour's total, a day": (
        (rain(days("2000-01-01", 3), 2.6e-3, "m") / 24000).assign_attrs(units="m"),
        r"p.nc: precipitation: 0.\d+ mm/day in the mean over what is observed, if it is in 'm'",
    ),
    "totals of half days": (rain(days("2000-01-01", 4, 12)), "totals in 'mm' at several times a day"),
}


@pytest.mark.parametrize("case", RAIN_REFUSALS)
def test_precipitation_refusals(tmp_path, case):
    field, message = RAIN_REFUSALS[case]
    with pytest.raises(SourceError, match=message):
        open_precipitation([save(field, tmp_path / "p.nc")]).load()


@pytest.mark.parametrize("value", [-1.0, 501.0])
def test_olr_outside_its_range_is_refused(tmp_path, value):
    path = save(surface("olr", days("2000-01-01", 2, 12), value, "W/m^2"), tmp_path / "o.nc")
    with pytest.raises(SourceError, match=r"olr: value .* W m-2; allowed is 0 to 500"):
        open_olr([path]).load()


@pytest.mark.parametrize("calendar", ["360_day", "noleap"])
def test_other_calendars_are_refused(tmp_path, calendar):
    field = rain(days("2000-01-01", 2)).assign_coords(
        time=("time", [0, 1], {"units": "days since 2000-01-01", "calendar": calendar})
    )
    with pytest.raises(SourceError, match=f"time: calendar '{calendar}'; allowed are standard"):
        open_precipitation([save(field, tmp_path / "p.nc")])


def test_a_day_in_two_files_is_refused(tmp_path):
    field = rain(days("2000-01-01", 4))
    paths = [save(field[:3], tmp_path / "a.nc"), save(field[2:], tmp_path / "b.nc")]
    with pytest.raises(SourceError, match=r"a\.nc and .*b\.nc: precip.*: day 2000-01-03 stands twice"):
        open_precipitation(paths)


def test_a_day_of_two_runs_is_refused(tmp_path):
    field = surface("olr", days("2000-01-01", 4, 12), 230.0, "W/m^2")
    paths = [save(field[:3], tmp_path / "a.nc", run="a"), save(field[3:], tmp_path / "b.nc", run="b")]
    with pytest.raises(SourceError, match="day 2000-01-02 stands twice"):
        open_olr(paths)


def test_files_of_two_grids_are_refused(tmp_path):
    field = rain(days("2000-01-01", 4))
    paths = [save(field[:2], tmp_path / "a.nc"), save(field[2:, 1:], tmp_path / "b.nc")]
    with pytest.raises(SourceError, match=r"b\.nc: latitude: differs from .*a\.nc"):
        open_precipitation(paths)


def test_files_of_two_sampling_steps_are_refused(tmp_path):
    hourly, daily = kelvin(days("2000-01-01", 8, 6)), kelvin(days("2000-01-03", 2))
    paths = [save(hourly, tmp_path / "a.nc"), save(daily, tmp_path / "b.nc")]
    with pytest.raises(SourceError, match=r"sampled every 6 h in .*a\.nc, 24 h in .*b\.nc; one step"):
        open_temperature(paths, [500, 850])


def test_a_mask_in_percent_is_refused(tmp_path):
    mask = xr.DataArray(np.full((9, 12), 50.0), {"latitude": LATITUDE, "longitude": LONGITUDE}, name="lsm")
    with pytest.raises(SourceError, match="land_fraction: value 50 1; allowed is"):
        open_static(save(mask, tmp_path / "static.nc"))
