"""One page that says how good a run is: sentences, tables, figures, provenance; no network needed to read it."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sample import figures, verdicts
from sample.config import SampleConfig
from sample.figures import Example, label
from sample.observation_report import observed
from sample.sentences import costs, counted, rivals, sentences
from sample.structure_report import ranks, weather
from sample.sums import OF_MEMBERS
from sample.verdicts import Verdict
from slams.config import to_yaml
from slams.contracts.envelope import write_text
from slams.page import cards, difference, document, figure, legend, table

PROFILE_WORDS = "Scores by level, on a logarithmic pressure axis."


@dataclass(frozen=True)
class Row:
    """A system's line in the tables, as text."""

    system: str
    rmse: str
    interval: str
    crps: str
    spread_skill: str


def rows(scores: dict[str, Any]) -> list[Row]:
    """The table of the state, one row a system."""
    found = []
    for system, score in figures.shown(scores, scores["systems"]).items():
        interval = scores["confidence"]["systems"][system]["rmse"].get("interval")
        alone = scores["ensemble_size"][system] == 1 or "spread_skill" not in score
        rmse, crps = (f"{score[name]['mean']:.2f}" for name in ("rmse", "crps"))
        between = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        ratio = "-" if alone else f"{score['spread_skill']['mean']:.2f}"
        found.append(Row(system, rmse, between, crps, ratio))
    return found


def write(folder: Path, scores: dict[str, Any], example: Example, ranks_CR: np.ndarray, config: SampleConfig) -> Path:
    """Write report.html and its figures (maps, profiles, ...; PNG and SVG) into a folder; returns the page's path.

    Arguments:
        ranks_CR: rank histogram of each level of the state.
    """
    state = example.spec.modality(scores["variable"])
    others = [m for m in example.spec.modalities if m.name in scores["other_modalities"]]
    profiles = figures.profiles(scores)
    title = f"Verification of {Path(config.folder).name}"
    parts = {
        "title": html.escape(title),
        "subtitle": _subtitle(scores, example),
        "summary": " ".join(html.escape(s) for s in sentences(scores)),
        "cards": _cards(scores),
        "table": _table(scores),
        "differences": _differences(scores),
        "costs": _costs(scores),
        "profiles": figure(profiles, PROFILE_WORDS, folder / "profiles.png") if profiles else "",
        "levels": _levels(scores),
        "maps": figure(figures.state_maps(example, state), _map_words(example), folder / "maps.png"),
        "increment": figure(figures.increment_maps(example, state), _increment_words(scores), folder / "increment.png"),
        "weather": weather(folder, scores),
        "ranks": ranks(folder, ranks_CR, scores["levels_hpa"]),
        "observed": observed(folder, scores["observation_space"]),
        "others": _others(folder, scores, figures.surface_maps(example, others) if others else None),
        "autoencoder": _autoencoder_words(scores),
        "config": html.escape(to_yaml(config)),
        "provenance": _provenance(scores),
    }
    page = folder / "report.html"
    write_text(page, document(title, BODY.substitute(parts)))
    return page


def _provenance(scores: dict[str, Any]) -> str:
    """All but the configuration, which stands by itself."""
    told = {name: value for name, value in scores["provenance"].items() if name != "config"}
    return html.escape(json.dumps(told, indent=1))


def _subtitle(scores: dict[str, Any], example: Example) -> str:
    dates = scores["dates"]
    when = f"{counted(len(dates), 'date')}, {dates[0]} to {dates[-1]}" if len(dates) > 1 else dates[0]
    rows, columns = example.spec.grid.shape
    return f"{when} &middot; {counted(scores['members'], 'member')} &middot; {rows} by {columns} cells"


def _cards(scores: dict[str, Any]) -> str:
    """The numbers to see first."""
    own, units = scores["systems"]["analysis"], scores["units"]
    rival, error = min(rivals(scores).items(), key=lambda pair: pair[1])
    shown = [(f"{own['rmse']['mean']:.2f} {units}", "RMSE of the mean"), (f"{own['crps']['mean']:.2f} {units}", "CRPS")]
    if scores["members"] > 1 and "spread_skill" in own:
        shown.append((f"{own['spread_skill']['mean']:.2f}", "spread-skill (1 is reliable)"))
    return cards([*shown, (f"{error:.2f} {units}", f"RMSE of {label(rival)}")])


def _table(scores: dict[str, Any]) -> str:
    """The state's scores, each with its interval, the best of those that may compete in bold."""
    units = html.escape(scores["units"])
    told = {"rmse": f"RMSE ({units})", "crps": f"CRPS ({units})", "spread_skill": "spread-skill"}
    told |= {"bias": f"bias ({units})", "w1": "W1 (std)"}
    columns = {score: head for score, head in told.items() if score != "spread_skill" or figures.several(scores)}
    shown = figures.shown(scores, scores["systems"])
    best = {score: _best(scores["systems"], score) for score in columns if score in figures.SCORES}
    body = [
        (label(name), [_measured(scores, name, s, FORMS.get(s, ".2f"), best=best.get(s) == name) for s in columns])
        for name in shown
    ]
    return table(columns.values(), body)


FORMS = {"bias": "+.3f", "w1": ".3f"}


def _measured(
    scores: dict[str, Any], system: str, score: str, form: str = ".2f", level: str = "mean", best: bool = False
) -> str:
    """A score with its interval below it; a dash where the system has none, as a single field has no spread.

    Arguments:
        scores: of the state, or of another modality.
    """
    found, sure = scores["systems"][system].get(score), scores["intervals"].get(system, {}).get(score)
    if found is None or (score in OF_MEMBERS and sure is None):
        return "-"
    between = sure.get(level) if sure else None
    under = f"<small>{between[0]:{form}} to {between[1]:{form}}</small>" if between else ""
    return _bold(f"{found[level]:{form}}", best) + under


def verdict(scores: dict[str, Any], system: str, score: str, level: str = "mean") -> Verdict:
    """What the analysis' difference to a system says; see `sample.verdicts`."""
    own, rival = (scores["intervals"].get(name, {}).get(score, {}).get(level) for name in ("analysis", system))
    return verdicts.verdict(scores["differences"][system][score][level], own, rival, BETTER.get(score, ""))


DIFFERENCES = {"rmse": "RMSE", "crps": "CRPS"}
BETTER = {"rmse": "low", "crps": "low", "w1": "low", "spread_skill": "one", "bias": "zero"}
BETTER |= {"day_change": "one", "day_change_at_joins": "one"}
MEANINGS = {"better": "the analysis is better", "worse": "it is worse", "open": "no difference shown"}


def _differences(scores: dict[str, Any]) -> str:
    """The analysis minus each of the others, by level, folded away; the first column open."""
    names = [str(level) for level in scores["levels_hpa"]]
    others = [name for name in figures.shown(scores, scores["differences"]) if name != "autoencoder"]
    heads = ["mean", *(f"{name} hPa" for name in names)]
    body: list[tuple[str, list[str]]] = []
    for score, title in DIFFERENCES.items():
        body.append((f"{title} ({scores['units']})", []))
        body += [(label(name), [_difference(scores, name, score, at) for at in ("mean", *names)]) for name in others]
    words = "The analysis minus each, on the same dates, with the 95 % interval of the difference."
    return f'<h3>The analysis minus each</h3>{legend(MEANINGS)}{table(heads, body)}<p class="muted">{words}</p>'


def _difference(scores: dict[str, Any], system: str, score: str, level: str) -> str:
    found = scores["differences"][system][score][level]
    between = found.get("interval")
    under = f"{between[0]:+.2f} to {between[1]:+.2f}" if between else "no interval"
    return difference(verdict(scores, system, score, level), f"{found['value']:+.2f}", under)


def _costs(scores: dict[str, Any]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in costs(scores))
    return f"<h3>What each observation is worth</h3><ul>{items}</ul>" if items else ""


def _best(systems: dict[str, Any], score: str) -> str:
    """The best system but the autoencoder, which has seen the truth."""
    known = {name: found for name, found in systems.items() if name != "autoencoder" and score in found}
    rivals = {name: found[score]["mean"] for name, found in known.items()}
    return min(rivals, key=lambda name: abs(rivals[name] - 1) if score == "spread_skill" else rivals[name])


def _bold(text: str, best: bool) -> str:
    return f"<b>{text}</b>" if best and text != "-" else text


def _levels(scores: dict[str, Any]) -> str:
    """Every number by level, folded away."""
    if not scores["levels_hpa"]:
        return ""
    tables = []
    for score, title in figures.SCORES.items():
        units = "" if score == "spread_skill" else f" ({html.escape(scores['units'])})"
        body = [
            (label(name), [_measured(scores, name, score, level=str(level)) for level in scores["levels_hpa"]])
            for name in figures.shown(scores, scores["systems"])
            if score != "spread_skill" or scores["ensemble_size"][name] > 1
        ]
        if body:
            tables.append(f"<h3>{title}{units}</h3>" + table([f"{v} hPa" for v in scores["levels_hpa"]], body))
    return f"<details><summary>All numbers by level</summary>{''.join(tables)}</details>"


def _others(folder: Path, scores: dict[str, Any], maps: Figure | None) -> str:
    """Tables and maps of the modalities beside the state."""
    if maps is None:
        return ""
    found = []
    for name, scored in scores["other_modalities"].items():
        units, systems = html.escape(scored["units"]), figures.shown(scores, scored["systems"])
        body = [
            (label(system), [_measured(scored, system, s, best=system == _best(systems, s)) for s in ("rmse", "crps")])
            for system in systems
        ]
        found.append(f"<h3>{html.escape(name)}</h3>" + table([f"RMSE ({units})", f"CRPS ({units})"], body))
    words = "Verified where the truth is known (rain: land). Interpolation of what was not observed is climatology."
    return f"<h2>Other modalities</h2>{''.join(found)}" + figure(maps, words, folder / "others.png")


def _map_words(example: Example) -> str:
    words = f"{example.day}, the date whose error is the median of all dates. Grey: not observed, or no value."
    if len(example.members) == 1:
        return words
    return f"{words} Spread and error have the same scale, so that they can be compared by eye."


def _increment_words(scores: dict[str, Any]) -> str:
    """Whether there was a background is told by who competes."""
    what = "the background it was given" if "persistence" in scores["systems"] else "the climatology of the day"
    return f"What the analysis changed of {what}, and what would have been right, in the same colours."


def _autoencoder_words(scores: dict[str, Any]) -> str:
    if scores["has_autoencoder"]:
        return "<i>Autoencoder</i> is the truth encoded and decoded, about the best that its latent space can hold."
    return ""


BODY = Template("""<h1>$title</h1>
<p class="muted">$subtitle</p>
<p class="summary">$summary</p>
$cards
<h2>Scores</h2>
$table
<p class="muted">Area-weighted means over all cells, dates and levels, below each its 95 % interval; bold is best. The
baselines are given the same observations as the analysis; a single field has no spread, and its CRPS is its mean
absolute error. $autoencoder</p>
$differences
$costs
$profiles
$levels
<h2>One date</h2>
$maps
$increment
$weather
$ranks
$observed
$others
<h2>Where it comes from</h2>
<p>To make this page again: <code>python -m sample verify CONFIG</code>, with this configuration.</p>
<details><summary>Configuration</summary><pre>$config</pre></details>
<details><summary>Versions and checksums</summary><pre>$provenance</pre></details>
""")
