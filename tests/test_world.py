"""The sample world: planning, supervision and arithmetic without the model; one slow test with it."""

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep import gcm, world
from data_prep.world import WorldConfig
from slams.contracts.envelope import alone

REPOSITORY = Path(__file__).parents[1]
GCM_PYTHON = REPOSITORY / ".venv-world" / "bin" / "python"
GOOD = {"first_year": 1982, "last_year": 1988, "run_years": 3, "truncation": 21}

# Stands in for the model's interpreter: reads the job, plays each year, and obeys the hook of the test.
FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path

job = json.loads(sys.stdin.readline())
Path({folder!r}, f"pid-{{job['first_year']}}").write_text(str(os.getpid()))
Path(job["static"]).write_text("static")
for year in job["years"]:
    print(json.dumps(dict(event="begin", year=year["year"])), flush=True)
    {hook}
    for name in ("temperature", "precipitation", "longwave", "end_state"):
        with open(year[name], "a") as file:
            file.write(job["run"])
    print(json.dumps(dict(event="days", count=365)), flush=True)
    print(json.dumps(dict(event="year", year=year["year"], cpu_s=1, peak_mib=1, t500_k=257, t500_eddy_k=3,
                          rain_mm_day=3, olr_w_m2=240)), flush=True)
"""


def make(folder: Path, **change) -> WorldConfig:
    return WorldConfig(**{"folder": str(folder / "world"), **GOOD, **change})


def fake(folder: Path, hook: str = "pass", **change) -> WorldConfig:
    """A configuration whose model is the stand-in."""
    script = folder / "model"
    script.write_text(FAKE.format(python=sys.executable, folder=str(folder), hook=hook))
    script.chmod(0o755)
    return make(folder, python=str(script), **change)


def pretend_done(year: world.YearFiles) -> None:
    for path in (year.temperature, year.precipitation, year.longwave, year.end_state):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# ---------------------------------------------------------------- configuration and planning


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": ""}, "folder is ''"),
        ({"first_year": 1979}, "first_year is 1979, allowed: 1980 to 2012"),
        ({"last_year": 2013}, "last_year is 2013"),
        ({"last_year": 1981}, "last_year is 1981, allowed: first_year"),
        ({"run_years": 0}, "run_years is 0"),
        ({"truncation": 30}, "truncation is 30, allowed: 21, 31 or 42"),
        ({"seed": -1}, "seed is -1"),
        ({"jobs": -2}, "jobs is -2"),
        ({"python": ""}, "python is ''"),
        ({"precipitation_step_deg": 0.7}, "precipitation_step_deg is 0.7"),
        ({"precipitation_step_deg": 0.1}, "precipitation_step_deg is 0.1"),
    ],
)
def test_config_names_field_value_and_range(change, said):
    with pytest.raises(ValueError, match=said):
        WorldConfig(**{"folder": "w", **GOOD, **change})


def test_runs_cover_the_years_once_and_ignore_jobs(tmp_path):
    runs = world.world_runs(make(tmp_path, jobs=1))
    assert runs == world.world_runs(make(tmp_path, jobs=7))
    years = [[year.year for year in run.years] for run in runs]
    assert years == [[1982, 1983, 1984], [1985, 1986, 1987], [1988]]
    assert [run.seed for run in runs] == [0, 1, 2]
    assert [run.name for run in runs] == ["seed 0, 1982-1984", "seed 1, 1985-1987", "seed 2, 1988-1990"]


def test_asking_for_more_years_changes_none_of_the_earlier(tmp_path):
    short, long = (world.world_years(make(tmp_path, last_year=last)) for last in (1986, 1990))
    assert long[: len(short)] == short


def test_states_chain_within_a_run_and_not_across(tmp_path):
    for run in world.world_runs(make(tmp_path)):
        for before, after in zip(run.years, run.years[1:], strict=False):
            assert before.end_state == after.start_state
    years = world.world_years(make(tmp_path))
    assert years[2].end_state != years[3].start_state


def test_a_deleted_year_alone_is_done_again(tmp_path):
    config = make(tmp_path)
    for year in world.world_years(config):
        pretend_done(year)
    (Path(config.folder) / "static.nc").touch()
    assert world.pending_runs(config) == []
    assert world.plan(config)[-1] == "nothing to do"
    world.world_years(config)[4].precipitation.unlink()
    (run,) = world.pending_runs(config)
    assert [year.year for year in run.missing] == [1986]
    assert run.missing_days == 365
    assert "  seed 1, 1985-1987: done 1985 1987; to do 1986" in world.plan(config)


def test_a_year_without_its_end_state_is_not_done(tmp_path):
    year = world.world_years(make(tmp_path))[0]
    pretend_done(year)
    year.end_state.unlink()
    assert not year.done


def test_spin_up_is_counted_until_its_state_is_there(tmp_path):
    run = world.world_runs(make(tmp_path, first_year=1983, last_year=1984))[0]
    assert run.missing_days == 122 + 365 + 366
    run.years[0].start_state.parent.mkdir(parents=True)
    run.years[0].start_state.touch()
    assert run.missing_days == 365 + 366


# ---------------------------------------------------------------- supervision of a stand-in


def test_a_world_is_made_and_then_left_alone(tmp_path):
    config = fake(tmp_path)
    world.run(config)
    assert world.plan(config)[-1] == "nothing to do"
    before = {year: year.temperature.stat().st_mtime_ns for year in world.world_years(config)}
    world.run(config)
    assert before == {year: year.temperature.stat().st_mtime_ns for year in world.world_years(config)}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be listed here")
def test_no_more_processes_than_cores_or_jobs_and_each_has_its_core(tmp_path):
    config = make(tmp_path)
    pending, mine = world.pending_runs(config), sorted(os.sched_getaffinity(0))
    assert world._cores(config, pending) == mine[: len(pending)]
    assert world._cores(dataclasses.replace(config, jobs=1), pending) == mine[:1]
    assert world._job(config, pending[0], 5)["core"] == 5


def test_a_dead_child_is_one_sentence_and_takes_the_others_with_it(tmp_path):
    hook = """
    if year["year"] == 1983:
        while not Path(job["static"]).with_name("precip.1986.nc").exists(): time.sleep(0.01)
        sys.exit("the model blew up")
    if year["year"] == 1987: time.sleep(1000)"""
    config = fake(tmp_path, hook, last_year=1987, jobs=2)
    if len(world._cores(config, world.pending_runs(config))) < 2:
        pytest.skip("needs two cores")
    message = r"the simulation of 1983 \(seed 0, 1982-1984\) ended with status 1; .*: the model blew up"
    with pytest.raises(RuntimeError, match=message):
        world.run(config)
    pid = int((tmp_path / "pid-1985").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_same_command_goes_on_after_a_death(tmp_path):
    with pytest.raises(RuntimeError, match="1983"):
        world.run(fake(tmp_path, 'if year["year"] == 1983: os.kill(os.getpid(), 9)', jobs=1))
    config = fake(tmp_path)
    assert [year.year for year in world.world_years(config) if year.done] == [1982]
    world.run(config)
    assert {year.temperature.read_text() == year.run for year in world.world_years(config)} == {True}


def test_a_child_that_ends_without_its_years_is_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 0"):
        world.run(fake(tmp_path, "break"))


def test_static_fields_alone_are_made_again(tmp_path):
    config = fake(tmp_path)
    world.run(config)
    static = Path(config.folder) / "static.nc"
    static.unlink()
    world.run(config)
    assert static.exists()


def test_two_worlds_are_not_mixed_in_a_folder(tmp_path):
    world.run(fake(tmp_path))
    with pytest.raises(ValueError, match=r"seed is 1, but folder .* holds a world with 0"):
        world.run(fake(tmp_path, seed=1))


def test_a_missing_environment_says_how_to_build_it(tmp_path):
    with pytest.raises(ValueError, match=r"make \.venv-world"):
        world.run(make(tmp_path, python=str(tmp_path / "absent")))


def test_a_second_driver_is_refused(tmp_path):
    config = fake(tmp_path)
    with (
        alone(config.folder, Path(config.folder) / ".state" / "lock"),
        pytest.raises(ValueError, match=f"{config.folder}: process {os.getpid()} of .* is at work"),
    ):
        world.run(config)


def test_the_model_ends_when_its_driver_is_gone():
    program = "import time; from data_prep import gcm; gcm.die_with_driver(); print('up', flush=True); time.sleep(99)"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.stdin.close()
        assert process.wait(timeout=20) == 1


def test_a_log_gets_one_line_a_year_with_the_remaining_time(tmp_path):
    text = io.StringIO()
    config = make(tmp_path, last_year=1983)
    event = {
        "event": "year",
        "year": 1982,
        "cpu_s": 41.2,
        "peak_mib": 900,
        "t500_k": 257.0,
        "t500_eddy_k": 3.0,
        "rain_mm_day": 2.75,
        "olr_w_m2": 233.0,
    }
    with world.Meter(2, world.pending_runs(config), Console(file=text, soft_wrap=True)) as meter:
        for name, said in (("begin", {"year": 1982}), ("days", {"count": 10}), ("days", {"count": 10})):
            meter.hear("seed 0", {"event": name, **said})
        meter.hear("seed 0", event)
        meter.hear("seed 0", {**event, "year": 1983})
    lines = text.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("1982 (seed 0): 41 CPU s")
    assert lines[1].endswith("min left")
    assert lines[2].endswith("2 of 2 years, complete")


# ---------------------------------------------------------------- arithmetic


def test_to_pressure_equals_the_closed_form():
    sigma = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
    surface = np.random.default_rng(0).uniform(520, 1050, (2, 3, 4))
    a, b = 280.0, 21.0  # T = a + b ln(p / 1000 hPa)
    pressure = sigma[:, None, None] * surface[:, None]
    got = gcm.to_pressure(a + b * np.log(pressure / 1000), surface, sigma)
    lowest = sigma[-1] * surface
    for j, level in enumerate(gcm.LEVELS_HPA):
        adiabat = (a + b * np.log(lowest / 1000)) * (level / lowest) ** (287.05 * 6.5e-3 / 9.80665)
        expected = np.where(level > lowest, adiabat, a + b * np.log(level / 1000))
        np.testing.assert_allclose(got[:, j], expected, rtol=1e-12)


def test_regrid_keeps_linear_fields_wraps_and_has_one_value_at_each_pole():
    source = gcm.Grid(np.arange(0, 360, 15.0), np.linspace(-87, 87, 30))
    target = gcm.Grid.regular(5.0, poles=True)
    assert target.latitude[0] == 90 and target.latitude[-1] == -90 and len(target.latitude) == 37
    field = np.broadcast_to(source.latitude, (24, 30))
    inside = np.clip(target.latitude, -87, 87)[:, None] + 0 * target.longitude
    np.testing.assert_allclose(gcm.regrid(field, source, target), inside, atol=1e-5)
    wave = np.cos(np.deg2rad(source.longitude))[:, None] + 0 * source.latitude
    got = gcm.regrid(wave, source, target)
    np.testing.assert_allclose(got[:, 71], got[:, 1], atol=1e-6)  # 355 degrees east mirrors 5
    np.testing.assert_allclose(got[[0, -1]], 0, atol=1e-6)


def test_cell_centres_stay_off_the_poles():
    grid = gcm.Grid.regular(2.5, poles=False)
    assert (len(grid.latitude), len(grid.longitude)) == (72, 144)
    assert grid.latitude[0] == 88.75 and grid.latitude[-1] == -88.75 and grid.longitude[0] == 1.25


@pytest.mark.parametrize(
    ("name", "shape"), [("temperature", (365, 10, 3, 4)), ("precipitation", (365, 2, 4)), ("longwave", (730, 3, 4))]
)
def test_a_written_year_reads_back_and_is_never_half(tmp_path, name, shape):
    import xarray as xr

    product, path = gcm.PRODUCTS[name], tmp_path / "file.nc"
    grid = gcm.Grid.regular(90.0, poles=name != "precipitation")
    values = np.random.default_rng(0).uniform(200, 300, shape).astype(np.float32)
    if name == "precipitation":
        values[:, 0, 0] = np.nan
    gcm.save_yearly(product, gcm.yearly(product, 1983, values, grid), path)
    assert [file.name for file in tmp_path.iterdir()] == ["file.nc"]
    with xr.open_dataset(path) as dataset:
        np.testing.assert_allclose(dataset[product.variable], values, atol=0.0051)
        last = np.datetime64("1983-12-31T12" if name == "longwave" else "1983-12-31T00")
        assert dataset.time.values[-1] == last
    with xr.open_dataset(path, mask_and_scale=False) as raw:
        assert raw[product.variable].dtype == (np.float32 if name == "precipitation" else np.int16)


# ---------------------------------------------------------------- the real model


def digests(folder: str) -> dict[str, str]:
    files = [*Path(folder).glob("*.nc"), *Path(folder).glob(".state/*.msgpack")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def drive(config: WorldConfig) -> subprocess.Popen:
    program = "import json, sys; from data_prep.world import *; run(WorldConfig(**json.loads(sys.argv[1])))"
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))]
    return subprocess.Popen(command, cwd=REPOSITORY)


def kill_when(config: WorldConfig, condition) -> None:
    """Start the driver and kill it without warning as soon as the condition holds."""
    process = drive(config)
    while not condition():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not GCM_PYTHON.exists(), reason="no model environment: make .venv-world")
def test_killed_twice_and_resumed_equals_uninterrupted(tmp_path):
    tiny = {"first_year": 1983, "last_year": 1984, "run_years": 2, "python": str(GCM_PYTHON)}
    whole, broken = (make(tmp_path / name, **tiny) for name in ("whole", "broken"))
    assert drive(whole).wait() == 0
    first, second = world.world_years(broken)
    kill_when(broken, first.precipitation.exists)  # while the files of a year are being written
    kill_when(broken, lambda: first.done and time.time() - first.end_state.stat().st_mtime > 10)
    assert first.done and not second.done
    assert drive(broken).wait() == 0
    assert len(digests(whole.folder)) == 2 * 3 + 1 + 3
    assert digests(broken.folder) == digests(whole.folder)
