"""`python -m train CONFIG [key.path=value ...] [--dry-run]`: the same command starts, resumes and finds itself done."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import torch

from slams.config import load, to_yaml
from train.config import TrainConfig
from train.cost import estimate
from train.damage import opened
from train.data import TRAIN, steps_per_epoch
from train.guard import NonFiniteStepError, explained
from train.launch import launch
from train.loop import FAILED, finished, initial_task, train

MISTAKE, INTERRUPTED = 2, 130
log = logging.getLogger("slams.train")


def dry_run(config: TrainConfig) -> int:
    """Say what would be done and what it would cost.

    Raises:
        ValueError: this machine has too little memory for it.
    """
    manifest = opened(config.shards, config.data)
    n_windows = len(manifest.windows(TRAIN, config.model.lead + config.model.frames))
    batches = steps_per_epoch(n_windows, config.data.batch)
    with torch.device("meta"):  # for what it refuses; no memory is taken
        initial_task(config, manifest)
    log.info("windows: %d, batches an epoch: %d, epochs: %.1f", n_windows, batches, config.steps / batches)
    for line in estimate(config, manifest, launch().size):
        log.info("%s", line)
    log.info("finished already" if finished(config) else "not finished")
    return 0


def run(arguments: list[str]) -> int:
    """Read arguments and configuration, train, and return the exit status."""
    parser = argparse.ArgumentParser(prog="slams-train", description=__doc__)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of the file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    given = parser.parse_intermixed_args(arguments)  # words may follow a flag
    try:
        level = logging.INFO if launch().rank == 0 else logging.ERROR
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
        config = load(TrainConfig, given.config, given.overrides)
        log.info("%s", to_yaml(config))
        return dry_run(config) if given.dry_run else train(config)
    except (ValueError, OSError, NonFiniteStepError) as error:
        # the last line: a reading process sends its traceback before the sentence
        sys.stderr.write(f"slams-train: {str(error).strip().splitlines()[-1]}\n")
        return FAILED if isinstance(error, NonFiniteStepError) else MISTAKE
    except RuntimeError as error:
        sentence = explained(error)
        if sentence is None:
            raise
        sys.stderr.write(f"slams-train: {sentence}\n")
        return FAILED


def main() -> None:
    """Console entry."""
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("slams-train: interrupted; the same command goes on from the last checkpoint\n")
        status = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a normal exit after gloo sometimes aborts in a thread, after all work is done


if __name__ == "__main__":
    main()
