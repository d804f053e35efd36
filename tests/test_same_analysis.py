"""The analysis is the same, to the last bit, however its work is cut and shared, and has no seams where it was cut."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from chain import ROOT, finish, start
from test_analysis import files

from sample import assimilate as job
from sample.__main__ import main as assimilate
from sample.assimilator import Assimilator
from sample.leave import PASSED, Clock, minutes_left
from sample.run import Run
from slams.contracts.analysis import Analysis, open_analysis
from slams.contracts.departures import open_departures
from slams.contracts.observations import open_observations
from slams.rng import normal

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("temperature", "precipitation", "olr")
MEMBERS, FIRST = 6, "2003-03-01"
TEN_DAYS = ("period.every_days=0", "period.segment_days=4", "period.last_day=2003-03-10", f"members={MEMBERS}")
TEN_DAYS += ("sampler.steps=2", "guidance.iterations=1", f"period.first_day={FIRST}")


@pytest.fixture
def ten_days(chain, monkeypatch):
    """Draw ten days into a folder, by so many ranks one after the other; gives the product."""

    def draw(name, *words, ranks=1):
        command = chain.sample(*TEN_DAYS, *words, run=name)
        for rank in reversed(range(ranks)):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
            assert assimilate(command[1:]) == 0
        return chain.folder / name / "analysis.zarr"

    return draw


@pytest.fixture(scope="module")
def whole(chain):
    """The ten days by one process in one block of members."""
    path = chain.folder / "ten-days" / "analysis.zarr"
    if not path.exists():
        assert assimilate(chain.sample(*TEN_DAYS, run="ten-days")[1:]) == 0
    return path


def assert_same(product, other):
    """Every value, NaN for NaN, bit for bit; mean and spread too; and all departures."""
    one, two = (xr.open_zarr(path).load() for path in (product, other))
    assert set(one) == set(two) and open_analysis(product).is_complete and open_analysis(other).is_complete
    for name in one:
        assert one[name].values.tobytes() == two[name].values.tobytes(), name
    tables = [open_departures(path).read().to_pandas() for path in (product, other)]
    order = ["time", "modality", "level_hpa", "latitude", "longitude"]
    a, b = (table.sort_values(order, ignore_index=True) for table in tables)
    assert a.drop(columns="analysis").equals(b.drop(columns="analysis"))
    assert np.array_equal(np.stack(a["analysis"]), np.stack(b["analysis"]), equal_nan=True)


@pytest.mark.parametrize("ranks", [2, 5, 11])  # eleven for nine units: two have nothing to draw
def test_any_number_of_ranks(ten_days, whole, ranks):
    assert_same(ten_days(f"of-{ranks}", "members_per_unit=2", ranks=ranks), whole)


@pytest.mark.parametrize("block", [1, 4, 5])
def test_any_block_of_members(ten_days, whole, block):
    assert_same(ten_days(f"blocks-of-{block}", f"members_per_unit={block}"), whole)


def test_any_order_of_the_units(ten_days, whole, monkeypatch):
    def shuffled(work, environment):
        return random.Random(0).sample(work, len(work))

    monkeypatch.setattr(job, "share", shuffled)
    assert_same(ten_days("shuffled", "members_per_unit=3"), whole)


def test_a_signal_asks_to_be_started_again_and_nothing_is_lost(chain, ten_days, whole):
    """SIGUSR1 once the first unit stands: status 75; the same command goes on to the same bits."""
    command = chain.sample(*TEN_DAYS, "members_per_unit=1", run="signalled")
    product = chain.folder / "signalled" / "analysis.zarr"
    process = start(command)
    until = time.monotonic() + 120
    while not list(product.glob("ledger/*.json")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75 and process.stderr.read() == ""
    done = len(list(product.glob("ledger/*.json")))
    assert 1 <= done < 3 * MEMBERS and not (product / "complete.json").exists()
    assert_same(ten_days("signalled", "members_per_unit=1"), whole)


def test_a_time_limit_leaves_in_time(chain, ten_days, whole, monkeypatch):
    monkeypatch.setattr("sample.leave.Clock.allows", lambda self: len(list(product.glob("ledger/*.json"))) < 2)
    product = chain.folder / "limited" / "analysis.zarr"
    command = chain.sample(*TEN_DAYS, "members_per_unit=3", "time_limit_minutes=60", run="limited")
    assert assimilate(command[1:]) == 75
    assert len(list(product.glob("ledger/*.json"))) == 2
    monkeypatch.undo()
    assert_same(ten_days("limited", "members_per_unit=3", "time_limit_minutes=90"), whole)


def test_the_clock_knows_the_longest_unit_and_the_end(monkeypatch):
    """Ten minutes, units of one, then of three: the next must end in time as well."""
    now = 100.0
    monkeypatch.setattr("sample.leave.time.monotonic", lambda: now)
    clock = Clock(minutes=10, unit_seconds=60)
    for seconds, allowed in ((0, True), (60, True), (180, True), (180, True), (3, False)):
        now += seconds
        assert clock.allows() == allowed
    assert Clock(minutes=0, unit_seconds=0).allows()


def test_a_time_limit_shorter_than_a_unit_is_refused(chain, capsys):
    command = chain.sample(*TEN_DAYS, "time_limit_minutes=0.0001", run="hasty")
    assert assimilate(command[1:]) == 2
    said = capsys.readouterr().err
    assert "limit: 0.0001 is too short for one unit" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "left", "minutes"),
    [(0, None, 0), (0, 600, 10), (5, 600, 5), (20, 600, 10), (20, -60, PASSED), (20, None, 20)],
)
def test_the_sooner_of_two_limits_counts(monkeypatch, asked, left, minutes):
    monkeypatch.setattr("sample.leave.time.time", lambda: 1e9)
    told = {} if left is None else {"SLURM_JOB_END_TIME": str(10**9 + left)}
    assert minutes_left(asked, told) == minutes
    assert minutes_left(asked, {"SLURM_JOB_END_TIME": ""}) == asked


@pytest.mark.parametrize("seconds", [1, -60], ids=["near", "passed"])
def test_a_schedulers_limit_shorter_than_a_unit_is_refused(chain, capsys, monkeypatch, seconds):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + seconds))
    monkeypatch.setattr("sample.run.Run.seconds", lambda self, unit: 90.0)
    assert assimilate(chain.sample(*TEN_DAYS, run="scheduled")[1:]) == 2
    assert "is too short for one unit, which takes 1.5; more is needed" in capsys.readouterr().err


def test_a_segment_of_which_nothing_was_observed_is_refused_before_anything_is_drawn(chain, capsys, tmp_path):
    """Observations end on 2 March: the first segment and its halo, from 27 February, see some of them."""
    seen = shutil.copytree(chain.folder / "observations.zarr", tmp_path / "seen.zarr")
    late = open_observations(seen).time > np.datetime64("2003-03-02")
    group = zarr.open_group(seen, mode="r+")
    for name in NAMES:
        mask = group[f"{name}/mask"]
        mask[:] = mask[:] & ~late[:, None, None, None] if mask.ndim == 4 else mask[:] & ~late[:, None, None]
    assert assimilate(chain.sample(*TEN_DAYS, f"observations={seen}", run="blind")[1:]) == 2
    said = capsys.readouterr().err
    assert "nothing is observed from 2003-03-03 to 2003-03-10, a segment with its halo" in said, said
    assert said.count("\n") == 1 and not (chain.folder / "blind").exists()


def test_a_product_goes_on_with_the_threads_it_was_begun_with(chain, ten_days, whole):
    """A sum by two threads rounds otherwise."""
    folder = chain.folder / "threads"
    shutil.copytree(whole, folder / "analysis.zarr")
    for gone in ("complete.json", "segments", "ledger", *(f"{name}/c" for name in NAMES)):
        path = folder / "analysis.zarr" / gone
        path.unlink() if path.is_file() else shutil.rmtree(path)
    torch.set_num_threads(2)
    try:
        product = ten_days("threads")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert_same(product, whole)


def test_other_units_than_those_it_was_begun_with_are_refused(chain, whole, capsys):
    assert assimilate(chain.sample(*TEN_DAYS, "members_per_unit=2", run="ten-days")[1:]) == 2
    assert f"was begun in units of {MEMBERS}" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_what_stands_is_kept(chain, whole):
    """The largest file that may be written is smaller than a unit; then the disk is enlarged."""
    command = chain.sample(*TEN_DAYS, "members_per_unit=4", run="full")
    process = start(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    said = process.communicate(timeout=240)[1]
    product = chain.folder / "full" / "analysis.zarr"
    assert process.returncode == 2 and said.count("\n") == 1, said
    assert said.startswith(f"sample: {product}: cannot be written (") and "File too large" in said
    assert not list(product.glob("ledger/*.json"))
    finish(start(command))
    assert_same(product, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_draws_what_a_cpu_draws(chain, whole):
    """To 1e-4 of each variable's standard deviation, by a program that is shown no GPU."""
    command = chain.sample(*TEN_DAYS, run="on-cpu")
    finish(start(command, CUDA_VISIBLE_DEVICES=""))
    cpu, gpu = (xr.open_zarr(path).load() for path in (chain.folder / "on-cpu" / "analysis.zarr", whole))
    for name in NAMES:
        a, b = gpu[name].values, cpu[name].values
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.nanstd(b), err_msg=name)


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(chain, whole):
    """kill -9 at random moments, of the start, of a draw and within a write."""
    moments, command = random.Random(1), chain.sample(*TEN_DAYS, "members_per_unit=2", run="killed")
    product, kills = chain.folder / "killed" / "analysis.zarr", 0
    while kills < 20:
        process = start(command)
        time.sleep(moments.uniform(2.5, 9))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        if (product / "complete.json").exists():
            assert_same(product, whole)
            shutil.rmtree(product)
    finish(start(command))
    assert_same(product, whole)
    assert not list(product.rglob("*.partial"))


def diverging(monkeypatch, wrong):
    """Sampling in which a member's noise of some attempts is not a number: (member, attempt) -> bool."""
    drawn = Assimilator._noise

    def noise(self, days, members, attempts):
        found = drawn(self, days, members, attempts)
        bad = torch.tensor([wrong(m, a) for m, a in zip(members, attempts, strict=True)])
        return lambda step: torch.where(bad[:, None, None, None, None], torch.nan, found(step))

    monkeypatch.setattr(Assimilator, "_noise", noise)


def test_a_diverged_member_is_drawn_again_with_other_noise(ten_days, whole, monkeypatch):
    """Member 2 diverges once: its redraw is another sample, with its reason in the ledger; the others are the same."""
    diverging(monkeypatch, lambda member, attempt: member == 2 and attempt == 0)
    product = ten_days("redrawn", "members_per_unit=3")
    one, two = (xr.open_zarr(path).temperature.load() for path in (product, whole))
    same = [one[m].equals(two[m]) for m in range(MEMBERS)]
    assert same == [m != 2 for m in range(MEMBERS)] and np.isfinite(one[2]).all()
    assert abs(float((one[2] - two[2]).mean())) < 3 * float(two.std("member").mean())
    entries = [json.loads(path.read_text()) for path in (product / "ledger").iterdir()]
    assert len(entries) == 6
    for entry in entries:
        assert [*entry["diverged"]] == (["2"] if 2 in entry["members"] else [])
        assert all("member 2 diverged on" in reason for found in entry["diverged"].values() for reason in found)


def test_a_member_that_always_diverges_is_missing_and_said(chain, monkeypatch, capsys):
    """Nothing of it is written, the others are, mean and spread are theirs, and they are verified."""
    diverging(monkeypatch, lambda member, attempt: member == 4)
    command = chain.sample(*TEN_DAYS, run="lost")[1:]
    for _ in range(2):
        assert assimilate(command) == 0
        said = capsys.readouterr().err
        assert "3 members of units are missing; member 4 diverged on 2003-" in said and said.count("\n") == 1
    assert assimilate(["verify", *command]) == 0
    found = xr.open_zarr(chain.folder / "lost" / "analysis.zarr").load()
    left = [m for m in range(MEMBERS) if m != 4]
    assert np.isnan(found.temperature[4]).all() and np.isfinite(found.temperature[left]).all()
    np.testing.assert_allclose(found.temperature_mean, found.temperature[left].mean("member"), rtol=1e-5)
    np.testing.assert_allclose(found.temperature_spread, found.temperature[left].std("member", ddof=1), atol=1e-3)


def seams(product, segment_days):
    """Root-mean-square change from day to day at the joins, by that away from them."""
    t = xr.open_zarr(product).temperature.load()
    weight = np.cos(np.deg2rad(t.latitude))
    change = (t.diff("time") ** 2).weighted(weight).mean(("member", "level", "latitude", "longitude")).values
    join = np.arange(1, len(change) + 1) % segment_days == 0
    assert join.sum() >= 10
    return np.sqrt(change[join].mean() / change[~join].mean())


def test_no_seam_shows_where_segments_join(ten_days, monkeypatch):
    """Ten joins: the change there, by that away from them, is that of the same days drawn as one segment. The weather
    of so few days is not the same everywhere, hence the comparison. The same with noise that belongs to the segment
    and not to the day: there the seams are plain."""
    words = ("period.last_day=2003-04-02", "members=2", "sampler.steps=4", "period.halo_days=4")
    undivided = seams(ten_days("undivided", *words, "period.segment_days=33"), 3)
    keyed = seams(ten_days("keyed", *words, "period.segment_days=3"), 3)

    def of_the_segment(self, days, members, attempts):
        def one(member, day, step):
            return normal(int(days[0].astype(int)), "sampler", member, day, step, shape=self.shape_ZHW)

        return lambda step: torch.from_numpy(np.array([[one(m, d, step) for d in days.astype(int)] for m in members]))

    monkeypatch.setattr(Assimilator, "_noise", of_the_segment)
    unkeyed = seams(ten_days("unkeyed", *words, "period.segment_days=3"), 3)
    assert 0.95 < keyed / undivided < 1.05 < 1.15 < unkeyed / undivided


def test_a_signal_while_the_product_is_closed_asks_to_be_started_again(chain, whole, monkeypatch):
    """All units are drawn; what remains is done by the same command."""
    command = chain.sample(*TEN_DAYS, run="closing")[1:]

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr("slams.contracts.analysis.Analysis.finish", interrupted)
        assert assimilate(command) == 75
    assert assimilate(command) == 0
    assert_same(chain.folder / "closing" / "analysis.zarr", whole)


def test_the_ledger_knows_the_background_that_each_unit_was_given(chain, ten_days, whole):
    """As xarray reads the archive's state of the day before the segment with its halo; nothing, where nothing is."""
    product = ten_days("on-a-background", "members=1", f"background={chain.folder}/archive.zarr")
    archive = xr.open_zarr(chain.folder / "archive.zarr")
    entries = [json.loads(path.read_text()) for path in sorted(product.glob("ledger/*.json"))]
    assert len({entry["background_crc32"] for entry in entries}) == len(entries) == 3
    for entry in entries:
        state = archive.sel(time=np.datetime64(entry["days"][0]) - 3)  # two of halo
        fields = [state[name].values.astype("<f4").reshape(-1, *state.olr.shape) for name in NAMES]
        assert entry["background_crc32"] == zlib.crc32(np.concatenate(fields).tobytes())
    assert "background_crc32" not in json.loads(next(whole.glob("ledger/*.json")).read_text())


def test_damaged_departures_are_refused_by_the_name_of_their_unit_and_drawn_anew(chain, ten_days, whole, capsys):
    """As damaged fields are: by the end of the run, and anew once the ledger does not tell of the unit any more."""
    product = ten_days("bitten", "members_per_unit=3")
    command = chain.sample(*TEN_DAYS, "members_per_unit=3", run="bitten")[1:]
    (product / "complete.json").unlink()
    file = sorted(product.glob("departures/*.parquet"))[1]
    content = file.read_bytes()
    file.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    for damage, sentence in ((lambda: None, "is not what was written; its CRC32 is"), (file.unlink, "is not there")):
        damage()
        capsys.readouterr()
        assert assimilate(command) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"sample: {product}: unit {file.stem}: departures/{file.name} {sentence}")
    (product / "ledger" / f"{file.stem}.json").unlink()
    assert_same(ten_days("bitten", "members_per_unit=3"), whole)


def leftovers(product):
    """What kill -9 leaves within the writing of a field, of departures and of the ledger."""
    unit = next(product.glob("ledger/*.json")).stem
    found = [product / "olr/c/0/0/0/0.0a1b.partial", product / f"ledger/{unit}.json.0a1b.partial"]
    (folder := product / f"departures/{unit}.parquet.0a1b.partial").mkdir()
    for file in (*found, folder / f"{unit}.parquet"):
        file.write_text("half")
    return [*found, folder]


@pytest.mark.parametrize("end", ["goes on", "is killed"])
def test_what_killed_processes_left_is_removed_once_nobody_else_writes(chain, whole, end):
    """A process that stands still in the middle, as long as it lives, may be writing any of it."""
    command = chain.sample(*TEN_DAYS, "members_per_unit=1", run=f"left-{end[:2]}")
    product = chain.folder / f"left-{end[:2]}" / "analysis.zarr"
    process, until = start(command), time.monotonic() + 120
    while not list(product.glob("ledger/*.json")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    left = leftovers(product)
    assert assimilate(command[1:]) == 0 and (product / "complete.json").exists()
    assert all(path.exists() for path in left)
    if end == "goes on":
        process.send_signal(signal.SIGCONT)
        finish(process)
    else:
        process.kill()
        process.communicate()
        assert assimilate(command[1:]) == 0
    assert not list(product.rglob("*.partial")) and not [path for path in left if path.exists()]
    assert_same(product, whole)


def before(function, act):
    """The same function, but for what is done before its second call."""
    calls = []

    def acting(*given, **more):
        calls.append(None)
        if len(calls) == 2:
            act()
        return function(*given, **more)

    return acting


MOMENTS = {
    "draw": (Run, "analyse"),
    "fields": (Analysis, "write"),
    "departures": (job, "write_departures"),
    "ledger": (Analysis, "close_unit"),
    "mean": (Analysis, "finish_segment"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_product_that_is_removed_meanwhile_is_one_sentence_and_leaves_nothing(chain, capsys, monkeypatch, moment):
    product, command = chain.folder / f"gone-{moment}" / "analysis.zarr", chain.sample(*TEN_DAYS, run=f"gone-{moment}")
    owner, name = MOMENTS[moment]
    monkeypatch.setattr(owner, name, before(getattr(owner, name), lambda: shutil.rmtree(product)))
    assert assimilate(command[1:]) == 2
    said = capsys.readouterr().err
    assert said == f"sample: {product}: was removed while it was drawn; the same command begins it again\n"
    assert not list(product.parent.iterdir())


def test_a_product_that_is_removed_at_the_end_is_not_said_to_be_drawn(chain, capsys, monkeypatch):
    product = chain.folder / "gone-end" / "analysis.zarr"
    monkeypatch.setattr(Analysis, "finish", lambda self: shutil.rmtree(product))
    assert assimilate(chain.sample(*TEN_DAYS, run="gone-end")[1:]) == 2
    assert "was removed while it was drawn" in capsys.readouterr().err and not product.exists()


def test_nothing_is_written_into_a_product_that_was_begun_in_the_place_of_a_removed_one(
    chain, whole, capsys, monkeypatch
):
    product = chain.folder / "other" / "analysis.zarr"

    def replaced():
        shutil.rmtree(product)
        shutil.copytree(whole, product)

    monkeypatch.setattr(Run, "analyse", before(Run.analyse, replaced))
    assert assimilate(chain.sample(*TEN_DAYS, "seed=1", run="other")[1:]) == 2
    assert "was removed while it was drawn" in capsys.readouterr().err
    assert files(product) == files(whole)


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def start_read_only(folder, command):
    """In a namespace of its own, where a folder cannot be written, not even by root."""
    words = ["unshare", "--mount", "bash", "-c", READ_ONLY, str(folder), sys.executable, "-m", *command]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_disk_that_becomes_read_only_is_one_sentence_and_nothing_is_lost(chain, whole, ten_days, monkeypatch):
    """A product that is begun, one that is not yet, and one that is finished and needs no disk to write to."""
    folder, command = chain.folder / "frozen", chain.sample(*TEN_DAYS, "members_per_unit=3", run="frozen")
    folder.mkdir(exist_ok=True)
    trial = start_read_only(folder, ["timeit", "-n1", "-r1", f"import pathlib; pathlib.Path('{folder}/a').touch()"])
    if "Read-only file system" not in (refused := trial.communicate(timeout=60)[1]):
        pytest.skip(f"no mounts of one's own here: {refused}")
    assert_refused(folder, command)
    assert not list(folder.iterdir())
    monkeypatch.setattr("sample.leave.Clock.allows", lambda self: len(list(folder.glob("*/ledger/*.json"))) < 2)
    assert assimilate(command[1:]) == 75
    monkeypatch.undo()
    before = files(folder)
    assert_refused(folder, command)
    assert files(folder) == before
    product = ten_days("frozen", "members_per_unit=3")
    assert_same(product, whole)
    before = files(folder)
    finish(start_read_only(folder, command))
    assert files(folder) == before


def assert_refused(folder, command):
    process = start_read_only(folder, command)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and said.count("\n") == 1, said
    assert said.startswith(f"sample: {folder}/analysis.zarr: cannot be written (") and "Read-only file system" in said


def test_another_way_of_rounding_does_not_go_on_with_a_product(chain, whole, capsys):
    """So little memory that a member is drawn alone rounds otherwise."""
    assert assimilate(chain.sample(*TEN_DAYS, "memory_gib=1e-6", run="ten-days")[1:]) == 2
    assert "different: drawn_at_once" in capsys.readouterr().err


def test_a_segment_shorter_than_a_window_is_refused_before_anything_is_drawn(chain, capsys):
    words = ("period.segment_days=5", "period.halo_days=0", "period.last_day=2003-03-13")
    assert assimilate(chain.sample(*TEN_DAYS, *words, run="short")[1:]) == 2
    assert "a segment of 3 days, halo included, is left; at least 5" in capsys.readouterr().err
    assert not (chain.folder / "short").exists()
