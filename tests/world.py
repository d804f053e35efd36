"""A small synthetic planet in the layout of the sample world's providers, for end-to-end tests.

Weather is a sum of spherical harmonics whose amplitudes follow AR(1) processes in time, so every statistic is
known: two vertical structures, of which the deep one also drives cloud (less OLR) and rain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.special import lpmv

LEVELS_HPA = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
MEAN_K = (229.0, 211.0, 205.0, 219.0, 231.0, 257.0, 272.0, 280.0, 283.0, 287.0)
POLE_TO_EQUATOR_K = (0.0, -5.0, -12.0, -2.0, 16.0, 22.0, 26.0, 29.0, 31.0, 33.0)
SUMMER_K = (8.0, 4.0, 2.0, 3.0, 6.0, 8.0, 9.0, 10.0, 11.0, 12.0)
DEEP_K = (0.5, 0.5, -1.0, -1.5, 1.5, 3.0, 3.0, 3.0, 2.5, 2.5)
SHALLOW_K = (3.0, 2.0, 1.5, 1.0, 0.5, 0.5, -0.5, 1.0, 1.5, 2.0)

PERSISTENCE_PER_DAY = 0.75
DEGREE = 5  # of the smallest waves
COARSE_DEGREES = 10.0  # grid step of rain and OLR
HALF_DAY = np.timedelta64(12, "h")


def write_world(
    folder: str | Path,
    years: Sequence[int],
    days_per_year: int | None = None,
    n_latitude: int = 17,
    n_longitude: int = 32,
    seed: int = 0,
) -> None:
    """Write era5_t.YYYY.nc, precip.YYYY.nc, olr.2xdaily.YYYY.nc and static.nc.

    Arguments:
        folder: made if it is not there.
        years: calendar years, in order of time.
        days_per_year: only the first so many days of each year; all of them by default.
        n_latitude: rows of the temperature grid, poles included.
        n_longitude: its columns.
        seed: another seed is another planet: other weather and other continents.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    fine = np.linspace(90, -90, n_latitude), np.arange(n_longitude) * 360 / n_longitude
    continents = rng.standard_normal(len(_degrees()))
    _write_static(folder, fine, continents)
    deep, shallow = np.split(rng.standard_normal((2, len(_degrees()))) / np.sqrt(len(_degrees())), 2)
    for year in years:
        days = _days(year)
        deep, shallow = _weather(rng, deep[-1], len(days)), _weather(rng, shallow[-1], len(days))
        kept = slice(days_per_year)
        _write_temperature(folder, year, days[kept], fine, deep[kept], shallow[kept])
        _write_precipitation(folder, year, days[kept], deep[kept], continents)
        _write_olr(folder, year, days[kept], deep[kept])


def _days(year: int) -> np.ndarray:
    return np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[D]").astype("datetime64[ns]")


def _degrees() -> list[tuple[int, int]]:
    return [(degree, order) for degree in range(1, DEGREE + 1) for order in range(-degree, degree + 1)]


def _harmonics(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Real spherical harmonics (wave, latitude, longitude), each of unit mean square over the sphere."""
    waves = []
    for degree, order in _degrees():
        m = abs(order)
        legendre = lpmv(m, degree, np.sin(np.deg2rad(latitude)))
        phase = m * np.deg2rad(longitude)
        wave = legendre[:, None] * (np.cos(phase) if order >= 0 else np.sin(phase))[None, :]
        factorials = np.prod(np.arange(degree - m + 1, degree + m + 1, dtype=float))
        waves.append(wave * np.sqrt((2 if m else 1) * (2 * degree + 1) / factorials))
    return np.stack(waves)


def _weather(rng: np.random.Generator, last: np.ndarray, n_days: int) -> np.ndarray:
    """Amplitudes (day, wave) that go on from the last ones, of unit variance in the sum over waves."""
    scale = np.sqrt((1 - PERSISTENCE_PER_DAY**2) / len(last))
    amplitudes = scale * rng.standard_normal((n_days, len(last)))
    for day in range(n_days):
        amplitudes[day] += PERSISTENCE_PER_DAY * (amplitudes[day - 1] if day else last)
    return amplitudes


def _contrast(latitude: np.ndarray) -> np.ndarray:
    """-P2(sin latitude): 1/2 at the equator, -1 at the poles, mean 0 over the sphere."""
    return (1 - 3 * np.sin(np.deg2rad(latitude)) ** 2) / 2


def _northern_summer(days: np.ndarray) -> np.ndarray:
    day_of_year = (days - days.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    return np.cos(2 * np.pi * (day_of_year - 200) / 365.25)


def _coarse(offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Cell centres; offset 0 puts points on the poles, 1/2 puts cell edges there."""
    first = offset * COARSE_DEGREES
    return np.arange(90 - first, -90 - 1e-6, -COARSE_DEGREES), np.arange(first, 360, COARSE_DEGREES)


def _field(amplitudes: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    waves = _harmonics(latitude, longitude)
    return (amplitudes @ waves.reshape(len(waves), -1)).reshape(-1, len(latitude), len(longitude))


def _write_temperature(
    folder: Path,
    year: int,
    days: np.ndarray,
    axes: tuple[np.ndarray, np.ndarray],
    deep: np.ndarray,
    shallow: np.ndarray,
) -> None:
    latitude, longitude = axes
    level = (slice(None), None, None)  # a profile against (level, latitude, longitude)
    mean = np.array(MEAN_K)[level] + np.array(POLE_TO_EQUATOR_K)[level] * _contrast(latitude)[None, :, None]
    season = np.array(SUMMER_K)[level] * np.sin(np.deg2rad(latitude))[None, :, None]
    kelvin = mean + season * _northern_summer(days)[:, None, None, None]
    for profile, amplitudes in ((DEEP_K, deep), (SHALLOW_K, shallow)):
        kelvin = kelvin + np.array(profile)[level] * _field(amplitudes, *axes)[:, None]
    _save(
        folder / f"era5_t.{year}.nc",
        xr.DataArray(
            kelvin,
            {"time": days, "level": np.int32(LEVELS_HPA), "latitude": latitude, "longitude": longitude},
            name="t",
            attrs={"units": "K", "long_name": "Temperature", "standard_name": "air_temperature"},
        ),
        {"dtype": "int16", "scale_factor": 0.005, "add_offset": 250.0, "_FillValue": -32767},
        1900,
    )


def _write_precipitation(folder: Path, year: int, days: np.ndarray, deep: np.ndarray, continents: np.ndarray) -> None:
    latitude, longitude = _coarse(0.5)
    wet = 2.7 * (1 + _contrast(latitude))[:, None] + 2.0 * _field(deep, latitude, longitude)
    land = _field(continents[None], latitude, longitude)[0] > 0
    rain = np.where(land, np.maximum(wet, 0).round(2), np.nan)
    _save(
        folder / f"precip.{year}.nc",
        xr.DataArray(
            rain,
            {"time": days, "lat": latitude, "lon": longitude},
            name="precip",
            attrs={"units": "mm", "long_name": "Daily total of precipitation"},
        ),
        {"dtype": "float32", "_FillValue": np.float32(-9.96921e36)},
        1900,
    )


def _write_olr(folder: Path, year: int, days: np.ndarray, deep: np.ndarray) -> None:
    latitude, longitude = _coarse(0.0)
    daily = 235 + 45 * _contrast(latitude)[:, None] - 15 * _field(deep, latitude, longitude)
    halves = np.stack([daily - 3, daily + 3], axis=1).reshape(-1, *daily.shape[1:])
    _save(
        folder / f"olr.2xdaily.{year}.nc",
        xr.DataArray(
            halves,
            {"time": (days[:, None] + [0 * HALF_DAY, HALF_DAY]).ravel(), "lat": latitude, "lon": longitude},
            name="olr",
            attrs={"units": "W/m^2", "long_name": "Outgoing longwave radiation"},
        ),
        {"dtype": "int16", "scale_factor": 0.01, "add_offset": 327.65, "_FillValue": 32766},
        1800,
    )


def _write_static(folder: Path, axes: tuple[np.ndarray, np.ndarray], continents: np.ndarray) -> None:
    height = _field(continents[None], *axes)[0] / np.linalg.norm(continents)
    dims = ("latitude", "longitude")
    land = (dims, (1 / (1 + np.exp(-8 * height))).astype(np.float32))
    orography = (dims, (1000 * np.maximum(height, 0)).astype(np.float32))
    static = xr.Dataset({"lsm": land, "orog": orography}, dict(zip(dims, axes, strict=True)))
    static.to_netcdf(folder / "static.nc")


def _save(path: Path, field: xr.DataArray, packing: dict[str, object], epoch: int) -> None:
    attrs = {"Conventions": "CF-1.8", "title": "synthetic, NOT observations", "simulation_run": "synthetic"}
    field.to_dataset().assign_attrs(attrs).to_netcdf(
        path,
        unlimited_dims=["time"],
        encoding={
            field.name: {"zlib": True, "complevel": 1, "shuffle": True, **packing},
            "time": {"units": f"hours since {epoch}-01-01", "dtype": "float64"},
        },
    )
