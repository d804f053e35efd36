"""What is checked of the contracts that lie in Zarr: archives, observation sets, analyses. Used by `data_prep check`.

A step reads whole chunks and gives one line for each thing that is wrong: file, time, what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_prep.sources.cpc import PRECIPITATION
from data_prep.sources.era5 import TEMPERATURE
from data_prep.sources.olr import OLR
from slams.contracts.analysis import Analysis, open_analysis
from slams.contracts.archive import METADATA, Archive, array, open_archive
from slams.contracts.envelope import ContractError, read_json
from slams.contracts.gridded import PARTS, Gridded
from slams.contracts.observations import Fingerprint, Observations, open_observations
from slams.contracts.shards import Manifest
from slams.contracts.storage import place
from slams.spec import Modality
from slams.statistics import Statistics

Step = Callable[[], Iterable[str]]
Region = tuple[slice, ...]
AXES = ("time", "run", "member", "level", "latitude", "longitude")
MAY_BE_ZERO = ("run", "member")
RANGES = {quantity.standard_name: quantity.valid_range for quantity in (TEMPERATURE, PRECIPITATION, OLR)}
UNREADABLE = (ValueError, RuntimeError, OSError, EOFError)  # what zarr and its codecs raise on damage


def named(days: Sequence[np.datetime64] | np.ndarray) -> str:
    """A day, or first and last of several."""
    return "no day" if not len(days) else f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"


def physical_range(modality: Modality, values: np.ndarray) -> Iterator[str]:
    """What is wrong with values of a modality, any shape, NaN where missing."""
    if np.isinf(values).any():
        yield f"is infinite in {np.isinf(values).sum()} cells"
    low, high = RANGES.get(modality.standard_name, (-np.inf, np.inf))
    wrong = np.isfinite(values) & ((values < low) | (values > high))
    if wrong.any():
        yield f"is {values[wrong][0]:g} {modality.units} in a cell; {low:g} to {high:g} is possible"


def statistics_of(opened: Manifest) -> Statistics | None:
    """The statistics, None where they are damaged, which their own step says."""
    try:
        return opened.statistics()
    except ContractError:
        return None


# ---- chunks


def read(path: str, field: zarr.Array[Any], where: Region, when: str) -> tuple[np.ndarray | None, list[str]]:
    """Part of an array, by its first axes; or None, and a line for each chunk that cannot be read."""
    try:
        return np.asarray(field[where]), []
    except UNREADABLE:
        reasons = [(key, _reason(field, region)) for key, region in _chunks(field, where)]
        return None, [f"{_file(path, field, key)}: {when}: {reason}" for key, reason in reasons if reason]


def _reason(field: zarr.Array[Any], chunk: Region) -> str:
    """Why a chunk cannot be read; nothing where it can."""
    try:
        field[chunk]
    except UNREADABLE as error:
        told = str(error).strip() or type(error).__name__
        return f"damaged, it cannot be read ({told.splitlines()[0].rstrip('.')})"
    return ""


def absent(path: str, field: zarr.Array[Any], where: Region) -> list[str]:
    """Files of chunks that are not there: they would read as missing values."""
    files = (_file(path, field, key) for key, _ in _chunks(field, where))
    return [file for file in files if not place(file).is_file()]


def _file(path: str, field: zarr.Array[Any], key: str) -> str:
    return f"{path.rstrip('/')}/{field.path}/{key}"


def _chunks(field: zarr.Array[Any], where: Region) -> Iterator[tuple[str, Region]]:
    """Key and region of every stored object that holds that part."""
    sizes = field.shards or field.chunks
    spans = [*((part.start, part.stop) for part in where), *((0, n) for n in field.shape[len(where) :])]
    ranges = [range(a // size, -(-b // size)) for (a, b), size in zip(spans, sizes, strict=True)]
    for at in product(*ranges):
        key = field.metadata.encode_chunk_key(at)
        yield key, tuple(slice(i * size, (i + 1) * size) for i, size in zip(at, sizes, strict=True))


def parts(field: zarr.Array[Any], n_axes: int = 1) -> list[Region]:
    """The array in parts of one chunk along its first axes."""
    sizes = (field.shards or field.chunks)[:n_axes]
    lengths = field.shape[:n_axes]
    cuts = ([slice(i, min(i + size, n)) for i in range(0, n, size)] for n, size in zip(lengths, sizes, strict=True))
    return list(product(*cuts))


def _group(path: str) -> zarr.Group:
    return zarr.open_group(path, mode="r", use_consolidated=False)


def _axes(path: str) -> list[str]:
    """What is wrong with the coordinates, without which nothing else can be read."""
    found, group = [], _group(path)
    for name in AXES:
        axis = group.get(name)
        if isinstance(axis, zarr.Array):
            whole = (slice(0, axis.shape[0]),)
            if name not in MAY_BE_ZERO or axis.fill_value != 0:  # zarr writes no chunk that is all fill
                found += [f"{file}: no such file" for file in absent(path, axis, whole)]
            found += read(path, axis, whole, name)[1]
    return found


def _opened(path: str, steps: Callable[[str], list[Step]]) -> list[Step]:
    """The steps of a store; the one line of what keeps it from being opened."""
    try:
        wrong = _axes(path)
        return [lambda: wrong] if wrong else steps(path)
    except ContractError as error:
        told = str(error)
    except (ValueError, KeyError, TypeError) as error:  # zarr's own words for metadata that it cannot read
        told = f"{path}: damaged, its metadata cannot be read: {' '.join(str(error).split())}"
    return [lambda: [told]]


def _daily(path: Path, time: np.ndarray) -> Iterator[str]:
    """Time strictly daily."""
    for i in np.flatnonzero(np.diff(time).astype(int) != 1):
        yield f"{path}/time: {time[i + 1]}: follows {time[i]}; every day once, in order, is needed"


# ---- archives


def _archive(path: str) -> list[Step]:
    opened, group = open_archive(path), _group(path)
    steps: list[Step] = [partial(_daily, opened.path, opened.time), partial(_summary, opened)]
    steps.append(partial(_gathered, opened.path))
    for modality in opened.spec.modalities:
        field = array(group, modality.name)
        steps += [partial(_days, opened, field, modality, where) for where in parts(field)]
    return steps


def _summary(opened: Archive) -> Iterator[str]:
    """Axes, runs, the list of what is missing, statistics."""
    grid, group = opened.spec.grid, _group(str(opened.path))
    for name, centres in (("latitude", grid.latitude), ("longitude", grid.longitude)):
        if not np.array_equal(np.asarray(array(group, name)[:]), centres):
            yield f"{opened.path}/{name}: not the cell centres of a grid of {grid.shape[0]} x {grid.shape[1]} cells"
    if len(opened.run) != len(opened.time) or (np.diff(opened.run) < 0).any():
        yield f"{opened.path}/run: a run for every day, in order, is needed"
    for name, days in opened.attributes["missing_days"].items():
        for day in np.setdiff1d(np.array(days, "datetime64[D]"), opened.time):
            yield f"{opened.path}: {day}: listed as missing for {name}, but outside the archive"
    opened.raw_files()
    opened.statistics()


def _gathered(path: Path) -> Iterator[str]:
    """Each array's own metadata, which a reader may take in place of those that are gathered beside the checksum."""
    gathered = read_json(path / METADATA, "the metadata of an archive")["consolidated_metadata"]["metadata"]
    for name, metadata in gathered.items():
        if read_json(path / name / METADATA, f"the metadata of {name}") != metadata:
            yield f"{path / name / METADATA}: not what {path / METADATA} says of it; one of them was changed or damaged"


def _days(opened: Archive, field: zarr.Array[Any], modality: Modality, where: Region) -> Iterator[str]:
    """Some days of one modality: chunks, values, and whether exactly the days without values are listed."""
    path, days = str(opened.path), opened.time[where[0]]
    listed = np.isin(days, np.array(opened.attributes["missing_days"].get(modality.name, []), "datetime64[D]"))
    values, wrong = read(path, field, where, named(days))
    yield from wrong
    lost = absent(path, field, where) if not listed.all() else []
    for file in lost:
        yield f"{file}: {named(days[~listed])}: no such file, though these days are not listed as missing"
    if values is None or lost:
        return
    for day, gone, x in zip(days, listed, values, strict=True):
        yield from (f"{path}/{modality.name}: {day}: {what}" for what in _day(modality, x, bool(gone)))


def _day(modality: Modality, x: np.ndarray, listed: bool) -> Iterator[str]:
    """What is wrong with one day of a modality, ([level,] latitude, longitude)."""
    is_empty = np.isnan(x).reshape(modality.n_channels, -1).all(axis=1)
    empty = [name for name, nothing in zip(modality.channel_names, is_empty, strict=True) if nothing]
    if listed and len(empty) < modality.n_channels:
        yield "listed as missing, but it has values"
    elif not listed and len(empty) == modality.n_channels:
        yield "no value, and the day is not listed as missing"
    elif not listed:
        yield from (f"{name} has no value" for name in empty)
    yield from physical_range(modality, x)


# ---- observation sets


def _observations(path: str) -> list[Step]:
    opened, group = open_observations(path), _group(path)
    steps: list[Step] = [partial(_daily, opened.path, opened.time)]
    for name in opened.gridded:
        for part in PARTS:
            field = array(group, f"{name}/{part}")
            steps += [partial(_part, opened, field, where) for where in parts(field)]
        if f"{name}/weight" in group:
            steps.append(partial(_weight, opened, array(group, f"{name}/weight")))
    steps += [partial(_used, opened, name, days) for name in opened.names for days in opened.blocks(opened.time)]
    return [*steps, partial(_fingerprint, opened)]


def _part(opened: Observations, field: zarr.Array[Any], where: Region) -> Iterable[str]:
    return read(str(opened.path), field, where, named(opened.time[where[0]]))[1]


def _weight(opened: Observations, field: zarr.Array[Any]) -> Iterable[str]:
    return read(str(opened.path), field, tuple(slice(0, n) for n in field.shape), "every day")[1]


def _used(opened: Observations, name: str, days: np.ndarray) -> Iterator[str]:
    """What the assimilation would refuse of those days; damage of chunks is told by its own step."""
    try:
        opened.read_all([name], days)
    except ContractError as error:
        file, _, what = str(error).partition(": ")
        if not what.startswith("damaged") or file != str(opened.path):
            yield f"{file}: {named(days)}: {what}"


def _fingerprint(opened: Observations) -> Iterator[str]:
    """Whether all on a grid is as it was written: a chunk that is gone reads as not observed, which nothing else tells.

    Stations are left out of it, whose pages have checksums: what they were before they were rounded is not known. An
    earlier version had one fingerprint of both, without the weights.
    """
    is_old = "gridded_sha256" not in opened.attributes
    if is_old and (opened.stations or "content_sha256" not in opened.attributes):
        return
    found, group = Fingerprint(), _group(str(opened.path))
    try:
        for name in opened.gridded:
            for where in opened.blocks(np.arange(len(opened.time))):
                seen = opened.read(name, opened.time[where])
                mask = np.asarray(array(group, f"{name}/mask")[where[0] : where[-1] + 1]).astype(bool)
                weight = None if is_old else seen.weight_HW
                found.add(replace(seen, mask=mask, weight_HW=weight))  # as it was written, on missing values too
    except ContractError:
        return  # told by the steps above
    if found.hexdigest(Gridded) != opened.attributes.get("gridded_sha256", opened.attributes.get("content_sha256")):
        yield f"{opened.path}: the values are not those that were written: their fingerprint is another"


# ---- analyses


def _analysis(path: str) -> list[Step]:
    opened, group = open_analysis(path), _group(path)
    ledger = sorted((opened.path / "ledger").glob("*.json"))
    steps: list[Step] = [partial(_unit, opened, unit.stem) for unit in ledger]
    for modality in opened.spec.modalities:
        for name, n_axes in ((modality.name, 2), (f"{modality.name}_mean", 1), (f"{modality.name}_spread", 1)):
            field = array(group, name)
            steps += [partial(_drawn, opened, field, where) for where in parts(field, n_axes)]
    return steps


def _drawn(opened: Analysis, field: zarr.Array[Any], where: Region) -> Iterator[str]:
    """One member at one time, or the mean or the spread at one: there and finite, where the product is complete."""
    path, when = str(opened.path), named(opened.time[where[-1]])
    values, wrong = read(path, field, where, when)
    yield from wrong
    lost = absent(path, field, where) if opened.is_complete else []
    yield from (f"{file}: {when}: no such file, though the analysis is complete" for file in lost)
    if values is None or lost:
        return
    if np.isinf(values).any():
        yield f"{path}/{field.path}: {when}: infinite in {np.isinf(values).sum()} cells"
    elif opened.is_complete and np.isnan(values).reshape(-1, *values.shape[-2:]).all(axis=(1, 2)).any():
        yield f"{path}/{field.path}: {when}: no value, though the analysis is complete"


def _unit(opened: Analysis, unit: str) -> Iterator[str]:
    """A finished unit of work: its values are those that were written."""
    file = opened.path / "ledger" / f"{unit}.json"
    try:
        opened.verify(unit)
    except (*UNREADABLE, KeyError) as error:
        if "damaged" not in str(error):  # the chunk's own step says which
            yield f"{file}: {named((opened.finished(unit) or {}).get('days', []))}: {error}"


archive_steps, observation_steps, analysis_steps = (
    partial(_opened, steps=steps) for steps in (_archive, _observations, _analysis)
)
