"""The analysis is the same, to the last bit, however its work is cut and shared, and has no seams where it was cut."""

import json
import os
import random
import resource
import shutil
import signal
import time
import zlib

import numpy as np
import pytest
import torch
import xarray as xr
from chain import finish, start

from sample import assimilate as job
from sample.__main__ import main as assimilate
from sample.assimilator import Assimilator
from sample.leave import Clock
from slams.contracts.analysis import open_analysis
from slams.contracts.departures import open_departures
from slams.rng import normal

NAMES = ("temperature", "precipitation", "olr")
MEMBERS, FIRST = 6, "2003-03-01"
TEN_DAYS = ("period.every_days=0", "period.segment_days=4", "period.last_day=2003-03-10", f"members={MEMBERS}")
TEN_DAYS += ("sampler.steps=2", "guidance.iterations=1", f"period.first_day={FIRST}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    assert "time_limit_minutes: 0.0001 is too short for one unit" in said and said.count("\n") == 1


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


def test_another_way_of_rounding_does_not_go_on_with_a_product(chain, whole, capsys):
    """So little memory that a member is drawn alone rounds otherwise."""
    assert assimilate(chain.sample(*TEN_DAYS, "memory_gib=1e-6", run="ten-days")[1:]) == 2
    assert "different: drawn_at_once" in capsys.readouterr().err


def test_a_segment_shorter_than_a_window_is_refused_before_anything_is_drawn(chain, capsys):
    words = ("period.segment_days=5", "period.halo_days=0", "period.last_day=2003-03-13")
    assert assimilate(chain.sample(*TEN_DAYS, *words, run="short")[1:]) == 2
    assert "a segment of 3 days, halo included, is left; at least 5" in capsys.readouterr().err
    assert not (chain.folder / "short").exists()
