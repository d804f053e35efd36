"""`python -m sample study CONFIG [key.path=value ...]` runs what is missing of a study and writes its page.

The same command goes on, whatever stopped it; a case is a stage of its own, so that a night is as good as a cluster.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib import import_module
from pathlib import Path

from sample.leave import AGAIN, Leave
from sample.study.config import StudyConfig
from sample.study.plan import Plan, analysed, planned, preparations
from sample.study.results import published_scores, study
from sample.study.stages import Stage, StageError, complete, locked
from sample.study.tables import Study
from sample.study.words import markdown
from slams.config import ConfigError, load, to_yaml
from slams.contracts.envelope import ContractError, write_text

RECORD, LOCK = "results.md", "page.lock"


def main(arguments: list[str]) -> int:
    """Run, or plan, or only write the page again; returns the exit status.

    Returns:
        2 by a raised error, `AGAIN` where a signal asked to leave, else 0.

    Raises:
        ConfigError, ContractError, StageError: each one sentence.
    """
    words = _parser().parse_args(arguments)
    config = _load(words)
    for case in words.only:
        if tuple(case.split("/")) not in config.cases:
            raise ConfigError(f"--only {case}: is no case; {', '.join('/'.join(case) for case in config.cases)}")
    if words.dry_run:
        sys.stdout.write(to_yaml(config) + "\n".join(_told(config)) + "\n")
        return 0
    folder = Path(config.folder)
    planned(config, (2, 2))  # what is wrong is told before anything runs
    if config.published:
        published_scores(config.published, ())
    try:
        _complete(config, folder, words)
    except Leave:
        return AGAIN
    return 0


def _complete(config: StudyConfig, folder: Path, words: argparse.Namespace) -> None:
    complete(preparations(config), folder, 1, words.threads * words.processes)
    plan = planned(config, analysed(config).grid.shape)
    chosen = [stage for case, stage in plan.cases.items() if not words.only or "/".join(case) in words.only]
    wanted = list(dict.fromkeys(chosen))
    needed = {stage.name for case in wanted for stage in case.after}
    complete([stage for stage in plan.observe if stage.name in needed], folder, words.processes, words.threads)
    try:
        complete(wanted, folder, words.processes, words.threads, independent=True)
    except (StageError, Leave):
        try:
            _write(config, plan, _rerun(words))
        except (ValueError, RuntimeError, OSError) as error:  # the stage's own is the one to end with
            sys.stderr.write(f"study: its page was not written: {error}\n")
        raise
    _write(config, plan, _rerun(words))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sample study", description=__doc__)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--dry-run", action="store_true", help="print configuration and stages, and stop")
    parser.add_argument("--quick", action="store_true", help="the file's trial of minutes")
    parser.add_argument("--only", action="append", default=[], metavar="SETTING/SYSTEM", help="this case; may repeat")
    parser.add_argument("--processes", type=int, default=1, help="cases at once (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each (default 1)")
    return parser


def _load(words: argparse.Namespace) -> StudyConfig:
    for name in ("processes", "threads"):
        if getattr(words, name) < 1:
            raise ConfigError(f"--{name}: {getattr(words, name)} is not allowed; at least 1")
    quick = load(StudyConfig, words.config).quick if words.quick else []
    if words.quick and not quick:
        raise ConfigError(f"config {words.config}: quick: is empty; there is no trial of minutes")
    return load(StudyConfig, words.config, [*quick, *words.overrides])


def _rerun(words: argparse.Namespace) -> str:
    """The command that makes all of the tables, not the share of them that this program was asked for."""
    return shlex.join(
        ["python", "-m", "sample", "study", *(["--quick"] if words.quick else []), words.config, *words.overrides]
    )


def _write(config: StudyConfig, plan: Plan, rerun: str) -> None:
    """Page, tables and record of what there is, if anything, by one program at a time."""
    folder = Path(config.folder)
    if not any(stage.done(folder) for stage in plan.cases.values()):
        return
    with locked(folder / LOCK):
        found = study(config, plan, rerun)
        # by name: whoever only analyses needs no plotting library
        page = import_module("sample.study.report").write(folder, found)
        write_text(folder / RECORD, f"## {config.title}\n\n{config.question}\n\n{markdown(found)}")
        if all(stage.done(folder) for stage in plan.cases.values()):
            _log(config, found)
    sys.stdout.write(f"{page}\n")


def _log(config: StudyConfig, found: Study) -> None:
    """All of it as one artifact on wandb."""
    record, report = (import_module(f"sample.{name}") for name in ("record", "study.report"))
    about = {name: found[name] for name in ("title", "question", "rerun", "provenance")}
    folder, files = Path(config.folder), (report.PAGE, report.CSV, report.JSON, report.FIGURES)
    written = record.Written("study", folder.resolve().name, folder, *files)
    record.log_once(written, about, config.wandb, config.project)


def _told(config: StudyConfig) -> list[str]:
    """What a study would do, for people."""
    folder, prepare = Path(config.folder), preparations(config)
    told = [f"{_state(stage, folder)}  {shlex.join(stage.commands[0])}" for stage in prepare]
    try:
        plan = planned(config, analysed(config).grid.shape)
    except ContractError as error:
        return [*told, f"{len(config.cases)} cases, once there is an archive: {error}"]
    for stage in plan.stages[len(prepare) :]:
        told += [f"{_state(stage, folder)}  {stage.name}: {shlex.join(stage.commands[0])}"]
    left = sum(not stage.done(folder) for stage in plan.stages)
    return [*told, f"study {config.folder}: {len(plan.stages)} stages, {left} left"]


def _state(stage: Stage, folder: Path) -> str:
    return "done   " if stage.done(folder) else "to run "
