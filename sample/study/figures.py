"""Figures of a study: a score along a group of settings, and by level in one setting.

A system has one colour, one marker and one dash everywhere, so that lines are told apart without colour as well; after
as many systems as there are colours, these come again with other markers and dashes. An axis is made for the systems
that analyse: a baseline far behind them leaves it, and the legend says so.
"""

from __future__ import annotations

import math
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import offset_copy

from sample.figures import pressure_axis
from sample.study.config import BASELINES
from sample.study.tables import MEAN, Study, distinct, entry, label, title
from sample.verdicts import BEST
from slams.page import FIGURE_STYLE, MUTED

WIDTH, HEIGHT = 4.6, 3.6  # legible at the width of a phone
GRID = "#e4e7ea"
REFERENCE = "#5b6770"
# Okabe and Ito's colours, told apart by every eye
STYLES = (
    ("#0b3d91", "o", "-"),
    ("#d55e00", "s", "-"),
    ("#009e73", "^", "-"),
    ("#cc79a7", "D", "--"),
    ("#56b4e9", "v", "--"),
    ("#e69f00", "P", "--"),
    ("#8c510a", "X", ":"),
    ("#000000", "*", ":"),
)
AGAIN = ("<", ">", "p", "h", "d", "8", "H", "1")  # markers of the second round
ROWS, ROW = 4, 0.17  # lines of a legend for which there is place, and inches of each further one
ROOM = 1.6  # of the largest value of those that analyse
PUBLISHED_SHIFT = 6  # points to the right of ours
LOG_FROM = 4.0  # values that span more than this factor stand on a logarithmic axis


def groups(study: Study) -> list[str]:
    """Groups of at least two settings, which make a curve."""
    names = [setting["group"] for setting in distinct(study)]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def chosen(study: Study) -> list[str]:
    """Settings whose profiles are shown: the first and the last of each group that has any, three at most."""
    ends = []
    for group in dict.fromkeys(setting["group"] for setting in study["settings"]):
        names = [s["name"] for s in distinct(study) if s["group"] == group and study["results"].get(s["name"])]
        ends += [names[:1], names[-1:]]
    return list(dict.fromkeys(name for pair in ends for name in pair))[:3]


def curves(study: Study, group: str, score: str) -> Figure | None:
    """A score, mean over the levels, against the value of a group's settings, with 95 % intervals.

    Each stands at the factor in use. Published values stand beside ours as open markers, at the factor of theirs, with
    the range of their runs. None where fewer than two settings have a value.
    """
    asked = [setting for setting in study["settings"] if setting["group"] == group]
    settings = sorted((s for s in distinct(study) if s["group"] == group), key=lambda each: each["at"])
    known = [any(entry(study, "results", s["name"], name, score) for name in study["systems"]) for s in settings]
    if sum(known) < 2:
        return None
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.subplots()
        room = _room(study, score, [setting["name"] for setting in asked], [MEAN])
        for system in study["systems"]:
            _curve(axes, study, settings, system, score, room)
        for system in study["systems"]:
            _published(axes, study, asked, system, score)
        _value_axis(axes, [setting["at"] for setting in settings], _along(group, asked))
        _score_axis(axes.axhline, axes.set_ylim, study, score, room)
        axes.set_title(title(study, score))
        _finished(figure, axes)
    return figure


def _curve(axes: Axes, study: Study, settings: list[dict[str, Any]], system: str, score: str, room: float) -> None:
    found = [(s["at"], entry(study, "results", s["name"], system, score)) for s in settings]
    known = [(x, each) for x, each in found if each is not None]
    if not known:
        return
    colour, marker, dashes = _style(study, system)
    # a gap stays a gap: no line across a setting that is missing
    values = [math.nan if each is None else each["value"] for _, each in found]
    name = _named(study, system, [each["value"] for _, each in known], room)
    axes.plot([x for x, _ in found], values, dashes, color=colour, marker=marker, ms=4.5, lw=1.5, label=name)
    for x, each in known:
        if each.get("interval"):
            axes.plot([x, x], each["interval"], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")


def _published(axes: Axes, study: Study, settings: list[dict[str, Any]], system: str, score: str) -> None:
    found = [(s["value"], entry(study, "published", s["name"], system, score)) for s in settings]
    known = [(x, each) for x, each in found if each is not None]
    colour, marker, _ = _style(study, system)
    beside = offset_copy(axes.transData, axes.figure, x=PUBLISHED_SHIFT, units="points")
    style: dict[str, Any] = {"color": colour, "transform": beside}
    for x, each in known:
        between = [each.get("lowest", each["value"]), each.get("highest", each["value"])]
        axes.plot([x, x], between, lw=0.9, **style)
        axes.update_datalim([(x, y) for y in between])  # which a shifted line does not
    if known:
        x, values = [x for x, _ in known], [each["value"] for _, each in known]
        name = f"{label(study, system)}, published"
        axes.plot(x, values, marker, ms=5, markerfacecolor="white", label=name, **style)


def profiles(study: Study, setting: str) -> Figure | None:
    """The first score of each system against pressure, with 95 % intervals; None without levels or values."""
    score = study["first_score"]
    (name,) = (each["label"] for each in study["settings"] if each["name"] == setting)
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(WIDTH, 1.15 * HEIGHT))
        axes = figure.subplots()
        room = _room(study, score, [setting], [str(level) for level in study["levels_hpa"]])
        if not any([_profile(axes, study, setting, system, score, room) for system in study["systems"]]):
            return None
        pressure_axis(axes, study["levels_hpa"])
        _score_axis(axes.axvline, axes.set_xlim, study, score, room)
        axes.set(title=name, xlabel=title(study, score))
        _finished(figure, axes)
    return figure


def _profile(axes: Axes, study: Study, setting: str, system: str, score: str, room: float) -> bool:
    found = [(level, entry(study, "results", setting, system, score, str(level))) for level in study["levels_hpa"]]
    known = [(level, each) for level, each in found if each is not None]
    if not known:
        return False
    colour, marker, dashes = _style(study, system)
    levels, values = [level for level, _ in known], [each["value"] for _, each in known]
    name = _named(study, system, values, room)
    axes.plot(values, levels, dashes, color=colour, marker=marker, ms=3.5, lw=1.5, label=name)
    if all(each.get("interval") for _, each in known):
        low, high = zip(*(each["interval"] for _, each in known), strict=True)
        axes.fill_betweenx(levels, low, high, color=colour, alpha=0.18, lw=0)
    return True


def _style(study: Study, system: str) -> tuple[str, str, str]:
    """Colour, marker and dash; the reference is grey."""
    if system == study["reference"]:
        return REFERENCE, "o", "--"
    number = [name for name in study["systems"] if name != study["reference"]].index(system)
    colour, marker, dashes = STYLES[number % len(STYLES)]
    return (colour, marker, dashes) if number < len(STYLES) else (colour, AGAIN[number % len(AGAIN)], "-.")


def _room(study: Study, score: str, settings: list[str], levels: list[str]) -> float:
    """Where an axis from 0 ends; infinity where no system that analyses has a value."""
    systems = [name for name in study["systems"] if name not in BASELINES]
    places = [(s, name, score, at) for s in settings for name in systems for at in levels]
    found = [entry(study, part, *place) for part in ("results", "published") for place in places]
    ends = [max(each["value"], each.get("highest", -math.inf), *each.get("interval", ())) for each in found if each]
    return max(ROOM * max(ends, default=math.inf), ROOM * BEST.get(study["scores"][score].get("better", ""), 0))


def _named(study: Study, system: str, values: list[float], room: float) -> str:
    """For the legend."""
    return label(study, system) + (", off the scale" if min(values) > room else "")


def _along(group: str, settings: list[dict[str, Any]]) -> str:
    """The name of the axis, with what stands for what."""
    instead: dict[float, list[str]] = {}
    for setting in settings:
        if setting["at"] != setting["value"]:
            instead.setdefault(setting["at"], []).append(f"{setting['value']:g}")
    told = "; ".join(f"{at:g} in place of {', '.join(values)}" for at, values in instead.items())
    return f"{group} ({told})" if told else group


def _value_axis(axes: Axes, values: list[float], name: str) -> None:
    if min(values) > 0 and max(values) / min(values) > LOG_FROM:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(name)
    axes.margins(x=0.08)


def _score_axis(line: Any, limits: Any, study: Study, score: str, room: float) -> None:
    """From 0 where 0 is best or the least there is, with room for those that analyse; the best value as a line."""
    best = study["scores"][score].get("better")
    if best in BEST:
        line(BEST[best], color=MUTED, lw=0.8, zorder=1)
    if best in ("low", "one"):
        limits(0, None)
        if limits()[1] > room:
            limits(0, room)


def _finished(figure: Figure, axes: Axes) -> None:
    axes.grid(color=GRID, lw=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    columns = 1 if _longest(axes) > 26 else 2
    rows = math.ceil(len(axes.get_legend_handles_labels()[1]) / columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + ROW * max(0, rows - ROWS))  # a long legend takes nothing from the curves
    figure.legend(loc="outside lower left", ncols=columns, fontsize=8)


def _longest(axes: Axes) -> int:
    return max(len(name) for name in axes.get_legend_handles_labels()[1])
