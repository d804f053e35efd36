"""What a study runs: its configuration as stages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sample.config import SampleConfig
from sample.study.config import StudyConfig
from sample.study.stages import Stage
from slams.config import load, selected
from slams.contracts.archive import RAW_FILES, open_archive
from slams.contracts.envelope import ContractError
from slams.spec import StateSpec

OBSERVATIONS, CASES = "observations", "cases"
# where a job's configuration says what it leaves
LEFT_AT = {f"data_prep {stage}": f"{stage}.path" for stage in ("archive", "shards", "encode", "background", "observe")}
LEFT_AT |= {"train": "bundle"}


def preparations(config: StudyConfig) -> list[Stage]:
    """What makes archives and models, each on those before it.

    Raises:
        ValueError: a ``{...}`` that nothing fills, or a command without a configuration.
    """
    found: list[Stage] = []
    fills = [{"data": name, "words": data_words(config, name)} for name in config.data]
    each = [
        (_filled("prepare_data", command, fill), f", {fill['data']}")
        for fill in fills
        for command in config.prepare_data
    ]
    for number, (command, of) in enumerate((*each, *((command, "") for command in config.prepare))):
        words = tuple(shlex.split(command))
        job = words[: 2 if words[:1] == ("data_prep",) else 1]
        if len(words) <= len(job) or not job:
            raise ValueError(f"prepare_data, prepare: {command!r} is not allowed; a job and its configuration")
        label = f"{' '.join(job)}, {Path(words[len(job)]).stem}{of}"
        where = LEFT_AT.get(" ".join(job))
        leaves = selected(words[len(job)], words[len(job) + 1 :], where) if where else ""
        name = f"prepare-{number:02d}-{'-'.join(job)}"
        found.append(Stage(name, (words,), tuple(found[-1:]), leaves=leaves, label=label))
    return found


@dataclass(frozen=True)
class Plan:
    """All stages; settings with the factor that their grid allows.

    Arguments:
        cases: those whose settings ask for the same, where a factor stands in another's place, share a stage.
        factors: by setting, what fills ``{factor}``.
    """

    prepare: list[Stage]
    observe: list[Stage]
    cases: dict[tuple[str, str], Stage]
    factors: dict[str, int]

    @property
    def stages(self) -> list[Stage]:
        return list(dict.fromkeys((*self.prepare, *self.observe, *self.cases.values())))

    def folder(self, case: tuple[str, str]) -> Path:
        """Where a case, (setting, system), is analysed and verified."""
        return Path(self.cases[case].leaves).parents[1]


def planned(config: StudyConfig, shape_HW: tuple[int, int]) -> Plan:
    """The stages of a study on a grid of that shape.

    Raises:
        ValueError: a ``{...}`` that nothing fills.
    """
    prepare = preparations(config)
    factors = {name: nearest_divisor(setting.factor, shape_HW) for name, setting in config.settings.items()}
    asked = {name: (factors[name], setting.fills) for name, setting in config.settings.items()}
    observe: dict[str, Stage] = {}
    cases: dict[tuple[str, str], Stage] = {}
    for setting, system in config.cases:
        how = config.systems[system]
        twins = [stage for (other, name), stage in cases.items() if name == system and asked[other] == asked[setting]]
        if twins:
            cases[setting, system] = twins[0]
            continue
        fills = _fills(config, setting, factors[setting])
        fills |= {"validation": _observations(config, setting, system, "validation"), "data": how.data}
        splits = ["test", *(["validation"] if "{validation}" in how.sample else [])]
        for split in splits:
            stage = _observing(config, setting, system, split, factors[setting], tuple(prepare[-1:]))
            observe[stage.name] = stage
        words = shlex.split(_filled(f"systems.{system}.sample", f"{how.sample} {config.sample}", fills))
        folder = f"{config.folder}/{CASES}/{setting}/{system}"
        words += [f"folder={folder}"]
        words += [f"observations={_observations(config, setting, system, 'test')}"]
        commands = ("sample", *words), ("sample", "verify", *words)
        after = tuple(observe[_observing_name(config, setting, system, split)] for split in splits)
        done = f"{folder}/verify/scores.json"
        cases[setting, system] = Stage(f"{setting}/{system}", commands, after, _stood_on(words), done)
    return Plan(prepare, list(observe.values()), cases, factors)


def nearest_divisor(factor: int, shape_HW: tuple[int, int]) -> int:
    """The whole number nearest to a factor, of two the larger, that divides both sides of a grid and leaves more than
    one row."""
    rows, columns = shape_HW
    fitting = [n for n in range(1, rows // 2 + 1) if rows % n == 0 and columns % n == 0]
    return min(fitting, key=lambda n: (abs(n - factor), -n))


def _how(config: StudyConfig, system: str) -> str:
    return config.systems[system].observe or config.observe


def _fills(config: StudyConfig, setting: str, factor: int) -> dict[str, str]:
    return config.fills | config.settings[setting].fills | {"factor": str(factor)}


def _observing_name(config: StudyConfig, setting: str, system: str, split: str) -> str:
    """Systems of the same data that are observed alike share a set."""
    how = config.systems[system]
    alike = [name for name, other in config.systems.items() if (other.data, other.observe) == (how.data, how.observe)]
    return f"observe-{setting}-{alike[0]}-{split}"


def _observations(config: StudyConfig, setting: str, system: str, split: str) -> str:
    name = _observing_name(config, setting, system, split).removeprefix("observe-")
    return f"{config.folder}/{OBSERVATIONS}/{name}.zarr"


def _observing(
    config: StudyConfig, setting: str, system: str, split: str, factor: int, after: tuple[Stage, ...]
) -> Stage:
    how = _filled(f"systems.{system}.observe", _how(config, system), _fills(config, setting, factor))
    words = shlex.split(how)
    words += [f"observe.path={_observations(config, setting, system, split)}", f"observe.split={split}"]
    of_data = shlex.split(data_words(config, config.systems[system].data))
    command = ("data_prep", "observe", *of_data, *words)
    made_of = f"{selected(of_data[0], of_data[1:], 'archive.path')}/{RAW_FILES}"
    done = f"{_observations(config, setting, system, split)}/zarr.json"
    return Stage(_observing_name(config, setting, system, split), (command,), after, (made_of,), done)


def _stood_on(words: Sequence[str]) -> tuple[str, ...]:
    """Files that tell which models and archive a run is made of."""
    run = load(SampleConfig, words[0], words[1:])
    models = (run.score if run.method == "score" else "", run.autoencoder)
    bundles = [f"{bundle}/model.json" for bundle in models if bundle]
    return (*bundles, *(f"{archive}/zarr.json" for archive in (run.archive, run.background) if archive))


def _filled(where: str, text: str, fills: dict[str, str]) -> str:
    try:
        return text.format_map(fills)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{where}: {text!r}: nothing fills {error}; there are {', '.join(fills)}") from None


def data_words(config: StudyConfig, name: str) -> str:
    """Words of `python -m data_prep STAGE` of one of a study's data."""
    return _filled(f"data.{name}", config.data[name], {"data": name})


def analysed(config: StudyConfig) -> StateSpec:
    """What the archive holds that the reference's runs are verified against.

    Raises:
        ContractError: that archive is not there, or lacks a level that a finding is about.
        ValueError: no word names it.
    """
    how = config.systems[config.reference]
    any_setting = next(iter(config.settings))  # no setting has a say in the archive
    fills = _fills(config, any_setting, 1) | {"validation": "x", "data": how.data}
    path, *words = shlex.split(_filled(f"systems.{config.reference}.sample", f"{how.sample} {config.sample}", fills))
    archive = open_archive(load(SampleConfig, path, [*words, "folder=x", "observations=x"]).archive)
    levels = next(modality.level_hpa for modality in archive.spec.modalities if modality.role == "state")
    for finding in config.findings:
        if unknown := sorted({*finding.levels_hpa} - {*levels}):
            raise ContractError(f"findings.levels_hpa: {unknown} are not among {list(levels)} of {archive.path}")
    return archive.spec
