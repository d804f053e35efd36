"""What is looked for in a raw file, and how it is said that the file cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class SourceError(ValueError):
    """A raw file that cannot be used: the file, the field, the value found and what is allowed."""


class MissingVariableError(SourceError):
    """A sound file that does not hold what was looked for."""


@dataclass(frozen=True)
class Quantity:
    """A physical quantity as the providers write it, and what it becomes here.

    Arguments:
        name: canonical name.
        units: canonical unit.
        standard_name: CF standard name.
        variables: names of the variable in NetCDF files, best first.
        grib: shortName and typeOfLevel in GRIB files, best first.
        factors: accepted unit -> factor to the canonical unit.
        valid_range: smallest and largest value allowed, in the canonical unit.
        totals: those of the accepted units that are totals of a day, not rates.
        least_mean: smallest mean over what is observed, where that is much of the Earth, in the canonical unit.
        is_whole: whether a level has a value in every cell, unless it is missing altogether.
        default_units: unit of a file that declares none; None refuses such a file.
    """

    name: str
    units: str
    standard_name: str
    variables: tuple[str, ...]
    grib: tuple[tuple[str, str], ...]
    factors: dict[str, float]
    valid_range: tuple[float, float]
    totals: tuple[str, ...] = ()
    least_mean: float | None = None
    is_whole: bool = False
    default_units: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """CF attributes of the canonical field."""
        return {"units": self.units, "standard_name": self.standard_name}


def find_name(path: Path, what: str, accepted: Iterable[str], present: Iterable[object]) -> str:
    """The first of the accepted names that is present.

    Raises:
        MissingVariableError: none is; the message lists what the file has.
    """
    accepted, present = list(accepted), [str(name) for name in present]
    for name in accepted:
        if name in present:
            return name
    has, allowed = ", ".join(present), ", ".join(accepted)
    raise MissingVariableError(f"{path}: no {what}: it has {has}; allowed are {allowed}")
