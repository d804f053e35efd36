"""An archive that stands: whether it is still what its raw files give, and how it grows by new years."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from archives import (  # noqa: F401 - fixtures among them
    assert_same_tree,
    four_years,
    gone,
    longer,
    made,
    start,
    tree,
    wait_for,
    words,
)
from test_errors import FILES, spoil

from data_prep.__main__ import main as prepare
from data_prep.blocks import Writer
from data_prep.work import Work
from slams.contracts.archive import consolidate, open_archive


def test_an_archive_that_grew_is_the_one_made_at_once(longer, tmp_path):
    """With what it held from the archive itself: the raw files of those years are gone by then. Also after a stop."""
    at_once, grown, raw = tmp_path / "at_once", tmp_path / "grown", longer / "raw"
    years = "archive.test_years=[2003,2004]"
    assert prepare(words(longer, f"archive.path={at_once}", years)) == 0
    assert prepare(words(longer, f"archive.path={grown}")) == 0
    before = open_archive(grown)
    assert before.attributes["missing_days"]["temperature"] == ["2001-10-28"] and before.run.max() == 1
    gone(raw, 2001, 2002, 2003)
    process = start(longer, f"archive.path={grown}", years)
    wait_for(tmp_path / "grown.marks", "*-*.json", 1)
    process.kill()
    process.wait()
    assert len(open_archive(grown).time) == len(before.time)  # still there for those who read it
    assert prepare(words(longer, f"archive.path={grown}", years)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once", "grown", "prep.yaml", "raw"]
    assert_same_tree(grown, at_once)
    found = open_archive(grown)
    assert found.attributes["missing_days"]["temperature"] == ["2001-10-28", "2004-10-27"]
    assert (found.run == np.repeat([0, 1], [730, 731])).all()
    assert prepare(["check", str(grown)]) == 0


@pytest.mark.parametrize("more", [[], ["archive.test_years=[2003,2004]"]])
@pytest.mark.parametrize("name", [*FILES, "static"])
def test_raw_files_that_changed_do_not_pass_for_those_it_was_made_of(longer, capsys, name, more):
    """It neither stands nor grows silently; those that are gone are no matter, nor are those that nobody used."""
    assert prepare(words(longer)) == 0
    before = tree(longer / "archive")
    gone(longer / "raw", 2001)
    assert prepare(words(longer)) == 0
    path = longer / "raw" / (f"{FILES[name]}.2002.nc" if name in FILES else "static.nc")
    path.write_bytes(b"another")
    assert prepare(words(longer, *more)) == 2
    said = capsys.readouterr().err
    assert f"{path}: has changed since {longer}/archive was made of it; remove {longer}/archive to build" in said
    assert said.count("\n") == 1 and tree(longer / "archive") == before
    path.unlink()
    assert prepare(words(longer)) == 0 and tree(longer / "archive") == before


def test_a_file_that_was_only_touched_is_told_how_to_be_itself_again(longer, capsys):
    """As on a disk that is swept of what nobody touches."""
    assert prepare(words(longer)) == 0
    path = longer / "raw" / f"{FILES['olr']}.2002.nc"
    path.touch()
    assert prepare(words(longer)) == 2
    command = capsys.readouterr().err.split("its time is new: ")[1]
    subprocess.run(shlex.split(command), check=True)
    assert prepare(words(longer)) == 0
    path.write_bytes(path.read_bytes() + b"more")
    assert prepare(words(longer)) == 2 and "touch" not in capsys.readouterr().err


def test_a_file_that_gives_no_day_of_the_period_is_no_matter(longer, capsys, monkeypatch):
    """This year's, which the provider replaces every day: neither for what stands nor for work that goes on."""
    shift = lambda dataset: dataset.assign(olr=dataset.olr + 1)  # noqa: E731
    with monkeypatch.context() as stopped:
        stopped.setattr("data_prep.archive._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        assert prepare(words(longer)) == 2
    spoil(longer / "raw", "olr", shift, year=2004)
    with monkeypatch.context() as done:
        done.setattr(Writer, "__call__", lambda *_: pytest.fail("a finished block was written again"))
        assert prepare(words(longer)) == 0
    assert "made anew" not in capsys.readouterr().out
    listed = json.loads((longer / "archive" / "raw_files.json").read_text())
    assert [Path(path).name for path, *_ in listed["olr"]] == [f"olr.2xdaily.{year}.nc" for year in (2001, 2002, 2003)]
    spoil(longer / "raw", "olr", shift, year=2004)
    assert prepare(words(longer)) == 0
    assert prepare(words(longer, "archive.test_years=[2003,2004]")) == 0


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_that_got_new_days_is_the_same_and_one_written_anew_is_not(longer, tmp_path, capsys, zarr_format):
    """Google's ERA5 says in the attributes of the store how far it has come, and so in its gathered metadata."""
    store, place = tmp_path / "t.zarr", [f"archive.sources.temperature={tmp_path}/t.zarr"]
    with xr.open_mfdataset(str(longer / "raw" / "era5_t.*.nc"), decode_times=False) as found:
        whole = found.drop_attrs().assign(t=found.t.assign_attrs(units="K")).drop_encoding()
        whole = whole.assign_coords({name: found[name] for name in found.coords}).load()

    def write():
        whole.to_zarr(store, mode="w", zarr_format=zarr_format, consolidated=False)
        consolidate(store)

    write()
    assert prepare(words(longer, *place)) == 0
    zarr.open_group(store, use_consolidated=False).attrs["valid_time_stop"] = "2004-12-31"
    consolidate(store)
    assert prepare(words(longer, *place)) == 0
    assert prepare(words(longer, *place, "archive.test_years=[2003,2004]")) == 0
    write()
    assert prepare(words(longer, *place, "archive.test_years=[2003,2004]")) == 2
    assert f"{store}: has changed since" in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_read_is_refused(longer, capsys, monkeypatch):
    complete, path = Work.complete, longer / "raw" / f"{FILES['olr']}.2002.nc"

    def replaced_meanwhile(*given):
        told = complete(*given)
        os.utime(path, ns=(0, 0))
        return told

    monkeypatch.setattr(Work, "complete", replaced_meanwhile)
    assert prepare(words(longer)) == 2
    assert f"{path}: has changed while {longer}/archive was made of it" in capsys.readouterr().err
    assert not (longer / "archive").exists()
    monkeypatch.undo()
    assert prepare(words(longer)) == 0
    assert re.search(r"/archive: \d+ finished parts are made anew \(different: files\)\n", capsys.readouterr().out)


def test_the_list_of_raw_files_has_a_checksum(longer, capsys):
    assert prepare(words(longer)) == 0
    listed = longer / "archive" / "raw_files.json"
    assert sorted(json.loads(listed.read_text())) == ["olr", "precipitation", "static", "temperature"]
    listed.write_text(listed.read_text().replace("2002", "2012"))
    assert prepare(words(longer)) == 2 and f"{listed}: the checksum does not match" in capsys.readouterr().err
    assert prepare(["check", str(longer / "archive")]) == 1


def test_missing_days_of_what_grew_count_together(longer, capsys):
    one = "archive.missing_days_allowed=1"
    assert prepare(words(longer, one)) == 0
    gone(longer / "raw", 2001, 2002)
    assert prepare(words(longer, one, "archive.test_years=[2003,2004]")) == 2
    assert "2 of the 1461 days from 2001-01-01 to 2004-12-31 are missing (2001-10-28, 2004-10-27)" in (
        capsys.readouterr().err
    )


def test_an_archive_of_another_form_is_not_touched(made, capsys):
    before = tree(made / "archive")
    for word in ("archive.test_years=[2003,2004]", "archive.decimals=3"):
        longer = ["archive.n_longitude=32"] if "years" in word else []
        assert prepare(words(made, word, *longer)) == 2
        assert "was made with another configuration" in capsys.readouterr().err
    assert tree(made / "archive") == before


def test_a_stop_between_the_last_two_names_is_mended(four_years, tmp_path):
    path = tmp_path / "archive"
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    expected = tree(path)
    path.rename(tmp_path / "archive.before")
    (tmp_path / "archive.marks").mkdir()
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    assert tree(path) == expected and [p.name for p in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize("left", ["nothing", "the old one", "an empty one"])
def test_a_crash_while_an_archive_grows_takes_nothing_of_it(longer, tmp_path, monkeypatch, left):
    """Of a chunk with days of both: the mark is on the disk, what was written is not, and old raw files are gone."""
    years, at_once, raw = "archive.test_years=[2003,2004]", tmp_path / "at_once", longer / "raw"
    assert prepare(words(longer, f"archive.path={at_once}", years)) == 0
    assert prepare(words(longer)) == 0
    gone(raw, 2001, 2002, 2003)
    with monkeypatch.context() as stopped:
        stopped.setattr("data_prep.archive._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        assert prepare(words(longer, years)) == 2
    old = open_archive(longer / "archive")
    days = zarr.open_group(longer / "archive", mode="r")["temperature"].chunks[0]
    assert len(old.time) % days
    name = f"temperature/c/{len(old.time) // days}/0/0/0"
    chunk = longer / "archive.partial" / name
    assert chunk.read_bytes() != (longer / "archive" / name).read_bytes()
    chunk.unlink()
    if left != "nothing":
        chunk.write_bytes((longer / "archive" / name).read_bytes() if left == "the old one" else b"")
    assert prepare(words(longer, years)) == 2
    assert prepare(words(longer, years)) == 0
    assert_same_tree(longer / "archive", at_once)


def test_an_archive_that_grows_has_lost_what_it_must_grow_from(longer, capsys):
    assert prepare(words(longer)) == 0
    n_days = len(open_archive(longer / "archive").time)
    days = zarr.open_group(longer / "archive", mode="r")["temperature"].chunks[0]
    chunk = longer / "archive" / f"temperature/c/{n_days // days}/0/0/0"
    chunk.unlink()
    assert prepare(words(longer, "archive.test_years=[2003,2004]")) == 2
    said = capsys.readouterr().err
    assert f"{chunk}: 2003-" in said and "no such file; put it back there" in said and said.count("\n") == 1


def test_an_archive_that_was_moved_is_the_same_one(longer, tmp_path, capsys):
    """It stands, what was made from it stands, and it grows."""
    assert prepare(words(longer)) == 0 and prepare(["shards", str(longer / "prep.yaml")]) == 0
    moved = f"archive.path={tmp_path / 'elsewhere' / 'archive'}"
    (tmp_path / "elsewhere").mkdir()
    (longer / "archive").rename(tmp_path / "elsewhere" / "archive")
    before = tree(tmp_path / "elsewhere")
    assert prepare(words(longer, moved)) == 0 and prepare(["shards", str(longer / "prep.yaml"), moved]) == 0
    assert tree(tmp_path / "elsewhere") == before
    assert prepare(words(longer, moved, "archive.test_years=[2003,2004]")) == 0
    assert len(open_archive(tmp_path / "elsewhere" / "archive").time) == 1461


def test_an_archive_of_the_first_version_does_not_grow(longer, capsys):
    """It does not list all days that lack a level, which one of this version must."""
    assert prepare(words(longer)) == 0
    path = longer / "archive" / "zarr.json"
    found = json.loads(path.read_text())
    found["attributes"]["version"] = 1
    del found["attributes"]["document_sha256"]
    path.write_text(json.dumps(found))
    assert prepare(words(longer)) == 0
    assert prepare(words(longer, "archive.test_years=[2003,2004]")) == 2
    assert "archive: is of version 1, which cannot grow; choose another name" in capsys.readouterr().err


def test_what_an_archive_lost_before_it_grew_is_told(longer, capsys):
    """Its days belong to the train years: they would be missing from the statistics and from the archive."""
    assert prepare(words(longer)) == 0
    chunk = next((longer / "archive" / "temperature" / "c").rglob("0/0/0/0"))
    chunk.unlink()
    assert prepare(words(longer, "archive.test_years=[2003,2004]")) == 2
    said, aside = capsys.readouterr().err, longer / "archive.partial"
    assert f"{aside / chunk.relative_to(longer / 'archive')}: 2001-01-01" in said and said.count("\n") == 1
    assert f"no such file; {longer / 'archive'} held it: put it back there, and remove {aside}" in said


def test_what_had_the_name_before_does_not_stay_in_the_way(four_years, tmp_path):
    path = tmp_path / "archive"
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    (tmp_path / "archive.before" / "c").mkdir(parents=True)
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


def test_work_on_files_that_changed_begins_anew(four_years, tmp_path, capsys):
    path = tmp_path / "archive"
    process = start(four_years, f"archive.path={path}")
    wait_for(tmp_path / "archive.marks", "*-*.json", 2)
    process.kill()
    process.wait()
    spoil(four_years / "raw", "temperature", lambda dataset: dataset.assign(t=dataset.t + 1), year=2001)
    assert prepare(words(four_years, f"archive.path={path}", "workers.processes=1")) == 0
    assert "finished parts are made anew (different: files)" in capsys.readouterr().out
    again = tmp_path / "again"
    assert prepare(words(four_years, f"archive.path={again}")) == 0
    assert_same_tree(path, again)
