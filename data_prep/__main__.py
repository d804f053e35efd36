"""`python -m data_prep STAGE CONFIG [key.path=value ...]`: one stage of the preparation of a data set.

`python -m data_prep check PATH`: whether an archive, a shard set or another result is sound, and what is wrong with it.
A stage whose result stands already, made by the same configuration, has nothing to do; the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

from data_prep.config import PrepConfig
from data_prep.workers import CONFIGURED
from slams.config import load, to_yaml

STAGES = {
    "world": "run the general circulation model that writes the sample archives",
    "archive": "raw archives -> one archive on one grid, joined by date, with train-year statistics",
    "report": "archive -> one HTML page beside it: coverage, what is missing, maps, histograms, sizes",
    "shards": "archive -> WebDataset shards of standardised frames",
    "encode": "shards of states -> shards of latents, by a trained autoencoder",
    "observe": "archive -> simulated observations of a split",
    "stations": "reports of real stations, soundings or a table -> observations, with quality control",
    "background": "archive -> simulated backgrounds (first guesses) of a split",
}
SECTIONS = {"report": "archive"}  # of the configuration, where it is not named like the stage
JOBS_ENDED = (
    "workers.slurm_jobs: one job after the other ended at the same task, as at a limit of time or memory; "
    f"what each asks for: {CONFIGURED}; the same command goes on from here"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a stage; returns the exit status, 2 for a user's mistake said in one sentence."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["check"]:  # of a path, with no configuration
        return int(import_module("data_prep.check").main(words[1:]))
    stages = "\n".join(f"  {name:10s} {what}" for name, what in STAGES.items())
    parser = argparse.ArgumentParser(
        "data_prep", description=__doc__, epilog=stages, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--dry-run", action="store_true", help="print configuration and plan, and stop")
    given = parser.parse_args(words)
    try:
        config = load(PrepConfig, given.config, given.overrides)
        section = getattr(config, SECTIONS.get(given.stage, given.stage))
        if section is None:
            raise ValueError(f"config {given.config}: has no section {given.stage!r}, which this stage needs")
        _refuse_url(given.stage, section)
        # A stage is loaded by name, so that those without torch start without it.
        stage = import_module(f"data_prep.{given.stage}")
        if given.dry_run:
            sys.stdout.write(to_yaml(section) + "\n".join(stage.plan(section, config)) + "\n")
        else:
            stage.run(section, config)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"data_prep {given.stage}: {error}; pip install 'slams[plots]'\n")
        return 2
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"data_prep {given.stage}: {' '.join(str(error).split())}\n")
        return 2
    except _killed_worker():
        sys.stderr.write(f"data_prep {given.stage}: {JOBS_ENDED}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"data_prep {given.stage}: interrupted; the same command goes on from here\n")
        return 130
    return 0


def _killed_worker() -> Any:
    """What dask raises where jobs end again and again at one task, no RuntimeError; nothing where it is not in use."""
    return getattr(sys.modules.get("distributed"), "KilledWorker", ())


def _refuse_url(stage: str, section: Any) -> None:
    """Blocks are renamed and gone on with, which a bucket cannot; what is made may lie in one afterwards."""
    name = "path" if hasattr(section, "path") else "folder"
    if "://" in (path := getattr(section, name)):
        what = "a folder, to be copied to the bucket when it is done"
        raise ValueError(f"{SECTIONS.get(stage, stage)}.{name}: {path} is not allowed; {what}")


if __name__ == "__main__":
    sys.exit(main())
