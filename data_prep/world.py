"""The sample world: an archive written by a real general circulation model, for work without a network.

The files have the form of the real providers' (ERA5 temperature on pressure levels, CPC gauge rain, NOAA
twice-daily longwave radiation), so everything downstream runs unchanged on either. They are simulated, not
observed, and say so.

The asked years are cut into runs of `run_years`. A run is one continuous simulation with its own seed and
spin-up; it is the unit of parallel work, one process on one core, and its content does not depend on how many
run at once. Each year ends with the model state on disk, so the same command goes on after any kind of stop
with the next missing year. Weather does not continue from one run to the next: no window of consecutive days
may cross that border, which each file marks by its attribute `simulation_run`.

This module plans and supervises; `data_prep/gcm.py` simulates, in an environment of its own. The two talk in
lines of JSON: one job down the child's standard input, events up its standard output; its standard error goes
to a log.
"""

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from slams.contracts.envelope import alone

GCM_PROGRAM = Path(__file__).with_name("gcm.py")
RECIPE = 1                                # raise it when the same configuration would give other numbers
FIRST_YEAR, LAST_YEAR = 1980, 2012        # the model's observed SST anomalies, with room for the spin-up
TEMPERATURE_STEP_DEG = {21: 5.625, 31: 3.75, 42: 2.8125}   # the model's longitudes, with rows on the poles
LONGWAVE_STEP_DEG = 2.5
SPIN_UP_DAYS = 122                        # from 1 September
MAX_RUNS = 100                            # so that two worlds with different seeds share no seed of a run

CPU_S_A_YEAR = {21: 50.0, 31: 217.0, 42: 430.0}   # measured on one pinned core of a busy server
START_CPU_S = 40.0                        # import and compilation, each process
LAST_WORDS = 3                            # lines of a dead child's log that go into the error


@dataclass(frozen=True)
class WorldConfig:
    """Which years of which sample world, and the means to make it."""

    folder: str
    first_year: int
    last_year: int
    run_years: int                        # length of one continuous simulation
    truncation: int                       # total wavenumber of the spectral core: 21, 31 or 42
    seed: int = 0
    jobs: int = 0                         # processes at once; 0 = one per core available
    python: str = ".venv-world/bin/python"
    precipitation_step_deg: float = 2.5

    def __post_init__(self) -> None:
        """Refuse what the model cannot do."""
        step = self.precipitation_step_deg
        self._allow("folder", bool(self.folder), "a path")
        self._allow("first_year", FIRST_YEAR <= self.first_year <= LAST_YEAR, f"{FIRST_YEAR} to {LAST_YEAR}")
        self._allow("last_year", self.first_year <= self.last_year <= LAST_YEAR,
                    f"first_year ({self.first_year}) to {LAST_YEAR}")
        self._allow("run_years", 1 <= self.run_years <= LAST_YEAR - FIRST_YEAR + 1,
                    f"1 to {LAST_YEAR - FIRST_YEAR + 1}")
        self._allow("truncation", self.truncation in TEMPERATURE_STEP_DEG, "21, 31 or 42")
        self._allow("seed", 0 <= self.seed < 10**6, "0 to 999999")
        self._allow("jobs", 0 <= self.jobs <= 1024, "0 (one per core) to 1024")
        self._allow("python", bool(self.python), "the interpreter of the model's environment")
        self._allow("precipitation_step_deg", 0.5 <= step <= 5 and (180 / step).is_integer(),
                    "0.5 to 5 degrees, a whole number of rows between the poles")

    def _allow(self, name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise ValueError(f"world: {name} is {getattr(self, name)!r}, allowed: {allowed}")


@dataclass(frozen=True)
class YearFiles:
    """The files of one simulated year, and the model states on its two ends."""

    year: int
    run: str                              # identity of the continuous simulation it belongs to
    temperature: Path
    precipitation: Path
    longwave: Path
    start_state: Path
    end_state: Path

    @property
    def days(self) -> int:
        """Length of the calendar year."""
        return (date(self.year + 1, 1, 1) - date(self.year, 1, 1)).days

    @property
    def done(self) -> bool:
        """All data files stand, and the state from which the next year starts."""
        files = (self.temperature, self.precipitation, self.longwave, self.end_state)
        return all(path.exists() for path in files)


@dataclass(frozen=True)
class Run:
    """One continuous simulation."""

    seed: int
    years: tuple[YearFiles, ...]

    @property
    def name(self) -> str:
        """Identity, as written into every file."""
        return self.years[0].run

    @property
    def missing(self) -> tuple[YearFiles, ...]:
        """Years to simulate, in order: the state before each is there or is left by the one before it."""
        return tuple(year for year in self.years if not year.done)

    @property
    def missing_days(self) -> int:
        """Days to simulate, spin-up included."""
        spin_up = SPIN_UP_DAYS * (not self.years[0].done and not self.years[0].start_state.exists())
        return spin_up + sum(year.days for year in self.missing)


def world_runs(config: WorldConfig) -> list[Run]:
    """The runs that make up the asked years: a function of first_year, last_year, run_years and seed only."""
    starts = range(config.first_year, config.last_year + 1, config.run_years)
    return [_run(config, config.seed * MAX_RUNS + number, start) for number, start in enumerate(starts)]


def world_years(config: WorldConfig) -> list[YearFiles]:
    """Every asked year with its files, in order of time."""
    return [year for run in world_runs(config) for year in run.years]


def _run(config: WorldConfig, seed: int, start: int) -> Run:
    """One run. It is named after its full length, so that asking for more years later does not rename it."""
    name = f"seed {seed}, {start}-{start + config.run_years - 1}"
    last = min(start + config.run_years - 1, config.last_year)
    return Run(seed, tuple(_year_files(config, name, start, year) for year in range(start, last + 1)))


def _year_files(config: WorldConfig, run: str, start: int, year: int) -> YearFiles:
    folder = Path(config.folder).absolute()
    return YearFiles(
        year=year,
        run=run,
        temperature=folder / f"era5_t.{year}.nc",
        precipitation=folder / f"precip.{year}.nc",
        longwave=folder / f"olr.2xdaily.{year}.nc",
        start_state=folder / ".state" / f"run{start}_start{year}.msgpack",
        end_state=folder / ".state" / f"run{start}_start{year + 1}.msgpack",
    )


def pending_runs(config: WorldConfig) -> list[Run]:
    """Runs with something to do; the first one also when only the static fields are missing."""
    runs = world_runs(config)
    static_missing = not _static(config).exists()
    return [run for run in runs if run.missing or (static_missing and run is runs[0])]


def _static(config: WorldConfig) -> Path:
    return Path(config.folder).absolute() / "static.nc"


def plan(config: WorldConfig, whole: object = None) -> list[str]:
    """What `run` would do, in lines for a human."""
    step, pending = TEMPERATURE_STEP_DEG[config.truncation], pending_runs(config)
    header = (f"sample world in {config.folder}: {config.first_year}-{config.last_year} at "
              f"T{config.truncation}, temperature on {round(180 / step) + 1} x {round(360 / step)} points")
    cost = sum(_cpu_s(config, run) for run in pending)
    footer = (f"to do: {sum(len(run.missing) for run in pending)} years in {len(pending)} runs, "
              f"about {cost / 60:.0f} CPU minutes, {len(_cores(config, pending))} at once, about 2 GB of memory each")
    return [header, *map(_describe, world_runs(config)), footer if pending else "nothing to do"]


def _describe(run: Run) -> str:
    missing = {year.year for year in run.missing}
    done = {year.year for year in run.years} - missing
    listed = [" ".join(map(str, sorted(years))) or "none" for years in (done, missing)]
    return f"  {run.name}: done {listed[0]}; to do {listed[1]}"


def _cpu_s(config: WorldConfig, run: Run) -> float:
    return START_CPU_S + run.missing_days / 365 * CPU_S_A_YEAR[config.truncation]


def _cores(config: WorldConfig, pending: list[Run]) -> list[int | None]:
    """One core for each process that will run at once; None where the system cannot pin."""
    cores: list[int | None] = [None] * (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cores = list(sorted(os.sched_getaffinity(0)))
    return cores[:min(config.jobs or len(cores), len(pending))]


def run(config: WorldConfig, whole: object = None) -> None:
    """Simulate what is missing. Of the whole configuration, which every stage is given, this one needs its own section.

    Raises ValueError for a mistake of the user's and RuntimeError when a simulation dies.
    """
    if not Path(config.python).exists():
        raise ValueError(f"world: python is {config.python!r}, which does not exist; "
                         "build the model's environment with `make .venv-world`")
    folder = Path(config.folder).absolute()
    (folder / ".state").mkdir(parents=True, exist_ok=True)
    with alone(folder, folder / ".state" / "lock"):
        _claim(folder, config)
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        pending = pending_runs(config)
        with Meter(len(world_years(config)), pending) as meter:
            _supervise(config, pending, meter)


def _claim(folder: Path, config: WorldConfig) -> None:
    """Write down which world the folder holds, or refuse to mix two worlds."""
    names = ("truncation", "seed", "first_year", "run_years", "precipitation_step_deg")
    asked = {"recipe": RECIPE, **{name: getattr(config, name) for name in names}}
    path = folder / "world.json"
    if not path.exists():
        aside = folder / ".world.json.part"
        aside.write_text(json.dumps(asked, indent=1) + "\n")
        aside.replace(path)
    found = json.loads(path.read_text())
    for name, value in asked.items():
        if found.get(name) != value:
            raise ValueError(f"world: {name} is {value!r}, but folder {folder} holds a world with "
                             f"{found.get(name)!r}; take another folder")


class Meter:
    """Progress: a bar on a terminal, one line a year in a log."""

    def __init__(self, years: int, pending: list[Run], console: Console | None = None) -> None:
        """Count days for the bar and years for the reader."""
        self.console = console or Console(soft_wrap=True)
        self.years, self.years_done = years, years - sum(len(run.missing) for run in pending)
        self.days, self.days_done = sum(run.missing_days for run in pending), 0
        self.first_day_s: float | None = None
        self.bar = Progress(
            TextColumn("sample world: {task.fields[years_done]} of {task.fields[years]} years"), BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal,
            speed_estimate_period=120)
        self.task = self.bar.add_task("", total=self.days, years=years, years_done=self.years_done)

    def __enter__(self) -> "Meter":
        """Show the bar."""
        self._print(f"sample world: {self.years_done} of {self.years} years are there")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()

    def hear(self, name: str, event: dict[str, Any]) -> None:
        """Take one event of the run called `name`."""
        if event["event"] == "days":
            self._advance(event["count"])
        elif event["event"] == "year":
            self.years_done += 1
            self.bar.update(self.task, years_done=self.years_done)
            self._print(self._line(name, event))

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def _advance(self, days: int) -> None:
        if self.first_day_s is None:
            self.first_day_s = time.monotonic()      # import and compilation are not part of the pace
        else:
            self.days_done += days
        self.bar.update(self.task, advance=days)

    def remaining_s(self) -> float:
        """Remaining time if the pace so far holds [s]."""
        elapsed_s = time.monotonic() - (self.first_day_s or time.monotonic())
        return elapsed_s * (self.days - self.days_done) / max(self.days_done, 1)

    def _line(self, name: str, event: dict[str, Any]) -> str:
        left = f"about {self.remaining_s() / 60:.0f} min left" if self.years_done < self.years else "complete"
        return (f"{event['year']} ({name}): {event['cpu_s']:.0f} CPU s, {event['peak_mib']} MiB; "
                f"T500 {event['t500_k']:.1f} K, eddies {event['t500_eddy_k']:.1f} K, "
                f"rain {event['rain_mm_day']:.2f} mm/day, OLR {event['olr_w_m2']:.1f} W/m2; "
                f"{self.years_done} of {self.years} years, {left}")


@dataclass
class Child:
    """A process that simulates one run."""

    run: Run
    core: int | None
    log: Path
    process: subprocess.Popen[str]
    year: int                             # the one it is in


Mail = queue.SimpleQueue[tuple[Child, str]]


def _supervise(config: WorldConfig, pending: list[Run], meter: Meter) -> None:
    """Keep every core busy until all runs have ended well; at the first failure end them all."""
    waiting, cores = list(pending), _cores(config, pending)
    mail: Mail = queue.SimpleQueue()
    alive: list[Child] = []
    try:
        while waiting or alive:
            while waiting and cores:
                alive.append(_start(config, waiting.pop(0), cores.pop(0), mail))
            child, line = mail.get()
            if line:
                event = json.loads(line)
                child.year = event.get("year", child.year)
                meter.hear(child.run.name, event)
            else:
                _check_end(child)
                alive.remove(child)
                cores.append(child.core)
    finally:
        for child in alive:
            child.process.kill()
            child.process.wait()


def _start(config: WorldConfig, run: Run, core: int | None, mail: Mail) -> Child:
    """Start a child, hand it its job, and forward its lines; an empty line means that it has ended."""
    log = run.years[0].start_state.with_name(f"run{run.years[0].year}.log")
    with log.open("w") as errors:
        # -P: the program's own folder must not shadow the modules of the model's environment.
        process = subprocess.Popen([config.python, "-P", str(GCM_PROGRAM)], env=_environment(), text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    child = Child(run, core, log, process, run.years[0].year)
    threading.Thread(target=_forward, args=(child, mail), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):               # it died already: its exit status will tell
        process.stdin.write(json.dumps(_job(config, run, core), default=str) + "\n")
        process.stdin.flush()                                # and stays open, see die_with_driver in gcm.py
    return child


def _forward(child: Child, mail: Mail) -> None:
    for line in child.process.stdout:
        mail.put((child, line))
    mail.put((child, ""))


def _job(config: WorldConfig, run: Run, core: int | None) -> dict[str, Any]:
    """The job of one child; its form is `Job` in gcm.py."""
    return {
        "truncation": config.truncation,
        "seed": run.seed,
        "run": run.name,
        "first_year": run.years[0].year,
        "years": [asdict(year) for year in run.missing],
        "static": str(_static(config)),
        "cache": str(_static(config).with_name(".jax_cache")),
        "temperature_step_deg": TEMPERATURE_STEP_DEG[config.truncation],
        "precipitation_step_deg": config.precipitation_step_deg,
        "longwave_step_deg": LONGWAVE_STEP_DEG,
        "core": core,
    }


def _environment() -> dict[str, str]:
    """One thread of arithmetic on the CPU, whatever the caller has set: that must not change the numbers."""
    foreign = ("PYTHON", "JAX_", "XLA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    xla = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {**kept, **threads, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PYTHONHASHSEED": "0"}


def _check_end(child: Child) -> None:
    """Raise unless the child ended well and left all its years."""
    status = child.process.wait()
    if status == 0 and not child.run.missing:
        return
    lines = [line.strip() for line in child.log.read_text(errors="replace").splitlines()]
    words = " | ".join([line for line in lines if line][-LAST_WORDS:]) or "nothing"
    raise RuntimeError(f"world: the simulation of {child.year} ({child.run.name}) ended with status "
                       f"{status}; its last words: {words} (log: {child.log})")
