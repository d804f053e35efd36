"""The page of a study, and its tables as files; no network is needed to read the page."""

from __future__ import annotations

import csv
import html
import io
import json
import os
from pathlib import Path

from sample.study import figures, tables
from sample.study.tables import Cell, Study, Table, label, title
from sample.study.words import (
    COST_WORDS,
    NOT_THERE,
    PREPARATION_WORDS,
    PUBLISHED_WORDS,
    by_chance,
    meanings,
    notes,
    score_words,
    standings,
)
from sample.verdicts import BEST
from slams.contracts.envelope import write_json, write_text
from slams.page import cards, difference, document, figure, legend, slug, table

PAGE, CSV, JSON, FIGURES = "report.html", "results.csv", "results.json", "figures"
BADGES = {True: ("better", "✓ holds"), False: ("worse", "✗ does not hold"), None: ("other", "? cannot be told")}


def write(folder: Path, study: Study) -> Path:
    """Write report.html, results.csv, results.json and figures/ (PNG and SVG) into a folder.

    Arguments:
        study: see `sample.study.results.study`; pages of cases are paths from the working directory.

    Returns:
        The path of the page.
    """
    study = json.loads(json.dumps(study))  # levels are text from here on
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for old in (path for path in (folder / FIGURES).iterdir() if path.suffix in (".png", ".svg")):
        old.unlink()  # of a setting that is no longer shown, it would be taken for one of these
    write_json(folder / JSON, study)
    write_text(folder / CSV, _csv(study))
    write_text(folder / PAGE, document(study["title"], _body(folder, study)))
    return folder / PAGE


def _csv(study: Study) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, tables.COLUMNS)
    writer.writeheader()
    writer.writerows(tables.records(study))
    return text.getvalue()


def _body(folder: Path, study: Study) -> str:
    scores = study["scores"]
    parts = [
        f"<h1>{html.escape(study['title'])}</h1>",
        f'<p class="muted">{html.escape(_subtitle(study))}</p>',
        f"<p>{html.escape(study['question'])}</p>",
        f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in standings(study))}</ul>",
        _cards(study),
        _section("Findings", _findings(study)),
        _section(f"Scorecard: {title(study, study['first_score'])}", _scorecard(study)),
        _section("Scores", *(_score(study, score) for score in scores), _notes(study)),
        _section("Beside what was published", *(_published(study, score) for score in scores)),
        *(_section(f"Along {group}", _curves(folder, study, group)) for group in figures.groups(study)),
        _section(f"{scores[study['first_score']]['label']} by level", _profiles(folder, study)),
        _section("Cost", _table(tables.cost(study), folder), _muted(f"{COST_WORDS} {NOT_THERE}."), _prepared(study)),
        _section("Where it comes from", _provenance(study)),
    ]
    return "\n".join(part for part in parts if part)


def _section(heading: str, *parts: str) -> str:
    """Nothing where all parts are empty."""
    body = "\n".join(part for part in parts if part)
    return f"<h2>{html.escape(heading)}</h2>\n{body}" if body else ""


def _muted(words: str) -> str:
    return f'<p class="muted">{html.escape(words)}</p>'


# ---- words


def _subtitle(study: Study) -> str:
    dates, n = study["dates"], study["members"]
    parts = [f"{len(dates)} dates, {dates[0]} to {dates[-1]}" if len(dates) > 1 else ", ".join(dates)]
    counts = sorted({*n.values()})
    if counts:
        parts.append(f"{counts[0]} members" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} members")
    return " · ".join([*(part for part in parts if part), f"reference: {label(study, study['reference'])}"])


def _cards(study: Study) -> str:
    """The numbers to see first."""
    names = [setting["name"] for setting in tables.distinct(study)]
    run = sum(bool(study["results"].get(setting, {}).get(name)) for setting in names for name in study["systems"])
    hold = [each["holds"] for each in study["findings"]]
    seconds = sum(spent for setting in names for spent in study["cost"].get(setting, {}).values())
    seconds += sum(spent["processor_seconds"] for spent in study["preparation"].values())
    shown = [(f"{run} of {len(names) * len(study['systems'])}", "settings and systems scored")]
    if hold:
        shown.append((f"{hold.count(True)} of {len(hold)}", "findings hold"))
    return cards([*shown, (f"{len(study['dates'])}", "dates"), (tables.duration(seconds), "processor time")])


def _prepared(study: Study) -> str:
    return _table(tables.preparation(study)) + _muted(PREPARATION_WORDS) if study["preparation"] else ""


def _findings(study: Study) -> str:
    items = []
    for each in study["findings"]:
        kind, words = BADGES[each["holds"]]
        claim, evidence = html.escape(each["claim"]), html.escape(each["evidence"])
        items.append(f'<li><span class="badge {kind}">{words}</span> {claim}<small>{evidence}</small></li>')
    return f'<ul class="plain">{"".join(items)}</ul>' if items else ""


def _legend(study: Study, found: Table) -> str:
    """The marks that a table has, in words."""
    missing = any(cell.text == tables.MISSING for _, cells in found.rows for cell in cells)
    return legend(meanings(study, found), *([NOT_THERE] if missing else []))


# ---- sections


def _scorecard(study: Study) -> str:
    found = tables.scorecard(study)
    chance = by_chance(found)
    if not chance:
        return ""
    directed = study["scores"][study["first_score"]].get("better") not in BEST
    unit = "in per cent of its score" if directed else "in units of the score"
    words = (
        f"Difference to {label(study, study['reference'])} on the same dates, {unit}, by level. Coloured and marked "
        f"where the 95 % interval of the difference excludes 0. {chance}"
    )
    return f"{_legend(study, found)}{_table(found)}{_muted(words)}"


def _score(study: Study, score: str) -> str:
    found, gaps = tables.results(study, score), tables.differences(study, score)
    parts = [f"<h3>{html.escape(title(study, score))}</h3>", _table(found), _muted(score_words(study, score))]
    if any(cell.verdict for _, cells in gaps.rows for cell in cells):
        head = f"Differences to {html.escape(label(study, study['reference']))}"
        told = f"{_legend(study, gaps)}{_table(gaps)}{_muted(by_chance(gaps))}"
        parts.append(f"<details><summary>{head}</summary>{told}</details>")
    return "\n".join(parts)


def _notes(study: Study) -> str:
    """What the settings say of themselves."""
    items = "".join(f"<li>{html.escape(words)}</li>" for words in notes(study))
    return f'<ul class="muted">{items}</ul>' if items else ""


def _published(study: Study, score: str) -> str:
    found = tables.published(study, score)
    if not found.rows:
        return ""
    return f"<h3>{html.escape(title(study, score))}</h3>{_table(found)}{_muted(PUBLISHED_WORDS)}"


def _curves(folder: Path, study: Study, group: str) -> str:
    words = f"along {group}: mean over the levels. Bars: 95 % interval"
    published = "; open: published, with the range of its runs"
    drawn = []
    for score in study["scores"]:
        drawing = figures.curves(study, group, score)
        if drawing is not None:
            path = folder / FIGURES / f"{slug('curve', group, score)}.png"
            told = published if tables.published(study, score).rows else ""
            drawn.append(figure(drawing, f"{study['scores'][score]['label']} {words}{told}.", path))
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _profiles(folder: Path, study: Study) -> str:
    labels = {setting["name"]: setting["label"] for setting in study["settings"]}
    drawn = []
    for setting in figures.chosen(study):
        drawing = figures.profiles(study, setting)
        if drawing is not None:
            path = folder / FIGURES / f"{slug('profile', setting)}.png"
            drawn.append(figure(drawing, f"By level, {labels[setting]}. Shaded: 95 % interval.", path))
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _provenance(study: Study) -> str:
    told = json.dumps({"dates": study["dates"], "members": study["members"], **study["provenance"]}, indent=1)
    return (
        f"<p>To make this again, going on where it stopped: <code>{html.escape(study['rerun'])}</code></p>"
        f"<p>Every number of this page, and those by level: {CSV} and {JSON} beside it; figures as PNG and SVG.</p>"
        f"{_folded('Configuration of the study', study['config'])}{_folded('Versions, dates and members', told)}"
        f"{_folded('Commits and checksums of each case', json.dumps(study['origins'], indent=1))}"
    )


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>"


# ---- tables


def _table(found: Table, folder: Path | None = None) -> str:
    """Links lead from a folder."""
    body = [(name, [_cell(cell, folder) for cell in cells]) for name, cells in found.rows]
    return table(map(html.escape, found.heads), body)


def _cell(cell: Cell, folder: Path | None) -> str:
    text, under = html.escape(cell.text), html.escape(cell.under)
    if cell.text == tables.MISSING:
        return f'<span class="missing">{text}</span>'
    if cell.verdict:
        return difference(cell.verdict, cell.text, cell.under)
    if cell.link:
        under = f'<a href="{html.escape(Path(os.path.relpath(cell.link, folder)).as_posix())}">{under}</a>'
    return (f"<b>{text}</b>" if cell.best else text) + (f"<small>{under}</small>" if under else "")
