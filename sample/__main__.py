"""`python -m sample CONFIG [key.path=value ...]` draws the ensemble; `python -m sample verify CONFIG` scores it.

`python -m sample export PRODUCT FOLDER` writes a finished one as NetCDF files; `python -m sample study CONFIG` compares
systems; `python -m sample increment CONFIG` shows what a single observation does.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from sample.assimilate import plan, run
from sample.config import SampleConfig
from slams.config import load, to_yaml

VERIFY = "verify"
OTHERS = {"export": "sample.export", "study": "sample.study.run", "increment": "sample.increment"}


def main(arguments: list[str] | None = None) -> int:
    """Draw or verify; returns the exit status: 2 for a user's mistake said in one sentence, 75 to be started again."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    task = given.pop(0) if given[:1] and given[0] in (VERIFY, *OTHERS) else ""
    name = f"sample {task}".strip()
    parser = argparse.ArgumentParser(name, description=__doc__)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--dry-run", action="store_true", help="print configuration and plan, and stop")
    try:
        if task in OTHERS:
            # Loaded by name: a node that draws needs no plotting library.
            return import_module(OTHERS[task]).main(given)
        words = parser.parse_args(given)
        config = load(SampleConfig, words.config, words.overrides)
        if words.dry_run:
            sys.stdout.write(to_yaml(config) + "\n".join(plan(config)) + "\n")
        elif task == VERIFY:
            import_module("sample.verify").verify(config)
        else:
            return run(config)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{parser.prog}: {error}; pip install 'slams[plots]'\n")
        return 2
    except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
        sys.stderr.write(f"{parser.prog}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        then = "begins anew" if task == VERIFY else "goes on from here"
        sys.stderr.write(f"{parser.prog}: interrupted; the same command {then}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
