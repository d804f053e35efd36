"""Claims held against the scores: each holds, does not, or cannot be told from these dates."""

from __future__ import annotations

from typing import Any

import numpy as np

from sample.study.config import FindingConfig, StudyConfig
from sample.study.scored import Scored
from sample.study.settings import place
from slams.contracts.envelope import ContractError
from slams.uncertainty import Estimate

ONLY = 0  # the channel of a gap


def findings(config: StudyConfig, scored: Scored, factors: dict[str, int]) -> list[dict[str, Any]]:
    """Of each claim whether it holds (true, false, or null where it cannot be told) and by which numbers.

    Arguments:
        factors: by setting, the factor in use.
    """
    return [_judged(finding, config, scored, factors) for finding in config.findings]


def _judged(finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]) -> dict[str, Any]:
    judge = _better if finding.kind == "better" else _crossover
    holds, evidence = judge(finding, config, scored, factors)
    replaced = [name for name in _settings(finding, config) if factors[name] != config.settings[name].factor]
    if finding.kind == "crossover" and replaced:  # where it lies is the claim
        holds = None
    noted = "".join(f"; {name} with {factors[name]} in its place" for name in replaced)
    return {"claim": finding.claim, "holds": holds, "evidence": evidence + noted}


def _settings(finding: FindingConfig, config: StudyConfig) -> list[str]:
    """The settings that a claim is about, along their curve."""
    if finding.kind == "better":
        return finding.settings
    of_group = {name: how.value for name, how in config.settings.items() if how.group == finding.group}
    return sorted(of_group, key=lambda name: of_group[name])


def _gap(finding: FindingConfig, config: StudyConfig, scored: Scored, setting: str) -> Estimate | None:
    """First system minus second, mean over the finding's levels, as the only channel; none if one is missing."""
    one, other = (scored.estimate(setting, system, config.scores[0]) for system in finding.systems)
    if one is None or other is None:
        return None
    gap, n = one.minus(other), len(scored.levels_hpa)
    unknown = set(finding.levels_hpa) - set(scored.levels_hpa)
    if unknown:
        raise ContractError(f"findings.levels_hpa: {sorted(unknown)} are not among {scored.levels_hpa}")
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


def _better(
    finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]
) -> tuple[bool | None, str]:
    """It holds if each difference is below 0 beyond doubt, and does not if one is above 0 beyond doubt."""
    gaps = {setting: _gap(finding, config, scored, setting) for setting in finding.settings}
    told = "; ".join(f"{setting} {'not run' if gap is None else _told(gap)}" for setting, gap in gaps.items())
    evidence = f"{config.scores[0]}, {finding.systems[0]} minus {finding.systems[1]}: {told}"
    if any(gap is not None and gap.significant(ONLY) and gap.value[ONLY] > 0 for gap in gaps.values()):
        return False, evidence
    sure = all(gap is not None and gap.significant(ONLY) and gap.value[ONLY] < 0 for gap in gaps.values())
    return (True if sure else None), evidence


def _crossover(
    finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]
) -> tuple[bool | None, str]:
    """It holds if the first is better beyond doubt up to the lower value and the second from the upper one on.

    Settings of one factor are one point of the curve.
    """
    at = {place(config.settings[name], factors[name]): name for name in _settings(finding, config)}
    gaps = {value: _gap(finding, config, scored, at[value]) for value in sorted(at)}
    told = "; ".join(f"{value:g}: {'not run' if gap is None else _told(gap)}" for value, gap in gaps.items())
    evidence = f"{config.scores[0]}, {finding.systems[0]} minus {finding.systems[1]}: {told}"
    signs = []
    for value, gap in gaps.items():
        sure = gap is not None and gap.significant(ONLY)
        wanted = -1 if value <= min(finding.between) else 1
        signs.append(wanted * float(np.sign(gap.value[ONLY])) if gap is not None and sure else 0.0)
    if any(sign < 0 for sign in signs):
        return False, evidence
    return (True if all(sign > 0 for sign in signs) else None), evidence
