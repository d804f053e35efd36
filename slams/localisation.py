"""Places on the sphere and how far an ensemble's covariances between them are believed.

A *place* is a point on the unit sphere and a day, four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import eval_legendre, sph_harm_y

from slams.spec import Grid

EARTH_RADIUS_KM = 6371.0
WIDEST_KM = np.pi / 2 * EARTH_RADIUS_KM
KEPT_OF_LOCALISATION = 0.97  # of the variance of a taper written as a sum of functions
MOST_DEGREES = 100


@dataclass(frozen=True)
class Localisation:
    """rho = G(distance / half_width_km) G(days apart / half_width_days), G of `gaspari_cohn`.

    Arguments:
        half_width_km, half_width_days: rho is 0 from twice as far; infinite = no localisation.

    Raises:
        ValueError: not positive, or wider than a quarter of the equator. Up to there G stays positive semi-definite
            when distances are measured along great circles (Gneiting 2013, theorem 3).
    """

    half_width_km: float = np.inf
    half_width_days: float = np.inf

    def __post_init__(self) -> None:
        for name in ("half_width_km", "half_width_days"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; more than 0")
        if WIDEST_KM < self.half_width_km < np.inf:
            raise ValueError(f"half_width_km: {self.half_width_km} is not allowed; up to {WIDEST_KM:.0f}, or infinite")

    def __call__(self, a_P4: np.ndarray, b_Q4: np.ndarray) -> np.ndarray:
        """rho between places, (P, Q)."""
        rho = gaspari_cohn(distance_km(a_P4[:, :3], b_Q4[:, :3]) / self.half_width_km)
        return rho * gaspari_cohn((a_P4[:, 3:] - b_Q4[:, 3]) / self.half_width_days)


def gaspari_cohn(ratio: np.ndarray) -> np.ndarray:
    """Correlation of compact support of a distance in half-widths: 1 at 0, 0 from 2 on.

    Piecewise rational of fifth order, twice continuously differentiable, positive semi-definite in up to three
    dimensions. Reference: Gaspari & Cohn 1999, equation 4.10.
    """
    r = np.minimum(np.abs(ratio), 2.0)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    far = 4 - 2 / (3 * np.maximum(r, 1)) + r * (-5 + r * (5 / 3 + r * (5 / 8 + r * (-1 / 2 + r / 12))))
    return np.where(r <= 1, near, np.maximum(far, 0))


def taper_functions(grid: Grid, half_width_km: float) -> np.ndarray:
    """Functions r_j of the cells whose sum_j r_j(a) r_j(b) is near `Localisation` and exactly 1 where a is b, (J, H W).

    A correlation that depends on distance alone is a series of spherical harmonics (Schoenberg 1942); it is cut where
    `KEPT_OF_LOCALISATION` of the variance is in it.

    Arguments:
        half_width_km: as of `Localisation`; infinite gives the constant function alone.
    """
    if np.isinf(half_width_km):
        return np.ones((1, grid.n_latitude * grid.n_longitude))
    share = _power_by_degree(half_width_km)
    degrees = int(np.searchsorted(np.cumsum(share), KEPT_OF_LOCALISATION)) + 1
    share = share[:degrees] / share[:degrees].sum()
    colatitude, longitude = np.meshgrid(np.deg2rad(90 - grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    found = []
    for degree in range(degrees):
        for order in range(-degree, degree + 1):
            y = sph_harm_y(degree, abs(order), colatitude.ravel(), longitude.ravel())
            real = y.real if order == 0 else 2**0.5 * (y.real if order > 0 else y.imag)
            found.append(real * np.sqrt(share[degree] * 4 * np.pi / (2 * degree + 1)))
    return np.stack(found)


def _power_by_degree(half_width_km: float) -> np.ndarray:
    """Share of the taper's variance in the spherical harmonics of each degree, by Gauss-Legendre quadrature."""
    cosine, weight = np.polynomial.legendre.leggauss(400)
    taper = gaspari_cohn(EARTH_RADIUS_KM * np.arccos(cosine) / half_width_km)
    degree = np.arange(MOST_DEGREES)
    legendre = np.stack([eval_legendre(each, cosine) for each in degree])
    return np.maximum((2 * degree + 1) / 2 * (legendre @ (weight * taper)), 0)


def distance_km(a_P3: np.ndarray, b_Q3: np.ndarray) -> np.ndarray:
    """Great-circle distances between points on the unit sphere, (P, Q)."""
    return EARTH_RADIUS_KM * np.arccos(np.clip(a_P3 @ b_Q3.T, -1, 1))


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Points (..., 3) on the unit sphere, of degrees north and east."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def mesh_points(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Points of a grid on the unit sphere, row by row, (H W, 3)."""
    return unit_vectors(*np.meshgrid(latitude, longitude, indexing="ij")).reshape(-1, 3)
