"""Figures of `sample.observation_space`: departures and implied errors by level, departures by band, and ranks.

Each takes ``groups`` of a summary, of departures or of held-out observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sample.observation_space import ALL
from slams.observation_space import BANDS
from slams.page import FIGURE_STYLE, INK, MUTED

Groups = Sequence[dict[str, Any]]
BEFORE, AFTER, SPREAD = "#8a8f94", "#0b3d91", "#d55e00"
BARS, SHADE = "#3f7cc4", "#d8dce0"
PANELS = 3  # in a row
VARIANCES = {
    "r": ("observation, estimated", AFTER, "-"),
    "r_stated": ("observation, stated", AFTER, ":"),
    "hbht": ("background, estimated", BEFORE, "-"),
    "haht": ("analysis, estimated", SPREAD, "-"),
    "spread": ("spread of the members", SPREAD, ":"),
}


def departure_profiles(groups: Groups, modality: str) -> Figure | None:
    """Mean and standard deviation of O - B and O - A against pressure; None for a modality without levels.

    Of held-out observations, which have no background, O - A stands alone.
    """
    rows = _by_level(groups, modality)
    if not rows:
        return None
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(7, 4.3))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (moment, title) in zip(panels, (("mean", "mean"), ("std", "standard deviation")), strict=True):
            for kind, name, colour in (("b", "O - B", BEFORE), ("a", "O - A", AFTER)):
                _line(axes, rows, [row[f"o_minus_{kind}_{moment}"] for row in rows], name, colour, "-")
            axes.set(title=title, xlabel=rows[0]["units"])
        panels[0].axvline(0, color=MUTED, lw=0.8, zorder=1)
        panels[1].set_xlim(left=0)
        _finished(figure, panels, rows, f"Departures of {_said(rows[0])}")
    return figure


def error_profiles(groups: Groups, modality: str) -> Figure | None:
    """Errors after Desroziers et al. (2005) beside those stated, as standard deviations, against pressure.

    A variance whose estimate is negative is left out. None for a modality without levels, or withheld, of which the
    estimates say nothing.
    """
    rows = _by_level(groups, modality)
    if not rows or not rows[0]["assimilated"]:
        return None
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(7, 4.5))
        axes = figure.subplots()
        for name, style in VARIANCES.items():
            known = [row[name] if row[name] is not None and row[name] >= 0 else np.nan for row in rows]
            _line(axes, rows, list(np.sqrt(known)), *style)
        axes.set_xlim(left=0)
        axes.set_xlabel(rows[0]["units"])
        _finished(figure, [axes], rows, f"Errors that the departures of {modality} imply")
    return figure


def band_departures(groups: Groups) -> Figure:
    """Standard deviation of O - B and O - A by latitude band, a panel a modality, with the mean as a point."""
    names = list(dict.fromkeys(row["modality"] for row in groups))
    with rc_context(FIGURE_STYLE):
        figure, panels = _panels(len(names), 2.7)
        for axes, name in zip(panels, names, strict=True):
            chosen = _marginal(groups, name, level=True, season=True)
            rows = [row for row in chosen if row["band"] != ALL]
            at = np.array([BANDS.index(row["band"]) for row in rows])
            for shift, kind, label, colour in ((-0.2, "b", "O - B", BEFORE), (0.2, "a", "O - A", AFTER)):
                std, mean = (_numbers([row[f"o_minus_{kind}_{moment}"] for row in rows]) for moment in ("std", "mean"))
                if np.isfinite(std).any():
                    axes.bar(at + shift, std, width=0.36, color=colour, label=label)
                    axes.plot(at + shift, mean, "o", ms=4, color="white", markeredgecolor=INK, markeredgewidth=0.7)
            axes.axhline(0, color=MUTED, lw=0.8)
            axes.set_xticks(range(len(BANDS)), BANDS, rotation=30, ha="right")
            axes.set(title=_said(rows[0]), ylabel=rows[0]["units"])
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def observation_ranks(groups: Groups) -> Figure:
    """Share of the observations at each rank among members with observation error, relative to flat, by modality."""
    chosen = [row for row in groups if _whole(row) and row["rank_shares"][0] is not None]
    with rc_context(FIGURE_STYLE):
        figure, panels = _panels(len(chosen), 2.5)
        for axes, row in zip(panels, chosen, strict=True):
            relative = np.array(row["rank_shares"]) * len(row["rank_shares"])
            axes.bar(range(len(relative)), relative, width=0.86, color=BARS)
            axes.axhline(1, color=INK, lw=0.9)
            axes.set(title=_said(row), xlabel="members below the observation", ylabel="share, relative to flat")
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """A row of at most three, then another."""
    columns = max(1, min(n, PANELS))
    lines = max(1, -(-n // columns))
    figure = Figure(figsize=(3.6 * columns, height * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in panels[n:]:
        axes.remove()
    return figure, panels[:n]


def _said(row: dict[str, Any]) -> str:
    return f"{row['modality']}, {'assimilated' if row['assimilated'] else 'withheld'}"


def _whole(row: dict[str, Any]) -> bool:
    return row["level_hpa"] in (ALL, None) and row["band"] == ALL and row["season"] == ALL


def _marginal(groups: Groups, modality: str, level: bool = False, band: bool = False, season: bool = False) -> Groups:
    """Rows of a modality that do not tell apart what is named."""
    apart = {"level_hpa": level, "band": band, "season": season}
    joined = [name for name, wanted in apart.items() if wanted]
    return [row for row in groups if row["modality"] == modality and all(row[name] in (ALL, None) for name in joined)]


def _by_level(groups: Groups, modality: str) -> Groups:
    rows = [row for row in _marginal(groups, modality, band=True, season=True) if not _whole(row)]
    return sorted(rows, key=lambda row: row["level_hpa"])


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _line(axes: Axes, rows: Groups, values: Sequence[float | None], name: str, colour: str, dashes: str) -> None:
    """Against pressure; nothing at all where no level has a value."""
    known = _numbers(values)
    if np.isfinite(known).any():
        axes.plot(known, [row["level_hpa"] for row in rows], dashes, color=colour, label=name, lw=1.6, marker="o", ms=3)


def _finished(figure: Figure, panels: Sequence[Axes], rows: Groups, title: str) -> None:
    """A logarithmic pressure axis, a grid, a legend below."""
    levels = [row["level_hpa"] for row in rows]
    panels[0].set_yscale("log")
    panels[0].set_ylim(max(levels) * 1.12, min(levels) / 1.12)
    panels[0].yaxis.set_major_locator(FixedLocator([level for level in levels if level != 925]))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("pressure (hPa)")
    for axes in panels:
        axes.grid(color=SHADE, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.2)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
