"""Regridding between latitude-longitude grids, aware of missing values: conservative, bilinear, nearest.

Each method is a sparse matrix w[target cell, source cell] whose rows are shares of the target's weight, so that with
m = 1 where the source x is observed and 0 elsewhere

    target = w (m x) / w m,    observed share of the target's weight = w m.

Any ratio of resolutions works, finer targets included; longitude is periodic; latitude runs either way.

* conservative: the share of the target cell's area that lies in the source cell, a product of an overlap of
  sin(latitude) and one of longitude. First-order scheme of Jones (1999),
  doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2.
* bilinear: linear in latitude and in longitude between the four source centres around the target's. Beyond the last
  row of centres the next row is that across the pole, on the opposite meridian (cdo takes a distance-weighted mean of
  four points there). Nothing is extrapolated beyond the outermost centres of a region.
* nearest: the source centre at the least distance on the sphere. A target outside all source cells has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import xarray as xr
from scipy.sparse import coo_array, csr_array, kron

from slams.spec import Grid

HORIZONTAL = ("latitude", "longitude")
GAP_RATIO = 1.5  # a step between meridians that is this much wider than usual is a gap, not a cell
DECIMALS = 9  # of a degree: a target on a source's centre is on it, whatever the rounding
Method = Literal["conservative", "bilinear", "nearest"]


@dataclass(frozen=True)
class RegridConfig:
    """How each modality comes onto the grid: by area means, which keep its global mean, or by values at points."""

    temperature: Method = "conservative"
    precipitation: Method = "conservative"
    olr: Method = "conservative"


def regrid(
    field: xr.DataArray, grid: Grid, method: Method = "conservative", min_observed_share: float = 0.5
) -> xr.DataArray:
    """The field on the cells of the grid, lazily where the field is lazy.

    Arguments:
        field: (..., latitude, longitude) at cell centres in degrees, global or regional, NaN where missing.
        grid: target.
        method: conservative for cell means, bilinear to finer grids, nearest for classes.
        min_observed_share: least share of a target's weight that must be observed for it to have a value.

    Returns:
        Field (..., latitude, longitude) on the grid, float32, NaN where too little was observed.

    Raises:
        ValueError: min_observed_share is not within 0 (exclusive) to 1.
    """
    if not 0.0 < min_observed_share <= 1.0:
        raise ValueError(f"min_observed_share: {min_observed_share}; more than 0 and at most 1 is allowed")
    return _apply(_mean, field, grid, method, min_share=min_observed_share)


def conservative(field: xr.DataArray, grid: Grid, min_observed_share: float = 0.5) -> xr.DataArray:
    """Area means over the cells of the grid; see `regrid`."""
    return regrid(field, grid, "conservative", min_observed_share)


def bilinear(field: xr.DataArray, grid: Grid, min_observed_share: float = 0.5) -> xr.DataArray:
    """Values at the centres of the grid's cells, by bilinear interpolation; see `regrid`."""
    return regrid(field, grid, "bilinear", min_observed_share)


def nearest(field: xr.DataArray, grid: Grid, min_observed_share: float = 0.5) -> xr.DataArray:
    """The value at the nearest source centre, which may be missing; see `regrid`."""
    return regrid(field, grid, "nearest", min_observed_share)


def observed_share(field: xr.DataArray, grid: Grid, method: Method = "conservative") -> xr.DataArray:
    """Share 0..1 of each target's weight over which the field has values, as `regrid` counts it."""
    return _apply(_share, field, grid, method).drop_attrs(deep=False).rename("observed_share")


def weights(latitude: np.ndarray, longitude: np.ndarray, grid: Grid, method: Method = "conservative") -> csr_array:
    """The method's matrix (target cell, source cell), both row by row; a row's sum is the share that is covered.

    Arguments:
        latitude, longitude: centres of the source's cells in degrees; longitude ascending within one turn.
    """
    latitude, longitude = np.asarray(latitude, float), np.asarray(longitude, float)
    found = csr_array(METHODS[method](latitude, longitude, grid))
    found.eliminate_zeros()  # what counts nothing may be missing: 0 times NaN
    return found


def latitude_cells(centres: np.ndarray) -> np.ndarray:
    """South and north edge of each row in degrees (row, 2): midpoints, and at the ends half a step further.

    No edge passes a pole, and a row that leaves less than half a step to the pole reaches it: the first row
    of a Gaussian grid covers the cap.
    """
    edges = _midpoints(np.asarray(centres, float))
    for end, step in ((0, edges[1] - edges[0]), (-1, edges[-1] - edges[-2])):
        if 90.0 - abs(edges[end]) < abs(step) / 2:
            edges[end] = np.copysign(90.0, edges[end])
    return np.sort(_pairs(edges), axis=1)


def longitude_cells(centres: np.ndarray) -> np.ndarray:
    """West and east edge of each column in degrees (column, 2), the circle closed where the columns close it.

    Arguments:
        centres: ascending within one turn; a regional field may lie across the meridian of Greenwich.
    """
    centres = np.asarray(centres, float)
    steps = np.diff(centres, append=centres[0] + 360.0)
    widest = int(np.argmax(steps))
    if not _is_gap(steps)[widest]:
        middles = centres + steps / 2
        return np.stack([np.roll(middles, 1) - np.r_[360.0, np.zeros(len(steps) - 1)], middles], axis=1)
    start = widest + 1  # the region begins east of its gap
    unrolled = np.roll(np.r_[centres[:start] + 360.0, centres[start:]], -start)
    return np.roll(_pairs(_midpoints(unrolled)), start, axis=0)


def overlap(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Length that each target interval (n, 2) shares with each source interval (m, 2): (n, m)."""
    low = np.maximum(target[:, None, 0], source[None, :, 0])
    high = np.minimum(target[:, None, 1], source[None, :, 1])
    return np.maximum(high - low, 0.0)


def _is_gap(steps: np.ndarray) -> np.ndarray:
    return np.asarray(steps > GAP_RATIO * np.median(steps))


def _midpoints(centres: np.ndarray) -> np.ndarray:
    """Edges (n + 1,) half way between the centres (n,), and half a step beyond the first and the last."""
    middles = (centres[:-1] + centres[1:]) / 2
    return np.r_[2 * centres[0] - middles[0], middles, 2 * centres[-1] - middles[-1]]


def _pairs(edges: np.ndarray) -> np.ndarray:
    """Consecutive edges (n + 1,) as intervals (n, 2), the smaller edge first."""
    return np.sort(np.stack([edges[:-1], edges[1:]], axis=1), axis=1)


# ---- the three matrices


def _conservative(latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> csr_array:
    sin_source = np.sin(np.deg2rad(latitude_cells(latitude)))
    sin_target = np.sin(np.deg2rad(_pairs(grid.latitude_bounds)))
    source, target = longitude_cells(longitude), _pairs(grid.longitude_bounds)
    zonal = np.sum([overlap(target, source + 360.0 * turn) for turn in (-1, 0, 1)], axis=0)
    return csr_array(kron(_shares(overlap(sin_target, sin_source), sin_target), _shares(zonal, target), "csr"))


def _shares(lengths: np.ndarray, target: np.ndarray) -> csr_array:
    return csr_array(lengths / np.diff(target, axis=1))


def _bilinear(latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> coo_array:
    position, rows, across = _rows_and_across(latitude)
    below, row_weight = _between(grid.latitude, position)
    ends = {False: _columns(grid.longitude, longitude), True: _columns(grid.longitude + 180.0, longitude)}
    n_rows, n_columns = len(latitude), len(longitude)
    entries = []
    for i, j in product((0, 1), (0, 1)):
        at, turned = rows[below + i], across[below + i][:, None]
        column, column_weight = (np.where(turned, a, b) for a, b in zip(ends[True][j], ends[False][j], strict=True))
        entries.append((at[:, None] * n_columns + column, row_weight[i][:, None] * column_weight))
    cells = np.arange(grid.n_latitude * grid.n_longitude)
    source, weight = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*entries, strict=True))
    return coo_array((weight, (np.tile(cells, 4), source)), shape=(len(cells), n_rows * n_columns))


def _rows_and_across(latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows from south to north: their latitudes, their places in the source, and whether they lie across a pole.

    A last row whose cell reaches the pole stands a second time, behind the pole.
    """
    order = np.argsort(latitude)
    cells = latitude_cells(latitude)
    found = [(latitude[row], row, False) for row in order]
    for row, pole in ((order[0], -90.0), (order[-1], 90.0)):
        if pole in cells[row] and latitude[row] != pole:
            found.append((2 * pole - latitude[row], row, True))
    position, rows, across = (np.array(part) for part in zip(*sorted(found), strict=True))
    return position, rows, across


def _between(target: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The centre (ascending) below each target, and the weights of that and the next one, 0 outside all centres."""
    target, centres = np.round(target, DECIMALS), np.round(centres, DECIMALS)
    below = np.clip(np.searchsorted(centres, target, "right") - 1, 0, len(centres) - 2)
    above = (target - centres[below]) / (centres[below + 1] - centres[below])
    inside = (above >= 0) & (above <= 1)
    return below, (np.where(inside, 1 - above, 0.0), np.where(inside, above, 0.0))


def _columns(target: np.ndarray, centres: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(column, weight) of the centres west and east of each target; in a region's gap only on its edges."""
    n = len(centres)
    circle = np.r_[centres, centres[0] + 360.0]
    turned = np.round(target - centres[0], DECIMALS) % 360.0 + centres[0]
    west, (west_weight, east_weight) = _between(turned, circle)
    gap = _is_gap(np.diff(circle))[west]
    west_weight = np.where(gap & (west_weight < 1), 0.0, west_weight)
    east_weight = np.where(gap & (east_weight < 1), 0.0, east_weight)
    return (west, west_weight), ((west + 1) % n, east_weight)


def _nearest(latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> coo_array:
    """Cosine of the distance to a row is proportional to cos(row - psi) with tan(psi) = tan(lat) / cos(difference).

    So the column is the nearest in longitude whatever the row, and the row is that nearest to psi, poleward of lat.
    """
    apart = np.abs((grid.longitude[:, None] - longitude + 180.0) % 360.0 - 180.0)
    column = np.argmin(np.round(apart, DECIMALS), axis=1)
    nearest_apart = np.deg2rad(apart[np.arange(len(column)), column])
    phi = np.deg2rad(grid.latitude)[:, None]
    psi = np.rad2deg(np.arctan2(np.sin(phi), np.cos(phi) * np.cos(nearest_apart)))
    order = np.argsort(latitude)
    middles = (latitude[order][1:] + latitude[order][:-1]) / 2
    row = order[np.searchsorted(middles, psi)]
    inside = _covered(grid.latitude, latitude_cells(latitude))[:, None]
    inside = inside & _covered(grid.longitude, *(longitude_cells(longitude) + turn for turn in (-360, 0, 360)))
    cells = np.arange(inside.size)
    shape = (len(cells), len(latitude) * len(longitude))
    return coo_array((inside.ravel().astype(float), (cells, (row * len(longitude) + column).ravel())), shape=shape)


def _covered(target: np.ndarray, *cells: np.ndarray) -> np.ndarray:
    """Which targets lie in a cell (n, 2)."""
    intervals = np.round(np.concatenate(cells), DECIMALS)
    return np.any((target[:, None] >= intervals[:, 0]) & (target[:, None] <= intervals[:, 1]), axis=1)


METHODS: dict[Method, Callable[[np.ndarray, np.ndarray, Grid], csr_array | coo_array]] = {
    "conservative": _conservative,
    "bilinear": _bilinear,
    "nearest": _nearest,
}


# ---- their use


def _apply(
    function: Callable[..., np.ndarray], field: xr.DataArray, grid: Grid, method: Method, **options: float
) -> xr.DataArray:
    """Apply function(field by field, matrix) block by block over every dimension but the horizontal ones."""
    matrix = weights(field["latitude"].values, field["longitude"].values, grid, method)
    lazy = field.chunk({dim: -1 for dim in HORIZONTAL}) if field.chunks is not None else field
    target = xr.apply_ufunc(
        function,
        lazy,
        kwargs={"matrix": matrix, "shape": grid.shape, **options},
        input_core_dims=[HORIZONTAL],
        output_core_dims=[HORIZONTAL],
        exclude_dims=set(HORIZONTAL),
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": dict(zip(HORIZONTAL, grid.shape, strict=True))},
        keep_attrs=True,
    )
    return target.assign_coords(latitude=grid.latitude, longitude=grid.longitude)


def _mean(values: np.ndarray, matrix: csr_array, shape: tuple[int, int], min_share: float) -> np.ndarray:
    whole = matrix.sum(axis=1)
    target = np.full((*values.shape[:-2], matrix.shape[0]), np.nan, np.float32)
    for at, field in _fields(values):
        observed = np.isfinite(field)
        share = whole if observed.all() else matrix @ observed.astype(float)
        enough = share >= min_share * (1 - 1e-9)  # a cell covered to exactly the limit counts, whatever the rounding
        total = matrix @ np.where(observed, field, 0.0)
        target[at][enough] = total[enough] / share[enough]
    return target.reshape(*values.shape[:-2], *shape)


def _share(values: np.ndarray, matrix: csr_array, shape: tuple[int, int]) -> np.ndarray:
    target = np.empty((*values.shape[:-2], matrix.shape[0]), np.float32)
    for at, field in _fields(values):
        target[at] = matrix @ np.isfinite(field).astype(float)
    return target.reshape(*values.shape[:-2], *shape)


def _fields(values: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each horizontal field, flat, float64, with its place: one at a time, so that a block costs no second one."""
    for at in np.ndindex(values.shape[:-2]):
        yield at, values[at].ravel().astype(float)
