"""What a run tells of itself: where its time went, how busy the machine was, what the network makes, by whom."""

import dataclasses
import hashlib
import json
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from crew import joined
from matplotlib.image import imread
from test_train import write_config, write_tiny_shards
from torch.overrides import TorchFunctionMode

from slams.config import digest, load
from slams.contracts.shards import open_shards
from slams.unet import UNet
from train import images, loop, telemetry
from train.__main__ import run
from train.config import TrainConfig
from train.cost import count
from train.telemetry import CLOCK, Meter, Telemetry, ceiling

PARTS = {"data", "forward", "backward", "step", "communication"}
AUTOENCODER = {"kind": "autoencoder", "hidden": [8], "blocks": [1], "latent_channels": 3, "reduction": 2}
CPU = torch.device("cpu")


class Recorder:
    """Stands where a wandb run would."""

    def __init__(self):
        self.lines, self.status = [], None

    def log(self, values, step):
        self.lines.append({"step": step} | values)

    def finish(self, exit_code):
        self.status = exit_code


@pytest.fixture(scope="module", autouse=True)
def world():
    with joined() as found:
        yield found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture(autouse=True)
def alone(monkeypatch, world):
    monkeypatch.setattr(loop, "opened_world", lambda config: nullcontext(world))
    monkeypatch.setattr(loop.StopRequest, "listen", lambda self: None)


def trained(folder, shards, *words, **changes):
    """The folder of a short run."""
    settings = {"steps": 8, "log_every": 4, "validate_every": 4} | changes
    assert run([str(write_config(folder, shards, **settings)), *words]) == 0
    return folder / "run"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_wandb_gets_what_is_written_under_the_same_names(tmp_path, shards, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(telemetry.wandb, "init", lambda **settings: recorder)
    folder = trained(tmp_path, shards)
    assert [line for line in recorder.lines if "images" not in line] == lines(folder)
    assert [line["step"] for line in recorder.lines if "images" in line] == [4, 8] and recorder.status == 0


def test_the_throughput_is_told_as_part_of_the_machines(tmp_path, shards):
    """The wall clock of the test holds the steps and more, so the run cannot have been slower than it says."""
    began = time.perf_counter()
    folder = trained(tmp_path, shards)
    took = time.perf_counter() - began
    card = json.loads((folder / "environment.json").read_text())
    told = [line for line in lines(folder) if "samples_per_s" in line]
    assert len(told) == 2 and sum(24 / line["samples_per_s"] for line in told) < took
    for line in told:
        assert line["flops_per_s"] == pytest.approx(line["samples_per_s"] * card["flops_per_sample"])
        assert line["utilisation"] == pytest.approx(line["flops_per_s"] / card["ceiling_flops_per_s"], abs=1e-4)
        assert 0 < line["utilisation"] < 1 and 0.1 < line["memory_gib"] < 100
        parts = {name.removeprefix("seconds/"): value for name, value in line.items() if name.startswith("seconds/")}
        assert set(parts) == PARTS and sum(parts.values()) < 6 / line["samples_per_s"]


def test_the_ceiling_is_what_another_library_reaches():
    """Within a factor of 4 of NumPy's product: it has its own library and threads, and this machine has other work."""
    a, fastest = np.ones((1024, 1024), np.float32), np.inf
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - began)
    numpys = 2 * 1024**3 / fastest
    assert numpys / 4 < ceiling(CPU, "fp32") / torch.get_num_threads() < 4 * numpys


def test_the_ceiling_is_that_of_numbers_as_they_come():
    """A GPU multiplies ones faster, as they take less power."""

    class Multiplied(TorchFunctionMode):
        spread = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.matmul, torch.Tensor.__matmul__):
                self.spread += tuple(float(factor.std()) for factor in args)
            return func(*args, **(kwargs or {}))

    with Multiplied() as multiplied:
        ceiling.__wrapped__(CPU, "fp32")
    assert len(multiplied.spread) >= 2 and min(multiplied.spread) > 0.5


def test_time_goes_to_the_part_it_was_spent_in(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: clock[0])
    meter = Meter({}, CPU)
    for _ in range(2):
        for part, seconds in (("data", 1), ("forward", 2), ("backward", 3), ("backward", 4)):
            with meter.timed(part):
                clock[0] += seconds
        clock[0] += 10  # in no part
        meter.add({"loss": 1.0})
    meter.paused += 8
    line = meter.line(batch=6)
    assert line["seconds/data"] == 1 and line["seconds/forward"] == 2 and line["seconds/backward"] == 7
    assert line["samples_per_s"] == 12 / 32 == 0.375 and line["data_wait"] == 2 / 32


class Event:
    """A moment on an imagined GPU that is `behind` events late."""

    every, passed, waited = [], 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.every.append(self)

    def query(self):
        return Event.every.index(self) < Event.passed

    def synchronize(self):
        Event.waited += not self.query()

    def elapsed_time(self, end):
        return 1000.0 * (Event.every.index(end) - Event.every.index(self))


def test_on_a_gpu_no_step_waits_for_its_times(monkeypatch):
    monkeypatch.setattr(telemetry.torch.cuda, "Event", Event)
    monkeypatch.setattr(telemetry.torch.cuda, "max_memory_allocated", lambda device: 2**31)
    meter = Meter({}, torch.device("cuda", 0))
    for _ in range(10):
        with meter.timed("forward"), meter.timed("backward"):
            pass
        Event.passed = len(Event.every) - 6  # the GPU is a step and a half behind
        meter.add({"loss": 1.0})
        assert Event.waited == 0 and len(meter._passing) <= 4
    line = meter.line(batch=1)
    assert line["seconds/forward"] == 3 and line["seconds/backward"] == 1 and line["memory_gib"] == 2
    assert Event.waited > 0 and not meter._passing


def test_names_of_the_clock_are_those_that_two_equal_runs_differ_in(tmp_path, shards):
    one, other = (lines(trained(tmp_path / name, shards)) for name in ("one", "other"))
    differing = {k for a, b in zip(one, other, strict=True) for k in a if a[k] != b[k]}
    assert differing and all(name.startswith(CLOCK) for name in differing)


def test_the_card_says_what_the_run_was_told_and_of_which_data(tmp_path, shards):
    card = json.loads((trained(tmp_path, shards) / "environment.json").read_text())
    assert card["manifest_sha256"] == hashlib.sha256((shards / "manifest.json").read_bytes()).hexdigest()
    config = load(TrainConfig, tmp_path / "train.yaml")
    assert card["config_digest"] == digest(config) != digest(dataclasses.replace(config, seed=1))
    assert card["flops_per_sample"] == count(config, open_shards(shards)).flops


def test_only_one_process_tells(tmp_path, shards, world):
    config, manifest = load(TrainConfig, write_config(tmp_path, shards)), open_shards(shards)
    silent = Telemetry(config, manifest, SimpleNamespace(world=dataclasses.replace(world, rank=1)), 0, False)
    silent.write(1, {"loss": 1.0, "samples_per_s": 1.0})
    silent.show(1, None)
    silent.close(0)
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]


@pytest.mark.parametrize("model", [None, AUTOENCODER], ids=["score", "autoencoder"])
def test_every_validation_leaves_an_image(tmp_path, shards, model):
    folder = trained(tmp_path, shards, **({"model": model} if model else {}))
    first, last = (imread(folder / "images" / f"step-{step:06d}.png") for step in (4, 8))
    assert first.shape == last.shape and (first != last).any()  # it has learned in between
    assert len(np.unique(first.reshape(-1, first.shape[-1]), axis=0)) > 50  # of maps


def opened(folder, shards, **changes):
    config = load(TrainConfig, write_config(folder, shards, **changes))
    return config, open_shards(config.shards)


def test_a_reconstruction_is_shown_beside_the_truth_in_its_unit(tmp_path, shards, world):
    config, manifest = opened(tmp_path, shards, model=AUTOENCODER)
    training = loop.Run(config, manifest, world)
    with torch.no_grad():
        panels = training.images._reconstruction()
    assert [row[0][0] for row in panels] == ["temperature_500, K", "precipitation, mm/day"]
    x = training.reader.windows(np.array([training.images.window]))[0, 0]
    (_, truth, _), (_, decoded, scale), (_, error, _) = panels[0]
    assert (scale == truth).all()  # what is decoded has the colours of the truth
    np.testing.assert_allclose(truth, 2 + 3 * x[0], rtol=1e-5)  # the mean and spread of its statistics
    np.testing.assert_allclose(error, decoded - truth, atol=1e-5)
    (_, rain, _), (_, decoded, _), _ = panels[1]
    np.testing.assert_allclose(rain, np.expm1(2 + 3 * x[2]), rtol=1e-4)
    assert np.isnan(decoded[:, 8:]).all() and np.isfinite(decoded[:, :8]).all()  # gauges stand on half of the globe


def test_draws_are_the_same_at_any_time_and_cost_16_evaluations_at_most(tmp_path, shards, world, monkeypatch):
    config, manifest = opened(tmp_path, shards)
    training, calls, forward = loop.Run(config, manifest, world), [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *given: calls.append(1) or forward(*given))
    training.engine.train(True)
    first = training.images.draw(1).read_bytes()
    assert 0 < len(calls) <= 16
    torch.rand(7)
    assert training.images.draw(2).read_bytes() == first
    assert training.engine.module.training  # as it was


def test_without_matplotlib_a_run_says_so_once_and_goes_on(tmp_path, shards, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(images, "Figure", None)
    folder = trained(tmp_path, shards)
    assert caplog.text.count("no images: matplotlib is not installed") == 1 and not (folder / "images").exists()
    assert len(lines(folder)) == 4
