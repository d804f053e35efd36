"""Scores of the finished products of a run against the truth, beside what they have to beat.

Systems, each given the same observations and the same dates:

* ``analysis`` and ``analysis-without-NAME``: the products in the run folder,
* ``anomaly_interpolation``, ``interpolation``, ``climatology``: see `slams.baselines`; where only latents were
  observed, there is nothing to interpolate, and the first two are left out,
* ``persistence``: the background, of a run that was given one, held over its segment,
* ``autoencoder``: D(E(truth)), which no analysis drawn in its latent space can beat; for a run without
  autoencoder the truth itself, with error 0.

Scores are `slams.metrics` over all cells and dates; their 95 % intervals come from a bootstrap over blocks of at
most five consecutive days, the same resamples for every system, so that differences are paired. One date is in
memory at a time.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sample import report
from sample.case import Case, open_case
from sample.config import SampleConfig
from sample.figures import label
from slams.config import to_dict
from slams.contracts.envelope import ContractError, provenance, write_json
from slams.metrics import EnsembleRMSE, FairCRPS, RankHistogram, SpreadSkill, date_blocks, resampled_dates
from slams.rng import generator
from slams.spec import Modality, StateSpec

LEVEL = 0.95
TABLE_LEVELS_HPA = (50, 500, 850)
LOG_WIDTH = 120


def verify(config: SampleConfig) -> dict[str, Any]:
    """Score every product of a run; write ``verify/`` (scores.json, scores.csv, report.html, figures) into its folder.

    Returns:
        What scores.json holds: ``systems`` {system: {score: {hPa or "mean": number}}} for the state, and beside it
        ``other_modalities``, ``confidence``, ``withholding``, ``dates``, ``members``, ``units``, ``provenance``.

    Raises:
        ContractError: a product is missing, unfinished or has holes, or products, truth and observations do not
            belong together.
    """
    folder = _folder(config)
    case = open_case(config)
    tallies: dict[str, Tally] = {}
    ranks = RankHistogram(case.spec.n_channels, case.spec.grid.area_weights, most := int(case.analysis.n_drawn.max()))
    for where in range(len(case.time)):
        truth = torch.from_numpy(case.truth(where))
        for system, members in case.systems(where):
            x = torch.from_numpy(members)
            tallies.setdefault(system, Tally(case.spec)).add(x, truth)
            if system == "analysis" and len(x) == most:  # ranks among fewer are others
                ranks.update(x, truth)
    scores = _scores(case, tallies, config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "scores.csv", scores)
    typical = int(np.argsort(tallies["analysis"].daily_rmse(case.state))[len(case.time) // 2])
    ranks_CR = ranks.compute().numpy().reshape(case.spec.n_channels, -1)[case.spec.channels(case.state.name)]
    page = report.write(folder, scores, case.example(typical), ranks_CR, config)
    write_json(folder / "scores.json", scores)  # last: it stands for the whole folder
    _print(scores, page)
    return scores


def _folder(config: SampleConfig) -> Path:
    if not config.verify.folder and "://" in config.folder:
        raise ValueError(f"verify.folder: is empty, and folder is {config.folder}; a folder on this machine is needed")
    return Path(config.verify.folder or f"{config.folder}/verify")


class Tally:
    """Scores of one system, in total and date by date."""

    def __init__(self, spec: StateSpec) -> None:
        n, weights = spec.n_channels, spec.grid.area_weights
        self.spec, self.n_members = spec, 0
        kinds = {"rmse": EnsembleRMSE, "crps": FairCRPS, "spread_skill": SpreadSkill}
        self.metrics = {name: kind(n, weights) for name, kind in kinds.items()}
        self.daily: dict[str, list[np.ndarray]] = {name: [] for name in self.metrics}

    def add(self, x_MCHW: torch.Tensor, truth_CHW: torch.Tensor) -> None:
        self.n_members = len(x_MCHW)
        for name, metric in self.metrics.items():
            # forward adds the date to the total and returns the date's own score
            self.daily[name].append(metric(x_MCHW, truth_CHW).numpy().reshape(-1))

    def totals(self, modality: Modality) -> dict[str, np.ndarray]:
        """Each score of a modality, (C,)."""
        part = self.spec.channels(modality.name)
        return {name: metric.compute().numpy().reshape(-1)[part] for name, metric in self.metrics.items()}

    def daily_rmse(self, modality: Modality) -> np.ndarray:
        """RMSE of each date, mean over levels, (D,)."""
        return np.stack(self.daily["rmse"])[:, self.spec.channels(modality.name)].mean(axis=1)

    def resampled(self, modality: Modality, counts_RD: np.ndarray) -> dict[str, np.ndarray]:
        """Mean over levels of RMSE and CRPS in each bootstrap sample of the dates, (R,)."""
        part = self.spec.channels(modality.name)
        share = counts_RD / counts_RD.sum(axis=1, keepdims=True)
        rmse_DC, crps_DC = (np.stack(self.daily[score])[:, part] for score in ("rmse", "crps"))
        return {"rmse": np.sqrt(share @ rmse_DC**2).mean(axis=1), "crps": (share @ crps_DC).mean(axis=1)}


def _scores(case: Case, tallies: dict[str, Tally], config: SampleConfig) -> dict[str, Any]:
    """The content of scores.json."""
    for name, product in case.products.items():
        for modality in case.spec.modalities:
            if not np.isfinite(tallies[name].totals(modality)["rmse"]).all() and modality.role == "state":
                raise ContractError(f"{product.path}: {modality.name} has missing or infinite values")
    others = [m for m in case.spec.modalities if m is not case.state]
    by_modality = {m.name: {"units": m.units, "systems": _table(tallies, m)} for m in others}
    confidence = _confidence(case, tallies, config)
    return {
        "systems": _table(tallies, case.state),
        "variable": case.state.name,
        "units": case.state.units,
        "levels_hpa": list(case.state.level_hpa),
        "members": case.analysis.n_members,
        "ensemble_size": {name: tally.n_members for name, tally in tallies.items()},
        "dates": [str(day) for day in case.time],
        "confidence": confidence,
        "withholding": _withholding(confidence),
        "other_modalities": {name: found for name, found in by_modality.items() if found["systems"]},
        "has_autoencoder": case.reconstruction is not None,
        "provenance": _provenance(case, config),
    }


def _table(tallies: dict[str, Tally], modality: Modality) -> dict[str, Any]:
    """{system: {score: {level or "mean": number}}}, systems that do not know the modality left out."""
    found = {name: tally.totals(modality) for name, tally in tallies.items()}
    return {
        name: {score: _by_level(values, modality) for score, values in totals.items()}
        for name, totals in found.items()
        if np.isfinite(totals["rmse"]).all()
    }


def _by_level(values_C: np.ndarray, modality: Modality) -> dict[str, float]:
    levels = {str(level): float(v) for level, v in zip(modality.level_hpa, values_C, strict=bool(modality.level_hpa))}
    return levels | {"mean": float(values_C.mean())}


def _confidence(case: Case, tallies: dict[str, Tally], config: SampleConfig) -> dict[str, Any]:
    """Intervals of every system's means and of the differences to the analysis; none from a single block."""
    blocks = date_blocks(case.time)
    n_blocks = int(blocks.max()) + 1
    whole = np.ones((1, len(case.time)))
    counts = resampled_dates(blocks, config.verify.bootstrap, generator(config.seed, "validation"))
    drawn = {name: tally.resampled(case.state, counts) for name, tally in tallies.items()}
    point = {name: tally.resampled(case.state, whole) for name, tally in tallies.items()}
    systems: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for name in tallies:
        scores = ("rmse", "crps")
        systems[name] = {s: _interval(point[name][s], drawn[name][s], n_blocks) for s in scores}
        pairs = {s: (point["analysis"][s] - point[name][s], drawn["analysis"][s] - drawn[name][s]) for s in scores}
        differences[name] = {s: _interval(*pair, n_blocks) for s, pair in pairs.items()}
    del differences["analysis"]
    drawing = {"level": LEVEL, "resamples": config.verify.bootstrap, "blocks": n_blocks}
    return drawing | {"systems": systems, "analysis_minus": differences}


def _interval(point: np.ndarray, drawn_R: np.ndarray, n_blocks: int) -> dict[str, Any]:
    """{value, interval}; one block cannot tell how much another would differ, so it has no interval."""
    value = {"value": float(point[0])}
    if n_blocks < 2:
        return value
    low, high = np.quantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value | {"interval": [float(low), float(high)]}


def _withholding(confidence: dict[str, Any]) -> dict[str, Any]:
    """What it cost to withhold modalities: score without minus score with, and its interval."""
    cost: dict[str, Any] = {}
    for name, pairs in confidence["analysis_minus"].items():
        if not name.startswith("analysis"):
            continue
        withheld = name.removeprefix("analysis-without-").replace("-without-", " and ")
        cost[withheld] = {
            score: {"value": 0 - pair["value"]}
            | ({"interval": [0 - v for v in reversed(pair["interval"])]} if "interval" in pair else {})
            for score, pair in pairs.items()
        }
    return cost


def _provenance(case: Case, config: SampleConfig) -> dict[str, Any]:
    """Who made what: of each contract its commit, checksums and whatever else it says of its origin."""
    return {
        "verified_by": provenance(),
        "products": {name: _origin(product.attributes) for name, product in case.products.items()},
        "observations": _origin(case.observations.attributes),
        "archive": _origin(case.archive.attributes),
        "config": to_dict(config),
    }


def _origin(attributes: dict[str, Any]) -> dict[str, Any]:
    made_with = attributes.get("config", {})
    checksums = {k: v for k, v in {**made_with, **attributes}.items() if k.endswith("sha256")}
    told = {k: attributes[k] for k in ("format", "version", "source", "prior", "assimilated") if k in attributes}
    return told | attributes["provenance"] | checksums


def _write_csv(path: Path, scores: dict[str, Any]) -> None:
    """One row a system, modality, level and score."""
    tables = {scores["variable"]: scores} | scores["other_modalities"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "variable", "level_hpa", "score", "value", "units"])
        for variable, table in tables.items():
            for system, found in table["systems"].items():
                for score, levels in found.items():
                    units = "1" if score == "spread_skill" else table["units"]
                    writer.writerows([system, variable, level, score, value, units] for level, value in levels.items())


def _print(scores: dict[str, Any], page: Path) -> None:
    """The table, what it says, and, on a line of its own, where the page is."""
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    levels = [level for level in TABLE_LEVELS_HPA if level in scores["levels_hpa"]]
    title = f"{scores['variable']} ({scores['units']}), {len(scores['dates'])} dates, {scores['members']} members"
    table = Table("system", title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("RMSE", "95 % interval", "CRPS", "spread-skill", *(f"RMSE {level} hPa" for level in levels)):
        table.add_column(heading, justify="right")
    for row in report.rows(scores):
        per_level = [f"{scores['systems'][row.system]['rmse'][str(level)]:.2f}" for level in levels]
        style = "bold" if row.system == "analysis" else ""
        cells = (row.rmse, row.interval, row.crps, row.spread_skill, *per_level)
        table.add_row(label(row.system), *cells, style=style)
    console.print(table)
    for sentence in report.sentences(scores) + report.costs(scores):
        console.print(sentence, highlight=False, markup=False)
    console.print(str(page), highlight=False, markup=False, soft_wrap=True)
