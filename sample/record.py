"""The record of a study or a verification on wandb: its page, tables and figures as one artifact."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb

from slams.config import ConfigError
from slams.contracts.envelope import read_json, sha256, write_json
from slams.page import slug

Mode = Literal["online", "offline", "disabled"]
SHOWN = (".html", ".csv", ".json", ".png", ".svg")


@dataclass(frozen=True)
class Written:
    """A folder with a page, tables and figures in it.

    Arguments:
        kind, name: of the artifact.
        page, table, numbers: names of files; the same results as HTML, as CSV and as JSON.
        figures: where in the folder they are.
    """

    kind: str
    name: str
    folder: Path
    page: str
    table: str
    numbers: str
    figures: str

    @property
    def mark(self) -> Path:
        """What says that these very results were logged."""
        return self.folder / "wandb" / "logged.json"

    def artifact(self, about: dict[str, Any]) -> Any:
        artifact = wandb.Artifact(slug(self.kind, self.name), self.kind, metadata=about)
        files = {*self.folder.iterdir(), *(self.folder / self.figures).iterdir()}
        for file in sorted(each for each in files if each.suffix in SHOWN):  # a whole folder would be announced
            artifact.add_file(str(file), str(file.relative_to(self.folder)))
        return artifact


def log_once(written: Written, about: dict[str, Any], mode: Mode, project: str) -> None:
    """Log what is written, unless these very results were logged before, by this program or another.

    Raises:
        ConfigError: online is not possible here.
    """
    if mode == "disabled":
        return
    found = {"results_sha256": sha256(written.folder / written.numbers), "mode": mode}
    if written.mark.is_file() and read_json(written.mark, "what was logged") == found:
        return
    log_to_wandb(written, about, mode, project)
    write_json(written.mark, found)


def log_to_wandb(written: Written, about: dict[str, Any], mode: Literal["online", "offline"], project: str) -> None:
    """Log page, tables and figures as one artifact, and page and table to look at.

    Raises:
        ConfigError: online is not possible here.
    """
    folder = written.folder
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, str((folder / "wandb").resolve()))
    settings = wandb.Settings(silent=True, console="off")
    try:
        run = wandb.init(project=project, name=written.name, dir=folder, config=about, mode=mode, settings=settings)
    except wandb.errors.Error as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"wandb: online is not possible here ({said}); offline keeps the record for later") from None
    with run:
        page = (folder / written.page).read_text()
        run.log({"report": wandb.Html(page, inject=False), "results": _table(folder / written.table)})
        run.log_artifact(written.artifact(about))


def _table(path: Path) -> Any:
    with path.open(newline="") as file:
        heads, *rows = list(csv.reader(file))
    return wandb.Table(columns=heads, data=rows)
