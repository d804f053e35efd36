"""Sums of every score, date by date: what intervals are drawn from, and what a study pairs systems of other runs with.

``verify/sums.npz``, read by `read_sums` (NumPy alone, no pickles), holds

* ``dates``                             datetime64[D], (D,), in increasing order,
* ``SYSTEM/MODALITY/SCORE/total``       sums of each date, (D, S, C),
* ``SYSTEM/MODALITY/SCORE/weight``      their weights, (D, C); 0 where a date does not count.

C are the levels in the modality's order, for ``unstable`` the layers between them from the top. A score is
``SCORES[SCORE](total, weight)``, of a date or of sums over dates. All are float64.
Two runs on the same dates, paired:

    one, other = read_sums("a/verify"), read_sums("b/verify")
    days = np.intersect1d(one.time, other.time)
    bootstrap = Bootstrap(days, 1000, np.random.default_rng(0))
    crps = [sums.on(days).estimate(bootstrap, "analysis", "temperature", "crps") for sums in (one, other)]
    crps[0].minus(crps[1]).interval(-1)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from slams.contracts.envelope import ContractError
from slams.metrics import Bias, DayChange, EnsembleRMSE, FairCRPS, Spread, SpreadSkill, UnstableLayers, Wasserstein
from slams.uncertainty import Bootstrap, Estimate, Value

FILE = "sums.npz"
SCORES: dict[str, Value] = {
    "rmse": EnsembleRMSE.value,
    "crps": FairCRPS.value,
    "spread_skill": SpreadSkill.value,
    "bias": Bias.value,
    "spread": Spread.value,
    "w1": Wasserstein.value,
    "unstable": UnstableLayers.value,
    "day_change": DayChange.value,
    "day_change_at_joins": DayChange.value,
}
OF_MEMBERS = ("spread_skill", "spread")  # of one member they say nothing
Key = tuple[str, str, str]
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Sums:
    """Sums and weights by date of each (system, modality, score): (D, S, C) and (D, C).

    Arguments:
        time: the dates, datetime64[D], (D,).
    """

    time: np.ndarray
    found: dict[Key, Pair]

    @classmethod
    def joined(cls, parts: Sequence[Sums]) -> Sums:
        """The sums of parts that follow one another in time; theirs are used up: none stands in memory twice."""
        found = {}
        for key in tuple(parts[0].found):
            total, weight = zip(*(part.found.pop(key) for part in parts), strict=True)
            found[key] = np.concatenate(total), np.concatenate(weight)
        return cls(np.concatenate([part.time for part in parts]), found)

    def on(self, days: np.ndarray) -> Sums:
        """The sums of some of the dates.

        Raises:
            ContractError: a date that is not there, named.
        """
        absent = np.setdiff1d(days, self.time)
        if len(absent):
            raise ContractError(f"sums: hold no {absent[0]}, only days of {self.time[0]} to {self.time[-1]}")
        where = np.searchsorted(self.time, days)
        found = {key: (total[where], weight[where]) for key, (total, weight) in self.found.items()}
        return Sums(self.time[where], found)

    def daily(self, system: str, modality: str, score: str) -> np.ndarray:
        """The score of each date, (D, C)."""
        return SCORES[score](*self._pair(system, modality, score))

    def whole(self, system: str, modality: str, score: str) -> np.ndarray:
        """The score of all dates together, (C,)."""
        total, weight = self._pair(system, modality, score)
        return SCORES[score](total.sum(axis=0), weight.sum(axis=0))

    def estimate(self, bootstrap: Bootstrap, system: str, modality: str, score: str) -> Estimate:
        """The score of all dates together with its resamples."""
        return bootstrap.estimate(SCORES[score], *self._pair(system, modality, score))

    def _pair(self, system: str, modality: str, score: str) -> Pair:
        if (system, modality, score) not in self.found:
            raise ContractError(f"sums: hold no {score} of {modality} by {system}")
        return self.found[system, modality, score]

    def save(self, folder: Path) -> None:
        """Write ``sums.npz`` into a folder, aside before it takes its name."""
        arrays = {"dates": self.time}
        for key, (total, weight) in self.found.items():
            arrays |= {"/".join((*key, "total")): total, "/".join((*key, "weight")): weight}
        aside = folder / f"{FILE}.partial"
        with aside.open("wb") as file:
            np.savez_compressed(file, **arrays)
        aside.replace(folder / FILE)


def read_sums(folder: str | Path) -> Sums:
    """The sums that a verification wrote into its folder.

    Raises:
        ContractError: none there, or damaged.
    """
    path = Path(folder) / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        time, found = arrays.pop("dates"), {}
        for name in (name for name in arrays if name.endswith("/total")):
            system, modality, score, _ = name.split("/")
            found[system, modality, score] = arrays[name], arrays[f"{system}/{modality}/{score}/weight"]
    except FileNotFoundError as error:
        raise ContractError(f"{path}: no sums there; run `python -m sample verify` first") from error
    except (ValueError, OSError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise ContractError(f"{path}: damaged, it cannot be read ({error})") from error
    return Sums(time, found)
