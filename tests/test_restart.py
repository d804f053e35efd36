"""Whatever stops a run, at whatever moment: the same command goes on, and the result is as if nothing had."""

import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from crew import ROOT, joined, outside
from test_engine import BATCH, STEPS, Task, batches, one_step, start_engine, weights
from test_train import assert_same_result, lines, write_config, write_tiny_shards

from slams.contracts.envelope import ContractError
from train import loop
from train.__main__ import run
from train.checkpoint import Checkpoints
from train.optim import Ema

HALF = STEPS // 2
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module", autouse=True)
def world():
    with joined() as found:
        yield found


class Training:
    """A small training with all that a checkpoint must bring back: weights, moments, average, buffers."""

    def __init__(self, world, folder, stage, shift=0.0):
        task = Task()
        for value in task.state_dict().values():
            value += shift  # what is restored must not have been there already
        self.engine = start_engine(task, world, zero_stage=stage)
        self.ema = Ema(self.engine.local(), 8, BATCH)
        self.checkpoints = Checkpoints(folder, self.engine, self.ema, {"seed": 0})

    def steps(self, first, last):
        for step, micros in list(enumerate(batches(1), 1))[first:last]:
            one_step(self.engine, micros)
            self.ema.update(step)

    def state(self):
        with self.ema.applied():
            average = weights(self.engine)
        return [*weights(self.engine), *average, *self.engine.module.buffers()]


@pytest.fixture(scope="module", params=STAGES)
def interrupted(request, world, tmp_path_factory):
    """A training at one stage: its checkpoint half-way, and its end."""
    folder, stage = tmp_path_factory.mktemp(f"stage-{request.param}"), request.param
    training = Training(world, folder, stage)
    training.steps(0, HALF)
    training.engine.module.task.scale.mul_(1.5)  # as running statistics change
    training.checkpoints.save(HALF, {"loss": 3.0}, {"validation/loss": 2.0}, owes_validation=True)
    training.steps(HALF, STEPS)
    return folder, stage, training.state()


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_any_stage_goes_on_at_any_stage(world, interrupted, stage):
    folder, saved_at, expected = interrupted
    (folder / "step-000003.universal" / "form").mkdir(parents=True, exist_ok=True)  # as a kill leaves it
    training = Training(world, folder, stage, shift=1.0)
    assert training.checkpoints.restore() == (HALF, {"loss": 3.0}, {"validation/loss": 2.0}, True)
    training.steps(HALF, STEPS)
    exact = {"rtol": 0, "atol": 0} if stage == saved_at else {"rtol": 1e-5, "atol": 1e-7}
    for found, value in zip(training.state(), expected, strict=True):
        torch.testing.assert_close(found, value, **exact)
    assert stage == saved_at or names(training.checkpoints) == ["step-000003"]


@pytest.fixture
def checkpoints(world, tmp_path):
    return Training(world, tmp_path / "checkpoints", 0).checkpoints


def save(checkpoints, step, best=False):
    """A step saved, and validated afterwards."""
    checkpoints.save(step, {}, {}, owes_validation=True)
    checkpoints.validated(step, {"validation/loss": 1.0}, best)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_checkpoints_and_the_best_stay(checkpoints):
    for step, best, left in (
        (1, True, [1]),
        (2, False, [1, 2]),
        (3, True, [2, 3]),
        (4, False, [3, 4]),
        (5, False, [3, 4, 5]),
        (6, False, [3, 5, 6]),
        (7, True, [6, 7]),
    ):
        save(checkpoints, step, best)
        assert names(checkpoints) == [f"step-{n:06d}" for n in left]
    checkpoints.keep = 1
    save(checkpoints, 8)
    assert names(checkpoints) == ["step-000007", "step-000008"]


def test_a_removal_cut_short_is_finished_by_the_next_save(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step, best=step == 1)
    (checkpoints.folder / "step-000001" / "state.json").unlink()
    save(checkpoints, 4)
    assert names(checkpoints) == ["step-000003", "step-000004"]


def spoil(folder):
    path = next(folder.glob("engine/*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_a_damaged_checkpoint_is_set_aside_and_does_not_count_as_kept(checkpoints, caplog):
    for step in (1, 2):
        save(checkpoints, step)
    spoil(checkpoints.folder / "step-000002")
    assert checkpoints.restore() == (1, {}, {"validation/loss": 1.0}, False)
    assert "step-000002: the checksum of engine/" in caplog.text
    assert names(checkpoints) == ["step-000001", "step-000002.damaged"]


def test_where_no_checkpoint_is_whole_none_is_touched(checkpoints):
    save(checkpoints, 1)
    spoil(checkpoints.folder / "step-000001")
    with pytest.raises(ContractError, match="no checkpoint there is whole; remove the folder to start again"):
        checkpoints.restore()
    assert names(checkpoints) == ["step-000001"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture
def here(monkeypatch, world):
    """Commands run in this process, which has joined already."""
    monkeypatch.setattr(loop, "opened_world", lambda config: nullcontext(world))
    monkeypatch.setattr(loop.StopRequest, "listen", lambda self: None)


class Victim:
    """A run as a process of its own, and ways to end it."""

    def __init__(self, config, folder):
        self.folder = folder / "run"
        environment = outside() | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "train", str(config)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def wait_until(self, is_reached):
        while not is_reached():
            assert self.process.poll() is None, "ended before it was killed"
            time.sleep(0.001)

    def has_reached(self, step):
        path = self.folder / "metrics.jsonl"
        return path.exists() and path.read_text().count('"samples"') >= step // 2  # a line every other step

    def kill(self):
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL

    def kill_in_a_write(self):
        """Halt it where a checkpoint lies half-written, look again, and only then kill it."""
        while True:
            self.wait_until(self._half_written)
            self.process.send_signal(signal.SIGSTOP)
            self.wait_until(lambda: _state(self.process.pid) == "T")
            if self._half_written():
                return self.kill()
            self.process.send_signal(signal.SIGCONT)

    def _half_written(self):
        return any((self.folder / "checkpoints").glob("step-*.partial"))


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_run_killed_in_a_write_and_at_a_random_moment_equals_one_that_nothing_stopped(tmp_path, shards, here):
    whole, killed = (write_config(tmp_path / name, shards) for name in ("whole", "killed"))
    victim = Victim(killed, tmp_path / "killed")
    victim.kill_in_a_write()
    victim = Victim(killed, tmp_path / "killed")
    victim.wait_until(lambda: victim.has_reached(8))
    time.sleep(random.Random(0).uniform(0, 0.02))
    victim.kill()
    assert not (tmp_path / "killed" / "bundle").exists()
    assert run([str(killed)]) == run([str(whole)]) == 0
    assert lines(tmp_path / "whole")[-1]["step"] == 24
    assert_same_result(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_hundred_steps_killed_twenty_times_equal_two_hundred_that_nothing_stopped(tmp_path, shards, here):
    """Kills at random moments: of the start, of the training, and of the writing of a checkpoint."""
    whole, killed = (write_config(tmp_path / name, shards, steps=200) for name in ("whole", "killed"))
    chance = random.Random(0)
    for step in sorted(chance.sample(range(180), 20)):
        victim = Victim(killed, tmp_path / "killed")
        how = chance.choice(("start", "step", "step", "write"))
        if how == "start":
            time.sleep(chance.uniform(0, 8))
        else:
            victim.wait_until(lambda victim=victim, step=step: victim.has_reached(step))
            if how == "write":
                victim.kill_in_a_write()
                continue
            time.sleep(chance.uniform(0, 0.05))
        victim.kill()
    assert run([str(killed)]) == run([str(whole)]) == 0
    assert lines(tmp_path / "whole")[-1]["step"] == 200
    assert_same_result(tmp_path / "killed", tmp_path / "whole")
