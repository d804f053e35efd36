"""What observations say of an analysis: departures by group, and the errors and spread that they imply.

With an observation y of stated error variance R = error_std^2, H(x_b) of the background, H(x_i) of members i = 1..M,
their mean H(x_a) and variance s^2 (divisor M - 1), and <.> the mean over a group of observations,

    d_b = y - H(x_b)    "O - B",        d_a = y - H(x_a)    "O - A",        d_ab = H(x_a) - H(x_b) = d_b - d_a.

One pass keeps float64 sums of these by group (`Tallies`), so that shares of the work merge into what one pass gives;
every score is a function of sums (`Sums`). A score takes observations that the state knows; what an unknown background
leaves out counts for d_a alone. A group without any observation scores NaN.

Which scores may be believed where: an *assimilated* observation has pulled the members towards itself. Its O - A is
small by construction, below what its error alone would make it, and says nothing of places without observations. A
*withheld* observation is an independent judge; chi-square with spread, the spread-error ratio, the rank histogram and
the CRPS are meant for those.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slams.rng import normal

BANDS = ("90S-60S", "60S-30S", "30S-30N", "30N-60N", "60N-90N")
BAND_EDGES = (-60.0, -30.0, 30.0, 60.0)
SEASONS = ("DJF", "MAM", "JJA", "SON")
OF_ANALYSIS = ("rows", "known", "a", "aa", "r", "s", "total", "chi", "chi_total", "crps")
OF_BOTH = ("paired", "b", "bb", "ab", "paired_a", "paired_aa")
SUMS = (*OF_ANALYSIS, *OF_BOTH, "ranked")


@dataclass(frozen=True)
class Rows:
    """Some observations beside background and members, in the observations' units.

    Arguments:
        observed, error_std, background: (N,); NaN where not known.
        analysis: H(x_i), (M, N); NaN in a member that is missing.
        noise: standard normal numbers, (M, N); times the error they are added to the members where these are compared
            with y as if drawn from the same distribution.
    """

    observed: np.ndarray
    error_std: np.ndarray
    background: np.ndarray
    analysis: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Sums:
    """Sums over the observations of each group, (..., len(SUMS) + M + 1), the last M + 1 those of each rank."""

    values: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.values[..., SUMS.index(name)])

    @property
    def ranks(self) -> np.ndarray:
        """(..., M + 1)."""
        return np.asarray(self.values[..., len(SUMS) :])

    def mean(self, name: str) -> np.ndarray:
        """Over observations that the state knows, for d_a and what goes with it."""
        return _ratio(self[name], self["known"])

    def paired(self, name: str) -> np.ndarray:
        """Over observations of which the background is known too."""
        return _ratio(self[name], self["paired"])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where nothing was counted."""
    out = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan)
    return np.divide(above, below, out=out, where=np.asarray(below) > 0)


class Tallies:
    """Sums by group, a group being a tuple of whole numbers.

    Arguments:
        n_members: M; the ranks of observations that fewer members know are not counted.
    """

    def __init__(self, n_members: int) -> None:
        self.n_members = n_members
        self.groups: dict[tuple[int, ...], np.ndarray] = {}

    def add(self, keys: Sequence[np.ndarray], rows: Rows) -> None:
        """Some observations more; what is kept does not grow with their number.

        Arguments:
            keys: each (N,), whole numbers that together name the group of each observation.

        Raises:
            ValueError: another number of members.
        """
        if len(rows.analysis) != self.n_members:
            raise ValueError(f"analysis: {len(rows.analysis)} members; the sums are of {self.n_members}")
        found, group_N = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
        group_N = group_N.reshape(-1)
        sums = [np.bincount(group_N, column, minlength=len(found)) for column in _columns(rows)]
        for group, values in zip(found.tolist(), np.stack(sums, axis=1), strict=True):
            self._join(tuple(group), values)

    def merge(self, other: Tallies) -> None:
        """Take in what another share of the work has counted."""
        for group, values in other.groups.items():
            self._join(group, values)

    def joined(self, *positions: int) -> Tallies:
        """Groups joined where they agree in the keys at these positions, which alone are kept, in this order."""
        found = Tallies(self.n_members)
        for group, values in self.groups.items():
            found._join(tuple(group[position] for position in positions), values)
        return found

    @property
    def sums(self) -> dict[tuple[int, ...], Sums]:
        """Of each group, in order."""
        return {group: Sums(values) for group, values in sorted(self.groups.items())}

    def _join(self, group: tuple[int, ...], values: np.ndarray) -> None:
        self.groups[group] = self.groups.get(group, 0.0) + values


def _columns(rows: Rows) -> Iterator[np.ndarray]:
    """What each observation adds to `SUMS` and to the ranks, (N,) each and one at a time."""
    y, error, b = (np.asarray(part, np.float64) for part in (rows.observed, rows.error_std, rows.background))
    x = np.asarray(rows.analysis, np.float64)
    present = np.isfinite(x)
    m = present.sum(axis=0)
    known = (m >= min(2, len(x))) & np.isfinite(y) & np.isfinite(error)  # the last member of many has no spread
    paired = known & np.isfinite(b)
    x = np.where(present, x, np.nan)
    mean = np.nansum(x, axis=0) / np.maximum(m, 1)
    a, r = np.where(known, y - mean, 0.0), np.where(known, error**2, 0.0)
    s = np.where(known, np.nansum((x - mean) ** 2, axis=0) / np.maximum(m - 1, 1), 0.0)
    total = r + s * (m + 1) / np.maximum(m, 1)
    noisy = x + error * rows.noise
    o_b = np.where(paired, y - b, 0.0)
    chi = [np.nan_to_num(_ratio(a**2, variance)) for variance in (r, total)]
    yield from (np.ones_like(y), known * 1.0, a, a**2, r, s, total, *chi)
    yield np.where(known, _fair_crps(noisy - y, m), 0.0)
    yield from (paired * 1.0, o_b, o_b**2, a * o_b, a * paired, a**2 * paired)
    ranked = known & (m == len(x))
    yield ranked * 1.0
    below = (noisy < y).sum(axis=0)
    yield from (ranked & (below == rank) for rank in range(len(x) + 1))


def _fair_crps(error_MN: np.ndarray, m_N: np.ndarray) -> np.ndarray:
    """Fair CRPS of m members from their errors, NaN in the others; see `slams.metrics.fair_crps`."""
    ordered = np.sort(error_MN, axis=0)  # NaN last
    rank = np.arange(1, len(error_MN) + 1)[:, None]
    share = (2 * rank - m_N - 1) / np.maximum(m_N * (m_N - 1), 1)
    absolute = np.nansum(np.abs(error_MN), axis=0) / np.maximum(m_N, 1)
    return absolute - np.where(m_N > 1, np.nansum(share * ordered, axis=0), 0.0)


def band(latitude_N: np.ndarray) -> np.ndarray:
    """Number in `BANDS` of each latitude in degrees north; a bound belongs to the band north of it."""
    return np.digitize(latitude_N, BAND_EDGES)


def season(time_N: np.ndarray) -> np.ndarray:
    """Number in `SEASONS` of each valid time: December belongs to the winter that it begins."""
    month = np.asarray(time_N, "datetime64[M]").astype(int) % 12 + 1
    return np.asarray(month % 12 // 3)


def nearest_level(level_hpa_N: np.ndarray, levels_hpa: Sequence[float]) -> np.ndarray:
    """Number of the level nearest in the logarithm of pressure; 0 where there are no levels."""
    if not levels_hpa:
        return np.zeros(len(level_hpa_N), int)
    apart = np.abs(np.log(np.asarray(level_hpa_N, float)) - np.log(np.asarray(levels_hpa, float))[:, None])
    return np.asarray(apart.argmin(axis=0))


def keyed_noise(base: int, day: int, name: str, members: Sequence[int], content: Sequence[np.ndarray]) -> np.ndarray:
    """Standard normal numbers for the observations of one modality on one day, (M, N).

    They follow an observation's content, whatever the order in which observations come, and a member's number, whoever
    else there is; the whole day has to be given at once.

    Arguments:
        base: seed.
        day: days since 1970.
        content: arrays (N,) that together tell observations apart.
    """
    order = np.lexsort([np.unique(part, return_inverse=True)[1].reshape(-1) for part in content])
    found = np.empty((len(members), len(order)), np.float32)
    for row, member in enumerate(members):
        key = zlib.crc32(name.encode())
        found[row, order] = normal(base, "validation", day, key, int(member), shape=(len(order),))
    return found


# ---- scores


def moments(sums: Sums) -> dict[str, np.ndarray]:
    """Mean and standard deviation (divisor N) of O - B and O - A, in the observations' units.

    A mean is a bias of observation, operator or state, whichever; only several kinds of observations can tell. For
    assimilated observations std(O - A) is below the observation error whenever the analysis is any good, and 0 for
    one that copies its observations: small is not good. Below std(O - B) it shows that observations were drawn to.
    """
    b, a = sums.paired("b"), sums.mean("a")
    return {
        "o_minus_b_mean": b,
        "o_minus_b_std": np.sqrt(np.maximum(sums.paired("bb") - b**2, 0)),
        "o_minus_a_mean": a,
        "o_minus_a_std": np.sqrt(np.maximum(sums.mean("aa") - a**2, 0)),
    }


def chi_square(sums: Sums) -> np.ndarray:
    """J_o / N = <d_a^2 / R>, of dimension 1.

    For assimilated observations and a gain that is optimal its expectation is 1 - tr(H K) / N, and <s^2 / (M R)> more
    for the mean of M members: below 1, by the share of information that was taken from the observations, so 1 is not
    the aim. Above 1 the errors stated are too small
    for this analysis. References: Talagrand 1999; Desroziers & Ivanov 2001. It misleads where R is
    inflated for the assimilation: here R is the error as it was given.
    """
    return sums.mean("chi")


def chi_square_with_spread(sums: Sums) -> np.ndarray:
    """<d_a^2 / (R + (1 + 1/M) s^2)>, of dimension 1: 1 for observations withheld from many reliable members.

    An error of the mean of M members has 1 + 1/M times their variance (Fortin et al. 2014). Above 1 the sum of stated
    error and spread is too small; which of them it cannot tell. Few members raise it, because their variance is known
    poorly: by (M - 1) / (M - 3) at most, where R is nothing beside it, to 1.4 for M = 8; `spread_error_ratio` has no
    such excess. For assimilated observations it is below 1 even for a perfect posterior: d_a^2 is R - H A H' there.
    """
    return sums.mean("chi_total")


def spread_error_ratio(sums: Sums) -> np.ndarray:
    """sqrt(<R + (1 + 1/M) s^2> / <d_a^2>), of dimension 1: the spread-skill ratio with the observation error in it.

    1 for withheld observations of reliable members, below 1 over-confident. Where R is much the larger it is near 1
    whatever the members do. References: Fortin et al. 2014; Yamaguchi et al. 2016 for the error in the verification.
    """
    return np.sqrt(_ratio(sums["total"], sums["aa"]))


def desroziers(sums: Sums) -> dict[str, np.ndarray]:
    """Variances that the departures imply, in units squared, from Desroziers et al. 2005, equations (1) to (4).

        r = <d_a d_b>,    hbht = <d_ab d_b>,    haht = <d_ab d_a> + s^2 / M,    the means taken off;

    the mean of M members has a sampling error of s^2 / M of its own, which enters d_a and d_ab with opposite signs;
    estimates of observation error, and of background and analysis error in observation space. Beside them stand
    ``r_stated`` = <R> and ``spread`` = <s^2>, which r and haht are to be compared with.

    They hold for assimilated observations and for a gain that is linear and optimal: with wrong statistics in the
    gain, r + hbht stays <d_b^2> and is only shared out between the two as the assimilation believed; one pass shows
    the direction in which R is wrong, not its size. Sampled members, a nonlinear decoder, errors correlated between
    observations and a climatological background (whose errors are not Gaussian) each bend them. An estimate may be
    negative. Of withheld observations they say nothing: r is then <d_b^2> less the covariance of two state errors.
    """
    a, b = sums.paired("paired_a"), sums.paired("b")
    ab = sums.paired("ab") - a * b
    bb, aa = sums.paired("bb") - b**2, sums.paired("paired_aa") - a**2
    spread, n_members = sums.mean("s"), sums.ranks.shape[-1] - 1
    implied = {"r": ab, "hbht": bb - ab, "haht": ab - aa + spread / n_members}
    return implied | {"r_stated": sums.mean("r"), "spread": spread}


def crps(sums: Sums) -> np.ndarray:
    """Fair CRPS of H(x_i) + noise of the observation's error against y, in the observations' units.

    With the error added it is smallest in expectation for members of the truth's own distribution; without, it would
    reward too much spread (Ferro 2017). It contains the observation error, so that only systems judged by the same
    observations compare.
    """
    return sums.mean("crps")


def rank_shares(sums: Sums) -> np.ndarray:
    """How often y takes each rank among H(x_i) + noise of the observation's error, (..., M + 1), summing to 1.

    Flat when members are reliable and the stated error is right; a U is too little of their sum, a dome too much, a
    slope a bias. Without the noise a good ensemble would look over-confident (Anderson 1996; Hamill 2001).
    Assimilated observations make a dome of a perfect posterior, because it has already seen their errors.
    """
    return _ratio(sums.ranks, sums["ranked"][..., None])


def numbers(sums: Sums) -> dict[str, np.ndarray]:
    """Every score but the ranks, by name: ``rows`` given, ``known`` of them to the state, and the functions above."""
    found = {"rows": sums["rows"], "known": sums["known"]} | moments(sums)
    found |= {"chi_square": chi_square(sums), "chi_square_with_spread": chi_square_with_spread(sums)}
    return found | {"spread_error_ratio": spread_error_ratio(sums), "crps": crps(sums)} | desroziers(sums)
