"""Claims held against the scores: each holds, does not, or cannot be told from these dates."""

from __future__ import annotations

from typing import Any

import numpy as np

from sample.study.config import FindingConfig, StudyConfig
from sample.study.scored import Scored
from slams.uncertainty import Estimate

ONLY = 0  # the channel of a gap


def findings(config: StudyConfig, scored: Scored) -> list[dict[str, Any]]:
    """Of each claim whether it holds (true, false, or null where it cannot be told) and by which numbers."""
    return [_judged(finding, config, scored) for finding in config.findings]


def _judged(finding: FindingConfig, config: StudyConfig, scored: Scored) -> dict[str, Any]:
    if finding.kind == "better":
        holds, evidence = _better(finding, config, scored)
    else:
        holds, evidence = _crossover(finding, config, scored)
    return {"claim": finding.claim, "holds": holds, "evidence": evidence}


def _gap(finding: FindingConfig, config: StudyConfig, scored: Scored, setting: str) -> Estimate | None:
    """First system minus second, mean over the finding's levels, as the only channel; none if one is missing."""
    one, other = (scored.estimate(setting, system, config.scores[0]) for system in finding.systems)
    if one is None or other is None:
        return None
    gap, n = one.minus(other), len(scored.levels_hpa)
    chosen = [i for i, level in enumerate(scored.levels_hpa) if level in (finding.levels_hpa or scored.levels_hpa)]
    if len(gap.value) != n + 1 or not chosen:
        return None
    value, drawn = gap.value[chosen].mean(keepdims=True), gap.drawn[:, chosen].mean(axis=1, keepdims=True)
    return Estimate(value, drawn, np.array([gap.known[chosen].all()]))


def _told(gap: Estimate) -> str:
    interval = gap.interval(ONLY)
    text = f"{gap.value[ONLY]:+.3f}"
    if interval is None:
        return f"{text} (no interval)"
    return f"{text} ({interval[0]:+.3f} to {interval[1]:+.3f})" + ("" if gap.significant(ONLY) else ", not told from 0")


def _better(finding: FindingConfig, config: StudyConfig, scored: Scored) -> tuple[bool | None, str]:
    """It holds if each difference is below 0 beyond doubt, and does not if one is above 0 beyond doubt."""
    gaps = {setting: _gap(finding, config, scored, setting) for setting in finding.settings}
    told = "; ".join(f"{setting} {'not run' if gap is None else _told(gap)}" for setting, gap in gaps.items())
    evidence = f"{config.scores[0]}, {finding.systems[0]} minus {finding.systems[1]}: {told}"
    if any(gap is not None and gap.significant(ONLY) and gap.value[ONLY] > 0 for gap in gaps.values()):
        return False, evidence
    sure = all(gap is not None and gap.significant(ONLY) and gap.value[ONLY] < 0 for gap in gaps.values())
    return (True if sure else None), evidence


def _crossover(finding: FindingConfig, config: StudyConfig, scored: Scored) -> tuple[bool | None, str]:
    """It holds if the difference changes its sign once, upwards, between the values named."""
    of_group = {n: s.value for n, s in config.settings.items() if s.group == finding.group}
    gaps = {n: _gap(finding, config, scored, n) for n in sorted(of_group, key=lambda n: of_group[n])}
    known = [(of_group[name], float(gap.value[ONLY])) for name, gap in gaps.items() if gap is not None]
    told = "; ".join(f"{value:g}: {gap:+.3f}" for value, gap in known)
    evidence = f"{config.scores[0]}, {finding.systems[0]} minus {finding.systems[1]}: {told or 'not run'}"
    if len(known) < len(of_group):
        return None, evidence
    changes = [(a[0], b[0]) for a, b in zip(known, known[1:], strict=False) if (a[1] < 0) != (b[1] < 0)]
    if len(changes) != 1 or known[0][1] >= 0:
        return False, f"{evidence}; no single crossover"
    low, high = changes[0]
    return [low, high] == finding.between, f"{evidence}; crossover between {low:g} and {high:g}"
