"""Any number of processes sees the same global batches and trains what one trains, also where the number changes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from crew import ROOT, finish, outside, start_crew
from test_train import lines, write_config, write_tiny_shards

from slams.contracts.bundle import open_bundle
from train.data import plan, stratified_times, training_noise
from train.launch import SLURM_VARIABLES

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


@pytest.mark.parametrize("size", [1, 3])
def test_an_epoch_shows_each_window_once_and_another_epoch_another_order(size):
    """Of 50 windows in batches of 12: the fifth batch ends in the second epoch."""
    stream = np.concatenate(list(global_batches(size).values()))
    epochs = [stream[first : first + 50] for first in range(0, 200, 50)]
    assert all((np.sort(epoch) == WINDOWS).all() for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


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


STAGES = (0, 1, 2, 3)


def job(folder, shards, name, stage):
    config = write_config(folder / name, shards, steps=20, checkpoint_every=7, validate_every=10)
    return [str(config), f"engine.zero_stage={stage}"]


def autoencoder_job(folder, shards, name):
    model = {"kind": "autoencoder", "latent_channels": 2, "hidden": [4], "blocks": [1], "reduction": 2}
    return [str(write_config(folder / name, shards, steps=20, validate_every=10, model=model))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    """A folder of runs: by one, two and three processes, and by two, then one, then two; started in three ways.

    No compiler can be found, and what would be compiled would be seen.
    """
    folder = tmp_path_factory.mktemp("trained")
    built = folder / "built"
    built.mkdir()
    bare = {"TORCH_EXTENSIONS_DIR": str(built), "PATH": ""}
    whole = [[job(folder, shards, f"two-{stage}", stage), False] for stage in STAGES]
    changing = [job(folder, shards, f"changing-{stage}", stage) for stage in STAGES]
    uneven = [[job(folder, shards, f"three-{stage}", stage), False] for stage in (0, 3)]
    uneven.append([autoencoder_job(folder, shards, "three-code"), False])
    two = start_crew([*whole, *([words, True] for words in changing)], 2, "torchrun", **bare)
    three = start_crew(uneven, 3, "srun", **bare)
    finish(two, three)
    alone = [[autoencoder_job(folder, shards, "one-code"), False], [job(folder, shards, "one", 0), False]]
    alone += [[words, True] for words in changing]
    finish(start_crew(alone, 1, "variables", **bare))
    finish(start_crew([[words, False] for words in changing], 2, "srun", **bare))
    assert not list(built.iterdir())
    return folder


def test_an_autoencoder_of_days_with_gaps_trains_the_same(trained):
    """Rain is missing on other cells every third day, so the parts of a batch do not weigh the same."""
    assert_same_but_for_rounding(trained / "one-code", trained / "three-code")


def assert_same_but_for_rounding(left, right):
    """float32; the gradient's sum is rounded in another order."""
    a, b = (open_bundle(folder / "bundle").weights("raw") for folder in (left, right))
    assert a.keys() == b.keys()
    for name in a:
        bound = 0 if name.startswith("prior.") else 1e-5
        assert np.linalg.norm(a[name] - b[name]) <= bound * np.linalg.norm(a[name]), name
    for one, other in zip(lines(left), lines(right), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("name", [*(f"two-{stage}" for stage in STAGES), "three-0", "three-3"])
def test_any_number_of_processes_at_any_stage_trains_what_one_trains(trained, name):
    """Also the prior that the network corrects, fitted by one, and the backgrounds that some windows are given."""
    assert_same_but_for_rounding(trained / "one", trained / name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_then_one_then_two_processes_train_what_two_train(trained, stage):
    run = trained / f"changing-{stage}"
    assert_same_but_for_rounding(trained / f"two-{stage}", run)
    averages = [open_bundle(folder / "bundle").weights("ema") for folder in (trained / f"two-{stage}", run)]
    for name, value in averages[0].items():
        assert np.linalg.norm(value - averages[1][name]) <= 1e-5 * np.linalg.norm(value), name
    assert sorted(p.name for p in (run / "run" / "checkpoints").iterdir()) == ["step-000015", "step-000020"]


@pytest.fixture
def two_nodes():
    """Two network namespaces with an address each, joined by a cable: all that two nodes share is the disk."""
    nodes = {f"slams-{os.getpid()}-{i}": f"10.213.77.{i}" for i in (1, 2)}
    first, second = nodes
    try:
        for name in nodes:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        cable = ["link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second]
        subprocess.run(["ip", *cable], check=True, capture_output=True)
        for name, address in nodes.items():
            up = (["link", "set", device, "up"] for device in ("lo", "eth0"))
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], *up):
                subprocess.run(["ip", "-n", name, *words], check=True, capture_output=True)
        yield nodes
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces may not be made here: {error}")
    finally:
        for name in nodes:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_nodes_train_what_one_process_trains(tmp_path, shards, trained, two_nodes):
    words = job(tmp_path, shards, "nodes", 2)
    started = []
    for rank, name in enumerate(two_nodes):
        values = (str(rank), "2", "0", next(iter(two_nodes.values())), "29500")
        place = dict(zip(SLURM_VARIABLES, values, strict=True)) | {"GLOO_SOCKET_IFNAME": "eth0"}
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "train", *words]
        started.append(subprocess.Popen(command, cwd=ROOT, env=outside() | {"OMP_NUM_THREADS": "1"} | place))
    finish(started)
    assert_same_but_for_rounding(trained / "one", tmp_path / "nodes")
