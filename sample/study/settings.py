"""The settings of a study as its tables have them: by which factor, where on their curve, and which of them are one.

A factor that does not divide the grid has another in its place. Nothing that is shown may pretend otherwise: the label
names the factor in use, a curve has its point there, and settings that ask for the same count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sample.study.config import Setting, StudyConfig

FACTOR = "{factor}"


def told(config: StudyConfig, factors: dict[str, int]) -> list[dict[str, Any]]:
    """The settings, those of a group together and along its curve.

    Arguments:
        factors: by setting, the factor in use.

    Returns:
        Of each ``name``, ``group``, ``value`` and factor ``asked``, ``label``, ``factor`` in use, ``at``, where on the
        curve that is, ``same_as``, another setting that asks for the same, and ``note``; both empty where not needed.
    """
    names = config.only_settings or list(config.settings)
    groups = list(dict.fromkeys(config.settings[name].group for name in names))
    ordered = sorted(names, key=lambda n: (groups.index(config.settings[n].group), config.settings[n].value))
    return [_told(config, factors, name, ordered) for name in ordered]


def _told(config: StudyConfig, factors: dict[str, int], name: str, names: Sequence[str]) -> dict[str, Any]:
    how, factor = config.settings[name], factors[name]
    same = _same(config, factors, name, names)
    note = f"{how.factor} does not divide the grid; {factor} in its place" if factor != how.factor else ""
    return {
        "name": name,
        "group": how.group,
        "value": how.value,
        "asked": how.factor,
        "label": _label(how, factor),
        "factor": factor,
        "at": place(how, factor),
        "same_as": same,
        "note": f"{note}, the same as {same}" if same else note,
    }


def _same(config: StudyConfig, factors: dict[str, int], name: str, names: Sequence[str]) -> str:
    """The setting that stands for those that ask for the same, best one whose own factor it is; empty for itself."""
    same = [each for each in names if each in alike(config, factors, name)]
    own = [each for each in same if factors[each] == config.settings[each].factor]
    first = (own or same)[0]
    return "" if name in (first, *own) else first


def _label(how: Setting, factor: int) -> str:
    words = how.label.replace(FACTOR, str(factor))
    if factor == how.factor:
        return words
    return f"{words} ({'' if FACTOR in how.label else f'factor {factor}, '}{how.factor} asked)"


def place(how: Setting, factor: int) -> float:
    """Where on its curve a setting stands: where the factor is its value, at the one in use."""
    return float(factor) if how.follows else how.value


def alike(config: StudyConfig, factors: dict[str, int], name: str) -> list[str]:
    """The settings that ask for the same as one of them does, itself among them."""
    asked = {each: (factors[each], how.fills) for each, how in config.settings.items()}
    return [each for each in asked if asked[each] == asked[name]]
