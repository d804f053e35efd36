"""From many decoded files to one field a UTC day: the mean of the day's samples, in order of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import dask.array
import numpy as np
import xarray as xr

from data_prep.sources.decode import DEGREES_TOLERANCE, Piece, decode, is_total
from data_prep.sources.quantity import Quantity, SourceError
from data_prep.sources.times import DAY

CHUNK_BYTES = 2**23  # of float32 that are read at once
NO_SAMPLE = -1


@dataclass(frozen=True)
class Days:
    """Daily means (day, [level,] latitude, longitude), still in their files, as dask wants an array.

    One object, and not a graph of one task a sample: an hourly archive of forty years has 350 000 of those.

    Arguments:
        pieces: the files.
        file, sample: which of the pieces, and which of its samples, (day, sample of the day); NO_SAMPLE for none.
    """

    pieces: list[Piece]
    file: np.ndarray
    sample: np.ndarray
    dtype: ClassVar[np.dtype[np.float32]] = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.file), *self.pieces[0].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        days = np.arange(len(self.file))[key[0]]
        means = self._means(np.atleast_1d(days))
        return means[(slice(None) if np.ndim(days) else 0, *key[1:])]

    def _means(self, days: np.ndarray) -> np.ndarray:
        """Of those days; a day that lacks some of its samples is missing, not a mean of the rest."""
        file, sample = self.file[days].ravel(), self.sample[days].ravel()
        n_a_day = self.file.shape[1]
        # a sum needs the precision of float64; a day's only sample is that already
        total = np.zeros((len(days), *self.shape[1:]), np.float32 if n_a_day == 1 else np.float64)
        for at, n in self._runs(file, sample):
            read = self.pieces[file[at]].read(sample[at], sample[at] + n)
            for i, values in enumerate(read, start=at):
                total[i // n_a_day] += values
        total[(self.file[days] == NO_SAMPLE).any(axis=1)] = np.nan
        return total if n_a_day == 1 else (total / n_a_day).astype(np.float32)

    def _runs(self, file: np.ndarray, sample: np.ndarray) -> Iterator[tuple[int, int]]:
        """First and number of consecutive samples of one file, as many as are read at once."""
        most = _n_at_once(self.shape)
        follows = (np.diff(file) == 0) & (np.diff(sample) == 1)
        for run in np.split(np.arange(len(file)), np.flatnonzero(~follows) + 1):
            if file[run[0]] != NO_SAMPLE:
                yield from ((at, min(most, run[-1] + 1 - at)) for at in range(run[0], run[-1] + 1, most))


def open_daily(paths: Sequence[str | Path], quantity: Quantity, level_hpa: Sequence[int] | None = None) -> xr.DataArray:
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
    pieces: list[Piece] = []
    for path in paths:
        piece = decode(path, quantity, level_hpa)
        pieces.append(_on_the_grid_of(pieces[0], piece) if pieces else piece)
    _refuse_mixed_steps(pieces)
    days, means, run = _by_day(pieces, quantity)
    _refuse_parts_of_days(pieces, means.file)
    levels = {} if level_hpa is None else {"level": ("level", np.asarray(level_hpa, int), {"units": "hPa"})}
    coords = {
        "time": days.astype("datetime64[ns]"),
        **levels,
        "latitude": pieces[0].latitude.degrees,
        "longitude": pieces[0].longitude.degrees,
        "run": ("time", run),
    }
    attributes = quantity.attributes | _of_the_day(pieces, means.file.shape[1])
    return xr.DataArray(_lazy(means), coords, ("time", *pieces[0].dims), quantity.name, attributes)


def _of_the_day(pieces: list[Piece], n_a_day: int) -> dict[str, str]:
    """What the attributes say of how a value stands for its day; `cell_methods` nothing that the files do not tell."""
    if n_a_day > 1:
        return {"cell_methods": "time: mean", "daily_value": f"mean of {n_a_day} values a day"}
    methods = {piece.over_time for piece in pieces}
    known = {"cell_methods": f"time: {methods.pop()}"} if len(methods) == 1 and "" not in methods else {}
    return known | {"daily_value": "single value a day, taken as that day's value"}


def _lazy(means: Days) -> dask.array.Array:
    """In blocks of whole maps along time."""
    chunks = (_n_at_once(means.shape), *means.shape[1:])
    return dask.array.from_array(means, chunks, name=False, meta=np.empty((0,) * means.ndim, np.float32))


def _n_at_once(shape: tuple[int, ...]) -> int:
    return max(1, CHUNK_BYTES // (4 * int(np.prod(shape[1:]))))


def _by_day(pieces: list[Piece], quantity: Quantity) -> tuple[np.ndarray, Days, np.ndarray]:
    """The days, their samples and the run of each."""
    time = np.concatenate([piece.time for piece in pieces])
    if not len(time):
        raise SourceError(f"{pieces[0].path}: {quantity.name}: not a single time; at least one is needed")
    file = np.repeat(np.arange(len(pieces)), [len(piece.time) for piece in pieces])
    sample = np.concatenate([np.arange(len(piece.time)) for piece in pieces])
    order = np.argsort(time, kind="stable")
    time, file, sample = time[order], file[order], sample[order]
    _refuse_duplicates(pieces, time, file)
    days, first = np.unique(time.astype("datetime64[D]"), return_index=True)
    wanted = time[:, None] if len(days) == len(time) else _lattice(time, days, quantity)
    at = np.searchsorted(time, wanted).clip(max=len(time) - 1)
    there = time[at] == wanted
    run = np.array([piece.run for piece in pieces])[file[first]]
    return days, Days(pieces, np.where(there, file[at], NO_SAMPLE), np.where(there, sample[at], NO_SAMPLE)), run


def _on_the_grid_of(first: Piece, other: Piece) -> Piece:
    """The other, with the first one's axes: those of every day's file would take more room than all else."""
    for dim in ("latitude", "longitude"):
        a, b = getattr(first, dim).degrees, getattr(other, dim).degrees
        if a.shape != b.shape or np.abs(a - b).max() > DEGREES_TOLERANCE:
            raise SourceError(f"{other.path}: {dim}: differs from {first.path}; files of one grid are needed")
    latitude, longitude = other.latitude.shared(first.latitude), other.longitude.shared(first.longitude)
    return replace(other, latitude=latitude, longitude=longitude)


def _refuse_mixed_steps(pieces: list[Piece]) -> None:
    """Files sampled 6-hourly beside files sampled daily would leave the daily ones looking incomplete."""
    found: dict[np.timedelta64, Path] = {}
    for piece in pieces:
        instants = np.unique(piece.time)
        if instants.size > 1:
            found.setdefault(min(DAY, np.diff(instants).min()), piece.path)
    if len(found) > 1:
        steps = ", ".join(f"{step / np.timedelta64(1, 'h'):g} h in {path}" for step, path in found.items())
        raise SourceError(f"{pieces[0].quantity.name}: sampled every {steps}; one step for all files is allowed")


def _refuse_parts_of_days(pieces: list[Piece], file: np.ndarray) -> None:
    """A mean of totals of parts of a day, each in a file of its own, would be a part of the day's total."""
    totals = [piece for piece in pieces if is_total(piece.units, piece.over_time, piece.quantity)]
    if file.shape[1] > 1 and totals:
        raise SourceError(
            f"{totals[0].path}: {totals[0].quantity.name}: totals in {totals[0].units!r}, {file.shape[1]} a day with "
            "those of the other files; one a day is allowed"
        )


def _refuse_duplicates(pieces: list[Piece], times: np.ndarray, origin: np.ndarray) -> None:
    """Refuse an instant that stands twice, and a day that two runs claim."""
    days = times.astype("datetime64[D]")
    run = np.array([piece.run for piece in pieces])[origin]
    twice = (times[1:] == times[:-1]) | ((days[1:] == days[:-1]) & (run[1:] != run[:-1]))
    if twice.any():
        at = int(twice.argmax())
        files = " and ".join(dict.fromkeys(str(pieces[i].path) for i in (origin[at], origin[at + 1])))
        raise SourceError(f"{files}: {pieces[0].quantity.name}: day {days[at]} stands twice; once is allowed")


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
