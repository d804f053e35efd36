"""`data_prep check` names every kind of damage by file and time, and finds nothing wrong with what is sound.

The contracts are written by their own writers, small, and then spoiled with plain file operations.
"""

import io
import json
import re
import shutil
import tarfile
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import zarr

from data_prep.__main__ import main
from data_prep.shards import write_shards
from slams.contracts import analysis, archive
from slams.contracts.bundle import write_bundle
from slams.contracts.envelope import ContractError
from slams.contracts.observations import (
    Fingerprint,
    Gridded,
    Operator,
    Stations,
    open_observations,
    write_observations,
)
from slams.contracts.shards import open_shards
from slams.spec import OLR, Grid, Modality, StateSpec
from slams.statistics import Statistics

AIR = Modality("temperature", "state", "K", "air_temperature", (500, 850))
SPEC = StateSpec(Grid(4, 8), (AIR, OLR))
DAYS = np.arange("2001-01-01", "2001-06-30", dtype="datetime64[D]")
GONE = "2001-01-20"  # the day on which OLR is missing, as listed
CHANNELS = SPEC.n_channels


def weather(n_days=180):
    """Fields x_LCHW in physical units."""
    mean = np.array([255.0, 280.0, 240.0])[:, None, None]
    return (mean + 5 * np.random.default_rng(0).standard_normal((n_days, CHANNELS, 4, 8))).astype(np.float32)


def statistics():
    harmonics = np.array([255.0, 280.0, 240.0], np.float32).reshape(1, CHANNELS, 1, 1)
    std, observed = np.full((CHANNELS, 1, 1), 5, np.float32), np.ones((CHANNELS, 4, 8), bool)
    return Statistics(harmonics, std, np.zeros(CHANNELS, bool), observed)


def write_archive(folder, x_LCHW):
    run = np.zeros(len(DAYS), np.int32)
    attributes = {"config": {}, "splits": {"train": [2001, 2001]}, "missing_days": {"temperature": [], "olr": [GONE]}}
    group = archive.create(folder, SPEC, DAYS, run, attributes)
    archive.write_block(group, "temperature", 0, x_LCHW[:, :2])
    olr = x_LCHW[:, 2].copy()
    olr[DAYS.astype(str) == GONE] = np.nan
    archive.write_block(group, "olr", 0, olr)
    archive.finish(folder, statistics(), [1.0] * CHANNELS)


def write_set(folder, content):
    folder.mkdir()
    x = (weather() - statistics().mean(DAYS)) / 5
    document = {"config": {}, "content": content, "splits": {"train": [2001, 2001]}}
    document |= {"latent": {"mean": [0.125] * CHANNELS, "std": [1.0] * CHANNELS}} if content == "latent" else {}
    kept = [(day, 0, frame) for day, frame in zip(DAYS, x, strict=True) if str(day) != GONE]
    write_shards(folder, kept, spec=SPEC, statistics=statistics(), frames_per_shard=60, keepbits=12, document=document)


def write_observed(folder):
    value = weather()[:, 2:].astype(np.float64)
    mask = np.random.default_rng(1).random(value.shape) < 0.5
    olr = Gridded("olr", Operator("identity"), value, np.full_like(value, 2.0), mask)
    n = 400
    numbers = np.random.default_rng(2)
    places = {"latitude": numbers.uniform(-90, 90, n), "longitude": numbers.uniform(0, 360, n)}
    measured = {"value": numbers.normal(270, 5, n), "error_std": np.ones(n), "qc": np.zeros(n, np.int8)}
    frame, ids = np.sort(numbers.integers(0, len(DAYS), n)), np.full(n, "a", object)
    stations = Stations("temperature", DAYS, frame, **places, level_hpa=np.full(n, 500.0), **measured, station_id=ids)
    write_observations(folder / "both", SPEC, DAYS, [olr, stations], {"config": {}})
    write_observations(folder / "grid", SPEC, DAYS, [olr], {"config": {}})
    write_observations(folder / "land", SPEC, DAYS, [on_land()], {"config": {}})


def on_land():
    """Block means over the cells that count."""
    value = weather()[:, 2:, ::2, ::2].astype(np.float64)
    weight = (np.arange(8) < 5) * np.ones((4, 1))
    return Gridded(
        "olr", Operator("block_mean", 2), value, np.full_like(value, 2.0), np.ones(value.shape, bool), weight
    )


def write_analysis(folder):
    days = DAYS[::30]
    product = analysis.create(folder, SPEC, days, 2, {"config": {}})
    x = weather(len(days) * 2).reshape(2, len(days), CHANNELS, 4, 8)
    for member in (0, 1):
        where = np.arange(len(days))
        entry = {"days": [str(day) for day in days], "members": [member]}
        product.close_unit(f"m{member}", entry | {"crc32": product.write(np.array([member]), where, x[[member]])})
    product.finish()


def write_model(folder):
    folder.mkdir()
    weights = {"layer": np.arange(6.0, dtype=np.float32)}
    document = {"config": {}, "model": {}, "input": [CHANNELS, 4, 8], "report": {}}
    write_bundle(folder, {"ema": weights, "raw": {"layer": weights["layer"] + 1}}, SPEC, statistics(), document)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_archive(folder / "archive", weather())
    write_set(folder / "states", "state")
    write_set(folder / "latents", "latent")
    write_observed(folder / "observed")
    write_analysis(folder / "analysis")
    write_model(folder / "bundle")
    return folder


KINDS = ["archive", "states", "latents", "observed/both", "observed/grid", "observed/land", "analysis", "bundle"]


@pytest.fixture
def spoilt(sound, tmp_path):
    """A copy of everything."""
    shutil.copytree(sound, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def check(capsys):
    """Run the command; returns the lines of what is wrong and the last one."""

    def run(path, status):
        assert main(["check", str(path)]) == status
        *lines, last = capsys.readouterr().out.splitlines()
        assert last.startswith(f"{path}: ")
        assert f"{len(lines)} wrong" in last if lines else "sound" in last
        return lines

    return run


def flip(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def change_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sound_is_said_to_be(sound, check, kind):
    assert check(sound / kind, 0) == []


@pytest.mark.parametrize("kind", ["archive", "states"])
def test_it_is_checked_at_a_url_too(sound, check, kind):
    place = fsspec.filesystem("memory")
    place.put(str(sound / kind), f"/{kind}", recursive=True)
    try:
        assert check(f"memory://{kind}", 0) == []
        file = "/archive/olr/c/1/0/0" if kind == "archive" else "/states/frames-00001.tar"
        data = bytearray(place.cat_file(file))
        data[-5 if kind == "archive" else 5000] ^= 4
        place.pipe_file(file, bytes(data))
        lines = check(f"memory://{kind}", 1)
        assert lines and all(file.lstrip("/") in line and "2001-" in line for line in lines)
    finally:
        place.rm(f"/{kind}", recursive=True)


# ---- archives


@pytest.mark.parametrize("at", [-1, -5, 0, 40])
def test_a_flipped_byte_in_a_chunk(spoilt, check, at):
    days = zarr.open_group(spoilt / "archive")["temperature"].chunks[0]
    flip(spoilt / "archive/temperature/c/1/0/0/0", at)
    (line,) = check(spoilt / "archive", 1)
    assert line.startswith(f"{spoilt}/archive/temperature/c/1/0/0/0: {DAYS[days]} to {DAYS[-1]}: damaged")


@pytest.mark.parametrize("left", [0, 3, 100])
def test_a_chunk_cut_short(spoilt, check, left):
    path = spoilt / "archive/olr/c/1/0/0"
    path.write_bytes(path.read_bytes()[:left])
    (line,) = check(spoilt / "archive", 1)
    assert line.startswith(f"{path}: ") and "damaged" in line


def test_a_missing_chunk(spoilt, check):
    days = zarr.open_group(spoilt / "archive")["olr"].chunks[0]
    (spoilt / "archive/olr/c/1/0/0").unlink()
    (line,) = check(spoilt / "archive", 1)
    assert line.startswith(f"{spoilt}/archive/olr/c/1/0/0: {DAYS[days]} to {DAYS[-1]}: no such file")


def write_day(spoilt, name, day, value, level=...):
    group = zarr.open_group(spoilt / "archive", mode="r+")
    group[name][int((np.datetime64(day) - DAYS[0]).astype(int)), level] = value


@pytest.mark.parametrize(
    ("name", "day", "level", "value", "told"),
    [
        ("olr", "2001-03-05", ..., np.nan, "no value, and the day is not listed as missing"),
        ("temperature", "2001-03-05", ..., np.nan, "no value, and the day is not listed as missing"),
        ("temperature", "2001-03-05", 1, np.nan, "temperature_850 has no value"),
        ("olr", GONE, ..., 240.0, "listed as missing, but it has values"),
        ("temperature", "2001-03-05", 0, -20.0, "is -20 K in a cell; 100 to 400 is possible"),
        ("olr", "2001-03-05", 2, 900.0, "is 900 W m-2 in a cell; 0 to 500 is possible"),
        ("olr", "2001-03-05", 2, np.inf, "is infinite in 8 cells"),
    ],
)
def test_a_day_that_is_not_as_it_should_be(spoilt, check, name, day, level, value, told):
    write_day(spoilt, name, day, value, level)
    lines = check(spoilt / "archive", 1)
    assert lines[0] == f"{spoilt}/archive/{name}: {day}: {told}" and len(lines) == 1


def test_some_cells_may_be_missing(spoilt, check):
    write_day(spoilt, "olr", "2001-03-05", np.nan, 2)
    assert check(spoilt / "archive", 0) == []


def test_swapped_statistics(spoilt, check):
    other = Statistics(**{**vars(statistics()), "std": np.full((CHANNELS, 1, 1), 6, np.float32)})
    for kind in ("archive", "states", "bundle"):
        other.save(spoilt / kind / "statistics.safetensors")
        (line,) = check(spoilt / kind, 1)
        assert line.startswith(f"{spoilt}/{kind}/statistics.safetensors: the checksum does not match")
    (spoilt / "archive/statistics.safetensors").unlink()
    assert "statistics.safetensors: no such file" in check(spoilt / "archive", 1)[0]


def test_a_time_axis_that_is_not_daily(spoilt, check):
    time = zarr.open_group(spoilt / "archive", mode="r+")["time"]
    time[50:] = time[50:] + 1
    line = check(spoilt / "archive", 1)[0]
    assert f"archive/time: {DAYS[51]}: follows {DAYS[49]}" in line


@pytest.mark.parametrize("axis", ["time", "run"])
def test_damaged_axes(spoilt, check, axis):
    flip(spoilt / f"archive/{axis}/c/0")
    (line,) = check(spoilt / "archive", 1)
    assert line.startswith(f"{spoilt}/archive/{axis}/c/0: ")
    with pytest.raises(ContractError, match="archive: damaged, it cannot be read"):
        archive.open_archive(spoilt / "archive")


def test_a_missing_axis(spoilt, check):
    (spoilt / "archive/run/c/0").unlink()
    (line,) = check(spoilt / "archive", 1)
    assert line == f"{spoilt}/archive/run/c/0: no such file"


def test_another_grid_than_is_said(spoilt, check):
    axis = zarr.open_group(spoilt / "archive", mode="r+")["latitude"]
    axis[0] = axis[0] + 0.01
    assert check(spoilt / "archive", 1)[0].startswith(f"{spoilt}/archive/latitude: not the cell centres")


# ---- shard sets


def tar_of(spoilt, kind="states", index=1):
    return spoilt / kind / f"frames-{index:05d}.tar", json.loads((spoilt / kind / "manifest.json").read_text())


@pytest.mark.parametrize("kind", ["states", "latents"])
def test_a_flipped_byte_in_a_shard(spoilt, check, kind):
    path, manifest = tar_of(spoilt, kind)
    frame = manifest["shards"][1]["frames"][7]
    flip(path, frame["offset"] + 20)
    lines = check(spoilt / kind, 1)
    assert len(lines) == 2 and all(line.startswith(f"{path}: ") for line in lines)
    assert "sha256" in lines[0] and f"{frame['time']}: the checksum of frame" in lines[1]


def test_a_flipped_byte_between_frames(spoilt, check):
    """No frame is harmed, but the file is not what was written."""
    path, _ = tar_of(spoilt)
    flip(path, -3)
    (line,) = check(spoilt / "states", 1)
    assert line.startswith(f"{path}: 2001-03-") and "sha256" in line


def test_a_truncated_tar(spoilt, check):
    path, manifest = tar_of(spoilt)
    cut = manifest["shards"][1]["frames"][30]
    path.write_bytes(path.read_bytes()[: cut["offset"] + 10])
    lines = check(spoilt / "states", 1)
    assert "bytes, but the manifest says" in lines[0]
    later = [frame["time"] for frame in manifest["shards"][1]["frames"][30:]]
    assert all(any(f": {day}: the checksum" in line for line in lines) for day in later)
    assert not any(f": {manifest['shards'][1]['frames'][29]['time']}: the checksum" in line for line in lines)


def test_an_empty_shard_is_one_line(spoilt, check):
    path, manifest = tar_of(spoilt)
    path.write_bytes(b"")
    (line,) = check(spoilt / "states", 1)
    days = [frame["time"] for frame in manifest["shards"][1]["frames"]]
    assert f"{path}: {days[0]} to {days[-1]}: empty, but the manifest says" in line


def test_a_removed_shard(spoilt, check):
    path, manifest = tar_of(spoilt)
    path.unlink()
    (line,) = check(spoilt / "states", 1)
    times = [frame["time"] for frame in manifest["shards"][1]["frames"]]
    assert line == f"{path}: {times[0]} to {times[-1]}: no such file, though the manifest lists it"


def rewritten(path, change):
    """The tar with its members changed, its manifest made to agree with its bytes."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_a_frame_in_the_place_of_another(spoilt, check):
    path, manifest = tar_of(spoilt)
    rewritten(path, lambda members: [(members[1][0], members[0][1]), (members[0][0], members[1][1]), *members[2:]])
    lines = check(spoilt / "states", 1)
    day = manifest["shards"][1]["frames"][0]["time"]
    assert any(f"{path}: {day}: " in line for line in lines)


def test_a_member_too_many(spoilt, check):
    path, _ = tar_of(spoilt)
    rewritten(path, lambda members: [*members, ("20020101.frame.blosc", b"0")])
    assert any(
        line == f"{path}: member 20020101.frame.blosc is not in the manifest" for line in check(spoilt / "states", 1)
    )


def test_a_day_that_stands_twice(spoilt, check):
    def twice(document):
        frames = document["shards"][0]["frames"]
        frames[5]["time"] = frames[4]["time"]

    change_json(spoilt / "states/manifest.json", twice)
    damaged, order, *_ = check(spoilt / "states", 1)
    assert damaged.startswith(f"{spoilt}/states/manifest.json: the checksum of its own content")
    assert order.startswith(f"{spoilt}/states/manifest.json: {DAYS[4]}: follows {DAYS[4]}")


@pytest.mark.parametrize(("kind", "told"), [("state", "temperature_850 is "), ("latent", "latents are not finite")])
def test_values_that_cannot_be(tmp_path, check, kind, told, monkeypatch):
    """Written so, with checksums that are right."""
    bad = weather()
    bad[70, 1, 2, 3] = 9000.0 if kind == "state" else np.inf
    monkeypatch.setattr(f"{__name__}.weather", lambda: bad)
    write_set(tmp_path / "set", kind)
    (line,) = check(tmp_path / "set", 1)
    assert f"frames-00001.tar: {DAYS[70]}: " in line and told in line


# ---- what is still JSON


def one_byte(path, before, after):
    """Change the first place that matches: one byte, and the file is JSON as before."""
    text = path.read_text()
    changed = re.sub(before, after, text, count=1)
    assert sum(a != b for a, b in zip(text, changed, strict=True)) == 1 and json.loads(changed) != json.loads(text)
    path.write_text(changed)


DIGITS = {
    "split of states": ("states/manifest.json", r'("train": \[\s*200)1', r"\g<1>3"),
    "units of states": ("states/manifest.json", r'("units": "W m-)2', r"\g<1>3"),
    "place of a frame": ("states/manifest.json", r'("offset": 5)1', r"\g<1>9"),
    "run of a frame": ("states/manifest.json", r'("run": )0', r"\g<1>1"),
    "mean of latents": ("latents/manifest.json", r"(0\.12)5", r"\g<1>7"),
    "shape of latents": ("latents/manifest.json", r'("shape": \[\s*)3', r"\g<1>2"),
    "split of the archive": ("archive/zarr.json", r'("train": \[\s*200)1', r"\g<1>2"),
    "units of the archive": ("archive/zarr.json", r'("units": "W m-)2', r"\g<1>1"),
    "missing day of the archive": ("archive/zarr.json", r"2001-01-20", "2001-01-21"),
    "standard deviation of the archive": ("archive/zarr.json", r'("global_std": \[\s*)1', r"\g<1>7"),
}


@pytest.mark.parametrize("case", DIGITS)
def test_a_flipped_digit_that_leaves_valid_json(spoilt, check, case):
    """Found by the check, and refused by whoever opens it."""
    name, before, after = DIGITS[case]
    path = spoilt / name
    one_byte(path, before, after)
    told = f"{path}: the checksum of its own content does not match"
    assert any(line.startswith(told) for line in check(path.parent, 1))
    with pytest.raises(ContractError, match=re.escape(told)):
        (archive.open_archive if path.name == "zarr.json" else open_shards)(path.parent)


def test_a_flipped_digit_of_an_array_s_own_metadata(spoilt, check):
    """Which readers without the gathered ones would take."""
    path = spoilt / "archive/olr/zarr.json"
    one_byte(path, r'("units": "W m-)2', r"\g<1>1")
    (line,) = check(spoilt / "archive", 1)
    assert line.startswith(f"{path}: not what {spoilt}/archive/zarr.json says of it")


@pytest.mark.parametrize("name", ["states/manifest.json", "archive/zarr.json"])
def test_documents_of_the_version_without_a_checksum_are_read(spoilt, check, name):
    """One of the present version that lacks it is not."""

    def without(version):
        def change(document):
            found = document.get("attributes", document)
            found.pop("document_sha256", None)
            found["version"] = version

        return change

    change_json(spoilt / name, without(1))
    assert check((spoilt / name).parent, 0) == []
    change_json(spoilt / name, without(2))
    assert f"{spoilt / name}: the checksum of its own content" in check((spoilt / name).parent, 1)[0]


# ---- observations, analyses, bundles


def test_a_flipped_byte_in_observations(spoilt, check):
    flip(spoilt / "observed/both/olr/value/c/1/0/0")
    (line,) = check(spoilt / "observed/both", 1)
    assert line.startswith(f"{spoilt}/observed/both/olr/value/c/1/0/0: {DAYS[64]} to {DAYS[127]}: damaged")
    flip(spoilt / "observed/both/stations.parquet", 200)
    assert any("stations.parquet: 2001-" in line for line in check(spoilt / "observed/both", 1))


@pytest.mark.parametrize("kind", ["both", "grid", "land"])
@pytest.mark.parametrize("part", ["value", "mask"])
def test_observations_that_are_gone(spoilt, check, kind, part):
    """They read as not observed; only the fingerprint of what is on a grid tells, also where there are stations."""
    (spoilt / f"observed/{kind}/olr/{part}/c/1/0/0").unlink()
    (line,) = check(spoilt / f"observed/{kind}", 1)
    assert "fingerprint" in line


def test_weights_that_are_damaged_or_gone(spoilt, check):
    """The reader says so, and not that cells count nothing."""
    folder = spoilt / "observed/land"
    flip(folder / "olr/weight/c/0/0")
    (line,) = check(folder, 1)
    assert line.startswith(f"{folder}/olr/weight/c/0/0: every day: damaged")
    (folder / "olr/weight/c/0/0").unlink()
    assert all("weight of olr is lost or damaged" in line for line in check(folder, 1))
    with pytest.raises(ContractError, match="land: weight of olr is lost or damaged"):
        open_observations(folder).read("olr", DAYS[:1])


def test_other_weights_are_other_observations(sound, spoilt, check):
    zarr.open_group(spoilt / "observed/land", mode="r+")["olr/weight"][0, 0] = 0.5
    (line,) = check(spoilt / "observed/land", 1)
    assert "fingerprint" in line
    with_others = replace(on_land(), weight_HW=np.ones((4, 8)))
    write_observations(spoilt / "other", SPEC, DAYS, [with_others], {"config": {}})
    assert open_observations(spoilt / "other").checksum != open_observations(sound / "observed/land").checksum


@pytest.mark.parametrize("kind", ["both", "grid", "land"])
def test_observations_of_an_earlier_version_are_read_and_checked(sound, spoilt, check, kind):
    """Their weights had no checksum and were in no fingerprint, and a chunk of them that was all 0 was not written."""
    root = zarr.open_group(spoilt / f"observed/{kind}", mode="r+")
    del root.attrs["gridded_sha256"]
    if kind == "land":
        fingerprint, weight = Fingerprint(), root["olr/weight"][:]
        fingerprint.add(replace(on_land(), weight_HW=None))
        root.attrs["content_sha256"] = fingerprint.hexdigest()
        del root["olr/weight"]
        root["olr"].create_array("weight", data=weight, dimension_names=["cell_latitude", "cell_longitude"])
    archive.consolidate(spoilt / f"observed/{kind}")
    assert check(spoilt / f"observed/{kind}", 0) == []
    found, now = (open_observations(folder / f"observed/{kind}").read("olr", DAYS) for folder in (spoilt, sound))
    np.testing.assert_array_equal(found.value, now.value)
    if kind == "land":
        np.testing.assert_array_equal(found.weight_HW, now.weight_HW)


def test_an_error_that_is_none(spoilt, check):
    zarr.open_group(spoilt / "observed/both", mode="r+")["olr/error_std"][3] = -1.0
    (line,) = check(spoilt / "observed/both", 1)
    assert f"{DAYS[0]} to {DAYS[63]}: error_std of olr is -1.0" in line


@pytest.mark.parametrize("name", ["temperature/c/1/2/0/0/0", "olr_mean/c/2/0/0", "olr_spread/c/2/0/0"])
def test_an_analysis_with_a_chunk_damaged_or_gone(spoilt, check, name):
    flip(spoilt / "analysis" / name)
    assert check(spoilt / "analysis", 1)[0].startswith(f"{spoilt}/analysis/{name}: {DAYS[60]}: damaged")
    (spoilt / "analysis" / name).unlink()
    lines = check(spoilt / "analysis", 1)
    assert any(line.startswith(f"{spoilt}/analysis/{name}: {DAYS[60]}: no such file") for line in lines)


def test_an_analysis_that_was_changed(spoilt, check):
    zarr.open_group(spoilt / "analysis", mode="r+")["temperature"][1, 2, 0, 0, 0] = 260.0
    (line,) = check(spoilt / "analysis", 1)
    assert line.startswith(f"{spoilt}/analysis/ledger/m1.json: {DAYS[0]} to ") and "not those that were written" in line


def test_weights_that_were_changed_or_are_not_finite(spoilt, tmp_path, check):
    flip(spoilt / "bundle/weights.safetensors")
    assert "weights.safetensors: the checksum does not match" in check(spoilt / "bundle", 1)[0]
    (tmp_path / "bad").mkdir()
    weights = {"layer": np.array([1, np.nan], np.float32)}
    write_bundle(tmp_path / "bad", {"ema": weights, "raw": weights}, SPEC, statistics(), {"config": {}})
    assert "ema.layer is not finite" in check(tmp_path / "bad", 1)[0]


# ---- mistakes


def test_nothing_to_check_is_a_mistake(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", "memory://nowhere", "what://is/this"):
        assert main(["check", str(path)]) == 2
        said = capsys.readouterr()
        assert str(path) in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("name", ["archive/zarr.json", "states/manifest.json", "bundle/model.json"])
def test_a_torn_document_is_wrong(spoilt, check, name):
    path = spoilt / name
    path.write_bytes(path.read_bytes()[:100])
    (line,) = check(path.parent, 1)
    assert line.startswith(f"{path}: damaged")


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("states/manifest.json", r'"shards": \[\n', '"sharfs": [\n', "damaged"),
        ("archive/zarr.json", r'("zarr_format": )3', r"\g<1>7", "damaged"),
        ("archive/time/zarr.json", r"int64", "int65", "damaged"),
    ],
)
def test_metadata_that_no_reader_takes_is_wrong_in_one_line(spoilt, check, name, before, after, told):
    one_byte(spoilt / name, before, after)
    (line,) = check(spoilt / name.split("/")[0], 1)
    assert told in line and "\n" not in line


def test_a_newer_version_is_not_judged(spoilt, capsys):
    change_json(spoilt / "archive/zarr.json", lambda document: document["attributes"].update(version=99))
    assert main(["check", str(spoilt / "archive")]) == 2
    assert "version 99" in capsys.readouterr().err
