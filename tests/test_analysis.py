"""The product: whole members' days or nothing, no two writers at one object, and nothing that was not written there."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import boto3
import cf_xarray  # noqa: F401  adds .cf
import numpy as np
import pytest
import torch
import xarray as xr
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from slams.contracts import analysis
from slams.contracts.bundle import open_bundle, write_bundle
from slams.contracts.envelope import ContractError, is_finished
from slams.contracts.observations import Gridded, Operator, Stations, open_observations, write_observations
from slams.metrics import EnsembleRMSE, FairCRPS
from slams.spec import OLR, Grid, Modality, StateSpec
from slams.statistics import Statistics

SPEC = StateSpec(Grid(4, 8), (Modality("temperature", "state", "K", "air_temperature", (500, 850)), OLR))
DAYS = np.arange("2001-01-29", "2001-02-03", dtype="datetime64[D]")
UNIT, MEMBERS = (2, 2), 3
ROOT = Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two", "AWS_DEFAULT_REGION": "us-east-1"}
BLOCKS = (np.array([0, 1]), np.array([2]))
SEGMENTS = (np.array([0, 1]), np.array([2, 3]), np.array([4]))


def fields(seed=0):
    x = np.random.default_rng(seed).normal(250, 10, (MEMBERS, len(DAYS), 3, 4, 8)).astype(np.float32)
    x[:, :, 2, 0] = np.nan  # a part of the globe where OLR is not known
    return x


def begin(path, config=0, **options):
    return analysis.create(path, SPEC, DAYS, MEMBERS, {"config": {"seed": config}}, unit=UNIT, **options)


def unit_name(members, where):
    return f"{DAYS[where[0]]}_{DAYS[where[-1]]}_m{members[0]:03d}-{members[-1]:03d}"


def draw(product, x, members, where):
    crc32 = product.write(members, where, x[np.ix_(members, where)])
    entry = {"members": members.tolist(), "days": [str(day) for day in DAYS[where]], "crc32": crc32}
    product.close_unit(unit_name(members, where), entry)


def fill(product, x, finished=True):
    for where in SEGMENTS:
        for members in BLOCKS:
            draw(product, x, members, where)
        product.finish_segment(where)
    if finished:
        product.finish()
    return product


@pytest.fixture
def product(tmp_path):
    return fill(begin(tmp_path / "a.zarr"), fields(), finished=False)


def refusal(function, *arguments):
    with pytest.raises(ContractError) as said:
        function(*arguments)
    assert "\n" not in str(said.value)
    return str(said.value)


# ---- what is read is what was written


def test_any_flipped_bit_of_a_shard_is_refused_by_xarray(product):
    path = product.path / "olr/c/0/0/0/0"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises((ValueError, RuntimeError, ContractError)):
            for day in SEGMENTS[0]:
                product.read(int(day))
    path.write_bytes(whole)
    np.testing.assert_array_equal(product.read(0), fields()[:, 0])


def test_the_last_units_are_smaller_and_every_unit_is_one_object(product):
    assert product.unit == UNIT
    shards = sorted(str(p.relative_to(product.path)) for p in product.path.glob("temperature/c/**/*") if p.is_file())
    assert shards == [f"temperature/c/{m}/{t}/0/0/0" for m in range(2) for t in range(3)]
    with xr.open_zarr(product.path) as found:
        assert found.temperature.encoding["chunks"] == (1, 1, 2, 4, 8)
        np.testing.assert_array_equal(found.temperature, fields()[:, :, :2])


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ([0], [0, 1]),
        ([1, 2], [0, 1]),
        ([0, 1], [1, 2]),
        ([0, 1], [0]),
        ([0, 1], [0, 1, 2, 3]),
        ([3], [4]),
        ([], [0, 1]),
    ],
)
def test_what_is_not_a_unit_is_not_written(product, members, where):
    """Another writer may own the rest of the object."""
    x = np.zeros((len(members), len(where), 3, 4, 8))
    with pytest.raises(ValueError, match=r"one unit of 2|one segment of 2"):
        product.write(np.array(members, int), np.array(where), x)
    np.testing.assert_array_equal(product.read(0), fields()[:, 0])


def test_a_shard_of_another_unit_is_refused_by_name(product):
    """Its own checksums are right."""
    shutil.copy(product.path / "temperature/c/0/0/0/0/0", product.path / "temperature/c/0/1/0/0/0")
    name = unit_name(BLOCKS[0], SEGMENTS[1])
    for check in (product.finish, lambda: product.verify(name)):
        assert f"unit {name}: values of temperature are not those that were written" in refusal(check)
    product.verify(unit_name(BLOCKS[0], SEGMENTS[0]))
    assert not product.is_complete


def test_members_in_another_order_are_other_values(product):
    x = fields()
    product.write(BLOCKS[0], SEGMENTS[0], x[np.ix_([1, 0], SEGMENTS[0])])
    assert "values of temperature" in refusal(product.verify, unit_name(BLOCKS[0], SEGMENTS[0]))


def test_a_shard_that_is_gone_or_damaged_is_refused_by_name(product):
    name, path = unit_name(BLOCKS[1], SEGMENTS[0]), product.path / "olr/c/1/0/0/0"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert f"unit {name}: damaged" in refusal(product.finish)
    path.unlink()
    assert f"unit {name}: values of olr" in refusal(product.finish)


def test_a_ledger_that_tells_another_checksum_is_refused(product):
    name = unit_name(BLOCKS[1], SEGMENTS[2])
    path = product.path / "ledger" / f"{name}.json"
    entry = json.loads(path.read_text())
    entry["crc32"]["olr"] ^= 1
    path.write_text(json.dumps(entry))
    assert f"unit {name}: values of olr are not those that were written" in refusal(product.finish)
    path.unlink()
    assert f"unit {name} is not finished" in refusal(product.finish)


def test_a_ledger_of_another_format_is_refused(product):
    name = unit_name(BLOCKS[0], SEGMENTS[0])
    path = product.path / "ledger" / f"{name}.json"
    entry = json.loads(path.read_text())
    for change in ({"format": "else"}, {"version": 2}):
        path.write_text(json.dumps(entry | change))
        assert "slams-ledger" in refusal(product.finished, name)
    path.write_text("{")
    assert "not a JSON file" in refusal(product.finished, name)


def test_a_ledger_entry_is_of_its_unit_and_tells_when_and_by_what(product):
    entry = product.finished(unit_name(BLOCKS[0], SEGMENTS[0]))
    assert entry["written"].endswith("+00:00") and {"numpy", "zarr"} <= set(entry["versions"])
    with pytest.raises(ValueError, match="is not '2001-01-29_2001-01-30_m000-001'"):
        product.close_unit("else", entry)


# ---- mean and spread


def test_mean_and_spread_are_numpys_over_the_members_that_were_drawn(tmp_path):
    x = fields()
    x[1, 2] = np.nan  # one member lost on one day
    x[:, 4] = np.nan  # all of them
    x[0, 0, 0, 1, 1] = np.nan  # a hole in a member that counts
    fill(begin(tmp_path / "a.zarr"), x)
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        assert found.n_members_drawn.values.tolist() == [3, 3, 2, 3, 0]
        for name, part in (("temperature", x[:, :, :2]), ("olr", x[:, :, 2])):
            for day in range(4):
                drawn = [m for m in range(MEMBERS) if (m, day) != (1, 2)]
                expected = part[drawn, day].astype(np.float64)
                np.testing.assert_allclose(found[f"{name}_mean"][day], expected.mean(axis=0), rtol=1e-7)
                np.testing.assert_allclose(found[f"{name}_spread"][day], expected.std(axis=0, ddof=1), rtol=1e-6)
            assert np.isnan(found[f"{name}_mean"][4]).all() and np.isnan(found[f"{name}_spread"][4]).all()
        assert np.isnan(found.temperature_mean[0, 0, 1, 1])


def test_small_spread_about_a_large_mean_is_not_lost(tmp_path):
    """In float32, or as a difference of squares, a spread of 1e-3 K about 300 K would be noise."""
    x = np.full((MEMBERS, len(DAYS), 3, 4, 8), 300, np.float32)
    x[1] = np.nextafter(np.float32(300), np.float32(400))
    fill(begin(tmp_path / "a.zarr"), x)
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        step = float(x[1, 0, 0, 0, 0]) - 300
        np.testing.assert_allclose(found.olr_spread, np.std([0, step, 0], ddof=1), rtol=1e-6)


def test_memory_of_mean_and_spread_does_not_grow_with_members(tmp_path):
    spec, peaks = StateSpec(Grid(32, 64), SPEC.modalities), []
    for n in (2, 24):
        product = analysis.create(tmp_path / f"{n}.zarr", spec, DAYS[:2], n, {"config": {}}, unit=(n, 2))
        members, where = np.arange(n), np.arange(2)
        crc32 = product.write(members, where, np.ones((n, 2, 3, 32, 64), np.float32))
        entry = {"members": members.tolist(), "days": [str(day) for day in DAYS[:2]], "crc32": crc32}
        product.close_unit(unit_name(members, where), entry)
        tracemalloc.start()
        product.finish_segment(where)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def test_a_segment_finished_twice_is_the_same_bytes(product):
    before = files(product.path)
    for mark in (product.path / "segments").iterdir():
        mark.unlink()
    barrier = Barrier(2)

    def finish(_):
        barrier.wait()
        for where in SEGMENTS:
            analysis.open_analysis(product.path).finish_segment(where)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(finish, range(2)))
    assert files(product.path) == before


def test_a_segment_is_not_finished_before_its_units(tmp_path):
    product, x = begin(tmp_path / "a.zarr"), fields()
    draw(product, x, BLOCKS[0], SEGMENTS[0])
    for finish in (product.finish, lambda: product.finish_segment(SEGMENTS[0])):
        assert f"unit {unit_name(BLOCKS[1], SEGMENTS[0])} is not finished" in refusal(finish)
    with xr.open_zarr(product.path) as found:
        assert np.isnan(found.olr_mean).all() and not found.n_members_drawn.any()


def test_a_last_reading_that_had_no_time_is_gone_on_with(product, monkeypatch):
    """Ended in the second of three segments, it begins there; of a complete product all is read again."""
    read, verify = [], analysis.Analysis.verify

    def counted(self, unit):
        if len(read) == len(BLOCKS) + 1 and not (self.path / "complete.json").exists() and "again" not in read:
            read.append("again")
            raise KeyboardInterrupt
        read.append(unit)
        verify(self, unit)

    monkeypatch.setattr(analysis.Analysis, "verify", counted)
    with pytest.raises(KeyboardInterrupt):
        product.finish()
    assert not product.is_complete
    names = [[unit_name(members, where) for members in BLOCKS] for where in SEGMENTS]
    product.finish()
    assert read == [*names[0], names[1][0], "again", *names[1], *names[2]] and product.is_complete
    read.clear()
    product.finish()
    assert read == [name for segment in names for name in segment]


def test_a_mean_that_was_changed_is_refused(product):
    shutil.copy(product.path / "olr_mean/c/0/0/0", product.path / "olr_mean/c/1/0/0")
    assert "olr_mean of 2001-01-31 to 2001-02-01 is not what was written" in refusal(product.finish)


# ---- rounding


def test_rounded_values_are_as_near_as_the_attributes_say_and_smaller(tmp_path):
    sizes = {}
    for keepbits in (0, 1, 7, 23):
        path = tmp_path / f"{keepbits}.zarr"
        product = fill(begin(path, keepbits=keepbits), fields())
        with xr.open_zarr(path) as found:
            written = fields()[:, :, :2]
            bound = found.temperature.attrs.get("relative_precision", 0)
            error = np.abs(found.temperature.values - written) / written
            assert error.max() <= bound and (error.max() > bound / 4) == (0 < keepbits < 23)
            np.testing.assert_array_equal(np.isnan(found.olr), np.isnan(fields()[:, :, 2]))
        product.verify(unit_name(BLOCKS[0], SEGMENTS[0]))
        sizes[keepbits] = sum(p.stat().st_size for p in path.glob("temperature/c/**/*") if p.is_file())
    assert sizes[1] < sizes[7] < sizes[0]
    with pytest.raises(ValueError, match="keepbits: 24 is not allowed"):
        begin(tmp_path / "24.zarr", keepbits=24)


# ---- as others read it


def test_the_metadata_are_those_of_cf(product):
    with xr.open_zarr(product.path) as found:
        assert found.cf.standard_names["air_temperature"] == ["temperature", "temperature_mean", "temperature_spread"]
        assert found.cf.standard_names["toa_outgoing_longwave_flux"] == ["olr", "olr_mean", "olr_spread"]
        assert found.cf.standard_names["realization"] == ["member"]
        axes = {axis: names[0] for axis, names in found.cf.axes.items()}
        assert axes == {"X": "longitude", "Y": "latitude", "Z": "level", "T": "time"}
        assert found.olr_spread.attrs["cell_methods"] == "time: mean area: mean realization: standard_deviation"
        kinds = [found[f"temperature{end}"].attrs["units_metadata"] for end in ("", "_mean", "_spread")]
        assert kinds == ["temperature: on_scale", "temperature: on_scale", "temperature: difference"]
        assert found.olr_mean.attrs["ancillary_variables"] in found
        assert found.attrs["Conventions"] == "CF-1.11" and "featureType" not in found.attrs
        assert {"title", "source", "history"} <= set(found.attrs)
        assert found.time.encoding["calendar"] == "proleptic_gregorian"
        for name, field in found.variables.items():
            assert {"units"} <= set(field.attrs) | set(field.encoding), name
            assert {"standard_name", "long_name"} & set(field.attrs), name


def test_scores_by_name_need_no_conversion(product):
    """RMSE and CRPS by xarray alone, from names of dimensions as WeatherBench-X knows them, equal those of metrics."""
    truth = fields(1)[0]
    with xr.open_zarr(product.path) as found:
        members = found.temperature.astype("float64")
        known = xr.zeros_like(members.isel(member=0)) + truth[:, :2]
        edges = np.deg2rad(np.linspace(90, -90, found.sizes["latitude"] + 1))
        weight = xr.DataArray(-np.diff(np.sin(edges)), dims="latitude")
        where = ["time", "latitude", "longitude"]
        rmse = np.sqrt(((members.mean("member") - known) ** 2).weighted(weight).mean(where))
        pairs = abs(members - members.rename(member="other")).sum(["member", "other"]) / (2 * MEMBERS * (MEMBERS - 1))
        crps = (abs(members - known).mean("member") - pairs).weighted(weight).mean(where)
    ours = [metric(2, SPEC.grid.area_weights) for metric in (EnsembleRMSE, FairCRPS)]
    for day in range(len(DAYS)):
        for metric in ours:
            metric.update(torch.from_numpy(product.read(day)[:, :2]), torch.from_numpy(truth[day, :2]))
    np.testing.assert_allclose(ours[0].compute(), rmse, rtol=1e-6)
    np.testing.assert_allclose(ours[1].compute(), crps, rtol=1e-6)


WRITER = """
import sys, numpy as np
sys.path.insert(0, "tests")
from test_analysis import *
product = analysis.open_analysis(sys.argv[1])
x = np.arange(MEMBERS)[:, None] * 100.0 + np.arange(len(DAYS)) + 1.0
x = np.broadcast_to(x[..., None, None, None], (MEMBERS, len(DAYS), 3, 4, 8))
print("ready", flush=True)
while True:
    for where in SEGMENTS:
        for members in BLOCKS:
            draw(product, x, members, where)
        product.finish_segment(where)
"""


def test_a_reader_sees_whole_days_or_nothing_whenever_a_writer_is_killed(tmp_path):
    chance, seen = random.Random(3), set()
    for attempt in range(4):
        path = tmp_path / f"{attempt}.zarr"
        begin(path)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        writer.stdout.readline()
        end = time.monotonic() + chance.uniform(0.01, 0.4)
        while time.monotonic() < end:
            seen |= assert_whole(path)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        seen |= assert_whole(path)
        product = fill(analysis.open_analysis(path), fields())  # the same command goes on from there
        np.testing.assert_array_equal(product.read(4), fields()[:, 4])
    assert seen


def assert_whole(path):
    """Each member's day of each field is what a writer wrote, or missing; mean and spread likewise. What was seen."""
    with xr.open_zarr(path) as found:
        found.load()
    seen = set()
    for name in ("temperature", "olr"):
        for member in range(MEMBERS):
            for day in range(len(DAYS)):
                values = found[name].values[member, day]
                assert np.isnan(values).all() or (values == member * 100 + day + 1).all()
                seen |= set() if np.isnan(values).all() else {(name, member, day)}
        for day in range(len(DAYS)):
            mean, spread = found[f"{name}_mean"].values[day], found[f"{name}_spread"].values[day]
            assert np.isnan(mean).all() or (mean == 100 + day + 1).all()
            assert np.isnan(spread).all() or (spread == 100).all()
    return seen


# ---- who begins it


@pytest.fixture(scope="module")
def bucket():
    """An S3-compatible server on this machine with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())} | KEYS).items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        S3FileSystem.clear_instance_cache()  # or a connection to another test's server would be taken
        yield "s3://bucket"
        S3FileSystem.clear_instance_cache()
    server.stop()


BEGINNER = """
import sys
sys.path.insert(0, "tests")
from test_analysis import *
print("ready", flush=True)
input()
print(begin(sys.argv[1]).attributes["config"])
"""


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_processes_that_begin_a_product_at_once_begin_one(tmp_path, bucket, kind):
    path = tmp_path / "a.zarr" if kind == "folder" else f"{bucket}/begun/a.zarr"
    assert not analysis.stands(path)
    command = [sys.executable, "-c", BEGINNER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    beginners = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [beginner.stdout.readline() for beginner in beginners] == ["ready\n"] * 3
    for beginner in beginners:
        beginner.stdin.write("go\n")
        beginner.stdin.flush()
    assert [beginner.communicate(timeout=60)[0] for beginner in beginners] == ["{'seed': 0}\n"] * 3
    begin(path, config=1)  # it stays that of the first
    assert "(different: seed)" in refusal(
        is_finished, path, analysis.open_analysis(path).attributes["config"], {"seed": 1}
    )
    if kind == "folder":
        assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_name_that_is_taken_by_something_else_is_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.tex").write_text("years of work")
    assert "a.zarr: holds something else" in refusal(begin, tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.rglob("*")] == ["a.zarr", "thesis.tex"]


def test_a_product_being_begun_elsewhere_by_another_configuration_is_refused(bucket):
    """As it stands when its creator has claimed the name and uploaded half."""
    begin(f"{bucket}/half/a.zarr")
    boto3.client("s3").delete_object(Bucket="bucket", Key="half/a.zarr/zarr.json")
    assert "another process begins something else there" in refusal(lambda: begin(f"{bucket}/half/a.zarr", config=1))
    assert begin(f"{bucket}/half/a.zarr").attributes["config"] == {"seed": 0}


# ---- object storage


def test_a_product_in_a_store_is_that_in_a_folder(tmp_path, bucket):
    here, there = (fill(begin(path), fields()) for path in (tmp_path / "a.zarr", f"{bucket}/whole/a.zarr"))
    assert there.is_complete and here.fingerprint(SEGMENTS[0]) == there.fingerprint(SEGMENTS[0])
    keys = {o["Key"]: o for o in boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="whole/")["Contents"]}
    for name, data in files(tmp_path / "a.zarr").items():
        found = boto3.client("s3").get_object(Bucket="bucket", Key=f"whole/a.zarr/{name}")["Body"].read()
        assert found == data or name.startswith("ledger/"), name  # which tells the time
    assert len(keys) == len(files(tmp_path / "a.zarr")) + 1  # the claim
    with xr.open_zarr(f"{bucket}/whole/a.zarr") as found:
        np.testing.assert_array_equal(found.temperature, fields()[:, :, :2])


def test_bundles_and_observations_are_read_from_a_store(tmp_path, bucket):
    statistics = Statistics(np.zeros((1, 3, 1, 1), np.float32), np.ones((3, 1, 1), np.float32), np.zeros(3, bool),
                            np.ones((3, 4, 8), bool), {})  # fmt: skip
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", {"ema": {"w": np.arange(3.0)}}, SPEC, statistics, {"config": {}})
    olr = fields()[0, :, 2:].astype(np.float64)
    gridded = Gridded("olr", Operator("identity"), olr, np.ones_like(olr), np.isfinite(olr))
    at = {"latitude": np.array([10.0]), "longitude": np.array([20.0]), "level_hpa": np.array([500.0])}
    value = {"value": np.array([250.0]), "error_std": np.ones(1), "station_id": np.array(["a"], object)}
    stations = Stations("temperature", DAYS, np.array([1]), **at, **value, qc=np.zeros(1, np.int8))
    write_observations(tmp_path / "seen", SPEC, DAYS, [gridded, stations], {"config": {}})
    for name, data in files(tmp_path).items():
        boto3.client("s3").put_object(Bucket="bucket", Key=f"given/{name}", Body=data)
    bundle = open_bundle(f"{bucket}/given/bundle")
    np.testing.assert_array_equal(bundle.weights()["w"], np.arange(3.0))
    assert bundle.statistics().digest == statistics.digest
    found = open_observations(f"{bucket}/given/seen")
    assert found.checksum == open_observations(tmp_path / "seen").checksum
    np.testing.assert_array_equal(found.read("olr", DAYS).value, olr)
    assert found.read_stations("temperature", DAYS[1:3]).value.tolist() == [250.0]
    boto3.client("s3").put_object(Bucket="bucket", Key="given/bundle/weights.safetensors", Body=b"else")
    assert "the checksum does not match" in refusal(bundle.weights)


SAYING = """
import sys
sys.path.insert(0, "tests")
from test_analysis import *
from sample.background import FirstGuess
from slams.contracts.archive import open_archive
for begun in (lambda: analysis.open_analysis(sys.argv[1]), lambda: begin(sys.argv[1]), lambda: open_bundle(sys.argv[1]),
              lambda: open_observations(sys.argv[1]), lambda: open_archive(sys.argv[1]),
              lambda: FirstGuess(sys.argv[1], SPEC)):
    try:
        begun()
    except (ContractError, OSError) as error:
        print(" ".join(str(error).split()))
"""


@pytest.mark.parametrize("lacking", ["server", "credentials"])
def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path, lacking):
    """In a process of its own, which has no connection yet and no credentials from elsewhere."""
    place = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    given = KEYS if lacking == "server" else {}
    environment = place | given | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-c", SAYING, "s3://bucket/none.zarr"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stderr
    assert all(line.startswith("s3://bucket/none.zarr") and ": cannot be read (" in line for line in lines)
    told = "connect" if lacking == "server" else "credentials"
    assert all(told in line for line in lines), lines


@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_unit_is_written_anew(product, which):
    """Also the last one, which is smaller than the others: cut in the middle, then written again, it is right."""
    members, where = BLOCKS[which], SEGMENTS[which]
    shard = product.path / "olr" / "c" / str(members[0] // UNIT[0]) / str(where[0] // UNIT[1]) / "0" / "0"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ContractError):
        product.verify(unit_name(members, where))
    draw(product, fields(), members, where)
    product.verify(unit_name(members, where))
