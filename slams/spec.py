"""What a state is: grid, modalities, and the order of their channels.

A *channel* is one level of one modality; a state x_CHW stacks the channels in the order of the
specification, and every contract on disk carries that specification, so that no reader can mistake one
channel for another.

Shape letters, here and everywhere: B batch, M member, L frame, C channel, Z latent channel, H latitude,
W longitude, N observation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Role = Literal["state", "in_situ", "ex_situ"]

PAPER_LEVELS_HPA = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)


@dataclass(frozen=True)
class Grid:
    """A global latitude-longitude grid of equal cells, cell centres from north to south and from 0 eastwards.

    Arguments:
        n_latitude: number of rows H; the first row touches the north pole.
        n_longitude: number of columns W; the first column begins at 0 degrees east.
    """

    n_latitude: int
    n_longitude: int

    def __post_init__(self) -> None:
        if self.n_latitude < 2 or self.n_longitude < 4:
            raise ValueError(f"grid: {self.n_latitude} x {self.n_longitude} cells; at least 2 x 4 are needed")

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_latitude, self.n_longitude

    @property
    def latitude_bounds(self) -> np.ndarray:
        """Cell edges in degrees north, descending, (H + 1,)."""
        return np.linspace(90.0, -90.0, self.n_latitude + 1)

    @property
    def longitude_bounds(self) -> np.ndarray:
        """Cell edges in degrees east, ascending, (W + 1,)."""
        return np.linspace(0.0, 360.0, self.n_longitude + 1)

    @property
    def latitude(self) -> np.ndarray:
        """Cell centres in degrees north, descending, (H,)."""
        return (self.latitude_bounds[:-1] + self.latitude_bounds[1:]) / 2

    @property
    def longitude(self) -> np.ndarray:
        """Cell centres in degrees east, ascending, (W,)."""
        return (self.longitude_bounds[:-1] + self.longitude_bounds[1:]) / 2

    @property
    def area_weights(self) -> np.ndarray:
        """Share of the sphere that each cell covers, (H, W), sum 1: the difference of sin(latitude)."""
        rows = -np.diff(np.sin(np.deg2rad(self.latitude_bounds))) / 2
        return np.repeat(rows[:, None] / self.n_longitude, self.n_longitude, axis=1)

    def coarsened(self, factor: int) -> Grid:
        """The grid whose cells are factor x factor blocks of this one's.

        Raises:
            ValueError: the factor does not divide both numbers of cells.
        """
        if factor < 1 or self.n_latitude % factor or self.n_longitude % factor:
            raise ValueError(
                f"factor: {factor} does not divide the grid of {self.n_latitude} x {self.n_longitude} cells"
            )
        return Grid(self.n_latitude // factor, self.n_longitude // factor)


@dataclass(frozen=True)
class Modality:
    """One observed or analysed quantity: a name, its unit, and its levels (none for a surface field).

    Arguments:
        name: variable name in every file, e.g. ``temperature``.
        role: ``state`` (what is analysed), ``in_situ`` (gauges) or ``ex_situ`` (satellite).
        units: CF unit of the physical values.
        standard_name: CF standard name.
        level_hpa: pressure levels in hPa, in channel order; empty for a field without levels.
    """

    name: str
    role: Role
    units: str
    standard_name: str
    level_hpa: tuple[int, ...] = ()

    @property
    def n_channels(self) -> int:
        return max(1, len(self.level_hpa))

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{level}" for level in self.level_hpa) or (self.name,)


@dataclass(frozen=True)
class StateSpec:
    """The grid and the modalities of a state x_CHW, in channel order."""

    grid: Grid
    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        names = [m.name for m in self.modalities]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"modalities: {names}; at least one is needed and no name may stand twice")

    @property
    def n_channels(self) -> int:
        return sum(m.n_channels for m in self.modalities)

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(name for m in self.modalities for name in m.channel_names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.modalities)

    def modality(self, name: str) -> Modality:
        """The modality of that name.

        Raises:
            ValueError: there is none.
        """
        for m in self.modalities:
            if m.name == name:
                return m
        raise ValueError(f"modality: {name!r} is not one of {', '.join(self.names)}")

    def channels(self, name: str) -> slice:
        """Where the channels of a modality stand in x_CHW."""
        start = 0
        for m in self.modalities:
            if m.name == name:
                return slice(start, start + m.n_channels)
            start += m.n_channels
        raise ValueError(f"modality: {name!r} is not one of {', '.join(self.names)}")

    def subset(self, names: tuple[str, ...]) -> StateSpec:
        """The specification with those modalities only, in the order given."""
        return StateSpec(self.grid, tuple(self.modality(name) for name in names))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; `from_json` is its inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StateSpec:
        modalities = tuple(Modality(**{**m, "level_hpa": tuple(m["level_hpa"])}) for m in value["modalities"])
        return cls(Grid(**value["grid"]), modalities)

    @property
    def digest(self) -> str:
        """A short fingerprint: two states with another grid, order, unit or level have another one."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


TEMPERATURE = Modality("temperature", "state", "K", "air_temperature", PAPER_LEVELS_HPA)
PRECIPITATION = Modality("precipitation", "in_situ", "mm/day", "lwe_precipitation_rate")
OLR = Modality("olr", "ex_situ", "W m-2", "toa_outgoing_longwave_flux")


def not_negative(x: np.ndarray, spec: StateSpec) -> np.ndarray:
    """Fields (..., C, H, W) in physical units with rain below none, which linear methods give, as none."""
    if PRECIPITATION.name not in spec.names:
        return x
    found = x.copy()
    rain = found[..., spec.channels(PRECIPITATION.name), :, :]
    np.maximum(rain, 0, out=rain)
    return found
