"""`python -m sample increment CONFIG latitude=60 longitude=20 level_hpa=500 day=1991-01-15 [key=value ...]`.

Draws what one temperature observation does to an analysis by the model of CONFIG (`sample.single_observation`), which
departs by ``departure_k`` (1) from the prior with an error of ``error_k`` (1), and writes ``increment.json``, ``.png``
and ``.svg`` into ``increment`` in the run's folder. Other words are the configuration's, such as members=32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sample.assimilator import Assimilator
from sample.background import FirstGuess
from sample.config import SampleConfig
from sample.plan import evaluations
from sample.single_observation import NAME, Single, check_place, described, increment
from slams.config import ConfigError, load, to_dict, to_yaml
from slams.contracts.envelope import ContractError, provenance, write_json


def main(arguments: Sequence[str]) -> int:
    """`python -m sample increment ...`; `sample` says in one sentence what is wrong."""
    parser = argparse.ArgumentParser("sample increment", description=__doc__)
    parser.add_argument("config", help="YAML file of an assimilation")
    parser.add_argument("words", nargs="*", metavar="key=value", help="latitude, longitude, level_hpa, day, or options")
    parser.add_argument("--dry-run", action="store_true", help="print configuration and plan, and stop")
    given = parser.parse_args(arguments)
    single, overrides = read_words(given.words)
    sys.stdout.write(run(load(SampleConfig, given.config, overrides), single, given.dry_run))
    return 0


def read_words(words: Sequence[str]) -> tuple[Single, list[str]]:
    """The observation among ``key=value`` words, and the words that are the configuration's.

    Raises:
        ConfigError: a key is missing or no number.
    """
    kinds = {part.name: str if part.name == "day" else float for part in fields(Single)}
    pairs = {key: value for key, _, value in (word.partition("=") for word in words) if key in kinds}
    missing = [name for name in ("latitude", "longitude", "level_hpa", "day") if name not in pairs]
    if missing:
        raise ConfigError(f"{missing[0]}: is missing; latitude=.. longitude=.. level_hpa=.. day=.. are needed")
    told: dict[str, Any] = {}
    for name, value in pairs.items():
        try:
            told[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(f"{name}: {value!r} is not a number") from None
    return Single(**told), [word for word in words if word.partition("=")[0] not in kinds]


def run(config: SampleConfig, single: Single, dry_run: bool = False) -> str:
    """Draw the increment of a run's model and write it; says what was found, or, dry, what would be drawn.

    Raises:
        ContractError, ValueError: see `Assimilator` and `increment`; or a method that draws no members.
    """
    if config.method != "score":
        raise ValueError(f"method: {config.method} is not allowed; an increment is drawn by the method score")
    if "://" in config.folder:
        raise ValueError(f"folder: {config.folder} is a URL; a folder on this machine is needed")
    method = Assimilator(config)
    check_place(method.spec, single)
    around = max(config.period.halo_days, method.model.frames // 2)
    days, members = np.datetime64(single.day) + np.arange(-around, around + 1), np.arange(config.members)
    z_b = _background(config, method, days)
    if dry_run:
        work = f"{len(members)} members, three times; {evaluations(config)} network evaluations a member and window"
        return f"{to_yaml(config)}{single}\ndays {days[0]} to {days[-1]}, {work}\n"
    draw_increment = import_module("sample.increment_figure").draw_increment  # a dry run needs no plotting library
    found = increment(method, single, days, members, z_b, config.error_inflation.get(NAME, 1.0))
    folder = Path(config.folder) / "increment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "increment.json").unlink(missing_ok=True)  # it stands for the whole folder, which is about to change
    figure = draw_increment(found, method.statistics.static.get("land_fraction"))
    for kind in ("png", "svg"):
        figure.savefig(folder / f"increment.{kind}", dpi=130, facecolor="white", metadata=_undated(kind))
    told = described(found) | {"provenance": provenance(), "config": to_dict(config)}
    write_json(folder / "increment.json", told)
    width, ratio = told["half_width_km"], told["gaussian"]["ratio"]
    return (
        f"increment {found.at_place:+.3f} K of a departure of {single.departure_k:+g} K; "
        f"half-width {'-' if width is None else f'{width:.0f} km'}; "
        f"{'-' if ratio is None else f'{ratio:.2f}'} of a Gaussian prior's\n{folder / 'increment.json'}\n"
    )


def _undated(kind: str) -> dict[str, Any]:
    return {"Date": None} if kind == "svg" else {}


def _background(config: SampleConfig, method: Assimilator, days: np.ndarray) -> Tensor | None:
    """Of the day before the window, where the run has one."""
    if not config.background:
        return None
    if not method.model.background_error:
        raise ContractError(f"{config.score}: was trained without a background; `background` must be empty")
    return method.encode(FirstGuess(config.background, method.score.spec).read(days[0] - 1), days[:1] - 1)
