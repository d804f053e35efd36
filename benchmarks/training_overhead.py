"""What the training job costs over the barest PyTorch loop: same network and batches, interleaved blocks, one process.

    python benchmarks/training_overhead.py [CONFIG]      # default: configs/train/tiny_score.yaml, after `make demo`

Prints the median step of both in wall time and the ratio, block by block, with its spread.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace

import torch

from slams.config import load
from slams.contracts.shards import open_shards
from train.config import TrainConfig
from train.engine import opened_world
from train.loop import Run, StopRequest, initial_task
from train.optim import build_optimizer

BLOCKS, STEPS, WARM_UP = 10, 15, 2


def bare_loop(config, manifest, batches, bf16):
    """One step of a loop without engine, telemetry, checkpoints or checks; the average of the weights it keeps."""
    task = initial_task(config, manifest)
    if config.engine.channels_last:
        task = task.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(task, config.optim)
    weights = [p.detach() for p in task.parameters()]
    average = [w.clone() for w in weights]

    def step():
        _, batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = task(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.engine.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, weights, 1e-3)

    return step


def median_step(step):
    """Median wall seconds of a block of steps."""
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "configs/train/tiny_score.yaml"
    config = replace(load(TrainConfig, path), folder=tempfile.mkdtemp(), wandb="disabled", samples=10**9)
    manifest = open_shards(config.shards)
    with opened_world(config.engine) as world:
        run = Run(config, manifest, world)
        run.engine.train(True)
        bare = bare_loop(config, manifest, run._batches(), run.engine.precision == "bf16")
        batches, stop = run._batches(), StopRequest()
        pairs = [(median_step(bare), median_step(lambda: run._step(batches, stop))) for _ in range(WARM_UP + BLOCKS)]
    ratios = sorted(ours / theirs for theirs, ours in pairs[WARM_UP:])
    theirs, ours = (statistics.median(column) for column in zip(*pairs[WARM_UP:], strict=True))
    print(f"{path}: {run.engine.precision}, {torch.get_num_threads()} threads, {BLOCKS} blocks of {STEPS} steps")
    print(f"bare loop {theirs * 1e3:.1f} ms, train job {ours * 1e3:.1f} ms a step")
    print(f"ratio {statistics.median(ratios):.3f} (lowest {ratios[0]:.3f}, highest {ratios[-1]:.3f})")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
