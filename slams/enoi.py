"""Ensemble optimal interpolation (EnOI) over a window of days: the rival that a generative analysis has to beat.

The background is climatology c. Its error covariance is that of K anomalies A_k = x_k - c, whole windows of days of
the train years near the same day of the year, localised by rho and inflated by a, the same on every such date:

    x_a = c + (rho o a A'(HA) / K) (rho o a (HA)'(HA) / K + R)^-1 (y - H c),

H the linear map by which the window was observed. Levels and modalities are not localised from each other. A is not
centred again and the divisor is K: where a season's mean departs from the smooth climatology, that is an error of the
background too.

An ensemble of analyses comes from perturbed observations: member m has the background c + sqrt(a) A_m, the observations
y + noise of R, and the same gain. Its covariance is then that of the analysis error.

It does not keep rain positive. `slams.enoi_archive` draws the anomalies and tunes what is to be tuned.

Cost of a date with N observations at P places, M members and G cells: N^2 (K + N / 3) multiplications for the matrix
and its factor, G P K (M + 1) for the increments; memory 8 N^2 bytes. Of more than MOST_OBSERVATIONS, neighbours are
averaged first. References: Evensen 2003 (ensemble OI); Oke et al. 2002; Burgers et al. 1998.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.sparse import csr_array

from slams.enoi_observations import Listed
from slams.localisation import Localisation, mesh_points
from slams.rng import generator, normal
from slams.spec import Grid

MOST_OBSERVATIONS = 15_000  # a matrix of 1.8 GB
BLOCK = 1024  # rows or columns of a matrix made at once


@dataclass(frozen=True)
class Choice:
    """What is tuned.

    Arguments:
        half_width_km, half_width_days: of rho, which is 0 from twice as far; infinite = no localisation.
        inflation: a, factor on the variance of the anomalies.
        season_days: anomalies are of days of the year so near the analysed one's.

    Raises:
        ValueError: a number is not positive, or the half-width exceeds a quarter of the equator.
    """

    half_width_km: float
    half_width_days: float
    inflation: float = 1.0
    season_days: int = 45

    def __post_init__(self) -> None:
        for name in ("inflation", "season_days"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; more than 0 and finite")
        _ = self.localisation  # which checks the half-widths

    @property
    def localisation(self) -> Localisation:
        """rho."""
        return Localisation(self.half_width_km, self.half_width_days)


@dataclass(frozen=True)
class Ensemble:
    """Anomalies A of K windows in physical units: on the analysed day, and HA, as the whole window is observed."""

    centre_KCHW: np.ndarray
    predicted_KN: np.ndarray


class Gain:
    """Departures y - H x of the observations -> increments of the analysed day.

    rho is taken between places, not observations: the levels of a sounding share one, and what they add to the
    increment is summed before it is localised.

    Arguments:
        ensemble: of the windows that `observed` sees.
        observed: at most MOST_OBSERVATIONS; `superobservations` makes fewer of more.

    Raises:
        ValueError: too many observations, or an ensemble of others.
    """

    def __init__(self, ensemble: Ensemble, observed: Listed, grid: Grid, choice: Choice) -> None:
        n = len(observed.value_N)
        if n > MOST_OBSERVATIONS:
            raise ValueError(f"observations: {n} are more than {MOST_OBSERVATIONS}; average them first")
        if ensemble.predicted_KN.shape[1] != n:
            raise ValueError(f"ensemble: sees {ensemble.predicted_KN.shape[1]} observations, not {n}")
        here = np.column_stack([observed.point_N3, observed.day_N])
        self.places, place_N = np.unique(here, axis=0, return_inverse=True)
        self.ensemble, self.grid, self.choice, self.place_N = ensemble, grid, choice, place_N.reshape(-1)
        # in units of the observations' errors R is the identity, and no unit outweighs another
        self.std_N = observed.std_N
        self.scaled_KN = ensemble.predicted_KN / self.std_N
        self.factor_NN = cholesky(self._matrix(), lower=True, overwrite_a=True, check_finite=False)

    def _matrix(self) -> np.ndarray:
        """rho o a (HA)'(HA) / K + R, in blocks of columns."""
        n_members, n = self.scaled_KN.shape
        matrix_NN = np.empty((n, n), order="F")  # as the factorisation wants it, so that it need not copy
        for some in _blocks(n):
            rho = self.choice.localisation(self.places, self.places[self.place_N[some]])[self.place_N]
            covariance = self.scaled_KN.T @ self.scaled_KN[:, some]
            matrix_NN[:, some] = rho * covariance * (self.choice.inflation / n_members)
        matrix_NN[np.diag_indices(n)] += 1
        return matrix_NN

    def __call__(self, departure_MN: np.ndarray) -> np.ndarray:
        """Increments (M, C, H, W)."""
        weights_NM = cho_solve((self.factor_NN, True), (departure_MN / self.std_N).T, check_finite=False)
        return np.stack([self._increment(weight_N) for weight_N in weights_NM.T])

    def _increment(self, weight_N: np.ndarray) -> np.ndarray:
        """rho o a A'(HA) / K times the solution, (C, H, W), in blocks of cells."""
        n_members, n_channels = self.ensemble.centre_KCHW.shape[:2]
        anomaly_KCG = self.ensemble.centre_KCHW.reshape(n_members, n_channels, -1)
        points = mesh_points(self.grid.latitude, self.grid.longitude)
        cells = np.column_stack([points, np.zeros(len(points))])
        where, shape = (np.arange(len(weight_N)), self.place_N), (len(weight_N), len(self.places))
        at_place_KP = self.scaled_KN @ csr_array((weight_N, where), shape=shape)
        increment_CG = np.empty(anomaly_KCG.shape[1:])
        for some in _blocks(len(cells)):
            localised = at_place_KP @ self.choice.localisation(self.places, cells[some])
            increment_CG[:, some] = np.einsum("kcg,kg->cg", anomaly_KCG[:, :, some], localised)
        return (increment_CG * self.choice.inflation / n_members).reshape(n_channels, *self.grid.shape)


def analyse(
    gain: Gain, observed: Listed, climatology_LCHW: np.ndarray, key: tuple[int, int] = (0, 0), n_members: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The analysis x_CHW and an ensemble of analyses x_MCHW, physical units.

    The ensemble is drawn from the analysis error: its own mean errs about the analysis by sampling, as members of any
    ensemble do.

    Arguments:
        climatology_LCHW: the background of the window.
        key: seed, and number of the date.
        n_members: M, at most K.

    Raises:
        ValueError: more members than anomalies.
    """
    seed, date = key
    ensemble = gain.ensemble
    if n_members > len(ensemble.centre_KCHW):
        raise ValueError(f"members: {n_members} are more than the {len(ensemble.centre_KCHW)} anomalies there are")
    drawn = generator(seed, "enoi", date).permutation(len(ensemble.centre_KCHW))[:n_members]
    size = np.sqrt(gain.choice.inflation)
    noise = [normal(seed, "enoi", date, m, shape=observed.std_N.shape) * observed.std_N for m in range(n_members)]
    departure_N = observed.value_N - observed.predict(climatology_LCHW[None])[0]
    perturbed = [departure_N + e - size * ensemble.predicted_KN[k] for k, e in zip(drawn, noise, strict=True)]
    increment = gain(np.stack([departure_N, *perturbed]))
    background = climatology_LCHW[observed.half_window]
    members = background + size * ensemble.centre_KCHW[drawn] + increment[1:]
    return (background + increment[0]).astype(np.float32), members.astype(np.float32)


def _blocks(n: int) -> Iterator[slice]:
    yield from (slice(first, first + BLOCK) for first in range(0, n, BLOCK))
