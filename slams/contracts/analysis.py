"""Analysis: the posterior ensemble, the product. Zarr v3, CF 1.11, opened by `xarray.open_zarr`.

For each modality ``NAME`` (member, time, [level,] latitude, longitude) in physical units, and after the last
unit ``NAME_mean`` and ``NAME_spread`` (ensemble standard deviation, M - 1). A chunk is one member at one time,
so that no two writers ever touch one object, however the work was shared. What is not drawn yet reads as NaN.
``ledger/`` holds one JSON file a finished unit of work: what made it, and the CRC32 of what was written.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slams.contracts.archive import (
    array,
    codecs,
    consolidate,
    dimensions,
    field_shape,
    read_time,
    reading,
    write_axes,
    write_coordinate,
    write_levels,
)
from slams.contracts.envelope import ContractError, check_header, header, read_json, write_json
from slams.contracts.storage import writing
from slams.spec import Modality, StateSpec

FORMAT, VERSION = "slams-analysis", 1


@dataclass(frozen=True)
class Analysis:
    """An opened product."""

    path: Path
    spec: StateSpec
    time: np.ndarray
    n_members: int
    attributes: dict[str, Any]

    def write(self, members: np.ndarray, where: np.ndarray, x_MLCHW: np.ndarray) -> int:
        """Write some members at some times; returns the CRC32 of the bytes.

        Arguments:
            members: member numbers, (M,).
            where: positions on the time axis, (L,).
            x_MLCHW: physical units, in channel order.
        """
        group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        for modality in self.spec.modalities:
            values = x_MLCHW[:, :, self.spec.channels(modality.name)]
            shape = (*values.shape[:2], *field_shape(modality, self.spec.grid.shape))
            with writing(self.path):
                array(group, modality.name).oindex[members, where] = values.reshape(shape)
        return zlib.crc32(np.ascontiguousarray(x_MLCHW, np.float32).tobytes())

    def read(self, where: int) -> np.ndarray:
        """All members at one time, x_MCHW in physical units; NaN where not drawn yet."""
        with reading(self.path):
            group = zarr.open_group(self.path, mode="r", use_consolidated=False)
            parts = [np.asarray(array(group, m.name)[:, where]) for m in self.spec.modalities]
        shape = (self.n_members, -1, *self.spec.grid.shape)
        return np.concatenate([part.reshape(shape) for part in parts], axis=1)

    def finished(self, unit: str) -> dict[str, Any] | None:
        """The ledger's entry of a unit, or None."""
        path = self.path / "ledger" / f"{unit}.json"
        return read_json(path, "a ledger entry") if path.is_file() else None

    def close_unit(self, unit: str, entry: dict[str, Any]) -> None:
        """Enter a unit in the ledger, after its data."""
        write_json(self.path / "ledger" / f"{unit}.json", entry)

    @property
    def is_complete(self) -> bool:
        """Whether mean and spread were written, the last thing that is done."""
        return (self.path / "complete.json").is_file()

    def finish(self) -> None:
        """Write ensemble mean and spread, time by time, and consolidate the metadata."""
        group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        for where in range(len(self.time)):
            x_MCHW = self.read(where)
            spread = x_MCHW.std(axis=0, ddof=1) if self.n_members > 1 else np.zeros_like(x_MCHW[0])
            for modality in self.spec.modalities:
                shape, part = field_shape(modality, self.spec.grid.shape), self.spec.channels(modality.name)
                with writing(self.path):
                    array(group, f"{modality.name}_mean")[where] = x_MCHW[:, part].mean(axis=0).reshape(shape)
                    array(group, f"{modality.name}_spread")[where] = spread[part].reshape(shape)
        consolidate(self.path)
        write_json(self.path / "complete.json", {"times": len(self.time), "members": self.n_members})


def create(path: Path, spec: StateSpec, time: np.ndarray, n_members: int, attributes: dict[str, Any]) -> Analysis:
    """An empty product.

    Arguments:
        time: valid days, datetime64[D], increasing.
        attributes: ``config`` and the checksums of bundles and observations.
    """
    (path / "ledger").mkdir(parents=True)
    group = zarr.open_group(path, mode="a", zarr_format=3)
    write_axes(group, time, spec.grid.latitude, spec.grid.longitude)
    write_levels(group, spec)
    member = {"standard_name": "realization", "units": "1", "axis": "E"}
    write_coordinate(group, "member", np.arange(n_members, dtype=np.int32), member)
    for modality in spec.modalities:
        _create_fields(group, modality, spec, len(time), n_members)
    config = attributes.pop("config")
    found = header(FORMAT, VERSION, config) | {"Conventions": "CF-1.11", "spec": spec.to_json()}
    group.attrs.update(found | attributes)
    consolidate(path)
    return Analysis(path, spec, time, n_members, dict(group.attrs))


def _create_fields(group: zarr.Group, modality: Modality, spec: StateSpec, n_time: int, n_members: int) -> None:
    shape, names = field_shape(modality, spec.grid.shape), dimensions(modality)
    common = {"units": modality.units, "standard_name": modality.standard_name}
    layouts = {
        modality.name: ((n_members, n_time), ["member", "time"], "time: mean area: mean"),
        f"{modality.name}_mean": ((n_time,), ["time"], "time: mean area: mean realization: mean"),
        f"{modality.name}_spread": ((n_time,), ["time"], "time: mean area: mean realization: standard_deviation"),
    }
    for name, (lead, lead_names, cell_methods) in layouts.items():
        field = group.create_array(
            name,
            shape=(*lead, *shape),
            chunks=(*(1 for _ in lead), *shape),
            dtype="float32",
            fill_value=np.nan,
            compressors=codecs(),
            dimension_names=[*lead_names, *names],
        )
        field.attrs.update(common | {"cell_methods": cell_methods})


def open_analysis(path: str | Path) -> Analysis:
    """Open a product.

    Raises:
        ContractError: nothing there, another format or a newer version.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise ContractError(f"{path}: no analysis there; run `python -m sample` first")
    with reading(path):
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        attributes: dict[str, Any] = dict(group.attrs)
    check_header(attributes, FORMAT, VERSION, path)
    spec = StateSpec.from_json(attributes["spec"])
    return Analysis(path, spec, read_time(group), array(group, "member").shape[0], attributes)
