"""The verifications of a study's cases, brought together on the dates that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sample.study.config import StudyConfig
from sample.study.plan import Plan
from sample.study.settings import alike
from sample.sums import OF_MEMBERS, Sums, read_sums
from slams.contracts.envelope import ContractError, read_json
from slams.rng import generator
from slams.uncertainty import Bootstrap, Estimate

RESAMPLES = 1000
OWN = "analysis"


@dataclass(frozen=True)
class Scored:
    """The cases of a study that are verified.

    Arguments:
        sums: by setting and system, on the dates that all of them share.
        own: which system of its verification a system is: ``analysis``, or itself for a baseline.
        variable: the state.
        members: of each system; a baseline that is not named is a single field.
        origins: by setting and system, who made what of a case: commits and checksums.
    """

    time: np.ndarray
    sums: dict[tuple[str, str], Sums]
    own: dict[str, str]
    variable: str
    levels_hpa: list[int]
    units: str
    members: dict[str, int]
    origins: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def estimate(self, setting: str, system: str, score: str) -> Estimate | None:
        """A score with its resamples, the same for all; none where a case is missing or does not have the score, as a
        single field has no spread."""
        sums, own = self.sums.get((setting, system)), self.own[system]
        if sums is None or (own, self.variable, score) not in sums.found:
            return None
        if score in OF_MEMBERS and self.members.get(system, 1) == 1:
            return None
        bootstrap = Bootstrap(self.time, RESAMPLES, generator(0, "validation"))
        found = sums.estimate(bootstrap, own, self.variable, score)
        return found if np.isfinite(found.value).all() else None


def gathered(config: StudyConfig, plan: Plan) -> Scored:
    """What the cases' verifications left, as far as they have run.

    Raises:
        ContractError: none has, or they hold no common date.
    """
    folder = Path(config.folder)
    done = [case for case, stage in plan.cases.items() if stage.done(folder)]
    if not done:
        raise ContractError(f"{folder}: no case is verified yet; run the study first")
    sums = {case: read_sums(plan.folder(case) / "verify") for case in done}
    told = {case: read_json(plan.folder(case) / "verify/scores.json", "scores") for case in done}
    common = sums[done[0]].time
    for each in sums.values():
        common = np.intersect1d(common, each.time)
    common = common[:: config.score_every_days]
    if not len(common):
        raise ContractError(f"{folder}: the cases have no date in common")
    first = told[done[0]]
    for case in done:
        for part in ("variable", "levels_hpa", "units"):
            if told[case][part] != first[part]:
                raise ContractError(f"{plan.folder(case)}: has {part} {told[case][part]}, others {first[part]}")
    found = {case: each.on(common) for case, each in sums.items()}
    members = {system: told[setting, system]["members"] for setting, system in done}
    for name, told_by in config.baselines.items():
        found |= {(setting, name): found[setting, told_by] for setting, system in done if system == told_by}
    for setting, system in tuple(found):  # where the grid makes settings one, what has run in one of them has in all
        found |= {(other, system): found[setting, system] for other in alike(config, plan.factors, setting)}
    own = dict.fromkeys(config.systems, OWN) | {name: name for name in config.baselines}
    origins = {case: {k: v for k, v in told[case]["provenance"].items() if k != "config"} for case in done}
    return Scored(common, found, own, first["variable"], first["levels_hpa"], first["units"], members, origins)
