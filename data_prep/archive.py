"""Raw archives -> the Archive contract: one grid, one form, joined by date, missing kept as missing.

Written block by block beside its name; the same command goes on after a stop, to the same bits. Where an archive of the
same form stands whose period begins on the same day and ends earlier, what it holds is taken over and the new days are
added; the raw files of the old ones need not be there any more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from data_prep.blocks import Block, Writer, blocks, opened
from data_prep.config import ArchiveConfig, PrepConfig, content
from data_prep.fields import (
    Files,
    changed,
    days_of,
    describe,
    fingerprints,
    kept_decimals,
    period,
    refuse_changed,
    specification,
    static_fields,
)
from data_prep.gather import Gatherer, gather
from data_prep.sources import SourceError
from data_prep.stats import Totals, check_loss, fit_statistics
from data_prep.work import Work
from data_prep.workers import workers
from slams.config import to_dict
from slams.contracts.archive import METADATA, RAW_FILES, STATISTICS, Archive, create, extend, finish, open_archive
from slams.contracts.envelope import ContractError, alone, is_finished

N_NAMED_DAYS = 5
SPLITS = ("train_years", "validation_years", "test_years")
NOT_OF_BLOCKS = (*SPLITS, "normalise", "log_precipitation")
FIRST_THAT_LISTS_ALL = 2  # version of archives that list each day that lacks a level as missing


def plan(config: ArchiveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    time = period(config)
    names = ", ".join(specification(config).channel_names)
    state = f"{config.n_latitude} x {config.n_longitude}, {names}"
    return [f"archive {config.path}: {time[0]} to {time[-1]}, {state}: {_state(config, len(time))}"]


def _state(config: ArchiveConfig, n_days: int) -> str:
    path = Path(config.path)
    if not Work(path).stands(METADATA):
        done = Work(path).n_done()
        return f"{done} blocks are written, the others to be" if done else "to be written"
    old = _grows(config)
    if old is not None:
        return f"to be extended by {n_days - len(old.time)} days"
    _stands(config)  # or refused
    return "stands already"


def run(config: ArchiveConfig, whole: PrepConfig) -> None:
    """Write the archive, or the days that it lacks, unless it stands already.

    Raises:
        SourceError: a raw file that is missing, not what it should be, or not what it was when the archive was made.
        ValueError: more days of a modality are missing than allowed, or its decimals are too few for its values.
        ContractError: an archive of another form stands there.
    """
    with alone(config.path):
        _run(config, whole)


def _run(config: ArchiveConfig, whole: PrepConfig) -> None:
    work = Work(Path(config.path))
    work.tidy()
    old = _grows(config)
    if old is None and _stands(config):
        return
    if old is not None:
        refuse_changed(old.raw_files(), config.path)
    with workers(whole.workers) as in_order:  # they start while the raw files are opened
        files, time = fingerprints(config), period(config)
        n_before = 0 if old is None else len(old.time)
        fields = opened(config, files)
        run, names = _run_numbers(fields["temperature"], time, old)
        absent = {k: np.setdiff1d(time[n_before:], days_of(field)).astype(str).tolist() for k, field in fields.items()}
        _check_missing(_missing_days(absent, old), time, config)
        group = _begun(work, config, _made_of(config, files, old), run, old)
        every = blocks(group, list(fields), len(time))
        written = [block for block in every if block.stop > n_before]
        told = work.complete(Writer(config, files, work.aside, time[0], n_before), written, in_order, "archive")
        found: dict[str, list[str]] = {name: [] for name in fields}
        for block, said in zip(written, told, strict=True):
            found[block.modality] += said["missing_days"]
        missing = _missing_days(found, old)
        _check_missing(missing, time, config)
        group.attrs.update(_attributes(config) | {"missing_days": missing, "runs": names})
        gatherer = Gatherer(work.aside, work.marks / "sums", config.normalise, config.log_precipitation)
        sums, lost = gather(gatherer, every, in_order)
    _refuse_lost(work, lost, written)
    for path in changed(files):
        raise SourceError(f"{path}: has changed while {config.path} was made of it; the same command begins anew")
    if old is None:
        describe(group, fields)
    _finish(work.aside, config, old, files, sums)
    work.become()


def _stands(config: ArchiveConfig) -> bool:
    """Whether the archive stands already, made by this configuration of what the raw files still hold; or refused."""
    path = Path(config.path)
    if not Work(path).stands(METADATA):
        return False
    found = open_archive(path)
    is_finished(path, content(found.attributes["config"]), content(to_dict(config)))
    _check_missing(found.attributes["missing_days"], found.time, config)
    refuse_changed(found.raw_files(), config.path)
    return True


def _finish(folder: Path, config: ArchiveConfig, old: Archive | None, files: Files, sums: dict[str, Totals]) -> None:
    """Add the statistics, once it is known that the decimals that were kept suffice, and what it was made of."""
    archive = open_archive(folder, is_whole=False)
    static = static_fields(config) if old is None else old.statistics().static
    statistics, global_std = fit_statistics(archive, sums, config.normalise, static)
    check_loss(archive, global_std)
    finish(folder, statistics, global_std, _raw_files(files, old))


def _refuse_lost(work: Work, lost: Mapping[Block, list[str]], written: Sequence[Block]) -> None:
    """Refuse to close an archive without what a machine that crashed had not brought to its disk, marks of it or not.

    Raises:
        ContractError: naming the first file; the same command writes its block again.
    """
    for block in (block for block in lost if block in written):
        work.forget(block)
    for block, (line, *_) in lost.items():
        mended = "the same command writes it again"
        if block not in written:
            mended = f"{work.path} held it: put it back there, and remove {work.aside}"
        raise ContractError(f"{line}; {mended}")


def _raw_files(files: Files, old: Archive | None) -> Files:
    """Those of the archive that stands, some of which may be gone, and those that are there."""
    before = {} if old is None else old.raw_files()
    return {name: sorted({at[0]: at for at in before.get(name, []) + now}.values()) for name, now in files.items()}


def _grows(config: ArchiveConfig) -> Archive | None:
    """The archive that stands, if it is the first part of this one; None if none stands, or another."""
    if not Work(Path(config.path)).stands(METADATA):
        return None
    old, time, made_by = open_archive(config.path), period(config), content(to_dict(config))
    same = all(old.attributes["config"].get(key) == made_by[key] for key in made_by if key not in SPLITS)
    if not same or old.time[0] != time[0] or old.time[-1] >= time[-1]:
        return None
    if old.attributes["version"] < FIRST_THAT_LISTS_ALL:
        raise ContractError(f"{config.path}: is of version 1, which cannot grow; choose another name for a new one")
    return old


def _made_of(config: ArchiveConfig, files: Files, old: Archive | None) -> dict[str, Any]:
    """All that its blocks depend on; what else the section says is only of the statistics, or of what is allowed."""
    time, given = period(config), content(to_dict(config))
    held = 0 if old is None else len(old.time)
    told = {"config": {key: value for key, value in given.items() if key not in NOT_OF_BLOCKS}, "files": files}
    return told | {"period": [str(time[0]), str(time[-1])], "days_before": held}


def _attributes(config: ArchiveConfig) -> dict[str, Any]:
    splits = {name.removesuffix("_years"): getattr(config, name) for name in SPLITS}
    return {"config": to_dict(config), "splits": splits, "missing_days": {}}


def _begun(
    work: Work, config: ArchiveConfig, made_of: dict[str, Any], run: np.ndarray, old: Archive | None
) -> zarr.Group:
    """The archive aside: what an earlier call left there, if it was made of the same; else begun anew."""
    if work.goes_on(made_of):
        return zarr.open_group(work.aside, mode="r+", use_consolidated=False)
    time = period(config)
    if old is None:
        group = create(work.aside, specification(config), time, run, _attributes(config), kept_decimals(config))
    else:
        shutil.copytree(old.path, work.aside, copy_function=_link, ignore=shutil.ignore_patterns(STATISTICS, RAW_FILES))
        group = extend(work.aside, time, run)
    work.begun(made_of)
    return group


def _link(source: str, target: str) -> None:
    """The same file under a second name: zarr never writes into a file, it replaces it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _missing_days(found: dict[str, list[str]], old: Archive | None) -> dict[str, list[str]]:
    """Those of the archive that stands, as it recorded them, and those found after it."""
    before = {} if old is None else old.attributes["missing_days"]
    return {name: before.get(name, []) + days for name, days in found.items()}


def _check_missing(missing: dict[str, list[str]], time: np.ndarray, config: ArchiveConfig) -> None:
    """Refuse more missing days of a modality than allowed, within the splits."""
    wanted = set(time[_in_splits(time, config)].astype(str))
    for name, days in ((name, [day for day in days if day in wanted]) for name, days in missing.items()):
        if len(days) > config.missing_days_allowed:
            named = ", ".join(days[:N_NAMED_DAYS]) + (", ..." if len(days) > N_NAMED_DAYS else "")
            raise ValueError(
                f"{name}: {len(days)} of the {len(wanted)} days from {time[0]} to {time[-1]} are missing ({named}); "
                f"missing_days_allowed is {config.missing_days_allowed}"
            )


def _in_splits(time: np.ndarray, config: ArchiveConfig) -> np.ndarray:
    year = time.astype("datetime64[Y]").astype(int) + 1970
    splits = (config.train_years, config.validation_years, config.test_years)
    return np.any([(year >= first) & (year <= last) for first, last in splits], axis=0)


def _run_numbers(field: xr.DataArray, time: np.ndarray, old: Archive | None) -> tuple[np.ndarray, list[str]]:
    """Number of the continuous record that each day belongs to, by the sources' own names for their runs; the names.

    What the archive that stands says of its days is taken over. Where it is too old to name its runs, only a record
    without a name, as observations and reanalyses are, goes on.
    """
    days, run_of = days_of(field), np.asarray(field["run"].values).astype(str)
    before = np.zeros(0, np.int32) if old is None else old.run
    names = [] if old is None else list(old.attributes.get("runs", [""] * (int(before[-1]) + 1)))
    by_day = dict(zip(days, run_of, strict=True))
    number, numbers = (int(before[-1]) if len(before) else 0), []
    for day in time[len(before) :]:
        if (name := by_day.get(day)) is not None:
            if name not in names:
                names.append(name)
            number = names.index(name)
        numbers.append(number)
    return np.concatenate([before, np.array(numbers, np.int32)]), names
