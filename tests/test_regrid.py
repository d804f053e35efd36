"""Regridding conserves means, interpolates up to the poles, agrees with brute force and cdo, keeps missing missing."""

import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree

from data_prep.config import ArchiveConfig, SourcesConfig
from data_prep.fields import open_fields
from data_prep.regrid import METHODS, RegridConfig, bilinear, conservative, nearest, observed_share, regrid
from data_prep.sources import find_files, open_precipitation, open_temperature
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


@pytest.mark.parametrize("longitude", [np.arange(32.5, 80, 5.0), np.r_[2.5, 7.5, 340 + np.arange(2.5, 20, 5)]])
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


REGIONS = {
    "Europe": (np.arange(71.5, 30, -1.5), np.r_[0:40:1.5, 341.25:360:1.5]),
    "the tropics": (np.linspace(-29, 29, 30), np.arange(1, 360, 2.0)),
}
CDO = {"conservative": "remapcon", "bilinear": "remapbil", "nearest": "remapnn"}
CDO_GRIDS = [Grid(20, 36), Grid(8, 10), Grid(64, 128)]


def askew(field):
    """The field on centres of which none is a target's or half way between two: there cdo decides otherwise."""
    latitude = field.latitude if abs(field.latitude).max() == 90 else field.latitude * 0.997
    return field.assign_coords(latitude=latitude, longitude=(field.longitude + 0.37))


def with_bounds(field):
    """With the edges of the cells, where cdo would leave the caps of a Gaussian grid open."""
    sides = {"latitude": row_edges(field.latitude.values)}
    east = field.longitude.values
    sides["longitude"] = np.r_[east, 2 * east[-1] - east[-2]] - (east[1] - east[0]) / 2
    found = field.to_dataset(name="x")
    for name, edges in sides.items():
        found[f"{name}_bounds"] = ((name, "side"), np.stack([edges[:-1], edges[1:]], axis=1))
        found[name].attrs["bounds"] = f"{name}_bounds"
    return found


def by_cdo(operator, field, grid, folder):
    """What cdo makes of a field; it is given longitudes that ascend, as it wants them."""
    east = field.longitude.values
    start = int(np.argmax(np.diff(east, append=east[0] + 360)) + 1) % len(east)  # east of the widest gap
    turned = field.roll(longitude=-start, roll_coords=True)
    turned = turned.assign_coords(longitude=np.unwrap(turned.longitude.values, period=360))
    turned["latitude"].attrs["units"], turned["longitude"].attrs["units"] = "degrees_north", "degrees_east"
    is_global = abs(field.latitude).max() + abs(field.latitude[1] - field.latitude[0]) > 90
    turned = with_bounds(turned) if is_global else turned.to_dataset(name="x")
    turned.to_netcdf(folder / "in.nc", encoding={"x": {"_FillValue": 9e36}})
    (folder / "grid").write_text(
        f"gridtype = lonlat\nxsize = {grid.n_longitude}\nysize = {grid.n_latitude}\n"
        f"xfirst = {grid.longitude[0]}\nxinc = {grid.longitude[1] - grid.longitude[0]}\n"
        f"yfirst = {grid.latitude[0]}\nyinc = {grid.latitude[1] - grid.latitude[0]}\n"
    )
    command = ["cdo", "-s", "-b", "F64", f"{operator},{folder / 'grid'}", folder / "in.nc", folder / "out.nc"]
    subprocess.run(command, check=True, timeout=60)
    with xr.open_dataset(folder / "out.nc") as out:
        return out["x"].values


def comparable(method, field, grid):
    """Where cdo means the same: beyond the last rows it averages four points by distance, and it extrapolates."""
    covered = observed_share(field, grid, method).values > 0
    latitude = field.latitude.values
    inside = (grid.latitude >= latitude.min()) & (grid.latitude <= latitude.max())
    return inside[:, None] if method == "bilinear" else covered if method == "nearest" else np.ones(grid.shape, bool)


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "gaps"])
@pytest.mark.parametrize("grid", CDO_GRIDS, ids=str)
@pytest.mark.parametrize("source", SOURCES | REGIONS)
@pytest.mark.parametrize("method", METHODS)
def test_it_agrees_with_cdo(method, source, grid, missing, tmp_path):
    field = askew(field_on(*(SOURCES | REGIONS)[source]))
    if missing:
        field = field.where(np.random.default_rng(1).random(field.shape) > 0.1)
    field = field.where(abs(field.latitude) < 90, 1.0)  # at a pole there is one value
    # cdo gives a mean where anything was observed, and interpolates only between four values that are there
    least = {"conservative": 1e-6, "bilinear": 1.0, "nearest": 0.5}[method]
    found, expected = regrid(field, grid, method, least).values, by_cdo(CDO[method], field, grid, tmp_path)
    where = np.broadcast_to(comparable(method, field, grid), grid.shape)
    assert np.isfinite(found[where]).any()
    np.testing.assert_allclose(found[where], expected[where], atol=1e-5)


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
    np.testing.assert_allclose(conservative(turned, grid), np.roll(conservative(field, grid), 2, axis=-1), atol=1e-6)
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_constant_stays_constant_whatever_the_method(source, method):
    field = xr.full_like(field_on(*SOURCES[source]), 273.15)
    for grid in GRIDS:
        np.testing.assert_allclose(regrid(field, grid, method), 273.15, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_bilinear_is_exact_for_what_is_linear_in_latitude_and_longitude(source, grid):
    """Between the outermost rows of centres; in longitude away from the seam of a function that is not periodic."""
    latitude, longitude = SOURCES[source]
    field = field_on(latitude, longitude)

    def plane(phi, lam):
        return 3 - 0.7 * phi[:, None] + 0.2 * lam + 0.01 * phi[:, None] * lam

    field[:] = plane(latitude, longitude)
    rows = abs(grid.latitude) <= abs(latitude).max()
    columns = (grid.longitude >= longitude[0]) & (grid.longitude <= longitude[-1])
    expected = plane(grid.latitude, grid.longitude)
    found = bilinear(field, grid).values
    np.testing.assert_allclose(found[np.ix_(rows, columns)], expected[np.ix_(rows, columns)], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("n_rows", [18, 19])
def test_bilinear_goes_on_across_the_pole(n_rows):
    """A plane in space is smooth at the poles; a method that stops at the last row or turns back is wrong there."""
    step = 180 / 18
    latitude = np.linspace(90, -90, 19) if n_rows == 19 else np.linspace(85, -85, 18)
    longitude, grid = np.arange(0, 360, step), Grid(90, 72)

    def plane(phi, lam):
        return np.cos(np.deg2rad(phi))[:, None] * np.cos(np.deg2rad(lam - 40))

    field = field_on(latitude, longitude)
    field[:] = plane(latitude, longitude)
    # the error of linear interpolation is at most an eighth of the squared step times the second derivative, each way
    bound = np.deg2rad(step) ** 2 / 8 * 2
    np.testing.assert_allclose(bilinear(field, grid), plane(grid.latitude, grid.longitude), atol=bound)


@pytest.mark.parametrize("source", SOURCES | REGIONS)
@pytest.mark.parametrize("grid", [Grid(20, 36), Grid(31, 50)], ids=str)
def test_nearest_is_the_nearest_on_the_sphere(source, grid):
    field = askew(field_on(*(SOURCES | REGIONS)[source]))
    field = field.where(abs(field.latitude) < 90, 1.0)

    def points(latitude, longitude):
        phi, lam = np.meshgrid(np.deg2rad(latitude), np.deg2rad(longitude), indexing="ij")
        return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1).reshape(-1, 3)

    _, index = cKDTree(points(field.latitude, field.longitude)).query(points(grid.latitude, grid.longitude))
    expected = field.values.ravel()[index].astype(np.float32).reshape(grid.shape)
    found = nearest(field, grid).values
    seen = np.isfinite(found)
    np.testing.assert_array_equal(found[seen], expected[seen])
    assert seen.all() if source in SOURCES else 0 < seen.mean() < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_made_up_outside_a_region(method):
    """Values inside its outermost centres, none beyond its outermost cells."""
    latitude, longitude = np.arange(60.5, 29, -3.0), np.r_[0:31:3.0, 330:360:3.0]
    field, grid = field_on(latitude, longitude), Grid(90, 120)
    east = (grid.longitude + 180) % 360 - 180
    cells = abs(grid.latitude - 45.5)[:, None] <= 16.5 + 1, (east >= -31.5 - 1.5) & (east <= 31.5 + 1.5)
    centres = abs(grid.latitude - 45.5)[:, None] < 15, (east > -30) & (east < 30)
    seen = regrid(field, grid, method).notnull().values
    assert seen[centres[0] & centres[1]].all()
    assert not seen[~(cells[0] & cells[1])].any()


def test_bilinear_says_which_share_of_its_four_values_was_observed():
    latitude, longitude, grid = np.linspace(80, -80, 17), np.arange(0, 360, 10.0), Grid(30, 60)
    field = xr.full_like(field_on(latitude, longitude), 7.0)
    field[8, 0] = np.nan  # (0 N, 0 E); the target at 3 N, 3 E gives it 0.7 x 0.7
    field[4, 10] = np.nan  # (40 N, 100 E); the one at 39 N, 99 E gives it 0.9 x 0.9
    share = observed_share(field, grid, "bilinear").values
    assert share[14, 0] == pytest.approx(1 - 0.49, abs=1e-6) and share[8, 16] == pytest.approx(1 - 0.81, abs=1e-6)
    assert bilinear(field, grid)[14, 0] == pytest.approx(7.0) and np.isnan(bilinear(field, grid, 0.52)[14, 0])
    assert np.isnan(bilinear(field, grid)[8, 16]) and bilinear(field, grid, 0.18)[8, 16] == pytest.approx(7.0)


def test_what_counts_nothing_may_be_missing():
    """A target on a source's centre takes that value alone."""
    latitude, longitude, grid = np.linspace(87, -87, 30), np.arange(3, 360, 6.0), Grid(30, 60)
    field = field_on(latitude, longitude).where(np.indices((30, 60)).sum(axis=0) % 2 == 0)
    for method in METHODS:
        np.testing.assert_array_equal(regrid(field, grid, method), field.values.astype(np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_turning_and_flipping_change_nothing_whatever_the_method(method):
    field, grid = field_on(np.linspace(85, -85, 18), np.arange(1, 360, 10.0)), Grid(9, 18)
    field = field.where(np.random.default_rng(2).random(field.shape) > 0.1)
    found = regrid(field, grid, method)
    turned = regrid(field.roll(longitude=4, roll_coords=False), grid, method)
    np.testing.assert_allclose(turned, np.roll(found, 2, axis=-1), atol=1e-6)
    np.testing.assert_allclose(regrid(field[::-1], grid, method), found, atol=1e-6)
    relabelled = field.assign_coords(longitude=(field.longitude + 180) % 360 - 180).sortby("longitude")
    np.testing.assert_allclose(regrid(relabelled, grid, method), found, atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_every_method_is_lazy_and_the_same_in_blocks(method):
    field, grid = field_on(*SOURCES["poles"], time=5, level=3), Grid(30, 50)
    lazy = regrid(field.chunk(time=2, level=1, latitude=4), grid, method)
    assert lazy.chunks is not None and lazy.dims == ("time", "level", "latitude", "longitude")
    np.testing.assert_array_equal(lazy, regrid(field, grid, method))


def test_a_modality_comes_onto_the_grid_as_the_configuration_says(planet):
    years = {"train_years": [2001, 2001], "validation_years": [2002, 2002], "test_years": [2003, 2003]}
    patterns = {"temperature": f"{planet}/era5_t.*.nc", "precipitation": f"{planet}/precip.*.nc"}
    config = ArchiveConfig(
        "", SourcesConfig(**patterns), 8, 16, **years, level_hpa=[500], regrid=RegridConfig(precipitation="nearest")
    )
    fields = open_fields(config)
    rain = open_precipitation(find_files(patterns["precipitation"]))
    np.testing.assert_array_equal(fields["precipitation"][:3], nearest(rain[:3], Grid(8, 16)))
    air = open_temperature(find_files(patterns["temperature"]), [500])
    np.testing.assert_array_equal(fields["temperature"][:3], conservative(air[:3], Grid(8, 16)))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="min_observed_share"):
        conservative(field_on(*SOURCES["poles"]), Grid(9, 18), share)
