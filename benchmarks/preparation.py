"""What preparation costs: archive, shards and reading, each beside the plain way of doing it; memory; two processes.

    python benchmarks/preparation.py [FOLDER]     # of the sample world's yearly files; default: the demo's

The published preparation writes one Zarr store a day with xarray; a plain tar holds the frames as they are. Pairs of
runs take turns. The 0.25 degree part writes synthetic files of a few days into a temporary folder (1 GB).
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import webdataset as wds
import xarray as xr
import yaml
from netCDF4 import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.blocks import blocks
from data_prep.config import PrepConfig
from data_prep.fields import open_fields
from data_prep.gather import Gatherer, gather
from data_prep.shards import write_shard
from data_prep.stats import fit_statistics
from slams.config import load
from slams.contracts.archive import create, open_archive, write_block
from slams.contracts.shards import open_shards
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from train.data import Reader

PAIRS, PAIRS_OF_SHARDS, PUBLISHED_DAYS, LEVELS = 3, 7, 120, (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)


def write_config(folder, name, sources, years, shape, **more):
    splits = dict(zip(("train_years", "validation_years", "test_years"), years, strict=True))
    archive = {"path": f"{folder}/{name}.zarr", "sources": sources, **splits}
    archive |= {"n_latitude": shape[0], "n_longitude": shape[1]} | more
    path = Path(folder, f"{name}.yaml")
    path.write_text(yaml.safe_dump({"archive": archive, "shards": {"path": f"{folder}/{name}-shards"}}))
    return path


def run(stage, config, *words):
    """Seconds of wall time, and the most memory of a process in GiB, of a stage run as a program."""
    command = [sys.executable, "-m", "data_prep", stage, str(config), *words]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return time.perf_counter() - began, used.ru_maxrss / 2**20


def paired(name, *ways, pairs=PAIRS):
    """Median seconds of each way, run in turn, and the ratios of the first to the second."""
    seconds = [[way() for way in ways] for _ in range(pairs)]
    ratios = sorted(first / second for first, second in seconds)
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    told = f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{name}: {medians[0]:.4g} s and {medians[1]:.4g} s, {told}", flush=True)


def timed(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def one_zarr_a_day(config):
    """The published way: everything opened once, a store written for each of the first days; seconds a day."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = xr.Dataset({k: v.drop_vars("run") for k, v in open_fields(config).items()})
        for day in whole.time.values[:PUBLISHED_DAYS]:
            whole.sel(time=[day]).to_zarr(f"{folder}/{np.datetime64(day, 'D')}.zarr", zarr_format=2)
    return (time.perf_counter() - began) / PUBLISHED_DAYS


def one_archive(config, *words):
    """Seconds of the stage, start and statistics included; what it wrote is removed."""
    seconds, _ = run("archive", config, *words)
    shutil.rmtree(load(PrepConfig, config).archive.path)
    return seconds


def write_synthetic(folder, year, days, shape):
    """Temperature of the first days of a year in the Climate Data Store's new layout."""
    rng, (rows, columns) = np.random.default_rng(year), shape
    path = Path(folder) / f"t.{year}.nc"
    values = rng.normal(250, 20, (days, len(LEVELS), rows, columns)).astype(np.float32)
    dims = ("valid_time", "pressure_level", "latitude", "longitude")
    found = xr.Dataset(
        {"t": (dims, values, {"units": "K", "standard_name": "air_temperature"})},
        {
            "valid_time": np.datetime64(f"{year}-01-01T12:00", "ns") + np.arange(days) * np.timedelta64(1, "D"),
            "pressure_level": ("pressure_level", np.array(LEVELS, float), {"units": "hPa"}),
            "latitude": ("latitude", np.linspace(90, -90, rows), {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(columns) * 360 / columns, {"units": "degrees_east"}),
        },
    )
    one = {"chunksizes": (1, len(LEVELS), rows, columns), "zlib": True, "complevel": 1}
    found.to_netcdf(path, encoding={"t": one, "valid_time": {"units": "hours since 1970-01-01"}})
    return path


def synthetic(folder, name, n_years, days, shape, target):
    """Configuration of so many such years, with the same values each."""
    raw = Path(folder, name)
    raw.mkdir()
    with ProcessPoolExecutor(1) as other:  # the memory of this process would count as that of those it starts
        first = other.submit(write_synthetic, raw, 2001, days, shape).result()
    for year in range(2002, 2001 + n_years):
        with Dataset(shutil.copy(first, raw / f"t.{year}.nc"), "r+") as copy:
            begins = np.datetime64(f"{year}-01-01T12:00", "h").astype(int)
            copy["valid_time"][:] = begins + 24 * np.arange(days)
    last = 2000 + n_years
    years = [[2001, last - 2], [last - 1, last - 1], [last, last]]
    return write_config(folder, name, {"temperature": f"{raw}/t.*.nc"}, years, target, missing_days_allowed=1095)


def archives(world, folder):
    sources = {"temperature": "era5_t", "precipitation": "precip", "olr": "olr.2xdaily"}
    sources = {name: f"{world}/{file}.*.nc" for name, file in sources.items()}
    three = write_config(folder, "three", sources, [[1982, 1982], [1983, 1983], [1984, 1984]], (32, 64))
    ten = write_config(folder, "ten", sources, [[1982, 1989], [1990, 1990], [1991, 1991]], (32, 64))
    config, days = load(PrepConfig, three).archive, 3 * 365 + 1
    ways = lambda: one_zarr_a_day(config), lambda: one_archive(three) / days
    paired("a day: as a Zarr of its own; by the stage, start and statistics included", *ways)
    for config in (three, ten):
        seconds, gib = run("archive", config)
        print(f"archive {config.stem} years: {seconds:.1f} s, {gib:.2f} GiB at most", flush=True)


def on_one_core(function, *arguments):
    """A function's value, where it and what it starts have one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return function(*arguments)
    finally:
        os.sched_setaffinity(0, cores)


def side_by_side(configs):
    """Seconds in which so many programs, a core and an archive each, are all done: what the machine itself allows."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "data_prep", "archive"]
    started = [subprocess.Popen([*command, str(c)], stdout=subprocess.DEVNULL) for c in configs]
    for core, process in enumerate(started):
        os.sched_setaffinity(process.pid, {core})
    if any(process.wait() for process in started):
        sys.exit("two archives side by side: failed")
    for config in configs:
        shutil.rmtree(load(PrepConfig, config).archive.path)
    return time.perf_counter() - began


def two_cores(folder):
    """Eighteen whole years at 1 degree (12 GB of files)."""
    config = synthetic(folder, "one-degree", 18, 365, (181, 360), (120, 240))
    other = Path(folder, "other.yaml")
    other.write_text(config.read_text().replace("one-degree.zarr", "other.zarr"))
    one_core = partial(on_one_core, one_archive, config)
    paired("1 degree, 18 years: one core; two", one_core, lambda: one_archive(config, "workers.processes=2"))
    twice = "the same, on one core; half of two programs side by side on two, which the machine allows at most"
    paired(twice, one_core, lambda: side_by_side((config, other)) / 2)


def quarter_degree(folder):
    config = synthetic(folder, "quarter", 3, 4, (721, 1440), (720, 1440))
    for stage in ("archive", "shards"):
        seconds, gib = run(stage, config)
        print(f"0.25 degrees, 12 days with values, {stage}: {seconds:.1f} s, {gib:.2f} GiB at most", flush=True)


def made_up(folder, n_days):
    """An archive of three days of noise again and again, by hard links: rain on a third of the cells, gaps in OLR."""
    air = Modality("temperature", "state", "K", "air_temperature", LEVELS)
    spec, days = StateSpec(Grid(721, 1440), (air, PRECIPITATION, OLR)), np.datetime64("2001-01-01") + np.arange(n_days)
    attributes = {"config": {}, "splits": {"train": [2001, 2002]}, "missing_days": {name: [] for name in spec.names}}
    group = create(folder, spec, days, np.zeros(n_days, int), attributes)
    for day in range(3):
        x = np.random.default_rng(day).standard_normal((1, 12, *spec.grid.shape), np.float32)
        x[:, 10, :, 500:] = np.nan
        x[:, 11, 100:200] = np.nan if day % 3 == 1 else 0
        for name, values in (("temperature", x[:, :10]), ("precipitation", x[:, 10]), ("olr", x[:, 11])):
            write_block(group, name, day, values)
    for name in spec.names:
        for day in range(3, n_days):
            shutil.copytree(folder / name / "c" / str(day % 3), folder / name / "c" / str(day), copy_function=os.link)
    return group


def year_of_statistics(folder, n_days):
    """Seconds and the most memory in GiB of the statistics of so many train days on 721 x 1440 cells, 12 channels."""
    every = blocks(made_up(folder, n_days), ["temperature", "precipitation", "olr"], n_days)
    began = time.perf_counter()
    sums, _ = gather(Gatherer(folder, folder.with_name("sums"), "anomaly", False), every, map)
    fit_statistics(open_archive(folder, is_whole=False), sums, "anomaly", {})
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def statistics_of_a_year(folder):
    with ProcessPoolExecutor(1, get_context("spawn")) as other:  # a process whose memory is that of this alone
        seconds, gib = other.submit(year_of_statistics, Path(folder, "year.zarr"), 366).result()
    print(f"0.25 degrees, 366 train days, 12 channels, statistics: {seconds:.0f} s, {gib:.2f} GiB at most", flush=True)


def plain_tar(path, frames):
    """The frames as they are in memory, one member each."""
    with tarfile.open(path, "w") as tar:
        for day, _, values in frames:
            member = tarfile.TarInfo(f"{day}.f4")
            member.size = values.nbytes
            tar.addfile(member, BytesIO(values.tobytes()))


def read_tars(manifest):
    for path in manifest.files:
        for _ in wds.WebDataset(str(path), shardshuffle=False, empty_check=False):
            pass


def read_decoded(manifest):
    reader = Reader(manifest, 1, cache_frames=0)
    for first in range(0, len(manifest.frames), 64):
        reader.windows(np.arange(first, min(first + 64, len(manifest.frames))))


def shards(folder):
    run("shards", Path(folder, "ten.yaml"))
    manifest = open_shards(Path(folder, "ten-shards"))
    some = [(frame.time, 0, manifest.read(frame)) for frame in manifest.frames[:1000]]
    target = Path(folder, "some.tar")
    ways = lambda: timed(plain_tar, target, some), lambda: timed(write_shard, target, some, 12)
    paired("1000 frames: into a plain tar; into a shard", *ways, pairs=PAIRS_OF_SHARDS)
    ways = lambda: timed(read_tars, manifest), lambda: timed(read_decoded, manifest)
    name = "ten years of frames: tars read, nothing decoded; by the training's reader, decoded"
    paired(name, *ways, pairs=PAIRS_OF_SHARDS)


def main():
    world = sys.argv[1] if len(sys.argv) > 1 else "runs/demo/world"
    if not Path(world, "era5_t.1982.nc").exists():
        sys.exit(f"benchmarks/preparation.py: {world}: holds no sample world; `make demo` makes it")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        archives(world, folder)
        shards(folder)
        two_cores(folder)
        quarter_degree(folder)
        statistics_of_a_year(folder)


if __name__ == "__main__":
    main()
