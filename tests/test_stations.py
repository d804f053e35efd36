"""Stations: interpolated as scipy does on an extended grid, across poles and date line; read as they were written."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.interpolate import RegularGridInterpolator

from slams.contracts.envelope import ContractError
from slams.contracts.observations import Gridded, Operator, Stations, open_observations, write_observations
from slams.interpolate import binned, horizontal, place, vertical
from slams.observe import Interpolation
from slams.spec import OLR, Grid, Modality, StateSpec

LEVELS = (500, 1000, 100)  # channel order need not be that of height
SPEC = StateSpec(Grid(6, 12), (Modality("temperature", "state", "K", "air_temperature", LEVELS), OLR))
DAYS = np.datetime64("2000-02-27") + np.arange(6)


def points(n, seed=0):
    """Uniform on the sphere, and some at the poles, on the date line and on Greenwich."""
    rng = np.random.default_rng(seed)
    latitude = np.rad2deg(np.arcsin(rng.uniform(-1, 1, n)))
    longitude = rng.uniform(-180, 360, n)
    special = [(90, 10), (-90, 200), (89.9, 359.9), (-89, -180), (0, 0), (0, 360), (30, 180), (30, -180)]
    return np.append(latitude, [p[0] for p in special]), np.append(longitude, [p[1] for p in special])


def interpolated(field_HW, latitude, longitude, grid):
    cell, weight = horizontal(latitude, longitude, grid)
    return (field_HW.ravel()[cell] * weight).sum(axis=1)


# ---- the interpolation


def test_bilinear_is_scipys_on_a_grid_that_was_extended_across_poles_and_date_line():
    grid, (latitude, longitude) = SPEC.grid, points(500)
    field = np.random.default_rng(1).normal(size=grid.shape)
    half = grid.n_longitude // 2
    rows = np.concatenate([np.roll(field[:1], half, axis=1), field, np.roll(field[-1:], half, axis=1)])
    wide = np.concatenate([rows, rows, rows], axis=1)
    step = 360 / grid.n_longitude
    axes = -90 - 15 + 30 * np.arange(grid.n_latitude + 2), -360 + step * (np.arange(3 * grid.n_longitude) + 0.5)
    expected = RegularGridInterpolator(axes, wide)(np.stack([-latitude, longitude], axis=-1))
    np.testing.assert_allclose(interpolated(field, latitude, longitude, grid), expected, rtol=1e-9, atol=1e-9)


def smooth(latitude, longitude):
    """A polynomial of the position in space: smooth on the sphere, also at the poles."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    x, y, z = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
    return x + 0.5 * y + x * z - 2 * y * z + x * y


@pytest.mark.parametrize("n_longitude", [32, 33])
def test_a_smooth_field_is_met_to_second_order_everywhere(n_longitude):
    """Half the cell, a quarter of the error; a seam at a pole or at the date line would be of first order."""
    latitude, longitude = points(4000)
    error = []
    for grid in (Grid(16, n_longitude), Grid(32, 2 * n_longitude)):
        field = smooth(grid.latitude[:, None], grid.longitude[None])
        error.append(np.abs(interpolated(field, latitude, longitude, grid) - smooth(latitude, longitude)).max())
    assert error[0] < 0.06 and error[1] < 0.3 * error[0]


def test_weights_are_a_mean_and_a_cell_centre_is_its_own():
    latitude, longitude = points(200)
    _, weight = horizontal(latitude, longitude, SPEC.grid)
    assert (weight >= -1e-12).all()
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    mesh = [axis.ravel() for axis in np.meshgrid(SPEC.grid.latitude, SPEC.grid.longitude, indexing="ij")]
    field = np.arange(72.0).reshape(6, 12)
    np.testing.assert_allclose(interpolated(field, *mesh, SPEC.grid), field.ravel(), atol=1e-9)


def test_what_is_linear_in_the_logarithm_of_pressure_is_exact():
    level_hpa = np.array([100, 150.5, 499, 500, 777, 1000])
    channel, weight, inside = vertical(level_hpa, LEVELS)
    profile = 3 - 2 * np.log(np.array(LEVELS))
    np.testing.assert_allclose((profile[channel] * weight).sum(axis=1), 3 - 2 * np.log(level_hpa))
    assert inside.all()


def test_beyond_the_levels_nothing_is_extrapolated():
    channel, weight, inside = vertical(np.array([99.9, 1000.1, np.nan]), LEVELS)
    assert not inside.any()
    held = (np.array(LEVELS)[channel] * weight).sum(axis=1)
    np.testing.assert_allclose(held[:2], [100, 1000])
    assert vertical(np.array([500.0, 501.0]), (500,))[2].tolist() == [True, False]


def test_the_adjoint_of_the_interpolation_by_dot_product():
    (latitude, longitude), rng = points(50), np.random.default_rng(2)
    level_hpa = rng.uniform(100, 1000, len(latitude))
    at = place(latitude, longitude, level_hpa, SPEC.grid, LEVELS)
    apply = Interpolation(at, rng.integers(0, 2, len(latitude)), (SPEC.n_channels, *SPEC.grid.shape))
    x = torch.from_numpy(rng.normal(size=(3, 2, SPEC.n_channels, *SPEC.grid.shape))).requires_grad_()
    seen = apply(x)
    y = torch.from_numpy(rng.normal(size=tuple(seen.shape)))
    (adjoint,) = torch.autograd.grad(seen, x, y)
    assert (seen * y).sum().item() == pytest.approx((x * adjoint).sum().item(), rel=1e-10)


def test_the_interpolation_by_a_loop():
    """Member, day, level and place of every point; the second modality's channel after the first one's three."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(2, 3, SPEC.n_channels, *SPEC.grid.shape)))
    latitude, longitude, frame = np.array([15.0, -75.0]), np.array([45.0, 345.0]), np.array([2, 0])  # cell centres
    level_hpa = np.array([1000.0, np.sqrt(100 * 500)])
    shape = (SPEC.n_channels, *SPEC.grid.shape)
    found = Interpolation(place(latitude, longitude, level_hpa, SPEC.grid, LEVELS), frame, shape)(x)
    expected = torch.stack([x[:, 2, 1, 2, 1], (x[:, 0, 0, 5, 11] + x[:, 0, 2, 5, 11]) / 2], dim=1)
    torch.testing.assert_close(found, expected)
    found = Interpolation(place(latitude, longitude, level_hpa, SPEC.grid, ()), frame, shape, 3)(x)
    torch.testing.assert_close(found, torch.stack([x[:, 2, 3, 2, 1], x[:, 0, 3, 5, 11]], dim=1))


# ---- the table


def reports(name="temperature", days=DAYS, n=20, seed=0, **changes):
    rng = np.random.default_rng(seed)
    level = rng.choice([100, 300, 1000], n) if name == "temperature" else np.full(n, np.nan)
    found = {
        "name": name,
        "days": days,
        "frame": np.sort(rng.integers(0, len(days), n)),
        "latitude": rng.uniform(-90, 90, n),
        "longitude": rng.uniform(-180, 360, n),
        "level_hpa": level.astype(np.float32),
        "value": rng.normal(250, 5, n).astype(np.float32),
        "error_std": rng.uniform(0.5, 1, n).astype(np.float32),
        "station_id": np.array([f"s{i % 7}" for i in range(n)], object),
        "qc": (np.arange(n) % 5 == 4).astype(np.int8),
    }
    return Stations(**(found | changes))


def make(path, *observed):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_observations(path, SPEC, DAYS, observed or [reports()], {"config": {}})
    return path


PARTS = ("latitude", "longitude", "level_hpa", "value", "error_std", "station_id", "qc")


def assert_same(left, right):
    np.testing.assert_array_equal(left.time, right.time)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(left, part), getattr(right, part), err_msg=part)


def some(seen, chosen):
    return Stations(seen.name, seen.days, seen.frame[chosen], *(getattr(seen, part)[chosen] for part in PARTS))


@given(st.data())
def test_stations_come_out_as_they_went_in(tmp_path_factory, data):
    n = data.draw(st.integers(1, 12))
    column = lambda kind, elements: data.draw(arrays.arrays(kind, n, elements=elements))  # noqa: E731
    seen = reports(
        n=n,
        latitude=column(np.float64, st.floats(-90, 90)),
        longitude=column(np.float64, st.floats(-180, 360)),
        value=column(np.float32, st.floats(150, 350, width=32)),
        station_id=np.array(data.draw(st.lists(st.text(max_size=4), min_size=n, max_size=n)), object),
        qc=np.append(np.int8(0), column(np.int8, st.integers(-3, 3)))[:n],
    )
    found = open_observations(make(tmp_path_factory.mktemp("a") / "set", seen))
    assert found.names == found.stations == ("temperature",) and found.gridded == ()
    assert_same(found.read_stations("temperature", DAYS), seen)
    assert found.read_stations("temperature", DAYS).used.tolist() == (seen.qc == 0).tolist()
    wanted = DAYS[[4, 1]]
    back = found.read_stations("temperature", wanted)
    assert_same(back, some(seen, np.isin(seen.time, wanted)))
    np.testing.assert_array_equal(wanted[back.frame], back.time)


def test_one_set_holds_fields_and_several_variables_at_stations(tmp_path):
    field = np.full((len(DAYS), 1, 3, 6), 240, np.float32)
    grid = Gridded("olr", Operator("block_mean", 2), field, np.ones_like(field), np.ones(field.shape, bool))
    warm, olr = reports(), reports("olr", seed=1)
    found = open_observations(make(tmp_path / "set", grid, olr, warm))
    assert found.gridded == ("olr",) and found.stations == found.names == ("temperature", "olr")
    kinds = [(seen.name, type(seen)) for seen in found.read_all(found.names, DAYS)]
    assert kinds == [("temperature", Stations), ("olr", Gridded), ("olr", Stations)]
    assert_same(found.read_stations("olr", DAYS), olr)
    assert np.isnan(found.read_stations("olr", DAYS).level_hpa).all()
    found.check(found.names, DAYS)


def test_blocks_of_days_are_the_whole_and_the_fingerprint_tells_every_value(tmp_path):
    whole = reports()
    halves = [some(whole, whole.frame < 3), some(whole, whole.frame >= 3)]
    halves[1] = Stations("temperature", DAYS[3:], halves[1].frame - 3, *(getattr(halves[1], part) for part in PARTS))
    left, right = open_observations(make(tmp_path / "a", whole)), open_observations(make(tmp_path / "b", *halves))
    assert left.checksum == right.checksum
    assert_same(left.read_stations("temperature", DAYS), right.read_stations("temperature", DAYS))
    value = whole.value.copy()
    value[7] += 0.01
    assert open_observations(make(tmp_path / "c", reports(value=value))).checksum != left.checksum


def test_only_the_days_that_are_asked_for_are_read_and_a_flipped_bit_in_them_is_found(tmp_path):
    days = [reports(days=DAYS[i : i + 1], n=300, seed=i) for i in range(len(DAYS))]
    path = make(tmp_path / "set", *days)
    file = path / "stations.parquet"
    column = pq.read_metadata(file).row_group(4).column(5)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    file.write_bytes(data)
    found = open_observations(path)
    expected = np.concatenate([seen.value for seen in days[:4]])
    np.testing.assert_array_equal(found.read_stations("temperature", DAYS[:4]).value, expected)
    assert len(found.read_stations("temperature", DAYS[[1, 3]]).value) == 600
    with pytest.raises(ContractError, match=r"stations\.parquet: damaged, it cannot be read"):
        found.read_stations("temperature", DAYS[4:5])


def table(**changes):
    """What a user may write with pyarrow alone, as docs/formats.md says."""
    columns = {
        "time": pa.array([datetime.date(2000, 2, 28)] * 2),
        "latitude": pa.array([48.2, -90.0]),
        "longitude": pa.array([16.4, 0.0]),
        "level_hpa": pa.array([500, 850], pa.float32()),
        "variable": pa.array(["temperature", "temperature"]),
        "value": pa.array([252.1, 250.0], pa.float32()),
        "error_std": pa.array([0.8, 0.8], pa.float32()),
        "station_id": pa.array(["11035", "89009"]),
        "qc": pa.array([0, 0], pa.int8()),
    }
    return {name: column for name, column in (columns | changes).items() if column is not None}


SAID = {"format": "slams-stations", "version": "1", "units": json.dumps({"temperature": "K"})}


@pytest.fixture
def written(tmp_path):
    """A set whose table a user replaces."""
    path = make(tmp_path / "set")

    def write(columns, said=SAID):
        pq.write_table(pa.table(columns).replace_schema_metadata(said), path / "stations.parquet")
        return path

    return write


def test_a_table_of_a_users_own_is_read(written):
    seen = open_observations(written(table())).read_stations("temperature", DAYS)
    assert seen.value.tolist() == pytest.approx([252.1, 250.0]) and seen.frame.tolist() == [1, 1]


def test_what_failed_its_quality_control_need_not_be_right(written):
    wrong = {"value": pa.array([-9999, 250.0], pa.float32()), "error_std": pa.array([0, 1], pa.float32())}
    path = written(table(**wrong, latitude=pa.array([-999.0, 10.0]), qc=pa.array([3, 0], pa.int8())))
    assert open_observations(path).read_stations("temperature", DAYS).used.tolist() == [False, True]


def pair(*values, kind=None):
    return pa.array(values, kind or pa.float32())


REFUSED = {
    "no column": ({"qc": None}, {}, "has no column 'qc'; time, latitude"),
    "another type": ({"time": pa.array(np.array(["2000-02-28"] * 2, "M8[ns]"))}, {}, "'time' is of type timestamp[ns]"),
    "text for numbers": ({"value": pa.array(["1", "2"])}, {}, "column 'value' is of type string; float is needed"),
    "no format": ({}, {"format": ""}, "is '', not 'slams-stations'"),
    "newer": ({}, {"version": "2"}, "version 2; this program reads up to 1"),
    "no units": ({}, {"units": ""}, "its metadata lack 'units', a JSON object"),
    "Celsius said": ({}, {"units": '{"temperature": "degC"}'}, "temperature is in 'degC'; 'K' is needed"),
    "another variable": ({}, {"units": '{"wind": "m/s"}'}, "variable 'wind' is not one of temperature, olr"),
    "a day before": ({"time": pa.array([datetime.date(1999, 1, 1)] * 2)}, {}, "1999-01-01 is outside 2000-02-27 to"),
}
WRONG = {
    "a misspelt variable": ({"variable": pa.array(["temperature", "temprature"])}, "variable 'temprature' is not one"),
    "latitude": ({"latitude": pair(48, 90.5, kind=pa.float64())}, "latitude of temperature is 90.5; -90 to 90 is"),
    "longitude": ({"longitude": pair(-180.5, 0, kind=pa.float64())}, "longitude of temperature is -180.5; -180 to 360"),
    "no place": ({"latitude": pair(None, 1, kind=pa.float64())}, "latitude of temperature is nan"),
    "no level": ({"level_hpa": pair(500, None)}, "level_hpa of temperature is nan; a pressure, more than 0 is needed"),
    "no pressure": ({"level_hpa": pair(0, 500)}, "level_hpa of temperature is 0.0"),
    "Celsius": ({"value": pair(-21.0, 250.0)}, "temperature is -21.0, which cannot be kelvin; 100 to 400 K"),
    "error of zero": ({"error_std": pair(1, 0)}, "error_std of temperature is 0.0; a finite number, more than 0"),
    "no error": ({"error_std": pair(None, 1)}, "error_std of temperature is nan; a finite number"),
    "negative error": ({"error_std": pair(-1, 1)}, "error_std of temperature is -1.0"),
    "infinite error": ({"error_std": pair(np.inf, 1)}, "error_std of temperature is inf"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_table_that_is_none_is_refused_when_it_is_opened(written, fault):
    changes, said, sentence = REFUSED[fault]
    with pytest.raises(ContractError) as error:
        open_observations(written(table(**changes), SAID | said))
    assert sentence in str(error.value) and "stations.parquet: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", WRONG)
def test_values_that_cannot_be_are_refused_when_they_are_read(written, fault):
    changes, sentence = WRONG[fault]
    found = open_observations(written(table(**changes)))
    with pytest.raises(ContractError) as error:
        found.check(["temperature"], DAYS)
    assert sentence in str(error.value) and "stations.parquet: " in str(error.value) and "\n" not in str(error.value)


def test_no_such_value_is_written_either(tmp_path):
    for changes in ({"latitude": np.full(20, 91.0)}, {"error_std": np.zeros(20, np.float32)}):
        with pytest.raises(ContractError, match=r"stations\.parquet: "):
            make(tmp_path / "set", reports(**changes))


def test_a_cut_table_is_refused(tmp_path):
    file = make(tmp_path / "set") / "stations.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ContractError, match=r"stations\.parquet: damaged"):
        open_observations(tmp_path / "set")


def test_noise_as_large_as_the_published_experiments_is_no_unit_mistake(tmp_path):
    far = np.full(20, -10, np.float32)  # four global standard deviations of 20 K: some such value is sure to be drawn
    make(tmp_path / "set", reports(value=far, error_std=np.full(20, 80, np.float32)))
    with pytest.raises(ContractError, match="cannot be kelvin"):
        make(tmp_path / "other", reports(value=far, error_std=np.full(20, 10, np.float32)))


# ---- as fields


def test_binned_is_the_mean_of_each_cell_by_a_loop():
    outside = np.full(400, 1013.0)
    outside[::2] = np.random.default_rng(5).uniform(100, 1000, 200)
    seen = reports(n=400, level_hpa=outside.astype(np.float32))
    sums, grid = {}, SPEC.grid
    for i in np.flatnonzero(seen.used & (outside <= 1000)):
        row = np.abs(grid.latitude - seen.latitude[i]).argmin()
        column = np.abs((grid.longitude - seen.longitude[i] + 180) % 360 - 180).argmin()
        channel = np.abs(np.log(np.array(LEVELS) / outside[i])).argmin()
        sums.setdefault((seen.frame[i], channel, row, column), []).append(seen.value[i])
    found = binned(seen, SPEC)
    assert found.mask.sum() == len(sums) > 100 and max(len(v) for v in sums.values()) > 1
    for where, values in sums.items():
        assert found.value[where] == pytest.approx(np.mean(values), rel=1e-5)
