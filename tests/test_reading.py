"""Shards are read from a folder or from an object store, in few requests; damage stops a run, or is left out."""

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import boto3
import numpy as np
import pytest
from crew import ROOT, finish, joined, outside, start_crew
from moto.server import ThreadedMotoServer
from test_train import assert_same_result, lines, write_config, write_tiny_shards

from slams.contracts import shards as contract
from slams.contracts.shards import open_shards
from slams.contracts.storage import read_range
from train.__main__ import run
from train.damage import usable
from train.data import TRAIN, VALIDATION, DataConfig, Reader

KEYS = {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two", "AWS_DEFAULT_REGION": "us-east-1"}
SKIP = DataConfig(batch=6, damaged="skip")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture(scope="module")
def world():
    with joined() as found:
        yield found


@pytest.fixture(scope="module")
def store(shards):
    """An S3-compatible server on this machine that holds the shards in a bucket; what a client must know of it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    place = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())} | KEYS
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="archive")
        for path in shards.iterdir():
            client.upload_file(str(path), "archive", f"tiny/{path.name}")
        yield place
    server.stop()


def test_a_training_from_an_object_store_is_that_from_a_folder(tmp_path, shards, store):
    """Also by reading processes, forked from one that has talked to the store."""
    runs = {"folder": (shards, 0), "store": ("s3://archive/tiny", 0), "workers": ("s3://archive/tiny", 1)}
    jobs = []
    for name, (place, workers) in runs.items():
        config = write_config(tmp_path / name, place, steps=6, validate_every=6)
        jobs.append([[str(config), f"data.workers={workers}"], False])
    finish(start_crew(jobs, 2, "srun", **store))
    for name in ("store", "workers"):
        assert_same_result(tmp_path / "folder", tmp_path / name)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("s3://archive/nowhere", "s3://archive/nowhere/manifest.json: no such file"),
        ("s3://nobody/tiny", "s3://nobody/tiny/manifest.json: no such file"),
        ("pigeon://coop/tiny", "pigeon://coop/tiny: Unsupported filesystem: 'pigeon'"),
    ],
)
def test_a_store_without_shards_is_one_sentence(tmp_path, store, capsys, place, sentence):
    assert run([str(write_config(tmp_path, place))]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"slams-train: {sentence}") and said.count("\n") == 1


def test_a_store_that_does_not_answer_is_named(tmp_path):
    environment = outside() | KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "train", str(write_config(tmp_path, "s3://archive/tiny"))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("slams-train: s3://archive/tiny: cannot be read (")


def test_frames_that_lie_side_by_side_are_one_request(shards, monkeypatch):
    """Frames 14 to 17 lie in two shards; 15 is remembered when 15 to 18 are asked for."""
    asked, read = [], contract.read_range
    monkeypatch.setattr(contract, "read_range", lambda path, *bounds: asked.append(path.name) or read(path, *bounds))
    manifest = open_shards(shards)
    reader = Reader(manifest, 4, cache_frames=100)
    x = reader.windows(np.array([14]))
    assert asked == ["frames-00000.tar", "frames-00001.tar"]
    reader.windows(np.array([14, 15]))
    assert asked[2:] == ["frames-00001.tar"]
    reader.windows(np.array([14, 15]))
    assert len(asked) == 3
    np.testing.assert_array_equal(x[0], [manifest.read(manifest.frames[i]) for i in range(14, 18)])
    np.testing.assert_array_equal(x, Reader(manifest, 4, cache_frames=0).windows(np.array([14])))
    backwards = [manifest.frames[i] for i in (3, 2, 9)]
    for found, frame in zip(manifest.read_all(backwards), backwards, strict=True):
        np.testing.assert_array_equal(found, manifest.read(frame))


def test_a_frame_of_several_windows_is_read_once_and_by_its_own_checksum(shards, monkeypatch):
    """Windows of a batch that overlap, lie backwards, and are asked for twice, with no frame remembered."""
    manifest, asked, read = open_shards(shards), [], contract.read_range
    monkeypatch.setattr(contract, "read_range", lambda path, *bounds: asked.append(bounds) or read(path, *bounds))
    firsts = np.array([9, 2, 3, 9, 20])
    x = Reader(manifest, 3, cache_frames=0).windows(firsts)
    assert len(asked) == 3, "days 2 to 5, 9 to 11, 20 to 22"
    expected = [[manifest.read(manifest.frames[first + i]) for i in range(3)] for first in firsts]
    np.testing.assert_array_equal(x, expected)
    for frame in manifest.frames:
        content = manifest.files[frame.shard].read_bytes()[frame.offset : frame.offset + frame.size]
        assert zlib.crc32(content) == frame.crc32


def truncated(copy):
    path = copy / "frames-00000.tar"
    path.write_bytes(path.read_bytes()[: open_shards(copy).frames[12].offset + 5])
    return range(12, 16)


def flipped(copy):
    path = copy / "frames-00001.tar"
    data = bytearray(path.read_bytes())
    data[open_shards(copy).frames[20].offset + 40] ^= 1
    path.write_bytes(data)
    return [20]


def missing(copy):
    (copy / "frames-00001.tar").unlink()
    return range(16, 32)


@pytest.mark.parametrize("harm", [truncated, flipped, missing])
def test_no_window_has_a_damaged_frame_and_every_other_is_there(tmp_path, shards, world, harm):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    whole, bad = open_shards(shards), set(harm(copy))
    found = usable(open_shards(copy, complete=False), SKIP, world)
    assert found.unusable == bad
    for split, length in ((TRAIN, 4), (TRAIN, 1), (VALIDATION, 4)):
        expected = [w for w in whole.windows(split, length) if not bad & set(range(w, w + length))]
        np.testing.assert_array_equal(found.windows(split, length), expected)


def trained(folder):
    return [f"folder={folder / 'run'}", f"bundle={folder / 'bundle'}"]


def test_damage_stops_a_run_unless_it_is_to_be_left_out(tmp_path, shards, capsys):
    """Two processes, each of which finds some of the damage, leave out what one would."""
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    config = str(write_config(tmp_path, copy, steps=4, validate_every=4))
    bad = sorted([*flipped(copy), *truncated(copy)])
    words = [config, "data.damaged=skip"]
    assert run([*words, "--dry-run"]) == 0
    finish(start_crew([[[*words, *trained(tmp_path / "two")], False]], 2, "srun"))
    card = json.loads((tmp_path / "two" / "run" / "environment.json").read_text())
    assert card["damaged_days"] == [str(open_shards(shards).frames[i].time) for i in bad]
    assert run([*words, *trained(tmp_path / "one")]) == 0
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    capsys.readouterr()
    assert run([config, *trained(tmp_path / "stops")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("slams-train: ") and "frames-00000.tar: " in said and said.count("\n") == 1
    assert not (tmp_path / "stops" / "bundle").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_says_that_shards_are_damaged_may_not_be(tmp_path, shards, capsys, more):
    """A digit of the splits, with which the model would learn the years that it is judged by."""
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    document = json.loads((copy / "manifest.json").read_text())
    document["splits"]["train"] = [2001, 2005]
    (copy / "manifest.json").write_text(json.dumps(document))
    assert run([str(write_config(tmp_path, copy)), "data.damaged=skip", *more]) == 2
    assert "manifest.json: the checksum of its own content does not match" in capsys.readouterr().err


def test_a_read_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    """As beyond 2 GiB."""
    path, read = tmp_path / "file", os.pread
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(os, "pread", lambda file, size, start: read(file, min(size, 7), start))
    for start, stop in ((0, 100), (5, 40), (90, 200), (3, 3)):
        assert read_range(path, start, stop) == bytes(range(100))[start:stop]


def test_damage_that_leaves_no_window_is_refused(tmp_path, shards, capsys):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    for path in copy.glob("*.tar"):
        path.unlink()
    assert run([str(write_config(tmp_path, copy)), "data.damaged=skip"]) == 2
    assert "split 'train' holds no window of 4 consecutive days" in capsys.readouterr().err
