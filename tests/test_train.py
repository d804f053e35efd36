"""The training job keeps its promises: it resumes bit for bit, stops before damage, and refuses what is wrong."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from data_prep.shards import write_shards
from slams.config import ConfigError, load
from slams.contracts import envelope
from slams.contracts.bundle import open_bundle
from slams.contracts.envelope import ContractError, written_aside
from slams.contracts.shards import open_shards
from slams.model import open_autoencoder, open_score
from slams.patterns import season_of
from slams.spec import PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics, day_features
from train import engine, loop, prior
from train.__main__ import run
from train.config import TrainConfig
from train.data import Portion, Reader, plan, training_noise, validation_noise
from train.engine import LAUNCH_VARIABLES, EngineConfig, launch, opened_world
from train.guard import explained
from train.optim import Ema, OptimConfig, learning_rate
from train.telemetry import CLOCK

ROOT = Path(__file__).parents[1]
SPEC = StateSpec(Grid(8, 16), (Modality("temperature", "state", "K", "air_temperature", (500, 850)), PRECIPITATION))
PRIOR = {"modes": 2, "patterns": 2, "background_error": 0.3}  # few for few days


def write_tiny_shards(folder, spoiled_day=None):
    """40 train days and 12 validation days of smooth noise; rain is missing on half the globe."""
    generator = np.random.default_rng(0)
    observed = np.ones((3, 8, 16), bool)
    observed[2, :, 8:] = False
    static = {"land_fraction": np.zeros(SPEC.grid.shape, np.float32)}
    statistics = Statistics(
        np.full((1, 3, 1, 1), 2.0), np.full((3, 1, 1), 3.0), np.array([False, False, True]), observed, static
    )

    def frames():
        for run_number, (first, n_days) in enumerate((("2001-01-01", 40), ("2005-01-01", 12))):
            x = generator.standard_normal(observed.shape)
            for day in range(n_days):
                x = 0.9 * x + 0.4 * generator.standard_normal(x.shape)
                value = 1e30 if (run_number, day) == (0, spoiled_day) else x
                seen = observed.copy()
                seen[2, :, :4] &= day % 3 != 1  # rain has gaps
                yield np.datetime64(first) + day, run_number, np.where(seen, value, np.nan).astype(np.float32)

    document = {"config": {}, "content": "state", "splits": {"train": [2001, 2001], "validation": [2005, 2005]}}
    with written_aside(folder) as aside:
        write_shards(
            aside, frames(), spec=SPEC, statistics=statistics, frames_per_shard=16, keepbits=12, document=document
        )
    return folder


def write_config(folder, shards, **changes):
    """A YAML of a short score-network run, and its path; lengths in steps of a batch of six."""
    config = {
        "folder": str(folder / "run"),
        "shards": str(shards),
        "bundle": str(folder / "bundle"),
        "steps": 24,
        "model": {"kind": "score", "frames": 3, "hidden": [8, 8], "blocks": [1, 1]} | PRIOR,
        "data": {"batch": 6},
        "engine": {"precision": "fp32", "torch_threads": 1},
        "optim": {"learning_rate": 1e-3, "warmup_samples": 18, "ema_half_life_samples": 40},
        "log_every": 2,
        "validate_every": 12,
        "checkpoint_every": 5,
        "wandb": "disabled",
    }
    folder.mkdir(exist_ok=True)
    path = folder / "train.yaml"
    config |= changes
    config["samples"] = config.pop("steps")
    for name in ("samples", "log_every", "validate_every", "checkpoint_every"):
        config[name] *= config["data"]["batch"]
    path.write_text(yaml.safe_dump(config))
    return path


def alone():
    """An environment without a launcher."""
    return {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES}


def lines(folder):
    """The metrics without the clock's."""
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in found]


def assert_same_result(left, right):
    assert lines(left) == lines(right)
    for which in ("ema", "raw"):
        a, b = (open_bundle(folder / "bundle").weights(which) for folder in (left, right))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def world():
    """One world for the module: joining it costs more than a short run."""
    kept = {name: os.environ.pop(name) for name in LAUNCH_VARIABLES if name in os.environ}
    with opened_world(EngineConfig(torch_threads=1)) as found:
        yield found
    for name in LAUNCH_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def shared_world(monkeypatch, world):
    monkeypatch.setattr(loop, "opened_world", lambda config: nullcontext(world))
    monkeypatch.setattr(loop.StopRequest, "listen", lambda self: None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, shards, world):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "opened_world", lambda config: nullcontext(world))
        patch.setattr(loop.StopRequest, "listen", lambda self: None)
        assert run([str(write_config(folder, shards))]) == 0
    return folder


def start(config, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "train", str(config), *words], cwd=ROOT, env=alone(), stdout=subprocess.PIPE, text=True
    )


def wait_for_step(folder, step):
    path = folder / "run" / "metrics.jsonl"
    for _ in range(6000):
        if path.exists() and any(json.loads(text)["step"] >= step for text in path.read_text().split("\n")[:-1]):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached in a minute")


def test_a_signal_then_kill_9_then_the_same_command_equals_a_run_that_nothing_stopped(tmp_path, shards, reference):
    config = write_config(tmp_path, shards)
    first = start(config)
    wait_for_step(tmp_path, 2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == loop.STOPPED_EARLY
    saved = lines(tmp_path)[-1]["step"]
    second = start(config, "wandb=offline")
    wait_for_step(tmp_path, max(14, saved + 2))
    second.kill()
    second.wait(60)
    assert not (tmp_path / "bundle").exists() and any((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert run([str(config)]) == 0
    assert_same_result(tmp_path, reference)


def test_a_stop_between_lines_of_metrics_keeps_their_means(tmp_path, shards, reference, monkeypatch):
    config = write_config(tmp_path, shards)
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "asked", True)
        assert run([str(config)]) == loop.STOPPED_EARLY  # after step 1 of the 2 that make a line
    assert run([str(config)]) == 0
    assert_same_result(tmp_path, reference)


@pytest.mark.parametrize("dies_in", ["Validation.run", "Exports.write", "Checkpoints.validated"])
def test_what_a_validation_dies_of_costs_no_step(tmp_path, shards, reference, monkeypatch, dies_in):
    """Saved at the steps that are validated, as in every preset; killed at any moment of a validation."""
    config = str(write_config(tmp_path, shards, checkpoint_every=12))
    kind, method = dies_in.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(loop, kind), method, lambda *given, **more: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            run([config])
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000012"]
    assert run([config]) == 0
    assert_same_result(tmp_path, reference)


def test_no_validation_begins_once_a_stop_is_asked_for(tmp_path, shards, monkeypatch):
    """The step is saved and validated by the next call, the last step too."""
    changes = {"steps": 2, "validate_every": 1, "optim": {"learning_rate": 1e-3}}
    whole, stopped = (str(write_config(tmp_path / name, shards, **changes)) for name in ("whole", "stopped"))
    assert run([whole]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "asked", True)
        for step in (1, 2):
            assert run([stopped]) == loop.STOPPED_EARLY
            assert not (tmp_path / "stopped" / "run" / "bundles" / f"step-{step:06d}").exists()
        assert run([stopped]) == loop.DONE
    assert_same_result(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(("stage", "saved_by"), [(0, "this"), (3, "this"), (0, "an earlier"), (3, "an earlier")])
def test_a_prior_is_fitted_once_and_comes_back(tmp_path, shards, reference, monkeypatch, stage, saved_by):
    """From its file; what an earlier version has saved, from the checkpoint."""
    words = [str(write_config(tmp_path, shards)), f"engine.zero_stage={stage}"]
    path = tmp_path / "run" / "prior.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "asked", True)
        if saved_by == "an earlier":
            patch.setattr(engine, "_say_nothing", lambda *given: None)
            patch.setattr(loop.Checkpoints, "needs", lambda *given: None)
        assert run(words) == loop.STOPPED_EARLY
    saved = (tmp_path / "run" / "checkpoints" / "step-000001" / "engine").glob("*model_states.pt")
    (state,) = (torch.load(part, weights_only=False)["module"] for part in saved)
    assert any(".prior." in name for name in state) == (saved_by == "an earlier")
    if saved_by == "an earlier":
        path.unlink()
    monkeypatch.setattr(prior, "fit_prior", lambda *given: pytest.fail("fitted anew"))
    assert run(words) == 0 and path.exists()
    ours, theirs = (open_bundle(folder / "bundle").weights() for folder in (tmp_path, reference))
    assert ours.keys() == theirs.keys() and any(name.startswith("prior.") for name in ours)
    for name in ours:
        exact = {"rtol": 0, "atol": 0} if name.startswith("prior.") else {"rtol": 1e-3, "atol": 1e-4}
        np.testing.assert_allclose(ours[name], theirs[name], err_msg=name, **exact)


def test_a_fit_outlives_a_run_that_dies_before_its_first_step(tmp_path, shards, reference, monkeypatch):
    """And a prior of another configuration, or one that a crash of the machine tore, is not taken for it."""
    config = str(write_config(tmp_path, shards))
    forward, fitted, fit = loop.Engine.forward, [], prior.fit_prior
    monkeypatch.setattr(loop.Engine, "forward", lambda *given: pytest.fail("killed"))
    monkeypatch.setattr(prior, "fit_prior", lambda *given: fitted.append(fit(*given)))
    for words, fits in (([], 1), ([], 1), (["model.patterns=3"], 2), ([], 3), (["optim.learning_rate=1e-4"], 3)):
        with pytest.raises(pytest.fail.Exception):
            run([config, *words])
        assert len(fitted) == fits
    path = tmp_path / "run" / "prior.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(loop.Engine, "forward", forward)
    assert run([config]) == 0 and len(fitted) == 4
    assert_same_result(tmp_path, reference)


def test_a_prior_that_is_not_the_one_a_checkpoint_was_made_with_is_refused(tmp_path, shards, capsys):
    command = [str(write_config(tmp_path, shards))]
    assert run([*command, "time_limit_minutes=1e-9"]) == 75
    path = tmp_path / "run" / "prior.safetensors"
    whole = path.read_bytes()
    for content in (None, whole[:-1] + bytes([whole[-1] ^ 1])):
        path.unlink() if content is None else path.write_bytes(content)
        assert run(command) == 2
        assert "no checkpoint there is whole" in capsys.readouterr().err
    path.write_bytes(whole)
    assert run(command) == 0


def test_a_process_does_not_wait_for_ever_for_a_prior(tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "LONGEST_FIT", 0.0)
    with pytest.raises(ConfigError, match=r"prior.safetensors: process 0 has not fitted it within 0 hours"):
        prior._wait(lambda: False, tmp_path / "prior.safetensors")


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_the_first_loss_is_that_of_the_prior_alone(tmp_path, shards, error):
    """v - v* = (alpha^2 + sigma^2) / sigma (z - d): the prior's own error of each window of the first batch."""
    word, lead = f"model.background_error={error}", int(error > 0)
    assert run([str(write_config(tmp_path, shards, log_every=1, steps=4)), word]) == 0
    denoiser, model = open_score(open_bundle(tmp_path / "bundle"))
    prior, manifest = denoiser.network.prior, open_shards(shards)
    order = {"seed": 0, "batch": 6, "rank": 0, "size": 1, "accumulation": 1, "start": 0, "stop": 1}
    (portion,) = plan(manifest.windows("train", 3 + lead), **order)
    reader = Reader(manifest, 3, 99, lead)
    z = torch.from_numpy(np.nan_to_num(reader.windows(portion.windows)))
    drawn = {name: torch.from_numpy(part) for name, part in training_noise(0, 6)(portion, z.shape[1:]).items()}
    alpha, sigma = denoiser.sde.alpha(drawn["t"]), denoiser.sde.sigma(drawn["t"])
    squares = []
    for i, (a, s) in enumerate(zip(alpha, sigma, strict=True)):
        own, noise = z[i : i + 1], drawn["noise"][i : i + 1]
        told = lead and drawn["chance"][i] >= model.background_dropped
        z_b = own[:, 0] + prior.forecast.draw_error(noise[:, 0]) if told else None
        day = torch.from_numpy(day_features(reader.days(portion.windows[i])))[None]
        d = prior(a * own[:, lead:] + s * noise[:, lead:], a.reshape(1), s.reshape(1), season_of(day), z_b)
        squares.append(((a**2 + s**2) / s * (own[:, lead:] - d)) ** 2)
    loss = torch.stack(squares).mean().item()
    assert lines(tmp_path)[0]["loss"] == pytest.approx(loss, rel=1e-4) and loss < 0.8
    assert not lead or 0 < sum(drawn["chance"] >= model.background_dropped) < 6  # some are told, some are not


def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_used(tmp_path, shards, reference, caplog):
    shutil.copytree(reference / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000024"
    assert sorted(p.name for p in newest.parent.iterdir()) == ["step-000020", "step-000024"]
    spoiled = next(newest.glob("engine/*"))
    spoiled.write_bytes(spoiled.read_bytes()[:-100])
    assert run([str(write_config(tmp_path, shards))]) == 0
    assert "step-000024: the checksum of engine/" in caplog.text
    assert_same_result(tmp_path, reference)


def test_a_run_goes_on_only_with_the_configuration_it_began_with(tmp_path, shards, reference, capsys):
    shutil.copytree(reference / "run", tmp_path / "run")
    assert run([str(write_config(tmp_path, shards)), "seed=1"]) == 2
    assert "was made with another seed" in capsys.readouterr().err


def test_a_finished_run_changes_nothing_and_another_configuration_is_refused(reference, capsys, monkeypatch):
    monkeypatch.setattr(loop, "opened_world", lambda config: pytest.fail("nothing is left to do"))
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*")}
    assert run([str(reference / "train.yaml")]) == 0
    assert run([str(reference / "train.yaml"), "samples=150"]) == 2
    assert "made with another configuration (different: samples)" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in reference.rglob("*")}


def test_a_crash_while_python_ends_does_not_count_as_one_of_the_job(reference):
    """As gloo's, which sometimes comes after all work is done: schedulers would call the job failed."""
    code = f"import atexit, os, sys; atexit.register(os.abort); sys.argv = ['train', {str(reference / 'train.yaml')!r}]"
    command = [sys.executable, "-c", f"{code}; from train.__main__ import main; main()"]
    done = subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "finished already" in done.stdout


def test_the_bundle_opens_as_the_denoiser_it_was_trained_to_be(reference, shards):
    bundle, manifest = open_bundle(reference / "bundle"), open_shards(shards)
    assert (
        bundle.spec == manifest.spec and bundle.document["statistics_sha256"] == manifest.document["statistics_sha256"]
    )
    assert bundle.document["report"]["validation/loss"] == lines(reference)[-1]["validation/loss"]
    ema, raw = bundle.weights("ema"), bundle.weights("raw")
    assert any((ema[name] != raw[name]).any() for name in ema)
    denoiser, config = open_score(bundle)
    x = torch.zeros(2, config.frames, *bundle.document["input"])
    assert denoiser(x, torch.tensor(0.5), torch.zeros(2, config.frames, 5)).shape == x.shape


def test_training_lowers_the_validation_loss(reference):
    losses = [line["validation/loss"] for line in lines(reference) if "validation/loss" in line]
    assert losses[-1] < losses[0] < 1  # it starts from the prior; the loss of the zero prediction is near 1


def test_each_validation_leaves_a_bundle_and_the_best_becomes_the_model(tmp_path, shards, monkeypatch):
    """A validation loss that falls, then rises: the bundle is that of the lowest, the newest stays beside it."""
    losses = iter([0.5, 0.3, 0.4, 0.6])
    monkeypatch.setattr(loop.Validation, "run", lambda self: {"validation/loss": next(losses)})
    assert run([str(write_config(tmp_path, shards, steps=8, validate_every=2))]) == 0
    assert sorted(p.name for p in (tmp_path / "run" / "bundles").iterdir()) == ["step-000004", "step-000008"]
    report = open_bundle(tmp_path / "bundle").document["report"]
    assert report == {"validation/loss": 0.3, "validation/best": 0.3, "validation/best_step": 4}
    newest = open_bundle(tmp_path / "run" / "bundles" / "step-000008")
    assert newest.document["report"]["validation/best_step"] == 4
    open_score(newest)  # whole, and ready for sampling
    best, last = (open_bundle(path).weights("raw") for path in (tmp_path / "bundle", newest.folder))
    assert any((best[name] != last[name]).any() for name in best)


@pytest.mark.parametrize("stage", [0, 3])
def test_only_rank_0_holds_the_weights_twice(tmp_path, shards, world, stage):
    config = load(TrainConfig, write_config(tmp_path, shards), [f"engine.zero_stage={stage}"])
    training = loop.Run(config, open_shards(shards), world)
    network = training.engine.module.task.network
    copies = training.exports._copied(network.named_parameters)
    with training.engine.whole():
        for name, value in network.named_parameters():
            np.testing.assert_array_equal(copies[name], value.detach())
            assert copies[name].size and copies[name].ctypes.data != value.data_ptr()
    training.engine.world = replace(world, rank=1)
    assert training.exports._copied(network.named_parameters) == {}


def test_bundles_are_told_apart_by_their_numbers(tmp_path, shards, world):
    """Which have another digit from step 1000000 on."""
    config, manifest = load(TrainConfig, write_config(tmp_path, shards)), open_shards(shards)
    exports = loop.Exports(config, manifest, SimpleNamespace(world=world), None)
    for step in (999_990, 999_995, 1_000_000):
        (exports.folder / f"step-{step}").mkdir(parents=True)
    exports.forget({"validation/best_step": 999_990.0})
    assert sorted(p.name for p in exports.folder.iterdir()) == ["step-1000000", "step-999990"]


def test_a_bundle_names_the_configuration_that_its_run_ended_with(tmp_path, shards, monkeypatch):
    """What may change on the way, such as accumulation, does not keep the last command from finding itself done."""
    losses, asked = iter([0.3, 0.4]), iter([False, True])
    monkeypatch.setattr(loop.Validation, "run", lambda self: {"validation/loss": next(losses)})
    command = [str(write_config(tmp_path, shards, steps=4, validate_every=1, optim={})), "samples=12"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "asked", property(lambda self: next(asked)))
        assert run(command) == loop.STOPPED_EARLY
    assert run([*command, "engine.accumulation=2"]) == run([*command, "engine.accumulation=2"]) == loop.DONE
    assert open_bundle(tmp_path / "bundle").document["report"]["validation/best_step"] == 1


def test_the_loss_is_told_by_noise_level(tmp_path, shards):
    """Against the bundle's own network, window by window."""
    assert run([str(write_config(tmp_path, shards, steps=4)), "model.background_error=0"]) == 0
    report, manifest = lines(tmp_path)[-1], open_shards(shards)
    denoiser, _ = open_score(open_bundle(tmp_path / "bundle"))
    windows, reader = manifest.windows("validation", 3), Reader(manifest, 3, 99)
    drawn = validation_noise(len(windows))(Portion(1, 0, windows, np.zeros(len(windows), int)), (3, *manifest.shape))
    by_fifth = {}
    for i, (window, t) in enumerate(zip(windows, drawn["t"], strict=True)):
        z, noise = (torch.from_numpy(np.nan_to_num(x)) for x in (reader.windows([window]), drawn["noise"][i : i + 1]))
        alpha, sigma = denoiser.sde.alpha(torch.tensor(t)), denoiser.sde.sigma(torch.tensor(t))
        day = torch.from_numpy(day_features(reader.days(window))).float()[None]
        d = denoiser(alpha * z + sigma * noise, torch.tensor(t), day)
        error = (alpha**2 + sigma**2) / sigma * (z - d)  # of v
        by_fifth.setdefault(f"{(int(t * 5) + 0.5) / 5:.1f}", []).append((error**2).mean().item())
    assert len(windows) <= 24 and len(by_fifth) == 5
    for fifth, losses in by_fifth.items():
        assert report[f"validation/loss/t={fifth}"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_time_limit_saves_and_leaves_as_a_signal_does(tmp_path, shards, reference):
    config = str(write_config(tmp_path, shards))
    assert run([config, "time_limit_minutes=1e-6"]) == loop.STOPPED_EARLY
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir() and not (tmp_path / "bundle").exists()
    assert run([config]) == 0
    assert_same_result(tmp_path, reference)


def test_an_autoencoder_reports_its_error_in_physical_units(tmp_path, shards):
    model = {"kind": "autoencoder", "network": "paper"}
    assert run([str(write_config(tmp_path, shards, model=model, steps=4))]) == 0
    bundle = open_bundle(tmp_path / "bundle")
    network, statistics = open_autoencoder(bundle), bundle.statistics()
    manifest = open_shards(shards)
    frames = [manifest.frames[i] for i in manifest.windows("validation", 1)]
    time_, x = np.array([f.time for f in frames]), np.stack([manifest.read(f) for f in frames])
    decoded = np.concatenate([_decode(network, x), x[:, 2:]], axis=1)
    error = statistics.physical(decoded, time_) - statistics.physical(x, time_)
    rmse = np.sqrt((error**2 * SPEC.grid.area_weights).sum(axis=(2, 3)).mean(axis=0))
    for i, name in enumerate(("temperature_500", "temperature_850")):
        assert bundle.document["report"][f"rmse/{name}"] == pytest.approx(rmse[i], rel=1e-4)


def _decode(network, x):
    with torch.no_grad():
        return network.decode(network.encode(torch.from_numpy(x))).numpy()


def test_a_loss_that_is_no_number_stops_before_the_weights_move(tmp_path, world, capsys, monkeypatch):
    spoiled = write_tiny_shards(tmp_path / "spoiled", spoiled_day=0)
    seen = []
    moved = loop.Engine.step

    def recorded(engine, *arguments):
        found = moved(engine, *arguments)
        seen.append((engine, [w.clone() for w in engine.local()]))
        return found

    monkeypatch.setattr(loop.Engine, "step", recorded)
    model = {"kind": "score", "network": "paper", "frames": 3, "hidden": [8, 8], "blocks": [1, 1]}
    assert run([str(write_config(tmp_path, spoiled, model=model))]) == 1
    said = capsys.readouterr().err
    assert re.match(rf"slams-train: step {len(seen)}: loss (nan|inf)", said) and "2001-01-01" in said
    told = json.loads((tmp_path / "run" / f"stopped-at-step-{len(seen)}-process-0.json").read_text())
    assert told["values"]["loss"] in ("nan", "inf") and "2001-01-01" in told["windows"]
    engine, after = seen[-1]  # fails when it was the first step: then another seed is needed
    assert all(torch.equal(a, b) and torch.isfinite(b).all() for a, b in zip(after, engine.local(), strict=True))


class Spoiled(torch.autograd.Function):
    """The loss as it is, and no gradient that is a number."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_no_number_stops_before_the_weights_move(tmp_path, shards, capsys, monkeypatch, stage):
    engines, forward = [], loop.Engine.forward

    def spoiled(self, batch):
        found = forward(self, batch)
        engines.append((self, [weight.clone() for weight in self.local()]))
        return found | {"loss": Spoiled.apply(found["loss"])} if len(engines) == 3 else found

    monkeypatch.setattr(loop.Engine, "forward", spoiled)
    assert run([str(write_config(tmp_path, shards)), f"engine.zero_stage={stage}"]) == 1
    said = capsys.readouterr().err
    assert "step 2: gradient_norm" in said and "windows that begin on 2001-" in said
    engine, before = engines[-1]
    assert all((now == then).all() for now, then in zip(engine.local(), before, strict=True))


def test_a_validation_that_is_no_number_stops_and_names_its_days(tmp_path, shards, capsys, monkeypatch):
    monkeypatch.setattr(loop.Validation, "run", lambda self: {"validation/loss": float("nan")})
    assert run([str(write_config(tmp_path, shards, steps=4, validate_every=2))]) == 1
    said = capsys.readouterr().err
    assert "step 2: validation/loss nan" in said and "2005-01-0" in said and said.count("\n") == 1


def test_two_runs_in_one_folder_are_refused(tmp_path, shards, capsys):
    config = write_config(tmp_path, shards, steps=4)
    with envelope.alone(tmp_path / "run", tmp_path / "run" / "lock"):
        assert run([str(config)]) == 2
    assert f"{tmp_path / 'run'}: process {os.getpid()} of" in capsys.readouterr().err
    assert run([str(config)]) == 0


def test_the_best_bundle_stays_until_a_checkpoint_no_longer_asks_for_it(tmp_path, shards, monkeypatch):
    """Killed between a better validation and its checkpoint; when gone on with, rounding makes it no better."""
    losses = iter([3.0, 2.0, 2.5, 2.5])
    run_validation = loop.Validation.run
    monkeypatch.setattr(loop.Validation, "run", lambda self: run_validation(self) | {"validation/loss": next(losses)})
    config = str(write_config(tmp_path, shards, steps=12, validate_every=4, checkpoint_every=5))
    kept = loop.Run._log
    monkeypatch.setattr(loop.Run, "_log", lambda self: kept(self) if self.step != 10 else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        run([config])
    monkeypatch.setattr(loop.Run, "_log", kept)
    losses = iter([3.5, 3.5])
    assert run([config]) == 0
    assert open_bundle(tmp_path / "bundle").document["report"]["validation/best_step"] == 4


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, shards):
    """No file may become larger than a small checkpoint's; with room again the same command ends well."""
    config = str(write_config(tmp_path, shards, steps=4))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    command = [sys.executable, "-m", "train", config]
    done = subprocess.run(command, cwd=ROOT, env=alone(), preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("slams-train: ") and done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr and not (tmp_path / "bundle").exists()
    assert run([config]) == 0


def test_a_disk_that_fills_while_the_average_is_saved_is_one_sentence(tmp_path, shards, capsys, monkeypatch):
    save = torch.save
    full = lambda value, path, **more: save(value, "/dev/full" if "ema-" in str(path) else path, **more)  # noqa: E731
    monkeypatch.setattr("train.checkpoint.torch.save", full)
    assert run([str(write_config(tmp_path, shards)), "time_limit_minutes=1e-9"]) == 2
    said = capsys.readouterr().err
    assert "step-000001.partial: cannot be written (" in said and said.count("\n") == 1


def test_a_reading_process_that_is_killed_is_one_sentence(tmp_path, shards, capsys, monkeypatch):
    forward = loop.Engine.forward

    def killing(self, batch):
        for reader in multiprocessing.active_children():
            reader.kill()
        return forward(self, batch)

    monkeypatch.setattr(loop.Engine, "forward", killing)
    assert run([str(write_config(tmp_path, shards)), "data.workers=1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("slams-train: data.workers: a reading process was ended, ") and said.count("\n") == 1


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_killed_reading_process_is_one_sentence_also_while_it_dies(tmp_path, shards, capsys, monkeypatch, broken):
    """Its pipe is broken already and the process not yet dead: torch passes on what the pipe said."""

    def get(*given, **more):
        raise broken

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", get)
    assert run([str(write_config(tmp_path, shards)), "data.workers=1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("slams-train: data.workers: a reading process was ended, ") and said.count("\n") == 1


def test_too_little_memory_is_one_sentence_and_a_mistake_of_the_program_is_none(tmp_path, shards, capsys, monkeypatch):
    config = str(write_config(tmp_path, shards))
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError("a bug")):
        monkeypatch.setattr(loop.Engine, "forward", lambda *given, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(RuntimeError, match="a bug") if "bug" in str(error) else nullcontext():
            assert run([config]) == 1
    said = capsys.readouterr().err
    assert said.startswith("slams-train: data.batch: the memory is too small for a step; ") and said.count("\n") == 1
    assert "engine.accumulation" in said and "engine.activation_checkpointing" in said and "2.00 GiB" in said


@pytest.mark.parametrize(
    "said",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:12345",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, remote process exited",
    ],
)
def test_a_lost_process_is_one_sentence(said):
    assert "another process was lost" in explained(RuntimeError(said)) and said in explained(RuntimeError(said))


def test_wandb_that_cannot_go_online_is_one_sentence(tmp_path, shards, capsys, monkeypatch):
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run([str(write_config(tmp_path, shards, wandb="online"))]) == 2
    assert "slams-train: wandb: online is not possible here (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["samples=300", "engine.gradient_clipping=0.5", "validation_windows=4", "engine.precision=bf16"]
)
def test_what_would_make_two_runs_of_one_is_refused(tmp_path, shards, capsys, word):
    config = str(write_config(tmp_path, shards, steps=4, checkpoint_every=2))
    assert run([config, "time_limit_minutes=1e-9"]) == 75
    assert run([config, word]) == 2
    assert "was made with another" in capsys.readouterr().err
    assert run([config]) == 0


@pytest.mark.parametrize("first", ["fp32", "bf16"])
def test_an_open_precision_stays_what_it_was(tmp_path, shards, monkeypatch, world, first):
    """On another machine than the run began on."""
    command = [str(write_config(tmp_path, shards, steps=4)), "engine.precision=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "opened_world", lambda config: nullcontext(replace(world, bf16=first == "bf16")))
        assert run([*command, "time_limit_minutes=1e-9"]) == 75
    monkeypatch.setattr(loop, "opened_world", lambda config: nullcontext(replace(world, bf16=first == "fp32")))
    computed, forward = set(), loop.Engine.forward
    monkeypatch.setattr(
        loop.Engine, "forward", lambda self, batch: computed.add(self.module.enabled) or forward(self, batch)
    )
    assert run(command) == 0 and computed == {first == "bf16"}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["precision"] == first


def test_a_prior_is_not_fitted_to_what_no_weather_is(tmp_path, capsys):
    spoiled = write_tiny_shards(tmp_path / "spoiled", spoiled_day=7)
    assert run([str(write_config(tmp_path, spoiled))]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"slams-train: {spoiled}: 2001-01-08 is 1e+30 standard deviations from the mean, 1000 at")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named(tmp_path, shards, capsys, workers):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    data = bytearray((copy / "frames-00001.tar").read_bytes())
    data[open_shards(copy).frames[20].offset + 40] ^= 1
    (copy / "frames-00001.tar").write_bytes(data)
    assert run([str(write_config(tmp_path, copy)), f"data.workers={workers}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("slams-train: ") and "frames-00001.tar: the checksum of frame" in said


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optim.lr=1", "lr"),
        ("engine.zero_stage=4", "zero_stage: 4 is not allowed; 0, 1, 2 or 3"),
        ("data.batch=100", "data.batch: 100 is larger than the 37 windows"),
        ("engine.accumulation=4", "data.batch: 6 does not divide over 1 processes x 4 micro-batches"),
        ("model.patterns=19 --dry-run", "model.patterns: 19 is more than half of the 37 windows of the train split"),
        ("model.patterns=19", "model.patterns: 19 is more than half of the 37 windows of the train split"),
        ("shards=/nowhere", "/nowhere/manifest.json: no such file"),
        ("bundle=s3://bucket/model", "bundle: s3://bucket/model is not allowed"),
        ("folder=runs/x bundle=runs", "bundle: runs is not allowed; neither the run's folder nor one above it"),
        ("folder=runs/x bundle=runs/x/bundles", "bundle: runs/x/bundles is not allowed; "),
        (f"folder=runs/x bundle={ROOT}/runs/x/checkpoints/model", "runs/x/checkpoints is for the run's own work"),
        ("bundle=README.md/model", "README.md"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, shards, capsys, word, sentence):
    assert run([str(write_config(tmp_path, shards)), *word.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("slams-train: ") and said.count("\n") == 1 and sentence in said


def test_a_dry_run_writes_nothing(tmp_path, shards, caplog):
    caplog.set_level("INFO")
    assert run([str(write_config(tmp_path, shards)), "--dry-run"]) == 0
    assert "batches an epoch: 7" in caplog.text and "parameters: " in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["train.yaml"]


def test_half_a_launcher_is_refused(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert launch() == (0, 1, 0)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="RANK set, but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        launch()


def test_an_autoencoder_does_not_learn_latents(tmp_path, shards):
    model = {"kind": "autoencoder"}
    manifest = open_shards(shards)
    manifest.document["content"] = "latent"
    with pytest.raises(ContractError, match="holds latent frames"):
        loop.initial_task(load(TrainConfig, write_config(tmp_path, shards, model=model)), manifest)


def test_schedules_start_and_end_where_they_say():
    linear = OptimConfig(learning_rate=1.0, schedule="linear", warmup_samples=40)
    rates = [learning_rate(linear, s, batch=10, last=140) for s in (0, 30, 40, 90)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.5])
    cosine = OptimConfig(learning_rate=1.0, schedule="cosine")
    assert [learning_rate(cosine, s, batch=1, last=12) for s in (0, 4, 6)] == pytest.approx([1.0, 0.75, 0.5])


@pytest.mark.parametrize("batch", [4, 6, 12])
def test_intervals_in_samples_mean_the_same_at_any_batch(shards, tmp_path, batch):
    path = write_config(tmp_path, shards)
    config = load(TrainConfig, path, [f"data.batch={batch}", "samples=144", "checkpoint_every=36"])
    assert config.steps * batch == 144
    due = [step * batch for step in range(1, config.steps + 1) if config.due(36, step)]
    assert due == [36, 72, 108, 144]


def test_the_average_forgets_half_in_its_half_life():
    weight = torch.zeros(3)
    ema = Ema([weight], half_life_samples=40, batch=4)
    ema.average[0].fill_(1.0)
    for step in range(10):
        ema.update(1000 + step)
    torch.testing.assert_close(ema.average[0], torch.full((3,), 0.5))
    with ema.applied():
        assert weight[0] == pytest.approx(0.5) and ema.average[0][0] == 0
    assert weight[0] == 0 and ema.average[0][0] == pytest.approx(0.5)
