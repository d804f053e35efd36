"""`python -m train CONFIG [key.path=value ...] [--dry-run]`: the same command starts, resumes and finds itself done."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from slams.config import load, to_yaml
from slams.contracts.shards import open_shards
from train.config import TrainConfig
from train.data import TRAIN, steps_per_epoch
from train.engine import resolve_precision
from train.loop import FAILED, NonFiniteStepError, finished, initial_task, train

MISTAKE = 2


def dry_run(config: TrainConfig) -> int:
    """Say what would be done."""
    manifest = open_shards(config.shards)
    n_windows = len(manifest.windows(TRAIN, config.model.lead + config.model.frames))
    batches = steps_per_epoch(n_windows, config.data.batch)
    n_parameters = sum(p.numel() for p in initial_task(config, manifest).parameters())
    log = logging.getLogger("slams.train")
    log.info("parameters: %d, precision %s", n_parameters, resolve_precision(config.engine))
    log.info("windows: %d, batches an epoch: %d, epochs: %.1f", n_windows, batches, config.steps / batches)
    log.info("finished already" if finished(config) else "not finished")
    return 0


def run(arguments: list[str]) -> int:
    """Read arguments and configuration, train, and return the exit status."""
    parser = argparse.ArgumentParser(prog="slams-train", description=__doc__)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that replace those of the file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    given = parser.parse_args(arguments)
    speaks = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if speaks else logging.ERROR, format="%(message)s", stream=sys.stdout)
    try:
        config = load(TrainConfig, given.config, given.overrides)
        logging.getLogger("slams.train").info("%s", to_yaml(config))
        return dry_run(config) if given.dry_run else train(config)
    except (ValueError, OSError, NonFiniteStepError) as error:
        # the last line: a reading process sends its traceback before the sentence
        sys.stderr.write(f"slams-train: {str(error).strip().splitlines()[-1]}\n")
        return FAILED if isinstance(error, NonFiniteStepError) else MISTAKE


def main() -> None:
    """Console entry."""
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a normal exit after gloo sometimes aborts in a thread, after all work is done


if __name__ == "__main__":
    main()
