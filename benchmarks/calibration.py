"""Is the spread honest, and is the analysis better than its rivals? Ten observing systems on held-out dates.

    python benchmarks/calibration.py [NAME ...] [key.path=value ...]    (default: all, then the record)

Temperature alone is observed, every day of the five-day window: block means of 4, 8, 12 and 16 cells, noise of 0.1 to 4
standard deviations, networks of stations at 1 % and 0.3 % of the points. Beside the generative analysis stand, with the
same observations over the same window, optimal interpolation by an ensemble (EnOI), tuned for each system on
validation dates, interpolated anomalies, climatology and D(E(x)). Then what rain and longwave radiation at full
resolution add where temperature is coarse. Writes calibration.md, .csv and .png.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.twin import HALF_WINDOW, Members, Score, Twin
from data_prep.config import ObservedConfig
from slams import baselines
from slams.enoi import Choice
from slams.enoi_archive import analysis as enoi_analysis
from slams.enoi_archive import tune
from slams.enoi_observations import Listed, from_observations, superobservations

HERE = Path(__file__).resolve().with_suffix("")
FULL = {name: ObservedConfig("identity") for name in ("precipitation", "olr")}
SYSTEMS: dict[str, dict[str, ObservedConfig]] = {
    **{f"coarse-{r}": {"temperature": ObservedConfig("block_mean", r)} for r in (4, 8, 12, 16)},
    **{f"noise-{s:g}": {"temperature": ObservedConfig("block_mean", 4, noise=s)} for s in (0.5, 1.0, 2.0, 4.0)},
    **{f"stations-{100 * s:g}": {"temperature": ObservedConfig("stations", share=s)} for s in (0.01, 0.003)},
    "coarse-16-and-all": {"temperature": ObservedConfig("block_mean", 16), **FULL},
    "coarse-16-and-olr": {"temperature": ObservedConfig("block_mean", 16), "olr": FULL["olr"]},
}
CHOICES = [Choice(km, float("inf"), a, season_days=60) for km in (6000, 10_000) for a in (0.7, 1.0)]
TUNING_DATES = 4
INFLATIONS = (2.0, 4.0, 8.0)
MOST_OBSERVATIONS = 6000  # more are averaged for EnOI: 14,400 would take 40 s a solution
RELIABLE = (0.8, 1.25)
CONFIG = "configs/sample/small.yaml"
FINE = ("coarse-8", "noise-0.5", "noise-1")  # drawn with twice the steps, on half the dates


def analysis(twin: Twin, name: str, inflation: dict[str, float]) -> Members:
    return twin.analysis(SYSTEMS[name], twin.config.sampler, twin.config.guidance, error_inflation=inflation)


def error_inflation(twin: Twin, name: str) -> dict[str, float]:
    """Factor on the errors of what is observed beside temperature: the best of a few on validation dates."""
    others, path = [m for m in SYSTEMS[name] if m != twin.state.name], twin.folder / f"inflation-{name}.json"
    if not others:
        return {}
    if not path.is_file():
        of = twin.on_validation(TUNING_DATES)
        tried = [dict.fromkeys(others, factor) for factor in INFLATIONS]
        crps = [of.measured(analysis(of, name, each)).mean("crps") for each in tried]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tried[int(np.argmin(crps))]))
    return dict(json.loads(path.read_text()))


def enoi(twin: Twin, name: str) -> Members:
    """EnOI with the choice that errs least on validation dates."""
    how, path, members = SYSTEMS[name], twin.folder / f"enoi-choice-{name}.json", twin.config.members

    def observe(of: Twin, day: np.datetime64) -> Listed:
        days = np.arange(-HALF_WINDOW, HALF_WINDOW + 1)
        listed = from_observations(of.observed(how, day), twin.archive.spec, days)
        return superobservations(listed, MOST_OBSERVATIONS)

    if not path.is_file():
        other = twin.on_validation(TUNING_DATES)
        chosen, _ = tune(twin.archive, twin.climatology, other.dates, partial(observe, other), CHOICES, members)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(chosen)))
    choice = Choice(**json.loads(path.read_text()))

    def draw(day: np.datetime64) -> np.ndarray:
        return enoi_analysis(twin.archive, twin.climatology, day, observe(twin, day), choice, 0, members)[1]

    return draw


def interpolated(twin: Twin, name: str) -> Members:
    """Anomalies of the day's observations of temperature, interpolated; stations by cell."""
    spec, part = twin.archive.spec, twin.archive.spec.channels("temperature")

    def draw(day: np.datetime64) -> np.ndarray:
        seen = twin.observed(SYSTEMS[name], day)[0]
        known = twin.climatology.climatology(twin.window(day))
        x_LCHW = known.copy()
        x_LCHW[:, part] = baselines.anomaly_interpolation(seen, spec, known[:, part])
        return x_LCHW[HALF_WINDOW][None]

    return draw


def reconstructed(twin: Twin) -> Members:
    """D(E(x))."""
    system, statistics = twin.assimilator, twin.assimilator.statistics
    assert system.network is not None

    def draw(day: np.datetime64) -> np.ndarray:
        x = torch.from_numpy(statistics.standardise(twin.truth(day)[None], np.array([day])))
        with torch.inference_mode():
            decoded = system.network.decode(system.network.encode(x)).numpy()
        return statistics.physical(decoded, np.array([day]))

    return draw


def compare(twin: Twin, name: str) -> dict[str, Score]:
    """Every system on one observing system."""
    inflation = error_inflation(twin, name)
    found = {"analysis": twin.score(f"analysis-{name}", analysis(twin, name, inflation), error_inflation=inflation)}
    found["EnOI"] = twin.score(f"enoi-{name}", enoi(twin, name))
    found["anomalies"] = twin.score(f"anomalies-{name}", interpolated(twin, name))
    return found


def verdict(gap: dict[str, list[float]]) -> str:
    """A difference in words."""
    value, low, high = (gap[key][-1] for key in ("difference", "low", "high"))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})" + ("" if low > 0 or high < 0 else ", not told from 0")


def correlation(twin: Twin, name: str) -> np.ndarray:
    """Of the truth's anomalies of another modality with those of temperature, by level, over the train years, the
    same place and day; area-weighted mean of its square over the places where both are known, as a correlation."""
    days = twin.archive.days("train")[::5]
    time = twin.archive.time[days]
    anomaly = twin.archive.read(days) - twin.climatology.climatology(time)
    other = anomaly[:, twin.archive.spec.channels(name)]
    state = anomaly[:, twin.archive.spec.channels("temperature")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rain is observed nowhere over the sea
        covariance = np.nanmean(other * state, axis=0)
        explained = covariance**2 / (np.nanvar(other, axis=0) * np.nanvar(state, axis=0))
    weights = np.where(np.isfinite(explained), twin.archive.spec.grid.area_weights, 0)
    return np.sqrt((np.nan_to_num(explained) * weights).sum((1, 2)) / weights.sum((1, 2)))


def table(twin: Twin, all_scores: dict[str, dict[str, Score]]) -> list[str]:
    """Every observing system, with the differences to EnOI on the same dates."""
    words = [
        "| observed | RMSE: analysis | EnOI | anomalies | CRPS: analysis | EnOI | analysis minus EnOI (95 %) "
        "| spread-skill: analysis | EnOI |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, s in all_scores.items():
        rmse = " | ".join(f"{s[k].mean('rmse'):.2f}" for k in ("analysis", "EnOI", "anomalies"))
        crps = " | ".join(f"{s[k].mean('crps'):.3f}" for k in ("analysis", "EnOI"))
        spread = " | ".join(f"{s[k].mean('spread_skill'):.2f}" for k in ("analysis", "EnOI"))
        gap = verdict(twin.difference(s["analysis"], s["EnOI"]))
        words.append(f"| {name} | {rmse} | {crps} | {gap} | {spread} |")
    outside = {n: s["analysis"].mean("spread_skill") for n, s in all_scores.items()}
    outside = {n: v for n, v in outside.items() if not RELIABLE[0] <= v <= RELIABLE[1]}
    said = ", ".join(f"{n} ({v:.2f})" for n, v in outside.items()) or "none"
    return [*words, "", f"Spread-skill outside {RELIABLE[0]} to {RELIABLE[1]}: {said}.", ""]


def heading(twin: Twin, first: Score) -> str:
    """How the analyses of a table were drawn."""
    config = twin.config
    return (
        f"{len(twin.dates)} dates of a year never used, {config.members} members, {config.sampler.kind} "
        f"{config.sampler.steps} steps, {config.guidance.kind} {config.guidance.iterations} iterations, bf16 "
        f"{config.bf16}; {first.cpu_seconds / len(twin.dates):.0f} s of one core a date."
    )


def record(twin: Twin, all_scores: dict[str, dict[str, Score]], finer: Twin, fine: dict[str, dict[str, Score]]) -> None:
    """The record beside this file."""
    plain = twin.score("climatology", lambda day: twin.climatology.climatology(np.array([day])))
    floor = twin.score("autoencoder", reconstructed(twin))
    first = next(iter(all_scores.values()))["analysis"]
    words = [
        "# Calibration, and the analysis beside its rivals",
        "",
        f"{date.today()}, {os.cpu_count()} cores, torch {torch.__version__}; sample world, model {twin.config.score}. "
        f"Temperature, kelvin, mean over {len(first.rmse)} levels. Climatology: RMSE {plain.mean('rmse'):.2f}; "
        f"D(E(x)): {floor.mean('rmse'):.2f}. EnOI averages observations where there are more than {MOST_OBSERVATIONS}.",
        "",
        heading(twin, first),
        "",
        *table(twin, all_scores),
        "![Rank histograms](calibration.png)",
        "",
        "## With twice the steps",
        "",
        "Where observations are neither sharp nor blunt beside the prior, 8 steps are too few.",
        "",
        heading(finer, next(iter(fine.values()))["analysis"]),
        "",
        *table(finer, fine),
        *worth(twin, all_scores),
    ]
    HERE.with_suffix(".md").write_text("\n".join(words))
    figure(all_scores).savefig(HERE.with_suffix(".png"), dpi=110)
    _csv(twin, all_scores)


def worth(twin: Twin, all_scores: dict[str, dict[str, Score]]) -> list[str]:
    """What other modalities add to coarse temperature, by level, beside what they have to do with it."""
    bare = all_scores.get("coarse-16")
    words = []
    for name, others in (("coarse-16-and-all", ("precipitation", "olr")), ("coarse-16-and-olr", ("olr",))):
        if bare is None or name not in all_scores:
            continue
        gap = twin.difference(all_scores[name]["analysis"], bare["analysis"])
        related = [correlation(twin, other) for other in others]
        words += ["", f"## CRPS with {' and '.join(others)} minus without, temperature coarsened 16 x", ""]
        heads = " | ".join(f"correlation with {other}" for other in others)
        words += [f"| hPa | difference (K) | 95 % interval | {heads} |", "|--:|--:|--:|" + "--:|" * len(others)]
        for i, level in enumerate([*twin.state.level_hpa, "mean"]):
            interval = f"{gap['low'][i]:+.4f} to {gap['high'][i]:+.4f}"
            found = " | ".join(f"{(r[i] if i < len(r) else np.sqrt((r**2).mean())):.2f}" for r in related)
            words.append(f"| {level} | {gap['difference'][i]:+.4f} | {interval} | {found} |")
    return [*words, ""]


def figure(all_scores: dict[str, dict[str, Score]]) -> Figure:
    """Rank histograms of the analysis, all levels pooled."""
    page = Figure(figsize=(12, 6), layout="constrained")
    for axes, (name, found) in zip(page.subplots(3, 4).flat, all_scores.items(), strict=False):
        ranks = np.array(found["analysis"].ranks).mean(axis=0)
        axes.bar(range(len(ranks)), ranks * len(ranks), width=0.9, color="#3f7cc4")
        axes.axhline(1, color="#333333", lw=0.8)
        axes.set_title(f"{name}: spread-skill {found['analysis'].mean('spread_skill'):.2f}", fontsize=9)
        axes.set(ylim=(0, 2.5), xticks=(0, len(ranks) - 1))
        axes.spines[["top", "right"]].set_visible(False)
    page.supxlabel("members below the truth")
    page.supylabel("share, relative to flat")
    return page


def _csv(twin: Twin, all_scores: dict[str, dict[str, Score]]) -> None:
    with HERE.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["observed", "system", "level_hpa", "rmse_K", "crps_K", "spread_skill"])
        for name, found in all_scores.items():
            for system, score in found.items():
                rows = zip(twin.state.level_hpa, score.rmse, score.crps, score.spread_skill, strict=True)
                writer.writerows([name, system, *row] for row in rows)


def main() -> None:
    names = [word for word in sys.argv[1:] if "=" not in word]
    changes = [word for word in sys.argv[1:] if "=" in word]
    twin = Twin(CONFIG, ["sampler.steps=8", "period.every_days=30", *changes], "runs/small/study")
    found = {name: compare(twin, name) for name in names or SYSTEMS}
    finer = Twin(CONFIG, ["sampler.steps=16", "period.every_days=60", *changes], "runs/small/study16")
    fine = {name: compare(finer, name) for name in names or FINE}
    if not names:
        record(twin, found, finer, fine)


if __name__ == "__main__":
    main()
