"""What an analysis has to beat: climatology, interpolated observations, interpolated anomalies, persistence.

Each baseline is given what the analysis was given and returns one field x_LCHW in physical units; the hardest to
beat, ensemble optimal interpolation, stands in `slams.enoi`. With observations y = H x + noise, climatology c, and I
the interpolation from where H observes to the full grid,

    climatology            c
    interpolation          I(y)
    anomaly interpolation  c + I(y - H c)
    persistence            the background, unchanged

I is bilinear, periodic in longitude, and knows at each pole the mean of the nearest row; values at stations go to
their cells first, departures with the H c of the station itself. It fits the noise: where observations are poor, both
interpolations may be worse than climatology.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from slams.contracts.archive import Archive
from slams.contracts.observations import Gridded, Observed, Stations
from slams.interpolate import binned, usable
from slams.localisation import mesh_points
from slams.observe import Interpolation, observe
from slams.spec import Grid, StateSpec
from slams.statistics import Statistics, day_features

SMALL = 1e-9  # instead of no weight at all


def climatology(statistics: Statistics, time: np.ndarray) -> np.ndarray:
    """The train years' smooth day-of-year climatology in physical units, x_LCHW.

    A channel standardised by its logarithm (rain) gets the exponential of its mean logarithm, which lies below
    the mean and nearer to the median: better in absolute error, worse in squared error.
    """
    return statistics.climatology(time)


def climatology_of(archive: Archive) -> Statistics:
    """An archive's own, or, where it was standardised by single numbers, one fitted to its train years."""
    statistics = archive.statistics()
    if statistics.harmonics.shape[-2:] == archive.spec.grid.shape:
        return statistics
    blocks = archive.blocks(archive.days("train"))
    fitted = fit_climatology((archive.time[block], archive.read(block)) for block in blocks)
    return Statistics(fitted.harmonics, fitted.std, fitted.log1p, statistics.observed, statistics.static)


def fit_climatology(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Statistics:
    """Mean and annual harmonics at each cell by least squares, for an archive standardised by single numbers.

    Statistics of kind ``scalar`` hold one mean a channel, far too weak to be called a climatology. What is
    returned stands in for them in `climatology`, and for nothing else: its standard deviations are 1.

    Arguments:
        blocks: (time (L,), x_LCHW in physical units) of the train years; missing values are left out cell by cell.
    """
    gram: np.ndarray | float = 0.0
    projection: np.ndarray | float = 0.0
    for time, x_LCHW in blocks:
        basis, known = day_features(time), ~np.isnan(x_LCHW)
        gram = gram + np.einsum("lj,lk,lchw->chwjk", basis, basis, known, optimize=True)
        projection = projection + np.einsum("lk,lchw->chwk", basis, np.where(known, x_LCHW, 0), optimize=True)
    gram, projection = np.asarray(gram), np.asarray(projection)
    # a millionth of a day keeps cells that were never observed solvable, with the answer 0
    solved = np.linalg.solve(gram + 1e-6 * np.eye(gram.shape[-1]), projection[..., None])[..., 0]
    n_channels = len(solved)
    return Statistics(
        harmonics=np.moveaxis(solved, -1, 0),
        std=np.ones((n_channels, 1, 1), np.float32),
        log1p=np.zeros(n_channels, bool),
        observed=gram[..., 0, 0] > 0,
    )


def interpolation(seen: Observed, spec: StateSpec, background_LCHW: np.ndarray) -> np.ndarray:
    """Observations interpolated to the full grid, x_LCHW of their modality.

    A missing observation takes the value of the nearest one present, by great-circle distance. A channel of which
    nothing was observed on a day takes the background.
    """
    seen, grid = binned(seen, spec) if isinstance(seen, Stations) else seen, spec.grid
    latitude, longitude = seen.operator.coordinates(grid)
    known = seen.mask & np.isfinite(seen.value)
    value_LCyx = _nearest_filled(np.where(known, seen.value, 0).astype(np.float64), known, latitude, longitude)
    x_LCHW = _bilinear(value_LCyx, latitude, longitude, grid)
    seen_at_all = known.any(axis=(-2, -1), keepdims=True)
    return np.where(seen_at_all, x_LCHW, background_LCHW).astype(np.float32)


def anomaly_interpolation(seen: Observed, spec: StateSpec, climatology_LCHW: np.ndarray) -> np.ndarray:
    """Climatology plus the interpolated departures of the observations from it, x_LCHW of their modality."""
    if isinstance(seen, Stations):
        departures: Observed = _departing_stations(seen, spec, climatology_LCHW)
    else:
        departures = replace(seen, value=seen.value - _on_grid(seen, climatology_LCHW))
    x_LCHW: np.ndarray = climatology_LCHW + interpolation(departures, spec, np.zeros_like(climatology_LCHW))
    return x_LCHW


def _on_grid(seen: Gridded, x_LCHW: np.ndarray) -> np.ndarray:
    """H(x)."""
    if seen.weight_HW is None:
        return observe(seen.operator, torch.from_numpy(x_LCHW)).numpy()
    counted = np.where(seen.weight_HW > 0, x_LCHW, 0).astype(np.float32)
    return observe(seen.operator, torch.from_numpy(counted), torch.from_numpy(seen.weight_HW)).numpy()


def _departing_stations(seen: Stations, spec: StateSpec, x_LCHW: np.ndarray) -> Stations:
    """Values less H(x) where they stand, not in the middle of their cells; what is not usable stays as it is.

    Neighbours of which nothing is known, as those at sea of a gauge on the coast, have no weight.
    """
    used, at = usable(seen, spec)
    _, *shape_CHW = x_LCHW.shape
    h = Interpolation(at, seen.frame[used], (shape_CHW[0], shape_CHW[1], shape_CHW[2]))
    known = np.isfinite(x_LCHW)
    total, weight = (h(torch.from_numpy(part)[None])[0].numpy() for part in (np.where(known, x_LCHW, 0), known * 1.0))
    value = seen.value.copy()
    value[used] -= np.where(weight > 0, total / np.maximum(weight, SMALL), np.nan)
    return replace(seen, value=value)


def persistence(background_CHW: np.ndarray, n_days: int) -> np.ndarray:
    """The background held over a window of days, x_LCHW: what is known without the observations."""
    return np.broadcast_to(background_CHW, (n_days, *background_CHW.shape)).copy()


def _nearest_filled(
    value_LCyx: np.ndarray, known: np.ndarray, latitude: np.ndarray, longitude: np.ndarray
) -> np.ndarray:
    """Values with each unknown one replaced by the nearest known one of its own day and channel."""
    filled, points = value_LCyx.copy(), mesh_points(latitude, longitude)
    for where in zip(*np.nonzero(~known.all(axis=(-2, -1)) & known.any(axis=(-2, -1))), strict=True):
        here = known[where].ravel()
        # chord length grows with the great-circle distance, so nearest by one is nearest by the other
        _, nearest = cKDTree(points[here]).query(points[~here])
        flat = filled[where].ravel()
        flat[~here] = flat[here][nearest]
        filled[where] = flat.reshape(filled[where].shape)
    return filled


def _bilinear(value_LCyx: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> np.ndarray:
    """Bilinear interpolation to the cell centres of a grid."""
    rows = value_LCyx.transpose(2, 3, 0, 1)
    north, south = (np.broadcast_to(row.mean(axis=0), row.shape)[None] for row in (rows[0], rows[-1]))
    rows = np.concatenate([north, rows, south])
    values = np.concatenate([rows[:, -1:], rows, rows[:, :1]], axis=1)
    west, east = longitude[-1] - 360, longitude[0] + 360
    axes = (-np.concatenate([[90.0], latitude, [-90.0]]), np.concatenate([[west], longitude, [east]]))
    where = np.stack(np.meshgrid(-grid.latitude, grid.longitude, indexing="ij"), axis=-1)
    x_LCHW: np.ndarray = RegularGridInterpolator(axes, values)(where).transpose(2, 3, 0, 1)
    return x_LCHW
