"""What the best posterior costs: every sampler x guidance at several step counts, on one model and one set of dates.

    python benchmarks/frontier.py [CONFIG [key.path=value ...]]    (default: the demo's model)

24 held-out dates, 16 members, all modalities as 8 x 8 block means with 0.1 standard deviations of noise. Prints a
table and writes benchmarks/frontier.md, .csv and .png. Cost is counted in network work (evaluations and
vector-Jacobian products of a window) and in wall time of the whole draw, decoder included, in one run.
"""

from __future__ import annotations

import csv
import os
import platform
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.twin import Score, Twin
from data_prep.config import ObservedConfig
from slams.posterior import GuidanceConfig, SamplerConfig, network_work

HERE = Path(__file__).resolve().with_suffix("")
SEEN = {name: ObservedConfig("block_mean", 8) for name in ("temperature", "precipitation", "olr")}
PAPER = ("predictor_corrector", "sda", 512)
DEFAULT = ("multistep", "mmps", 16)
STEPS = (8, 16)
SAMPLERS = ("ddim", "heun", "multistep", "predictor_corrector")
GUIDANCES = ("sda", "dps", "pgdm", "mmps")
COLOURS = dict(zip(GUIDANCES, ("#b35806", "#8073ac", "#35978f", "#0b3d91"), strict=True))
MARKS = dict(zip(SAMPLERS, ("o", "^", "s", "D"), strict=True))


@dataclass(frozen=True)
class Entry:
    """One way to draw, and what came of it; no score where it diverged."""

    sampler: str
    guidance: str
    steps: int
    work: int
    score: Score | None
    why: str = ""


def draw(twin: Twin, sampler: str, guidance: str, steps: int) -> Entry:
    """One entry, from its file if it is there."""
    start = 1e-3 if sampler == "predictor_corrector" else 0.02
    how = SamplerConfig(sampler, steps=steps, start_alpha=start)
    by = GuidanceConfig(guidance, iterations=2)
    name, work = f"{sampler}-{guidance}-{steps}", network_work(how, by).total
    try:
        score = twin.score(name, twin.analysis(SEEN, how, by), work=work)
    except FloatingPointError as error:
        print(f"{name:44s} {error}", flush=True)
        return Entry(sampler, guidance, steps, work, None, str(error))
    return Entry(sampler, guidance, steps, work, score)


def table(entries: list[Entry]) -> list[str]:
    """Markdown rows, the paper's first, then by CRPS."""
    paper = entries[0].score
    assert paper is not None
    names = ["sampler", "guidance", "steps", "CRPS (K)", "RMSE (K)", "spread-skill", "work", "wall (s)", "CPU (s)"]
    rows = [f"| {' | '.join(names)} | of the paper's (work, CPU) |", "|---|---|" + 8 * "--:|"]
    best = sorted(entries[1:], key=lambda e: e.score.mean("crps") if e.score else float("inf"))
    for e in [entries[0], *best]:
        if e.score is None:
            rows.append(f"| {e.sampler} | {e.guidance} | {e.steps} | diverged | | | {e.work} | | | |")
            continue
        ratio = f"1/{entries[0].work / e.work:.0f}, 1/{paper.cpu_seconds / e.score.cpu_seconds:.0f}"
        scores = [f"{e.score.mean(s):.{d}f}" for s, d in (("crps", 3), ("rmse", 3), ("spread_skill", 2))]
        seconds = [f"{spent:.0f}" for spent in (e.score.seconds, e.score.cpu_seconds)]
        cells = [e.sampler, e.guidance, e.steps, *scores, e.work, *seconds, ratio]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def figure(entries: list[Entry]) -> Figure:
    """CRPS and spread-skill against network work."""
    page = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = page.subplots(1, 2)
    drawn = [e for e in entries if e.score]
    for e in drawn:
        style = {"color": COLOURS[e.guidance], "marker": MARKS[e.sampler], "ms": 6, "ls": "none"}
        left.plot(e.work, e.score.mean("crps"), **style)
        right.plot(e.work, e.score.mean("spread_skill"), **style)
    paper, default = entries[0], next(e for e in entries if (e.sampler, e.guidance, e.steps) == DEFAULT)
    for e, words in ((paper, "paper"), (default, "default")):
        left.annotate(words, (e.work, e.score.mean("crps")), xytext=(6, 6), textcoords="offset points")
    for guidance, colour in COLOURS.items():
        left.plot([], [], "s", color=colour, label=guidance)
    for sampler, mark in MARKS.items():
        left.plot([], [], mark, color="#555555", label=sampler.replace("_", "-"))
    low = min(e.score.mean("crps") for e in drawn)
    left.set(xscale="log", xlabel="network work a window", ylabel="CRPS (K)", ylim=(0.9 * low, 2.5 * low))
    right.axhline(1, color="#999999", lw=0.8)
    right.set(xscale="log", xlabel="network work a window", ylabel="spread-skill ratio", ylim=(0, 1.6))
    left.legend(fontsize=8, ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e6e8", lw=0.5)
    return page


def record(entries: list[Entry], twin: Twin) -> None:
    """The record beside this file."""
    paper, default = entries[0], next(e for e in entries if (e.sampler, e.guidance, e.steps) == DEFAULT)
    gap = twin.difference(default.score, paper.score)
    words = [
        "# Cost and accuracy of samplers and guidances",
        "",
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; model {twin.config.score}, {len(twin.dates)} dates, {twin.config.members} members, "
        f"bf16 {twin.config.bf16}. `make bench-sampler` makes it again.",
        "",
        f"The default ({', '.join(map(str, DEFAULT))} steps) does 1/{paper.work / default.work:.0f} of the network "
        f"work of the paper's sampler and guidance, in 1/{paper.score.seconds / default.score.seconds:.0f} of its wall "
        f"time (1/{paper.score.cpu_seconds / default.score.cpu_seconds:.0f} of its processor time). Its CRPS is "
        f"{default.score.mean('crps'):.3f} K against {paper.score.mean('crps'):.3f} K, a difference of "
        f"{gap['difference'][-1]:+.3f} K (95 % {gap['low'][-1]:+.3f} to {gap['high'][-1]:+.3f} over dates).",
        "",
        "![CRPS and spread-skill against network work](frontier.png)",
        "",
        *table(entries),
        "",
    ]
    HERE.with_suffix(".md").write_text("\n".join(words))
    figure(entries).savefig(HERE.with_suffix(".png"), dpi=110)
    with HERE.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sampler", "guidance", "steps", "network_work", "seconds", "crps_K", "rmse_K", "spread_skill"])
        for e in entries:
            scores = [e.score.mean(s) for s in ("crps", "rmse", "spread_skill")] if e.score else [""] * 3
            writer.writerow([e.sampler, e.guidance, e.steps, e.work, e.score.seconds if e.score else "", *scores])


def main() -> None:
    config, *overrides = sys.argv[1:] or ["configs/sample/tiny.yaml"]
    same = ["members=16", "members_per_unit=16", "bf16=true", *overrides]
    twin = Twin(config, same, "runs/frontier")
    grid = [(s, g, n) for n in STEPS for g in GUIDANCES for s in SAMPLERS if (s, g, n) != DEFAULT]
    entries = [draw(twin, *each) for each in [PAPER, DEFAULT, *grid]]
    print("\n".join(table(entries)))
    record(entries, twin)


if __name__ == "__main__":
    main()
