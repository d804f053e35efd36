"""Trainings by several processes that join once and run them one after another: joining costs more than a short run.

As a program: ``python tests/crew.py JOBS``, a JSON list of [words of `python -m train`, whether to be interrupted].
An interrupted job is told to stop by SIGTERM after its first checkpoint.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

from train import loop
from train.__main__ import run
from train.checkpoint import Checkpoints
from train.engine import EngineConfig, opened_world
from train.launch import LAUNCH_VARIABLES, SLURM_VARIABLES

ROOT = Path(__file__).parents[1]
SAVE = Checkpoints.save


def outside():
    """An environment that no launcher and no scheduler has touched."""
    return {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES and not k.startswith("SLURM_")}


@contextmanager
def joined():
    """A world of this process alone; the environment is as before when it is left."""
    before = dict(os.environ)
    for name in set(before) - set(outside()):
        del os.environ[name]
    with opened_world(EngineConfig(torch_threads=1)) as world:
        yield world
    os.environ.clear()
    os.environ.update(before)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def places(size, names, address="localhost"):
    """What a launcher sets for each of `size` processes on one machine."""
    port = str(free_port())
    for rank in range(size):
        yield dict(zip(names, (str(rank), str(size), str(rank), address, port), strict=True))


def start_crew(jobs, size, launcher, **environment):
    """Start a crew; a list of processes."""
    work = [str(Path(__file__)), json.dumps(jobs)]
    environment = outside() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *work]
        return [subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment)]
    names = {"srun": SLURM_VARIABLES, "variables": LAUNCH_VARIABLES}[launcher]
    command = [sys.executable, *work]
    return [subprocess.Popen(command, cwd=ROOT, env=environment | place) for place in places(size, names)]


def finish(*crews):
    """Wait until all have ended well; none outlives this."""
    started = [process for crew in crews for process in crew]
    try:
        assert [process.wait(600) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()


def save_and_ask_to_stop(*arguments, **more):
    SAVE(*arguments, **more)
    signal.raise_signal(signal.SIGTERM)


def work(jobs):
    with opened_world(EngineConfig(torch_threads=1)) as world:
        loop.opened_world = lambda config: nullcontext(world)
        for words, interrupted in jobs:
            Checkpoints.save = save_and_ask_to_stop if interrupted else SAVE
            if run(words) != (loop.STOPPED_EARLY if interrupted else loop.DONE):
                leave(1)  # at once: the others would wait at the end


def leave(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
    leave(0)
