"""Figures of what scores in each cell do not see: spectra by level, ranks by level."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from slams.page import FIGURE_STYLE, INK

WANTED_HPA = (50, 500, 850)
LINES = {
    "truth": (INK, "-", "truth"),
    "members": ("#d55e00", "-", "members"),
    "mean": ("#0b3d91", "--", "mean of the members"),
    "increment": ("#8a8f94", ":", "increment"),
}
LEAST, MOST = 0.5, 1.5  # of flat; where the colours end


def shown_levels(names: list[str]) -> list[str]:
    """The levels nearest to 50, 500 and 850 hPa; all there is where there are none."""
    if not names or not all(name.isdigit() for name in names):
        return names
    return list(dict.fromkeys(min(names, key=lambda name: abs(int(name) - wanted)) for wanted in WANTED_HPA))


def spectra(found: dict[str, Any], level: str, units: str) -> Figure | None:
    """Power by zonal wavenumber of members, mean, truth and increment at one level, without the zonal mean.

    None where nothing varies along a circle of latitude.

    Arguments:
        found: {"wavenumber", "truth", "members", "mean", "increment": [...]}.
    """
    lines = {kind: np.array(found[kind][1:]) for kind in LINES}
    if not any((power > 0).any() for power in lines.values()):
        return None
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(4.6, 3.4))
        axes = figure.subplots()
        for kind, (colour, dashes, name) in LINES.items():
            power = np.where(lines[kind] > 0, lines[kind], np.nan)
            axes.plot(found["wavenumber"][1:], power, dashes, color=colour, lw=1.6, label=name)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="zonal wavenumber", ylabel=f"power ({units}²)")
        axes.set_title(f"{level} hPa" if level.isdigit() else level)
        axes.grid(color="#e4e7ea", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    return figure


def rank_levels(ranks_CR: np.ndarray, levels_hpa: list[int]) -> Figure:
    """Share of the truth at each rank and level, relative to flat: a row a level, in order of pressure."""
    order = np.argsort(levels_hpa)
    relative = ranks_CR[order] * ranks_CR.shape[1]
    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(4.6, 1.3 + 0.26 * len(order)))
        axes = figure.subplots()
        norm = TwoSlopeNorm(1, LEAST, MOST)
        drawn = axes.imshow(relative, aspect="auto", cmap="PuOr_r", norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(order)), [str(levels_hpa[c]) for c in order])
        axes.set(xlabel="members below the truth", ylabel="hPa")
        bar = figure.colorbar(drawn, ax=axes, label="share, relative to flat", extend="both", ticks=[LEAST, 1, MOST])
        bar.outline.set_visible(False)
    return figure
