"""No variable loses to rounding what its values are: each may have its own decimals, and too few are refused."""

import numpy as np
import pytest
import xarray as xr
import yaml
from test_errors import write_prep

from data_prep.__main__ import main as prepare
from data_prep.stats import LOSS_SHARE
from slams.contracts.archive import open_archive
from slams.contracts.shards import open_shards

UNITS = "kg kg**-1"


@pytest.fixture(scope="module")
def humid(tmp_path_factory, planet):
    """The planet, and specific humidity made of its temperature: 1e-6 to 2e-2."""
    folder = tmp_path_factory.mktemp("humid")
    for year in (2001, 2002, 2003):
        with xr.open_dataset(planet / f"era5_t.{year}.nc", decode_times=False) as found:
            q = (0.02 * np.exp((found.t - 310) / 10)).astype("f8").assign_attrs(units=UNITS)
            q.encoding = {}
            found.drop_vars("t").assign(q=q).to_netcdf(folder / f"q.{year}.nc")
    return folder


def write(folder, planet, humid, **more):
    write_prep(folder, planet)
    config = yaml.safe_load((folder / "prep.yaml").read_text())
    q = {"name": "humidity", "standard_name": "specific_humidity", "units": UNITS, "files": f"{humid}/q.*.nc"}
    config["archive"]["variables"] = [q | {"short_names": ["q"], "valid_range": [0, 0.1]} | more]
    (folder / "prep.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "prep.yaml")


@pytest.mark.parametrize(("decimals", "told"), [(None, 2), (4, 4)])
def test_too_few_decimals_are_refused(tmp_path, planet, humid, capsys, decimals, told):
    """The default of all variables among them; four do at the ground and not where the air is dry."""
    config = write(tmp_path, planet, humid, decimals=decimals)
    assert prepare(["archive", config]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"archive.decimals: {told} of humidity may move a value by {0.5 * 10**-told:g}" in said
    assert UNITS in said and "the standard deviation of humidity_10 is " in said
    assert not (tmp_path / "archive").exists()


def test_a_variable_has_decimals_of_its_own(tmp_path, planet, humid, capsys):
    """What the archive and the shards hold of it is the humidity of the temperature that they hold, 10 hPa included."""
    config = write(tmp_path, planet, humid, decimals=9, regrid="nearest")
    nearest, other = "archive.regrid.temperature=nearest", f"shards.path={tmp_path}/other"
    assert prepare(["archive", config, nearest]) == 0 and prepare(["shards", config, nearest]) == 0
    assert prepare(["shards", write(tmp_path, planet, humid, decimals=8, regrid="nearest"), nearest, other]) == 2
    assert "archive.variables.0.decimals=9, but the configuration has 8" in capsys.readouterr().err
    archive, shards = open_archive(tmp_path / "archive"), open_shards(tmp_path / "shards")
    with xr.open_zarr(tmp_path / "archive") as found:
        assert found.humidity.attrs["decimals"] == 9 and found.humidity.attrs["loss_bound"] == 5e-10
        assert found.temperature.attrs["loss_bound"] == 0.005
    x, t, q = archive.read(slice(0, 90)), archive.spec.channels("temperature"), archive.spec.channels("humidity")
    expected = 0.02 * np.exp((x[:, t].astype(float) - 310) / 10)
    np.testing.assert_allclose(x[:, q], expected, rtol=0.0051 / 10, atol=5.1e-10)
    std = np.array(archive.attributes["global_std"])[q]
    assert (LOSS_SHARE * std > 5e-10).all() and std[-1] > 1e-3
    frames = shards.frames[:90]
    back = shards.statistics().physical(shards.read_all(frames), np.array([frame.time for frame in frames]))
    error = np.abs(back[:, q] - x[:, q]).max(axis=(0, 2, 3))
    assert (error < 0.01 * std).all()
