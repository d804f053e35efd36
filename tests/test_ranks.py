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
        found[size] = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    for one, three in zip(found[1], found[3], strict=True):
        np.testing.assert_array_equal(one, three)
    t, eps = found[1]
    assert len(np.unique(eps)) == eps.size and (np.sort(t) * 12 // 1 == np.arange(12)).all()


def test_times_are_uniform():
    t = np.concatenate([stratified_times(np.random.default_rng(i), 8) for i in range(500)])
    assert t.min() > 0 and t.max() < 1
    # stratified: the mean's standard error is 1 / (8 sqrt(12 * 500 * 8)); five of them
    assert abs(t.mean() - 0.5) < 5 / (8 * np.sqrt(12 * 500 * 8))


def test_two_processes_train_what_one_trains(tmp_path):
    """float32; the gradient's sum is rounded in another order, so equal but for rounding."""
    shards = write_tiny_shards(tmp_path / "shards")
    one, two = (write_config(tmp_path / name, shards, steps=8) for name in ("one", "two"))
    plain = subprocess.Popen([sys.executable, "-m", "train", str(one)], cwd=ROOT, env=alone())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "train", str(two)]
    subprocess.run([*launcher, "engine.zero_stage=1"], cwd=ROOT, env=alone() | {"OMP_NUM_THREADS": "1"}, check=True)
    assert plain.wait(60) == 0
    a, b = (open_bundle(path.parent / "bundle").weights("raw") for path in (one, two))
    scale = max(np.abs(value).max() for value in a.values())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    for left, right in zip(lines(one.parent), lines(two.parent), strict=True):
        assert left == pytest.approx(right, rel=1e-5)
