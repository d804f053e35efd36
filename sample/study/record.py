"""The record of a study on wandb: its page, tables and figures as one artifact."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Literal

import wandb

from sample.study.report import CSV, FIGURES, JSON, PAGE, slug
from sample.study.tables import Study
from slams.config import ConfigError
from slams.contracts.envelope import read_json, sha256, write_json

LOGGED = "marks/logged.json"


def log_once(folder: Path, study: Study, mode: Literal["online", "offline", "disabled"], project: str) -> None:
    """Log a study that is written, unless these very results were logged before, by this program or another.

    Raises:
        ConfigError: online is not possible here.
    """
    if mode == "disabled":
        return
    mark, found = folder / LOGGED, {"results_sha256": sha256(folder / JSON), "mode": mode}
    if mark.is_file() and read_json(mark, "what was logged") == found:
        return
    log_to_wandb(folder, study, mode, project)
    write_json(mark, found)


def log_to_wandb(folder: Path, study: Study, mode: Literal["online", "offline"], project: str) -> None:
    """Log page, tables and figures of a study that is written as one artifact, and page and table to look at.

    Raises:
        ConfigError: online is not possible here.
    """
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, str((folder / "wandb").resolve()))
    about: dict[str, Any] = {name: study[name] for name in ("title", "question", "rerun", "provenance")}
    settings = wandb.Settings(silent=True, console="off")
    try:
        run = wandb.init(project=project, name=folder.name, dir=folder, config=about, mode=mode, settings=settings)
    except wandb.errors.Error as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"wandb: online is not possible here ({said}); offline keeps the record for later") from None
    with run:
        run.log({"report": wandb.Html((folder / PAGE).read_text(), inject=False), "results": _table(folder)})
        run.log_artifact(_artifact(folder, about))


def _table(folder: Path) -> Any:
    with (folder / CSV).open(newline="") as file:
        heads, *rows = list(csv.reader(file))
    return wandb.Table(columns=heads, data=rows)


def _artifact(folder: Path, about: dict[str, Any]) -> Any:
    artifact = wandb.Artifact(slug("study", folder.resolve().name), "study", metadata=about)
    for name in (PAGE, CSV, JSON):
        artifact.add_file(str(folder / name))
    for figure in sorted((folder / FIGURES).iterdir()):  # a whole folder is announced on the standard error
        artifact.add_file(str(figure), f"{FIGURES}/{figure.name}")
    return artifact
