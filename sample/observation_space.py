"""A finished product in the space of what was observed: its departures, and observations it was never given.

Everything is read day by day or segment by segment and kept as sums by group (`slams.observation_space`). A group is a
modality, and in it everything, a level, a latitude band, a season, or a level in a band; an observation between levels
counts for the nearer in the logarithm of pressure.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sample.departures import evaluated, joined, listed
from slams.contracts.analysis import Analysis, open_analysis
from slams.contracts.departures import MEMBERS, open_departures
from slams.contracts.envelope import ContractError, write_text
from slams.contracts.observations import Observations, open_observations
from slams.observation_space import (
    BANDS,
    SEASONS,
    Rows,
    Sums,
    Tallies,
    band,
    keyed_noise,
    nearest_level,
    numbers,
    rank_shares,
    season,
)
from slams.rng import generator
from slams.spec import StateSpec
from slams.uncertainty import LEVEL, Estimate, date_blocks, resampled_dates

MODALITY, ASSIMILATED, AT_LEVEL, IN_BAND, IN_SEASON, DAY = range(6)
MARGINALS = ((), (AT_LEVEL,), (IN_BAND,), (IN_SEASON,), (AT_LEVEL, IN_BAND))
TELL_APART = ("observed", "error_std", "station_id", "longitude", "latitude", "level_hpa")
ALL = "all"
OF_SPREAD = ("chi_square_with_spread", "spread_error_ratio", "spread")  # of one member they say nothing


class Gathering:
    """What one pass over observations keeps.

    Arguments:
        spec: of the product.
        members: their numbers.
        seed: of the noise of the observations' errors.
    """

    def __init__(self, spec: StateSpec, members: np.ndarray, seed: int) -> None:
        self.spec, self.members, self.seed = spec, members, seed
        self.cells, self.dates = Tallies(len(members)), Tallies(len(members))

    def add(self, columns: Mapping[str, np.ndarray], analysis_MN: np.ndarray) -> None:
        """Observations of whole days, in any order.

        Arguments:
            columns: by the names of `slams.contracts.departures.COLUMNS`, each (N,).
            analysis_MN: H(x_a), NaN where not known.
        """
        day_N = np.asarray(columns["time"], "datetime64[D]").astype(int)
        for day in np.unique(day_N):
            for number, name in enumerate(self.spec.names):
                chosen = np.flatnonzero((day_N == day) & (columns["modality"] == name))
                if len(chosen):
                    some = {column: values[chosen] for column, values in columns.items()}
                    self._add(int(day), number, some, analysis_MN[:, chosen])

    def _add(self, day: int, number: int, columns: dict[str, np.ndarray], analysis_MN: np.ndarray) -> None:
        """Those of one modality on one day."""
        modality = self.spec.modalities[number]
        told = [columns[name] for name in TELL_APART]
        told[TELL_APART.index("station_id")] = columns["station_id"].astype(str)
        noise = keyed_noise(self.seed, day, modality.name, self.members.tolist(), told)
        parts = (columns[name] for name in ("observed", "error_std", "background"))
        level = nearest_level(columns["level_hpa"], modality.level_hpa)
        n = len(level)
        keys = [np.full(n, number), columns["assimilated"].astype(int), level, band(columns["latitude"])]
        keys += [season(columns["time"]), np.full(n, day)]
        found = Tallies(len(self.members))
        found.add(keys, Rows(*parts, analysis_MN, noise))
        self.cells.merge(found.joined(MODALITY, ASSIMILATED, AT_LEVEL, IN_BAND, IN_SEASON))
        self.dates.merge(found.joined(MODALITY, ASSIMILATED, DAY))

    def add_table(self, table: pa.Table) -> None:
        """One segment of departures."""
        columns = {name: table[name].to_numpy() for name in table.column_names if name != MEMBERS}
        flat = table[MEMBERS].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self.add(columns, flat.reshape(len(table), len(self.members)).T)


def of_departures(product: str | Path, seed: int = 0) -> Gathering:
    """What the departures of a product say; one segment is held at a time.

    Raises:
        ContractError: no product, an unfinished one, or damaged departures.
    """
    analysis = _finished(product)
    departures = open_departures(product)
    made = Gathering(analysis.spec, departures.members, seed)
    for table in departures.segments():
        made.add_table(table)
    return made


def of_held_out(product: str | Path, observations: Observations, seed: int = 0) -> Gathering:
    """What observations that were never assimilated say of a product's members; one day is held at a time.

    They have no background. Days on which one of the two has nothing are left out.

    Raises:
        ContractError: a set that was assimilated or that observes latents, another grid or other levels than the
            product's, or nothing observed on any of its days.
    """
    analysis = _finished(product)
    names = _comparable(analysis, observations)
    made = Gathering(analysis.spec, np.arange(analysis.n_members), seed)
    for where in np.flatnonzero(np.isin(analysis.time, observations.time)):
        day = analysis.time[where : where + 1]
        parts = [listed(seen, analysis.spec) for seen in observations.read_all(names, day) if seen.used.any()]
        if not parts:
            continue
        a_MN = evaluated(parts, analysis.read(int(where)))
        n = a_MN.shape[1]
        told = {"time": np.repeat(day, n), "background": np.full(n, np.nan), "assimilated": np.zeros(n, bool)}
        made.add(joined(parts) | told, a_MN)
    if not made.cells.groups:
        raise _nothing(observations, analysis)
    return made


def _nothing(observations: Observations, analysis: Analysis) -> ContractError:
    return ContractError(f"{observations.path}: observes nothing on any day of {analysis.path}")


def check_held_out(product: str | Path, observations: str | Path) -> None:
    """Refuse early what `of_held_out` would, as far as can be told without reading values.

    Raises:
        ContractError: see `of_held_out`.
    """
    _comparable(_finished(product), open_observations(observations))


def _finished(product: str | Path) -> Analysis:
    analysis = open_analysis(product)
    if not analysis.is_complete:
        raise ContractError(f"{analysis.path}: is not finished; run `python -m sample` again")
    return analysis


def _comparable(analysis: Analysis, observations: Observations) -> list[str]:
    """The modalities that both know."""
    if observations.space == "latent":
        raise ContractError(f"{observations.path}: observes latents; observations in physical units are needed")
    if observations.checksum == analysis.attributes.get("config", {}).get("observations_sha256"):
        raise ContractError(
            f"{observations.path}: was assimilated in {analysis.path}; observations that were not are needed"
        )
    names = [name for name in observations.names if name in analysis.spec.names]
    for name in names:
        given = observations.spec.modality(name)
        if given != analysis.spec.modality(name) or observations.spec.grid != analysis.spec.grid:
            raise ContractError(
                f"{observations.path}: {name} ({', '.join(given.channel_names)}; {given.units}; "
                f"{observations.spec.grid.shape}) is not what {analysis.path} holds"
            )
    if not names or not np.isin(analysis.time, observations.time).any():
        raise _nothing(observations, analysis)
    return names


# ---- numbers


def observation_space(
    product: str | Path, observations: str | Path = "", bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All that observations say of a finished product.

    Arguments:
        product: folder or URL of the analysis.
        observations: a set that was not assimilated, or none.
        bootstrap: resamples behind each confidence interval.

    Returns:
        Values for JSON: ``departures``, of what the analysis was given, withheld modalities too, and, with a set of its
        own, ``held_out``; see `summary`. ``background`` says what H(x_b) is of, by modality. ``departures`` is missing
        in a product of latent observations.

    Raises:
        ContractError: see `of_departures` and `of_held_out`.
    """
    found: dict[str, Any] = {"product": str(product), "background": open_departures(product).background}
    made = of_departures(product, seed)
    if made.cells.groups:
        found["departures"] = summary(made, bootstrap)
    if observations:
        given = open_observations(observations)
        told = {"observations": str(given.path), "observations_sha256": given.checksum}
        found["held_out"] = told | summary(of_held_out(product, given, seed), bootstrap)
        count_rejected(found["held_out"], given, open_analysis(product).time)
    return found


def count_rejected(told: dict[str, Any], observations: Observations, days: np.ndarray) -> None:
    """Add to a summary's ``counts``, of each modality at stations, the reports that failed their quality control.

    A grid does not tell them from what was never observed.
    """
    shared = days[np.isin(days, observations.time)]
    for name in set(told["counts"]) & set(observations.stations):
        reports = (observations.read_stations(name, shared[i : i + 1]) for i in range(len(shared)))
        told["counts"][name]["rejected"] = sum(int((each.qc != 0).sum()) for each in reports)


def summary(made: Gathering, bootstrap: int) -> dict[str, Any]:
    """What was gathered, as values for JSON; null stands for what has no value.

    Returns:
        ``dates`` (first, last, number), ``members``, and

        * ``counts``, by modality: ``rows`` evaluated, ``assimilated``, ``withheld``, and ``unknown``, those of them
          that the state knows nothing of; what failed its quality control was never a row, see `count_rejected`;
        * ``groups``, a list: ``modality``, ``units``, ``assimilated``, ``level_hpa``, ``band``, ``season`` (each "all",
          or which; the level null in a modality without levels), the numbers of `slams.observation_space.numbers`,
          and ``rank_shares``, (M + 1,); null where a number needs a spread and there is one member;
        * ``confidence``: ``level``, ``resamples``, ``blocks`` of at most five days, and ``of``, a list of modalities
          with their own ``blocks``, those on which they were observed, and the 95 % interval of each number; missing
          where that is a single one.
    """
    days = np.unique([group[-1] for group in made.dates.groups]).astype("datetime64[D]")
    return {
        "dates": {"first": str(days[0]), "last": str(days[-1]), "number": len(days)},
        "members": len(made.members),
        "counts": _counts(made),
        "groups": [row for marginal in MARGINALS for row in _groups(made, marginal)],
        "confidence": _confidence(made, days, bootstrap),
    }


def _counts(made: Gathering) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (number, assimilated), sums in made.cells.joined(MODALITY, ASSIMILATED).sums.items():
        rows, known = int(sums["rows"]), int(sums["known"])
        told = {"rows": rows, "assimilated": rows * assimilated, "withheld": rows * (1 - assimilated)}
        told["unknown"] = rows - known
        before = found.get(made.spec.names[number], {})
        found[made.spec.names[number]] = {name: n + before.get(name, 0) for name, n in told.items()}
    return found


def _groups(made: Gathering, marginal: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row a group of a marginal, modalities without levels left out where levels are told apart."""
    rows = []
    for key, sums in made.cells.joined(MODALITY, ASSIMILATED, *marginal).sums.items():
        modality, which = made.spec.modalities[key[0]], dict(zip(marginal, key[2:], strict=True))
        levels = modality.level_hpa
        if AT_LEVEL in which and not levels:
            continue
        level = levels[which[AT_LEVEL]] if AT_LEVEL in which else (ALL if levels else None)
        place = {"modality": modality.name, "units": modality.units, "assimilated": bool(key[1]), "level_hpa": level}
        place["band"] = BANDS[which[IN_BAND]] if IN_BAND in which else ALL
        place["season"] = SEASONS[which[IN_SEASON]] if IN_SEASON in which else ALL
        told = {name: _plain(value) for name, value in numbers(sums).items()}
        shares = [_plain(share) for share in rank_shares(sums)]
        if len(made.members) == 1:
            told, shares = told | dict.fromkeys(OF_SPREAD), [None] * len(shares)
        rows.append(place | told | {"rank_shares": shares})
    return rows


def _plain(value: np.ndarray) -> int | float | None:
    """For JSON, which knows no NaN."""
    number = float(value)
    return (int(number) if number.is_integer() else number) if np.isfinite(number) else None


def _confidence(made: Gathering, days: np.ndarray, bootstrap: int) -> dict[str, Any]:
    """Intervals by modality from resampled blocks of days; a number is that of the sums of a sample."""
    blocks = date_blocks(days)
    counts_RD = resampled_dates(blocks, bootstrap, generator(made.seed, "validation"))
    of, none = [], ("rows", "known", *(OF_SPREAD if len(made.members) == 1 else ()))
    for key in made.cells.joined(MODALITY, ASSIMILATED).groups:
        by_day = _by_day(made, key, days.astype(int))
        n_blocks = len(np.unique(blocks[Sums(by_day)["known"] > 0]))
        found, drawn = numbers(Sums(by_day.sum(axis=0))), numbers(Sums(counts_RD @ by_day))
        place = {"modality": made.spec.names[key[0]], "assimilated": bool(key[1]), "blocks": n_blocks}
        told = {name: _interval(found[name], each, n_blocks) for name, each in drawn.items() if name not in none}
        of.append(place | told)
    of = [each for each in of if each["blocks"] > 1]
    return {"level": LEVEL, "resamples": bootstrap, "blocks": int(blocks.max()) + 1, "of": of}


def _by_day(made: Gathering, key: tuple[int, ...], days: np.ndarray) -> np.ndarray:
    """Sums of a modality on each day, (D, S)."""
    some = next(iter(made.dates.groups.values()))
    return np.stack([made.dates.groups.get((*key, int(day)), np.zeros_like(some)) for day in days])


def _interval(value: np.ndarray, drawn_R: np.ndarray, n_blocks: int) -> list[float] | None:
    """None from a single block; resamples without any of the observations have no value and do not count."""
    between = Estimate(value[None], drawn_R[:, None], np.array([n_blocks])).interval(0)
    return list(between) if between and np.isfinite(value) else None


def write_csv(path: Path, found: dict[str, Any]) -> None:
    """One row a group of each product's `observation_space`, departures before held-out; the ranks are left out.

    Arguments:
        found: by name of product.
    """
    rows = [
        {"product": name, "of": of} | {column: value for column, value in row.items() if column != "rank_shares"}
        for name, told in found.items()
        for of in ("departures", "held_out")
        for row in told.get(of, {}).get("groups", ())
    ]
    text = StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
