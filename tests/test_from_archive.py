"""Shards and backgrounds: whole, of the archive that is there, and the same after whatever stopped them."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from archives import (  # noqa: F401 - fixtures among them
    assert_same_tree,
    made,
    wait_for,
    words,
)
from test_errors import spoil, write_prep

from data_prep.__main__ import main as prepare
from data_prep.background import drawn_anomalies
from slams.contracts.archive import open_archive

ROOT = Path(__file__).parents[1]


def test_a_background_is_drawn_from_whole_days(made):
    """All days of that season but one lack a modality in the train year."""
    archive = open_archive(made / "archive")
    season = np.arange("2001-01-01", "2001-01-31", dtype="datetime64[D]")
    missing = {"olr": [str(day) for day in season if day != np.datetime64("2001-01-10")]}
    archive = replace(archive, attributes=archive.attributes | {"missing_days": missing})
    day, whole = (archive.index_of(np.array([d], "datetime64[D]")) for d in ("2003-01-15", "2001-01-10"))
    expected = archive.read(whole) - archive.statistics().climatology(archive.time[whole])
    np.testing.assert_array_equal(drawn_anomalies(archive, day, 0), expected)
    nothing = {"olr": season.astype(str).tolist()}
    with pytest.raises(ValueError, match="2003-01-15: no train day within 15 days of its date is whole"):
        drawn_anomalies(replace(archive, attributes=archive.attributes | {"missing_days": nothing}), day, 0)


def test_a_background_holds_nothing_that_cannot_be(made, tmp_path):
    """A dry day less a part of another day's departure from the mean was less than no rain."""
    path = tmp_path / "background"
    assert prepare(["background", str(made / "prep.yaml"), f"background.path={path}"]) == 0
    found = open_archive(path)
    rain = found.read(slice(None))[:, found.spec.channels("precipitation")]
    assert np.nanmin(rain) == 0 and prepare(["check", str(path)]) == 0


def test_what_was_made_from_an_archive_does_not_outlive_it(made, tmp_path, capsys):
    """Raw files of a test year are corrected and the archive is made anew at the same place."""
    raw, prep = tmp_path / "raw", ["archive", "shards", "observe"]
    write_prep(tmp_path, raw)
    write_raw = yaml.safe_load((made / "prep.yaml").read_text())["archive"]["sources"]
    shutil.copytree(Path(write_raw["olr"]).parent, raw)
    config = str(tmp_path / "prep.yaml")
    assert [prepare([stage, config]) for stage in prep] == [0, 0, 0]
    assert [prepare([stage, config]) for stage in prep] == [0, 0, 0], "stand already"
    spoil(raw, "olr", lambda dataset: dataset.assign(olr=dataset.olr + 1), year=2003)
    shutil.rmtree(tmp_path / "archive")
    assert prepare(["archive", config]) == 0
    capsys.readouterr()
    for stage in prep[1:]:
        assert prepare([stage, config]) == 2
        said = capsys.readouterr().err
        assert "was made from another" in said and "remove it to make it anew" in said and said.count("\n") == 1


def test_shards_do_not_lose_days_that_an_archive_has_lost(made, tmp_path, capsys):
    for name in ("archive", "prep.yaml"):
        (shutil.copytree if name == "archive" else shutil.copy)(made / name, tmp_path / name)
    next((tmp_path / "archive" / "olr" / "c").rglob("*/0/0")).unlink()
    words = [f"archive.path={tmp_path / 'archive'}", f"shards.path={tmp_path / 'shards'}"]
    assert prepare(["shards", str(tmp_path / "prep.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert "a channel has no value, and the day is not listed as missing" in said and said.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_shards_by_two_processes_after_a_kill_are_the_same(made, tmp_path):
    """Ten shards, some of which stood when it was killed."""
    short = "shards.frames_per_shard=110"
    plain, killed = tmp_path / "plain" / "shards", tmp_path / "killed" / "shards"
    assert prepare(["shards", str(made / "prep.yaml"), f"shards.path={plain}", short]) == 0
    again = [sys.executable, "-m", "data_prep", "shards", str(made / "prep.yaml"), f"shards.path={killed}", short]
    process = subprocess.Popen(again, cwd=ROOT)
    wait_for(tmp_path / "killed" / "shards.marks", "frames-*.json", 3)
    process.kill()
    process.wait()
    assert subprocess.run([*again, "workers.processes=2"], cwd=ROOT, check=False).returncode == 0
    assert [path.name for path in killed.parent.iterdir()] == ["shards"]
    assert len(list(killed.glob("*.tar"))) == 10
    assert_same_tree(killed, plain, "manifest.json")


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_that_a_crash_of_the_machine_cut_are_written_again(made, tmp_path, monkeypatch, processes):
    """The mark is on the disk, and what was written is not, or not all of it, or is not what it was."""
    short = "shards.frames_per_shard=110"
    plain, cut = tmp_path / "plain" / "shards", tmp_path / "cut" / "shards"
    assert prepare(["shards", str(made / "prep.yaml"), f"shards.path={plain}", short]) == 0
    again = ["shards", str(made / "prep.yaml"), f"shards.path={cut}", short, f"workers.processes={processes}"]
    with monkeypatch.context() as stopped:
        stopped.setattr("data_prep.shards.write_manifest", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        assert prepare(again) == 2
    tars = sorted(cut.with_name("shards.partial").glob("*.tar"))
    tars[1].unlink()
    os.truncate(tars[2], 0)
    content = bytearray(tars[3].read_bytes())
    content[5000] ^= 1
    tars[3].write_bytes(content)
    assert prepare(again) == 0
    assert_same_tree(cut, plain, "manifest.json")
