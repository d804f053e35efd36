"""Bundle: a trained network with all that its use needs, and no code and no pickle.

``weights.safetensors`` holds the averaged (``ema.``) and the last (``raw.``) weights, what is equal in both once
(``both.``); ``statistics.safetensors`` the standardisation, ``model.json`` the configuration, the specification,
checksums and provenance. A score network's bundle also names the autoencoder whose latents it learned, and their
standardisation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, load_file

from slams.contracts.archive import read_statistics
from slams.contracts.envelope import ContractError, check_header, header, read_json, sha256, write_json
from slams.contracts.storage import is_file, place, reading
from slams.spec import StateSpec
from slams.statistics import Statistics
from slams.tensors import save_tensors

FORMAT, VERSION = "slams-bundle", 2
DOCUMENT = "model.json"
BOTH = "both"
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `document` is model.json."""

    folder: Path
    document: dict[str, Any]

    @property
    def spec(self) -> StateSpec:
        return StateSpec.from_json(self.document["spec"])

    @property
    def checksum(self) -> str:
        """Fingerprint of the weights: what a latent shard set or a score bundle was made with."""
        return str(self.document["weights_sha256"])

    def statistics(self) -> Statistics:
        return read_statistics(self.folder, self.document["statistics_sha256"])

    def weights(self, which: str = "ema") -> Weights:
        """Arrays by parameter name.

        Raises:
            ContractError: the file is missing or its checksum is another.
        """
        path = self.folder / "weights.safetensors"
        if not is_file(path):
            raise ContractError(f"{path}: no such file; the weights are missing")
        with reading(path):
            checksum, found = _read(path)
        if checksum != self.checksum:
            raise ContractError(f"{path}: the checksum does not match; the file was changed or damaged")
        arrays = ((k.split(".", 1), v) for k, v in found().items())
        return {name: value for (kind, name), value in arrays if kind in (which, BOTH)}


def _read(path: Path) -> tuple[str, Callable[[], Weights]]:
    """Checksum of a file of weights and what reads it; that of a store is fetched once."""
    if isinstance(path, Path):
        return sha256(path), partial(load_file, path)
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), partial(load, data)


def write_bundle(
    folder: Path, weights: dict[str, Weights], spec: StateSpec, statistics: Statistics, document: dict[str, Any]
) -> None:
    """Write a bundle into a folder (usually one written aside).

    Arguments:
        weights: {"ema": ..., "raw": ...}, each arrays by parameter name.
        document: ``config``, ``model`` (the ModelConfig), ``input``, ``report``, and for a score network
            ``autoencoder`` (its checksum) and ``latent`` (mean and std a channel).
    """
    save_tensors(folder / "weights.safetensors", _once(weights))
    statistics.save(folder / "statistics.safetensors")
    config = document.pop("config")
    checksums = {
        "weights_sha256": sha256(folder / "weights.safetensors"),
        "statistics_sha256": sha256(folder / "statistics.safetensors"),
    }
    value = header(FORMAT, VERSION, config) | document | {"spec": spec.to_json()} | checksums
    write_json(folder / DOCUMENT, value)


def _once(weights: dict[str, Weights]) -> Weights:
    """Each array under its kind, or, where all kinds have the same one (what is fitted, not trained), once."""
    flat = {}
    for which, part in weights.items():
        for name, value in part.items():
            common = all(name in other and _same(value, other[name]) for other in weights.values())
            flat[f"{BOTH if common else which}.{name}"] = np.ascontiguousarray(value)
    return flat


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


def open_bundle(folder: str | Path) -> Bundle:
    """Open a bundle that lies in a folder or at a URL.

    Raises:
        ContractError: nothing there, another format or a newer version.
    """
    folder = place(folder)
    with reading(folder):
        document = read_json(folder / DOCUMENT, "a trained model (`python -m train`)")
    check_header(document, FORMAT, VERSION, folder)
    return Bundle(folder, document)


def check_same_make(bundle: Bundle, spec: StateSpec, statistics_sha256: str, other: str | Path) -> None:
    """Refuse a bundle whose channels or standardisation are not those of ``other``.

    Raises:
        ContractError: naming both and what differs.
    """
    if bundle.spec.digest != spec.digest:
        raise ContractError(
            f"{bundle.folder}: was trained on {', '.join(bundle.spec.channel_names)} at {bundle.spec.grid.shape}, "
            f"but {other} holds {', '.join(spec.channel_names)} at {spec.grid.shape}"
        )
    if bundle.document["statistics_sha256"] != statistics_sha256:
        raise ContractError(f"{bundle.folder}: was trained with other statistics than those of {other}")
