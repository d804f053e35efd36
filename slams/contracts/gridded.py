"""Observations on a grid, one Zarr group a modality, and the operator that maps the full grid onto theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import zarr

from slams.contracts import storage
from slams.contracts.archive import CHUNK_BYTES, array, codecs, dimensions, reading, write_axes, write_levels
from slams.contracts.envelope import ContractError
from slams.contracts.measured import check_values
from slams.spec import Grid, Modality, StateSpec

OperatorKind = Literal["identity", "block_mean", "subsample"]
CHUNK_DAYS = 64
PARTS = ("value", "error_std", "mask")


@dataclass(frozen=True)
class Operator:
    """A linear map from a field on the grid to what is observed of it. `slams.observe` applies it.

    Arguments:
        kind: mean of factor x factor blocks, every factor-th cell (from the middle of each block), or all.
        factor: cells a block in each direction.
        then: what is done to the result, e.g. a block mean of which every second is kept.
    """

    kind: OperatorKind
    factor: int = 1
    then: Operator | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(OperatorKind):
            raise ValueError(f"kind: {self.kind!r} is not allowed; {', '.join(get_args(OperatorKind))}")
        if self.factor < 1 or (self.kind == "identity" and self.factor != 1):
            raise ValueError(f"factor: {self.factor} is not allowed for {self.kind}; at least 1, and 1 for identity")

    def coordinates(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of what is observed.

        Raises:
            ValueError: a factor does not divide the grid.
        """
        return self._thinned(grid.latitude, grid.longitude)

    def _thinned(self, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f, n, m = self.factor, len(latitude), len(longitude)
        if n % f or m % f:
            raise ValueError(f"factor: {f} does not divide the grid of {n} x {m} cells")
        if self.kind == "subsample":
            kept = latitude[f // 2 :: f], longitude[f // 2 :: f]
        else:
            kept = latitude.reshape(-1, f).mean(axis=1), longitude.reshape(-1, f).mean(axis=1)
        return self.then._thinned(*kept) if self.then else kept

    def footprint(self, grid: Grid) -> np.ndarray:
        """Which observation each cell goes into, (H, W): its position in the flattened (y, x), or -1 for none."""
        n, m = (len(axis) for axis in self.coordinates(grid))
        return self._spread(np.arange(n * m).reshape(n, m))

    def _spread(self, index: np.ndarray) -> np.ndarray:
        f = self.factor
        index = self.then._spread(index) if self.then else index
        if self.kind != "subsample":
            return np.repeat(np.repeat(index, f, axis=0), f, axis=1)
        spread = np.full((index.shape[0] * f, index.shape[1] * f), -1)
        spread[f // 2 :: f, f // 2 :: f] = index
        return spread

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; `from_json` is its inverse."""
        found: dict[str, Any] = {"kind": self.kind, "factor": self.factor}
        return found | {"then": self.then.to_json()} if self.then else found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Operator:
        then = cls.from_json(value["then"]) if value.get("then") else None
        return cls(value["kind"], value["factor"], then)


@dataclass(frozen=True)
class Gridded:
    """Observations of one modality over consecutive days, each array (L, C, y, x).

    `value` is NaN and `mask` False where nothing was observed. `weight_HW` is what each grid cell counts in a block
    mean (gauges stand on land: the ocean's cells count nothing); None where every cell counts the same.
    """

    name: str
    operator: Operator
    value: np.ndarray
    error_std: np.ndarray
    mask: np.ndarray
    weight_HW: np.ndarray | None = None

    @property
    def used(self) -> np.ndarray:
        """The mask, by the name that stations have for theirs."""
        return self.mask

    @property
    def observed_days(self) -> np.ndarray:
        """Whether anything was observed, (L,)."""
        return np.asarray(self.mask.any(axis=(1, 2, 3)))

    def during(self, frames: slice) -> Gridded:
        """Of consecutive ones among its days."""
        return replace(self, **{part: getattr(self, part)[frames] for part in PARTS})

    @property
    def content(self) -> dict[str, bytes]:
        """What a fingerprint is taken of."""
        return {part: np.ascontiguousarray(getattr(self, part)).tobytes() for part in PARTS}


@dataclass(frozen=True)
class Field:
    """What a group observes.

    Arguments:
        modality: name, unit and levels.
        grid: that its operator is applied to.
        n_channels: C, or Z of latents.
    """

    modality: Modality
    grid: Grid
    n_channels: int

    def shape(self, operator: Operator) -> tuple[int, ...]:
        """Of one day in the file: a field without levels has no axis for them."""
        y, x = (len(axis) for axis in operator.coordinates(self.grid))
        return (self.n_channels, y, x) if self.modality.level_hpa or self.n_channels > 1 else (y, x)


class GriddedWriter:
    """A group in the making, filled by blocks of consecutive days from the first on."""

    def __init__(self, path: Path, field: Field, time: np.ndarray, first: Gridded) -> None:
        self.path, self.field, self.operator, self.rows = path, field, first.operator, 0
        self.group = group = zarr.open_group(path, mode="a").create_group(first.name)
        group.attrs["operator"] = first.operator.to_json()
        write_axes(group, time, *first.operator.coordinates(field.grid))
        if field.modality.level_hpa:
            write_levels(group, StateSpec(field.grid, (field.modality,)))
        if first.weight_HW is not None:
            self._create_weight(first.weight_HW)
        for part in PARTS:
            self._create(part, len(time), np.dtype(np.int8) if part == "mask" else getattr(first, part).dtype)

    def _create_weight(self, weight_HW: np.ndarray) -> None:
        weight = self.group.create_array(
            "weight",
            shape=weight_HW.shape,
            dtype="float32",
            chunks=weight_HW.shape,
            fill_value=np.nan,  # no weight is NaN: those that were lost do not read as cells that count nothing
            compressors=codecs(),
            dimension_names=["cell_latitude", "cell_longitude"],
        )
        weight[:] = weight_HW.astype(np.float32)
        weight.attrs["long_name"] = "what each cell of the full grid counts in the operator"

    def _create(self, part: str, n_time: int, kind: np.dtype[Any]) -> None:
        modality, shape = self.field.modality, self.field.shape(self.operator)
        axes = dimensions(modality) if len(shape) < 3 or modality.level_hpa else ("channel", "latitude", "longitude")
        created = self.group.create_array(
            part,
            shape=(n_time, *shape),
            dtype=kind,
            chunks=(max(1, min(CHUNK_DAYS, n_time, CHUNK_BYTES // (4 * int(np.prod(shape))))), *shape),
            fill_value=0 if part == "mask" else np.nan,
            compressors=codecs(),
            dimension_names=["time", *axes],
        )
        if part != "mask":
            created.attrs.update({"units": modality.units, "standard_name": modality.standard_name})

    def write(self, seen: Gridded) -> None:
        """Add the next days.

        Raises:
            ContractError: errors or values that no reader would take.
        """
        check_values(self.path, self.field.modality, seen.value[seen.mask], seen.error_std[seen.mask])
        n, shape = len(seen.value), self.field.shape(self.operator)
        for part in PARTS:
            array(self.group, part)[self.rows : self.rows + n] = getattr(seen, part).reshape(n, *shape)
        self.rows += n


def read_gridded(path: Path, field: Field, n_time: int, where: np.ndarray) -> Gridded:
    """The days at those positions, of a set of that many days.

    Raises:
        ContractError: an operator that cannot be applied, another shape or unit, errors or values as in
            `GriddedWriter.write`, or damage.
    """
    name = field.modality.name
    with storage.reading(path), reading(path):
        group = zarr.open_group(str(path), mode="r")
        operator = _operator(path, group, field)
        parts = [array(group, f"{name}/{part}") for part in PARTS]
        _check_shape_and_units(path, field, parts[0], (n_time, *field.shape(operator)))
        value, error, mask = (np.asarray(part.oindex[where]) for part in parts)
        weight = np.asarray(array(group, f"{name}/weight")[:]) if f"{name}/weight" in group else None
    if weight is not None and not ((weight >= 0).all() and weight.any()):
        raise ContractError(f"{path}: weight of {name} is lost or damaged; 0 or more, and more in some cell, is needed")
    value, error, mask = (a.reshape(len(where), field.n_channels, *a.shape[-2:]) for a in (value, error, mask))
    seen = mask.astype(bool) & np.isfinite(value)
    check_values(path, field.modality, value[seen], error[seen])
    return Gridded(name, operator, value, error, seen, weight)


def _operator(path: Path, group: zarr.Group, field: Field) -> Operator:
    said: Any = dict(group[field.modality.name].attrs).get("operator")
    try:
        operator = Operator.from_json(said)
        operator.coordinates(field.grid)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ContractError(f"{path}: operator {said} of {field.modality.name} cannot be applied ({error})") from None
    return operator


def _check_shape_and_units(path: Path, field: Field, value: zarr.Array[Any], shape: tuple[int, ...]) -> None:
    name, units = field.modality.name, field.modality.units
    if value.attrs.get("units") != units:
        raise ContractError(f"{path}: value of {name} is in {value.attrs.get('units')!r}; {units!r} is needed")
    if value.shape != shape:
        raise ContractError(f"{path}: value of {name} has shape {value.shape}; {shape} is needed")
