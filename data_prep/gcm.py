"""One continuous simulation of the sample world, year by year, with the general circulation model `jcm`.

This program runs in an environment of its own (`make .venv-world`) and imports nothing of the project.
`data_prep/world.py` starts it, writes one line of JSON (see `Job`) to its standard input and reads one line
of JSON per event from its standard output. Standard input stays open as a lifeline: when it closes, the
driver is gone and this program ends.

The model is `jcm` 3.0.0: SPEEDY physics (Molteni 2003, doi:10.1007/s00382-002-0268-2; Kucharski et al. 2013,
doi:10.1175/BAMS-D-11-00238.1) on the spectral core `dinosaur` (Kochkov et al. 2024,
doi:10.1038/s41586-024-07744-y), eight layers. It is driven in the manner of the Atmospheric Model
Intercomparison Project (Gates 1992, doi:10.1175/1520-0477(1992)073<1962:ATAMIP>2.0.CO;2): climatological ice,
snow and soil water, and sea-surface temperature equal to climatology plus the observed monthly anomalies of
1979-2013. All of it ships inside the `jcm` wheel.

**Why a resumed run equals an uninterrupted one, bit for bit.** The model state goes through a file at every
1 January, resumed or not: each year starts from what was read back from disk. The model moves by one day a
call, so the compiled program is the same for every day, and its arithmetic runs on one thread.

Letters: n day or half-day, k model layer, j pressure level, b and a longitude and latitude of the model,
x and y longitude and latitude of a product.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xarray as xr

LEVELS_HPA = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
LAYERS = 8                       # 10 layers ran dry and 12 blew up with SPEEDY's fixed parameters
TIME_STEP_MIN = {21: 60.0, 31: 40.0, 42: 30.0}
SPIN_UP_FROM = "09-01"           # of the year before the first: 122 days from rest to a lively January
HALF_DAYS = 2                    # longwave radiation is a twice-daily product
REPORT_EVERY_DAYS = 10
LARGEST_ANOMALY_K = 6.0

# SPEEDY's polar-night stratosphere falls to 125 K, so its two top layers are drawn to a mid-latitude mean
STRATOSPHERE_K = (224.0, 208.0)              # at 25 and 95 hPa
STRATOSPHERE_TIME_S = 10 * 86400.0           # the top layer; the second takes RAMP times as long
STRATOSPHERE_RAMP = 3.0

STANDARD_LAPSE_EXPONENT = 287.05 * 6.5e-3 / 9.80665   # R Gamma / g for 6.5 K/km
HPA_OF_SURFACE_PRESSURE = 1000.0
SECONDS_PER_DAY = 86400.0
OCEAN = np.float32(-9.96921e36)              # missing value of the gauge product

Field = np.ndarray
Report = Callable[..., None]     # one event, as keywords


@dataclass(frozen=True)
class Job:
    """What the driver asks for: the years of one run that are missing, in order, and where each file goes."""

    truncation: int
    seed: int
    run: str                     # identity of the continuous simulation, written into every file
    first_year: int              # of the run, not of what is missing
    years: list[dict[str, Any]]  # year, temperature, precipitation, longwave, start_state, end_state
    static: str
    cache: str
    temperature_step_deg: float
    precipitation_step_deg: float
    longwave_step_deg: float
    core: int | None


# ---------------------------------------------------------------- arithmetic without the model

def to_pressure(temperature_nkba: Field, surface_nba: Field, sigma_k: Field) -> Field:
    """Temperature [K] from sigma layers to LEVELS_HPA, linear in ln p.

    Above the top layer the gradient of the top two layers goes on; below the lowest layer the temperature
    follows the standard lapse rate, T = T_low (p / p_low)^(R Gamma / g), underground too.

    Arguments:
        temperature_nkba: (n, k, b, a) [K]; sigma_k: (k,) = p / p_surface, increasing downwards;
        surface_nba: (n, b, a) [hPa]
    """
    log_sigma = np.log(sigma_k)
    columns = [_at_level(temperature_nkba, np.log(level / surface_nba), log_sigma) for level in LEVELS_HPA]
    return np.stack(columns, axis=1)


def _at_level(temperature_nkba: Field, target_nba: Field, log_sigma_k: Field) -> Field:
    """Temperature [K] at ln(sigma) = target in every column."""
    below = np.clip(np.searchsorted(log_sigma_k, target_nba), 1, len(log_sigma_k) - 1)
    upper = np.take_along_axis(temperature_nkba, below[:, None] - 1, axis=1)[:, 0]
    lower = np.take_along_axis(temperature_nkba, below[:, None], axis=1)[:, 0]
    weight = (target_nba - log_sigma_k[below - 1]) / (log_sigma_k[below] - log_sigma_k[below - 1])
    depth = target_nba - log_sigma_k[-1]
    underground = temperature_nkba[:, -1] * np.exp(STANDARD_LAPSE_EXPONENT * np.maximum(depth, 0.0))
    return np.where(depth > 0, underground, upper + weight * (lower - upper))


@dataclass(frozen=True)
class Grid:
    """Longitudes eastward from 0 and latitudes, in degrees."""

    longitude: Field
    latitude: Field

    @classmethod
    def regular(cls, step_deg: float, *, poles: bool) -> "Grid":
        """A regular grid, latitude descending: with points on the poles, or as cell centres between them."""
        edge = 0.0 if poles else step_deg / 2
        rows = round(180 / step_deg) + poles
        return cls(edge + step_deg * np.arange(round(360 / step_deg)), 90 - edge - step_deg * np.arange(rows))


def regrid(field_ba: Field, source: Grid, target: Grid) -> Field:
    """Bilinear (..., longitude, latitude) -> (..., latitude, longitude), float32; poles get their mean."""
    east = _hat_weights(source.longitude, target.longitude, period=360.0)
    north = _hat_weights(source.latitude, target.latitude)
    out = north @ np.swapaxes(field_ba, -1, -2).astype(np.float64) @ east.T
    pole = np.abs(target.latitude) > 90 - 1e-6
    out[..., pole, :] = out[..., pole, :].mean(axis=-1, keepdims=True)
    return out.astype(np.float32)


def _hat_weights(source: Field, target: Field, period: float | None = None) -> Field:
    """Matrix (target, source) of linear interpolation; constant beyond the ends unless periodic."""
    return np.stack([np.interp(target, source, hat, period=period) for hat in np.eye(len(source))], axis=1)


def area_mean(field_yx: Field, latitude: Field) -> float:
    """Mean over the globe of a (latitude, longitude) field, weighted by cos(latitude)."""
    return float(np.average(field_yx.mean(axis=-1), weights=np.cos(np.deg2rad(latitude))))


def realism(products: dict[str, Field], grids: dict[str, Grid]) -> dict[str, float]:
    """Figures that show a broken climate at a glance: means, and the rms deviation from the zonal mean."""
    middle = products["temperature"][:, LEVELS_HPA.index(500)]
    variance = np.var(middle, axis=-1, keepdims=True)
    return {
        "t500_k": area_mean(middle.mean(axis=0), grids["temperature"].latitude),
        "t500_eddy_k": area_mean(variance.mean(axis=0), grids["temperature"].latitude) ** 0.5,
        "rain_mm_day": area_mean(products["precipitation"].mean(axis=0), grids["precipitation"].latitude),
        "olr_w_m2": area_mean(products["longwave"].mean(axis=0), grids["longwave"].latitude),
    }


# ---------------------------------------------------------------- the model

def boundary_data() -> Any:
    """Folder of the T30 boundary files inside the jcm wheel."""
    return resources.files("jcm.data.bc.t30")


def dated_forcing() -> xr.Dataset:
    """Monthly surface forcing 1979-2013: the climatology repeated, plus the observed SST anomalies [K]."""
    climatology = xr.load_dataset(boundary_data() / "clim" / "forcing.nc")
    anomaly = xr.load_dataset(boundary_data() / "anom" / "sea_surface_temperature_anomaly.nc").ssta
    anomaly = anomaly.sortby("lat").transpose("lon", "lat", "time")
    month = xr.DataArray(anomaly.time.dt.month.values - 1, dims="time")
    middle = anomaly.time + np.timedelta64(14, "D")     # a monthly mean stands for mid-month
    dated = climatology.isel(time=month).assign_coords(time=middle)
    # 0.4 % of the anomalies, all poleward of 50 degrees at the ice edge, are larger, up to 23 K.
    dated["sst"] = dated.sst + anomaly.clip(-LARGEST_ANOMALY_K, LARGEST_ANOMALY_K).values
    return dated


class Simulation:
    """The model of one run, its boundary conditions, and its state on disk."""

    def __init__(self, truncation: int, seed: int, first_year: int) -> None:
        """Build the model; nothing is compiled before the first day."""
        from jcm.forcing import ForcingData
        from jcm.model import Model
        from jcm.physics.dissipation.upper_temperature_relaxation import UpperTemperatureRelaxation
        from jcm.physics.speedy.speedy_coords import get_speedy_coords
        from jcm.physics.speedy.speedy_terms import speedy_physics
        from jcm.terrain import TerrainData

        coords = get_speedy_coords(layers=LAYERS, spectral_truncation=truncation)
        profile_k = (*STRATOSPHERE_K, *[0.0] * (LAYERS - len(STRATOSPHERE_K)))
        relaxation = UpperTemperatureRelaxation(
            profile_k, len(STRATOSPHERE_K), STRATOSPHERE_TIME_S, STRATOSPHERE_RAMP)
        self.seed, self.first_year = seed, first_year
        self.terrain = TerrainData.from_file(boundary_data() / "clim" / "terrain.nc", coords=coords)
        self.forcing = ForcingData.from_dataset(dated_forcing(), coords=coords, align_mode="by_date_interp")
        self.model = Model(coords=coords, terrain=self.terrain, physics=speedy_physics() + relaxation,
                           time_step=TIME_STEP_MIN[truncation], start_time=f"{first_year - 1}-{SPIN_UP_FROM}")
        self.sigma = np.asarray(coords.vertical.centers)
        radians = (coords.horizontal.longitudes, coords.horizontal.latitudes)
        self.grid = Grid(*(np.rad2deg(np.asarray(axis)) for axis in radians))

    def start(self) -> None:
        """Rest, with a perturbation of the surface pressure that depends on the seed."""
        self.model.bootstrap_state(self.model.initial_state(random_seed=self.seed))

    def restore(self, path: Path) -> None:
        """The state as `save` left it: every array by name, and the model's exact clock."""
        from jcm.checkpoint import load_checkpoint

        if self.model.run_state is None:
            self.start()         # gives the names, shapes and types that the file is held against
        load_checkpoint(self.model, path)

    def save(self, path: Path) -> None:
        """Write the full state and clock (msgpack), aside and then renamed."""
        from jcm.checkpoint import save_checkpoint

        save_checkpoint(self.model, path)

    def day(self) -> dict[str, Field]:
        """Advance one day; half-day means, each with leading axis HALF_DAYS, in physical units."""
        out = self.model.resume(forcing=self.forcing, total_time=1.0, save_interval=1.0 / HALF_DAYS,
                                output_averages=True)
        rain_kg_m2_s = np.asarray(out.physics["surface_exchange"].precipitation)
        return {
            "temperature": np.asarray(out.dynamics.temperature),
            "surface_hpa": np.asarray(out.dynamics.normalized_surface_pressure) * HPA_OF_SURFACE_PRESSURE,
            "precipitation": rain_kg_m2_s * SECONDS_PER_DAY,
            "longwave": np.asarray(out.physics["_longwave_rad"].ftop),
        }

    def days(self, first: np.datetime64, count: int, report: Report) -> Iterator[dict[str, Field]]:
        """Advance `count` days from `first`, reporting now and then; stop at a value that is not finite."""
        for number in range(1, count + 1):
            fields = self.day()
            if not all(np.isfinite(field).all() for field in fields.values()):
                raise FloatingPointError(f"the model blew up on {first + number - 1} (seed {self.seed})")
            if number % REPORT_EVERY_DAYS == 0 or number == count:
                report(event="days", count=(number - 1) % REPORT_EVERY_DAYS + 1)
            yield fields


# ---------------------------------------------------------------- files

def days_of(year: int) -> Field:
    """Every day of a calendar year."""
    return np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="M8[D]")


def describe(job: Job) -> dict[str, Any]:
    """Global attributes: nobody who opens a file shall take it for an observation."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jcm", "dinosaur", "jax"))
    return {
        "Conventions": "CF-1.8",
        "title": "Sample world: SIMULATED by a general circulation model, NOT observations",
        "source": f"{versions}; SPEEDY physics, T{job.truncation}, {LAYERS} layers",
        "comment": "Driven by climatological and observed sea-surface temperature; no diurnal cycle.",
        "simulation_run": job.run,
        "simulation_seed": job.seed,
    }


def write_aside(dataset: xr.Dataset, path: Path, encoding: dict[str, Any]) -> None:
    """Write to a hidden name, flush, rename: a file under its own name is always whole."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    unlimited = [name for name in dataset.dims if name == "time"]
    dataset.to_netcdf(aside, engine="netcdf4", encoding=encoding, unlimited_dims=unlimited)
    with aside.open("rb") as handle:
        os.fsync(handle.fileno())
    aside.replace(path)


def packed(middle: float, step: float, missing: int) -> dict[str, Any]:
    """Encoding as int16 counts of `step` around the middle of the range, as the providers pack."""
    return {"dtype": "int16", "scale_factor": step, "add_offset": middle, "_FillValue": np.int16(missing)}


@dataclass(frozen=True)
class Product:
    """The form of one provider's yearly file."""

    variable: str
    rows: str                    # name of the latitude axis
    columns: str
    attributes: dict[str, str]
    encoding: dict[str, Any]
    epoch: str
    times_a_day: int = 1
    level: tuple[int, ...] = ()  # hPa


PRODUCTS = {
    "temperature": Product(                                      # ERA5
        "t", "latitude", "longitude",
        {"units": "K", "long_name": "Temperature", "standard_name": "air_temperature",
         "cell_methods": "time: mean"},
        packed(250.0, 0.005, -32767), "1900-01-01", level=LEVELS_HPA),
    "precipitation": Product(                                    # CPC unified gauges: nothing over the ocean
        "precip", "lat", "lon",
        {"units": "mm", "long_name": "Daily total of precipitation", "cell_methods": "time: sum"},
        {"dtype": "float32", "_FillValue": OCEAN, "missing_value": OCEAN}, "1900-01-01"),
    "longwave": Product(                                         # NOAA: 00 and 12 UTC, means of what follows
        "olr", "lat", "lon",
        {"units": "W m-2", "long_name": "Outgoing longwave radiation",
         "standard_name": "toa_outgoing_longwave_flux", "cell_methods": "time: mean"},
        packed(327.65, 0.01, 32766), "1800-01-01", times_a_day=HALF_DAYS),
}
AXES = {
    "latitude": {"units": "degrees_north", "standard_name": "latitude"},
    "longitude": {"units": "degrees_east", "standard_name": "longitude"},
    "level": {"units": "hPa", "positive": "down"},
}


def map_axes(rows: str, columns: str, grid: Grid) -> dict[str, xr.Variable]:
    """Coordinates of a map."""
    return {rows: xr.Variable(rows, grid.latitude, AXES["latitude"]),
            columns: xr.Variable(columns, grid.longitude, AXES["longitude"])}


def yearly(product: Product, year: int, values: Field, grid: Grid) -> xr.Dataset:
    """One calendar year of one product."""
    part = np.arange(product.times_a_day) * np.timedelta64(24 // product.times_a_day, "h")
    times = (days_of(year)[:, None] + part).ravel().astype("M8[ns]")
    level = {"level": xr.Variable("level", np.int32(product.level), AXES["level"])} if product.level else {}
    coords = {"time": times, **level, **map_axes(product.rows, product.columns, grid)}
    return xr.Dataset({product.variable: (tuple(coords), values, product.attributes)}, coords)


def save_yearly(product: Product, dataset: xr.Dataset, path: Path) -> None:
    """Write as the provider does: compressed, a chunk for each time, hours since the provider's epoch."""
    chunks = (1, *dataset[product.variable].shape[1:])
    form = {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": chunks, **product.encoding}
    hours = {"units": f"hours since {product.epoch} 00:00:00", "dtype": "float64", "_FillValue": None}
    write_aside(dataset, path, {product.variable: form, "time": hours})


# ---------------------------------------------------------------- one run

class Recorder:
    """Turns the model's days into the products of one year."""

    def __init__(self, job: Job, simulation: Simulation) -> None:
        """Fix the grids and the gauges: rain is known where land fills at least half of a cell."""
        self.job, self.simulation = job, simulation
        self.grids = {
            "temperature": Grid.regular(job.temperature_step_deg, poles=True),
            "precipitation": Grid.regular(job.precipitation_step_deg, poles=False),
            "longwave": Grid.regular(job.longwave_step_deg, poles=True),
        }
        self.land = self.on("precipitation", simulation.terrain.fmask) >= 0.5

    def on(self, name: str, field_ba: Field) -> Field:
        """A model field on the grid of a product."""
        return regrid(np.asarray(field_ba), self.simulation.grid, self.grids[name])

    def save_static(self) -> None:
        """Land fraction and orography on the temperature grid."""
        terrain = self.simulation.terrain
        axes = map_axes("latitude", "longitude", self.grids["temperature"])
        lsm = self.on("temperature", terrain.fmask), {"units": "1", "long_name": "Land-sea mask"}
        orog = self.on("temperature", terrain.orog), {"units": "m", "long_name": "Orography"}
        attributes = {k: v for k, v in describe(self.job).items() if not k.startswith("simulation_")}
        dataset = xr.Dataset({"lsm": (tuple(axes), *lsm), "orog": (tuple(axes), *orog)}, axes, attributes)
        write_aside(dataset, Path(self.job.static), {})

    def products(self, fields: dict[str, Field]) -> dict[str, Field]:
        """One day of the model as one day of each product (longwave: HALF_DAYS maps)."""
        temperature, surface_hpa, rain = (
            fields[name].astype(np.float64).mean(axis=0, keepdims=True)
            for name in ("temperature", "surface_hpa", "precipitation"))
        levels = to_pressure(temperature, surface_hpa, self.simulation.sigma)
        return {
            "temperature": self.on("temperature", levels),
            "precipitation": np.maximum(self.on("precipitation", rain), 0.0).round(2),
            "longwave": self.on("longwave", fields["longwave"]),
        }

    def year(self, year: dict[str, Any], report: Report) -> dict[str, float]:
        """Simulate and write one calendar year; returns its figures of realism."""
        days = days_of(year["year"])
        daily = [self.products(fields) for fields in self.simulation.days(days[0], len(days), report)]
        whole = {name: np.concatenate([day[name] for day in daily]) for name in self.grids}
        figures = realism(whole, self.grids)
        whole["precipitation"][:, ~self.land] = np.nan
        for name, product in PRODUCTS.items():
            dataset = yearly(product, year["year"], whole[name], self.grids[name])
            save_yearly(product, dataset.assign_attrs(describe(self.job)), Path(year[name]))
        return figures


def spin_up(simulation: Simulation, state: Path, report: Report) -> None:
    """From rest on 1 September to the first 1 January of the run."""
    first = np.datetime64(f"{simulation.first_year - 1}-{SPIN_UP_FROM}")
    count = int((np.datetime64(f"{simulation.first_year}-01-01") - first).astype(int))
    rest = state.with_suffix(".rest")
    simulation.start()
    simulation.save(rest)
    simulation.restore(rest)     # a state from disk always has the same types: one compilation serves all
    for _ in simulation.days(first, count, report):
        pass
    simulation.save(state)
    rest.unlink()


def execute(job: Job, report: Report) -> None:
    """Simulate the missing years of one run. A year is done when its end state is there, which comes last."""
    simulation = Simulation(job.truncation, job.seed, job.first_year)
    recorder = Recorder(job, simulation)
    recorder.save_static()
    for year in job.years:
        cpu_s, start = time.process_time(), Path(year["start_state"])
        if not start.exists():
            report(event="spin_up", year=year["year"])
            spin_up(simulation, start, report)
        report(event="begin", year=year["year"])
        simulation.restore(start)
        figures = recorder.year(year, report)
        simulation.save(Path(year["end_state"]))
        rounded = {name: round(value, 2) for name, value in figures.items()}
        report(event="year", year=year["year"], cpu_s=round(time.process_time() - cpu_s, 1),
               peak_mib=peak_mib(), **rounded)


def peak_mib() -> int:
    """Largest resident memory of this process so far (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# ---------------------------------------------------------------- process

def die_with_driver() -> None:
    """End this process at once when the driver closes standard input, even by being killed."""
    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def private_stdout() -> TextIO:
    """The driver's ear. Whatever a library prints from here on goes to standard error, hence to the log."""
    ear = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return ear


def settle(job: Job) -> None:
    """Pin to one core, and only then load JAX, which sizes its pools by the cores it may use."""
    if job.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job.core})
    import jax

    jax.config.update("jax_compilation_cache_dir", job.cache)


def main() -> None:
    """Read a job, simulate, report."""
    ear = private_stdout()
    job = Job(**json.loads(sys.stdin.readline()))
    die_with_driver()
    settle(job)
    execute(job, lambda **event: print(json.dumps(event), file=ear))


if __name__ == "__main__":
    main()
