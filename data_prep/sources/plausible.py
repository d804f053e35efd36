"""What no single value tells: whether a field as a whole can be in the unit that its file says, and is all there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.sources.quantity import Quantity, SourceError

JUDGED_SHARE = 0.2  # of the Earth; the gauges of all continents cover a quarter, and no desert so much


def refuse_too_little(
    path: Path, quantity: Quantity, units: str, x_LHW: np.ndarray, axes: tuple[np.ndarray, np.ndarray]
) -> None:
    """Refuse samples whose mean over much of the Earth is less than it can be. A smaller region may be dry.

    Arguments:
        units: of the file, which are not what they say.
        x_LHW: in the canonical unit, NaN where nothing was observed.
        axes: latitude and longitude in degrees.

    Raises:
        SourceError: naming file, unit, mean, and what is possible.
    """
    if quantity.least_mean is None:
        return
    seen_LHW = np.isfinite(x_LHW)
    share_H = _cell_shares(*axes)
    observed = float(seen_LHW.sum(axis=(0, 2)) @ share_H)
    total = float(np.where(seen_LHW, x_LHW, 0).sum(axis=(0, 2), dtype=np.float64) @ share_H)
    if observed >= JUDGED_SHARE * len(x_LHW) and total < quantity.least_mean * observed:
        mean, least = (f"{value:.2g} {quantity.units}" for value in (total / observed, quantity.least_mean))
        raise SourceError(
            f"{path}: {quantity.name}: {mean} in the mean over what is observed, if it is in {units!r}; at least "
            f"{least} falls on so much of the Earth, so the unit is another, or the totals are of less than a day"
        )


def refuse_holes(
    path: Path, quantity: Quantity, x_LZHW: np.ndarray, time: np.ndarray, level_hpa: tuple[int, ...]
) -> None:
    """Refuse a map of which a part is missing, where the quantity is known everywhere or not at all.

    Arguments:
        time: of each sample.

    Raises:
        SourceError: naming file, level and day.
    """
    if not quantity.is_whole:
        return
    missing_LZ = np.isnan(x_LZHW).sum(axis=(-2, -1)).reshape(len(x_LZHW), -1)
    n_cells = x_LZHW.shape[-2] * x_LZHW.shape[-1]
    for sample, level in np.argwhere((missing_LZ > 0) & (missing_LZ < n_cells)):
        where = f" at {level_hpa[level]} hPa" if level_hpa else ""
        raise SourceError(
            f"{path}: {quantity.name}{where}: {missing_LZ[sample, level]} of {n_cells} cells have no value on "
            f"{time[sample].astype('datetime64[D]')}; all or none is allowed"
        )


def _cell_shares(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Share of the sphere of one cell of each row, (H,)."""
    if len(latitude) < 2 or len(longitude) < 2:
        return np.zeros(len(latitude))
    area = np.cos(np.deg2rad(latitude)) * np.deg2rad(abs(np.diff(latitude)).mean())
    return np.asarray(area * np.deg2rad(np.diff(longitude).min()) / (4 * np.pi))
