"""Ensemble optimal interpolation from an archive: its anomalies, its analysis of a date, and its tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from slams.contracts.archive import Archive
from slams.enoi import MOST_OBSERVATIONS, Choice, Ensemble, Gain, analyse
from slams.enoi_observations import Listed, superobservations
from slams.metrics import EnsembleRMSE, FairCRPS
from slams.statistics import DAYS_PER_YEAR, Statistics

MOST_ANOMALIES = 1000
WINDOWS_AT_ONCE = 64


def analysis(
    archive: Archive,
    climatology: Statistics,
    day: np.datetime64,
    observed: Listed,
    choice: Choice,
    seed: int = 0,
    n_members: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The analysis x_CHW of a day and an ensemble of analyses x_MCHW, physical units.

    Arguments:
        climatology: the background; of an archive of kind ``scalar``, what `baselines.fit_climatology` gives.
        observed: of the window around the day. More than MOST_OBSERVATIONS are averaged.

    Raises:
        ValueError: too few train windows near the day of the year, or more members than there are.
    """
    observed = superobservations(observed, MOST_OBSERVATIONS)
    ensemble = season_ensemble(archive, climatology, day, observed, choice.season_days)
    gain = Gain(ensemble, observed, archive.spec.grid, choice)
    known = background(climatology, day, observed.half_window)
    return analyse(gain, observed, known, _key(seed, day), n_members)


def _key(seed: int, day: np.datetime64) -> tuple[int, int]:
    return seed, int(day.astype("datetime64[D]").astype(int))


def background(climatology: Statistics, day: np.datetime64, k: int) -> np.ndarray:
    """Climatology of the window of 2 k + 1 days around a day, x_LCHW; 0 where a channel is never observed."""
    time = day.astype("datetime64[D]") + np.arange(-k, k + 1)
    return np.where(climatology.observed, climatology.climatology(time), 0).astype(np.float32)


def season_ensemble(
    archive: Archive, climatology: Statistics, day: np.datetime64, observed: Listed, season_days: int
) -> Ensemble:
    """Anomalies of the train windows near a date's day of the year, evenly drawn if more than MOST_ANOMALIES.

    Windows are read a few at a time. None crosses from one continuous run to the next, lies within half a year of
    the date itself, or has a day on which a channel is missing altogether; a single missing cell has anomaly 0.

    Raises:
        ValueError: fewer than two windows.
    """
    k = observed.half_window
    centre, predicted = [], []
    for x_KLCHW in _windows(archive, climatology, _season(archive, day, k, season_days), k):
        centre.append(x_KLCHW[:, k].copy())
        predicted.append(observed.predict(x_KLCHW))
    if sum(map(len, centre)) < 2:
        raise ValueError(f"season_days: {season_days} around {day} leave no two whole train windows; at least two")
    return Ensemble(np.concatenate(centre), np.concatenate(predicted))


def _season(archive: Archive, day: np.datetime64, k: int, season_days: int) -> np.ndarray:
    """Indices of the train days around which anomalies are taken."""
    train = archive.days("train")
    inside = train[np.isin(train - k, train) & np.isin(train + k, train)]
    one_run = archive.run[inside - k] == archive.run[inside + k]
    apart = (archive.time[inside] - day.astype("datetime64[D]")).astype(float)
    of_year = np.abs((apart + DAYS_PER_YEAR / 2) % DAYS_PER_YEAR - DAYS_PER_YEAR / 2)
    # a date's own season holds the truth itself
    near = inside[one_run & (of_year <= season_days) & (np.abs(apart) > DAYS_PER_YEAR / 2)]
    return near[np.linspace(0, len(near) - 1, min(MOST_ANOMALIES, len(near))).round().astype(int)]


def _windows(archive: Archive, climatology: Statistics, centres: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Anomalies x_KLCHW of the windows around those days, some at a time; windows with a hole are left out."""
    for some in archive.blocks(centres, WINDOWS_AT_ONCE):
        days, window = np.unique(some[:, None] + np.arange(-k, k + 1), return_inverse=True)
        window_KL = window.reshape(len(some), 2 * k + 1)
        anomaly = archive.read(days) - climatology.climatology(archive.time[days])
        hole = np.isnan(anomaly).all(axis=(-2, -1)).any(axis=-1)
        yield np.nan_to_num(anomaly)[window_KL[~hole[window_KL].any(axis=1)]]


def tune(
    archive: Archive,
    climatology: Statistics,
    dates: Sequence[np.datetime64],
    observe: Callable[[np.datetime64], Listed],
    choices: Sequence[Choice],
    n_members: int = 0,
) -> tuple[Choice, dict[Choice, float]]:
    """The choice of the best score on validation dates, and the score of each.

    The score is of the state over the sphere and the dates, mean over its levels: without members the RMSE of the
    analysis, which hardly minds the inflation, with members the fair CRPS of the ensemble of analyses.

    Arguments:
        dates: of the validation years; the year before and after a date may be train years, never the date's own.
        observe: the observations of the window around a date, made as those to be analysed later are made.

    Raises:
        ValueError: no dates, no choices, a date that is not of the validation years, or dates without truth.
    """
    _check_dates(archive, dates)
    if not choices:
        raise ValueError("choices: none given; at least one is needed")
    spec = archive.spec
    kind = FairCRPS if n_members else EnsembleRMSE
    scores = {choice: kind(spec.n_channels, spec.grid.area_weights) for choice in choices}
    for date in dates:
        truth = torch.from_numpy(archive.read(archive.index_of([date]))[0])
        for choice, x_MCHW in _analyses(archive, climatology, date, observe(date), choices, n_members):
            scores[choice].update(torch.from_numpy(x_MCHW), truth)
    state = np.concatenate([np.full(m.n_channels, m.role == "state") for m in spec.modalities])
    table = {choice: float(score.compute().reshape(-1)[state].mean()) for choice, score in scores.items()}
    if not np.isfinite(list(table.values())).all():
        raise ValueError("dates: the truth is missing on all of them; other dates are needed")
    return min(table, key=lambda choice: table[choice]), table


def _analyses(
    archive: Archive,
    climatology: Statistics,
    date: np.datetime64,
    observed: Listed,
    choices: Sequence[Choice],
    n_members: int,
) -> Iterator[tuple[Choice, np.ndarray]]:
    """What each choice makes of a date: members, or without these the analysis as the only one.

    Anomalies are drawn once a season.
    """
    observed = superobservations(observed, MOST_OBSERVATIONS)
    known, key = background(climatology, date, observed.half_window), _key(0, date)
    for season_days in dict.fromkeys(choice.season_days for choice in choices):
        ensemble = season_ensemble(archive, climatology, date, observed, season_days)
        for choice in choices:
            if choice.season_days == season_days:
                gain = Gain(ensemble, observed, archive.spec.grid, choice)
                mean, members = analyse(gain, observed, known, key, n_members)
                yield choice, members if n_members else mean[None]


def _check_dates(archive: Archive, dates: Sequence[np.datetime64]) -> None:
    if not len(dates):
        raise ValueError("dates: none given; at least one of the validation years is needed")
    allowed = archive.time[archive.days("validation")]
    for date in np.asarray(dates, "datetime64[D]"):
        if date not in allowed:
            raise ValueError(f"dates: {date} is not of the validation years, {allowed[0]} to {allowed[-1]}")
