"""On a full disk, whatever it is that does not fit, a stage says so in one sentence, and the same command goes on.

The largest file that may be written stands for the disk.
"""

import resource
import shutil
from contextlib import contextmanager

import pytest
from archives import assert_same_tree
from test_errors import folder, prepared, write_prep  # noqa: F401 - fixtures

from data_prep import archive
from data_prep.__main__ import main as prepare
from slams.contracts.archive import STATISTICS
from slams.contracts.shards import open_shards


@contextmanager
def disk_of(n_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full(capsys):
    """Run a stage on a disk on which no file larger than that fits; returns its one sentence."""

    def run(n_bytes, *words):
        with disk_of(n_bytes):
            status = prepare([str(word) for word in words])
        said = capsys.readouterr().err
        assert status == 2 and said.startswith(f"data_prep {words[0]}: ") and said.count("\n") == 1
        assert "cannot be written (" in said and "File too large" in said
        return said

    return run


def test_the_statistics_do_not_fit(tmp_path, planet, full, monkeypatch):
    """Every block does: the disk is full once the statistics are known, 36 kB."""
    write_prep(tmp_path, planet)
    fit = archive.fit_statistics

    def then_full(*arguments):
        found = fit(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return found

    monkeypatch.setattr(archive, "fit_statistics", then_full)
    said = full(10**9, "archive", tmp_path / "prep.yaml")
    assert f"{tmp_path}/archive.partial/{STATISTICS}: cannot be written (" in said
    assert not (tmp_path / "archive").exists()
    monkeypatch.undo()
    assert prepare(["archive", str(tmp_path / "prep.yaml")]) == 0
    kept, whole = tmp_path / "archive", tmp_path / "at_once"
    assert prepare(["archive", str(tmp_path / "prep.yaml"), f"archive.path={whole}"]) == 0
    assert_same_tree(kept, whole)


@pytest.mark.parametrize(
    ("stage", "result", "n_bytes", "file"),
    [
        ("shards", "shards", 100_000, "shards.partial/frames-00000.tar"),
        ("encode", "latents", 10_000, "latents.partial/frames-00000.tar"),
        ("shards", "shards", 32_000, "shards.partial/statistics.safetensors"),
        ("encode", "latents", 30_000, "latents.partial/statistics.safetensors"),
        ("shards", "shards", 60_000, "shards.partial/manifest.json"),
    ],
)
def test_shards_do_not_fit(folder, full, stage, result, n_bytes, file):
    """A tar of them; the statistics or the manifest, where the tars are small. Then the disk is enlarged."""
    words = [stage, folder / "prep.yaml"]
    if not file.endswith(".tar"):
        words.append(f"{stage}.frames_per_shard=4")
    shutil.rmtree(folder / result)
    assert f"{folder}/{file}: cannot be written (" in full(n_bytes, *words)
    assert not (folder / result).exists()
    assert prepare([str(word) for word in words]) == 0
    assert not list(folder.glob(f"{result}.*"))
    assert len(open_shards(folder / result).frames) == 1095 and prepare(["check", str(folder / result)]) == 0
