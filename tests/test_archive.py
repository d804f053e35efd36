"""An archive is the same bytes whatever stopped its making, whoever made it, and however it grew."""

import hashlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cf_xarray  # noqa: F401 - the accessor
import numpy as np
import psutil
import pytest
import webdataset as wds
import xarray as xr
import yaml
import zarr
from test_errors import FILES, spoil, write_prep
from world import write_world

from data_prep.__main__ import main as prepare
from data_prep.background import drawn_anomalies
from data_prep.blocks import Writer, blocks
from data_prep.gather import Gatherer, gather
from data_prep.stats import Sums, fit_statistics
from data_prep.work import Work
from data_prep.workers import WorkersConfig, workers
from slams.contracts.archive import consolidate, open_archive
from slams.contracts.envelope import alone
from slams.contracts.shards import open_shards

ROOT = Path(__file__).parents[1]


def tree(folder):
    """Checksum of every file, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same_tree(left, right, document="zarr.json"):
    """But for its own path, which its attributes and so their checksum have, and the commit, which may change."""
    found, expected = tree(left), tree(right)
    own = '"(commit|document_sha256)": "[^"]*"'
    texts = [re.sub(own, "", (folder / document).read_text()) for folder in (left, right)]
    assert texts[0].replace(str(left), str(right)) == texts[1]
    del found[document], expected[document]
    assert found == expected


def words(folder, *more):
    return ["archive", str(folder / "prep.yaml"), *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory, planet):
    """An archive made in one go, under the name that every test's archive has."""
    folder = tmp_path_factory.mktemp("made")
    write_prep(folder, planet)
    assert prepare(words(folder)) == 0
    return folder


@pytest.fixture
def here(tmp_path, made):
    """A folder with the configuration of the archive, and a function that says whether what it holds is the same."""
    shutil.copy(made / "prep.yaml", tmp_path / "prep.yaml")
    place = f"archive.path={tmp_path / 'archive'}"

    def assert_same():
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "prep.yaml"]
        assert_same_tree(tmp_path / "archive", made / "archive")

    return place, assert_same


def start(folder, *more, **options):
    command = [sys.executable, "-m", "data_prep", *words(folder, *more)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **options)


def wait_for(path, pattern, count):
    for _ in range(6000):
        if len(list(path.glob(pattern))) >= count:
            return
        time.sleep(0.005)
    pytest.fail(f"{path}/{pattern} did not come")


def test_killed_between_two_blocks_and_gone_on_with_is_the_same_archive(tmp_path, here):
    place, assert_same = here
    for n_blocks in (1, 4, 7):
        process = start(tmp_path, place)
        wait_for(tmp_path / "archive.marks", "*-*.json", n_blocks)
        process.kill()
        process.wait()
        process.stderr.close()
        assert not (tmp_path / "archive").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "archive.marks").glob("*-*.json")}
    assert len(kept) >= 7 and prepare(words(tmp_path, place)) == 0
    assert_same()


@pytest.mark.slow
def test_killed_at_twenty_random_moments_is_the_same_archive(tmp_path, here):
    """Again and again from where the one before was killed; one that comes to its end is compared, and made anew."""
    place, assert_same = here
    began, chance, killed = time.monotonic(), random.Random(0), 0
    assert start(tmp_path, place).wait() == 0
    took = time.monotonic() - began
    while killed < 20:
        process = start(tmp_path, place)
        time.sleep(chance.uniform(0.2, 0.9) * took)
        process.kill()
        if process.wait() == 0:
            assert_same()
            shutil.rmtree(tmp_path / "archive")
        else:
            assert process.returncode == -signal.SIGKILL
            killed += 1
    assert prepare(words(tmp_path, place)) == 0
    assert_same()


def test_two_processes_write_the_same_archive(tmp_path, here):
    place, assert_same = here
    process = start(tmp_path, place, "workers.processes=2")
    assert process.wait() == 0
    assert_same()


def test_what_a_process_is_at_is_done_when_another_has_failed(tmp_path):
    """The lock is released then: what still wrote would write into the work of whoever comes next."""
    with pytest.raises(RuntimeError, match="stopped"), workers(WorkersConfig(processes=2)) as in_order:
        in_order(slow_mark, [tmp_path / "begun", tmp_path / "too"])
        wait_for(tmp_path, "*.begun", 1)
        raise RuntimeError("stopped")
    assert {path.stem for path in tmp_path.glob("*.begun")} == {path.stem for path in tmp_path.glob("*.done")}


def slow_mark(path):
    path.with_suffix(".begun").touch()
    time.sleep(1)
    path.with_suffix(".done").touch()


def test_a_second_program_leaves_the_work_of_the_first_alone(tmp_path, here, capsys, monkeypatch):
    """With another configuration it would have removed what a living one writes, which would have gone on there."""
    place, assert_same = here
    with monkeypatch.context() as stopped:
        stopped.setattr("data_prep.archive._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        assert prepare(words(tmp_path, place)) == 2
    marks = sorted((tmp_path / "archive.marks").iterdir())
    capsys.readouterr()
    with alone(tmp_path / "archive"):
        assert prepare(words(tmp_path, place, "archive.decimals=3")) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/archive: process " in said and "is at work on it" in said and said.count("\n") == 1
    assert sorted((tmp_path / "archive.marks").iterdir()) == marks
    assert prepare(words(tmp_path, place)) == 0
    assert_same()


@pytest.mark.parametrize("stage", ["shards", "observe", "background"])
def test_no_stage_writes_what_another_program_writes(made, tmp_path, capsys, stage):
    there = tmp_path / "there" / "result"
    command = [stage, str(made / "prep.yaml"), f"{stage}.path={there}"]
    with alone(there):
        assert prepare(command) == 2 and "is at work on it" in capsys.readouterr().err
        assert [path.name for path in there.parent.iterdir()] == [".result.lock"]
    assert not list(there.parent.iterdir())


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_however_it_ends_none_of_its_processes_stays(tmp_path, here, by):
    """Interrupted as from a keyboard, which reaches all of them, or killed alone; then gone on with."""
    place, assert_same = here
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where a shell runs the tests in the background
    process = start(tmp_path, place, "workers.processes=2", start_new_session=True, preexec_fn=heard)
    wait_for(tmp_path / "archive.marks", "*-*.json", 1)
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 2
    (os.killpg if by == signal.SIGINT else os.kill)(process.pid, by)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if by == signal.SIGINT else -by)
    assert not psutil.wait_procs(others, timeout=30)[1]
    if by == signal.SIGINT:
        assert said.splitlines()[-1:] == ["data_prep archive: interrupted; the same command goes on from here"]
        assert "Traceback" not in said
    assert prepare(words(tmp_path, place)) == 0
    assert_same()


def test_an_error_in_another_process_is_the_same_sentence(tmp_path, planet):
    raw = tmp_path / "raw"
    shutil.copytree(planet, raw)
    write_prep(tmp_path, raw)
    path = spoil(raw, "temperature", lambda dataset: dataset.assign(t=(dataset.t - 273.15).assign_attrs(units="K")))
    process = start(tmp_path, "workers.processes=2")
    said = process.stderr.read()
    assert process.wait() == 2 and said.startswith("data_prep archive: ") and said.count("\n") == 1
    assert str(path) in said


@pytest.fixture(scope="module")
def four_years(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    write_world(folder / "raw", (2001, 2002, 2003, 2004), n_latitude=9, n_longitude=16)
    write_prep(folder, folder / "raw")
    return folder


def gone(raw, *years):
    for year in years:
        for name in FILES.values():
            (raw / f"{name}.{year}.nc").unlink()
    (raw / "static.nc").unlink()


@pytest.fixture
def longer(four_years, tmp_path):
    """Configuration and raw files of four years, in two runs, with a day missing in the first and in the last."""
    raw = tmp_path / "raw"
    shutil.copytree(four_years / "raw", raw)
    write_prep(tmp_path, raw)
    config = yaml.safe_load((tmp_path / "prep.yaml").read_text())
    config["archive"] |= {"missing_days_allowed": 2}
    config["archive"]["sources"]["static"] = f"{raw}/static.nc"
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    for year in (2001, 2004):
        spoil(raw, "temperature", lambda dataset: dataset.drop_isel(time=300), year)
    for year in (2003, 2004):
        spoil(raw, "temperature", lambda dataset: dataset.assign_attrs(simulation_run="second"), year)
    return tmp_path


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


@pytest.mark.parametrize("wrong", ["gone", "cut"])
def test_what_a_crash_of_the_machine_took_is_written_again(here, tmp_path, monkeypatch, capsys, wrong):
    """The mark of a block is on the disk and its chunk is not: it would read as missing values for ever."""
    place, assert_same = here
    monkeypatch.setattr("data_prep.archive._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert prepare(words(tmp_path, place)) == 2
    monkeypatch.undo()
    chunk = max((tmp_path / "archive.partial" / "olr" / "c").rglob("*/0/0"))  # of test years, whose days no fit reads
    chunk.unlink() if wrong == "gone" else os.truncate(chunk, 0)
    capsys.readouterr()
    assert prepare(words(tmp_path, place)) == 2 and not (tmp_path / "archive").exists()
    said = capsys.readouterr().err
    assert str(chunk) in said and "; the same command writes it again" in said and said.count("\n") == 1
    assert prepare(words(tmp_path, place)) == 0
    assert_same()


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


def test_a_cell_that_is_seldom_seen_departs_from_its_own_mean(longer):
    """As the sea where there is ice for most of the year: else its whole value would be its anomaly."""

    def frozen(dataset):
        dataset.olr[: int(0.6 * len(dataset.time)), : len(dataset.lat) // 4] = np.nan
        return dataset

    for year in (2001, 2002, 2003):
        spoil(longer / "raw", "olr", frozen, year=year)
    assert prepare(words(longer)) == 0 and prepare(["shards", str(longer / "prep.yaml")]) == 0
    archive, shards = open_archive(longer / "archive"), open_shards(longer / "shards")
    seldom = ~archive.statistics().observed[-1]
    x = np.stack([shards.read(frame)[-1][seldom] for frame in shards.frames])
    assert 0 < seldom.mean() < 0.5 and np.isfinite(x).any() and np.nanmax(abs(x)) < 6
    drawn = drawn_anomalies(archive, np.arange(300, 365, 8), 0)
    assert np.nanmax(abs(drawn[:, -1])) < 100


def test_a_missing_day_does_not_take_the_annual_cycle_away(longer):
    one_year = ["archive.train_years=[2001,2001]", "archive.validation_years=[2002,2002]"]
    alone_in_it = ["archive.sources.precipitation=''", "archive.sources.olr=''"]
    assert prepare(words(longer, *one_year, *alone_in_it)) == 0
    found = open_archive(longer / "archive")
    assert "2001-10-28" in found.attributes["missing_days"]["temperature"]
    assert len(found.statistics().harmonics) == 5 and abs(found.statistics().harmonics[1:]).max() > 1


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


@pytest.mark.parametrize(("stage", "document"), [("archive", "zarr.json"), ("shards", "manifest.json")])
def test_a_folder_that_was_made_beforehand_is_told(made, tmp_path, capsys, stage, document):
    path = tmp_path / "result"
    path.mkdir()
    for dry in ([], ["--dry-run"]):
        assert prepare([stage, str(made / "prep.yaml"), f"{stage}.path={path}", *dry]) == 2
        told = f"{path}: is there, and without {document}; remove it or choose another name"
        assert capsys.readouterr().err == f"data_prep {stage}: {told}\n"


def test_what_an_archive_lost_before_it_grew_is_told(longer, capsys):
    """Its days belong to the train years: they would be missing from the statistics and from the archive."""
    assert prepare(words(longer)) == 0
    chunk = next((longer / "archive" / "temperature" / "c").rglob("0/0/0/0"))
    chunk.unlink()
    assert prepare(words(longer, "archive.test_years=[2003,2004]")) == 2
    said, aside = capsys.readouterr().err, longer / "archive.partial"
    assert f"{aside / chunk.relative_to(longer / 'archive')}: 2001-01-01" in said and said.count("\n") == 1
    assert f"no such file; {longer / 'archive'} held it: put it back there, and remove {aside}" in said


def test_a_stop_after_the_last_write_is_gone_on_with(here, tmp_path, monkeypatch):
    """All is written and sealed, but does not have its name yet."""
    place, assert_same = here
    monkeypatch.setattr("data_prep.work.Work.become", lambda _: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert prepare(words(tmp_path, place)) == 2 and not (tmp_path / "archive").exists()
    monkeypatch.undo()
    assert prepare(words(tmp_path, place)) == 0
    open_archive(tmp_path / "archive")
    assert_same()


def test_what_had_the_name_before_does_not_stay_in_the_way(four_years, tmp_path):
    path = tmp_path / "archive"
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    (tmp_path / "archive.before" / "c").mkdir(parents=True)
    assert prepare(words(four_years, f"archive.path={path}")) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


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


def test_work_whose_removal_was_stopped_is_not_gone_on_with(tmp_path, monkeypatch):
    work = Work(tmp_path / "archive")
    work.aside.mkdir()
    work.begun({"years": 1})
    assert work.goes_on({"years": 1})
    monkeypatch.setattr("data_prep.work.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        work.goes_on({"years": 2})
    monkeypatch.undo()
    assert not work.goes_on({"years": 1})


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


def test_days_between_the_splits_may_be_missing(longer, capsys):
    for name in FILES.values():
        (longer / "raw" / f"{name}.2003.nc").unlink()
    later = "archive.test_years=[2004,2004]"
    assert prepare(words(longer, later, "archive.missing_days_allowed=1")) == 2
    said = "temperature: 2 of the 1096 days from 2001-01-01 to 2004-12-31 are missing (2001-10-28, 2004-10-27)"
    assert said in capsys.readouterr().err
    assert prepare(words(longer, later)) == 0
    found = open_archive(longer / "archive")
    assert len(found.time) == 1461 and len(found.attributes["missing_days"]["olr"]) == 365
    assert prepare(["check", str(longer / "archive")]) == 0


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_day_without_a_value_is_a_missing_day(four_years, tmp_path, capsys, monkeypatch, allowed):
    raw = tmp_path / "raw"
    shutil.copytree(four_years / "raw", raw)
    write_prep(tmp_path, raw)

    def emptied(dataset):
        dataset.olr[200:202] = np.nan  # both halves of 11 April
        return dataset

    spoil(raw, "olr", emptied)
    status = prepare(words(tmp_path, f"archive.missing_days_allowed={allowed}"))
    if allowed:
        assert status == 0 and open_archive(tmp_path / "archive").attributes["missing_days"]["olr"] == ["2002-04-11"]
    else:
        assert status == 2 and "olr: 1 of the 1095 days" in capsys.readouterr().err
        with monkeypatch.context() as done:
            done.setattr(Writer, "__call__", lambda *_: pytest.fail("a finished block was written again"))
            assert prepare(words(tmp_path, "archive.missing_days_allowed=1")) == 0
        assert prepare(words(tmp_path)) == 2 and "olr: 1 of the 1095 days" in capsys.readouterr().err


def test_values_are_within_the_bound_that_the_archive_tells(made, planet, tmp_path):
    exact = tmp_path / "exact"
    assert prepare(words(made, f"archive.path={exact}", "archive.decimals=null")) == 0
    with xr.open_zarr(made / "archive") as rounded, xr.open_zarr(exact) as whole:
        for name in FILES:
            bound = rounded[name].attrs["loss_bound"]
            assert bound == 0.005 and "loss_bound" not in whole[name].attrs
            error = float(abs(rounded[name] - whole[name]).max().compute())
            assert bound / 4 < error <= bound
            assert (rounded[name].isnull() == whole[name].isnull()).all()


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


def test_full_disk(tmp_path, here):
    """The largest file that may be written is smaller than a chunk; then the disk is enlarged."""
    place, assert_same = here
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    process = start(tmp_path, place, preexec_fn=limit)
    said = process.stderr.read()
    assert process.wait() == 2 and said.startswith("data_prep archive: ") and said.count("\n") == 1
    assert not (tmp_path / "archive").exists()
    assert prepare(words(tmp_path, place)) == 0
    assert_same()


def test_further_variables_stand_beside_temperature(planet, tmp_path):
    """Geopotential on the levels, pressure at the surface: in the archive and in the shards, last in channel order."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for year in (2001, 2002, 2003):
        with xr.open_dataset(planet / f"era5_t.{year}.nc", decode_times=False) as found:
            z = (found.t * 200).assign_attrs(units="m**2 s**-2")
            sp = (found.t.isel({found.t.dims[1]: -1}, drop=True) * 350).assign_attrs(units="Pa")
            found.drop_vars("t").assign(z=z, sp=sp).to_netcdf(raw / f"further.{year}.nc")
    write_prep(tmp_path, planet)
    config = yaml.safe_load((tmp_path / "prep.yaml").read_text())
    one = {"files": f"{raw}/further.*.nc", "regrid": "bilinear"}
    config["archive"]["regrid"] = {"temperature": "bilinear"}
    config["archive"]["variables"] = [
        one | {"name": "geopotential", "standard_name": "geopotential", "units": "m**2 s**-2"}
        | {"short_names": ["geopotential", "z"], "valid_range": [-1e4, 4e5]},
        one | {"name": "pressure", "standard_name": "surface_air_pressure", "units": "Pa", "on_levels": False}
        | {"short_names": ["sp"], "valid_range": [3e4, 1.2e5]},
    ]  # fmt: skip
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    assert prepare(words(tmp_path)) == 0 and prepare(["shards", str(tmp_path / "prep.yaml")]) == 0
    archive = open_archive(tmp_path / "archive")
    assert archive.spec.names == ("temperature", "precipitation", "olr", "geopotential", "pressure")
    x = archive.read(slice(0, 50))
    np.testing.assert_allclose(x[:, 12:22], 200 * x[:, :10], atol=200 * 0.01)
    np.testing.assert_allclose(x[:, 22], 350 * x[:, 9], atol=350 * 0.01)
    assert open_shards(tmp_path / "shards").shape == (23, 8, 16)
    assert prepare(["observe", str(tmp_path / "prep.yaml")]) == 0


def test_a_further_variable_out_of_its_range_is_refused(planet, tmp_path, capsys):
    write_prep(tmp_path, planet)
    config = yaml.safe_load((tmp_path / "prep.yaml").read_text())
    config["archive"]["variables"] = [
        {"name": "t2m", "standard_name": "air_temperature", "units": "K", "files": f"{planet}/era5_t.*.nc"}
        | {"short_names": ["t"], "valid_range": [300, 320]}
    ]
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    assert prepare(words(tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"{planet}/era5_t.2001.nc" in said and "300 to 320" in said.replace(".0", "")


def test_other_tools_understand_it(made):
    """cf_xarray finds axes, standard names and units; webdataset reads the shards' samples."""
    with xr.open_zarr(made / "archive") as found:
        t = found.cf["air_temperature"]
        assert t.cf["T"].name == "time" and t.cf["Z"].attrs["units"] == "hPa" and t.dims[0] == "time"
        assert t.cf["latitude"].attrs["units"] == "degrees_north" and t.cf["longitude"].size == 16
        assert found.cf["toa_outgoing_longwave_flux"].attrs["units"] == "W m-2"
        assert str(found.time.values[0])[:10] == "2001-01-01" and found.time.size == 1095
    assert prepare(["shards", str(made / "prep.yaml"), f"shards.path={made / 'listed'}"]) == 0
    paths = sorted(map(str, (made / "listed").glob("*.tar")))
    keys = [sample["__key__"] for sample in wds.WebDataset(paths, shardshuffle=False)]
    assert keys == [str(day).replace("-", "") for day in found.time.values.astype("datetime64[D]")]


def gathered(path, kind="anomaly", log=False):
    """An archive, and the sums over its train days as its making gathers them."""
    archive, scratch = open_archive(path), path.with_name("sums")
    every = blocks(zarr.open_group(path, mode="r"), archive.spec.names, len(archive.time))
    sums, lost = gather(Gatherer(path, scratch, kind, log), every, map)
    assert lost == {} and list(scratch.iterdir()) == []
    return archive, sums


@pytest.mark.parametrize("span_days", [366, 20])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["anomaly", "scalar"])
def test_standard_deviations_are_those_of_the_values(made, monkeypatch, kind, log, span_days):
    """Of the departures where a channel is observed, and of the values themselves everywhere; rain has gaps."""
    monkeypatch.setattr("data_prep.gather.SPAN_DAYS", span_days)
    archive, sums = gathered(made / "archive", kind, log)
    found, global_std = fit_statistics(archive, sums, kind, {})
    days = archive.days("train")
    x = archive.read(days).astype(float)
    area = np.broadcast_to(archive.spec.grid.area_weights, x.shape)
    assert found.log1p.sum() == log and not found.observed.all()
    departures = found.standardise(x, archive.time[days])
    for c, name in enumerate(archive.spec.channel_names):
        seen = np.isfinite(x[:, c])
        whole = weighted_std(x[:, c][seen], area[:, c][seen])
        np.testing.assert_allclose(global_std[c], whole, rtol=1e-6, err_msg=name)
        seen &= found.observed[c]
        mean_square = np.average(departures[:, c][seen].astype(float) ** 2, weights=area[:, c][seen])
        np.testing.assert_allclose(mean_square, 1, rtol=1e-4, err_msg=name)


def test_days_without_any_value_take_no_matrix_a_cell(longer):
    """Of a modality of many levels that lacks a day each channel would take one, 0.2 GiB at 0.25 degrees."""
    assert prepare(words(longer)) == 0
    archive, sums = gathered(longer / "archive")
    assert archive.attributes["missing_days"]["temperature"] == ["2001-10-28"]
    n_days = {name: int(of.fit.pairs[0, 0]) for name, of in sums.items()}
    assert n_days == {"temperature": 364, "precipitation": 365, "olr": 365}
    assert not sums["temperature"].fit.lacking and list(sums["precipitation"].fit.lacking) == [0]  # the ocean


def test_what_no_train_day_has_is_refused(longer, capsys):
    (longer / "raw" / f"{FILES['precipitation']}.2001.nc").unlink()
    assert prepare(words(longer, "archive.missing_days_allowed=400")) == 2
    assert "precipitation is missing on every train day\n" in capsys.readouterr().err


def weighted_std(x, weight):
    return np.sqrt(np.average((x - np.average(x, weights=weight)) ** 2, weights=weight))


def test_sums_over_parts_add_up():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 2, 3, 4))
    x[generator.random(x.shape) < 0.3] = np.nan
    x[:, 1, 0, 0] = np.nan
    features = generator.normal(size=(60, 5))
    whole, parts = Sums.empty(3, 2, (3, 4)), []
    whole.add(x, features)
    for part in (slice(0, 25), slice(25, 26), slice(26, 60)):
        parts.append(Sums.empty(3, 2, (3, 4)))
        parts[-1].add(x[part], features[part])
    observed = whole.count > 0
    together = parts[0]
    together += parts[1]
    together += parts[2]
    found = together.solve()
    squares = together.squares(found)
    np.testing.assert_allclose(found, whole.solve(), rtol=1e-10, atol=1e-12)
    for c, i, j in np.ndindex(2, 3, 4):
        seen = np.isfinite(x[:, c, i, j])
        best = np.linalg.lstsq(features[seen, :3], x[seen, c, i, j], rcond=None)[0] if observed[c, i, j] else 0
        np.testing.assert_allclose(found[:, c, i, j], best, atol=1e-10)
        departures = x[seen, c, i, j] - features[seen, :3] @ found[:, c, i, j]
        np.testing.assert_allclose(squares[c, i, j], np.sum(departures**2), rtol=1e-9)
