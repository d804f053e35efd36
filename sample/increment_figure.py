"""The figure of a single-observation test: a map at its level, two sections through its place, and the days around."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sample.single_observation import Increment
from slams.interpolate import horizontal
from slams.page import FIGURE_STYLE, INK, MUTED
from slams.spec import Grid

COLOURS = "RdBu_r"


def draw_increment(found: Increment, land_HW: np.ndarray | None) -> Figure:
    """Increments in K, the same colours in all panels.

    Arguments:
        land_HW: land fraction, for the coast; None where it is not known.
    """
    single, grid = found.single, found.grid
    largest = float(np.abs(found.x_LCHW).max()) or 1.0
    style = {"cmap": COLOURS, "norm": Normalize(-largest, largest), "rasterized": True}
    cell, weight = horizontal(np.array([single.latitude]), np.array([single.longitude]), grid)
    row, column = np.unravel_index(cell[0][weight[0].argmax()], grid.shape)
    x_CHW = found.x_LCHW[found.frame]
    east = (single.longitude + 180) % 360 - 180
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10, 6.4))
        panels = figure.subplots(2, 2)
        drawn = _map(panels[0, 0], x_CHW[found.channel], grid, land_HW, style)
        panels[0, 0].set_title(f"{found.modality.level_hpa[found.channel]} hPa, {single.day}")
        _cross(panels[0, 0], east, single.latitude)
        zonal = np.roll(x_CHW[:, row], -(grid.n_longitude // 2), axis=1)
        sections = {
            (0, 1): (_eastward(grid), zonal, f"along {grid.latitude[row]:.1f} N", "longitude", east),
            (1, 0): (grid.latitude_bounds, x_CHW[:, :, column], "along the meridian", "latitude", single.latitude),
            (1, 1): (_lags(found), found.column_LC.T, "at the place", "days from the observation", 0.0),
        }
        for at, (edges, field, title, label, where) in sections.items():
            _section(panels[at], found.modality.level_hpa, edges, field, style)
            panels[at].set(title=title, xlabel=label)
            _cross(panels[at], where, single.level_hpa)
        panels[1, 1].set_xticks(np.arange(len(found.days)) - found.frame)
        figure.colorbar(drawn, ax=panels, label="increment (K)", shrink=0.7, aspect=30)
        words = f"One observation, {single.departure_k:+g} K from the prior with an error of {single.error_k:g} K"
        figure.suptitle(f"{words}; mean of {found.n_members}", x=0.01, ha="left", weight="bold")
    return figure


def _eastward(grid: Grid) -> np.ndarray:
    """Edges of the columns from 180 W."""
    half = grid.n_longitude // 2
    return np.concatenate([grid.longitude_bounds[half:-1] - 360, grid.longitude_bounds[: half + 1]])


def _lags(found: Increment) -> np.ndarray:
    return np.arange(len(found.days) + 1) - found.frame - 0.5


def _map(axes: Axes, field: np.ndarray, grid: Grid, land_HW: np.ndarray | None, style: dict) -> ScalarMappable:
    half, edges = grid.n_longitude // 2, _eastward(grid)
    drawn = axes.pcolormesh(edges, grid.latitude_bounds, np.roll(field, -half, axis=1), **style)
    if land_HW is not None and land_HW.min() < 0.5 <= land_HW.max():
        centres = (edges[:-1] + edges[1:]) / 2
        axes.contour(centres, grid.latitude, np.roll(land_HW, -half, axis=1), [0.5], colors=INK, linewidths=0.6)
    axes.set(xlim=(-180, 180), ylim=(-90, 90), xticks=(), yticks=(), aspect="equal")
    return drawn


def _section(axes: Axes, levels_hpa: tuple[int, ...], edges: np.ndarray, field_CN: np.ndarray, style: dict) -> None:
    """Against pressure, each level as far as the middle to the next in its logarithm."""
    order = np.argsort(levels_hpa)
    levels = np.array(levels_hpa, float)[order]
    middle = np.sqrt(levels[:-1] * levels[1:])
    around = np.concatenate([[levels[0] / 1.2], middle, [levels[-1] * 1.05]])
    axes.pcolormesh(edges, around, field_CN[order], **style)
    axes.set_yscale("log")
    axes.set_ylim(around[-1], around[0])
    axes.yaxis.set_major_locator(FixedLocator([level for level in levels if level != 925]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("pressure (hPa)")


def _cross(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "x", color=INK, ms=6, mew=1.2)
    axes.tick_params(colors=MUTED)
