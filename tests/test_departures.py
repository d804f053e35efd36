"""Departures: what observations say of background and analysis, by loops, by scipy and by fields known in advance."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from scipy.interpolate import RegularGridInterpolator

from sample.departures import write_departures
from sample.plan import Unit
from slams.contracts.departures import open_departures
from slams.contracts.envelope import ContractError, header, write_json
from slams.contracts.observations import Gridded, Operator, Stations, open_observations, write_observations
from slams.rng import normal
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics

LEVELS = (1000, 500, 100)
SPEC = StateSpec(Grid(8, 16), (Modality("temperature", "state", "K", "air_temperature", LEVELS), PRECIPITATION, OLR))
GRID, C = SPEC.grid, SPEC.n_channels
DAYS = np.datetime64("2001-03-01") + np.arange(9)
UNIT = Unit(DAYS[2:5], 2, np.arange(4))
LAND = np.broadcast_to(np.arange(16) < 8, GRID.shape)
OBSERVED = np.array([LAND if name == "precipitation" else np.ones(GRID.shape, bool) for name in SPEC.channel_names])
ALL = ("temperature", "precipitation", "olr")
CHAIN = Operator("block_mean", 2, Operator("subsample", 2))


def statistics():
    harmonics = normal(0, "observation", shape=(5, C, *GRID.shape)) * 0.1
    harmonics[0] += np.array([280, 250, 220, 1, 240])[:, None, None]
    return Statistics(harmonics, np.ones((C, 1, 1), np.float32), np.array([0, 0, 0, 1, 0], bool), OBSERVED)


def states(members=4, days=3, seed=1):
    """Members as an analysis has them: no rain is known of over the ocean."""
    x = (
        normal(seed, "observation", shape=(members, days, C, *GRID.shape))
        + np.array([280, 250, 220, 9, 240])[:, None, None]
    )
    return np.where(OBSERVED, x, np.nan).astype(np.float32)


def gridded(name, operator, mask=None, weight=None, seed=2):
    y, x = (len(axis) for axis in operator.coordinates(GRID))
    shape = (len(DAYS), SPEC.modality(name).n_channels, y, x)
    value = (normal(seed, "observation", shape=shape) + 250).astype(np.float32)
    seen = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape).copy()
    error = np.full(shape, 0.5, np.float32)
    return Gridded(name, operator, np.where(seen, value, np.nan).astype(np.float32), error, seen, weight)


def stations(n=60, seed=3, **changes):
    """Soundings anywhere on the sphere and between all levels, in the order of time, some on every day."""
    rng = np.random.default_rng(seed)
    found = {
        "name": "temperature",
        "days": DAYS,
        "frame": np.sort(rng.integers(0, len(DAYS), n)),
        "latitude": np.rad2deg(np.arcsin(rng.uniform(-1, 1, n))),
        "longitude": rng.uniform(-180, 360, n),
        "level_hpa": rng.uniform(100, 1000, n).astype(np.float32),
        "value": rng.normal(250, 9, n).astype(np.float32),
        "error_std": rng.uniform(1, 2, n).astype(np.float32),
        "station_id": np.array([f"id-{i}" for i in range(n)], object),
        "qc": np.zeros(n, np.int8),
    }
    return Stations(**(found | changes))


@pytest.fixture
def product(tmp_path):
    """An analysis, as far as departures look at it."""
    path = tmp_path / "analysis.zarr"
    (path / "ledger").mkdir(parents=True)
    (path / "zarr.json").write_text("{}")
    return path


@pytest.fixture
def observations(tmp_path):
    """Write observations and open them."""

    def write(*seen, path=tmp_path / "observations"):
        write_observations(path, SPEC, DAYS, seen, {"config": {}})
        return open_observations(path)

    return write


def write(product, observations, x=None, unit=UNIT, first_guess=None, assimilated=ALL):
    x = states() if x is None else x
    return write_departures(product, unit, observations, SPEC, statistics(), x, first_guess, assimilated)


def table(product):
    """One row an observation, and its members (N, M), NaN where they are missing."""
    found = open_departures(product).read().to_pandas()
    return found, np.stack(found["analysis"]) if len(found) else np.zeros((0, 0))


def position(time):
    """Of a day in the observation set."""
    return int((np.datetime64(time, "D") - DAYS[0]).astype(int))


# ---- H, against brute force


def by_loop(operator, x_HW, weight_HW):
    """The operator on one field, cell by cell."""
    f = operator.factor
    rows, columns = x_HW.shape[0] // f, x_HW.shape[1] // f
    found, counts = np.zeros((rows, columns)), np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            if operator.kind == "subsample":
                cells = [(row * f + f // 2, column * f + f // 2)]
            else:
                cells = [(row * f + i, column * f + j) for i in range(f) for j in range(f)]
            some = [(x_HW[cell], weight_HW[cell]) for cell in cells if weight_HW[cell] > 0]
            counts[row, column] = sum(w for _, w in some)
            found[row, column] = sum(v * w for v, w in some) / counts[row, column] if some else np.nan
    return by_loop(operator.then, found, counts) if operator.then else found


@pytest.mark.parametrize(
    "operator", [Operator("identity"), Operator("block_mean", 4), Operator("subsample", 2), CHAIN], ids=lambda o: o.kind
)
def test_on_a_grid_every_observation_has_the_members_that_a_loop_over_cells_gives(product, observations, operator):
    """With a mask that differs by day, level and place: each row is found again by its day, level and coordinates."""
    latitude, longitude = operator.coordinates(GRID)
    mask = np.random.default_rng(5).random((len(DAYS), 3, len(latitude), len(longitude))) < 0.4
    seen, x = gridded("temperature", operator, mask), states()
    write(product, observations(seen), x)
    rows, members = table(product)
    assert len(rows) == mask[2:5].sum() > 0
    for row, x_a in zip(rows.itertuples(), members, strict=True):
        day, level = position(row.time), LEVELS.index(row.level_hpa)
        j, i = np.abs(latitude - row.latitude).argmin(), np.abs(longitude - row.longitude).argmin()
        assert mask[day, level, j, i]
        assert (row.observed, row.error_std) == (seen.value[day, level, j, i], np.float32(0.5))
        assert row.station_id is None or pd.isna(row.station_id)
        expected = [by_loop(operator, x[m, day - 2, level], np.ones(GRID.shape))[j, i] for m in range(4)]
        np.testing.assert_allclose(x_a, expected, rtol=1e-6)
    assert not rows.duplicated(["time", "level_hpa", "latitude", "longitude"]).any()


def test_a_gauge_block_is_the_mean_of_its_land_where_the_ocean_is_not_known(product, observations):
    """Blocks of 4 x 4 cells, whose land is uneven; of blocks without land nothing was observed."""
    land = np.where(LAND, 1 + np.arange(16) % 3, 0).astype(np.float32)
    land[:4, 5:8] = 0  # only one column of land in the second block of the first row
    operator, x = Operator("block_mean", 4), states()
    mask = np.arange(4) < 2
    write(product, observations(gridded("precipitation", operator, mask, land)), x)
    rows, members = table(product)
    expected = np.array([[by_loop(operator, day[3], land)[:, :2].ravel() for day in member] for member in x])
    np.testing.assert_allclose(members.T, expected.reshape(4, -1), rtol=1e-6)
    assert rows.background.notna().all() and rows.level_hpa.isna().all()


def test_stations_have_what_scipy_interpolates_on_a_grid_extended_across_poles_and_date_line(product, observations):
    seen, x = stations(), states()
    write(product, observations(seen), x)
    rows, members = table(product)
    on = np.isin(seen.frame, [2, 3, 4])
    assert rows.station_id.tolist() == seen.station_id[on].tolist() and on.sum() > 10
    width, height = 360 / 16, 180 / 8
    axes = (np.log(LEVELS[::-1]), -90 - height / 2 + height * np.arange(10), -360 + width * (np.arange(48) + 0.5))
    for member in range(4):
        for n, (_, row) in enumerate(rows.iterrows()):
            field = x[member, position(row.time) - 2, :3][::-1].astype(float)
            across = [np.roll(field[:, end], 8, axis=-1)[:, None] for end in (0, -1)]
            wide = np.tile(np.concatenate([across[0], field, across[1]], axis=1), 3)
            at = (np.log(np.float64(row.level_hpa)), -row.latitude, row.longitude)
            assert members[n, member] == pytest.approx(RegularGridInterpolator(axes, wide)(at).item(), rel=1e-5)


def test_fields_that_are_linear_are_interpolated_exactly(product, observations):
    """Linear in latitude, longitude and log p, each member its own; away from the poles and from Greenwich."""
    plane = GRID.latitude[:, None] - GRID.longitude / 7 + 30 * np.log(LEVELS)[:, None, None]
    x = states()
    x[:, :, :3] = np.arange(1, 5)[:, None, None, None, None] * plane
    seen = stations()
    inside = (np.abs(seen.latitude) < GRID.latitude[0]) & (seen.longitude > 12) & (seen.longitude < 348)
    write(product, observations(replace(seen, qc=np.where(inside, 0, 1).astype(np.int8))), x)
    rows, members = table(product)
    expected = rows.latitude - rows.longitude / 7 + 30 * np.log(rows.level_hpa.astype(float))
    assert len(rows) > 8
    np.testing.assert_allclose(members, np.arange(1, 5) * expected.to_numpy()[:, None], rtol=1e-5, atol=1e-3)


def test_a_gauge_is_null_where_the_state_does_not_know_a_neighbour_and_only_there(product, observations):
    """At the centre of the last land column but for rounding (no weight on the ocean), half a cell off it, at sea."""
    columns = np.array([GRID.longitude[7] + 1e-9, GRID.longitude[7] + 11, GRID.longitude[12], GRID.longitude[3] + 5])
    gauges = stations(
        4,
        name="precipitation",
        frame=np.full(4, 3),
        latitude=np.full(4, GRID.latitude[2]),
        longitude=columns,
        level_hpa=np.full(4, np.nan, np.float32),
        value=np.full(4, 3, np.float32),
        station_id=np.array(list("abcd"), object),
    )
    x = states()
    summary = write(product, observations(gauges), x)
    rows, members = table(product)
    assert np.isnan(members).all(axis=1).tolist() == rows.background.isna().tolist() == [False, True, True, False]
    np.testing.assert_allclose(members[0], x[:, 1, 3, 2, 7], rtol=1e-6)
    assert pq.read_table(product / "departures")["analysis"].chunk(0).flatten().null_count == 8
    counted = [summary["channels"]["precipitation"][kind]["count"] for kind in ("o_minus_b", "o_minus_a")]
    assert counted == [2, 2] and list(summary["channels"]) == ["precipitation"]


# ---- which observations


def test_what_is_rejected_or_beyond_the_levels_or_of_another_day_is_left_out(product, observations):
    seen = stations(6, frame=np.array([0, 2, 3, 3, 4, 5]))
    qc = np.array([0, 0, 7, 0, 0, 0], np.int8)
    level = np.array([500, 500, 500, 99, 500, 500], np.float32)
    write(product, observations(replace(seen, qc=qc, level_hpa=level)))
    assert table(product)[0].station_id.tolist() == ["id-1", "id-4"]


def test_a_withheld_modality_is_evaluated_and_marked(product, observations):
    seen = gridded("temperature", Operator("block_mean", 4)), gridded("olr", Operator("block_mean", 2)), stations()
    x = states()
    summary = write(product, observations(*seen), x, assimilated=["temperature"])
    rows, members = table(product)
    olr = (rows.modality == "olr").to_numpy()
    assert olr.sum() == 3 * 4 * 8 and not rows.assimilated[olr].any() and rows.assimilated[~olr].all()
    np.testing.assert_allclose(
        members[olr][:32, 0].reshape(4, 8),
        by_loop(Operator("block_mean", 2), x[0, 0, 4], np.ones(GRID.shape)),
        rtol=1e-6,
    )
    assert {name: part["assimilated"] for name, part in summary["channels"].items()} == {
        "temperature_1000": True,
        "temperature_500": True,
        "temperature_100": True,
        "olr": False,
    }


def test_days_on_which_nothing_was_observed_have_no_rows_and_a_unit_of_such_days_an_empty_table(product, observations):
    mask = (np.arange(len(DAYS)) == 3)[:, None, None, None]
    seen = observations(gridded("olr", Operator("block_mean", 4), mask))
    write(product, seen)
    assert set(table(product)[0].time) == {pd.Timestamp(DAYS[3])}
    later = Unit(DAYS[5:7], 0, np.arange(4))
    assert write(product, seen, states(days=2), later)["channels"] == {}
    assert [len(part) for part in open_departures(product).segments()] == [8, 0]


# ---- the background


def test_o_minus_b_of_a_truth_observed_without_error_is_exactly_truth_minus_climatology(product, observations):
    truth = states(1, len(DAYS))[0]
    seen = [
        Gridded(
            m.name,
            Operator("identity"),
            value := truth[:, SPEC.channels(m.name)],
            np.full_like(value, 1e-3),
            np.isfinite(value),
        )
        for m in SPEC.modalities
    ]
    summary = write(product, observations(*seen))
    rows, _ = table(product)
    climatology = statistics().climatology(DAYS)
    for name in SPEC.names:
        part = SPEC.channels(name)
        known = np.isfinite(truth[2:5, part])
        found = rows[rows.modality == name]
        expected = truth[2:5, part][known] - climatology[2:5, part][known]
        np.testing.assert_array_equal((found.observed - found.background).to_numpy(), expected)
    assert summary["background"] == dict.fromkeys(ALL, "climatology of the day")


def test_a_first_guess_is_the_background_of_every_day_in_the_modalities_that_it_holds(product, observations):
    guess = states(1, 1, seed=8)[0, 0]
    guess[4] = np.nan
    temperature, olr = gridded("temperature", Operator("identity")), gridded("olr", Operator("identity"))
    summary = write(product, observations(temperature, olr), first_guess=guess)
    rows, _ = table(product)
    of_temperature, of_olr = (rows.background[rows.modality == name].to_numpy() for name in ("temperature", "olr"))
    np.testing.assert_array_equal(of_temperature, np.tile(guess[:3].ravel(), 3))
    np.testing.assert_array_equal(of_olr, statistics().climatology(DAYS)[2:5, 4].ravel())
    said = {"temperature": "background of 2001-02-28, persisted", "olr": "climatology of the day"}
    assert open_departures(product).background == summary["background"] == said


# ---- members and their blocks


def everything(mask=None):
    land = LAND.astype(np.float32)
    rain = gridded("precipitation", Operator("block_mean", 2), np.arange(8) < 4, land)
    return gridded("temperature", Operator("block_mean", 2), mask), rain, gridded("olr", CHAIN), stations()


def test_a_unit_in_blocks_of_members_gives_together_what_one_unit_gives(product, observations, tmp_path):
    """Also where the last block is smaller, and was written first."""
    seen, x = observations(*everything()), states(5)
    write(product, seen, x, Unit(UNIT.days, 2, np.arange(5)))
    whole = open_departures(product).read()
    (product / "departures" / "2001-03-03_2001-03-05_m000-004.parquet").unlink()
    for block in (slice(4, 5), slice(0, 2), slice(2, 4)):
        write(product, seen, x[block], Unit(UNIT.days, 2, np.arange(5)[block]))
    together = open_departures(product)
    assert together.read().equals(whole) and len(whole) == 379
    assert together.members.tolist() == [0, 1, 2, 3, 4] and len(together.files) == 1


def test_members_of_a_block_that_is_not_there_yet_are_null(product, observations):
    seen, x = observations(gridded("olr", Operator("identity"))), states()
    write(product, seen, x[:2], Unit(DAYS[2:5], 0, np.array([0, 1])))
    write(product, seen, x[2:, :1], Unit(DAYS[6:7], 0, np.array([2, 3])))
    first, second = (np.stack(part["analysis"].to_pandas()) for part in open_departures(product).segments())
    assert np.isnan(first).all(axis=0).tolist() == [False, False, True, True]
    np.testing.assert_array_equal(second[:, 2:], x[2:, 0, 4].reshape(2, -1).T)


def test_a_missing_member_is_null_and_the_others_are_as_they_were(product, observations):
    seen, x = observations(*everything()), states()
    lost = x.copy()
    lost[1] = np.nan
    write(product, seen, x)
    _, members = table(product)
    summary = write(product, seen, lost)
    rows, found = table(product)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, [0, 2, 3]], members[:, [0, 2, 3]])
    left = rows.observed - members[:, [0, 2, 3]].mean(axis=1)
    assert summary["channels"]["olr"]["o_minus_a"]["mean"] == pytest.approx(
        left[rows.modality == "olr"].mean(), rel=1e-4
    )


def test_where_every_member_is_missing_the_summary_counts_none_and_is_json(product, observations):
    summary = write(product, observations(gridded("olr", Operator("identity"))), np.full_like(states(), np.nan))
    assert summary["channels"]["olr"]["o_minus_a"] == {"count": 0, "mean": None, "std": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_summary_is_what_pandas_makes_of_the_table(product, observations):
    """By modality and nearer level, over gridded and stations together."""
    summary = write(product, observations(*everything()), assimilated=["olr"])
    rows, members = table(product)
    log_levels = np.log(np.array(LEVELS, float))
    nearer = np.abs(np.log(rows.level_hpa.to_numpy(float))[:, None] - log_levels).argmin(axis=1)
    rows["channel"] = [
        f"temperature_{LEVELS[i]}" if m == "temperature" else m for i, m in zip(nearer, rows.modality, strict=True)
    ]
    rows["o_minus_b"], rows["o_minus_a"] = rows.observed - rows.background, rows.observed - members.mean(axis=1)
    assert set(rows.channel) == set(summary["channels"]) == set(SPEC.channel_names)
    for name, of_channel in rows.groupby("channel"):
        found = summary["channels"][name]
        assert found["rows"] == len(of_channel)
        for kind in ("o_minus_b", "o_minus_a"):
            assert found[kind]["count"] == of_channel[kind].count()
            assert found[kind]["mean"] == pytest.approx(of_channel[kind].mean(), rel=1e-4, abs=1e-4)
            assert found[kind]["std"] == pytest.approx(of_channel[kind].std(ddof=0), rel=1e-4)


# ---- the file


def test_the_same_content_is_the_same_bytes(product, observations):
    seen = observations(*everything())
    file = product / write(product, seen)["file"]
    once = file.read_bytes()
    assert file.name == f"{UNIT.name}.parquet"
    os.utime(file, (0, 0))
    write(product, seen)
    assert file.read_bytes() == once


def test_one_line_of_pandas_reads_a_unit_and_pyarrow_filters_what_is_read(product, observations):
    path = product / write(product, observations(*everything()))["file"]
    frame = pd.read_parquet(path)
    assert frame.time.dtype.kind == "M" and np.stack(frame.analysis).shape == (len(frame), 4)
    where = (pc.field("modality") == "temperature") & (pc.field("time") == pd.Timestamp(DAYS[3]))
    some = open_departures(product).read(where).to_pandas()
    expected = frame[(frame.modality == "temperature") & (frame.time == DAYS[3])]
    assert some.observed.tolist() == expected.observed.tolist() and 0 < len(some) < len(frame)


def test_segments_come_in_order_of_time_whatever_was_written_first(product, observations):
    seen = observations(gridded("olr", CHAIN))
    for first in (6, 0, 3):
        for members in (np.array([2, 3]), np.array([0, 1])):
            write(product, seen, states(2, 2), Unit(DAYS[first : first + 2], 0, members))
    found = [part["time"][0].as_py() for part in open_departures(product).segments()]
    assert found == list(map(pd.Timestamp, DAYS[[0, 3, 6]]))


def test_a_product_may_lie_at_a_url(product, observations):
    seen = observations(*everything())
    write(product, seen)
    store = MemoryFileSystem()
    store.pipe("/departing/zarr.json", b"{}")
    try:
        write("memory://departing", seen)
        assert open_departures("memory://departing").read().equals(open_departures(product).read())
        assert [Path(name).suffix for name in store.ls("/departing/departures", detail=False)] == [".parquet"]
    finally:
        store.rm("/departing", recursive=True)


KILLED = """
import os, signal, sys
import test_departures as t
from pathlib import Path
from slams.contracts import departures
from slams.contracts.observations import open_observations
write, calls = departures.DeparturesWriter.write, []
def killing(self, *given):
    write(self, *given)
    calls.append(None)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
departures.DeparturesWriter.write = killing
t.write(Path(sys.argv[1]), open_observations(sys.argv[2]))
"""


def test_kill_9_in_the_write_leaves_no_half_file_and_the_next_write_is_whole(product, observations):
    seen = observations(*everything())
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    command = [sys.executable, "-c", KILLED, str(product), str(seen.path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [file.suffix for file in (product / "departures").iterdir()] == [".partial"]
    assert len(open_departures(product).read()) == 0
    write(product, seen)
    assert set(table(product)[0].time) == set(map(pd.Timestamp, UNIT.days))
    assert sorted(file.suffix for file in (product / "departures").iterdir()) == [".parquet", ".partial"]


def test_a_write_that_fails_leaves_what_stands(product, observations, monkeypatch):
    """And nothing beside it: a disk that is full is not filled by leftovers."""
    seen = observations(*everything())
    file = product / write(product, seen)["file"]
    once = file.read_bytes()

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slams.contracts.departures.os.fsync", full)
    with pytest.raises(OSError, match=f"{UNIT.name}.parquet: cannot be written .*No space left"):
        write(product, seen, states(seed=5))
    assert list(file.parent.iterdir()) == [file] and file.read_bytes() == once


def test_observations_of_latents_have_no_departures(product, tmp_path):
    latent = gridded("olr", Operator("identity"))
    attributes = {"config": {}, "space": "latent", "latent_shape": [1, *GRID.shape], "autoencoder": "", "latent": {}}
    write_observations(tmp_path / "latents", SPEC, DAYS, [replace(latent, name="latent")], attributes)
    assert write(product, open_observations(tmp_path / "latents")) == {}
    write_json(product / "ledger" / f"{UNIT.name}.json", header("slams-ledger", 1, {}) | {"departures": {}})
    assert not (product / "departures").exists() and len(open_departures(product).read()) == 0


# ---- damage


def refused(product, sentence):
    with pytest.raises(ContractError, match=sentence) as error:
        open_departures(product).read()
    assert "\n" not in str(error.value)


def cut(file, content):
    file.write_bytes(content[: len(content) // 2])


def emptied(file, content):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, emptied])
def test_a_damaged_file_is_refused(product, observations, damage):
    file = product / write(product, observations(*everything()))["file"]
    damage(file, file.read_bytes())
    refused(product, f"{UNIT.name}.parquet: damaged, it cannot be read \\(.+\\)$")


def test_a_flipped_bit_in_a_page_is_refused_or_changes_nothing(product, observations):
    """Its codec alone does not notice every one."""
    file = product / write(product, observations(*everything()))["file"]
    whole, content = open_departures(product).read(), file.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    harmless = 0
    for at in np.linspace(4, footer - 1, 40).astype(int):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert open_departures(product).read().equals(whole)
            harmless += 1
        except ContractError as error:
            assert "damaged, it cannot be read" in str(error)
    assert harmless < 10


def test_the_checksums_for_the_ledger_are_those_of_the_file_and_of_its_metadata(product, observations):
    told = write(product, observations(*everything()))
    content = (product / told["file"]).read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
    assert (told["crc32"], told["footer_crc32"]) == (zlib.crc32(content), zlib.crc32(footer))
    assert len(footer) < len(content) / 2 and b"observations_sha256" in footer and footer.endswith(b"PAR1")


def test_any_flipped_bit_of_the_metadata_is_refused_once_the_ledger_tells_of_the_unit(product, observations):
    """No checksum of a page covers them."""
    told = write(product, observations(*everything()))
    entry = {"format": "slams-ledger", "version": 1, "unit": UNIT.name, "departures": told}
    (product / "ledger" / f"{UNIT.name}.json").write_text(json.dumps(entry))
    file = product / told["file"]
    content, whole = file.read_bytes(), open_departures(product).read()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in np.linspace(footer, len(content) - 1, 60).astype(int):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(product, f"{UNIT.name}.parquet: (its metadata are not what was written|damaged, it cannot be read)")
    file.write_bytes(content)
    assert open_departures(product).read().equals(whole)


def with_metadata(file, **changes):
    found = pq.read_table(file)
    metadata = {k.decode(): v.decode() for k, v in found.schema.metadata.items()} | changes
    pq.write_table(found.replace_schema_metadata({k: v for k, v in metadata.items() if v}), file)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": "2"}, "slams-departures version 2; this program reads up to 1, so update it"),
        ({"format": "slams-stations"}, "is 'slams-stations', not 'slams-departures'"),
        ({"members": "[0, 1]"}, "its columns are not those of slams-departures"),
        ({"days": ""}, "its metadata lack 'days'"),
    ],
)
def test_what_this_program_cannot_trust_is_refused(product, observations, changes, sentence):
    with_metadata(product / write(product, observations(gridded("olr", CHAIN)))["file"], **changes)
    refused(product, sentence)


def test_blocks_of_a_segment_that_do_not_belong_together_are_refused(product, observations, tmp_path):
    seen = observations(gridded("olr", CHAIN))
    other = observations(gridded("olr", CHAIN, seed=9), path=tmp_path / "other")
    write(product, seen, states(2), Unit(UNIT.days, 0, np.array([0, 1])))
    write(product, other, states(1), Unit(UNIT.days, 0, np.array([2])))
    refused(product, "_m002-002.parquet: holds other observations than .*_m000-001.parquet")
    write(product, seen, states(1), Unit(UNIT.days, 0, np.array([1])))
    refused(product, "_m001-001.parquet: member 1 stands in .*_m000-001.parquet as well")


def test_a_finished_unit_without_its_file_is_refused_and_so_is_a_place_without_an_analysis(product, observations):
    write(product, observations(gridded("olr", CHAIN)))
    told = {"departures": {"file": "departures/2001-03-06_2001-03-06_m000-003.parquet"}}
    write_json(product / "ledger/2001-03-06_2001-03-06_m000-003.json", header("slams-ledger", 1, {}) | told)
    refused(product, "has no file of 2001-03-06_2001-03-06_m000-003, a finished unit")
    shutil.rmtree(product / "departures")
    refused(product, "has no file of 2001-03-06_2001-03-06_m000-003, a finished unit")
    refused(product.parent / "nowhere", "nowhere: no analysis there")
