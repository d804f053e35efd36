"""Raw archives -> the Archive contract: one grid, one form, joined by date, missing kept as missing.

Written block by block beside its name; the same command goes on after a stop, to the same bits. Where an archive of the
same form stands whose period begins on the same day and ends earlier, what it holds is taken over and the new days are
added.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from data_prep.blocks import Block, Writer, blocks, opened
from data_prep.config import ArchiveConfig, PrepConfig
from data_prep.fields import days_of, fingerprints, kept_decimals, period, specification, static_fields
from data_prep.stats import check_loss, fit_statistics
from data_prep.work import Work
from data_prep.workers import workers
from slams.config import to_dict
from slams.contracts.archive import STATISTICS, Archive, create, extend, finish, open_archive
from slams.contracts.envelope import is_finished

N_NAMED_DAYS = 5
MAY_GROW = ("train_years", "validation_years", "test_years", "missing_days_allowed")


def plan(config: ArchiveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    time = period(config)
    names = ", ".join(specification(config).channel_names)
    state = f"{config.n_latitude} x {config.n_longitude}, {names}"
    return [f"archive {config.path}: {time[0]} to {time[-1]}, {state}: {_state(config, len(time))}"]


def _state(config: ArchiveConfig, n_days: int) -> str:
    path = Path(config.path)
    if not path.exists():
        done = Work(path).n_done()
        return f"{done} blocks are written, the others to be" if done else "to be written"
    old = _grows(config)
    if old is not None:
        return f"to be extended by {n_days - len(old.time)} days"
    is_finished(path, open_archive(path).attributes["config"], to_dict(config))  # or refused
    return "stands already"


def run(config: ArchiveConfig, whole: PrepConfig) -> None:
    """Write the archive, or the days that it lacks, unless it stands already.

    Raises:
        SourceError: a raw file that is missing or not what it should be.
        ValueError: more days of a modality are missing than allowed, or its decimals are too few for its values.
        ContractError: an archive of another form stands there.
    """
    work = Work(Path(config.path))
    work.tidy()
    old, path = _grows(config), work.path
    if old is None and path.exists() and is_finished(path, open_archive(path).attributes["config"], to_dict(config)):
        return
    files, time = fingerprints(config), period(config)
    fields = opened(config, files)
    absent = {name: np.setdiff1d(time, days_of(field)).astype(str).tolist() for name, field in fields.items()}
    _check_missing(absent, time, config)
    group = _begun(work, config, {"config": to_dict(config), "files": files}, _run_numbers(fields, time), old)
    every = blocks(group, list(fields), len(time))
    taken = [block for block in every if old is not None and block.stop <= len(old.time)]
    written = [block for block in every if block not in taken]
    with workers(whole.workers) as in_order:
        told = work.complete(Writer(config, files, work.aside, time[0]), written, in_order, "archive")
    missing = _missing_days(written, told, taken, old, time)
    _check_missing(missing, time, config)
    group.attrs.update(_attributes(config) | {"missing_days": missing})
    archive = open_archive(work.aside)
    found = fit_statistics(archive, config.normalise, config.log_precipitation, static_fields(config))
    check_loss(archive, found[1])
    finish(work.aside, *found)
    work.become()


def _grows(config: ArchiveConfig) -> Archive | None:
    """The archive that stands, if it is the first part of this one; None if none stands, or another."""
    if not Path(config.path).exists():
        return None
    old, time, made_by = open_archive(config.path), period(config), to_dict(config)
    same = all(old.attributes["config"].get(key) == made_by[key] for key in made_by if key not in MAY_GROW)
    return old if same and old.time[0] == time[0] and old.time[-1] < time[-1] else None


def _attributes(config: ArchiveConfig) -> dict[str, Any]:
    splits = {"train": config.train_years, "validation": config.validation_years, "test": config.test_years}
    return {"config": to_dict(config), "splits": splits, "missing_days": {}}


def _begun(
    work: Work, config: ArchiveConfig, made_of: dict[str, Any], run: np.ndarray, old: Archive | None
) -> zarr.Group:
    """The archive aside: what an earlier call left there, if it was made of the same; else begun anew."""
    made_of |= {"days_before": 0 if old is None else len(old.time)}
    if work.goes_on(made_of):
        return zarr.open_group(work.aside, mode="r+", use_consolidated=False)
    time = period(config)
    if old is None:
        group = create(work.aside, specification(config), time, run, _attributes(config), kept_decimals(config))
    else:
        shutil.copytree(old.path, work.aside, copy_function=_link, ignore=shutil.ignore_patterns(STATISTICS))
        group = extend(work.aside, time, run)
    work.begun(made_of)
    return group


def _link(source: str, target: str) -> None:
    """The same file under a second name: zarr never writes into a file, it replaces it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _missing_days(
    written: list[Block], told: list[dict[str, Any]], taken: list[Block], old: Archive | None, time: np.ndarray
) -> dict[str, list[str]]:
    """Days on which a modality holds no value, those its files lack among them."""
    found: dict[str, list[str]] = {block.modality: [] for block in written}
    for block in taken:
        days = set(time[block.start : block.stop].astype(str))
        before = [] if old is None else old.attributes["missing_days"][block.modality]
        found[block.modality] += [day for day in before if day in days]
    for block, said in zip(written, told, strict=True):
        found[block.modality] += said["missing_days"]
    return found


def _check_missing(missing: dict[str, list[str]], time: np.ndarray, config: ArchiveConfig) -> None:
    """Refuse more missing days of a modality than allowed."""
    for name, days in missing.items():
        if len(days) > config.missing_days_allowed:
            named = ", ".join(days[:N_NAMED_DAYS]) + (", ..." if len(days) > N_NAMED_DAYS else "")
            raise ValueError(
                f"{name}: {len(days)} of the {len(time)} days from {time[0]} to {time[-1]} are missing ({named}); "
                f"missing_days_allowed is {config.missing_days_allowed}"
            )


def _run_numbers(fields: dict[str, xr.DataArray], time: np.ndarray) -> np.ndarray:
    """Number of the continuous record that each day belongs to, by the sources' own names for their runs."""
    field = fields["temperature"]
    names = np.asarray(field["run"].values).astype(str)
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    by_day = {day: order[name] for day, name in zip(days_of(field), names, strict=True)}
    number, numbers = 0, []
    for day in time:
        number = by_day.get(day, number)
        numbers.append(number)
    return np.array(numbers, np.int32)
