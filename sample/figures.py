"""Figures of a verification: profiles of the scores, maps of one date, and the rank histogram.

Maps are plain latitude-longitude with Greenwich in the middle; the coast is where half of a cell is land.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from slams.contracts.observations import Gridded, Observed, Stations
from slams.interpolate import usable
from slams.page import COAST, COLOURS, FIGURE_STYLE, INK, MUTED, UNSEEN
from slams.spec import Grid, Modality, StateSpec

STATION = 14  # area of a station's point, in square points
SCORES = {"rmse": "RMSE of the mean", "crps": "CRPS", "spread_skill": "spread-skill ratio"}
# Okabe and Ito's colours, told apart by every eye
BASELINES = {
    "anomaly_interpolation": ("#d55e00", "-"),
    "interpolation": ("#e69f00", "-"),
    "persistence": ("#8c510a", "-"),
    "climatology": ("#8a8f94", "-"),
    "autoencoder": ("#009e73", ":"),
}
WITHHELD = (("#56b4e9", "--"), ("#cc79a7", "--"), ("#0072b2", "-."), ("#f0e442", "--"))


@dataclass(frozen=True)
class Example:
    """One date of the verification, x_CHW in physical units.

    Arguments:
        day: the valid day.
        coast: land fraction, or where rain is ever observed, (H, W); None where neither is known.
        guess: the background, or the climatology of the day where there was none.
        observed: what was assimilated, by modality, on a grid and at stations.
        space: of the observations; in ``latent`` space no modality itself is observed.
    """

    day: np.datetime64
    spec: StateSpec
    coast: np.ndarray | None
    truth: np.ndarray
    guess: np.ndarray
    members: np.ndarray
    observed: dict[str, list[Observed]]
    space: str

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self.members.mean(axis=0))

    @property
    def spread(self) -> np.ndarray:
        if len(self.members) == 1:
            return np.zeros_like(self.members[0])
        return np.asarray(self.members.std(axis=0, ddof=1))


def label(system: str) -> str:
    """A system's name for people."""
    return system.replace("-without-", " without ").replace("_", " ")


def shown(scores: dict[str, Any], systems: dict[str, Any]) -> dict[str, Any]:
    """The systems worth showing: a run without autoencoder has the truth in its place."""
    return {name: found for name, found in systems.items() if name != "autoencoder" or scores["has_autoencoder"]}


def several(scores: dict[str, Any]) -> bool:
    """Whether any system has members, and so a spread."""
    return any(n > 1 for n in scores["ensemble_size"].values())


def shown_channel(modality: Modality, wanted_hpa: int = 500) -> int:
    """The level nearest 500 hPa, as a channel of the modality."""
    levels = np.asarray(modality.level_hpa or (wanted_hpa,))
    return int(np.abs(levels - wanted_hpa).argmin())


def profiles(scores: dict[str, Any]) -> Figure | None:
    """Each score of each system against pressure; None for a state without levels."""
    levels_hpa = scores["levels_hpa"]
    if not levels_hpa:
        return None
    drawn = {score: title for score, title in SCORES.items() if score != "spread_skill" or several(scores)}
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10, 4.9))
        panels = figure.subplots(1, len(drawn), sharey=True)
        for axes, (score, title) in zip(panels, drawn.items(), strict=True):
            _profile(axes, scores, score, title, levels_hpa)
        pressure_axis(panels[0], levels_hpa)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def _profile(axes: Axes, scores: dict[str, Any], score: str, title: str, levels_hpa: list[int]) -> None:
    withheld = iter(WITHHELD * len(scores["systems"]))
    for system, found in shown(scores, scores["systems"]).items():
        if score == "spread_skill" and scores["ensemble_size"][system] == 1:
            continue
        colour, dashes = ("#0b3d91", "-") if system == "analysis" else BASELINES.get(system) or next(withheld)
        width, order = (2.4, 3) if system == "analysis" else (1.4, 2)
        values = [found[score][str(level)] for level in levels_hpa]
        style: dict[str, Any] = {"color": colour, "lw": width, "zorder": order, "marker": "o", "ms": 3}
        axes.plot(values, levels_hpa, dashes, label=label(system), **style)
    if score == "spread_skill":
        axes.axvline(1, color=MUTED, lw=0.8, zorder=1)
        axes.text(1, 1.01, "reliable", color=MUTED, fontsize=8, ha="center", transform=axes.get_xaxis_transform())
        axes.set_xlim(0, max(1.25, axes.get_xlim()[1]))
    else:
        axes.set_xlim(left=0)
        axes.set_xlabel(scores["units"])
    axes.set_title(title, pad=14)
    axes.grid(color="#d8dce0", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def pressure_axis(axes: Axes, levels_hpa: list[int]) -> None:
    """Logarithmic, the ground below."""
    axes.set_yscale("log")
    axes.set_ylim(max(levels_hpa) * 1.12, min(levels_hpa) / 1.12)
    axes.yaxis.set_major_locator(FixedLocator([level for level in levels_hpa if level != 925]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("pressure (hPa)")


def state_maps(example: Example, modality: Modality) -> Figure:
    """Truth, observation, analysis mean; one member, spread, error."""
    channel = shown_channel(modality)
    part = example.spec.channels(modality.name).start + channel
    truth, mean, units = example.truth[part], example.mean[part], modality.units
    norm, colours = _norm(modality, truth), COLOURS[modality.role]
    error, spread = mean - truth, example.spread[part]
    # over-large errors of single cells would bleach the map
    largest = float(np.nanpercentile(np.abs(error), 99.5)) or 1.0
    at = f" at {modality.level_hpa[channel]} hPa" if modality.level_hpa else ""
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(11, 5.3))
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        _map(panels[0, 0], example, truth, "truth", units, colours, norm)
        _observed(panels[0, 1], example, modality, channel, "observed", norm)
        _map(panels[0, 2], example, mean, f"analysis, mean of {len(example.members)}", units, colours, norm)
        _map(panels[1, 0], example, example.members[0, part], "analysis, one member", units, colours, norm)
        if len(example.members) > 1:
            upper = max(largest, float(np.nanmax(spread)))
            _map(panels[1, 1], example, spread, "spread", units, "BuPu", Normalize(0, upper))
        else:
            panels[1, 1].set_axis_off()
        signed = Normalize(-largest, largest)
        _map(panels[1, 2], example, error, "error of the mean", units, "RdBu_r", signed)
        figure.suptitle(f"{modality.name.capitalize()}{at}, {example.day}", x=0.01, ha="left", weight="bold")
    return figure


def increment_maps(example: Example, modality: Modality) -> Figure:
    """What the observations made of the background, beside what would have been right; one scale."""
    channel = shown_channel(modality)
    part = example.spec.channels(modality.name).start + channel
    increment, wanted = example.mean[part] - example.guess[part], example.truth[part] - example.guess[part]
    largest = float(np.nanpercentile(np.abs(wanted), 99.5)) or 1.0
    style = modality.units, "RdBu_r", Normalize(-largest, largest)
    at = f" at {modality.level_hpa[channel]} hPa" if modality.level_hpa else ""
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(7.6, 2.9))
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        _map(panels[0], example, increment, "analysis mean minus background", *style)
        _map(panels[1], example, wanted, "truth minus background", *style)
        figure.suptitle(f"{modality.name.capitalize()}{at}, {example.day}", x=0.01, ha="left", weight="bold")
    return figure


def surface_maps(example: Example, modalities: list[Modality]) -> Figure:
    """Truth, observation and analysis mean of the other modalities, one a row."""
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(11, 2.55 * len(modalities) + 0.3))
        panels = figure.subplots(len(modalities), 3, sharex=True, sharey=True, squeeze=False)
        for row, modality in zip(panels, modalities, strict=True):
            channel = shown_channel(modality)
            part = example.spec.channels(modality.name).start + channel
            truth, name = example.truth[part], _short(modality)
            style = modality.units, COLOURS[modality.role], _norm(modality, truth)
            _map(row[0], example, truth, f"{name}, truth", *style)
            _observed(row[1], example, modality, channel, f"{name}, observed", style[-1])
            _map(row[2], example, example.mean[part], f"{name}, analysis mean", *style)
        figure.suptitle(str(example.day), x=0.01, ha="left", weight="bold")
    return figure


def _short(modality: Modality) -> str:
    return modality.name.upper() if len(modality.name) <= 3 else modality.name


def _norm(modality: Modality, truth: np.ndarray) -> Normalize:
    """The truth's range, for every panel of a modality; rain on a scale that shows drizzle beside storms."""
    low, high = (float(v) for v in np.nanpercentile(truth, (0.5, 99.5)))
    if modality.role == "in_situ":
        return PowerNorm(0.5, 0, max(high, 1.0))
    return Normalize(low, high if high > low else low + 1)


def _observed(axes: Axes, example: Example, modality: Modality, channel: int, title: str, norm: Normalize) -> None:
    """A block mean fills its block, a sub-sample its one cell; a station is a point."""
    style: dict[str, Any] = {"cmap": COLOURS[modality.role], "norm": norm}
    drawn = None
    for seen in example.observed.get(modality.name, []):
        if isinstance(seen, Gridded):
            drawn = _filled(axes, example.spec.grid, _painted(seen, channel, example.spec.grid), style)
        else:
            longitude, latitude, value = _points(seen, channel, example.spec)
            drawn = axes.scatter(longitude, latitude, STATION, value, edgecolors=INK, linewidths=0.3, **style)
    if drawn is None:
        words = "latents were observed" if example.space == "latent" else "not observed"
        axes.text(0, 0, words, ha="center", va="center", color=MUTED)
    _finished(axes, example, drawn, title, modality.units, COLOURS[modality.role])


def _painted(seen: Gridded, channel: int, grid: Grid) -> np.ndarray:
    """Observations on the full grid."""
    value, footprint = np.where(seen.mask, seen.value, np.nan)[0, channel], seen.operator.footprint(grid)
    return np.where(footprint >= 0, value.ravel()[footprint], np.nan)


def _points(seen: Stations, channel: int, spec: StateSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitude (-180 to 180), latitude and value of the stations nearest to a level."""
    used, at = usable(seen, spec)
    nearest = at.channel[np.arange(len(used)), at.weight.argmax(axis=1)]
    shown = used[nearest == channel]
    return (seen.longitude[shown] + 180) % 360 - 180, seen.latitude[shown], seen.value[shown]


def _map(
    axes: Axes, example: Example, field: np.ndarray, title: str, units: str, colours: str, norm: Normalize
) -> None:
    """One field with its colour bar."""
    drawn = _filled(axes, example.spec.grid, field, {"cmap": colours, "norm": norm})
    _finished(axes, example, drawn, title, units, colours)


def _filled(axes: Axes, grid: Grid, field: np.ndarray, style: dict[str, Any]) -> ScalarMappable:
    half = grid.n_longitude // 2
    edges = np.concatenate([grid.longitude_bounds[half:-1] - 360, grid.longitude_bounds[: half + 1]])
    rolled = np.ma.masked_invalid(np.roll(field, -half, axis=1))
    return axes.pcolormesh(edges, grid.latitude_bounds, rolled, rasterized=True, **style)


def _finished(axes: Axes, example: Example, drawn: ScalarMappable | None, title: str, units: str, colours: str) -> None:
    """What every map has: a title, a coast, and, if anything is drawn, a colour bar."""
    axes.set_facecolor(UNSEEN)
    axes.set_title(title)
    if drawn is not None:
        bar = axes.figure.colorbar(drawn, ax=axes, orientation="horizontal", pad=0.02, fraction=0.05, aspect=40)
        bar.outline.set_visible(False)
        bar.set_label(units, fontsize=8, labelpad=1)
        bar.ax.tick_params(labelsize=8, length=2)
    if example.coast is not None and example.coast.min() < 0.5 <= example.coast.max():
        _coast(axes, example.coast, example.spec.grid, COAST.get(colours, INK))
    axes.set(xlim=(-180, 180), ylim=(-90, 90), aspect="equal", xticks=(), yticks=())


def _coast(axes: Axes, coast: np.ndarray, grid: Grid, colour: str) -> None:
    """Where half of a cell is land, closed across the date line."""
    half = grid.n_longitude // 2
    rolled = np.pad(np.roll(coast, -half, axis=1), ((0, 0), (1, 1)), mode="wrap")
    centres = np.roll(grid.longitude, -half)
    centres = np.where(centres >= 180, centres - 360, centres)
    longitude = np.concatenate([[centres[-1] - 360], centres, [centres[0] + 360]])
    axes.contour(longitude, grid.latitude, rolled, levels=[0.5], colors=[colour], linewidths=0.7)


def rank_histogram(ranks_CR: np.ndarray) -> Figure:
    """Share of the truth at each rank among the members, all levels pooled, as a multiple of what is expected."""
    relative = ranks_CR.mean(axis=0) * ranks_CR.shape[1]
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(6, 2.7))
        axes = figure.subplots()
        axes.bar(range(len(relative)), relative, width=0.86, color="#3f7cc4")
        axes.axhline(1, color=INK, lw=0.9)
        axes.text(1.005, 1, "flat", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=MUTED)
        axes.set(xlabel="members below the truth", ylabel="share, relative to flat")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
