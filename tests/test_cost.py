"""What a run will cost is known before it begins: against closed forms, a real engine and a real step's memory."""

import gc
import re
import resource
from dataclasses import astuple

import numpy as np
import pytest
import torch
from crew import joined
from test_train import write_config, write_tiny_shards

from slams.config import load
from slams.contracts.shards import Manifest, open_shards
from slams.model import ModelConfig, build_task
from slams.spec import OLR, PRECIPITATION, TEMPERATURE, Grid, StateSpec
from slams.statistics import Statistics
from train import cost
from train.__main__ import run
from train.config import TrainConfig
from train.cost import BUCKET, GIB, LIVE, Memory, Pass, count, memory
from train.data import DataConfig
from train.engine import Engine
from train.execution import EngineConfig, recompute_activations
from train.optim import Ema, OptimConfig, build_optimizer

CELLS = 16 * 32
SCORE = {"kind": "score", "frames": 3, "hidden": [32, 32], "blocks": [2, 2], "patterns": 2, "modes": 2}
AUTOENCODER = {"kind": "autoencoder", "hidden": [32], "blocks": [2], "latent_channels": 6, "reduction": 2}
PAPER = {"kind": "autoencoder", "network": "paper"}


class Imagined(Manifest):
    """Shards of which only the form is known."""

    def statistics(self):
        shape = (self.spec.n_channels, 1, 1)
        harmonics, observed = np.zeros((1, *shape)), np.ones((1, 1, 1), bool)
        static = {name: np.zeros(self.spec.grid.shape, np.float32) for name in ("land_fraction", "orography")}
        return Statistics(harmonics, np.ones(shape), np.zeros(shape[0], bool), observed, static)


def imagined(height, width, shape=None):
    spec = StateSpec(Grid(height, width), (TEMPERATURE, PRECIPITATION, OLR))
    return Imagined(None, {"spec": spec.to_json(), "shape": shape or (12, height, width), "shards": []})


def config_of(model, **engine):
    engine = EngineConfig(**{"precision": "fp32"} | engine)
    return TrainConfig("run", "", "bundle", ModelConfig(**model), DataConfig(batch=8), samples=100, engine=engine)


@pytest.fixture(scope="module", autouse=True)
def world():
    with joined() as found:
        yield found


def test_arithmetic_is_that_of_every_convolution_by_hand():
    """Five 5 x 5 convolutions each way; backward costs the same for weights and again for what entered."""
    pairs = [(12, 9), (9, 8), (8, 7), (7, 6), (6, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10)]
    each = [2 * 25 * channels_in * channels_out * CELLS for channels_in, channels_out in pairs]
    by_hand = 3 * sum(each) - each[0]  # no gradient with respect to the data
    for windows in (1, 4):
        assert count(config_of(PAPER), imagined(16, 32), windows).flops == by_hand
    assert count(config_of(PAPER, precision="bf16"), imagined(16, 32)).flops == by_hand


def test_what_is_computed_twice_to_save_memory_counts_once():
    usual, thrifty = (count(config_of(SCORE, activation_checkpointing=on), imagined(16, 32), 4) for on in (False, True))
    assert thrifty.flops == usual.flops and thrifty.activations < 0.9 * usual.activations


@pytest.mark.parametrize(
    ("stage", "alone", "of_eight", "exchange"),
    [  # bytes a parameter: weights, gradients, optimizer, average
        (0, (4, 4, 8, 4), (4, 4, 8, 4), (0, 4)),
        (1, (4, 4, 12, 4), (4, 4, 12 / 8, 4), (4, 4)),
        (2, (4, 4, 12, 4), (4, 4 / 8, 12 / 8, 4), (4, 4)),
        (3, (4, 4, 12, 4), (4 / 8, 4 / 8, 12 / 8, 4 / 8), (8, 8)),
    ],
)
def test_each_stage_shares_what_it_should(stage, alone, of_eight, exchange):
    passed = Pass(parameters=BUCKET, buffers=7, activations=11, flops=1.0)
    assert BUCKET < LIVE
    for processes, states, received in ((1, alone, exchange[0]), (8, of_eight, exchange[1])):
        found = memory(passed, stage, processes)
        assert astuple(found) == (*(each * BUCKET for each in states), 7, received * BUCKET, 11)
        assert found.total == (sum(states) + received) * BUCKET + 18


def held_bytes():
    """Every tensor that Python knows of, each piece of memory once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    tensors += [found.grad for found in tensors if found.is_leaf and found.grad is not None]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_are_what_a_real_engine_holds(world, stage):
    class Task(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = torch.nn.Sequential(*(torch.nn.Linear(200, 200, bias=False) for _ in range(16)))

        def forward(self, batch):
            return {"loss": (self.deep(batch["x"]) ** 2).mean()}

    before, task = held_bytes(), Task()
    engine = Engine(
        task, build_optimizer(task, OptimConfig()), EngineConfig(zero_stage=stage, precision="fp32"), world, 4
    )
    ema = Ema(engine.local(), 100, 4)
    for _ in range(2):
        engine.backward(engine.forward({"x": torch.ones(4, 200)})["loss"])
        norm = engine.gradient_norm()
        held = held_bytes() - before
        engine.step(1e-3, norm)
        ema.update(1)
    parts = memory(Pass(16 * 200**2, 0, 0, 0.0), stage, 1)
    kept = 4 * BUCKET if stage == 3 else 0  # of the exchange; stages 1 and 2 have let theirs go by now
    states = parts.weights + parts.gradients + parts.optimizer + parts.average
    assert held - kept == pytest.approx(states, rel=0.05)


def measured_peak(config, manifest, windows):
    """The most that torch's allocator had given out at once during a real step, by the profiler."""
    task = build_task(config.model, manifest.spec, manifest.shape, manifest.statistics())
    if config.engine.activation_checkpointing:
        recompute_activations(task)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(windows, config.model.frames, *manifest.shape, generator=generator)
    batch = {"x": x, "day": torch.ones(windows, config.model.frames, 5), "noise": x, "t": torch.full((windows,), 0.5)}
    for warm in (True, False):  # gradients are there before, and count elsewhere
        with torch.profiler.profile(profile_memory=not warm, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            task(batch)["loss"].backward()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    given = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    names = ("x", "day") if config.model.kind == "autoencoder" else ("x", "day", "noise", "t")
    return given.max() + sum(batch[name].numel() * 4 for name in names)


@pytest.mark.parametrize(
    ("model", "recompute"), [(SCORE, False), (AUTOENCODER, False), (PAPER, False), (SCORE, True), (AUTOENCODER, True)]
)
def test_activations_are_within_a_quarter_of_a_real_steps(model, recompute):
    config, manifest = config_of(model, activation_checkpointing=recompute), imagined(16, 32)
    predicted = count(config, manifest, 8).activations
    assert predicted == pytest.approx(measured_peak(config, manifest, 8), rel=0.25)


def test_the_large_preset_is_counted_without_the_memory_it_would_need():
    """And fits GPUs of 80 GB, eight of them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = load(TrainConfig, "configs/train/large_score.yaml", ["engine.precision=bf16"])
    passed = count(config, imagined(720, 1440, (32, 120, 240)), config.data.batch // 8)
    assert 0.2e9 < passed.parameters < 0.5e9 and passed.buffers > 4 * GIB
    assert memory(passed, config.engine.zero_stage, 8).total < 80e9
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 0.5 * GIB


def test_the_large_autoencoder_makes_the_latents_of_the_large_score_network():
    autoencoder = load(TrainConfig, "configs/train/large_autoencoder.yaml").model
    manifest = imagined(720, 1440)
    with torch.device("meta"):
        network = build_task(autoencoder, manifest.spec, manifest.shape, manifest.statistics()).network
        assert network.encode(torch.empty(1, *manifest.shape)).shape[1:] == (32, 120, 240)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


def test_a_dry_run_says_what_each_stage_holds(tmp_path, shards, caplog):
    caplog.set_level("INFO")
    assert run([str(write_config(tmp_path, shards, data={"batch": 16})), "--dry-run"]) == 0
    said = caplog.text
    parameters = count(load(TrainConfig, tmp_path / "train.yaml"), open_shards(shards)).parameters
    assert f"parameters: {parameters}, precision fp32" in said and "GFLOP a sample" in said
    rows = [line.split()[-10:] for line in said.splitlines() if line.count(".") >= 8]
    assert [(row[0], row[1]) for row in rows] == [(str(stage), str(n)) for n in (1, 8) for stage in range(4)]  # not 64
    assert all(float(row[-1]) == pytest.approx(sum(map(float, row[2:-1])), abs=0.05) for row in rows)


@pytest.mark.parametrize(
    ("where", "there", "words", "field"),
    [
        (
            "available",
            1e6,
            ["model.hidden=[99,99]", "data.batch=1", "data.cache_frames=0"],
            "engine.zero_stage: with 0",
        ),
        ("available", 1e6, ["data.batch=36", "data.cache_frames=0"], "engine.accumulation: with 1"),
        ("physical_memory", 1e5, ["data.cache_frames=0", "model.frames=5"], "model.frames: with 5"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, shards, monkeypatch, capsys, where, there, words, field):
    for name in ("available", "physical_memory"):
        monkeypatch.setattr(cost, name, lambda name=name: there if name == where else 1e12)
    assert run([str(write_config(tmp_path, shards)), *words, "--dry-run"]) == 2
    said = capsys.readouterr().err
    needed = re.fullmatch(
        rf"slams-train: {re.escape(field)} a process needs (\S+) GiB, and this machine has (\S+) GiB\n", said
    )
    assert needed and float(needed[1]) > float(needed[2]) == pytest.approx(there / GIB, rel=0.01)


def test_what_is_offloaded_lies_in_main_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cost, "available", lambda: 100)
    monkeypatch.setattr(cost, "physical_memory", lambda: 100)
    held = Memory(weights=20, gradients=20, optimizer=61, average=0, buffers=0, exchange=0, activations=0)
    manifest = imagined(16, 32)  # it has no frames, and so caches none
    with pytest.raises(ValueError, match=r"engine\.zero_stage: with 1"):
        cost.check_fits(config_of(PAPER, zero_stage=1), manifest, held)
    cost.check_fits(config_of(PAPER, zero_stage=1, offload=True), manifest, held)
    monkeypatch.setattr(cost, "physical_memory", lambda: 60)
    with pytest.raises(ValueError, match=r"engine\.offload: with True"):
        cost.check_fits(config_of(PAPER, zero_stage=1, offload=True), manifest, held)
