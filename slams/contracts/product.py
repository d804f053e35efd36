"""How an analysis lies on disk: its layout in units and segments, its empty arrays, and what goes into them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from isal import isal_zlib
from numcodecs import BitRound

from slams.contracts.archive import (
    array,
    codecs,
    consolidate,
    dimensions,
    field_shape,
    write_axes,
    write_coordinate,
    write_levels,
)
from slams.contracts.envelope import header, provenance
from slams.spec import Modality, StateSpec

FORMAT, VERSION = "slams-analysis", 2
COUNT = "n_members_drawn"
CELL_METHODS = "time: mean area: mean"


@dataclass(frozen=True)
class Layout:
    """Which members and days belong together: a unit of work is one object of each modality, and one of the ledger.

    Arguments:
        time: valid days, datetime64[D], (T,).
        n_members: of the product.
        size: members and days of a unit, of which the last along each axis may hold fewer; None where members and days
            are written one by one, without a ledger that has to tell of each.
    """

    time: np.ndarray
    n_members: int
    size: tuple[int, int] | None

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"unit: {self.size} members and days; at least 1 of each")

    @classmethod
    def of(cls, attributes: dict[str, Any], time: np.ndarray, n_members: int) -> Layout:
        """What `build` recorded."""
        unit = attributes.get("unit")
        return cls(time, n_members, (unit["members"], unit["days"]) if unit else None)

    @property
    def unit(self) -> tuple[int, int]:
        """Members and days of a unit that is whole."""
        members, days = self.size or (1, 1)
        return min(members, self.n_members), min(days, len(self.time))

    @cached_property
    def segments(self) -> list[np.ndarray]:
        """Positions of each segment on the time axis."""
        return np.split(np.arange(len(self.time)), range(self.unit[1], len(self.time), self.unit[1]))

    def segment(self, day: int) -> np.ndarray:
        """The segment that holds a position."""
        return self.segments[day // self.unit[1]]

    def block(self, member: int) -> np.ndarray:
        """The members that share a unit with one."""
        first = member - member % self.unit[0]
        return np.arange(first, min(first + self.unit[0], self.n_members))

    def unit_name(self, member: int, day: int) -> str:
        """Name of the unit that holds a member at a position."""
        days, members = self.time[self.segment(day)], self.block(member)
        return f"{days[0]}_{days[-1]}_m{members[0]:03d}-{members[-1]:03d}"

    def unit_names(self, where: np.ndarray) -> list[str]:
        """Names of the units that the ledger has to hold of a segment."""
        if self.size is None:
            return []
        return [self.unit_name(member, int(where[0])) for member in range(0, self.n_members, self.unit[0])]

    def segment_name(self, where: np.ndarray) -> str:
        """Name of a segment.

        Raises:
            ValueError: the positions are not exactly those of one.
        """
        inside = len(where) and 0 <= where[0] < len(self.time)
        if not inside or not np.array_equal(where, self.segment(int(where[0]))):
            raise ValueError(f"where: {_named(where)} are not the days of one segment of {self.unit[1]}")
        return f"{self.time[where[0]]}_{self.time[where[-1]]}"

    def check(self, members: np.ndarray, where: np.ndarray) -> None:
        """Refuse to write what is not one unit: another writer may own the rest of the object.

        Raises:
            ValueError: naming what is asked for and the layout.
        """
        if self.size is None:
            return
        self.segment_name(where)
        inside = len(members) and 0 <= members[0] < self.n_members
        if not inside or not np.array_equal(members, self.block(int(members[0]))):
            raise ValueError(f"members: {_named(members)} are not those of one unit of {self.unit[0]}")


def _named(numbers: np.ndarray) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) else "none"


class Moments:
    """Mean and standard deviation over members, added one by one in float64 (Welford, Technometrics 4, 1962).

    A member that is missing altogether could not be drawn and does not count. A cell that is missing in a member that
    counts is missing in the moments.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n, self._mean, self._squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, x: np.ndarray) -> None:
        """One member."""
        if np.isnan(x).all():
            return
        self.n += 1
        difference = x - self._mean
        self._mean += difference / self.n
        self._squares += difference * (x - self._mean)

    @property
    def mean(self) -> np.ndarray:
        """NaN without members."""
        return self._mean if self.n else np.full_like(self._mean, np.nan)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation, divisor M - 1; of one member 0, as nothing else can be said of it, and of none NaN."""
        return np.sqrt(self._squares / max(self.n - 1, 1)) if self.n else np.full_like(self._mean, np.nan)


def checksum(values: np.ndarray, before: int = 0) -> int:
    """CRC32 of values as they are stored, or of them after others whose CRC32 is ``before``."""
    return isal_zlib.crc32(np.ascontiguousarray(values).tobytes(), before)


def stored(values: np.ndarray, keepbits: int = 0) -> np.ndarray:
    """Values as they are stored: little-endian float32, one kind of NaN, rounded to so many bits of the mantissa."""
    x: np.ndarray = np.ascontiguousarray(values, "<f4")
    x = np.where(np.isnan(x), np.float32(np.nan), x)
    return BitRound(keepbits=keepbits).encode(x).view("<f4") if keepbits else x


def build(
    folder: Path,
    spec: StateSpec,
    time: np.ndarray,
    n_members: int,
    attributes: dict[str, Any],
    unit: tuple[int, int] | None,
    keepbits: int,
) -> None:
    """The files of an empty product, the same bytes whoever makes them; see `slams.contracts.analysis.create`."""
    layout = Layout(time, n_members, unit)
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    write_axes(group, time, spec.grid.latitude, spec.grid.longitude)
    array(group, "time").attrs["units_metadata"] = "leap_seconds: none"
    write_levels(group, spec)
    member = {"standard_name": "realization", "units": "1", "long_name": "member of the ensemble"}
    write_coordinate(group, "member", np.arange(n_members, dtype=np.int32), member)
    for modality in spec.modalities:
        _create_members(group, modality, spec, layout, keepbits)
        _create_moments(group, modality, spec, layout)
    _create_count(group, layout)
    group.attrs.update(_attributes(spec, layout, keepbits, dict(attributes)))
    consolidate(folder)


def _attributes(spec: StateSpec, layout: Layout, keepbits: int, given: dict[str, Any]) -> dict[str, Any]:
    made_by = provenance()
    told: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": "SLAMS ensemble of analyses",
        "source": "posterior samples of a score-based generative model given observations",
        "history": f"drawn by slams {made_by['slams']} ({made_by['commit']}); ledger/ tells when, unit by unit",
        "spec": spec.to_json(),
    }
    if layout.size is not None:
        told["unit"] = {"members": layout.size[0], "days": layout.size[1]}
    if keepbits:
        told["keepbits"] = keepbits
    return header(FORMAT, VERSION, given.pop("config")) | told | given


def _create_members(group: zarr.Group, modality: Modality, spec: StateSpec, layout: Layout, keepbits: int) -> None:
    shape = field_shape(modality, spec.grid.shape)
    field = group.create_array(
        modality.name,
        shape=(layout.n_members, len(layout.time), *shape),
        chunks=(1, 1, *shape),
        shards=(*layout.unit, *shape) if layout.size else None,
        dtype="float32",
        fill_value=np.nan,
        compressors=codecs(),
        dimension_names=["member", "time", *dimensions(modality)],
    )
    field.attrs.update(_described(modality, modality.name, CELL_METHODS))
    if keepbits:
        field.attrs.update({"keepbits": keepbits, "relative_precision": 2.0 ** -(keepbits + 1)})


def _create_moments(group: zarr.Group, modality: Modality, spec: StateSpec, layout: Layout) -> None:
    shape = field_shape(modality, spec.grid.shape)
    for kind, method in (("mean", "mean"), ("spread", "standard_deviation")):
        field = group.create_array(
            f"{modality.name}_{kind}",
            shape=(len(layout.time), *shape),
            chunks=(1, *shape),
            shards=(layout.unit[1], *shape) if layout.size else None,
            dtype="float32",
            fill_value=np.nan,
            compressors=codecs(),
            dimension_names=["time", *dimensions(modality)],
        )
        about = _described(modality, f"ensemble {kind} of {modality.name}", f"{CELL_METHODS} realization: {method}")
        if kind == "spread" and "units_metadata" in about:
            about["units_metadata"] = "temperature: difference"
        field.attrs.update(about | {"ancillary_variables": COUNT})


def _create_count(group: zarr.Group, layout: Layout) -> None:
    field = group.create_array(
        COUNT,
        shape=(len(layout.time),),
        chunks=(layout.unit[1],),
        dtype="int32",
        fill_value=0,
        compressors=codecs(),
        dimension_names=["time"],
    )
    field.attrs.update({"long_name": "number of members that mean and spread are taken of", "units": "1"})


def _described(modality: Modality, long_name: str, cell_methods: str) -> dict[str, Any]:
    known = {"standard_name": modality.standard_name} if modality.standard_name else {}
    if modality.standard_name.endswith("temperature"):
        known["units_metadata"] = "temperature: on_scale"
    return known | {"long_name": long_name, "units": modality.units, "cell_methods": cell_methods}
