"""The tables of a study, as text in cells, whoever shows them: the page, the documents, a spreadsheet.

A study is the dictionary of `sample.study.results.study` as JSON gives it back, so that levels are text. What is not
there (a case that has not run, a system that cannot do a setting) is a cell of its own kind, never a number, and a
difference carries its verdict: whether these dates show one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sample import verdicts
from sample.verdicts import BEST, Verdict

Study = dict[str, Any]
FLOOR = "autoencoder"
MEAN = "mean"
MISSING = "–"  # noqa: RUF001  a dash as wide as a digit
FIELDS = ("value", "low", "high", "difference", "difference_low", "difference_high", "significant")
PUBLISHED = ("published", "published_lowest", "published_highest")
COLUMNS = (
    *("setting", "group", "setting_value", "factor", "system", "score", "units", "level_hpa"),
    *FIELDS,
    *PUBLISHED,
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Arguments:
        under: smaller, below the text: an interval, or the words of a link.
        best: of its row.
        verdict: of a difference.
        link: a file that `under` leads to.
    """

    text: str = MISSING
    under: str = ""
    best: bool = False
    verdict: Verdict | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by name; one without cells stands over those that follow it."""

    heads: list[str]
    rows: list[tuple[str, list[Cell]]]


def entry(study: Study, part: str, setting: str, system: str, score: str, level: str = MEAN) -> dict[str, Any] | None:
    """What ``results``, ``differences`` or ``published`` holds; None where nothing, or no number, is there."""
    found = study[part].get(setting, {}).get(system, {}).get(score, {}).get(level)
    if found is None or found["value"] is None or not math.isfinite(found["value"]):
        return None
    return dict(found)


def verdict(study: Study, setting: str, system: str, score: str, level: str = MEAN) -> Verdict | None:
    """What a difference to the reference says: ``open`` if it cannot be told from none, None without difference.

    ``other`` is a difference of which nobody can say whom it speaks for; see `sample.verdicts`.
    """
    found = entry(study, "differences", setting, system, score, level)
    if found is None:
        return None
    both = (entry(study, "results", setting, name, score, level) for name in (system, study["reference"]))
    own, rival = ((each or {}).get("interval") for each in both)
    return verdicts.verdict(found, own, rival, study["scores"][score].get("better", ""))


def label(study: Study, system: str) -> str:
    return str(study["systems"][system]["label"])


def title(study: Study, score: str) -> str:
    """Label and units of a score."""
    units = study["scores"][score].get("units", "")
    return study["scores"][score]["label"] + (f" ({units})" if units not in ("", "1") else "")


def rivals(study: Study) -> list[str]:
    """The systems but the reference, and but the autoencoder, which has seen the truth."""
    return [name for name in study["systems"] if name not in (study["reference"], FLOOR)]


def distinct(study: Study) -> list[dict[str, Any]]:
    """The settings that ask for something of their own."""
    return [setting for setting in study["settings"] if not setting["same_as"]]


# ---- tables


def results(study: Study, score: str) -> Table:
    """A score, mean over the levels, of each system in each setting."""
    digits = decimals(study, score)

    def cells(setting: dict[str, Any]) -> list[Cell]:
        found = {name: entry(study, "results", setting["name"], name, score) for name in study["systems"]}
        best = _best(study, score, {name: each["value"] for name, each in found.items() if each})
        return [_measured(each, digits, name == best) for name, each in found.items()]

    return Table([label(study, name) for name in study["systems"]], _by_setting(study, cells))


def differences(study: Study, score: str) -> Table:
    """A score minus that of the reference on the same dates, mean over the levels, each with its verdict."""
    digits = decimals(study, score) + 1

    def cells(setting: dict[str, Any]) -> list[Cell]:
        return [_differing(study, setting["name"], name, score, digits) for name in rivals(study)]

    return Table([label(study, name) for name in rivals(study)], _by_setting(study, cells))


def scorecard(study: Study) -> Table:
    """The first score beside that of the reference: systems and settings down, levels across.

    In per cent of the reference's, or, where a score's best value lies between others, in its own units.
    """
    levels, score, rows = [MEAN, *map(str, study["levels_hpa"])], study["first_score"], []
    for system in rivals(study):
        rows.append((label(study, system), []))
        for setting in study["settings"]:
            rows.append((setting["label"], [_relative(study, setting["name"], system, score, each) for each in levels]))
    return Table([MEAN, *(f"{level} hPa" for level in study["levels_hpa"])], rows)


def published(study: Study, score: str) -> Table:
    """A score, mean over the levels, beside the published one and the range of its runs."""
    digits, rows = decimals(study, score), []
    for setting in study["settings"]:
        for system in study["systems"]:
            theirs = entry(study, "published", setting["name"], system, score)
            if theirs is not None:
                own = entry(study, "results", setting["name"], system, score)
                cells = [_measured(own, digits), _ranged(theirs, digits)]
                rows.append((f"{setting['label']}, {label(study, system)}", cells))
    return Table(["this study", "published"], rows)


def findings(study: Study) -> Table:
    """Each claim, whether it holds, and by which numbers."""
    rows = [(each["claim"], [Cell(HOLDS[each["holds"]]), Cell(each["evidence"])]) for each in study["findings"]]
    return Table(["", "evidence"], rows)


HOLDS = {True: "holds", False: "does not hold", None: "cannot be told"}


def preparation(study: Study) -> Table:
    """What was made once for all cases, with its processor time and its time on the clock."""
    stages = study["preparation"].values()
    rows = [(each["label"], [_spent(each[part], "") for part in ("processor_seconds", "seconds")]) for each in stages]
    return Table(["processor time", "on the clock"], rows)


def cost(study: Study) -> Table:
    """Processor time of each case, with a way to its own page."""

    def cells(setting: dict[str, Any]) -> list[Cell]:
        spent = study["cost"].get(setting["name"], {})
        pages = study["cases"].get(setting["name"], {})
        return [_spent(spent.get(name), pages.get(name, "")) for name in study["systems"]]

    return Table([label(study, name) for name in study["systems"]], _by_setting(study, cells))


def records(study: Study) -> Iterator[dict[str, Any]]:
    """One row of `COLUMNS` for each number there is, by setting, system, score and level."""
    for setting in study["settings"]:
        for system in study["systems"]:
            for score, kind in study["scores"].items():
                for level in [*map(str, study["levels_hpa"]), MEAN]:
                    numbers = _numbers(study, setting["name"], system, score, level)
                    if numbers:
                        place = (*(setting[part] for part in ("name", "group", "value", "factor")), system, score)
                        told = (*place, kind.get("units", ""), level)
                        yield dict(zip(COLUMNS, told, strict=False)) | numbers


# ---- cells


def _by_setting(study: Study, cells: Callable[[dict[str, Any]], list[Cell]]) -> list[tuple[str, list[Cell]]]:
    """A row a setting, under the name of its group where that changes."""
    rows: list[tuple[str, list[Cell]]] = []
    group = None
    for setting in study["settings"]:
        if setting["group"] != group:
            group = setting["group"]
            rows.append((group, []))
        rows.append((setting["label"], cells(setting)))
    return rows


def decimals(study: Study, score: str) -> int:
    """So many that the smallest mean has two digits, from 2 to 4."""
    found = [entry(study, "results", s["name"], name, score) for s in study["settings"] for name in study["systems"]]
    smallest = min((abs(each["value"]) for each in found if each and each["value"]), default=1.0)
    return min(4, max(2, 1 - math.floor(math.log10(smallest))))


def _best(study: Study, score: str, values: dict[str, float]) -> str | None:
    """The system with the best of several values; the autoencoder's is of the truth itself, which no other has seen."""
    kind = study["scores"][score].get("better")
    values = {name: value for name, value in values.items() if name != FLOOR}
    if len(values) < 2 or kind not in ("low", *BEST):
        return None
    return min(values, key=lambda name: abs(values[name] - BEST[kind]) if kind in BEST else values[name])


def between(pair: Iterable[float] | None, digits: int, sign: str = "") -> str:
    """An interval in words; nothing without one."""
    return "" if pair is None else " to ".join(f"{value:{sign}.{digits}f}" for value in pair)


def _measured(found: dict[str, Any] | None, digits: int, best: bool = False) -> Cell:
    if found is None:
        return Cell()
    return Cell(f"{found['value']:.{digits}f}", between(found.get("interval"), digits), best)


def _differing(study: Study, setting: str, system: str, score: str, digits: int) -> Cell:
    found, told = entry(study, "differences", setting, system, score), verdict(study, setting, system, score)
    if found is None:
        return Cell()
    return Cell(f"{found['value']:+.{digits}f}", between(found.get("interval"), digits, "+"), verdict=told)


def _relative(study: Study, setting: str, system: str, score: str, level: str) -> Cell:
    found = entry(study, "differences", setting, system, score, level)
    rival = entry(study, "results", setting, study["reference"], score, level)
    told = verdict(study, setting, system, score, level)
    if found is None or rival is None:
        return Cell()
    if study["scores"][score].get("better") != "low":
        return Cell(f"{found['value']:+.2f}", verdict=told)
    return Cell(f"{100 * found['value'] / abs(rival['value']):+.0f}" if rival["value"] else MISSING, verdict=told)


def _ranged(theirs: dict[str, Any], digits: int) -> Cell:
    pair = (theirs["lowest"], theirs["highest"]) if "lowest" in theirs else None
    return Cell(f"{theirs['value']:.{digits}f}", between(pair, digits) or "one run")


def _spent(seconds: float | None, page: str) -> Cell:
    if seconds is None and not page:
        return Cell()
    return Cell("run" if seconds is None else duration(seconds), "its page" if page else "", link=page)


def duration(seconds: float) -> str:
    """A time as people say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _numbers(study: Study, setting: str, system: str, score: str, level: str) -> dict[str, Any]:
    """What is known of a score; an empty field is an unknown number."""
    own, gap, theirs = (entry(study, p, setting, system, score, level) for p in ("results", "differences", "published"))
    told: dict[str, Any] = {}
    for name, found in (("", own), ("difference", gap)):
        if found:
            low, high = found.get("interval") or (None, None)
            told |= {name or "value": found["value"], f"{name}_low".strip("_"): low, f"{name}_high".strip("_"): high}
    if gap:
        told["significant"] = gap["significant"]
    if theirs:
        told |= dict(zip(PUBLISHED, (theirs.get(part) for part in ("value", "lowest", "highest")), strict=True))
    return told
