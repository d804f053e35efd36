"""The part of a verification's page that is told in the space of what was observed; see `sample.observation_space`."""

from __future__ import annotations

import html
from typing import Any

from sample import observation_figures as figures
from sample.figures import label
from sample.observation_space import ALL
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
JUDGES_WORDS = (
    "The analysis has not seen these observations. Chi-square with spread and spread-error ratio are 1 for reliable "
    "members; a ratio below 1 is over-confident."
)
ERROR_WORDS = (
    "Standard deviations of errors after Desroziers et al. (2005) beside those stated: a direction rather than a "
    "measurement, since the gain is taken to be optimal."
)
RANK_WORDS = (
    "Rank of the observations among members with the observations' error added: flat when reliable, for withheld ones; "
    "a dome is expected where they were assimilated."
)
PROFILE_WORDS = "O - B and O - A of {} by level."
BAND_WORDS = "Standard deviation of O - B and O - A by latitude (bars) and their means (points)."


def observed(found: dict[str, Any]) -> str:
    """The section, HTML; nothing where no observation is in physical units.

    Arguments:
        found: of `sample.observation_space.observation_space`, by name of product.
    """
    parts = [_product(name, told) for name, told in found.items() if {"departures", "held_out"} & told.keys()]
    return f"<h2>Beside the observations</h2>{''.join(parts)}" if parts else ""


def _product(name: str, found: dict[str, Any]) -> str:
    parts = [f"<h3>{html.escape(label(name))}</h3>"]
    if "departures" in found:
        parts.append(_departures(found["departures"], found["background"]))
    if "held_out" in found:
        parts.append(_held_out(found["held_out"]))
    return "".join(parts)


def _departures(found: dict[str, Any], background: dict[str, str]) -> str:
    """What was assimilated, and what was withheld of it."""
    groups = found["groups"]
    told = "; ".join(f"{name}: {what}" for name, what in background.items())
    parts = [_numbers(found, True, ASSIMILATED, f"{ASSIMILATED_WORDS} Background: {told}.")]
    parts.append(_numbers(found, False, JUDGES, JUDGES_WORDS))
    for name in dict.fromkeys(row["modality"] for row in groups):
        for drawn, words in (
            (figures.departure_profiles(groups, name), PROFILE_WORDS.format(name)),
            (figures.error_profiles(groups, name), ERROR_WORDS),
        ):
            parts.append(figure(drawn, words) if drawn is not None else "")
    parts += [figure(figures.band_departures(groups), BAND_WORDS), _ranks(groups)]
    return "".join(parts)


def _held_out(found: dict[str, Any]) -> str:
    groups = found["groups"]
    parts = ["<h4>Observations that were never assimilated</h4>", _numbers(found, False, JUDGES, JUDGES_WORDS)]
    for name in dict.fromkeys(row["modality"] for row in groups):
        drawn = figures.departure_profiles(groups, name)
        parts.append(figure(drawn, f"O - A of {name} by level.") if drawn is not None else "")
    return "".join(parts) + _ranks(groups)


def _ranks(groups: list[dict[str, Any]]) -> str:
    """Nothing where no rank is known, as of a single member that is missing."""
    known = any(_whole(row) and row["rank_shares"][0] is not None for row in groups)
    return figure(figures.observation_ranks(groups), RANK_WORDS) if known else ""


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
