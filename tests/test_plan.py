"""Every day of every member is drawn exactly once, whatever the segments, the blocks and the processes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample.config import PeriodConfig, SampleConfig
from sample.plan import evaluations, segments, share, units
from slams.posterior import GuidanceConfig, SamplerConfig

FIRST = np.datetime64("2000-02-20")  # before a leap day


@st.composite
def periods(draw, contiguous=False):
    last = FIRST + draw(st.integers(0, 60))
    segment_days = draw(st.integers(1, 9))
    every_days = 0 if contiguous else draw(st.sampled_from([0, segment_days, segment_days + 3]))
    return PeriodConfig(str(FIRST), str(last), segment_days, every_days, draw(st.integers(0, 3)))


@st.composite
def configs(draw):
    members, block = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return SampleConfig("run", "seen", "truth", draw(periods()), score="score", members=members, members_per_unit=block)


@given(periods(contiguous=True))
def test_contiguous_segments_tile_the_period(period):
    days = np.concatenate(segments(period))
    np.testing.assert_array_equal(days, np.arange(period.first_day, np.datetime64(period.last_day) + 1))
    assert all(len(s) == period.segment_days for s in segments(period)[:-1])


@given(periods())
def test_segments_apart_begin_every_so_many_days_and_stay_in_the_period(period):
    found, stride = segments(period), period.every_days or period.segment_days
    assert [int((s[0] - FIRST).astype(int)) for s in found] == list(range(0, len(found) * stride, stride))
    days = np.concatenate(found)
    assert len(set(days)) == len(days) and days[-1] <= np.datetime64(period.last_day)
    assert found[-1][0] + stride > np.datetime64(period.last_day)  # none more would fit


@given(configs())
def test_units_hold_every_day_of_every_member_once_and_have_names_of_their_own(config):
    work = units(config, config.members_per_unit)
    drawn = Counter((day, member) for unit in work for day in unit.days for member in unit.members)
    wanted = {(day, m) for day in np.concatenate(segments(config.period)) for m in range(config.members)}
    assert set(drawn) == wanted and set(drawn.values()) == {1}
    assert len({unit.name for unit in work}) == len(work)
    assert max(len(unit.members) for unit in work) <= config.members_per_unit


@given(configs())
def test_a_halo_stands_on_both_sides(config):
    for unit in units(config, config.members_per_unit):
        assert (np.diff(unit.all_days) == np.timedelta64(1, "D")).all()
        kept = slice(config.period.halo_days, len(unit.all_days) - config.period.halo_days)
        np.testing.assert_array_equal(unit.all_days[kept], unit.days)


@given(configs(), st.integers(1, 5))
def test_the_processes_share_all_units_and_none_twice(config, size):
    work = units(config, config.members_per_unit)
    parts = [share(work, {"RANK": str(rank), "WORLD_SIZE": str(size)}) for rank in range(size)]
    assert sorted(unit.name for part in parts for unit in part) == sorted(unit.name for unit in work)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [unit.name for unit in share(work, {})] == [unit.name for unit in work]


@given(configs(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.sampled_from([1, 2]))
def test_the_tasks_of_an_array_and_the_ranks_in_each_share_all_units(config, ranks, tasks, first, step):
    work = units(config, config.members_per_unit)
    said = {"COUNT": tasks, "MIN": first, "STEP": step}
    array = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in said.items()}
    parts = [
        share(work, array | {"SLURM_ARRAY_TASK_ID": str(first + step * task), "RANK": str(r), "WORLD_SIZE": str(ranks)})
        for task in range(tasks)
        for r in range(ranks)
    ]
    assert sorted(unit.name for part in parts for unit in part) == sorted(unit.name for unit in work)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_srun_alone_is_a_launcher_and_a_batch_script_is_none():
    work, task = list(range(7)), {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}
    assert share(work, task | {"SLURM_STEP_ID": "0"}) == [1, 4]
    assert share(work, task) == work
    assert share(work, task | {"SLURM_STEP_ID": "0", "RANK": "0", "WORLD_SIZE": "1"}) == work


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_ARRAY_TASK_ID": "1"},
        {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"},
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "", "WORLD_SIZE": "1"},
    ],
)
def test_half_a_launcher_is_refused(environment):
    with pytest.raises(ValueError, match=r"environment: (RANK|SLURM_ARRAY_TASK_ID)"):
        share([], environment)


def test_the_cost_counts_every_call_of_the_network():
    config = SampleConfig("run", "seen", "truth", PeriodConfig("2000-01-01", "2000-01-01"), score="score")
    costs = {
        (1, "none", "ddim"): 4,
        (1, "sda", "ddim"): 8,  # forward and backward
        (1, "mmps", "ddim"): 20,  # and one more backward for each of 3 conjugate gradient steps
        (2, "sda", "predictor_corrector"): 24,
    }
    for (corrections, guidance, sampler), expected in costs.items():
        drawn = SamplerConfig(sampler, steps=4, corrections=corrections)
        values = {"sampler": drawn, "guidance": GuidanceConfig(guidance, iterations=3)}
        assert evaluations(SampleConfig(**{**vars(config), **values})) == expected


@pytest.mark.parametrize("day", ["1989-1-31", "1989-01", "19890131", "today", "NaT", "1989-02-29", ""])
def test_what_is_not_a_day_is_refused(day):
    with pytest.raises(ValueError, match="is not a date of the form 1989-01-31"):
        PeriodConfig(day, "1990-01-01")
