"""From many decoded files to one field a UTC day.

The files are joined in time, and the samples of a day become that day's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from data_prep.sources.decode import DEGREES_TOLERANCE, Piece, decode
from data_prep.sources.quantity import Quantity, SourceError
from data_prep.sources.times import DAY


def open_daily(
    paths: Sequence[str | Path], quantity: Quantity, level_hpa: Sequence[int] | None = None
) -> xr.DataArray:
    """The files as one daily field (time[, level], latitude, longitude), lazy, float32, canonical units.

    Arguments:
        paths: one file, Zarr store or URL of one, or many, in any order.
        quantity: what to read.
        level_hpa: pressure levels in the order wanted; None for a field without levels.

    Raises:
        SourceError: a file that cannot be used, or files that do not fit together.
    """
    if isinstance(paths, (str, Path)) or not len(paths):
        raise SourceError(f"paths: {paths!r} for {quantity.name}; a list of at least one file is needed")
    pieces = [decode(path, quantity, level_hpa) for path in paths]
    return _daily(*_join(pieces), quantity)


def _join(pieces: list[Piece]) -> tuple[xr.DataArray, np.ndarray]:
    """All samples in order of time, and the run of each."""
    for piece in pieces[1:]:
        _refuse_other_grid(pieces[0], piece)
    _refuse_mixed_steps(pieces)
    times = np.concatenate([piece.field["time"].values for piece in pieces])
    origin = np.repeat(np.arange(len(pieces)), [piece.field.sizes["time"] for piece in pieces])
    order = np.argsort(times, kind="stable")
    _refuse_duplicates(pieces, times[order], origin[order])
    joined = xr.concat(
        [piece.field for piece in pieces], "time", coords="minimal", compat="override", join="override"
    )
    if not np.array_equal(order, np.arange(order.size)):
        joined = joined.isel(time=order)
    return joined, np.array([piece.run for piece in pieces])[origin[order]]


def _refuse_other_grid(first: Piece, other: Piece) -> None:
    for dim in ("latitude", "longitude"):
        a, b = first.field[dim].values, other.field[dim].values
        if a.shape != b.shape or np.abs(a - b).max() > DEGREES_TOLERANCE:
            raise SourceError(f"{other.path}: {dim}: differs from {first.path}; files of one grid are needed")


def _refuse_mixed_steps(pieces: list[Piece]) -> None:
    """Files sampled 6-hourly beside files sampled daily would leave the daily ones looking incomplete."""
    found: dict[np.timedelta64, Path] = {}
    for piece in pieces:
        instants = np.unique(piece.field["time"].values)
        if instants.size > 1:
            found.setdefault(min(DAY, np.diff(instants).min()), piece.path)
    if len(found) > 1:
        steps = ", ".join(f"{step / np.timedelta64(1, 'h'):g} h in {path}" for step, path in found.items())
        raise SourceError(f"{pieces[0].field.name}: sampled every {steps}; one step for all files is allowed")


def _refuse_duplicates(pieces: list[Piece], times: np.ndarray, origin: np.ndarray) -> None:
    """Refuse an instant that stands twice, and a day that two runs claim."""
    days = times.astype("datetime64[D]")
    run = np.array([piece.run for piece in pieces])[origin]
    twice = (times[1:] == times[:-1]) | ((days[1:] == days[:-1]) & (run[1:] != run[:-1]))
    if twice.any():
        at = int(twice.argmax())
        files = " and ".join(dict.fromkeys(str(pieces[i].path) for i in (origin[at], origin[at + 1])))
        raise SourceError(f"{files}: {pieces[0].field.name}: day {days[at]} stands twice; once is allowed")


def _daily(samples: xr.DataArray, run: np.ndarray, quantity: Quantity) -> xr.DataArray:
    """Means over the UTC day; a day that lacks some of its samples is missing, not a mean of the rest."""
    times = samples["time"].values
    days, first = np.unique(times.astype("datetime64[D]"), return_index=True)
    if len(days) == len(times):
        daily, how = samples, "single value a day, taken as that day's value"
    else:
        instants = _lattice(times, days, quantity)
        n_a_day = instants.shape[1]
        full = samples if np.array_equal(instants.ravel(), times) else samples.reindex(time=instants.ravel())
        full = full.drop_vars("time")
        # a sum of strided slices, not a reshape: dask would first gather whole days into one block
        total = sum(full.isel(time=slice(i, None, n_a_day)) for i in range(n_a_day))
        daily, how = total / n_a_day, f"mean of {n_a_day} values a day"
    daily = daily.assign_coords(time=days.astype("datetime64[ns]"), run=("time", run[first].astype(str)))
    return daily.assign_attrs(samples.attrs | {"cell_methods": "time: mean", "daily_value": how})


def _lattice(times: np.ndarray, days: np.ndarray, quantity: Quantity) -> np.ndarray:
    """The instants that complete days would hold (day, sample), from the shortest step between two times."""
    step = np.diff(times).min()
    phase = (times - times.astype("datetime64[D]")).min() % step
    if DAY % step or ((times - times.astype("datetime64[D]") - phase) % step).any():
        raise SourceError(
            f"{quantity.name}: times every {step / np.timedelta64(1, 'h'):g} h, some off that step; "
            "an even division of the day is needed"
        )
    return days.astype("datetime64[ns]")[:, None] + phase + step * np.arange(DAY // step)
