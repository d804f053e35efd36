"""What a study found: every score of every system and setting, its interval, and the difference to the reference."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sample.study import settings
from sample.study.config import KINDS, StudyConfig
from sample.study.findings import findings
from sample.study.plan import Plan
from sample.study.scored import Scored, gathered
from sample.study.stages import Stage
from slams.config import to_yaml
from slams.contracts.envelope import ContractError, provenance, read_json
from slams.uncertainty import Estimate


def study(config: StudyConfig, plan: Plan, rerun: str) -> dict[str, Any]:
    """All that the page, the tables and the record are made of.

    Returns:
        ``results`` {setting: {system: {score: {level or "mean": {value, interval}}}}} and ``differences`` to the
        reference alike, with ``significant``; ``published``, ``findings``; ``preparation`` and ``cost``, seconds of
        stages; ``config``, the study's own as YAML; ``origins``, who made what of each case; and what names them all.

    Raises:
        ContractError: see `gathered` and `published_scores`.
    """
    scored = gathered(config, plan)
    told = settings.told(config, plan.factors)
    names = [setting["name"] for setting in told]
    systems = [name for name in config.systems if name in (config.reference, *(case[1] for case in config.cases))]
    systems += config.baselines
    results, differences = _tables(config, scored, names, systems)
    return {
        "title": config.title,
        "question": config.question,
        "units": scored.units,
        "variable": scored.variable,
        "levels_hpa": scored.levels_hpa,
        "systems": {name: {"label": _label(config, name)} for name in systems},
        "reference": config.reference,
        "settings": told,
        "scores": {score: _kind(score, scored.units) for score in config.scores},
        "first_score": config.scores[0],
        "results": results,
        "differences": differences,
        "published": published_scores(config.published, scored.levels_hpa) if config.published else {},
        "findings": findings(config, scored, plan.factors),
        "dates": scored.time.astype(str).tolist(),
        "members": scored.members,
        "preparation": _preparation(config, plan),
        "cost": _cost(config, plan),
        "cases": {name: _pages(config, plan, name) for name in names},
        "provenance": provenance(),
        "origins": {f"{setting}/{system}": origin for (setting, system), origin in scored.origins.items()},
        "config": to_yaml(config),
        "rerun": rerun,
    }


def _tables(
    config: StudyConfig, scored: Scored, names: Sequence[str], systems: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    results: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for setting in names:
        for system in systems:
            for score in config.scores:
                own, rival = (scored.estimate(setting, name, score) for name in (system, config.reference))
                if own is None:
                    continue
                by_system = results.setdefault(setting, {}).setdefault(system, {})
                by_system[score] = _by_level(own, scored.levels_hpa)
                if rival is not None and system != config.reference:
                    gap = differences.setdefault(setting, {}).setdefault(system, {})
                    gap[score] = _by_level(own.minus(rival), scored.levels_hpa, significance=True)
    return results, differences


def _by_level(found: Estimate, levels_hpa: Sequence[int], significance: bool = False) -> dict[str, Any]:
    """{level or "mean": {value, interval, significant}}; what is not of levels has a mean alone."""
    n = len(found.value) - 1
    names = [*map(str, levels_hpa), "mean"] if n == len(levels_hpa) else [*[""] * n, "mean"]
    table: dict[str, Any] = {}
    for channel, name in enumerate(names):
        if name:
            interval = found.interval(channel)
            table[name] = {"value": float(found.value[channel])} | ({"interval": list(interval)} if interval else {})
            table[name] |= {"significant": found.significant(channel)} if significance else {}
    return table


def _label(config: StudyConfig, name: str) -> str:
    return config.systems[name].label if name in config.systems else name.replace("_", " ")


def _kind(score: str, units: str) -> dict[str, str]:
    label, own, better = KINDS[score]
    return {"label": label, "units": own or units, "better": better}


def _preparation(config: StudyConfig, plan: Plan) -> dict[str, dict[str, Any]]:
    """{stage: {label, seconds, processor_seconds}} of those that all cases stand on."""
    found: dict[str, dict[str, Any]] = {}
    for stage in plan.prepare:
        if stage.done(Path(config.folder)):
            mark = _mark(config, stage)
            spent = {part: mark[part] for part in ("seconds", "processor_seconds")}
            found[stage.name] = {"label": stage.label} | spent
    return found


def _cost(config: StudyConfig, plan: Plan) -> dict[str, dict[str, float]]:
    """Processor seconds of each case, its verification included."""
    found: dict[str, dict[str, float]] = {}
    for (setting, system), stage in plan.cases.items():
        if stage.done(Path(config.folder)):
            found.setdefault(setting, {})[system] = _mark(config, stage)["processor_seconds"]
    return found


def _mark(config: StudyConfig, stage: Stage) -> dict[str, Any]:
    return read_json(stage.mark(Path(config.folder)), "the mark of a stage")


def _pages(config: StudyConfig, plan: Plan, setting: str) -> dict[str, str]:
    return {
        system: str(plan.folder((of, system)) / "verify/report.html")
        for (of, system), stage in plan.cases.items()
        if of == setting and stage.done(Path(config.folder))
    }


def published_scores(path: str, levels_hpa: Sequence[int]) -> dict[str, Any]:
    """{setting: {system: {score: {level or "mean": {value, lowest, highest}}}}} from a table of runs.

    The value is that of the run ``final``; lowest and highest are over all runs of the same protocol, and left out
    where there is one run alone, which has no range. The mean is over the levels given, and left out where the table
    lacks one.

    Raises:
        ContractError: no such table, one of other columns, or a run without a level that the final one has.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        runs: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
        for row in rows:
            key = row["setting"], row["system"], row["score"]
            runs.setdefault(key, {}).setdefault(row["run"], {})[row["level_hpa"]] = _finite(row["value"])
        found: dict[str, Any] = {}
        for (setting, system, score), by_run in runs.items():
            found.setdefault(setting, {}).setdefault(system, {})[score] = _ranged(by_run, levels_hpa)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ContractError(f"{path}: no table of setting, system, score, level_hpa, run, value ({error})") from None
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"value {text!r}, a finite number is needed")
    return value


def _ranged(by_run: dict[str, dict[str, float]], levels_hpa: Sequence[int]) -> dict[str, Any]:
    for levels in by_run.values():
        if levels_hpa and all(str(level) in levels for level in levels_hpa):
            levels["mean"] = float(np.mean([levels[str(level)] for level in levels_hpa]))
    found: dict[str, Any] = {}
    for level, value in by_run["final"].items():
        runs = [run[level] for run in by_run.values()]
        found[level] = {"value": value} | ({"lowest": min(runs), "highest": max(runs)} if len(runs) > 1 else {})
    return found
