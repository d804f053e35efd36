"""Archive -> simulated backgrounds: first guesses with an error of a known size, for experiments with a known truth.

x_b(day) = x(day) + share (x(other) - c(other)), with other a day of the train years from the same season and c the
climatology: an error with the structure of weather, as a forecast's is, that has nothing to do with the day's weather.
Rain that came to less than none is none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import track

from data_prep.config import BackgroundConfig, PrepConfig, comparable
from slams.config import to_dict
from slams.contracts.archive import Archive, create, finish, open_archive, write_block
from slams.contracts.envelope import check_source, is_finished, written_aside
from slams.rng import generator
from slams.spec import not_negative

SEASON_DAYS = 15  # on each side of the day
DAYS_PER_YEAR = 365.2425


def plan(config: BackgroundConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    done = "stand already" if Path(config.path).exists() else f"to be simulated from {whole.archive.path}"
    return [f"backgrounds {config.path} of the {config.split} years: {done}"]


def run(config: BackgroundConfig, whole: PrepConfig) -> None:
    """Write the backgrounds as an archive of that split, unless they stand already.

    Raises:
        ContractError: no archive, or no such split.
    """
    path, made_by = Path(config.path), to_dict(config) | {"archive": to_dict(whole.archive)}
    stands = path.exists() and is_finished(
        path, comparable((old := open_archive(path)).attributes["config"]), comparable(made_by)
    )
    archive = open_archive(whole.archive.path)
    if stands:
        return check_source(path, old.attributes.get("archive_sha256"), archive.path, archive.content)
    days = archive.days(config.split)
    attributes = {
        "config": made_by,
        "splits": {config.split: list(archive.splits[config.split])},
        "missing_days": _of_days(archive.attributes["missing_days"], archive.time[days]),
        "archive_sha256": archive.content,
        "source": f"simulated from {archive.path}: truth + {config.error_share:g} climatological anomalies",
    }
    with written_aside(path) as folder:
        group = create(folder, archive.spec, archive.time[days], archive.run[days], attributes)
        for block in track(list(archive.blocks(np.arange(len(days)))), description="backgrounds", transient=True):
            error_LCHW = config.error_share * drawn_anomalies(archive, days[block], config.seed)
            x_LCHW = not_negative(archive.read(days[block]) + error_LCHW, archive.spec)
            for modality in archive.spec.modalities:
                values = x_LCHW[:, archive.spec.channels(modality.name)]
                shape = (len(block), *values.shape[1 if modality.level_hpa else 2 :])
                write_block(group, modality.name, int(block[0]), values.reshape(shape))
        finish(folder, archive.statistics(), archive.attributes["global_std"])


def _of_days(missing: dict[str, list[str]], time: np.ndarray) -> dict[str, list[str]]:
    """The missing days of each modality that are among some days."""
    among = set(time.astype(str))
    return {name: [day for day in days if day in among] for name, days in missing.items()}


def drawn_anomalies(archive: Archive, days: np.ndarray, seed: int) -> np.ndarray:
    """Departures from the climatology on whole days of the train years in the same season, one a day, (L, C, H, W).

    Raises:
        ValueError: no such day.
    """
    missing, train = set().union(*archive.attributes["missing_days"].values()), archive.days("train")
    train = train[[str(day) not in missing for day in archive.time[train]]]
    phase = _day_of_year(archive.time[train])
    chosen = np.empty(len(days), int)
    for i, day in enumerate(archive.time[days]):
        apart = np.abs(phase - _day_of_year(day))
        near = train[np.minimum(apart, DAYS_PER_YEAR - apart) <= SEASON_DAYS]
        if not len(near):
            raise ValueError(f"{archive.path}: {day}: no train day within {SEASON_DAYS} days of its date is whole")
        chosen[i] = generator(seed, "background", int(day.astype(int))).choice(near)
    return archive.read(chosen) - archive.statistics().climatology(archive.time[chosen])


def _day_of_year(time: np.ndarray | np.datetime64) -> np.ndarray:
    return (time - time.astype("datetime64[Y]")).astype(int)
