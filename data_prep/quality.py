"""Quality control of reports: which may be used, and why the others may not.

The checks run in the order of their codes, each on what the ones before it left; a rejected report keeps its value
and gets the code of the check that refused it (`CODES`), the contract's `qc`. The background check compares with the
archive's climatology, in the transformed units T(x) of its statistics (`slams.statistics`):

    |T(o) - m(day)| > k sqrt(s^2 + (T'(o) e)^2)

with m the climatology at the report, s the standard deviation of the departures from it, which the statistics hold as
one number a channel, and e the error of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.limits import QualityConfig
from data_prep.sources.reports import Reports
from slams.contracts.stations import LATITUDE, LONGITUDE
from slams.interpolate import place
from slams.spec import StateSpec
from slams.statistics import Statistics, day_features

CODES = {
    "used": 0,
    "provider": 1,  # refused or removed by its own provider
    "position": 2,  # no place on Earth
    "moved": 3,  # far from where the station mostly is
    "range": 4,  # beyond the limits of its variable and level
    "contradicted": 5,  # another report of that station, time and level says something else
    "repeated": 6,  # an earlier report of that station, time and level says the same
    "background": 7,  # too far from the climatology
}
EARTH_RADIUS_KM = 6371.0
ROWS_AT_ONCE = 2**16


def with_errors(reports: Reports, config: QualityConfig) -> Reports:
    """The reports, each with a standard error: its own, or that of its variable and level."""
    error = reports.error_std.copy()
    for name in np.unique(reports.variable):
        its = (reports.variable == name) & ~(np.isfinite(error) & (error > 0))
        error[its] = config.limits[name].at("error_std", reports.level_hpa[its])
    return Reports(**{**vars(reports), "error_std": error})


def quality_control(
    reports: Reports, spec: StateSpec, config: QualityConfig, statistics: Statistics | None
) -> np.ndarray:
    """The code of each report, (N,) int8.

    Arguments:
        reports: with their errors (`with_errors`).
        statistics: of the archive, for the background check, which is left out where there is none.
    """
    code = np.zeros(len(reports), np.int8)

    def check(name: str, wrong: Callable[[Reports], np.ndarray]) -> None:
        left = np.flatnonzero(code == 0)
        if len(left):
            code[left[wrong(reports.take(left))]] = CODES[name]

    check("provider", lambda r: r.refused | ~np.isfinite(r.value))
    check("position", _impossible)
    check("moved", lambda r: _moved(r, config.moved_km))
    check("range", lambda r: _beyond(r, config))
    check("contradicted", lambda r: _duplicates(r)[1])
    check("repeated", lambda r: _duplicates(r)[0])
    if statistics is not None:
        check("background", lambda r: _unlikely(r, spec, statistics, config.background_k))
    return code


def _impossible(reports: Reports) -> np.ndarray:
    on_earth = np.ones(len(reports), bool)
    for place_, (low, high) in ((reports.latitude, LATITUDE), (reports.longitude, LONGITUDE)):
        on_earth &= (place_ >= low) & (place_ <= high)
    return ~on_earth


def numbered(text: np.ndarray) -> np.ndarray:
    """Text as whole numbers, the same for the same text, (N,)."""
    return np.asarray(pa.array(text, pa.string()).dictionary_encode().indices, np.int64)


def _moved(reports: Reports, limit_km: float) -> np.ndarray:
    """Farther than so many km from the position that the station reports most often."""
    keys = np.stack([numbered(reports.station_id), reports.latitude, reports.longitude], axis=1)
    places, which, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((count, places[:, 0]))  # the last of each station is its most common
    last = np.append(np.diff(places[order, 0]) > 0, True)
    home = places[order[last]][places[:, 0].astype(int)]
    away = _distance_km(places[:, 1], places[:, 2], home[:, 1], home[:, 2]) > limit_km
    return np.asarray(away[which.ravel()] & ~reports.moves)


def _distance_km(lat_a: np.ndarray, lon_a: np.ndarray, lat_b: np.ndarray, lon_b: np.ndarray) -> np.ndarray:
    """Along the great circle, by the haversine formula."""
    lat_a, lon_a, lat_b, lon_b = (np.deg2rad(angle) for angle in (lat_a, lon_a, lat_b, lon_b))
    chord = np.sin((lat_a - lat_b) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_a - lon_b) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(chord.clip(0, 1))))


def _beyond(reports: Reports, config: QualityConfig) -> np.ndarray:
    wrong = np.zeros(len(reports), bool)
    for name in np.unique(reports.variable):
        its, limits = reports.variable == name, config.limits[name]
        value, level = reports.value[its], reports.level_hpa[its]
        wrong[its] = (value < limits.at("low", level)) | (value > limits.at("high", level))
    return wrong


def _duplicates(reports: Reports) -> tuple[np.ndarray, np.ndarray]:
    """Which repeat another report of their station, time and level, and which contradict one; each (N,)."""
    keys = [numbered(reports.station_id), numbered(reports.variable), reports.time.astype(np.int64)]
    level = np.nan_to_num(reports.level_hpa, nan=-1.0)
    _, first, group = np.unique(np.stack([*keys, level], axis=1), axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    differs = reports.value != reports.value[first[group]]
    contradicted = np.bincount(group, differs)[group] > 0
    return ~contradicted & (first[group] != np.arange(len(reports))), contradicted


def _unlikely(reports: Reports, spec: StateSpec, statistics: Statistics, k: float) -> np.ndarray:
    """Too far from the climatology; a report whose climatology is not known all around it is not checked."""
    wrong = np.zeros(len(reports), bool)
    for name in np.unique(reports.variable):
        its = np.flatnonzero(reports.variable == name)
        for start in range(0, len(its), ROWS_AT_ONCE):
            block = its[start : start + ROWS_AT_ONCE]
            wrong[block] = _departs(reports.take(block), name, spec, statistics, k)
    return wrong


def _departs(reports: Reports, name: str, spec: StateSpec, statistics: Statistics, k: float) -> np.ndarray:
    channels, levels = spec.channels(name), spec.modality(name).level_hpa
    at = place(reports.latitude, reports.longitude, reports.level_hpa, spec.grid, levels)

    def there(fields: np.ndarray) -> np.ndarray:
        """Values (..., N, 8 or 4) of fields (..., C, H, W) or (..., C, 1, 1) at the neighbours of each report."""
        cell = at.cell if fields.shape[-1] > 1 else 0
        return np.asarray(fields.reshape(*fields.shape[:-2], -1)[..., channels.start + at.channel, cell])

    harmonics_KN = (there(statistics.harmonics) * at.weight).sum(axis=-1)
    mean = np.einsum("nk,kn->n", day_features(reports.time)[:, : len(harmonics_KN)], harmonics_KN)
    std = (there(statistics.std) * at.weight).sum(axis=-1)
    value, slope = reports.value, np.ones(len(reports))
    if statistics.log1p[channels.start]:
        value, slope = np.log1p(np.maximum(value, 0)), 1 / (1 + np.maximum(value, 0))
    far = np.abs(value - mean) > k * np.hypot(std, slope * reports.error_std)
    return np.asarray(far & at.inside & there(statistics.observed).all(axis=-1))


def counts(reports: Reports, code: np.ndarray, spec: StateSpec) -> list[dict[str, Any]]:
    """How many reports there are of each variable, level (the state's nearest in log p; None without) and code."""
    names = {number: name for name, number in CODES.items()}
    found = []
    for modality in spec.modalities:
        its = reports.variable == modality.name
        nearest = _nearest(reports.level_hpa[its], modality.level_hpa)
        for level in (*modality.level_hpa, None):
            at = np.isnan(nearest) if level is None else nearest == level
            by_code = np.bincount(code[its][at], minlength=len(CODES))
            row = {"variable": modality.name, "level_hpa": level}
            if by_code.any():
                found.append(row | {names[number]: int(n) for number, n in enumerate(by_code)})
    return found


def added(parts: Iterable[dict[str, Any]], spec: StateSpec) -> list[dict[str, Any]]:
    """Counts of parts of the reports as those of all."""
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row in parts:
        before = found.get(key := (row["variable"], row["level_hpa"]), dict.fromkeys(CODES, 0))
        found[key] = row | {name: before[name] + row[name] for name in CODES}
    order = [(m.name, level) for m in spec.modalities for level in (*m.level_hpa, None)]
    return [found[key] for key in order if key in found]


def _nearest(level_hpa: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """NaN where there is no pressure."""
    if not levels:
        return np.full(len(level_hpa), np.nan)
    known = np.array(levels, np.float64)
    apart = np.abs(np.log(level_hpa)[:, None] - np.log(known))
    return np.where(np.isnan(level_hpa), np.nan, known[np.nan_to_num(apart).argmin(axis=1)])


def as_text(rows: list[dict[str, Any]]) -> str:
    """The counts as a table for people."""
    head = ["variable", "hPa", *CODES]
    lines = [[r["variable"], r["level_hpa"] or "-", *(r[name] for name in CODES)] for r in rows]
    total = ["all", "", *(sum(r[name] for r in rows) for name in CODES)]
    width = [max(12, len(name) + 2) for name in head]
    table = [head, *lines, total]
    return "".join("".join(f"{cell!s:>{w}}" for cell, w in zip(line, width, strict=True)) + "\n" for line in table)
