"""Typed configuration: a dataclass, one YAML file, `key.path=value` words, and nothing else.

This is the only file that sees omegaconf. What comes out is the plain frozen dataclass, checked by its own
`__post_init__`; what is wrong comes out as a `ConfigError` whose message is one sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")
# What omegaconf says of a value of another form than its field's, and the same in plain words.
PLAIN = (
    (".*AnyNode is not a ListConfig.*", "a list is needed, such as [1, 2]"),
    (r".*: \w+ is not a subclass of (\w+)\. value: (.*)", r"\2 is not allowed where the fields of \1 are needed"),
    ("Cannot merge incompatible container types", "a list stands where fields are needed, or fields where a list is"),
)


class ConfigError(ValueError):
    """A mistake in a configuration, said in one sentence."""


def load(schema: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Merge a YAML file and override words into a schema.

    Arguments:
        schema: a frozen dataclass; fields without default must be given.
        path: the YAML file.
        overrides: words of the form ``section.key=value``; the value is read as YAML.

    Returns:
        An instance of ``schema``.

    Raises:
        ConfigError: file missing or not YAML, unknown key, wrong type, missing or refused value.
    """
    try:
        found = cast(T, OmegaConf.to_object(_merged(path, overrides, OmegaConf.structured(schema))))
        _check_finite(dataclasses.asdict(cast(Any, found)))
        return found
    except (OmegaConfBaseException, ValueError, TypeError, yaml.YAMLError) as error:
        raise _refusal(path, error) from error


def selected(path: str | Path, overrides: Sequence[str], key: str) -> str:
    """One value of a YAML file with override words, whatever its schema; empty where they do not say.

    Raises:
        ConfigError: file missing or not YAML, or a word that is none.
    """
    try:
        return str(OmegaConf.select(_merged(path, overrides), key) or "")
    except (OmegaConfBaseException, ValueError, TypeError, yaml.YAMLError) as error:
        raise _refusal(path, error) from error


def _merged(path: str | Path, overrides: Sequence[str], *schema: Any) -> Any:
    if not Path(path).is_file():
        raise ConfigError(f"config {path}: no such file")
    for word in overrides:
        _check_word(word)
    return OmegaConf.merge(*schema, OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))


def _refusal(path: str | Path, error: Exception) -> ConfigError:
    """What was said of a word or a missing file as it is; the rest with the file's name."""
    return error if isinstance(error, ConfigError) else ConfigError(f"config {path}: {_sentence(error)}")


def _check_word(word: str) -> None:
    """Refuse an override that is none, before it is mixed with the file's own content."""
    if "=" not in word:
        raise ConfigError(f"override {word!r}: a word of the form key.path=value is needed")
    try:
        OmegaConf.from_dotlist([word])
    except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"override {word!r}: {_sentence(error)}") from error


def _check_finite(value: Any, name: str = "") -> None:
    """Refuse NaN and infinity: comparisons let them pass, and JSON does not know them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not allowed; a finite number")
    if isinstance(value, dict):
        for key, part in value.items():
            _check_finite(part, f"{name}.{key}".removeprefix("."))
    if isinstance(value, list):
        for i, part in enumerate(value):
            _check_finite(part, f"{name}[{i}]")


def _sentence(error: Exception) -> str:
    """What is wrong and where: of YAML its place, of omegaconf its first line with the field's name."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    text = str(error).strip().split("\n")[0]
    for jargon, plain in PLAIN:
        text = re.sub(jargon, plain, text)
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and str(key) not in text else text


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, to be stored beside what it made."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def to_yaml(config: Any) -> str:
    """A dataclass as YAML text, for people."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def meaning(path: str | Path) -> str:
    """Fingerprint of what a YAML file says; its comments and its layout do not count.

    Raises:
        ConfigError: not YAML.
    """
    try:
        return _meaning(Path(path).read_bytes())
    except yaml.YAMLError as error:
        raise _refusal(path, error) from error


@lru_cache
def _meaning(text: bytes) -> str:
    return hashlib.sha256(json.dumps(yaml.safe_load(text), default=str).encode()).hexdigest()


def digest(config: Any) -> str:
    """Fingerprint of a resolved configuration, so that a finished result can tell what made it."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
