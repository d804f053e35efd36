"""The parts of a verification's page that tell of the members as fields and as an ensemble."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from sample import figures, structure_figures
from sample.sentences import structure
from slams.page import figure

SPECTRA_WORDS = (
    "Spectra: members as energetic as the truth are realistic at that scale; their mean loses what it does not know."
)


def ranks(folder: Path, ranks_CR: np.ndarray, levels_hpa: list[int]) -> str:
    """The rank histogram, all levels together and each, and the share of truth outside the ensemble."""
    n_ranks = ranks_CR.shape[1]
    if n_ranks < 3:
        return ""
    outside = 100 * float(ranks_CR[:, [0, -1]].sum(axis=1).mean())
    words = (
        f"How often the truth takes each rank among the members, all levels together. It lies outside the ensemble in "
        f"{outside:.1f} % of cells; {200 / n_ranks:.1f} % is expected. A U shape is too little spread, a dome too much."
    )
    drawn = figure(figures.rank_histogram(ranks_CR), words, folder / "ranks.png")
    if levels_hpa:
        words = "The same by level: orange is more often than expected, violet less."
        drawn += figure(structure_figures.rank_levels(ranks_CR, levels_hpa), words, folder / "rank_levels.png")
    return f'<h2>Rank histogram</h2><div class="figures">{drawn}</div>'


def weather(folder: Path, scores: dict[str, Any]) -> str:
    """What no score in each cell sees: scales, static stability, the pace from day to day."""
    drawn = []
    for name in structure_figures.shown_levels(list(scores["spectra"])):
        spectrum = structure_figures.spectra(scores["spectra"][name], name, scores["units"])
        at = f" at {name} hPa" if name.isdigit() else ""
        if spectrum is not None:
            drawn.append(figure(spectrum, f"Power by zonal wavenumber{at}.", folder / f"spectrum-{name}.png"))
    told = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in [*structure(scores), SPECTRA_WORDS])
    return f'<h2>Does it look like weather?</h2><ul>{told}</ul><div class="figures">{"".join(drawn)}</div>'
