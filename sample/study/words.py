"""What a study says in words: sentences, what its marks mean, and its tables as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sample.study import tables
from sample.study.tables import Cell, Study, Table, label, rivals, title, verdict
from sample.verdicts import Verdict
from slams.page import MARKS

COST_WORDS = "Processor time of each case, all its runs together: drawing all members on all dates, and verifying them."
PREPARATION_WORDS = "Before all cases, once. What was there already, as after a demo, costs what looking at it does."
SCORE_WORDS = "Mean over the levels with its 95 % interval; bold is the best number of a row, be it sure or not."
PUBLISHED_WORDS = (
    "With ours the 95 % interval over dates; with theirs the lowest and highest of the published runs. A factor counts "
    "cells, and on another grid it is another distance: numbers beside one another are not of the same observations."
)
SINGLE_WORDS = "Of a single field, as a baseline is, CRPS is the mean absolute error, which no spread makes smaller."
BY_CHANCE = 0.05  # of differences that are none, what 95 % intervals take for one
NOT_THERE = f"{tables.MISSING} not run, or nothing that this system can do"


def standings(study: Study) -> list[str]:
    """How each system stands to the reference by the first score."""
    return [_standing(study, system) for system in rivals(study)]


def _standing(study: Study, system: str) -> str:
    score, reference = study["scores"][study["first_score"]]["label"], label(study, study["reference"])
    once: dict[str, Verdict] = {}  # settings that the grid makes one are one
    for setting in study["settings"]:
        shown = verdict(study, setting["name"], system, study["first_score"])
        if shown is not None:
            once.setdefault(setting["same_as"] or setting["name"], shown)
    found, n = list(once.values()), len(once)
    if not n:
        return f"{label(study, system)} and {reference} share no setting that has run."
    words = {"better": "better", "worse": "worse", "other": "different", "open": "not to be told apart"}
    parts = ", ".join(f"{said} in {found.count(kind)}" for kind, said in words.items() if kind in found)
    settings = "1 setting" if n == 1 else f"{n} settings"
    return f"By {score}, {label(study, system)} beside {reference}, in {settings}: {parts}."


def meanings(study: Study, found: Table) -> dict[str, str]:
    """What each mark says that a table has."""
    reference = label(study, study["reference"])
    words = {
        "better": f"better than {reference}",
        "worse": f"worse than {reference}",
        "other": f"different from {reference}, neither better nor worse",
        "open": "no difference shown",
    }
    used = {cell.verdict for _, cells in found.rows for cell in cells}
    return {kind: said for kind, said in words.items() if kind in used}


def score_words(study: Study, score: str) -> str:
    words = {"low": "Low is good.", "one": "1 is best.", "zero": "0 is best."}
    kind = words.get(study["scores"][score].get("better", ""), "No value is best by itself.")
    return " ".join([kind, SCORE_WORDS, *([SINGLE_WORDS] if score == "crps" else [])])


def by_chance(found: Table) -> str:
    """How many differences would be marked if there were none; nothing where a table has no differences."""
    n = sum(cell.verdict is not None for _, cells in found.rows for cell in cells)
    return f"If there were none, about {max(1, round(BY_CHANCE * n))} of {n} would be marked by chance." if n else ""


def marked(cell: Cell) -> str:
    """A difference never stands without its mark."""
    return f"{MARKS[cell.verdict]} {cell.text}" if cell.verdict else cell.text


def markdown(study: Study) -> str:
    """The tables as Markdown: findings, each score, its differences, cost."""
    study = json.loads(json.dumps(study))
    parts = ["\n".join(f"* {sentence}" for sentence in standings(study))]
    if study["findings"]:
        parts += ["### Findings", _lines(tables.findings(study))]
    for score in study["scores"]:
        parts += [f"### {title(study, score)}", score_words(study, score), _lines(tables.results(study, score))]
        gaps = tables.differences(study, score)
        marks = "; ".join(f"{MARKS[kind]} {words}" for kind, words in meanings(study, gaps).items())
        if marks:
            words = f"Minus {label(study, study['reference'])}, same dates: {marks}. {by_chance(gaps)}"
            parts += [words, _lines(gaps)]
    parts += ["\n".join(f"* {words}" for words in notes(study)), *_beside_published(study)]
    parts += ["### Cost", COST_WORDS, _lines(tables.cost(study)), f"{NOT_THERE}."]
    if study["preparation"]:
        parts += [PREPARATION_WORDS, _lines(tables.preparation(study))]
    parts += [f"To make it again: `{study['rerun']}`"]
    return "\n\n".join(part for part in parts if part) + "\n"


def notes(study: Study) -> list[str]:
    """What the settings say of themselves."""
    return [f"{setting['label']}: {setting['note']}." for setting in study["settings"] if setting["note"]]


def _beside_published(study: Study) -> list[str]:
    shown = {score: tables.published(study, score) for score in study["scores"]}
    parts = [f"{title(study, score)}\n\n{_lines(found)}" for score, found in shown.items() if found.rows]
    return ["### Beside what was published", PUBLISHED_WORDS, *parts] if parts else []


def _lines(found: Table) -> str:
    """Rows that head others are bold; intervals stand behind their values."""
    rows = [["", *found.heads], ["---"] * (len(found.heads) + 1)]
    for name, cells in found.rows:
        rows.append([name, *map(_text, cells)] if cells else [f"**{name}**", *([""] * len(found.heads))])
    return "\n".join(_line(row) for row in rows)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(cell: Cell) -> str:
    text = f"**{marked(cell)}**" if cell.best else marked(cell)
    return f"{text} ({cell.under})" if cell.under and not cell.link else text
