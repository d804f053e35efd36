"""What crosses a door comes out as it went in, or is refused in one sentence."""

import errno
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from upath import UPath

from data_prep.shards import write_shards
from slams.contracts import analysis, archive
from slams.contracts.bundle import check_same_make, open_bundle, write_bundle
from slams.contracts.envelope import ContractError, alone, is_finished, sha256, write_json, written_aside
from slams.contracts.gridded import Field, GriddedWriter
from slams.contracts.observations import Gridded, Operator, open_observations, write_observations
from slams.contracts.shards import open_shards
from slams.spec import OLR, Grid, Modality, StateSpec
from slams.statistics import Statistics

ROLES = ("state", "in_situ", "ex_situ")
KEEPBITS = 12
names = st.sampled_from(["temperature", "humidity", "wind", "precipitation", "olr"])


@st.composite
def specs(draw):
    """Any state: one to three modalities, with the levels of one pressure axis or none."""
    grid = Grid(draw(st.sampled_from([4, 6])), draw(st.sampled_from([8, 10])))
    levels = tuple(draw(st.lists(st.integers(1, 1000), min_size=1, max_size=3, unique=True)))
    modalities = [
        Modality(name, draw(st.sampled_from(ROLES)), draw(st.text(max_size=5)), "", draw(st.sampled_from([levels, ()])))
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ]
    return StateSpec(grid, tuple(modalities))


@st.composite
def fields(draw, n, spec):
    """Values x_nCHW, some of them missing."""
    shape = (n, spec.n_channels, *spec.grid.shape)
    values = st.one_of(st.floats(-1e4, 1e4, width=32), st.just(np.nan))
    return draw(arrays.arrays(np.float32, shape, elements=values, fill=st.just(np.float32(1.5))))


def some_statistics(spec):
    """Numbers that no two channels share."""
    n = spec.n_channels
    mean = np.arange(5 * n, dtype=np.float32).reshape(5, n, 1, 1) * np.ones((1, 1, *spec.grid.shape), np.float32)
    std = 1 + np.arange(n, dtype=np.float32)[:, None, None]
    observed = np.ones((n, *spec.grid.shape), bool)
    return Statistics(mean, std, np.arange(n) % 2 == 1, observed, {"a": observed[0] * 2.0})


def assert_same_statistics(left, right):
    assert left.digest == right.digest and left.static.keys() == right.static.keys()
    for name in ("harmonics", "std", "log1p", "observed"):
        assert getattr(left, name).dtype == getattr(right, name).dtype


def days(n, first="2000-02-27"):
    return np.datetime64(first) + np.arange(n)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A new folder for each of hypothesis' examples."""
    parent, numbers = tmp_path_factory.mktemp("examples"), iter(range(10**6))
    return lambda: parent / str(next(numbers))


TEMPERATURE = Modality("temperature", "state", "K", "air_temperature", (500, 850))
SPEC = StateSpec(Grid(4, 8), (TEMPERATURE, OLR))


def normal(n, spec=SPEC):
    return np.random.default_rng(0).normal(size=(n, spec.n_channels, *spec.grid.shape)).astype(np.float32)


def make_archive(path, spec=SPEC, x=None, run=None):
    x = normal(4, spec) if x is None else x
    run = np.zeros(len(x), int) if run is None else run
    attributes = {"config": {"path": "here"}, "splits": {"train": [2000, 2000]}, "missing_days": {}}
    group = archive.create(path, spec, days(len(x)), run, attributes)
    for modality in spec.modalities:
        part, shape = x[:, spec.channels(modality.name)], archive.field_shape(modality, spec.grid.shape)
        archive.write_block(group, modality.name, 0, part.reshape(len(x), *shape))
    archive.finish(path, some_statistics(spec), [1.0] * spec.n_channels)
    return path


def make_shards(path, spec=SPEC, x=None, per_shard=3):
    x = normal(7, spec) if x is None else x
    frames = ((day, i // 2, frame) for i, (day, frame) in enumerate(zip(days(len(x)), x, strict=True)))
    document = {"config": {}, "content": "state", "splits": {"train": [2000, 2000]}}
    with written_aside(path) as aside:
        write_shards(
            aside,
            frames,
            spec=spec,
            statistics=some_statistics(spec),
            frames_per_shard=per_shard,
            keepbits=KEEPBITS,
            document=document,
        )
    return path


def make_bundle(path, spec=SPEC, weights=None):
    weights = weights or {"ema": {"w": np.ones((2, 3), np.float32)}, "raw": {"w": np.zeros((2, 3), np.float32)}}
    with written_aside(path) as aside:
        document = {"config": {"seed": 1}, "model": {"kind": "score"}, "input": [1, 2, 3]}
        write_bundle(aside, weights, spec, some_statistics(spec), document)
    return path


def make_observations(path, spec=SPEC):
    part = normal(5, spec)[:, spec.channels("olr"), ::2, ::2]
    seen = Gridded("olr", Operator("block_mean", 2), part, np.ones_like(part), np.isfinite(part))
    write_observations(path, spec, days(5), [seen], {"config": {}})
    return path


def make_analysis(path, spec=SPEC, n_members=3, n_days=4):
    analysis.create(path, spec, days(n_days), n_members, {"config": {"seed": 0}})
    return path


# ---- write -> open is the identity


@given(st.data())
def test_an_archive_comes_out_as_it_went_in(scratch, data):
    spec = data.draw(specs())
    x = data.draw(fields(data.draw(st.integers(1, 5)), spec))
    run = data.draw(arrays.arrays(np.int32, len(x), elements=st.integers(0, 9)))
    found = archive.open_archive(make_archive(scratch(), spec, x, run))
    assert found.spec == spec and found.splits == {"train": (2000, 2000)}
    assert found.attributes["config"] == {"path": "here"}
    np.testing.assert_array_equal(found.time, days(len(x)))
    np.testing.assert_array_equal(found.run, run)
    np.testing.assert_array_equal(found.read(slice(None)), x)
    last_first = np.array([len(x) - 1, 0])[: len(x)]
    np.testing.assert_array_equal(found.read(np.sort(last_first)), x[np.sort(last_first)])
    assert_same_statistics(found.statistics(), some_statistics(spec))


@given(st.data())
def test_shards_come_out_as_they_went_in_but_for_the_rounding(scratch, data):
    spec = data.draw(specs())
    x = data.draw(fields(data.draw(st.integers(1, 7)), spec))
    found = open_shards(make_shards(scratch(), spec, x, data.draw(st.integers(1, 4))))
    assert found.spec == spec and found.shape == x.shape[1:] and found.content == "state"
    np.testing.assert_array_equal([frame.time for frame in found.frames], days(len(x)))
    assert [frame.run for frame in found.frames] == [i // 2 for i in range(len(x))]
    for frame, value in zip(found.frames, x, strict=True):
        np.testing.assert_allclose(found.read(frame), value, rtol=2.0**-KEEPBITS, atol=1e-37)
    assert_same_statistics(found.statistics(), some_statistics(spec))


@given(st.data())
def test_a_bundle_comes_out_as_it_went_in(scratch, data):
    spec = data.draw(specs())
    kinds = st.sampled_from([np.float32, np.float64, np.int64])
    values = kinds.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)))
    part = st.dictionaries(st.sampled_from(["a.weight", "a.bias", "b.ema.raw"]), values, min_size=1)
    weights = {which: data.draw(part) for which in ("ema", "raw")}
    found = open_bundle(make_bundle(scratch(), spec, weights))
    assert found.spec == spec
    assert found.document["model"] == {"kind": "score"} and found.document["config"] == {"seed": 1}
    for which, part in weights.items():
        back = found.weights(which)
        assert back.keys() == part.keys()
        for name, value in part.items():
            assert back[name].dtype == value.dtype
            np.testing.assert_array_equal(back[name], value)
    assert_same_statistics(found.statistics(), some_statistics(spec))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_bundle_may_be_read_by_whom_its_owner_lets(scratch, umask):
    """On a cluster one trains and the others draw."""
    before = os.umask(umask)
    try:
        folder = make_bundle(scratch(), SPEC, {which: {"a": np.zeros(3)} for which in ("ema", "raw")})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {0o666 & ~umask}


OPERATORS = [Operator("identity"), Operator("block_mean", 2), Operator("subsample", 2)]
OPERATORS += [Operator("identity", 1, Operator("subsample", 2)), Operator("subsample", 2, Operator("block_mean", 1))]


@given(st.data())
def test_observations_come_out_as_they_went_in(scratch, data):
    spec, path = data.draw(specs()), scratch()
    n, name = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(spec.names))
    operator = data.draw(st.sampled_from(OPERATORS))
    y, x = (len(axis) for axis in operator.coordinates(spec.grid))
    value = data.draw(fields(n, spec))[:, spec.channels(name), :y, :x]
    value.flat[0], chosen = 1.5, data.draw(arrays.arrays(bool, value.shape))
    chosen.flat[0] = True  # a set in which nothing was observed is refused
    mask = np.isfinite(value) & chosen
    weight = data.draw(st.sampled_from([None, spec.grid.area_weights.astype(np.float32)]))
    error = 1 + np.abs(np.nan_to_num(value))
    write_observations(path, spec, days(n), [Gridded(name, operator, value, error, mask, weight)], {"config": {}})
    opened = open_observations(path)
    found = opened.read(name, days(n)[::-1])
    assert opened.spec == spec and opened.names == (name,) and found.operator == operator
    for part, written in {"value": value, "error_std": error, "mask": mask}.items():
        np.testing.assert_array_equal(getattr(found, part), written[::-1])
    assert found.weight_HW is None if weight is None else np.array_equal(found.weight_HW, weight)


@given(st.data())
def test_an_analysis_comes_out_as_it_went_in(scratch, data):
    spec, n_members = data.draw(specs()), data.draw(st.integers(1, 3))
    x = np.stack([data.draw(fields(3, spec)) for _ in range(n_members)])
    product = analysis.create(scratch(), spec, days(3), n_members, {"config": {"seed": 0}})
    for member in reversed(range(n_members)):
        product.write(np.array([member]), np.array([0, 2]), x[member : member + 1, [0, 2]])
    found = analysis.open_analysis(product.path)
    assert found.spec == spec and found.n_members == n_members and not found.is_complete
    np.testing.assert_array_equal(found.time, days(3))
    np.testing.assert_array_equal(found.read(0), x[:, 0])
    np.testing.assert_array_equal(found.read(2), x[:, 2])
    assert np.isnan(found.read(1)).all()


# ---- what is not whole, not of this version or not of this make is refused

MAKERS = {
    "archive": (make_archive, archive.open_archive, "zarr.json"),
    "shards": (make_shards, open_shards, "manifest.json"),
    "bundle": (make_bundle, open_bundle, "model.json"),
    "observations": (make_observations, open_observations, "zarr.json"),
    "analysis": (make_analysis, analysis.open_analysis, "zarr.json"),
}


def edit(path, **changes):
    """Change the header of a contract, which for Zarr lies in the attributes."""
    document = json.loads(path.read_text())
    (document["attributes"] if path.name == "zarr.json" else document).update(changes)
    path.write_text(json.dumps(document))


def flip(path, at=-3):
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def refusal(function, *arguments):
    """The one sentence of a refusal."""
    with pytest.raises(ContractError) as said:
        function(*arguments)
    assert "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 9}, "version 9; this program reads up to "),
        ({"version": "1"}, "version '1'"),
        ({"format": "slams-else"}, "is 'slams-else', not 'slams-"),
    ],
)
def test_another_format_or_a_newer_version_is_refused(tmp_path, kind, changes, sentence):
    make, opened, head = MAKERS[kind]
    path = make(tmp_path / "made")
    opened(path)
    edit(path / head, **changes)
    assert sentence in refusal(opened, path)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_there_is_named(tmp_path, kind):
    assert str(tmp_path / "none") in refusal(MAKERS[kind][1], tmp_path / "none")


@pytest.mark.parametrize("kind", ["shards", "bundle"])
def test_a_torn_header_is_refused(tmp_path, kind):
    make, opened, head = MAKERS[kind]
    text = (make(tmp_path / "made") / head).read_text()
    (tmp_path / "made" / head).write_text(text[: len(text) // 2])
    assert "not a JSON file" in refusal(opened, tmp_path / "made")


@pytest.mark.parametrize("kind", ["archive", "shards", "bundle"])
def test_statistics_missing_or_damaged_are_refused(tmp_path, kind):
    make, opened, _ = MAKERS[kind]
    found = opened(make(tmp_path / "made"))
    flip(tmp_path / "made" / "statistics.safetensors")
    assert "statistics.safetensors: the checksum does not match" in refusal(found.statistics)
    (tmp_path / "made" / "statistics.safetensors").unlink()
    assert "the statistics are missing" in refusal(found.statistics)


def test_weights_missing_or_damaged_are_refused(tmp_path):
    bundle = open_bundle(make_bundle(tmp_path / "made"))
    flip(bundle.folder / "weights.safetensors")
    assert "weights.safetensors: the checksum does not match" in refusal(bundle.weights)
    (bundle.folder / "weights.safetensors").unlink()
    assert "the weights are missing" in refusal(bundle.weights)


def test_a_flipped_bit_in_a_frame_is_found_and_the_other_frames_stay(tmp_path):
    shards = open_shards(make_shards(tmp_path / "made"))
    frame = shards.frames[4]
    flip(shards.files[frame.shard], frame.offset + frame.size // 2)
    assert f"the checksum of frame {frame.time} does not match" in refusal(shards.read, frame)
    assert all(np.isfinite(shards.read(other)).all() for other in shards.frames if other is not frame)


def test_a_cut_or_missing_shard_is_refused(tmp_path):
    shards = open_shards(make_shards(tmp_path / "made"))
    path = shards.files[1]
    path.write_bytes(path.read_bytes()[:-512])
    assert "but the manifest says" in refusal(open_shards, tmp_path / "made")
    path.unlink()
    assert "but the manifest says" in refusal(open_shards, tmp_path / "made")
    assert "no such file" in refusal(shards.read, shards.frames[4])


@pytest.mark.parametrize("kind", ["archive", "observations", "analysis"])
def test_a_flipped_bit_in_a_chunk_is_found(tmp_path, kind):
    make, opened, _ = MAKERS[kind]
    found = opened(make(tmp_path / "made"))
    if kind == "analysis":
        found.write(np.arange(3), np.arange(4), np.random.default_rng(0).normal(size=(3, 4, 3, 4, 8)))
    array = "value" if kind == "observations" else "olr"
    chunk = next(path for path in sorted((tmp_path / "made").rglob(f"{array}/c/**/*")) if path.is_file())
    flip(chunk, 40)
    read = {"archive": lambda: found.read(slice(None)), "observations": lambda: found.read("olr", days(5))}
    with pytest.raises(ValueError, match="checksum"):
        read.get(kind, lambda: found.read(0))()


def test_an_autoencoder_of_other_channels_or_statistics_is_refused(tmp_path):
    bundle = open_bundle(make_bundle(tmp_path / "made"))
    checksum = bundle.document["statistics_sha256"]
    check_same_make(bundle, SPEC, checksum, "shards")
    other = StateSpec(SPEC.grid, SPEC.modalities[::-1])
    sentence = refusal(check_same_make, bundle, other, checksum, "shards")
    assert "temperature_500, temperature_850, olr" in sentence and "shards holds olr, temperature_500" in sentence
    swapped = Modality("temperature", "state", "K", "air_temperature", (850, 500))
    refusal(check_same_make, bundle, StateSpec(SPEC.grid, (swapped, SPEC.modalities[1])), checksum, "shards")
    assert "other statistics than those of shards" in refusal(check_same_make, bundle, SPEC, "0" * 64, "shards")


def test_observations_with_an_error_of_zero_or_of_another_day_are_refused(tmp_path):
    found = open_observations(make_observations(tmp_path / "made"))
    assert "2001-01-01 is outside 2000-02-27 to 2000-03-02" in refusal(found.read, "olr", days(1, "2001-01-01"))
    assert "has no observations of 'temperature' on a grid; it has olr" in refusal(found.read, "temperature", days(1))
    zarr.open_group(tmp_path / "made", mode="r+", use_consolidated=False)["olr"]["error_std"][0] = 0
    assert "error_std of olr is 0.0; a finite number, more than 0 is needed" in refusal(found.read, "olr", days(1))


def kelvin(path, **parts):
    """Observations of temperature: 5 days, 2 levels, every second cell, with one value of some parts replaced."""
    seen = np.full((5, 2, 2, 4), 250.0, np.float32)
    whole = {"value": seen, "error_std": np.ones_like(seen), "mask": np.ones(seen.shape, bool)}
    for part, value in parts.items():
        whole[part][3, 1, 0, 2] = value
    seen = Gridded("temperature", Operator("subsample", 2), **whole)
    write_observations(path, SPEC, days(5), [seen], {"config": {}})
    return path


def spoiled(path, part, value):
    """One value of a sound set replaced afterwards, as by another program."""
    group = zarr.open_group(kelvin(path), mode="r+", use_consolidated=False)
    group[f"temperature/{part}"][3, 1, 0, 2] = value
    return open_observations(path)


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("error_std", 0.0, "error_std of temperature is 0.0; a finite number, more than 0 is needed"),
        ("error_std", -1.0, "error_std of temperature is -1.0; a finite number"),
        ("error_std", np.nan, "error_std of temperature is nan; a finite number"),
        ("error_std", np.inf, "error_std of temperature is inf; a finite number"),
        ("value", -23.5, "temperature is -23.5, which cannot be kelvin; 100 to 400 K"),
        ("value", 407.0, "temperature is 407.0, which cannot be kelvin"),
    ],
)
def test_values_and_errors_that_cannot_be_are_refused_where_they_are_used(tmp_path, part, value, sentence):
    assert sentence in refusal(lambda: kelvin(tmp_path / "written", **{part: value}))
    found = spoiled(tmp_path / "read", part, value)
    assert sentence in refusal(found.read, "temperature", days(5))
    assert sentence in refusal(found.check, ["temperature"], days(5))
    found.read("temperature", days(3))
    kelvin(tmp_path / "unused", **{part: value, "mask": False})
    open_observations(tmp_path / "unused").check(["temperature"], days(5))


def operator(kind, factor):
    return {"operator": {"kind": kind, "factor": factor}}


@pytest.mark.parametrize(
    ("name", "attributes", "sentence"),
    [
        ("temperature/value", {"units": "degC"}, "value of temperature is in 'degC'; 'K' is needed"),
        ("temperature", operator("median", 2), "of temperature cannot be applied (kind: 'median'"),
        ("temperature", operator("subsample", 3), "factor: 3 does not divide the grid of 4 x 8"),
        ("temperature", operator("subsample", 4), "has shape (5, 2, 2, 4); (5, 2, 1, 2) is needed"),
        ("temperature", {"operator": None}, "operator None of temperature cannot be applied"),
    ],
)
def test_another_unit_shape_or_operator_is_refused(tmp_path, name, attributes, sentence):
    path = kelvin(tmp_path / "made")
    zarr.open_group(path, mode="r+", use_consolidated=False)[name].attrs.update(attributes)
    archive.consolidate(path)
    assert sentence in refusal(open_observations(path).read, "temperature", days(5))


def test_what_was_never_observed_is_refused_by_its_name(tmp_path):
    seen = np.full((5, 1, 4, 8), 250.0, np.float32)
    nothing = Gridded("olr", Operator("identity"), seen, seen, np.zeros(seen.shape, bool))
    with pytest.raises(ValueError, match="olr: every value is masked; leave it out"):
        write_observations(tmp_path / "none", SPEC, days(5), [nothing], {"config": {}})
    last = Gridded("olr", Operator("identity"), seen, seen, np.arange(5)[:, None, None, None] == np.full(seen.shape, 4))
    write_observations(tmp_path / "last", SPEC, days(5), [last], {"config": {}})
    found = open_observations(tmp_path / "last")
    found.check(["olr"], days(5))
    assert "every value of olr is masked from 2000-02-27 to 2000-03-01" in refusal(found.check, ["olr"], days(4))
    assert "2000-03-03 is outside" in refusal(found.check, ["olr"], days(6))


def test_days_that_do_not_follow_one_another_or_are_not_all_given_are_refused(tmp_path):
    seen = np.full((2, 1, 4, 8), 250.0, np.float32)
    olr = Gridded("olr", Operator("identity"), seen, seen, np.ones(seen.shape, bool))
    with pytest.raises(ValueError, match="2000-02-27 to 2000-03-01 are not consecutive days"):
        write_observations(tmp_path / "a", SPEC, days(4)[[0, 3]], [olr], {"config": {}})
    with pytest.raises(ValueError, match="olr: 2 days were given; 4 are needed"):
        write_observations(tmp_path / "b", SPEC, days(4), [olr], {"config": {}})
    write_observations(tmp_path / "c", SPEC, days(4), [olr, olr], {"config": {}})
    found = open_observations(tmp_path / "c").read("olr", days(4))
    np.testing.assert_array_equal(found.value, np.tile(seen, (2, 1, 1, 1)))


def test_windows_never_cross_a_run_a_gap_or_a_split(tmp_path):
    shards = open_shards(make_shards(tmp_path / "made"))  # runs of two days
    np.testing.assert_array_equal(shards.windows("train", 2), [0, 2, 4])
    assert "holds no window of 3 consecutive days" in refusal(shards.windows, "train", 3)
    assert "has no split 'test'; it has train" in refusal(shards.windows, "test", 1)


def test_windows_never_cross_a_gap_in_time(tmp_path):
    """Of one run and one split: days 0 to 2, 4 and 5, and 9."""
    there = days(10)[[0, 1, 2, 4, 5, 9]]
    frames = [(day, 0, frame) for day, frame in zip(there, normal(6), strict=True)]
    document = {"config": {}, "content": "state", "splits": {"train": [2000, 2000]}}
    about = {"spec": SPEC, "statistics": some_statistics(SPEC), "frames_per_shard": 4, "keepbits": KEEPBITS}
    with written_aside(tmp_path / "made") as aside:
        write_shards(aside, frames, **about, document=document)
    shards = open_shards(tmp_path / "made")
    np.testing.assert_array_equal(shards.windows("train", 1), np.arange(6))
    np.testing.assert_array_equal(shards.windows("train", 2), [0, 1, 3])
    np.testing.assert_array_equal(shards.windows("train", 3), [0])
    assert "holds no window of 4 consecutive days" in refusal(shards.windows, "train", 4)


def test_a_chunk_of_observations_at_a_quarter_of_a_degree_is_not_too_large_for_its_codec(tmp_path):
    """64 days of ten levels are 2.65 GB; Blosc takes 2 GB at most."""
    levels, grid = tuple(range(100, 1100, 100)), Grid(720, 1440)
    spec = StateSpec(grid, (Modality("temperature", "state", "K", "air_temperature", levels),))
    value = np.broadcast_to(np.float32(250), (1, 10, 720, 1440))
    seen = Gridded("temperature", Operator("identity"), value, value / 250, np.broadcast_to(True, value.shape))
    zarr.open_group(tmp_path, mode="w", zarr_format=3)
    writer = GriddedWriter(tmp_path, Field(spec.modalities[0], grid, 10), days(64), seen)
    writer.write(seen)
    assert {array.chunks for _, array in writer.group.arrays() if array.ndim == 4} == {value.shape}


# ---- written aside


def test_what_breaks_while_it_is_written_leaves_nothing_under_the_name(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "result") as aside:
        (aside / "half").write_text("half")
        raise KeyboardInterrupt
    assert not (tmp_path / "result").exists()
    with written_aside(tmp_path / "result") as aside:  # and the next attempt begins anew
        assert not list(aside.iterdir())
        (aside / "whole").write_text("whole")
    assert [p.name for p in (tmp_path / "result").iterdir()] == ["whole"] and len(list(tmp_path.iterdir())) == 1


def test_two_programs_never_write_the_same_aside(tmp_path):
    (tmp_path / ".result.lock").touch()  # left behind by one that was killed
    with written_aside(tmp_path / "result") as aside:
        (aside / "of the first").touch()
        with (
            pytest.raises(ContractError, match=f"result: process {os.getpid()} of .* is at work on it"),
            written_aside(aside.parent / "result"),
        ):
            pytest.fail("both write")
        assert (aside / "of the first").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path, monkeypatch):
    """By the one before, between the second's opening of it and its taking: a third would see a file of its own."""
    lock, flock = tmp_path / ".result.lock", fcntl.flock

    def removed_meanwhile(*given):
        monkeypatch.setattr(fcntl, "flock", flock)
        lock.unlink()
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with alone(tmp_path / "result"):
        assert lock.exists()
        with pytest.raises(ContractError, match=f"process {os.getpid()}"), alone(tmp_path / "result"):
            pytest.fail("both work")


def test_a_folder_that_cannot_be_locked_is_said_aloud_and_refuses_nobody(tmp_path, monkeypatch, caplog):
    """As on Lustre mounted without flock."""

    def refused(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone(tmp_path / "result"), alone(tmp_path / "result"):
        assert "result cannot be locked" in caplog.text


FORKED = """
import multiprocessing, os, sys, time
from slams.contracts.envelope import alone
def read():
    print(os.getpid(), flush=True)
    time.sleep(60)
with alone(sys.argv[1]):
    reading = multiprocessing.get_context("fork").Process(target=read)
    reading.start()
    reading.join()
"""


def test_a_child_of_a_killed_program_does_not_hold_its_lock(tmp_path):
    """As a reading process may, which lives longer than the training it reads for."""
    program = subprocess.Popen([sys.executable, "-c", FORKED, tmp_path / "result"], stdout=subprocess.PIPE, text=True)
    with program.stdout as said:
        child = int(said.readline())
    try:
        program.kill()
        program.wait(60)
        assert (tmp_path / ".result.lock").read_text().startswith("process ")
        with alone(tmp_path / "result"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_result_that_stands_is_never_written_over(tmp_path):
    make_bundle(tmp_path / "made")
    before = sha256(tmp_path / "made" / "model.json")
    assert "exists already" in refusal(make_bundle, tmp_path / "made")
    assert sha256(tmp_path / "made" / "model.json") == before


def test_a_json_file_is_the_old_one_or_the_new_one(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": 2, "y": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_is_strict(tmp_path, value):
    """NaN and Infinity are no JSON: many a reader refuses the whole file."""
    for path in (tmp_path / "a.json", UPath(f"memory://{tmp_path.name}/a.json")):
        with pytest.raises(ValueError, match=r"a\.json: cannot be written as JSON"):
            write_json(path, {"x": [1, value]})
        assert not path.exists()


def test_a_finished_result_of_another_configuration_is_refused(tmp_path):
    (tmp_path / "made").mkdir()
    assert is_finished(tmp_path / "made", {"a": 1}, {"a": 1})
    assert not is_finished(tmp_path / "none", None, {"a": 1})
    assert "(different: a, b)" in refusal(is_finished, tmp_path / "made", {"a": 1, "c": 0}, {"a": 2, "b": 3, "c": 0})


# ---- the analysis, as a scientist sees it


@pytest.fixture
def product(tmp_path):
    make_analysis(tmp_path / "analysis.zarr")
    return analysis.open_analysis(tmp_path / "analysis.zarr")


def some_members(n_members, n_days):
    return np.random.default_rng(0).normal(250, 10, (n_members, n_days, 3, 4, 8)).astype(np.float32)


def test_xarray_opens_an_analysis_with_its_coordinates(product):
    x = some_members(3, 4)
    product.write(np.arange(3), np.arange(4), x)
    product.finish()
    with xr.open_zarr(product.path, consolidated=True) as found:
        assert found.temperature.dims == ("member", "time", "level", "latitude", "longitude")
        assert found.olr.dims == ("member", "time", "latitude", "longitude")
        np.testing.assert_array_equal(found.time.values.astype("datetime64[D]"), days(4))
        np.testing.assert_array_equal(found.level, [500, 850])
        np.testing.assert_array_equal(found.latitude, SPEC.grid.latitude)
        axes = {name: found[name].attrs["axis"] for name in ("time", "level", "latitude", "longitude")}
        assert axes == {"time": "T", "level": "Z", "latitude": "Y", "longitude": "X"}
        assert found.member.attrs["standard_name"] == "realization"
        assert found.temperature.attrs["units"] == "K" and found.level.attrs["units"] == "hPa"
        assert found.temperature.attrs["standard_name"] == "air_temperature" and found.attrs["Conventions"] == "CF-1.11"
        np.testing.assert_array_equal(found.temperature, x[:, :, :2])
        np.testing.assert_allclose(found.temperature_mean, x[:, :, :2].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.olr_spread, x[:, :, 2].std(axis=0, ddof=1), rtol=1e-5)
        assert found.temperature.encoding["chunks"] == (1, 1, 2, 4, 8)


@pytest.mark.filterwarnings("ignore:Object at ledger")  # which is none of zarr's; gathered metadata leave it out
def test_what_is_not_drawn_yet_reads_as_missing(product):
    product.write(np.array([1]), np.array([2]), some_members(1, 1))
    with xr.open_zarr(product.path, consolidated=False) as found:
        drawn = np.isfinite(found.temperature).all(dim=("level", "latitude", "longitude")).values
    assert np.argwhere(drawn).tolist() == [[1, 2]] and not product.is_complete


def test_writers_of_different_members_and_days_touch_no_common_file(product):
    x = some_members(3, 4)
    before = set(files(product.path))
    product.write(np.array([0]), np.arange(4), x[:1])
    first = {path: path.read_bytes() for path in set(files(product.path)) - before}
    product.write(np.array([1, 2]), np.array([0, 1]), x[1:, :2])
    second = set(files(product.path)) - before - set(first)
    assert len(first) == 2 * 4 and len(second) == 2 * 2 * 2
    assert all(path.read_bytes() == data for path, data in first.items())


def test_the_ledger_tells_what_is_finished(product):
    assert product.finished("a") is None
    entry = {"members": [0], "days": [str(days(4)[0])], "crc32": {"olr": 7}}
    product.close_unit("a", entry)
    assert product.finished("a").items() >= entry.items() and product.finished("b") is None


def files(path: Path):
    return [p for p in path.rglob("*") if p.is_file()]


def test_a_copy_of_a_contract_is_the_contract(tmp_path):
    """No path is written into it."""
    for kind, (make, opened, _) in MAKERS.items():
        path = make(tmp_path / kind)
        shutil.move(path, tmp_path / "elsewhere" / kind)
        assert opened(tmp_path / "elsewhere" / kind).spec == SPEC
