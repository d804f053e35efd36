"""Simulated observing systems of one modality: on a grid, or at stations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_prep.config import ObservedConfig
from data_prep.masks import random_network, random_places, seen_by_swath
from slams.contracts.archive import Archive
from slams.contracts.observations import Gridded, Operator, Stations
from slams.interpolate import place
from slams.observe import Interpolation, observe
from slams.rng import normal
from slams.spec import Modality
from slams.statistics import Statistics

MOSTLY = 0.5  # an observation is over land where at least this share of it is


@dataclass(frozen=True)
class System:
    """How one modality of an archive is observed; `observed` gives a block of days.

    Arguments:
        first: position in the archive of the first day of the split, from which `every_days` counts.
        number: of the modality in the archive's order.
        seed: of everything drawn by chance, keyed by the modality's number and, for errors, by the day.

    Raises:
        ValueError: an operator that does not divide the grid, noise for another number of levels, or a mask of land
            where the archive knows none.
    """

    archive: Archive
    statistics: Statistics
    modality: Modality
    how: ObservedConfig
    first: int
    number: int
    seed: int

    def __post_init__(self) -> None:
        given, needed = len(self.how.noise_by_level), self.modality.n_channels
        if given not in (0, needed):
            raise ValueError(f"noise_by_level: {given} numbers for {needed} levels of {self.modality.name}")
        if {"land", "ocean"} & set(self.how.masks) and "land_fraction" not in self.statistics.static:
            raise ValueError(f"masks: {self.how.masks} of {self.modality.name} need archive.sources.static")

    @property
    def part(self) -> slice:
        return self.archive.spec.channels(self.modality.name)

    @property
    def std_C(self) -> np.ndarray:
        """Standard deviation of the error of each channel, in its unit."""
        noise = self.how.noise_by_level or self.how.noise
        return np.asarray(noise * np.array(self.archive.attributes["global_std"][self.part], np.float32), np.float32)

    def noise(self, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal errors, (L, *shape), each day's its own."""
        days = self.archive.time[block].astype(int)
        return np.stack([normal(self.seed, "observation", int(day), self.number, shape=shape) for day in days])

    def wanted(self, block: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, land: np.ndarray) -> np.ndarray:
        """Which of N points are looked at on each day, (L, N), by the masks that both kinds of system have."""
        seen = np.repeat(((block - self.first) % self.how.every_days == 0)[:, None], len(latitude), axis=1)
        if "land" in self.how.masks:
            seen &= land >= MOSTLY
        if "ocean" in self.how.masks:
            seen &= land < MOSTLY
        if "swath" in self.how.masks:
            seen &= seen_by_swath(self.how.swath, latitude, longitude, self.archive.time[block])
        return seen

    @property
    def land(self) -> Tensor:
        """Land fraction, (H, W); of no account where no mask asks for it."""
        fraction = self.statistics.static.get("land_fraction", np.zeros(self.archive.spec.grid.shape))
        return torch.from_numpy(np.asarray(fraction, np.float32))


@dataclass(frozen=True)
class GriddedSystem(System):
    """An operator on the grid. A block's mean is over the cells where the modality is ever observed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.operator.coordinates(self.archive.spec.grid)

    @property
    def operator(self) -> Operator:
        return self.how.as_operator()

    @cached_property
    def weight(self) -> Tensor | None:
        ever = self.statistics.observed[self.part].all(axis=0).astype(np.float32)
        return None if ever.all() else torch.from_numpy(ever)

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latitude, longitude, and whether each observation belongs to the random network, (y x,)."""
        mesh = np.meshgrid(*self.operator.coordinates(self.archive.spec.grid), indexing="ij")
        latitude, longitude = (axis.ravel() for axis in mesh)
        if "network" not in self.how.masks:
            return latitude, longitude, np.ones(len(latitude), bool)
        area = np.cos(np.deg2rad(latitude))
        return latitude, longitude, random_network(area, self.how.share, self.seed, self.number)

    def observed(self, block: np.ndarray) -> Gridded:
        """Noisy observations (L, C, y, x) of consecutive days, NaN where nothing was observed."""
        clean = self._clean(self.archive.read(block)[:, self.part])
        value = (clean + self.noise(block, clean.shape[1:]) * self.std_C[:, None, None]).astype(np.float32)
        *where, in_network = self.places
        land = observe(self.operator, self.land).numpy().ravel()
        wanted = (self.wanted(block, *where, land) & in_network).reshape(len(block), 1, *clean.shape[2:])
        value = np.where(wanted, value, np.nan)
        error = np.broadcast_to(self.std_C[None, :, None, None], value.shape).astype(np.float32)
        weight = None if self.weight is None else self.weight.numpy()
        return Gridded(self.modality.name, self.operator, value, error, np.isfinite(value), weight)

    def _clean(self, x: np.ndarray) -> np.ndarray:
        """Where a cell counts and its value is missing, its block is missing."""
        if self.weight is None:
            return observe(self.operator, torch.from_numpy(x)).numpy()
        counts = self.weight > 0
        filled = torch.where(counts, torch.from_numpy(x), 0)
        value = observe(self.operator, filled, self.weight)
        return torch.where(observe(self.operator, self.weight) > 0, value, torch.nan).numpy()


@dataclass(frozen=True)
class StationSystem(System):
    """A network of stations at random places, the same every day, each reporting all levels.

    A station one of whose neighbours is missing reports nothing: no gauge floats on the ocean.
    """

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude, (S,): one for so many of the grid's cells."""
        cells = self.archive.spec.grid.n_latitude * self.archive.spec.grid.n_longitude
        return random_places(max(1, round(self.how.share * cells)), self.seed, self.number)

    def observed(self, block: np.ndarray) -> Stations:
        """Noisy reports of consecutive days, those that exist."""
        latitude, longitude = self.places
        clean = self._at_stations(self.archive.read(block)[:, self.part], self.modality.level_hpa)
        value = (clean + self.noise(block, clean.shape[1:]) * self.std_C).astype(np.float32)
        land = self._at_stations(self.land.numpy()[None, None], ())[0, :, 0]
        reported = self.wanted(block, latitude, longitude, land)[..., None] & np.isfinite(value)
        day, station, level = np.nonzero(reported)
        return Stations(
            name=self.modality.name,
            days=self.archive.time[block],
            frame=day,
            latitude=latitude[station],
            longitude=longitude[station],
            level_hpa=np.array(self.modality.level_hpa or [np.nan], np.float32)[level],
            value=value[reported],
            error_std=self.std_C[level],
            station_id=np.array([f"{self.modality.name}-{i:05d}" for i in station], object),
            qc=np.zeros(len(day), np.int8),
        )

    def _at_stations(self, x_LCHW: np.ndarray, levels_hpa: tuple[int, ...]) -> np.ndarray:
        """Channels at those levels, at every station and level, (L, S, levels)."""
        (latitude, longitude), levels = self.places, np.array(levels_hpa or [np.nan])
        everywhere = (np.repeat(place_, len(levels)) for place_ in (latitude, longitude))
        placement = place(*everywhere, np.tile(levels, len(latitude)), self.archive.spec.grid, levels_hpa)
        frame = np.zeros(len(placement.cell), int)  # days are the batch
        apply = Interpolation(placement, frame, x_LCHW.shape[1:])
        return apply(torch.from_numpy(x_LCHW[:, None])).numpy().reshape(len(x_LCHW), len(latitude), len(levels))
