"""A finished product as NetCDF files: the same numbers, in names that other programs know; nothing is overwritten."""

import shutil
import subprocess
import warnings

import eccodes
import netCDF4
import numpy as np
import pytest
import xarray as xr
from test_analysis import begin, bucket, fields, fill  # noqa: F401  bucket is a fixture

from sample.__main__ import main
from sample.export import export
from slams.contracts import analysis
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec

JANUARY, FEBRUARY = "a_2001-01.nc", "a_2001-02.nc"


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return fill(begin(tmp_path_factory.mktemp("made") / "a.zarr"), fields())


def say(capsys, *words):
    """The one sentence of a refusal, after what names the command."""
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("sample export: ")


def test_the_files_hold_what_the_product_holds(product, tmp_path):
    assert main(["export", str(product.path), str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [JANUARY, FEBRUARY]
    with (
        xr.open_mfdataset(sorted(tmp_path.iterdir()), data_vars="minimal") as found,
        xr.open_zarr(product.path) as given,
    ):
        for name in given.data_vars:
            np.testing.assert_array_equal(found[name].transpose(*given[name].dims), given[name])
            assert given[name].attrs.items() <= found[name].attrs.items()
        np.testing.assert_array_equal(found.time, given.time)
        assert found.sizes["time"] == 5 and found.temperature.dims[0] == "time"


def test_bounds_are_those_of_days_and_cells(product, tmp_path):
    with xr.open_dataset(export(product.path, tmp_path)[0]) as found:
        np.testing.assert_array_equal(found.time_bnds[:, 0], found.time)
        assert (found.time_bnds[:, 1] - found.time_bnds[:, 0] == np.timedelta64(1, "D")).all()
        np.testing.assert_array_equal(found.latitude_bnds, [[90, 45], [45, 0], [0, -45], [-45, -90]])
        assert found.longitude_bnds[0].values.tolist() == [0, 45]
        for name in ("time", "latitude", "longitude"):
            assert found[name].encoding.get("bounds", found[name].attrs.get("bounds")) == f"{name}_bnds"


def test_the_chosen_days_are_exported(product, tmp_path):
    words = ["--days", "2001-01-30", "2001-02-01"]
    assert main(["export", str(product.path), str(tmp_path), *words]) == 0
    with xr.open_mfdataset(sorted(tmp_path.iterdir()), data_vars="minimal") as found:
        assert found.time.dt.strftime("%d").values.tolist() == ["30", "31", "01"]
        np.testing.assert_array_equal(found.olr.transpose("member", ...), fields()[:, 1:4, 2])


@pytest.mark.parametrize(
    ("days", "sentence"),
    [
        (("2001-01-01", "2001-02-01"), "days: 2001-01-01 to 2001-02-01 is not allowed; "),
        (("2001-02-01", "2001-01-30"), "days: 2001-02-01 to 2001-01-30 is not allowed; "),
        (("yesterday", "2001-01-30"), "days: 'yesterday' is not a date of the form 1989-01-31"),
    ],
)
def test_days_that_are_not_there_are_refused(product, tmp_path, capsys, days, sentence):
    assert say(capsys, product.path, tmp_path / "out", "--days", *days).startswith(sentence)
    assert not (tmp_path / "out").exists()


def test_a_half_drawn_product_is_refused(tmp_path, capsys):
    fill(begin(tmp_path / "a.zarr"), fields(), finished=False)
    assert "a.zarr: is not finished" in say(capsys, tmp_path / "a.zarr", tmp_path / "out")
    assert "no analysis there" in say(capsys, tmp_path / "b.zarr", tmp_path / "out")


@pytest.mark.parametrize("url", ["s3://bucket/out", "memory://out", "file:///out"])
def test_a_folder_that_is_a_url_is_refused(product, tmp_path, monkeypatch, capsys, url):
    """And no folder of that name is made here."""
    monkeypatch.chdir(tmp_path)
    assert f"folder: {url} is not allowed; a folder of this machine" in say(capsys, product.path, url)
    assert not list(tmp_path.iterdir())


def test_what_stands_with_the_same_content_is_left(product, tmp_path):
    """Also beside one that is missing; and a torn file aside is in nobody's way."""
    first = {path: path.stat().st_mtime_ns for path in export(product.path, tmp_path)}
    (tmp_path / FEBRUARY).unlink()
    (tmp_path / f"{FEBRUARY}.partial").write_text("torn")
    export(product.path, tmp_path)
    assert (tmp_path / JANUARY).stat().st_mtime_ns == first[tmp_path / JANUARY]
    assert sorted(p.name for p in tmp_path.iterdir()) == [JANUARY, FEBRUARY]
    with xr.open_dataset(tmp_path / FEBRUARY) as found:
        np.testing.assert_array_equal(found.olr.transpose("member", ...), fields()[:, 3:, 2])


@pytest.mark.parametrize("other", ["another product", "other days", "no NetCDF"])
def test_another_file_in_the_way_is_refused_and_kept(product, tmp_path, capsys, other):
    out = tmp_path / "out"
    if other == "another product":
        export(fill(begin(tmp_path / "a.zarr"), fields(7)).path, out)
    elif other == "other days":
        export(product.path, out, ("2001-01-30", "2001-01-30"))
    else:
        out.mkdir()
        (out / JANUARY).write_text("notes")
    before = (out / JANUARY).read_bytes()
    assert f"{JANUARY}: exists already with another content" in say(capsys, product.path, out)
    assert (out / JANUARY).read_bytes() == before


def test_a_damaged_product_leaves_no_file(product, tmp_path, capsys):
    shutil.copytree(product.path, tmp_path / "a.zarr")
    shard = tmp_path / "a.zarr/olr/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    assert "a.zarr: damaged" in say(capsys, tmp_path / "a.zarr", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.nc*"))


def test_a_product_in_a_store_is_exported(bucket, product, tmp_path):
    fill(begin(f"{bucket}/export/a.zarr"), fields())
    for here, there in zip(
        export(product.path, tmp_path / "1"), export(f"{bucket}/export/a.zarr", tmp_path / "2"), strict=True
    ):
        with xr.open_dataset(here) as one, xr.open_dataset(there) as other:
            xr.testing.assert_equal(one, other)


# ---- GRIB's names

WORLD = StateSpec(
    Grid(4, 8), (Modality("temperature", "state", "K", "air_temperature", (500, 850)), PRECIPITATION, OLR)
)


@pytest.fixture(scope="module")
def grib(tmp_path_factory):
    """A product of all three modalities, and what is exported of it."""
    folder = tmp_path_factory.mktemp("grib")
    days = np.arange("2001-01-30", "2001-02-02", dtype="datetime64[D]")
    made = analysis.create(folder / "a.zarr", WORLD, days, 2, {"config": {}})
    x = np.random.default_rng(0).uniform(1, 300, (2, 3, 4, 4, 8)).astype(np.float32)
    made.write(np.arange(2), np.arange(3), x)
    made.finish()
    with xr.open_dataset(export(folder / "a.zarr", folder, kind="grib-netcdf")[0], decode_timedelta=True) as found:
        yield found.load(), x[:, :2]


def test_members_in_gribs_names_and_units(grib):
    found, x = grib
    assert found.t.dims == ("number", "time", "isobaricInhPa", "latitude", "longitude")
    assert found.tp.dims == found.ttr.dims == ("number", "time", "latitude", "longitude")
    assert found.isobaricInhPa.values.tolist() == [850, 500]
    np.testing.assert_array_equal(found.t.sel(isobaricInhPa=500), x[:, :, 0])
    np.testing.assert_array_equal(found.t.sel(isobaricInhPa=850), x[:, :, 1])
    np.testing.assert_allclose(found.tp, x[:, :, 2] / 1000, rtol=1e-6)
    np.testing.assert_allclose(found.ttr, -x[:, :, 3] * 24 * 3600, rtol=1e-6)
    assert (np.diff(found.latitude) < 0).all() and 0 <= found.longitude.min() < found.longitude.max() < 360
    np.testing.assert_array_equal(found.valid_time, found.time + found.step)
    assert found.step == np.timedelta64(1, "D")


@pytest.mark.parametrize("name", ["t", "tp", "ttr"])
def test_ecmwfs_table_calls_them_so(grib, name):
    """Asked of eccodes, which knows the parameter by its number alone."""
    given = grib[0][name].attrs
    message = eccodes.codes_grib_new_from_samples("GRIB2")
    eccodes.codes_set(message, "centre", "ecmf")
    if name == "t":
        eccodes.codes_set(message, "typeOfLevel", "isobaricInhPa")
    eccodes.codes_set(message, "paramId", int(given["GRIB_paramId"]))
    for key in ("shortName", "name", "units", "cfName", "cfVarName", "typeOfLevel"):
        assert given[f"GRIB_{key}"] == eccodes.codes_get(message, key), key
    eccodes.codes_release(message)
    assert given["units"] == given["GRIB_units"] and given["long_name"] == given["GRIB_name"]


def test_cfgrib_reads_the_same_names_from_a_grib_file_made_of_it(grib, tmp_path):
    """Every attribute that cfgrib gives is one that was written, but for what says how the message was packed."""
    found, _ = grib
    with (tmp_path / "t.grib").open("wb") as file:
        for place in np.ndindex(found.t.shape[:3]):
            message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib1")
            day = found.time[place[1]].dt
            told = {
                "centre": "ecmf",
                "setLocalDefinition": 1,
                "localDefinitionNumber": 1,
                "stream": "enda",
                "type": "an",
            }
            told |= {"paramId": found.t.attrs["GRIB_paramId"]}
            told |= {"Ni": 8, "Nj": 4, "iDirectionIncrementInDegrees": 45, "jDirectionIncrementInDegrees": 45}
            told |= {"latitudeOfFirstGridPointInDegrees": 67.5, "latitudeOfLastGridPointInDegrees": -67.5}
            told |= {"longitudeOfFirstGridPointInDegrees": 22.5, "longitudeOfLastGridPointInDegrees": 337.5}
            told |= {"dataDate": int(day.strftime("%Y%m%d")), "dataTime": 0, "stepType": "avg", "stepRange": "0-24"}
            told |= {"level": int(found.isobaricInhPa[place[2]]), "number": int(found.number[place[0]])}
            told |= {"numberOfForecastsInEnsemble": 2, "bitsPerValue": 24}
            for key, value in told.items():
                eccodes.codes_set(message, key, value.item() if isinstance(value, np.generic) else value)
            eccodes.codes_set_values(message, found.t.values[place].astype(float).ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        read = xr.open_dataset(
            tmp_path / "t.grib", engine="cfgrib", backend_kwargs={"indexpath": ""}, decode_timedelta=True
        )
    assert read.t.dims == found.t.dims
    np.testing.assert_allclose(read.t, found.t, atol=1e-3)
    for name in (*found.t.dims, "step", "valid_time"):
        np.testing.assert_array_equal(read[name], found[name])
        assert {k: v for k, v in read[name].attrs.items() if k != "dtype"}.items() <= found[name].attrs.items(), name
    packing = {
        "GRIB_missingValue",
        "GRIB_NV",
        "GRIB_stepUnits",
        "GRIB_uvRelativeToGrid",
        "GRIB_gridDefinitionDescription",
    }
    packing |= {"GRIB_dataType"}
    for key, value in read.t.attrs.items():
        assert key in packing or found.t.attrs[key] == value, key


def test_a_field_without_parameter_is_refused(tmp_path, capsys):
    spec = StateSpec(Grid(4, 8), (Modality("ozone", "state", "kg kg-1", "mass_fraction_of_ozone_in_air", (50,)),))
    analysis.create(tmp_path / "a.zarr", spec, np.array(["2001-01-01"], "datetime64[D]"), 1, {"config": {}}).finish()
    said = say(capsys, tmp_path / "a.zarr", tmp_path / "out", "--format", "grib-netcdf")
    assert "no GRIB parameter is known for ozone" in said
    assert main(["export", str(tmp_path / "a.zarr"), str(tmp_path / "out")]) == 0


@pytest.mark.skipif(not shutil.which("cdo"), reason="cdo is not installed")
def test_cdo_understands_it(product, tmp_path):
    """Fields of at most four dimensions: it knows no members of a field with levels."""
    path = export(product.path, tmp_path)[0]
    done = subprocess.run(["cdo", "-s", "sinfo", path], capture_output=True, text=True, check=True)
    assert "2001-01-31" in done.stdout and "850 hPa" in done.stdout and "Bounds = true" in done.stdout
    told = ["cdo", "-s", "outputf,%.4f", "-sellevel,850", "-selname,temperature_mean", path]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    expected = fields()[:, :3, 1].mean(axis=0).ravel()
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected, atol=1e-3)


def test_a_file_is_compressed_and_its_chunks_have_checksums(product, tmp_path):
    with netCDF4.Dataset(export(product.path, tmp_path)[0]) as found:
        assert found.data_model == "NETCDF4"
        filters = found["temperature"].filters()
        assert filters["zlib"] and filters["fletcher32"]
        assert found["temperature"].chunking() == [1, 1, 2, 4, 8] and found.dimensions["time"].isunlimited()
