"""First-order conservative regridding between latitude-longitude grids, aware of missing values.

A target cell is the mean of the source cells weighted by the area they share with it. On latitude-longitude
grids that area is a product of a meridional and a zonal overlap,

    w[i, j; k, l] = A[i, k] B[j, l],    A = overlap of sin(latitude),  B = overlap of longitude (periodic),

so that with m = 1 where the source x is observed and 0 elsewhere

    target = A (m x) B' / A m B',    observed share of the cell's area = A m B' / (area of the cell).

Any ratio of resolutions works, finer targets included. Reference: Jones (1999), first-order scheme,
doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from slams.spec import Grid

HORIZONTAL = ("latitude", "longitude")
GAP_RATIO = 1.5  # a step between meridians that is this much wider than usual is a gap, not a cell


@dataclass(frozen=True)
class Overlaps:
    """The two factors of the overlap weights, each row a share of its target cell.

    Arguments:
        meridional: A (target row, source row); a row's sum is the share of the cell that the source covers.
        zonal: B (target column, source column), likewise.
    """

    meridional: np.ndarray
    zonal: np.ndarray

    @classmethod
    def between(cls, latitude: np.ndarray, longitude: np.ndarray, grid: Grid) -> Overlaps:
        """Overlaps of the cells around the source's centres (degrees) with the cells of the grid."""
        sin_source = np.sin(np.deg2rad(latitude_cells(latitude)))
        sin_target = np.sin(np.deg2rad(_pairs(grid.latitude_bounds)))
        source, target = longitude_cells(longitude), _pairs(grid.longitude_bounds)
        turns = (overlap(target, source + 360.0 * turn) for turn in (-1, 0, 1))
        return cls(_shares(overlap(sin_target, sin_source), sin_target), _shares(sum(turns), target))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Sum of the values (..., source row, source column) over each target cell, by share."""
        return self.meridional @ values @ self.zonal.T


def conservative(field: xr.DataArray, grid: Grid, min_observed_share: float = 0.5) -> xr.DataArray:
    """The field's area means over the cells of the grid, lazily where the field is lazy.

    Arguments:
        field: (..., latitude, longitude) cell means at cell centres in degrees, global or regional, NaN where
            missing.
        grid: target.
        min_observed_share: least share of a target cell's area that must be observed for it to have a value.

    Returns:
        Field (..., latitude, longitude) on the grid, float32, NaN where too little was observed.

    Raises:
        ValueError: min_observed_share is not within 0 (exclusive) to 1.
    """
    if not 0.0 < min_observed_share <= 1.0:
        raise ValueError(f"min_observed_share: {min_observed_share}; more than 0 and at most 1 is allowed")
    return _apply(_means, field, grid, min_share=min_observed_share)


def observed_share(field: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Share 0..1 of each target cell's area over which the field has values, as `conservative` counts it."""
    return _apply(_observed, field, grid).drop_attrs(deep=False).rename("observed_share")


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
    if steps[widest] <= GAP_RATIO * np.median(steps):
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


def _midpoints(centres: np.ndarray) -> np.ndarray:
    """Edges (n + 1,) half way between the centres (n,), and half a step beyond the first and the last."""
    middles = (centres[:-1] + centres[1:]) / 2
    return np.r_[2 * centres[0] - middles[0], middles, 2 * centres[-1] - middles[-1]]


def _pairs(edges: np.ndarray) -> np.ndarray:
    """Consecutive edges (n + 1,) as intervals (n, 2), the smaller edge first."""
    return np.sort(np.stack([edges[:-1], edges[1:]], axis=1), axis=1)


def _shares(lengths: np.ndarray, target: np.ndarray) -> np.ndarray:
    return lengths / np.diff(target, axis=1)


def _apply(
    function: Callable[..., np.ndarray], field: xr.DataArray, grid: Grid, **options: float
) -> xr.DataArray:
    """Apply function(values, overlaps) block by block over every dimension but the horizontal ones."""
    overlaps = Overlaps.between(field["latitude"].values, field["longitude"].values, grid)
    lazy = field.chunk({dim: -1 for dim in HORIZONTAL}) if field.chunks is not None else field
    target = xr.apply_ufunc(
        function,
        lazy,
        kwargs={"overlaps": overlaps, **options},
        input_core_dims=[HORIZONTAL],
        output_core_dims=[HORIZONTAL],
        exclude_dims=set(HORIZONTAL),
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": dict(zip(HORIZONTAL, grid.shape, strict=True))},
        keep_attrs=True,
    )
    return target.assign_coords(latitude=grid.latitude, longitude=grid.longitude)


def _means(values: np.ndarray, overlaps: Overlaps, min_share: float) -> np.ndarray:
    observed = np.isfinite(values)
    complete = np.ones(values.shape[-2:])  # one map serves a block without gaps: half the work
    share = overlaps(complete if observed.all() else observed.astype(float))
    total = overlaps(np.where(observed, values, 0.0).astype(float))
    enough = share >= min_share - 1e-9  # a cell covered to exactly the limit counts, whatever the rounding
    mean = np.divide(total, share, out=np.full_like(total, np.nan), where=enough)
    return mean.astype(np.float32)


def _observed(values: np.ndarray, overlaps: Overlaps) -> np.ndarray:
    return overlaps(np.isfinite(values).astype(float)).astype(np.float32)
