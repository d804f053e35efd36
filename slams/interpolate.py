"""Where a point lies among the cells and levels of a grid: indices and weights, found once.

Horizontally bilinear between the four nearest cell centres, periodic in longitude. Beyond the last row of centres the
neighbours lie across the pole: the same row at longitude + 180 degrees. Vertically linear in the logarithm of pressure.
A point above the highest level or below the lowest is placed at that level and marked as outside: radiosondes report
such levels every day, so a table with them is not refused, but what would be extrapolated is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slams.contracts.gridded import Gridded, Operator
from slams.contracts.stations import Stations
from slams.spec import Grid, StateSpec


@dataclass(frozen=True)
class Placement:
    """The value at point n is the sum over k of weight[n, k] x[channel[n, k], cell[n, k]].

    Arguments:
        cell: of the flattened grid, (N, K).
        channel: of the modality, (N, K).
        weight: each row's sum is 1, (N, K).
        inside: whether the point lies within the levels' range, (N,).
    """

    cell: np.ndarray
    channel: np.ndarray
    weight: np.ndarray
    inside: np.ndarray


def place(
    latitude: np.ndarray, longitude: np.ndarray, level_hpa: np.ndarray, grid: Grid, levels_hpa: tuple[int, ...]
) -> Placement:
    """Place points on a grid and among the levels of a modality.

    Arguments:
        latitude, longitude, level_hpa: of the points, (N,); the pressure is not looked at where there are no levels.
        levels_hpa: of the modality, in channel order; empty for a field without levels.
    """
    cell, across = horizontal(latitude, longitude, grid)
    if not levels_hpa:
        return Placement(cell, np.zeros_like(cell), across, np.ones(len(cell), bool))
    channel, up, inside = vertical(level_hpa, levels_hpa)
    weight = (up[:, :, None] * across[:, None, :]).reshape(len(cell), 8)
    return Placement(np.tile(cell, (1, channel.shape[1])), np.repeat(channel, 4, axis=1), weight, inside)


def horizontal(latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The four cells around each point and their weights, each (N, 4)."""
    row = (grid.latitude[0] - latitude) / (grid.latitude[0] - grid.latitude[1])
    first = np.floor(row).astype(int)
    cells, weights = [], []
    for corner, south in ((first, 1 - (row - first)), (first + 1, row - first)):
        beyond = (corner < 0) | (corner >= grid.n_latitude)
        column = (longitude + 180 * beyond - grid.longitude[0]) / (grid.longitude[1] - grid.longitude[0])
        west = np.floor(column).astype(int)
        line = corner.clip(0, grid.n_latitude - 1) * grid.n_longitude
        cells += [line + west % grid.n_longitude, line + (west + 1) % grid.n_longitude]
        weights += [south * (1 - (column - west)), south * (column - west)]
    return np.stack(cells, axis=1), np.stack(weights, axis=1)


def vertical(level_hpa: np.ndarray, levels_hpa: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The channels above and below each point, their weights, each (N, 2), and whether it lies between levels, (N,)."""
    order = np.argsort(levels_hpa)
    log_p, known = np.log(np.asarray(level_hpa, np.float64)), np.log(np.asarray(levels_hpa, np.float64)[order])
    inside = (log_p >= known[0]) & (log_p <= known[-1])
    held = np.where(np.isnan(log_p), known[0], log_p.clip(known[0], known[-1]))
    below = np.searchsorted(known, held).clip(min(1, len(known) - 1))
    above = np.maximum(below - 1, 0)
    thickness = np.where(below > above, known[below] - known[above], 1.0)
    down = (held - known[above]) / thickness
    return np.stack([order[above], order[below]], axis=1), np.stack([1 - down, down], axis=1), inside


def usable(seen: Stations, spec: StateSpec) -> tuple[np.ndarray, Placement]:
    """Which values an analysis uses (N,), and where those lie: quality control passed, within the levels' range."""
    used = np.flatnonzero(seen.used)
    levels_hpa = spec.modality(seen.name).level_hpa
    at = place(seen.latitude[used], seen.longitude[used], seen.level_hpa[used], spec.grid, levels_hpa)
    inside = at.inside
    return used[inside], Placement(at.cell[inside], at.channel[inside], at.weight[inside], inside[inside])


def binned(seen: Stations, spec: StateSpec) -> Gridded:
    """Stations as a field on the full grid, for maps and for methods that know grids only.

    Each value counts for the cell it stands in and the level nearest in the logarithm of pressure; a cell with several
    has their mean, with the mean of their errors. Values outside the levels' range are left out.
    """
    used, at = usable(seen, spec)
    nearest = np.arange(len(used)), at.weight.argmax(axis=1)
    shape = (len(seen.days), spec.modality(seen.name).n_channels, spec.grid.n_latitude * spec.grid.n_longitude)
    flat = np.ravel_multi_index((seen.frame[used], at.channel[nearest], at.cell[nearest]), shape)
    count = np.bincount(flat, minlength=int(np.prod(shape)))
    full = (*shape[:2], *spec.grid.shape)

    def mean(part: np.ndarray) -> np.ndarray:
        total = np.bincount(flat, part[used], minlength=len(count))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32).reshape(full)

    return Gridded(seen.name, Operator("identity"), mean(seen.value), mean(seen.error_std), (count > 0).reshape(full))
