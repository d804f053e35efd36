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

from sample import figures
from sample.config import SampleConfig
from sample.figures import Example, label
from slams.config import to_yaml
from slams.page import cards, document, figure, table

# A ratio this near 1 is called reliable; with tens of dates it is not known better than that.
RELIABLE_WITHIN = 0.1
FEW_BLOCKS = 10
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
        alone = scores["ensemble_size"][system] == 1
        numbers = [f"{score[name]['mean']:.2f}" for name in ("rmse", "crps", "spread_skill")]
        between = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        found.append(Row(system, numbers[0], between, numbers[1], "-" if alone else numbers[2]))
    return found


def sentences(scores: dict[str, Any]) -> list[str]:
    """What the numbers say, in words: the analysis and its rivals, its spread, how sure all this is."""
    return [sentence for sentence in (_skill(scores), _spread(scores), _certainty(scores)) if sentence]


def costs(scores: dict[str, Any]) -> list[str]:
    """What withholding each modality cost, in words."""
    return [_cost(scores, name, pair["rmse"]) for name, pair in scores["withholding"].items()]


def _skill(scores: dict[str, Any]) -> str:
    """The RMSE beside that of the hardest baseline."""
    systems, units = scores["systems"], scores["units"]
    own = systems["analysis"]["rmse"]["mean"]
    rivals = _rivals(scores)
    rival = min(rivals, key=lambda name: rivals[name])
    difference = scores["confidence"]["analysis_minus"][rival]["rmse"]
    text = f"The analysis has a {scores['variable']} RMSE of {own:.2f} {units}{_between(scores, 'analysis')}"
    if difference["value"] >= 0:
        return f"{text}; it does not beat {label(rival)} ({rivals[rival]:.2f} {units})."
    percent = round(100 * (1 - own / rivals[rival]))
    doubt = "" if _excludes_zero(difference) else ", a difference that these dates cannot tell from none"
    return f"{text}, {percent} % below {label(rival)} ({rivals[rival]:.2f} {units}), the best of the baselines{doubt}."


def _rivals(scores: dict[str, Any]) -> dict[str, float]:
    """RMSE of the baselines that may compete, those that are there."""
    names = [name for name in figures.BASELINES if name in scores["systems"] and name != "autoencoder"]
    return {name: scores["systems"][name]["rmse"]["mean"] for name in names}


def _between(scores: dict[str, Any], system: str) -> str:
    interval = scores["confidence"]["systems"][system]["rmse"].get("interval")
    return f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""


def _excludes_zero(pair: dict[str, Any]) -> bool:
    return "interval" in pair and (pair["interval"][0] > 0 or pair["interval"][1] < 0)


def _spread(scores: dict[str, Any]) -> str:
    if scores["members"] == 1:
        return ""
    ratio = scores["systems"]["analysis"]["spread_skill"]["mean"]
    if abs(ratio - 1) <= RELIABLE_WITHIN:
        verdict = "its members are about as far apart as they are from the truth, as they should be"
    else:
        verdict = "it is over-confident" if ratio < 1 else "it is less sure than it could be"
    return f"Its spread-skill ratio is {ratio:.2f}: {verdict}."


def _cost(scores: dict[str, Any], name: str, pair: dict[str, Any]) -> str:
    """What a withheld modality was worth."""
    text = f"Withholding {name} changes the RMSE by {pair['value']:+.3f} {scores['units']}"
    if "interval" not in pair:
        return f"{text}; these dates are too few to say how surely."
    low, high = pair["interval"]
    verdict = "excludes 0" if _excludes_zero(pair) else "includes 0, so no effect is shown"
    return f"{text} (95 % interval {low:+.3f} to {high:+.3f}, which {verdict})."


def _certainty(scores: dict[str, Any]) -> str:
    n_blocks, n_dates = scores["confidence"]["blocks"], len(scores["dates"])
    if n_blocks >= FEW_BLOCKS:
        return ""
    dates, blocks = _count(n_dates, "date"), _count(n_blocks, "independent block")
    what = "intervals are rough" if n_blocks > 1 else "no interval can be given"
    return f"The {dates} make {blocks} of at most five days: {what}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def write(folder: Path, scores: dict[str, Any], example: Example, ranks_CR: np.ndarray, config: SampleConfig) -> Path:
    """Write report.html, maps.png and profiles.png into a folder; returns the page's path.

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
        "costs": _costs(scores),
        "profiles": figure(profiles, PROFILE_WORDS, folder / "profiles.png") if profiles else "",
        "levels": _levels(scores),
        "maps": figure(figures.state_maps(example, state), _map_words(example), folder / "maps.png"),
        "ranks": _ranks(ranks_CR),
        "others": _others(scores, figures.surface_maps(example, others) if others else None),
        "autoencoder": _autoencoder_words(scores),
        "config": html.escape(to_yaml(config)),
        "provenance": _provenance(scores),
    }
    page = folder / "report.html"
    page.write_text(document(title, BODY.substitute(parts)), encoding="utf-8")
    return page


def _provenance(scores: dict[str, Any]) -> str:
    """All but the configuration, which stands by itself."""
    told = {name: value for name, value in scores["provenance"].items() if name != "config"}
    return html.escape(json.dumps(told, indent=1))


def _subtitle(scores: dict[str, Any], example: Example) -> str:
    dates = scores["dates"]
    when = f"{_count(len(dates), 'date')}, {dates[0]} to {dates[-1]}" if len(dates) > 1 else dates[0]
    rows, columns = example.spec.grid.shape
    return f"{when} &middot; {_count(scores['members'], 'member')} &middot; {rows} by {columns} cells"


def _cards(scores: dict[str, Any]) -> str:
    """The numbers to see first."""
    own, units = scores["systems"]["analysis"], scores["units"]
    rival, error = min(_rivals(scores).items(), key=lambda pair: pair[1])
    return cards(
        [
            (f"{own['rmse']['mean']:.2f} {units}", "RMSE of the mean"),
            (f"{own['crps']['mean']:.2f} {units}", "CRPS"),
            (f"{own['spread_skill']['mean']:.2f}" if scores["members"] > 1 else "-", "spread-skill (1 is reliable)"),
            (f"{error:.2f} {units}", f"RMSE of {label(rival)}"),
        ]
    )


def _table(scores: dict[str, Any]) -> str:
    """The state's scores, the best of those that may compete in bold."""
    units = html.escape(scores["units"])
    heads = [f"RMSE ({units})", f"95 % interval ({units})", f"CRPS ({units})", "spread-skill"]
    body = []
    for row in rows(scores):
        best = [row.system == _best(scores["systems"], score) for score in ("rmse", "crps", "spread_skill")]
        cells = [_bold(row.rmse, best[0]), row.interval, _bold(row.crps, best[1]), _bold(row.spread_skill, best[2])]
        body.append((label(row.system), cells))
    return table(heads, body)


def _costs(scores: dict[str, Any]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in costs(scores))
    return f"<h3>What each observation is worth</h3><ul>{items}</ul>" if items else ""


def _best(systems: dict[str, Any], score: str) -> str:
    """The best system but the autoencoder, which has seen the truth."""
    rivals = {name: found[score]["mean"] for name, found in systems.items() if name != "autoencoder"}
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
            (label(name), [f"{found[score][str(level)]:.2f}" for level in scores["levels_hpa"]])
            for name, found in figures.shown(scores, scores["systems"]).items()
            if score != "spread_skill" or scores["ensemble_size"][name] > 1
        ]
        if body:
            tables.append(f"<h3>{title}{units}</h3>" + table([f"{v} hPa" for v in scores["levels_hpa"]], body))
    return f"<details><summary>All numbers by level</summary>{''.join(tables)}</details>"


def _others(scores: dict[str, Any], maps: Figure | None) -> str:
    """Tables and maps of the modalities beside the state."""
    if maps is None:
        return ""
    found = []
    for name, scored in scores["other_modalities"].items():
        units, systems = html.escape(scored["units"]), figures.shown(scores, scored["systems"])
        body = [
            (label(system), [_bold(f"{v[s]['mean']:.2f}", system == _best(systems, s)) for s in ("rmse", "crps")])
            for system, v in systems.items()
        ]
        found.append(f"<h3>{html.escape(name)}</h3>" + table([f"RMSE ({units})", f"CRPS ({units})"], body))
    words = "Verified where the truth is known (rain: land). Interpolation of what was not observed is climatology."
    return f"<h2>Other modalities</h2>{''.join(found)}" + figure(maps, words)


def _map_words(example: Example) -> str:
    return (
        f"{example.day}, the date whose error is the median of all dates. Grey: not observed, or no value. "
        "Spread and error have the same scale, so that they can be compared by eye."
    )


def _ranks(ranks_CR: np.ndarray) -> str:
    """The rank histogram and the share of truth outside the ensemble."""
    n_ranks = ranks_CR.shape[1]
    if n_ranks < 3:
        return ""
    outside = 100 * float(ranks_CR[:, [0, -1]].sum(axis=1).mean())
    words = (
        f"How often the truth takes each rank among the members, all levels together. It lies outside the ensemble in "
        f"{outside:.1f} % of cells; {200 / n_ranks:.1f} % is expected. A U shape is too little spread, a dome too much."
    )
    return "<h2>Rank histogram</h2>" + figure(figures.rank_histogram(ranks_CR), words)


def _autoencoder_words(scores: dict[str, Any]) -> str:
    if scores["has_autoencoder"]:
        return "<i>Autoencoder</i> is the truth encoded and decoded, the best that its latent space can hold."
    return ""


BODY = Template("""<h1>$title</h1>
<p class="muted">$subtitle</p>
<p class="summary">$summary</p>
$cards
<h2>Scores</h2>
$table
<p class="muted">Area-weighted means over all cells, dates and levels; bold is best. The baselines are given the same
observations as the analysis; a single field has no spread, and its CRPS is its mean absolute error. $autoencoder</p>
$costs
$profiles
$levels
<h2>One date</h2>
$maps
$ranks
$others
<h2>Where it comes from</h2>
<p>To make this page again: <code>python -m sample verify CONFIG</code>, with this configuration.</p>
<details><summary>Configuration</summary><pre>$config</pre></details>
<details><summary>Versions and checksums</summary><pre>$provenance</pre></details>
""")
