"""Where a simulated observing system looks: random networks, and the swaths of a polar orbiter.

The orbit is circular and sun-synchronous: its plane follows the mean sun, so that the satellite crosses the equator
northwards at the same local hour every day. The inclination then fixes the altitude, by the precession that the
Earth's flattening causes (Vallado 2013, section 9.4), hence the orbits a day, of which there is no whole number: the
swaths drift from day to day. Nothing is drawn by chance and nothing depends on the day a data set begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from slams.rng import generator

EARTH_RADIUS_M = 6_371_000.0  # of the sphere on which distances are measured
EQUATOR_RADIUS_M, GRAVITY_M3_S2, FLATTENING_J2 = 6_378_137.0, 3.986004418e14, 1.08263e-3  # WGS 84
DAY_S, YEAR_DAYS = 86_400.0, 365.2422
TRACK_STEP_S = 10.0  # 67 km of track: a swath 500 km wide ends within 2 km of where it should
INCLINATION_DEG = (96.0, 103.0)  # sun-synchronous orbits at 200 to 1700 km


@dataclass(frozen=True)
class SwathConfig:
    """A polar orbiter that looks to both sides of its track; the defaults are a microwave sounder's in the afternoon.

    Arguments:
        width_km: of the swath, on the ground.
        inclination_deg: of a sun-synchronous orbit.
        crossing_hour: local solar time at which it crosses the equator northwards.
    """

    width_km: float = 2300.0
    inclination_deg: float = 98.7
    crossing_hour: float = 13.5

    def __post_init__(self) -> None:
        low, high = INCLINATION_DEG
        if not 0 < self.width_km <= 10_000:
            raise ValueError(f"width_km: {self.width_km} is not allowed; more than 0, at most 10000")
        if not low <= self.inclination_deg <= high:
            raise ValueError(f"inclination_deg: {self.inclination_deg} is not allowed; {low} to {high}")
        if not 0 <= self.crossing_hour < 24:
            raise ValueError(f"crossing_hour: {self.crossing_hour} is not allowed; 0 to below 24")

    @property
    def orbits_per_day(self) -> float:
        """n = sqrt(mu / a^3) whose node goes round once a year, -3/2 J2 (a_e / a)^2 n cos(i) = 2 pi / year."""
        precession = 2 * np.pi / (YEAR_DAYS * DAY_S)
        pull = 1.5 * FLATTENING_J2 * EQUATOR_RADIUS_M**2 * np.sqrt(GRAVITY_M3_S2)
        radius = (-pull * np.cos(np.deg2rad(self.inclination_deg)) / precession) ** (2 / 7)
        return float(np.sqrt(GRAVITY_M3_S2 / radius**3) * DAY_S / (2 * np.pi))

    def track(self, day: np.datetime64) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of the point below the satellite every ten seconds of a day (UTC), in degrees."""
        time = int(day.astype("datetime64[D]").astype(int)) + np.arange(0, DAY_S, TRACK_STEP_S) / DAY_S
        along, tilt = 2 * np.pi * (time * self.orbits_per_day % 1), np.deg2rad(self.inclination_deg)
        latitude = np.arcsin(np.sin(tilt) * np.sin(along))
        node_deg = 15 * (self.crossing_hour - 24 * (time % 1))  # where that local hour is now
        east = np.arctan2(np.cos(tilt) * np.sin(along), np.cos(along))
        return np.rad2deg(latitude), (np.rad2deg(east) + node_deg) % 360


def seen_by_swath(config: SwathConfig, latitude: np.ndarray, longitude: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Which points lie in the day's swaths, (L, N): half a width from the track at most, along the great circle."""
    points = unit_vectors(latitude, longitude)
    chord = 2 * np.sin(config.width_km * 1000 / 2 / EARTH_RADIUS_M / 2)
    found = []
    for day in days:
        nearest, _ = cKDTree(unit_vectors(*config.track(day))).query(points, distance_upper_bound=chord)
        found.append(np.isfinite(nearest))
    return np.array(found)


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Points on the unit sphere, (N, 3)."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def random_network(area_N: np.ndarray, share: float, seed: int, number: int) -> np.ndarray:
    """A share of the cells, (N,), each chance in proportion to its area: a network is not dense at the poles.

    The largest of u^(1/area), u uniform, are a weighted sample without repetition (Efraimidis & Spirakis 2006). The
    chosen ones of a smaller share are among those of a larger.

    Arguments:
        number: of the modality. Its network and its errors of a day are different branches of the seed's tree.
    """
    kept = max(1, round(share * len(area_N)))
    chances = np.log(generator(seed, "observation", number).random(len(area_N))) / area_N
    chosen = np.zeros(len(area_N), bool)
    chosen[np.argsort(chances)[-kept:]] = True
    return chosen


def random_places(count: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of that many stations, uniform on the sphere; more of them are the same and others."""
    height, turn = generator(seed, "observation", number).random((count, 2)).T
    return np.rad2deg(np.arcsin(2 * height - 1)), 360 * turn
