"""GRIB files through cfgrib: messages chosen by their headers, accumulations turned into daily rates.

The time of a message is the middle of the interval it stands for, so that rain accumulated from 18 to 24 UTC
counts for the day it fell on and not for the next one; for an instantaneous field it is the valid time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path

import cfgrib
import eccodes
import numpy as np
import xarray as xr

from data_prep.sources.quantity import MissingVariableError, Quantity, SourceError

# the most informative first, where a file holds the same field several ways
STEP_TYPES = ("accum", "avg", "instant")
MINUTES_PER_DAY = 1440
CELL_METHODS = {"accum": "time: mean", "avg": "time: mean", "instant": "time: point"}  # an accumulation becomes a rate
DAILY_UNITS = {"kg m**-2": "kg m-2 day-1", "m": "m/day"}


@dataclass(frozen=True)
class Header:
    """What of a message decides whether it is read, and how."""

    short_name: str
    type_of_level: str
    step_type: str
    interval_minutes: int


@dataclass(frozen=True)
class Message:
    """What tells a message from the others of its kind.

    Arguments:
        base, step: whose sum is the time at its end, in whole minutes.
        level, member: as the file numbers them.
        version: of the experiment, `expver`; empty where the file does not say.
    """

    header: Header
    base: np.datetime64
    step: np.timedelta64
    level: str
    member: str
    version: str


def open_grib(path: Path, quantity: Quantity) -> tuple[xr.Dataset, str]:
    """The quantity's messages as a dataset over valid time, and the variable's name in it.

    Raises:
        SourceError: torn file, no such message, several accumulation intervals, a message twice, no latitude-longitude
            grid.
    """
    messages = list(_messages(path))
    header = _choose(path, quantity, sorted({message.header for message in messages}, key=str))
    messages = [message for message in messages if message.header == header]
    _refuse_repeated(path, messages)
    keys = {
        "shortName": header.short_name,
        "typeOfLevel": header.type_of_level,
        "stepType": header.step_type,
    }
    # an empty indexpath keeps cfgrib from writing an index beside the user's file
    options = {"filter_by_keys": keys, "indexpath": ""}
    try:
        dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs=options)
    except (cfgrib.DatasetBuildError, eccodes.CodesInternalError) as error:
        raise SourceError(f"{path}: messages of {quantity.name} form no single field: {error}") from error
    name = next(iter(dataset.data_vars))
    field = _along_valid_time(dataset[name], header, {(message.base, message.step) for message in messages})
    field = _as_rate(path, field, header).assign_attrs(cell_methods=CELL_METHODS[header.step_type])
    return field.to_dataset(name=name), str(name)


def _messages(path: Path) -> Iterator[Message]:
    with path.open("rb") as file:
        while True:
            try:
                handle = eccodes.codes_grib_new_from_file(file, headers_only=True)
                if handle is None:
                    return
                message = _message(handle)
            except (eccodes.CodesInternalError, ValueError) as error:  # ValueError: no such date
                raise SourceError(f"{path}: torn or damaged GRIB file: {error}") from error
            yield message
            eccodes.codes_release(handle)


def _message(handle: int) -> Message:
    kind = [eccodes.codes_get(handle, key, str) for key in ("shortName", "typeOfLevel", "stepType")]
    level, member, version = (
        eccodes.codes_get(handle, key, str) if eccodes.codes_is_defined(handle, key) else ""
        for key in ("level", "number", "expver")
    )
    eccodes.codes_set(handle, "stepUnits", "m")  # minutes: the one unit in which every interval is whole
    date, time, start, end = (
        eccodes.codes_get(handle, key, int) for key in ("dataDate", "dataTime", "startStep", "endStep")
    )
    base = np.datetime64(datetime.strptime(f"{date:08d}{time:04d}", "%Y%m%d%H%M"), "m")
    header = Header(*kind, end - start if kind[2] != "instant" else 0)
    return Message(header, base, np.timedelta64(end, "m"), level, member, version)


def _refuse_repeated(path: Path, messages: list[Message]) -> None:
    """Of the same field twice, as where preliminary and final data were joined, cfgrib takes the first, unasked."""
    seen: dict[tuple[np.datetime64, np.timedelta64, str, str], Message] = {}
    for message in messages:
        first = seen.setdefault((message.base, message.step, message.level, message.member), message)
        if first is not message:
            kind, versions = message.header, sorted({first.version, message.version})
            said = f" (expver {' and '.join(versions)})" if len(versions) > 1 else ""
            raise SourceError(
                f"{path}: {kind.short_name} at {kind.type_of_level} {message.level} of {message.base + message.step} "
                f"stands twice{said}; once is allowed"
            )


def _choose(path: Path, quantity: Quantity, headers: list[Header]) -> Header:
    """The one kind of message to read: best name first, then best kind of step."""
    for short_name, level in quantity.grib:
        named = [h for h in headers if (h.short_name, h.type_of_level) == (short_name, level)]
        for step_type in STEP_TYPES:
            found = [h for h in named if h.step_type == step_type]
            if len(found) > 1:
                minutes = ", ".join(str(h.interval_minutes) for h in found)
                raise SourceError(f"{path}: {short_name} over intervals of {minutes} minutes; one is allowed")
            if found:
                return found[0]
    wanted = ", ".join(f"{name} at {level}" for name, level in quantity.grib)
    present = ", ".join(sorted({f"{h.short_name} at {h.type_of_level}" for h in headers}))
    raise MissingVariableError(f"{path}: no {quantity.name}: it has {present}; allowed are {wanted}")


def _along_valid_time(
    field: xr.DataArray, header: Header, messages: set[tuple[np.datetime64, np.timedelta64]]
) -> xr.DataArray:
    """Base time and forecast step, either of which may be a dimension, folded into one time.

    Arguments:
        messages: base and step of those that are there; cfgrib fills up the rectangle of them with missing values.
    """
    missing = [dim for dim in ("time", "step") if dim not in field.dims]
    base, step = np.atleast_1d(field["time"].values), np.atleast_1d(field["step"].values)
    pairs = product(base.astype("datetime64[m]"), step.astype("timedelta64[m]"))
    there = np.flatnonzero([pair in messages for pair in pairs])
    valid = (base[:, None] + step[None, :]).ravel() - np.timedelta64(header.interval_minutes, "m") // 2
    field = field.drop_vars(set(field.coords) - {*field.dims, header.type_of_level})
    field = field.chunk({dim: 1 for dim in ("time", "step") if dim in field.dims})
    field = field.expand_dims(missing).drop_vars(["time", "step"], errors="ignore")
    field = field.stack(instant=("time", "step"), create_index=False).rename(instant="time")
    return field.assign_coords(time=valid.astype("datetime64[ns]")).isel(time=there)


def _as_rate(path: Path, field: xr.DataArray, header: Header) -> xr.DataArray:
    """An accumulation over the message's interval as an amount per day; anything else unchanged."""
    if header.step_type != "accum":
        return field
    units = field.attrs.get("units")
    if units not in DAILY_UNITS or header.interval_minutes < 1:
        raise SourceError(
            f"{path}: {header.short_name} accumulates {units} over {header.interval_minutes} minutes; "
            f"allowed is {' or '.join(DAILY_UNITS)} over at least one minute"
        )
    rate = field * (MINUTES_PER_DAY / header.interval_minutes)
    return rate.assign_attrs(field.attrs | {"units": DAILY_UNITS[units]})
