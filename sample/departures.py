"""Departures of a unit: H(x_b) and H(x_a) at every observation of its days, assimilated or withheld.

O - B and O - A are what an analysis is judged by in the space of what was measured: the spread and error that the
observations imply (Desroziers et al. 2005), and a bias that no comparison with another analysis shows. A withheld
modality's O - A is of observations that the members have never seen; an assimilated one's is not, and says nothing
about the analysis elsewhere.

H is linear here, without the logarithm in which rain is assimilated and without the error that is added there for what
the decoder cannot represent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sample.plan import Unit
from slams.contracts.departures import FOLDER, SUFFIX, departures_file
from slams.contracts.observations import Gridded, Observations, Observed, Stations
from slams.interpolate import usable
from slams.observe import Interpolation, observe
from slams.spec import StateSpec
from slams.statistics import Statistics

ROUNDING = 1e-6  # of weights that should be 0


def write_departures(
    product: str | Path,
    unit: Unit,
    observations: Observations,
    spec: StateSpec,
    statistics: Statistics,
    x_MLCHW: np.ndarray,
    first_guess_CHW: np.ndarray | None,
    assimilated: Sequence[str],
) -> dict[str, Any]:
    """Write the departures of a unit into its product; a day at a time is held beside what is given.

    Arguments:
        product: folder or URL of the analysis.
        spec, statistics: of the analysis; the statistics may know more channels after those.
        x_MLCHW: members on the kept days, physical units; NaN in a member that is missing.
        first_guess_CHW: what the prior was conditioned on, the state of the day before the segment with its halo
            (`FirstGuess.read`), kept as it is over all days; none, or NaN in a modality: the climatology of each day.
        assimilated: names of the modalities that were assimilated; the others of the set were withheld.

    Returns:
        For the ledger: ``file``, its ``crc32`` and its metadata's ``footer_crc32``, ``background`` by modality, and
        ``channels``, of each channel name ``rows``, ``assimilated``, and ``o_minus_b`` and ``o_minus_a`` (of the mean
        of these members) with ``count``, ``mean`` and ``std``; an observation between levels counts for the nearer.
        Empty, and nothing is written, for observations of latents.

    Raises:
        ContractError: observations that cannot be read.
        OSError: names what could not be written.
    """
    if observations.space == "latent":
        return {}
    names = [name for name in observations.names if name in spec.names]
    background = Background(spec, statistics, unit, first_guess_CHW)
    said = {name: background.of(name) for name in names}
    attributes = {"units": {name: spec.modality(name).units for name in names}, "background": said}
    attributes |= {"observations_sha256": observations.checksum}
    seen, tally = observations.read_all(names, unit.days), Tally(spec)
    with departures_file(product, unit.name, unit.days, unit.members, attributes) as file:
        for frame, day in enumerate(unit.days):
            parts = [listed(of_day, spec) for of_day in _on_day(seen, frame)]
            if not parts:
                continue
            b_N, a_MN = (evaluated(parts, x) for x in (background.at(day)[None], x_MLCHW[:, frame]))
            columns = joined(parts) | {"time": np.full(b_N.shape[1], day), "background": b_N[0]}
            columns["assimilated"] = np.isin(columns["modality"], list(assimilated))
            file.write(columns, a_MN)
            tally.add(np.concatenate([part.channel_N for part in parts]), columns["observed"], b_N, a_MN)
    summary = {"file": f"{FOLDER}/{unit.name}{SUFFIX}"} | file.checksums | {"background": said}
    return summary | {"channels": tally.summary(assimilated)}


@dataclass(frozen=True)
class Background:
    """x_b of each day of a unit: the first guess as it was, or the climatology in modalities that it does not hold."""

    spec: StateSpec
    statistics: Statistics
    unit: Unit
    first_guess_CHW: np.ndarray | None

    def of(self, name: str) -> str:
        """What the background of a modality is, in words."""
        if not self._held(name):
            return "climatology of the day"
        return f"background of {self.unit.all_days[0] - 1}, persisted"

    def at(self, day: np.datetime64) -> np.ndarray:
        """x_CHW in physical units, NaN where a channel is never observed, as in an analysis."""
        n = self.spec.n_channels
        x_CHW = self.statistics.climatology(np.array([day]))[0, :n]
        x_CHW = np.where(self.statistics.observed[:n], x_CHW, np.nan)
        for name in filter(self._held, self.spec.names):
            x_CHW[self.spec.channels(name)] = self.first_guess_CHW[self.spec.channels(name)]
        return x_CHW

    def _held(self, name: str) -> bool:
        given = self.first_guess_CHW
        return given is not None and bool(np.isfinite(given[self.spec.channels(name)]).any())


@dataclass(frozen=True)
class Listed:
    """Observations of one modality on one day, in a list.

    Arguments:
        columns: of the table, each (N,), those that no state is needed for.
        channel_N: of the state, that of the nearer level.
        part: the modality's channels.
        apply: H, from those channels of states (B, C, H, W) to (B, N).
    """

    columns: dict[str, np.ndarray]
    channel_N: np.ndarray
    part: slice
    apply: Callable[[Tensor], Tensor]

    def evaluate(self, x_BCHW: np.ndarray) -> np.ndarray:
        """H(x), (B, N); NaN where a cell that counts is."""
        x = torch.from_numpy(x_BCHW[:, self.part])
        unknown = torch.isnan(x)
        if not unknown.any():
            return self.apply(x).numpy()
        lost = self.apply(unknown.to(x.dtype)) > ROUNDING  # no operator's weights are negative
        return self.apply(x.masked_fill(unknown, 0)).masked_fill(lost, torch.nan).numpy()


def joined(parts: Sequence[Listed]) -> dict[str, np.ndarray]:
    """The columns of several lists of a day, one after the other."""
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}


def evaluated(parts: Sequence[Listed], x_BCHW: np.ndarray) -> np.ndarray:
    """H(x) of those, (B, N)."""
    return np.concatenate([part.evaluate(x_BCHW) for part in parts], axis=1)


def listed(seen: Observed, spec: StateSpec) -> Listed:
    """The observations of one day that an analysis may use: not masked, quality passed, within the levels' range."""
    found = _at_stations(seen, spec) if isinstance(seen, Stations) else _on_grid(seen, spec)
    found.columns["modality"] = np.full(len(found.channel_N), seen.name, object)
    return found


def _on_grid(seen: Gridded, spec: StateSpec) -> Listed:
    part, mask = spec.channels(seen.name), seen.mask[0]
    channel, row, column = np.nonzero(mask)
    latitude, longitude = seen.operator.coordinates(spec.grid)
    weight = None if seen.weight_HW is None else torch.from_numpy(seen.weight_HW)
    columns = {
        "level_hpa": np.array(spec.modality(seen.name).level_hpa or [np.nan], np.float32)[channel],
        "latitude": latitude[row],
        "longitude": longitude[column],
        "station_id": np.full(len(channel), None, object),
        "observed": seen.value[0][mask],
        "error_std": seen.error_std[0][mask],
    }
    kept = torch.from_numpy(mask)
    return Listed(columns, part.start + channel, part, lambda x: observe(seen.operator, x, weight)[:, kept])


def _at_stations(seen: Stations, spec: StateSpec) -> Listed:
    part, (used, at) = spec.channels(seen.name), usable(seen, spec)
    columns = {name: getattr(seen, name)[used] for name in ("level_hpa", "latitude", "longitude", "station_id")}
    if not spec.modality(seen.name).level_hpa:
        columns["level_hpa"] = np.full(len(used), np.nan, np.float32)
    columns |= {"observed": seen.value[used], "error_std": seen.error_std[used]}
    nearest = at.channel[np.arange(len(used)), at.weight.argmax(axis=1)]
    apply = Interpolation(at, np.zeros(len(used), int), (part.stop - part.start, *spec.grid.shape))
    return Listed(columns, part.start + nearest, part, lambda x: apply(x[:, None]))


def _on_day(seen: Sequence[Observed], frame: int) -> Iterator[Observed]:
    """What was observed on one of the days; nothing of a modality that was not."""
    for found in seen:
        on_day = found.during(slice(frame, frame + 1))
        if on_day.used.any():
            yield on_day


class Tally:
    """Numbers, sums and sums of squares of O - B and O - A, by channel."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec, n = spec, spec.n_channels
        self.rows = np.zeros(n, int)
        self.sums = {"o_minus_b": np.zeros((3, n)), "o_minus_a": np.zeros((3, n))}

    def add(self, channel_N: np.ndarray, observed_N: np.ndarray, b_1N: np.ndarray, a_MN: np.ndarray) -> None:
        """Some observations more; H(x_a) counts with the mean of the members that there are."""
        n = self.spec.n_channels
        self.rows += np.bincount(channel_N, minlength=n)
        for name, x_MN in (("o_minus_b", b_1N), ("o_minus_a", a_MN)):
            known = np.isfinite(x_MN).any(axis=0)
            departure = observed_N[known].astype(np.float64) - np.nanmean(x_MN[:, known], axis=0, dtype=np.float64)
            powers = (np.ones_like(departure), departure, departure**2)
            self.sums[name] += [np.bincount(channel_N[known], power, minlength=n) for power in powers]

    def summary(self, assimilated: Sequence[str]) -> dict[str, Any]:
        """By channel name; channels without any observation are left out."""
        found: dict[str, Any] = {}
        for modality in self.spec.modalities:
            first = self.spec.channels(modality.name).start
            for channel, name in enumerate(modality.channel_names, first):
                if self.rows[channel]:
                    found[name] = {"assimilated": modality.name in assimilated, "rows": int(self.rows[channel])}
                    found[name] |= {kind: _moments(*sums[:, channel]) for kind, sums in self.sums.items()}
        return found


def _moments(count: float, total: float, squares: float) -> dict[str, Any]:
    """JSON knows no NaN: where nothing was counted there is no mean."""
    if not count:
        return {"count": 0, "mean": None, "std": None}
    mean = float(total / count)
    return {"count": int(count), "mean": mean, "std": float(np.sqrt(max(squares / count - mean**2, 0.0)))}
