"""Any number of processes sees the same global batches, and two train what one trains."""

import subprocess
import sys

import numpy as np
import pytest
from test_train import ROOT, alone, lines, write_config, write_tiny_shards

from slams.contracts.bundle import open_bundle
from train.data import plan, stratified_times, training_noise

SETTINGS = {"seed": 3, "batch": 12, "start": 0, "stop": 20}
WINDOWS = np.arange(100, 150)


def global_batches(size, accumulation=1, **changes):
    """Step -> windows in the order of the global batch, put together from every process."""
    found = {}
    for rank in range(size):
        for p in plan(WINDOWS, rank=rank, size=size, accumulation=accumulation, **SETTINGS | changes):
            found.setdefault(p.step, {})[p.position] = p.windows
    return {step: np.concatenate([parts[k] for k in sorted(parts)]) for step, parts in found.items()}


@pytest.mark.parametrize(("size", "accumulation"), [(2, 1), (3, 1), (1, 4), (3, 2)])
def test_the_global_batches_do_not_depend_on_the_processes(size, accumulation):
    one, many = global_batches(1), global_batches(size, accumulation)
    assert list(one) == list(many) == list(range(20))
    for step in one:
        np.testing.assert_array_equal(one[step], many[step])


def test_an_epoch_shows_each_window_at_most_once_and_another_epoch_another_order():
    batches = global_batches(1)
    first, second = (np.concatenate([batches[4 * e + i] for i in range(4)]) for e in (0, 1))
    assert len(set(first)) == len(first) == 48 and set(first) <= set(WINDOWS)
    assert (first != second).any()


def test_a_plan_started_late_is_the_rest_of_the_plan():
    whole, rest = global_batches(2), global_batches(2, start=7)
    assert list(rest) == list(range(7, 20))
    assert all((whole[step] == rest[step]).all() for step in rest)


def test_noise_and_times_belong_to_the_window_and_not_to_the_process():
    noise = training_noise(SETTINGS["seed"], SETTINGS["batch"])
    found = {}
    for size in (1, 3):
        parts = [
            noise(p, (2, 4))
            for r in range(size)
            for p in plan(WINDOWS, rank=r, size=size, accumulation=1, **SETTINGS | {"start": 5, "stop": 6})
        ]
        found[size] = {name: np.concatenate([part[name] for part in parts]) for name in ("t", "noise", "chance")}
    for name in found[1]:
        np.testing.assert_array_equal(found[1][name], found[3][name])
    t, noise, chance = found[1].values()
    assert len(np.unique(noise)) == noise.size and (np.sort(t) * 12 // 1 == np.arange(12)).all()
    assert len(np.unique(chance)) == 12 and chance.min() >= 0 and chance.max() < 1


def test_times_are_uniform():
    t = np.concatenate([stratified_times(np.random.default_rng(i), 8) for i in range(500)])
    assert t.min() > 0 and t.max() < 1
    # stratified: the mean's standard error is 1 / (8 sqrt(12 * 500 * 8)); five of them
    assert abs(t.mean() - 0.5) < 5 / (8 * np.sqrt(12 * 500 * 8))


def test_two_processes_train_what_one_trains(tmp_path):
    """float32; the gradient's sum is rounded in another order, so equal but for rounding. The prior that the network
    corrects is fitted by the first process, and its windows are given backgrounds, whoever reads them."""
    shards = write_tiny_shards(tmp_path / "shards")
    configs = {name: write_config(tmp_path / name, shards, steps=8) for name in ("one", "stage-0", "stage-1")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    commands = {"one": ["-m", "train", str(configs["one"])]}
    for stage in (0, 1):
        name = f"stage-{stage}"
        commands[name] = [*launcher, str(configs[name]), f"engine.zero_stage={stage}"]
    environment = alone() | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment) for words in commands.values()]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    for name in ("stage-0", "stage-1"):
        a, b = (open_bundle(tmp_path / run / "bundle").weights("raw") for run in ("one", name))
        scale = max(np.abs(value).max() for value in a.values())
        for weight in a:
            np.testing.assert_allclose(a[weight], b[weight], rtol=1e-5, atol=1e-5 * scale, err_msg=weight)
        for left, right in zip(lines(tmp_path / "one"), lines(tmp_path / name), strict=True):
            assert left == pytest.approx(right, rel=1e-5)
