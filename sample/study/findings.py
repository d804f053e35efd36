"""Claims held against the scores: each holds, does not, or cannot be told from these dates."""

from __future__ import annotations

from typing import Any

import numpy as np

from sample.study.config import FindingConfig, StudyConfig
from sample.study.scored import Scored
from sample.study.settings import place
from slams.uncertainty import Estimate

ONLY = 0  # the channel of a gap


def findings(config: StudyConfig, scored: Scored, factors: dict[str, int]) -> list[dict[str, Any]]:
    """Of each claim whether it holds (true, false, or null where it cannot be told) and by which numbers.

    Arguments:
        factors: by setting, the factor in use.
    """
    return [_judged(finding, config, scored, factors) for finding in config.findings]


def _judged(finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]) -> dict[str, Any]:
    holds, evidence = JUDGES[finding.kind](finding, config, scored, factors)
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


def _curve(finding: FindingConfig, config: StudyConfig, factors: dict[str, int]) -> dict[float, str]:
    """A setting for each place on the curve of the finding's group, in order; settings of one factor are one place."""
    at = {place(config.settings[name], factors[name]): name for name in _settings(finding, config)}
    return {value: at[value] for value in sorted(at)}


def _gap(finding: FindingConfig, config: StudyConfig, scored: Scored, setting: str) -> Estimate | None:
    """First system minus second, mean over the finding's levels, as the only channel; none if one is missing."""
    one, other = (scored.estimate(setting, system, config.score_of(finding)) for system in finding.systems)
    if one is None or other is None:
        return None
    return _over_levels(finding, scored, one.minus(other))


def _over_levels(finding: FindingConfig, scored: Scored, each: Estimate) -> Estimate | None:
    """The mean over the finding's levels as the only channel; none of a score that is not of levels."""
    n = len(scored.levels_hpa)
    chosen = [i for i, level in enumerate(scored.levels_hpa) if level in (finding.levels_hpa or scored.levels_hpa)]
    if len(each.value) != n + 1 or not chosen:
        return None
    value, drawn = each.value[chosen].mean(keepdims=True), each.drawn[:, chosen].mean(axis=1, keepdims=True)
    return Estimate(value, drawn, each.n_blocks[chosen].min(keepdims=True))


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
    evidence = f"{config.score_of(finding)}, {finding.systems[0]} minus {finding.systems[1]}: {told}"
    if any(gap is not None and gap.significant(ONLY) and gap.value[ONLY] > 0 for gap in gaps.values()):
        return False, evidence
    sure = all(gap is not None and gap.significant(ONLY) and gap.value[ONLY] < 0 for gap in gaps.values())
    return (True if sure else None), evidence


def _crossover(
    finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]
) -> tuple[bool | None, str]:
    """It holds if the first is better beyond doubt up to the lower value and the second from the upper one on."""
    gaps = {at: _gap(finding, config, scored, name) for at, name in _curve(finding, config, factors).items()}
    told = "; ".join(f"{value:g}: {'not run' if gap is None else _told(gap)}" for value, gap in gaps.items())
    evidence = f"{config.score_of(finding)}, {finding.systems[0]} minus {finding.systems[1]}: {told}"
    signs = []
    for value, gap in gaps.items():
        sure = gap is not None and gap.significant(ONLY)
        wanted = -1 if value <= min(finding.between) else 1
        signs.append(wanted * float(np.sign(gap.value[ONLY])) if gap is not None and sure else 0.0)
    if any(sign < 0 for sign in signs):
        return False, evidence
    return (True if all(sign > 0 for sign in signs) else None), evidence


def _steadier(
    finding: FindingConfig, config: StudyConfig, scored: Scored, factors: dict[str, int]
) -> tuple[bool | None, str]:
    """It holds if the first system's growth is below the second's beyond doubt, and does not if it is above."""
    (first, start), *_, (last, end) = _curve(finding, config, factors).items()
    growths = [_growth(finding, config, scored, system, start, end) for system in finding.systems]
    of = f"{config.score_of(finding)} at {last:g} over that at {first:g}"
    if growths[0] is None or growths[1] is None:
        return None, f"{of}: not run"
    gap = growths[0].minus(growths[1])
    told = ", ".join(f"{name} {each.value[ONLY]:.2f}" for name, each in zip(finding.systems, growths, strict=True))
    return (bool(gap.value[ONLY] < 0) if gap.significant(ONLY) else None), f"{of}: {told}; difference {_told(gap)}"


def _growth(
    finding: FindingConfig, config: StudyConfig, scored: Scored, system: str, start: str, end: str
) -> Estimate | None:
    """The score in one setting over that in another, on the same dates; none if one is missing."""
    found = [scored.estimate(setting, system, config.score_of(finding)) for setting in (start, end)]
    first, last = (None if each is None else _over_levels(finding, scored, each) for each in found)
    if first is None or last is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):  # of a score of 0 there is no growth
        return Estimate(last.value / first.value, last.drawn / first.drawn, first.common_blocks(last))


JUDGES = {"better": _better, "crossover": _crossover, "steadier": _steadier}
