"""An archive is the same bytes whatever stopped its making and whoever made it, and says what it holds and lacks."""

import os
import random
import resource
import shutil
import signal
import time
from functools import partial

import cf_xarray  # noqa: F401 - the accessor
import numpy as np
import psutil
import pytest
import webdataset as wds
import xarray as xr
import yaml
import zarr
from archives import (  # noqa: F401 - fixtures among them
    four_years,
    gone,
    here,
    longer,
    made,
    start,
    wait_for,
    words,
)
from test_errors import FILES, spoil, write_prep

from data_prep.__main__ import main as prepare
from data_prep.background import drawn_anomalies
from data_prep.blocks import Writer, blocks
from data_prep.gather import Gatherer, gather
from data_prep.stats import Sums, fit_statistics
from data_prep.work import Work
from data_prep.workers import WorkersConfig, workers
from slams.contracts.archive import open_archive
from slams.contracts.envelope import alone
from slams.contracts.shards import open_shards


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


@pytest.mark.parametrize(("stage", "document"), [("archive", "zarr.json"), ("shards", "manifest.json")])
def test_a_folder_that_was_made_beforehand_is_told(made, tmp_path, capsys, stage, document):
    path = tmp_path / "result"
    path.mkdir()
    for dry in ([], ["--dry-run"]):
        assert prepare([stage, str(made / "prep.yaml"), f"{stage}.path={path}", *dry]) == 2
        told = f"{path}: is there, and without {document}; remove it or choose another name"
        assert capsys.readouterr().err == f"data_prep {stage}: {told}\n"


def test_a_stop_after_the_last_write_is_gone_on_with(here, tmp_path, monkeypatch):
    """All is written and sealed, but does not have its name yet."""
    place, assert_same = here
    monkeypatch.setattr("data_prep.work.Work.become", lambda _: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert prepare(words(tmp_path, place)) == 2 and not (tmp_path / "archive").exists()
    monkeypatch.undo()
    assert prepare(words(tmp_path, place)) == 0
    open_archive(tmp_path / "archive")
    assert_same()


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
