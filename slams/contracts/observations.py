"""Observations: what was measured of each modality, with its error and its operator. Zarr v3.

One group a modality, named like it, with `value`, `error_std` (physical units) and `mask` (1 = observed), each
(time, [level,] y, x) on the operator's own grid, where needed the `weight` of each cell of the full grid, and the
operator in the attributes: ``block_mean`` with its
``factor``, ``subsample`` with its ``factor`` (every factor-th cell), or ``identity``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from slams.contracts.archive import (
    array,
    codecs,
    consolidate,
    dimensions,
    read_time,
    reading,
    write_axes,
    write_coordinate,
    write_levels,
)
from slams.contracts.envelope import ContractError, check_header, header
from slams.spec import Grid, StateSpec

FORMAT, VERSION = "slams-observations", 1
OperatorKind = Literal["identity", "block_mean", "subsample"]


@dataclass(frozen=True)
class Operator:
    """A linear map from a field on the grid to what is observed of it. `slams.observe` applies it.

    Arguments:
        kind: mean of factor x factor blocks, every factor-th cell (from the middle of each block), or all.
        factor: cells a block in each direction.
    """

    kind: OperatorKind
    factor: int = 1

    def __post_init__(self) -> None:
        if self.factor < 1 or (self.kind == "identity" and self.factor != 1):
            raise ValueError(f"factor: {self.factor} is not allowed for {self.kind}; at least 1, and 1 for identity")

    def coordinates(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of what is observed."""
        coarse = grid.coarsened(self.factor)
        if self.kind == "subsample":
            middle = self.factor // 2
            return grid.latitude[middle :: self.factor], grid.longitude[middle :: self.factor]
        return coarse.latitude, coarse.longitude


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


@dataclass(frozen=True)
class Observations:
    """An opened observation set."""

    path: Path
    spec: StateSpec
    time: np.ndarray
    attributes: dict[str, Any]

    @property
    def checksum(self) -> str:
        """Fingerprint of what was observed."""
        return str(self.attributes["content_sha256"])

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that were observed."""
        group = zarr.open_group(self.path, mode="r")
        return tuple(name for name in self.spec.names if name in group)

    def read(self, name: str, days: np.ndarray) -> Gridded:
        """Observations of a modality on those days.

        Raises:
            ContractError: the modality was not observed, a day lies outside the period, or an error
                standard deviation is not positive.
        """
        if name not in self.names:
            raise ContractError(f"{self.path}: has no observations of {name!r}; it has {', '.join(self.names)}")
        where = (np.asarray(days, "datetime64[D]") - self.time[0]).astype(int)
        outside = np.asarray(days)[(where < 0) | (where >= len(self.time))]
        if len(outside):
            raise ContractError(f"{self.path}: {outside[0]} is outside {self.time[0]} to {self.time[-1]}")
        with reading(self.path):
            group = zarr.open_group(self.path, mode="r")
            parts = (array(group, f"{name}/{part}") for part in ("value", "error_std", "mask"))
            value, error, mask = (self._frames(part, name, where) for part in parts)
        seen = mask.astype(bool) & np.isfinite(value)
        if (error[seen] <= 0).any():
            raise ContractError(f"{self.path}: error_std of {name} is {error[seen].min()}; more than 0 is needed")
        weight = np.asarray(array(group, f"{name}/weight")[:]) if f"{name}/weight" in group else None
        operator: dict[str, Any] = dict(group[name].attrs)["operator"]  # type: ignore[assignment]
        return Gridded(name, Operator(**operator), value, error, seen, weight)

    def _frames(self, part: zarr.Array[Any], name: str, where: np.ndarray) -> np.ndarray:
        values = np.asarray(part.oindex[where])
        return values.reshape(len(where), self.spec.modality(name).n_channels, *values.shape[-2:])


def write_observations(
    folder: Path, spec: StateSpec, time: np.ndarray, observed: list[Gridded], attributes: dict[str, Any]
) -> None:
    """Write observations of consecutive days into a folder (usually one written aside).

    Arguments:
        attributes: ``config`` and whatever else describes where they come from.
    """
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    config = attributes.pop("config")
    found = header(FORMAT, VERSION, config) | {"Conventions": "CF-1.11", "spec": spec.to_json()}
    root.attrs.update(found | attributes)
    days = (np.asarray(time, "datetime64[D]") - np.datetime64("1900-01-01")).astype(np.int64)
    write_coordinate(root, "time", days, {"units": "days since 1900-01-01", "calendar": "proleptic_gregorian"})
    root.attrs["content_sha256"] = _fingerprint(observed)
    for seen in observed:
        _write_modality(root.create_group(seen.name), spec, time, seen)
    consolidate(folder)


def _fingerprint(observed: list[Gridded]) -> str:
    """Of every value, so that an analysis can tell which observations it was drawn from."""
    found = hashlib.sha256()
    for seen in observed:
        found.update(seen.name.encode())
        for part in (seen.value, seen.error_std, seen.mask):
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _write_modality(group: zarr.Group, spec: StateSpec, time: np.ndarray, seen: Gridded) -> None:
    modality = spec.modality(seen.name)
    group.attrs["operator"] = {"kind": seen.operator.kind, "factor": seen.operator.factor}
    latitude, longitude = seen.operator.coordinates(spec.grid)
    write_axes(group, time, latitude, longitude)
    if modality.level_hpa:
        write_levels(group, spec.subset((seen.name,)))
    if seen.weight_HW is not None:
        weight = group.create_array(
            "weight", data=seen.weight_HW.astype(np.float32), dimension_names=["cell_latitude", "cell_longitude"]
        )
        weight.attrs["long_name"] = "what each cell of the full grid counts in the operator"
    parts = {"value": seen.value, "error_std": seen.error_std, "mask": seen.mask.astype(np.int8)}
    for part, values in parts.items():
        shape = values.shape if modality.level_hpa else (values.shape[0], *values.shape[2:])
        field = group.create_array(
            part,
            shape=shape,
            dtype=values.dtype,
            chunks=(min(64, shape[0]), *shape[1:]),
            fill_value=0 if part == "mask" else np.nan,
            compressors=codecs(),
            dimension_names=["time", *dimensions(modality)],
        )
        field[:] = values.reshape(shape)
        if part != "mask":
            field.attrs.update({"units": modality.units, "standard_name": modality.standard_name})


def open_observations(path: str | Path) -> Observations:
    """Open an observation set.

    Raises:
        ContractError: nothing there, another format or a newer version.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise ContractError(f"{path}: no observations there; run `python -m data_prep observe` first")
    with reading(path):
        group = zarr.open_group(path, mode="r")
    check_header(dict(group.attrs), FORMAT, VERSION, path)
    spec = StateSpec.from_json(group.attrs["spec"])  # type: ignore[arg-type]
    return Observations(path, spec, read_time(group), dict(group.attrs))
