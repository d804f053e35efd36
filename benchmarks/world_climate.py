"""What the sample world's climate is like beside the real one: the table of docs/sample_world.md.

    python benchmarks/world_climate.py [ARCHIVE ...]     # default: the demo's

Train years, area-weighted; anomalies are from the archive's own climatology by day of year. Of the real forecast among
the tests' data only what one day can tell of rain and radiation together.
"""

import sys
from pathlib import Path

import cfgrib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slams.contracts.archive import open_archive

GFS = Path(__file__).resolve().parents[1] / "tests" / "data" / "gfs_2011011012_f120_subset.grib2"
TROPICS, STORMS, POLAR = 20.0, (40.0, 60.0), 70.0


def correlation(a_LN, b_LN):
    """Correlation in time, the mean over places (N)."""
    a, b = a_LN - a_LN.mean(axis=0), b_LN - b_LN.mean(axis=0)
    return float(((a * b).mean(axis=0) / np.sqrt((a**2).mean(axis=0) * (b**2).mean(axis=0))).mean())


def on_a_map(rain_LN, olr_LN):
    """Correlation over the places of a day (N), the mean over the days."""
    return correlation(rain_LN.T, olr_LN.T)


def real_map():
    """Correlation of rain and longwave radiation over tropical land in the real forecast."""
    groups = cfgrib.open_datasets(str(GFS), backend_kwargs={"indexpath": ""})
    rain, land = (next(each[name] for each in groups if name in each) for name in ("tp", "lsm"))
    upward = [each["sulwrf"] for each in groups if "sulwrf" in each]
    olr = next(each for each in upward if each.attrs["GRIB_typeOfLevel"] == "nominalTop")
    there = (land.values > 0.5) & (np.abs(rain.latitude.values) < TROPICS)[:, None]
    return on_a_map(rain.values[there][None], olr.values[there][None])


def global_mean(area_HW, x_LHW):
    """Over time and over the places that are always observed."""
    x = x_LHW.mean(axis=0)
    return float(np.nansum(x * area_HW) / area_HW[np.isfinite(x)].sum())


def climate(archive):
    """Name -> value."""
    days, spec, statistics = archive.days("train"), archive.spec, archive.statistics()
    x = archive.read(days)
    anomaly = x - statistics.climatology(archive.time[days])
    area, latitude = spec.grid.area_weights, spec.grid.latitude
    tropics, storms = np.abs(latitude) < TROPICS, (np.abs(latitude) > STORMS[0]) & (np.abs(latitude) < STORMS[1])
    names = list(spec.channel_names)
    level = {name: names.index(f"temperature_{name}") for name in (100, 500, 850)}
    rain, olr = names.index("precipitation"), names.index("olr")
    poles = np.abs(latitude) > POLAR
    seen = np.isfinite(x[:, rain]).all(axis=0) & tropics[:, None]
    t500 = anomaly[:, level[500]][:, storms]
    return {
        "temperature at 500 hPa, global mean (K)": global_mean(area, x[:, level[500]]),
        "temperature at 850 hPa, tropics less polar caps (K)": float(
            x[:, level[850]][:, tropics].mean() - x[:, level[850]][:, poles].mean()
        ),
        "coldest level in the tropics (hPa)": spec.modalities[0].level_hpa[
            int(x[:, :10][:, :, tropics].mean((0, 2, 3)).argmin())
        ],
        "temperature at 100 hPa, tropics (K)": float(x[:, level[100]][:, tropics].mean()),
        "rain where it is observed, mean (mm/day)": global_mean(area, x[:, rain]),
        "longwave radiation, global mean (W m-2)": global_mean(area, x[:, olr]),
        "correlation of rain and longwave anomalies, tropics, daily": correlation(
            anomaly[:, rain][:, seen], anomaly[:, olr][:, seen]
        ),
        "correlation of rain and longwave over tropical land, on the map of a day": on_a_map(
            x[:, rain][:, seen], x[:, olr][:, seen]
        ),
        "standard deviation of T500 anomalies, 40-60 degrees (K)": float(t500.std()),
        "autocorrelation of T500 anomalies, 40-60 degrees, one day": correlation(
            t500[:-1].reshape(len(t500) - 1, -1), t500[1:].reshape(len(t500) - 1, -1)
        ),
    }


def main():
    for path in sys.argv[1:] or ["runs/demo/archive.zarr"]:
        print(path)
        for name, value in climate(open_archive(path)).items():
            print(f"  {name}: {value:.2f}")
    print(f"GFS, 15 January 2011\n  correlation on the map of a day: {real_map():.2f}")


if __name__ == "__main__":
    main()
