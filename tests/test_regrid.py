"""Regridding conserves means, agrees with a double loop over cells and with cdo, keeps missing missing."""

import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr

from data_prep.regrid import conservative, observed_share
from slams.spec import Grid

GRIDS = [Grid(12, 24), Grid(7, 10), Grid(30, 50)]  # coarser, incommensurable, finer than the sources
GAUSSIAN = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(16)[0]))[::-1]
SOURCES = {
    "poles": (np.linspace(90, -90, 19), np.arange(0, 360, 10.0)),
    "centres": (np.linspace(85, -85, 18), np.arange(5, 360, 10.0)),
    "half a cell west of Greenwich": (np.linspace(-87.5, 87.5, 36), np.arange(0, 360, 7.5)),
    "gaussian": (GAUSSIAN, np.arange(0, 360, 11.25)),
}


def field_on(latitude, longitude, seed=0, **dims):
    shape = (*dims.values(), len(latitude), len(longitude))
    values = np.random.default_rng(seed).standard_normal(shape)
    coords = {"latitude": latitude, "longitude": longitude}
    return xr.DataArray(values, coords, (*dims, "latitude", "longitude"), attrs={"units": "K"})


def row_edges(latitude):
    """Edges of global rows, north to south or south to north: midpoints and the poles."""
    sign = 1 if latitude[0] > latitude[-1] else -1
    return np.r_[90 * sign, (latitude[1:] + latitude[:-1]) / 2, -90 * sign]


def area(south, north, width):
    return (np.sin(np.deg2rad(north)) - np.sin(np.deg2rad(south))) * np.deg2rad(width)


def source_cells(field):
    """(south, north, west, east) of each cell of a global field with equally spaced columns."""
    edges, longitude = row_edges(field.latitude.values), field.longitude.values
    half = (longitude[1] - longitude[0]) / 2
    for i in range(len(edges) - 1):
        for j, centre in enumerate(longitude):
            yield (i, j), (*sorted(edges[i : i + 2]), centre - half, centre + half)


def by_brute_force(field, grid, min_share):
    """Every target cell against every source cell, one pair at a time."""
    total, covered = np.zeros(grid.shape), np.zeros(grid.shape)
    for (i, j), (south, north, west, east) in source_cells(field):
        value = float(field.values[i, j])
        for k in range(grid.n_latitude):
            a, b = max(south, grid.latitude_bounds[k + 1]), min(north, grid.latitude_bounds[k])
            for m in range(grid.n_longitude if b > a and np.isfinite(value) else 0):
                low, high = grid.longitude_bounds[m : m + 2]
                width = sum(max(0, min(east + t, high) - max(west + t, low)) for t in (-360, 0, 360))
                total[k, m] += area(a, b, width) * value
                covered[k, m] += area(a, b, width)
    share = covered / (grid.area_weights * 4 * np.pi)
    return np.where(share >= min_share, total / np.where(covered > 0, covered, 1), np.nan), share


def source_mean(field):
    weights = -np.diff(np.sin(np.deg2rad(row_edges(field.latitude.values))))
    return float(np.average(field.values.mean(-1), weights=weights))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_the_global_mean_is_conserved(source, grid):
    field = field_on(*SOURCES[source])
    target = conservative(field, grid)
    assert target.dtype == np.float32
    assert (target.values * grid.area_weights).sum() == pytest.approx(source_mean(field), abs=1e-6)


@pytest.mark.parametrize(
    "longitude", [np.arange(32.5, 80, 5.0), np.r_[2.5, 7.5, 340 + np.arange(2.5, 20, 5)]]
)
def test_the_integral_over_a_region_is_conserved(longitude):
    latitude = np.arange(58.5, 20, -3.0)
    field, grid = field_on(latitude, longitude), Grid(20, 36)
    target = conservative(field, grid, min_observed_share=1e-6)
    area_target = observed_share(field, grid).values * grid.area_weights
    area_source = [area(y - 1.5, y + 1.5, 5.0) / (4 * np.pi) for y in latitude]
    expected = (field.values * np.array(area_source)[:, None]).sum()
    assert area_target.sum() == pytest.approx(len(longitude) * sum(area_source), rel=1e-6)
    assert np.nansum(target.values * area_target) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_a_constant_stays_constant(source, grid):
    field = xr.full_like(field_on(*SOURCES[source], time=2), 273.15)
    np.testing.assert_allclose(conservative(field, grid), 273.15, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_it_agrees_with_a_double_loop_over_cells(source, grid):
    field = field_on(*SOURCES[source])
    field = field.where(np.random.default_rng(1).random(field.shape) > 0.4)
    expected, share = by_brute_force(field, grid, 0.47)  # no tie, which rounding would decide
    np.testing.assert_allclose(conservative(field, grid, 0.47), expected, atol=1e-6)
    np.testing.assert_allclose(observed_share(field, grid), share, atol=1e-6)


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("source", SOURCES)
def test_it_agrees_with_cdo(source, tmp_path):
    field, grid = field_on(*SOURCES[source]), Grid(20, 36)
    field["latitude"].attrs["units"], field["longitude"].attrs["units"] = "degrees_north", "degrees_east"
    field.to_netcdf(tmp_path / "in.nc", encoding={"__xarray_dataarray_variable__": {"_FillValue": 9e36}})
    (tmp_path / "grid").write_text(
        f"gridtype = lonlat\nxsize = {grid.n_longitude}\nysize = {grid.n_latitude}\n"
        f"xfirst = {grid.longitude[0]}\nxinc = {grid.longitude[1] - grid.longitude[0]}\n"
        f"yfirst = {grid.latitude[0]}\nyinc = {grid.latitude[1] - grid.latitude[0]}\n"
    )
    command = [
        "cdo",
        "-s",
        "-b",
        "F64",
        f"remapcon,{tmp_path / 'grid'}",
        tmp_path / "in.nc",
        tmp_path / "out.nc",
    ]
    subprocess.run(command, check=True)
    with xr.open_dataset(tmp_path / "out.nc") as out:
        expected = next(iter(out.data_vars.values())).values
    np.testing.assert_allclose(conservative(field, grid), expected, atol=1e-5)


def test_missing_values_are_left_out_of_the_mean_or_make_it_missing():
    latitude, longitude = np.linspace(82.5, -82.5, 12), np.arange(7.5, 360, 15)
    field = xr.ones_like(field_on(latitude, longitude)) * np.arange(24)
    field[0, 0:2] = np.nan  # half the columns of the first cell of 4 x 4, in its smallest row
    field[4:8, 0:2] = np.nan  # exactly half of the cell below
    field[8:12, 0:3] = np.nan
    grid = Grid(3, 6)
    target = conservative(field, grid)
    row_areas = -np.diff(np.sin(np.deg2rad(np.linspace(90, 30, 5))))
    row_means = np.array([2.5, 1.5, 1.5, 1.5])
    observed = row_areas * [0.5, 1, 1, 1]
    assert target[0, 0] == pytest.approx(np.average(row_means, weights=observed), rel=1e-6)
    assert target[1, 0] == pytest.approx(2.5)
    assert np.isnan(target[2, 0])
    assert conservative(field, grid, 0.25)[2, 0] == pytest.approx(3.0)
    assert np.isnan(conservative(field, grid, 0.51)[1, 0])
    assert int(target.isnull().sum()) == 1


def test_turning_the_source_turns_the_target():
    field, grid = field_on(np.linspace(85, -85, 18), np.arange(0, 360, 10.0)), Grid(9, 18)
    turned = field.roll(longitude=4, roll_coords=False)
    np.testing.assert_allclose(
        conservative(turned, grid), np.roll(conservative(field, grid), 2, axis=-1), atol=1e-6
    )
    relabelled = field.roll(longitude=7, roll_coords=True).sortby("longitude")
    np.testing.assert_array_equal(conservative(relabelled, grid), conservative(field, grid))


def test_latitude_may_run_either_way():
    field, grid = field_on(*SOURCES["poles"]), Grid(9, 18)
    np.testing.assert_allclose(conservative(field[::-1], grid), conservative(field, grid), atol=1e-6)


def test_it_is_lazy_and_the_same_in_blocks():
    field, grid = field_on(*SOURCES["poles"], time=5, level=3), Grid(9, 18)
    lazy = conservative(field.chunk(time=2, level=1, latitude=4), grid)
    assert lazy.chunks is not None and lazy.dims == ("time", "level", "latitude", "longitude")
    assert lazy.attrs == {"units": "K"}
    np.testing.assert_array_equal(lazy.latitude, grid.latitude)
    np.testing.assert_array_equal(lazy.longitude, grid.longitude)
    np.testing.assert_array_equal(lazy, conservative(field, grid))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="min_observed_share"):
        conservative(field_on(*SOURCES["poles"]), Grid(9, 18), share)
