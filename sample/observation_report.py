"""The part of a verification's page that is told in the space of what was observed; see `sample.observation_space`."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sample import observation_figures as figures
from sample.figures import label
from sample.observation_space import ALL, OF_SPREAD
from slams.page import figure, table

DIGITS = 2
# what stands in the table, by what it is called there
ASSIMILATED = {
    "o_minus_b_mean": "O - B, mean",
    "o_minus_b_std": "O - B, std",
    "o_minus_a_mean": "O - A, mean",
    "o_minus_a_std": "O - A, std",
    "chi_square": "J<sub>o</sub> / N",
}
JUDGES = {
    "o_minus_a_mean": "O - A, mean",
    "o_minus_a_std": "O - A, std",
    "chi_square_with_spread": "chi-square with spread",
    "spread_error_ratio": "spread-error ratio",
    "crps": "CRPS",
}
ASSIMILATED_WORDS = (
    "Observation minus background (O - B) and minus the mean of the members (O - A). The analysis has seen these "
    "observations: a small O - A is no merit, J_o / N is below 1 by the share of information that was used."
)
UNSEEN = "The analysis has not seen these observations."
JUDGES_WORDS = (
    "Chi-square with spread and spread-error ratio are 1 for reliable members; a ratio below 1 is over-confident."
)
ERROR_WORDS = (
    "Standard deviations of errors after Desroziers et al. (2005) beside those stated: a direction rather than a "
    "measurement, since the gain is taken to be optimal."
)
COUNTS = ("assimilated", "withheld", "unknown", "rejected")
COUNTS_WORDS = (
    "Unknown: those of them that the state knows nothing of, such as a gauge over a cell that counts as sea. Rejected: "
    "reports that failed their quality control, which are none of these; of a grid it is not known."
)
RANK_WORDS = (
    "Rank of the observations among members with the observations' error added: flat when reliable, for withheld ones; "
    "a dome is expected where they were assimilated."
)
PROFILE_WORDS = "O - B and O - A of {} by level."
BAND_WORDS = "Standard deviation of O - B and O - A by latitude (bars) and their means (points)."


def observed(folder: Path, found: dict[str, Any]) -> str:
    """The section, HTML, its figures in the folder too; nothing where no observation is in physical units.

    Arguments:
        found: of `sample.observation_space.observation_space`, by name of product.
    """
    parts = [_product(folder, name, told) for name, told in found.items() if {"departures", "held_out"} & told.keys()]
    return f"<h2>Beside the observations</h2>{''.join(parts)}" if parts else ""


def _product(folder: Path, name: str, found: dict[str, Any]) -> str:
    parts = [f"<h3>{html.escape(label(name))}</h3>"]
    if "departures" in found:
        parts.append(_departures(folder / f"{name}-departures", found["departures"], found["background"]))
    if "held_out" in found:
        parts.append(_held_out(folder / f"{name}-held-out", found["held_out"]))
    return "".join(parts)


def _departures(begins: Path, found: dict[str, Any], background: dict[str, str]) -> str:
    """What was assimilated, and what was withheld of it.

    Arguments:
        begins: how the paths of its figures begin.
    """
    groups = found["groups"]
    told = "; ".join(f"{name}: {what}" for name, what in background.items())
    parts = [_numbers(found, True, ASSIMILATED, f"{ASSIMILATED_WORDS} Background: {told}.")]
    parts += [_judges(found), _counts(found["counts"])]
    for name in _modalities(groups):
        parts.append(_figure(figures.departure_profiles(groups, name), PROFILE_WORDS.format(name), begins, name))
        parts.append(_figure(figures.error_profiles(groups, name), ERROR_WORDS, begins, name, "errors"))
    parts.append(_figure(figures.band_departures(groups), BAND_WORDS, begins, "bands"))
    return "".join(parts) + _ranks(groups, begins)


def _held_out(begins: Path, found: dict[str, Any]) -> str:
    groups = found["groups"]
    parts = ["<h4>Observations that were never assimilated</h4>", _judges(found), _counts(found["counts"])]
    for name in _modalities(groups):
        words = f"O - A of {name} by level."
        parts.append(_figure(figures.departure_profiles(groups, name), words, begins, name))
    return "".join(parts) + _ranks(groups, begins)


def _judges(found: dict[str, Any]) -> str:
    """Of one member without what needs a spread; the page says so once."""
    if found["members"] > 1:
        return _numbers(found, False, JUDGES, f"{UNSEEN} {JUDGES_WORDS}")
    return _numbers(found, False, {name: said for name, said in JUDGES.items() if name not in OF_SPREAD}, UNSEEN)


def _modalities(groups: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["modality"] for row in groups))


def _figure(drawn: Figure | None, words: str, begins: Path, *names: str) -> str:
    """Inside the page, and as files named after what they show; nothing where nothing is drawn."""
    return figure(drawn, words, begins.with_name("-".join([begins.name, *names]) + ".png")) if drawn is not None else ""


def _ranks(groups: list[dict[str, Any]], begins: Path) -> str:
    """Nothing where no rank is known, as of a single member."""
    known = any(_whole(row) and row["rank_shares"][0] is not None for row in groups)
    return _figure(figures.observation_ranks(groups), RANK_WORDS, begins, "ranks") if known else ""


def _counts(counts: dict[str, dict[str, int]]) -> str:
    """How many there were; a dash where a grid does not tell what was rejected."""
    body = [(name, [f"{told[kind]}" if kind in told else "-" for kind in COUNTS]) for name, told in counts.items()]
    return f"<h4>How many</h4>{table(COUNTS, body)}" + f'<p class="muted">{html.escape(COUNTS_WORDS)}</p>'


def _numbers(found: dict[str, Any], assimilated: bool, shown: dict[str, str], words: str) -> str:
    """A row a modality; intervals below the numbers."""
    rows = [row for row in found["groups"] if _whole(row) and row["assimilated"] == assimilated]
    if not rows:
        return ""
    intervals = {(each["modality"], each["assimilated"]): each for each in found["confidence"]["of"]}
    body = []
    for row in rows:
        sure = intervals.get((row["modality"], assimilated), {})
        cells = [f"{row['known']}", *(_cell(row[name], sure.get(name)) for name in shown)]
        body.append((f"{row['modality']} ({row['units']})", cells))
    return table(["number", *shown.values()], body) + f'<p class="muted">{html.escape(words)}</p>'


def _whole(row: dict[str, Any]) -> bool:
    return row["level_hpa"] in (ALL, None) and row["band"] == ALL and row["season"] == ALL


def _cell(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    under = f"<small>{interval[0]:.{DIGITS}f} to {interval[1]:.{DIGITS}f}</small>" if interval else ""
    return f"{value:.{DIGITS}f}{under}"
