"""Standardisation: physical fields <-> dimensionless channels, from statistics of the train years alone.

A channel is standardised as  x' = (T(x) - m(day)) / s  with, by configuration,

* ``scalar``: m and s one number a channel (the published method; Qu et al. 2024),
* ``anomaly``: m a smooth climatology, a mean and two annual harmonics at each cell, and s the standard
  deviation of the departures from it, one number a channel,

and T the identity or log(1 + x) for precipitation, whose distribution is far from normal. Missing stays NaN.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load

from slams.tensors import save_tensors

Kind = Literal["scalar", "anomaly"]
N_HARMONICS = 2
DAYS_PER_YEAR = 365.2425


def day_features(time: np.ndarray) -> np.ndarray:
    """The annual cycle's basis at each valid time, (L, 1 + 2 N_HARMONICS): 1, cos, sin, cos 2, sin 2."""
    time = np.asarray(time, dtype="datetime64[D]")
    day = (time - time.astype("datetime64[Y]")).astype(np.float64) + 0.5
    phase = 2 * np.pi * day[:, None] / DAYS_PER_YEAR * np.arange(1, N_HARMONICS + 1)
    waves = np.stack([np.cos(phase), np.sin(phase)], axis=-1).reshape(len(time), -1)
    return np.concatenate([np.ones((len(time), 1)), waves], axis=1)


def transformed(x_LCHW: np.ndarray, log1p: np.ndarray) -> np.ndarray:
    """T(x): log(1 + x) in the channels marked so, (C,), and x itself in the others."""
    return np.where(log1p[:, None, None], np.log1p(np.maximum(x_LCHW, 0)), x_LCHW) if log1p.any() else x_LCHW


@dataclass(frozen=True)
class Statistics:
    """What turns physical fields into standardised channels and back.

    Arguments:
        harmonics: coefficients of `day_features`, (K, C, H, W) or, for ``scalar``, (1, C, 1, 1); T(units).
        std: standard deviation, (C, 1, 1); T(units).
        log1p: whether a channel is transformed by log(1 + x), (C,).
        observed: where a channel is ever observed (rain gauges: land), (C, H, W).
        static: fields that do not change, by name, (H, W): ``land_fraction`` (0 to 1), ``orography`` (m).
    """

    harmonics: np.ndarray
    std: np.ndarray
    log1p: np.ndarray
    observed: np.ndarray
    static: dict[str, np.ndarray] = field(default_factory=dict)

    def mean(self, time: np.ndarray) -> np.ndarray:
        """Climatological mean of T(x) at each valid time, (L, C, H, W) or (L, C, 1, 1)."""
        basis = day_features(time)[:, : len(self.harmonics)]
        found = np.empty((len(time), *self.harmonics.shape[1:]), np.float32)
        for channel, harmonics_KHW in enumerate(np.moveaxis(self.harmonics, 1, 0)):  # of all, float64 takes gigabytes
            found[:, channel] = np.tensordot(basis, harmonics_KHW, axes=1)
        return found

    def standardise(self, x_LCHW: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Physical units to dimensionless, NaN kept."""
        return ((transformed(x_LCHW, self.log1p) - self.mean(time)) / self.std).astype(np.float32)

    def physical(self, x_LCHW: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Dimensionless to physical units; the inverse of `standardise`."""
        transformed = x_LCHW * self.std + self.mean(time)
        if not self.log1p.any():
            return transformed.astype(np.float32)
        return np.where(self._log, np.expm1(np.where(self._log, transformed, 0)), transformed).astype(np.float32)

    def climatology(self, time: np.ndarray) -> np.ndarray:
        """The climatology in physical units, (L, C, H, W)."""
        zero = np.zeros((len(time), *self.observed.shape), np.float32)
        return self.physical(zero, time)

    @property
    def _log(self) -> np.ndarray:
        return self.log1p[:, None, None]

    def save(self, path: Path) -> None:
        """Write as safetensors.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        arrays = {"harmonics": self.harmonics, "std": self.std, "log1p": self.log1p, "observed": self.observed}
        arrays |= {f"static.{name}": value for name, value in self.static.items()}
        save_tensors(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote."""
        arrays = load(path.read_bytes())
        static = {name.removeprefix("static."): arrays.pop(name) for name in list(arrays) if "." in name}
        return cls(**arrays, static=static)

    @property
    def digest(self) -> str:
        """A short fingerprint of every number in it."""
        found = hashlib.sha256()
        for value in (self.harmonics, self.std, self.log1p, self.observed, *self.static.values()):
            found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()[:16]
