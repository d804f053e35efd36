"""Scores of the finished products of a run against the truth, beside what they have to beat.

Systems on the same dates, each given the same observations, of which interpolations take those of the day alone:

* ``analysis`` and ``analysis-without-NAME``: the products in the run folder,
* ``anomaly_interpolation``, ``interpolation``, ``climatology``: see `slams.baselines`; where only latents were
  observed, there is nothing to interpolate, and the first two are left out,
* ``persistence``: the background, of a run that was given one, held over its segment,
* ``autoencoder``: D(E(truth)), which an analysis drawn in its latent space can hardly beat; for a run without
  autoencoder the truth itself, with error 0.

Interpolations of a modality that is observed both on a grid and at stations take the grid. Rain below none is none, of
every system.

Scores are `slams.metrics` over all cells and dates; their 95 % intervals come from a bootstrap over blocks of at
most five consecutive days, the same resamples for every system, so that differences are paired (`slams.uncertainty`).
The sums of each date are kept (`sample.sums`), made by one or several processes (`sample.tally`).
"""

from __future__ import annotations

import csv
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sample import report
from sample.case import Case, open_case
from sample.config import SampleConfig
from sample.figures import label
from sample.observation_space import check_held_out, count_rejected, observation_space, write_csv
from sample.sums import OF_MEMBERS, SCORES, Pair, Sums
from sample.tally import TRUTH, Tally, tallied
from slams.config import to_dict
from slams.contracts.envelope import ContractError, provenance, write_json, write_text
from slams.metrics import RankHistogram, ZonalSpectrum
from slams.rng import generator
from slams.spec import Modality
from slams.uncertainty import LEVEL, Bootstrap, Estimate

TABLE_LEVELS_HPA = (50, 500, 850)
LOG_WIDTH = 120
DIMENSIONLESS = ("spread_skill", "w1", "unstable", "day_change", "day_change_at_joins")
Estimates = dict[str, dict[str, Estimate]]


def verify(config: SampleConfig) -> dict[str, Any]:
    """Score every product of a run; write ``verify/`` into its folder.

    There: scores.json, scores.csv, observations.csv, sums.npz (`sample.sums`), report.html, figures.

    Returns:
        What scores.json holds. Of the state, LEVEL being hPa as text or "mean" over the levels:

        * ``systems``      {system: {score: {LEVEL: number}}}, scores that a system has not left out,
        * ``intervals``    {system: {score: {LEVEL: [low, high]}}}, none from a single block of dates,
        * ``differences``  {system: {score: {LEVEL: {"value", "interval", "significant"}}}}, analysis minus that system,
        * ``spectra``      {LEVEL: {"wavenumber", "members", "mean", "truth", "increment": [...]}}, no mean; the
                           increment is the mean minus the background, or minus the climatology without one,
        * ``ranks``        {LEVEL: [share of each rank]} of the analysis, no mean,
        * ``truth``        {"unstable": {LEVEL: number}},
        * ``observation_space``  {product: see `sample.observation_space`}.

        ``unstable`` is told of layers, each by the level at its bottom. ``other_modalities`` {name: {``units``,
        ``systems``, ``intervals``, ``differences``}}, ``not_verified`` the names of those of which the analysis lacks
        values that the truth has; beside these ``confidence`` (the means alone), ``withholding``,
        ``variable``, ``units``, ``levels_hpa``, ``members``, ``ensemble_size``, ``dates``, ``has_autoencoder``,
        ``provenance``.

    Raises:
        ContractError: a product is missing, unfinished or has holes, or products, truth and observations do not
            belong together.
        ValueError: the folder of the results is a URL.
    """
    folder = _folder(config)
    case = open_case(config)
    checking = config.verify
    for product in case.products.values() if checking.observations else ():
        check_held_out(product.path, checking.observations)  # before the long work
    found = tallied(case, checking.processes)
    scores = _scores(case, found, config)
    scores["observation_space"] = {
        name: observation_space(product.path, checking.observations, checking.bootstrap, config.seed)
        for name, product in case.products.items()
    }
    for told in scores["observation_space"].values():
        if "departures" in told:
            count_rejected(told["departures"], case.observations, case.time)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").unlink(missing_ok=True)  # it stands for the whole folder, which is about to change
    found.sums.save(folder)
    _write_csv(folder / "scores.csv", scores)
    write_csv(folder / "observations.csv", scores["observation_space"])
    daily = found.sums.daily("analysis", case.state.name, "rmse").mean(axis=1)
    typical = int(np.argsort(daily)[len(case.time) // 2])
    page = report.write(folder, scores, case.example(typical), _ranks(case, found), config)
    write_json(folder / "scores.json", scores)
    _print(scores, page)
    if checking.wandb != "disabled":
        _log(config, folder, scores)
    return scores


def _log(config: SampleConfig, folder: Path, scores: dict[str, Any]) -> None:
    """All of it as one artifact on wandb."""
    record = import_module("sample.record")  # by name: wandb takes longer to import than a small run to verify
    files = "report.html", "scores.csv", "scores.json", "."
    written = record.Written("verification", Path(config.folder).name, folder, *files)
    record.log_once(written, {"provenance": scores["provenance"]}, config.verify.wandb, config.verify.project)


def _folder(config: SampleConfig) -> Path:
    if not config.verify.folder and "://" in config.folder:
        raise ValueError(f"verify.folder: is empty, and folder is {config.folder}; a folder on this machine is needed")
    if "://" in config.verify.folder:
        raise ValueError(f"verify.folder: {config.verify.folder} is a URL; a folder on this machine is needed")
    return Path(config.verify.folder or f"{config.folder}/verify")


def _ranks(case: Case, found: Tally) -> np.ndarray:
    """Shares of the ranks of each level of the state, (C, M + 1)."""
    return RankHistogram.value(*found.ranks)[case.spec.channels(case.state.name)]


def _scores(case: Case, found: Tally, config: SampleConfig) -> dict[str, Any]:
    """The content of scores.json."""
    for name, product in case.products.items():
        for modality in case.spec.modalities:
            if modality.role == "state" and not np.isfinite(found.sums.whole(name, modality.name, "rmse")).all():
                raise ContractError(f"{product.path}: {modality.name} has missing or infinite values")
    bootstrap = Bootstrap(case.time, config.verify.bootstrap, generator(config.seed, "validation"))
    state = _estimates(found, case.state, bootstrap)
    others = [(m, _estimates(found, m, bootstrap)) for m in case.spec.modalities if m is not case.state]
    confidence = _confidence(state, found, bootstrap)
    return _tables(state, case.state, found) | {
        "variable": case.state.name,
        "units": case.state.units,
        "levels_hpa": list(case.state.level_hpa),
        "members": case.analysis.n_members,
        "ensemble_size": found.n_members,
        "dates": [str(day) for day in case.time],
        "confidence": confidence,
        "withholding": _withholding(confidence),
        "spectra": _spectra(found.spectra, case.state),
        "ranks": dict(zip(_names(case.state), _ranks(case, found).tolist(), strict=True)),
        "truth": _of_truth(found.sums, case.state),
        "other_modalities": {m.name: {"units": m.units} | _tables(e, m, found) for m, e in others if "analysis" in e},
        "not_verified": [m.name for m, e in others if e and "analysis" not in e],
        "has_autoencoder": case.reconstruction is not None,
        "provenance": _provenance(case, config),
    }


def _estimates(found: Tally, modality: Modality, bootstrap: Bootstrap) -> Estimates:
    """Each score of each system with its resamples; systems that do not know the modality left out."""
    estimates: Estimates = {}
    for system, n_members in found.n_members.items():
        kinds = [score for score in SCORES if (system, modality.name, score) in found.sums.found]
        if np.isfinite(found.sums.whole(system, modality.name, "rmse")).all():
            several = [score for score in kinds if score != "spread" or n_members > 1]
            scored = {score: found.sums.estimate(bootstrap, system, modality.name, score) for score in several}
            estimates[system] = {score: each for score, each in scored.items() if np.isfinite(each.value).all()}
    return estimates


def _tables(estimates: Estimates, modality: Modality, found: Tally) -> dict[str, Any]:
    """``systems``, ``intervals`` and ``differences`` of a modality."""
    several = {name: _sure(scored, found.n_members[name]) for name, scored in estimates.items()}
    values = {
        name: {score: _by_level(each.value.tolist(), score, modality) for score, each in scored.items()}
        for name, scored in estimates.items()
    }
    intervals = {
        name: {score: _intervals(each, score, modality) for score, each in scored.items()}
        for name, scored in several.items()
    }
    differences = {
        name: {
            score: _by_level([_difference(each, c) for c in range(len(each.value))], score, modality)
            for score, each in _minus(several["analysis"], scored).items()
        }
        for name, scored in several.items()
        if name != "analysis"
    }
    return {"systems": values, "intervals": intervals, "differences": differences}


def _sure(scored: dict[str, Estimate], n_members: int) -> dict[str, Estimate]:
    """The scores that say something of so many members."""
    return {score: each for score, each in scored.items() if n_members > 1 or score not in OF_MEMBERS}


def _minus(analysis: dict[str, Estimate], other: dict[str, Estimate]) -> dict[str, Estimate]:
    """The paired differences of the scores that both have."""
    return {score: each.minus(other[score]) for score, each in analysis.items() if score in other}


def _intervals(each: Estimate, score: str, modality: Modality) -> dict[str, Any]:
    found = _by_level([each.interval(c) for c in range(len(each.value))], score, modality)
    return {level: list(between) for level, between in found.items() if between is not None}


def _difference(each: Estimate, channel: int) -> dict[str, Any]:
    return _told(each, channel) | {"significant": each.significant(channel)}


def _told(each: Estimate, channel: int) -> dict[str, Any]:
    """{value, interval}; no interval from one block of dates."""
    between = each.interval(channel)
    return {"value": float(each.value[channel])} | ({"interval": list(between)} if between else {})


def _by_level(values: list[Any], score: str, modality: Modality) -> dict[str, Any]:
    """Values of each level and, last, of their mean, by name; of layers by the level at the bottom."""
    levels = sorted(modality.level_hpa)[1:] if score == "unstable" else modality.level_hpa
    return dict(zip([*map(str, levels), "mean"], values if levels else values[-1:], strict=True))


def _names(modality: Modality) -> list[str]:
    """Names of the levels; a field without levels is its own mean."""
    return [str(level) for level in modality.level_hpa] or ["mean"]


def _confidence(estimates: Estimates, found: Tally, bootstrap: Bootstrap) -> dict[str, Any]:
    """Intervals of every system's means and of the differences to the analysis; none from a single block."""
    several = {name: _sure(scored, found.n_members[name]) for name, scored in estimates.items()}
    return {
        "level": LEVEL,
        "resamples": len(bootstrap.counts_RK),
        "blocks": bootstrap.n_blocks,
        "systems": {name: {s: _told(each, -1) for s, each in scored.items()} for name, scored in several.items()},
        "analysis_minus": {
            name: {s: _difference(each, -1) for s, each in _minus(several["analysis"], scored).items()}
            for name, scored in several.items()
            if name != "analysis"
        },
    }


def _spectra(spectra: dict[str, Pair], state: Modality) -> dict[str, Any]:
    """Power by wavenumber of each level that has a row without gaps."""
    power = {kind: ZonalSpectrum.value(*pair) for kind, pair in spectra.items()}
    return {
        name: {"wavenumber": list(range(len(power["truth"][c])))} | {kind: p[c].tolist() for kind, p in power.items()}
        for c, name in enumerate(_names(state))
        if all(np.isfinite(p[c]).all() for p in power.values())
    }


def _of_truth(sums: Sums, state: Modality) -> dict[str, Any]:
    """What to compare the members' share of unstable layers with."""
    if (TRUTH, state.name, "unstable") not in sums.found:
        return {}
    share = sums.whole(TRUTH, state.name, "unstable")
    found = _by_level([*share.tolist(), float(share.mean())], "unstable", state)
    return {"unstable": found} if np.isfinite(share).all() else {}


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
    """One row a system, modality, level and score; low and high are the ends of the interval, empty without one."""
    tables = {scores["variable"]: scores} | scores["other_modalities"]
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(["system", "variable", "level_hpa", "score", "value", "units", "low", "high"])
    for variable, table in tables.items():
        for system, found in table["systems"].items():
            for score, levels in found.items():
                units = "1" if score in DIMENSIONLESS else table["units"]
                between = table["intervals"][system].get(score, {})
                for level, value in levels.items():
                    writer.writerow([system, variable, level, score, value, units, *between.get(level, ("", ""))])
    write_text(path, text.getvalue())


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
