"""A study: what is prepared, which systems analyse which observations, and what is asked of their scores."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

# of each score its label, its unit (empty: that of the field), and which value is best
KINDS = {
    "crps": ("CRPS", "", "low"),
    "rmse": ("RMSE of the mean", "", "low"),
    "w1": ("W1 of pooled values", "std", "low"),
    "spread_skill": ("spread-skill", "1", "one"),
    "spread": ("spread", "", ""),
    "bias": ("bias", "", "zero"),
    "unstable": ("share of layers steeper than the dry adiabat", "1", ""),
    "day_change": ("day-to-day change beside the truth's, within segments", "1", "one"),
    "day_change_at_joins": ("the same where two segments join", "1", "one"),
}
BASELINES = ("anomaly_interpolation", "interpolation", "climatology", "persistence", "autoencoder")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Setting:
    """An observing system.

    Arguments:
        group: settings of one group lie on one curve.
        value: where on it.
        label: in words; ``{factor}`` stands for the factor in use.
        factor: cells a block or a gap, as the study's question has it; one that does not divide the grid is replaced
            by the nearest that does, of two the larger, and the tables say so. It fills ``{factor}``.
        fills: what fills the other ``{...}`` of the systems' `observe` and `sample`, beside the study's own `fills`.
        follows: whether its place on the curve is that of the factor in use.
    """

    group: str
    value: float
    label: str
    factor: int = 1
    fills: dict[str, str] = field(default_factory=dict)
    follows: bool = False


@dataclass(frozen=True)
class CurveConfig:
    """Observing systems that differ in one thing: a `Setting` for each of its values, named by the curve and the value.

    Arguments:
        group: what changes along it.
        values: of that; ``{value}`` stands for each in `label` and `fills`.
        label, fills: see `Setting`.
        factor: see `Setting`; 0 = the value itself.
    """

    group: str
    values: list[float]
    label: str
    factor: int = 0
    fills: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values or not all(0 < value < math.inf for value in self.values):
            raise ValueError(f"curves.values: {self.values} is not allowed; at least one, all above 0")
        if len({*self.values}) < len(self.values):
            raise ValueError(f"curves.values: {self.values} is not allowed; each once")
        if self.factor < 0:
            raise ValueError(f"curves.factor: {self.factor} is not allowed; at least 0")
        if not self.factor and any(value != int(value) for value in self.values):
            raise ValueError(f"curves.values: {self.values} is not allowed; whole numbers, or a factor")

    def settings(self, name: str) -> dict[str, Setting]:
        return {f"{name}-{value:g}": self._setting(value) for value in self.values}

    def _setting(self, value: float) -> Setting:
        label, *fills = (text.replace("{value}", f"{value:g}") for text in (self.label, *self.fills.values()))
        filled = dict(zip(self.fills, fills, strict=True))
        return Setting(self.group, value, label, self.factor or int(value), filled, follows=not self.factor)


@dataclass(frozen=True)
class SystemConfig:
    """A way to analyse.

    Arguments:
        label: in words.
        sample: words of `python -m sample`: a configuration and what is changed in it. ``{validation}`` stands for the
            setting's observations of the validation years, ``{data}`` for the name of its data.
        data: which of the study's `data` it is observed in.
        observe: words for `python -m data_prep observe`; empty = the study's.
        settings: it takes part in; empty = all.
    """

    label: str
    sample: str
    data: str
    observe: str = ""
    settings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FindingConfig:
    """A claim that the scores may contradict.

    Arguments:
        claim: in words.
        kind: ``better``: the first system has the smaller score in each of the settings; ``crossover``: along the
            group, the first system is better before and the second after, and the change lies within `between`;
            ``steadier``: from one end of the group to the other, the first system's score grows by the smaller factor.
        systems: the first and the second.
        settings: of ``better``.
        group, between: of ``crossover`` and ``steadier``; between two values of the group.
        levels_hpa: means over these; empty = over all.
        score: that is compared; empty = the study's first.
    """

    claim: str
    systems: list[str]
    kind: Literal["better", "crossover", "steadier"] = "better"
    settings: list[str] = field(default_factory=list)
    group: str = ""
    between: list[float] = field(default_factory=list)
    levels_hpa: list[int] = field(default_factory=list)
    score: str = ""

    def __post_init__(self) -> None:
        if len(self.systems) != 2:
            raise ValueError(f"findings.systems: {self.systems} is not allowed; two names")
        if self.kind == "better" and not self.settings:
            raise ValueError("findings.settings: [] is not allowed; at least one name")
        if self.kind == "crossover" and (not self.group or len(self.between) != 2):
            raise ValueError(f"findings.group, between: {self.group!r}, {self.between}; a group and two of its values")
        if self.kind == "steadier" and not self.group:
            raise ValueError("findings.group: '' is not allowed; a group of settings")


@dataclass(frozen=True)
class StudyConfig:
    """A study, whole.

    Arguments:
        folder: where all of it goes.
        title, question: for its page.
        data: words of `python -m data_prep STAGE`, by name: a configuration and what is changed in it; ``{data}``
            stands for the name, here and in the systems' `sample`.
        prepare_data: commands for each of `data`, ``{data}`` its name and ``{words}`` its words.
        prepare: commands that come after, as after `python -m`; what makes archives, shards and models, each a stage.
        observe: words for `python -m data_prep observe`, ``{...}`` filled by the setting.
        curves, systems: by name.
        reference: the system that all others are compared with.
        texts: pieces of text that the file's other entries take by ``${texts.NAME}``.
        fills: what fills ``{...}`` where the setting does not say.
        sample: words that are added to every `python -m sample`.
        baselines: shown beside the systems, e.g. ``climatology``, each from the verification of the system named.
        scores: shown, the first one in the scorecard and, where they name no other, for the findings.
        score_every_days: of the analysed dates, every so many-th is scored.
        published: table of published scores (setting, system, level_hpa, run, value), or none.
        findings: claims to be held against the scores.
        only_settings, only_systems: leave the others out; empty = all.
        quick: what to change in this file for a trial of minutes, as words ``key.path=value``.
        wandb: where page, tables and figures are logged, as one artifact, when all cases have run; ``offline`` keeps
            the record in the folder.
        project: its name on wandb.
    """

    folder: str
    title: str
    question: str
    data: dict[str, str]
    curves: dict[str, CurveConfig]
    systems: dict[str, SystemConfig]
    reference: str
    prepare_data: list[str] = field(default_factory=list)
    prepare: list[str] = field(default_factory=list)
    observe: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    fills: dict[str, str] = field(default_factory=dict)
    sample: str = ""
    baselines: dict[str, str] = field(default_factory=dict)
    scores: list[str] = field(default_factory=lambda: ["crps", "rmse", "spread_skill"])
    score_every_days: int = 1
    published: str = ""
    findings: list[FindingConfig] = field(default_factory=list)
    only_settings: list[str] = field(default_factory=list)
    only_systems: list[str] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)
    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: str = "slams"

    def __post_init__(self) -> None:
        for name in (*self.curves, *self.systems, *self.data):
            if not NAME.fullmatch(name.lower()):
                raise ValueError(f"curves, systems, data: {name!r} is no name; letters, digits, '.', '_' and '-'")
        self._check_words()
        self._known("reference", [self.reference], self.systems)
        self._known("only_settings", self.only_settings, self.settings)
        self._known("only_systems", self.only_systems, self.systems)
        for name, system in self.systems.items():
            self._known(f"systems.{name}.data", [system.data], self.data)
            self._known(f"systems.{name}.settings", system.settings, self.settings)
        self._known("baselines", list(self.baselines.values()), self.systems)
        for finding in self.findings:
            self._known("findings.systems", finding.systems, {**self.systems, **self.baselines})
            self._known("findings.settings", finding.settings, self.settings)
        if self.score_every_days < 1:
            raise ValueError(f"score_every_days: {self.score_every_days} is not allowed; at least 1")
        self._known("scores", self.scores, KINDS)
        self._known("baselines", list(self.baselines), dict.fromkeys(BASELINES))
        if not self.scores or not self.settings:
            raise ValueError("scores, curves: none is not allowed; at least one of each")
        self._check_cases()
        for finding in self.findings:
            self._check_score(finding)
            self._check_curve(finding)

    def score_of(self, finding: FindingConfig) -> str:
        """By which score a finding is judged."""
        return finding.score or self.scores[0]

    def _check_score(self, finding: FindingConfig) -> None:
        score = self.score_of(finding)
        self._known("findings.score", [score], dict.fromkeys(self.scores))
        if KINDS[score][2] != "low":
            raise ValueError(f"findings.score: {score!r} is not allowed; one of `scores` whose best value is low")

    def _check_words(self) -> None:
        if not self.folder:
            raise ValueError("folder: '' is not allowed; a folder of this machine")
        for name in ("only_settings", "only_systems", "scores"):
            if len({*getattr(self, name)}) < len(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; each once")

    def _check_cases(self) -> None:
        if both := sorted({*self.systems} & {*self.baselines}):
            raise ValueError(f"systems, baselines: {both[0]!r} is in both; give the system another name")
        if not self.cases:
            raise ValueError("only_settings, only_systems: leave no case; a system takes part in its `settings` alone")

    def _check_curve(self, finding: FindingConfig) -> None:
        values = sorted(s.value for s in self.settings.values() if s.group == finding.group)
        if finding.kind != "better" and len({*values}) < len(values):
            raise ValueError(f"findings.group: {finding.group!r} has a value twice, {values}; one curve")
        neighbours = [list(pair) for pair in zip(values, values[1:], strict=False)]
        if finding.kind == "crossover" and finding.between not in neighbours:
            raise ValueError(f"findings.between: {finding.between}; two neighbours of {values} are needed")
        if finding.kind == "steadier" and not neighbours:
            raise ValueError(f"findings.group: {finding.group!r} has {len(values)} settings; at least two are needed")

    @staticmethod
    def _known(where: str, names: list[str], known: dict[str, object]) -> None:
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: {name!r} is not among {', '.join(known)}")

    @property
    def settings(self) -> dict[str, Setting]:
        """By name, those of all curves."""
        return {name: each for curve, how in self.curves.items() for name, each in how.settings(curve).items()}

    @property
    def cases(self) -> list[tuple[str, str]]:
        """Every (setting, system) that takes part, settings first."""
        return [
            (setting, system)
            for setting in self.only_settings or self.settings
            for system, how in self.systems.items()
            if (not self.only_systems or system in self.only_systems) and (not how.settings or setting in how.settings)
        ]
