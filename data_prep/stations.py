"""Reports of stations -> an observation set: quality control, daily means, one table.

Of soundings only the state's own levels are kept. The operator would interpolate in log p to any other, but that is
wrong by 1.1 K (root mean square over the standard levels between the state's ten, two soundings at Barrow), more than
the sondes' own error; a significant level is by definition one where a straight line is wrong. A table's levels are
kept as they are.

The state is a daily mean, so the good reports of a UTC day at one station and level become their mean. Its error is
that of one report, not less: what soundings of a day fail to represent, they share.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from data_prep.config import ArchiveConfig, PrepConfig, comparable
from data_prep.limits import StationsConfig
from data_prep.quality import CODES, added, as_text, counts, numbered, quality_control, with_errors
from data_prep.sorting import Parts, by_station, emptied
from data_prep.sources.files import find_files, fingerprint
from data_prep.sources.igra import read_igra
from data_prep.sources.quantity import SourceError
from data_prep.sources.reports import Reports, read_table
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import ContractError, is_finished, read_json, write_json, written_aside
from slams.contracts.observations import Stations, open_observations, write_observations
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec

REPORT = "quality.json"
DAYS_AT_ONCE = 32  # of one row group of the table
DAYS_A_PART = 12 * DAYS_AT_ONCE  # held at once


def plan(config: StationsConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stands already" if Path(config.path).exists() else "to be written"
    against = f"the climatology of {whole.archive.path}" if Path(whole.archive.path).exists() else "no climatology"
    files = [f"{len(_files(name, pattern))} {name} files" for name, pattern in _patterns(config)]
    period = f"{config.first_day} to {config.last_day}"
    return [f"stations {config.path}: {', '.join(files)}, {period}, checked against {against}: {done}"]


def run(config: StationsConfig, whole: PrepConfig) -> None:
    """Write the observation set and its report, and print the counts, unless the set stands already.

    Raises:
        SourceError: a file that cannot be used, or no file at all.
        ValueError: a variable that the state has not or that has no limits, or of which nothing is left.
        ContractError: the set stands, made from another configuration, archive or files.
    """
    path = Path(config.path)
    archive = open_archive(whole.archive.path) if Path(whole.archive.path).exists() else None
    statistics = archive.statistics() if archive else None
    background = {"statistics": statistics.digest if statistics else "none"}
    made_by = to_dict(config) | {"archive": to_dict(whole.archive)} | background
    old = open_observations(path).attributes["config"] if path.exists() else {}
    if is_finished(path, comparable(old), comparable(made_by)):
        return _refuse_other_files(path, config)
    raw_files = [fingerprint(file) for name, pattern in _patterns(config) for file in _files(name, pattern)]
    spec = _specification(config, whole.archive, archive)
    days, counted = np.arange(config.first, config.last + 1), list[dict[str, Any]]()
    with written_aside(path) as folder, emptied(path.with_name(path.name + ".reports")) as beside:
        stations, means = Parts(beside / "stations"), Parts(beside / "days")
        _read(config, spec, stations)
        for reports, _ in stations.read():
            checked = with_errors(reports, config.quality)
            code = quality_control(checked, archive.spec if archive else spec, config.quality, statistics)
            counted += counts(checked, code, spec)
            daily, code = _daily(checked, code)
            means.add(daily, code, (daily.time.astype("datetime64[D]") - days[0]).astype(int) // DAYS_A_PART)
        attributes = {"config": made_by, "space": "physical", "source": "reports of stations"}
        write_observations(folder, spec, days, _blocks(means, spec, days), attributes)
        found = added(counted, spec)
        report = {"codes": CODES, "counts": found, "background": background, "raw_files": raw_files}
        write_json(folder / REPORT, report)
    sys.stdout.write(as_text(found))


def _refuse_other_files(path: Path, config: StationsConfig) -> None:
    """Refuse a set that stands where files have come or changed since it was made. They may be gone.

    Raises:
        ContractError: naming the first; an earlier version has not written down of which files it made its sets.
    """
    before = read_json(path / REPORT, "the report of the quality control").get("raw_files")
    files = [Path(file) for _, pattern in _patterns(config) for file in find_files(pattern)]
    for found in (fingerprint(file) for file in files if before is not None):
        if found not in before:
            raise ContractError(
                f"{found[0]}: is new or has changed since {path} was made; remove {path} to make it anew"
            )


def _specification(config: StationsConfig, given: ArchiveConfig, archive: Archive | None) -> StateSpec:
    """What of the state is observed: the archive's own, or what the archive would have by its configuration.

    Raises:
        ValueError: a variable that is none of the state, or has no limits.
    """
    temperature = Modality("temperature", "state", "K", "air_temperature", tuple(given.level_hpa))
    known = (temperature, PRECIPITATION, OLR)
    whole = archive.spec if archive else StateSpec(Grid(given.n_latitude, given.n_longitude), known)
    for name in config.variables:
        if name not in whole.names:
            raise ValueError(f"variables: {name!r} is not one of {', '.join(whole.names)}")
    return whole.subset(tuple(config.variables))


def _patterns(config: StationsConfig) -> list[tuple[str, str]]:
    return [(name, pattern) for name, pattern in (("igra", config.igra), ("table", config.table)) if pattern]


def _files(name: str, pattern: str) -> list[Path]:
    found = sorted(glob(pattern))  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses
    if not found:
        raise SourceError(f"stations.{name}: no file matches {pattern}")
    return [Path(file) for file in found]


def _read(config: StationsConfig, spec: StateSpec, into: Parts) -> None:
    """The reports of the variables and days that are wanted.

    Raises:
        SourceError: there is none of one of the variables.
    """
    seen = set[str]()
    for name, pattern in _patterns(config):
        for file in track(_files(name, pattern), description=f"stations {name}", transient=True):
            if name == "table":
                found = _wanted(read_table(file, spec), config)
            elif "temperature" in config.variables:
                found = read_igra(file, spec.modality("temperature").level_hpa, config.first, config.last)
            else:
                continue
            into.add(found, np.zeros(len(found), np.int8), by_station(found.station_id))
            seen |= set(np.unique(found.variable))
    for variable in config.variables:
        if variable not in seen:
            raise SourceError(f"stations: no report of {variable} from {config.first_day} to {config.last_day}")


def _wanted(reports: Reports, config: StationsConfig) -> Reports:
    day = reports.time.astype("datetime64[D]")
    return reports.take((day >= config.first) & (day <= config.last) & np.isin(reports.variable, config.variables))


def _daily(reports: Reports, code: np.ndarray) -> tuple[Reports, np.ndarray]:
    """The mean of the good reports of each station, variable, level and day, and each rejected one as it is."""
    good, bad = np.flatnonzero(code == 0), np.flatnonzero(code)
    used = reports.take(good)
    keys = [numbered(used.station_id), numbered(used.variable), used.time.astype("datetime64[D]").astype(np.int64)]
    level = np.nan_to_num(used.level_hpa, nan=-1.0)
    _, first, group = np.unique(np.stack([*keys, level], axis=1), axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    mean = {name: np.bincount(group, getattr(used, name)) / np.bincount(group) for name in ("value", "error_std")}
    means = Reports(**{**vars(used.take(first)), **mean})
    return Reports.joined([means, reports.take(bad)]), np.append(np.zeros(len(first), np.int8), code[bad])


def _blocks(means: Parts, spec: StateSpec, days: np.ndarray) -> Iterator[Stations]:
    """Rows in order of time, so that a few days are found in a few blocks."""
    for reports, code in means.read():
        frame = (reports.time.astype("datetime64[D]") - days[0]).astype(int)
        station = np.unique(reports.station_id, return_inverse=True)[1]
        order = np.lexsort((reports.level_hpa, station, frame))
        block = frame[order] // DAYS_AT_ONCE
        for number, modality in product(np.unique(block), spec.modalities):
            rows = order[(block == number) & (reports.variable[order] == modality.name)]
            if len(rows):
                yield _stations(modality.name, reports.take(rows), code[rows], frame[rows], days)


def _stations(name: str, reports: Reports, code: np.ndarray, frame: np.ndarray, days: np.ndarray) -> Stations:
    return Stations(
        name=name,
        days=days,
        frame=frame,
        latitude=reports.latitude,
        longitude=reports.longitude,
        level_hpa=reports.level_hpa.astype(np.float32),
        value=reports.value.astype(np.float32),
        error_std=reports.error_std.astype(np.float32),
        station_id=reports.station_id,
        qc=code,
    )
