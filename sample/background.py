"""The first guess of the day before a segment: from an archive of states, or from an earlier analysis."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from slams.contracts.analysis import FORMAT as ANALYSIS
from slams.contracts.analysis import Analysis, drawn, open_analysis
from slams.contracts.archive import open_archive
from slams.contracts.envelope import ContractError, read_json
from slams.contracts.storage import place, reading
from slams.spec import StateSpec


class FirstGuess:
    """States by valid day, x_CHW in the channels of a specification; NaN in modalities that it does not hold.

    Arguments:
        path: an archive, or an analysis, of which the mean of the members is taken.

    Raises:
        ContractError: neither stands there, or on another grid or with other levels or units.
    """

    def __init__(self, path: str | Path, spec: StateSpec) -> None:
        self.path, self.spec = place(path), spec
        with reading(self.path):
            kind = read_json(self.path / "zarr.json", "a background").get("attributes", {}).get("format")
        self.source = open_analysis(self.path) if kind == ANALYSIS else open_archive(self.path)
        if isinstance(self.source, Analysis) and not self.source.is_complete:
            raise ContractError(f"{self.path}: is not finished; a background has to be")
        given = self.source.spec
        for name in given.names:
            if name in spec.names and (given.modality(name) != spec.modality(name) or given.grid != spec.grid):
                raise ContractError(f"{self.path}: {name} has not the model's levels, units or grid")
        if not set(given.names) & set(spec.names):
            raise ContractError(f"{self.path}: holds {', '.join(given.names)}, none of {', '.join(spec.names)}")

    @property
    def checksum(self) -> str:
        """Fingerprint of its states: of an analysis its ledger's, of an archive what it was made of and how."""
        if isinstance(self.source, Analysis):
            return self.source.fingerprint(np.arange(len(self.source.time)))
        told = [self.source.content, *(self.source.attributes.get(name) for name in ("archive_sha256", "config"))]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def read(self, day: np.datetime64) -> np.ndarray:
        """The state of a day.

        Raises:
            ContractError: that day is not there.
        """
        where = np.flatnonzero(self.source.time == day)
        if not len(where):
            raise ContractError(f"{self.path}: holds no background of {day}, the day before a segment with its halo")
        if isinstance(self.source, Analysis):
            members = self.source.read(int(where[0]))
            found = members[drawn(members)].mean(axis=0)
        else:
            found = self.source.read(where)[0]
        if np.isnan(found).all():
            raise ContractError(f"{self.path}: every value of {day} is missing; a background is needed there")
        x_CHW = np.full((self.spec.n_channels, *self.spec.grid.shape), np.nan, np.float32)
        for name in self.source.spec.names:
            if name in self.spec.names:
                x_CHW[self.spec.channels(name)] = found[self.source.spec.channels(name)]
        return x_CHW
