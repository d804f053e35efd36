"""Raw archives -> the Archive contract: one grid, one form, joined by date, missing kept as missing."""

from __future__ import annotations

from glob import glob
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from rich.progress import track

from data_prep.config import ArchiveConfig, PrepConfig
from data_prep.regrid import conservative
from data_prep.sources import SourceError, open_olr, open_precipitation, open_static, open_temperature
from data_prep.stats import fit_statistics
from slams.config import to_dict
from slams.contracts.archive import create, finish, open_archive, write_block
from slams.contracts.envelope import is_finished, written_aside
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec

BLOCK_DAYS = 365
N_NAMED_DAYS = 5


def plan(config: ArchiveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    first, last = _period(config)
    names = ", ".join(_specification(config).channel_names)
    done = "stands already" if Path(config.path).exists() else "to be written"
    return [f"archive {config.path}: {first} to {last}, {config.n_latitude} x {config.n_longitude}, {names}: {done}"]


def run(config: ArchiveConfig, whole: PrepConfig) -> None:
    """Write the archive, unless it stands already.

    Raises:
        SourceError: a raw file that is missing or not what it should be.
        ValueError: more days of a modality are missing than allowed.
    """
    path, made_by = Path(config.path), to_dict(config)
    if path.exists() and is_finished(path, open_archive(path).attributes["config"], made_by):
        return
    spec = _specification(config)
    first, last = _period(config)
    time = np.arange(first, last + 1)
    fields = {name: conservative(field, spec.grid) for name, field in _open(config).items()}
    missing = {name: _missing_days(name, field, time, config.missing_days_allowed) for name, field in fields.items()}
    splits = {"train": config.train_years, "validation": config.validation_years, "test": config.test_years}
    attributes = {"config": made_by, "splits": splits, "missing_days": missing}
    with written_aside(path) as folder:
        group = create(folder, spec, time, _run_numbers(fields["temperature"], time), attributes)
        for name, field in fields.items():
            _write(group, name, field, time)
        statistics, global_std = fit_statistics(
            open_archive(folder), config.normalise, config.log_precipitation, _static(config, spec.grid)
        )
        finish(folder, statistics, global_std)


def _specification(config: ArchiveConfig) -> StateSpec:
    temperature = Modality("temperature", "state", "K", "air_temperature", tuple(config.level_hpa))
    given = [(PRECIPITATION, config.sources.precipitation), (OLR, config.sources.olr)]
    grid = Grid(config.n_latitude, config.n_longitude)
    return StateSpec(grid, (temperature, *(modality for modality, pattern in given if pattern)))


def _period(config: ArchiveConfig) -> tuple[np.datetime64, np.datetime64]:
    """First and last day of the archive."""
    years = [*config.train_years, *config.validation_years, *config.test_years]
    return np.datetime64(f"{min(years)}-01-01", "D"), np.datetime64(f"{max(years)}-12-31", "D")


def _files(name: str, pattern: str) -> list[str]:
    found = sorted(glob(pattern))  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses
    if not found:
        raise SourceError(f"sources.{name}: no file matches {pattern}")
    return found


def _open(config: ArchiveConfig) -> dict[str, xr.DataArray]:
    sources = config.sources
    fields = {"temperature": open_temperature(_files("temperature", sources.temperature), config.level_hpa)}
    if sources.precipitation:
        fields["precipitation"] = open_precipitation(_files("precipitation", sources.precipitation))
    if sources.olr:
        fields["olr"] = open_olr(_files("olr", sources.olr))
    return fields


def _static(config: ArchiveConfig, grid: Grid) -> dict[str, np.ndarray]:
    """Static fields on the target grid, where a file of them was given."""
    if not config.sources.static:
        return {}
    found = open_static(_files("static", config.sources.static)[0])
    return {str(name): np.asarray(conservative(field, grid), np.float32) for name, field in found.items()}


def _days(field: xr.DataArray) -> np.ndarray:
    return np.asarray(field["time"].values, "datetime64[D]")


def _missing_days(name: str, field: xr.DataArray, time: np.ndarray, allowed: int) -> list[str]:
    """Days of the period that a modality lacks.

    Raises:
        ValueError: more than allowed.
    """
    missing = [str(day) for day in np.setdiff1d(time, _days(field))]
    if len(missing) > allowed:
        named = ", ".join(missing[:N_NAMED_DAYS]) + (", ..." if len(missing) > N_NAMED_DAYS else "")
        raise ValueError(
            f"{name}: {len(missing)} of the {len(time)} days from {time[0]} to {time[-1]} are missing ({named}); "
            f"missing_days_allowed is {allowed}"
        )
    return missing


def _run_numbers(field: xr.DataArray, time: np.ndarray) -> np.ndarray:
    """Number of the continuous record that each day belongs to, by the sources' own names for their runs."""
    names = np.asarray(field["run"].values).astype(str)
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    by_day = {day: order[name] for day, name in zip(_days(field), names, strict=True)}
    number, numbers = 0, []
    for day in time:
        number = by_day.get(day, number)
        numbers.append(number)
    return np.array(numbers, np.int32)


def _write(group: zarr.Group, name: str, field: xr.DataArray, time: np.ndarray) -> None:
    days = _days(field)
    starts = range(0, len(time), BLOCK_DAYS)
    for start in track(starts, description=f"archive {name:13s}", transient=True):
        block = time[start : start + BLOCK_DAYS]
        found = np.flatnonzero((days >= block[0]) & (days <= block[-1]))
        values = np.full((len(block), *field.shape[1:]), np.nan, np.float32)
        values[(days[found] - block[0]).astype(int)] = np.asarray(field[found])
        write_block(group, name, start, values)
