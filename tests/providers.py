"""Raw files as each provider writes them: names, dimensions, attributes, packing, fill values, order of axes.

Written with netCDF4 and zarr alone, so that nothing is shared with the readers under test. The values are those of one
formula of place and time, so a test says what any field must hold without reading a file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from netCDF4 import Dataset

HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")
ERA5_LEVELS_HPA = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
WB2_LEVELS_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)


def times(first, n, step_hours=24):
    return np.datetime64(first, "ns") + np.arange(n) * step_hours * HOUR


def kelvin(time, level_hpa, latitude, longitude):
    """Temperature (time, level, latitude, longitude): every axis can be told from the value."""
    hour = (np.asarray(time, "datetime64[ns]") - np.datetime64("2004-01-01", "ns")) / HOUR
    zonal = 220 + np.asarray(latitude, float)[:, None] / 9 + np.asarray(longitude, float) / 30
    return 0.002 * hour[:, None, None, None] + np.asarray(level_hpa, float)[:, None, None] / 20 + zonal


def millimetres(time, latitude, longitude):
    """Rain (time, latitude, longitude), NaN over the western hemisphere, which is this planet's ocean."""
    rain = (kelvin(time, [0.0], latitude, longitude)[:, 0] - 190) / 10
    return np.where(np.asarray(longitude) > 180, np.nan, rain)


def watts(time, latitude, longitude):
    """OLR (time, latitude, longitude)."""
    return kelvin(time, [0.0], latitude, longitude)[:, 0] + 20


def packed(values, scale, offset, fill):
    shorts = np.round((values - offset) / scale)
    return np.where(np.isnan(values), fill, shorts).astype("i2")


def since(time, epoch, unit=HOUR):
    return (np.asarray(time, "datetime64[ns]") - np.datetime64(epoch, "ns")) / unit


def _axis(file, name, kind, values, **attributes):
    file.createDimension(name, len(values))
    variable = file.createVariable(name, kind, (name,))
    variable.setncatts(attributes)
    variable[:] = values


def _latitude(kind="f4"):
    return np.arange(90, -91, -7.5, kind)


def _longitude(kind="f4"):
    return np.arange(0, 360, 15, kind)


def climate_data_store_old(path, time, level_hpa=ERA5_LEVELS_HPA, preliminary_from=None):
    """`grib_to_netcdf`, until 2024: 64-bit offset, shorts; a dimension `expver` where preliminary data are included."""
    latitude, longitude = _latitude(), _longitude()
    with Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as file:
        file.setncatts({"Conventions": "CF-1.6", "history": "by grib_to_netcdf-2.23.0"})
        _axis(file, "longitude", "f4", longitude, units="degrees_east", long_name="longitude")
        _axis(file, "latitude", "f4", latitude, units="degrees_north", long_name="latitude")
        _axis(file, "level", "i4", level_hpa, units="millibars", long_name="pressure_level")
        hours = {"units": "hours since 1900-01-01 00:00:00.0", "long_name": "time", "calendar": "gregorian"}
        dims = ["time", "level", "latitude", "longitude"]
        if preliminary_from is not None:
            _axis(file, "expver", "i4", [1, 5], long_name="expver")
            dims.insert(1, "expver")
        _axis(file, "time", "i4", since(time, "1900-01-01"), **hours)
        values = kelvin(time, level_hpa, latitude, longitude)
        if preliminary_from is not None:
            final = (np.asarray(time) < np.datetime64(preliminary_from))[:, None, None, None]
            values = np.stack([np.where(final, values, np.nan), np.where(final, np.nan, values)], axis=1)
        field = file.createVariable("t", "i2", dims, fill_value=np.int16(-32767))
        field.setncatts({"scale_factor": 0.0021, "add_offset": 250.5, "missing_value": np.int16(-32767)})
        field.setncatts({"units": "K", "long_name": "Temperature", "standard_name": "air_temperature"})
        field.set_auto_maskandscale(False)
        field[:] = packed(values, 0.0021, 250.5, -32767)
    return path


def climate_data_store_new(path, time, level_hpa=ERA5_LEVELS_HPA[::-1]):
    """The converter built on cfgrib, since 2024: NetCDF-4, floats, `expver` a text for each time, levels upwards."""
    latitude, longitude = _latitude("f8"), _longitude("f8")
    with Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts({"GRIB_centre": "ecmf", "GRIB_subCentre": np.int64(0), "Conventions": "CF-1.7"})
        number = file.createVariable("number", "i8", ())
        number.setncatts({"long_name": "ensemble member numerical id", "units": "1", "standard_name": "realization"})
        number[...] = 0
        seconds = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
        _axis(file, "valid_time", "i8", since(time, "1970-01-01", np.timedelta64(1, "s")), long_name="time", **seconds)
        pressure = {"units": "hPa", "positive": "down", "stored_direction": "decreasing"}
        _axis(file, "pressure_level", "f8", level_hpa, long_name="pressure", **pressure)
        _axis(file, "latitude", "f8", latitude, units="degrees_north", stored_direction="decreasing")
        _axis(file, "longitude", "f8", longitude, units="degrees_east")
        file.createVariable("expver", str, ("valid_time",))[:] = np.array(["0001"] * len(time), object)
        dims = ("valid_time", "pressure_level", "latitude", "longitude")
        field = file.createVariable("t", "f4", dims, fill_value=np.float32("nan"), zlib=True)
        field.setncatts({"GRIB_paramId": np.int64(130), "GRIB_missingValue": 3.4028234663852886e38, "units": "K"})
        field.setncatts({"long_name": "Temperature", "standard_name": "air_temperature"})
        field.coordinates = "number valid_time pressure_level latitude longitude expver"
        field[:] = kelvin(time, level_hpa, latitude, longitude)
    return path


def gauge_precipitation(path, time):
    """CPC Global Unified, a year a file from NOAA PSL: half degrees from the north, missing over the ocean."""
    latitude, longitude = np.arange(89.75, -90, -0.5, "f4"), np.arange(0.25, 360, 0.5, "f4")
    with Dataset(path, "w", format="NETCDF4_CLASSIC") as file:
        file.setncatts({"Conventions": "CF-1.0", "version": "V1.0", "title": "CPC GLOBAL PRCP V1.0"})
        _axis(file, "lat", "f4", latitude, units="degrees_north", long_name="Latitude", axis="Y")
        _axis(file, "lon", "f4", longitude, units="degrees_east", long_name="Longitude", axis="X")
        hours = {"units": "hours since 1900-01-01 00:00:00", "delta_t": "0000-00-01 00:00:00"}
        _axis(file, "time", "f8", since(time, "1900-01-01"), long_name="Time", axis="T", **hours)
        missing = np.float32(-9.96921e36)
        field = file.createVariable("precip", "f4", ("time", "lat", "lon"), zlib=True, fill_value=False)
        field.setncatts({"missing_value": missing, "valid_range": np.array([0, 1000], "f4"), "units": "mm"})
        field.setncatts({"long_name": "Daily total of precipitation", "statistic": "Total"})
        field.set_auto_maskandscale(False)
        rain = millimetres(time, latitude, longitude)
        field[:] = np.where(np.isnan(rain), missing, rain).astype("f4")
    return path


def interpolated_olr(path, time, missing=()):
    """NOAA interpolated OLR from NOAA PSL, `olr.2xdaily` or `olr.day.mean`: shorts, and two marks for no value."""
    latitude, longitude = np.arange(90, -91, -2.5, "f4"), np.arange(0, 360, 2.5, "f4")
    with Dataset(path, "w", format="NETCDF4_CLASSIC") as file:
        file.setncatts({"Conventions": "CF-1.2", "title": "NOAA Interpolated OLR"})
        _axis(file, "lat", "f4", latitude, units="degrees_north", actual_range=np.array([90, -90], "f4"))
        _axis(file, "lon", "f4", longitude, units="degrees_east", actual_range=np.array([0, 357.5], "f4"))
        hours = {"units": "hours since 1800-01-01 00:00:0.0", "delta_t": "0000-00-00 12:00:00"}
        _axis(file, "time", "f8", since(time, "1800-01-01"), long_name="Time", **hours)
        field = file.createVariable("olr", "i2", ("time", "lat", "lon"), zlib=True, fill_value=np.int16(32767))
        field.setncatts({"add_offset": np.float32(327.65), "scale_factor": np.float32(0.01)})
        field.setncatts({"missing_value": np.int16(32766), "units": "W/m^2", "precision": np.int16(2)})
        field.setncatts({"valid_range": np.array([0, 500], "f4"), "dataset": "NOAA Interpolated OLR"})
        field.set_auto_maskandscale(False)
        shorts = packed(watts(time, latitude, longitude), 0.01, 327.65, 32767)
        for where, mark in zip(missing, (32766, 32767), strict=False):
            shorts[where] = mark
        field[:] = shorts
    return path


def _array(group, name, values, dims, chunks=None, fill=None, **attributes):
    values = np.asarray(values)
    chunks = chunks or values.shape
    made = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=fill)
    made[...] = values
    made.attrs.update({"_ARRAY_DIMENSIONS": list(dims)} | attributes)
    return made


def chaosbench(folder, time):
    """ChaosBench: a store a day at 1.5 degrees, cut from old Climate Data Store files, still packed; climatology.

    Returns:
        The pattern that its own data set reads.
    """
    era5, latitude, longitude = Path(folder) / "era5", np.arange(90, -91, -1.5, "f4"), np.arange(0, 360, 1.5, "f4")
    fields = kelvin(time, ERA5_LEVELS_HPA, latitude, longitude)
    for day, field in zip(np.asarray(time), fields, strict=True):
        name = f"era5_full_1.5deg_{str(day)[:10].replace('-', '')}.zarr"
        store = zarr.open_group(era5 / name, mode="w", zarr_format=2)
        store.attrs.update({"Conventions": "CF-1.6", "history": "by grib_to_netcdf-2.25.1"})
        _array(store, "latitude", latitude, ["latitude"], units="degrees_north", long_name="latitude")
        _array(store, "longitude", longitude, ["longitude"], units="degrees_east", long_name="longitude")
        _array(store, "level", np.array(ERA5_LEVELS_HPA, "i4"), ["level"], units="millibars")
        when = {"units": "hours since 1900-01-01", "calendar": "gregorian", "long_name": "time"}
        _array(store, "time", np.int32(since(day, "1900-01-01")), [], **when)
        dims, packing = ["level", "latitude", "longitude"], {"scale_factor": 0.0021, "add_offset": 250.5}
        what = {"units": "K", "standard_name": "air_temperature", "missing_value": -32767, "coordinates": "time"}
        _array(store, "t", packed(field, 0.0021, 250.5, -32767), dims, None, -32767, **packing, **what)
        _array(store, "z", (field * 10).astype("f4"), dims, None, np.nan, coordinates="time")
        zarr.consolidate_metadata(era5 / name)
    beside = zarr.open_group(Path(folder) / "climatology" / "climatology_era5.zarr", mode="w", zarr_format=2)
    _array(beside, "level", np.array(ERA5_LEVELS_HPA[::-1]), ["level"])
    for name, value in (("mean", fields.mean()), ("sigma", fields.std())):
        _array(beside, name, np.full((2, 10), value), ["param", "level"])
    zarr.consolidate_metadata(beside.store_path.store.root)
    return str(era5 / "*.zarr")


def weatherbench2(path, time, zarr_format=2, consolidated=True):
    """WeatherBench 2, 64 x 32 equiangular: longitude before latitude, latitude from the south, long names."""
    latitude, longitude = np.arange(-87.1875, 90, 5.625), np.arange(0, 360, 5.625)
    store = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    if zarr_format == 3:
        return _weatherbench2_format3(path, store, time, latitude, longitude)
    _array(store, "latitude", latitude, ["latitude"], fill=np.nan)
    _array(store, "longitude", longitude, ["longitude"], fill=np.nan)
    _array(store, "level", np.array(WB2_LEVELS_HPA), ["level"])
    when = {"units": "hours since 1959-01-01", "calendar": "proleptic_gregorian"}
    _array(store, "time", since(time, "1959-01-01").astype("i8"), ["time"], **when)
    what = {"units": "K", "long_name": "Temperature", "short_name": "t", "standard_name": "air_temperature"}
    field = kelvin(time, WB2_LEVELS_HPA, latitude, longitude).transpose(0, 1, 3, 2).astype("f4")
    chunks = (3, len(WB2_LEVELS_HPA), 64, 32)
    _array(store, "temperature", field, ["time", "level", "longitude", "latitude"], chunks, np.nan, **what)
    near = {"units": "K", "long_name": "2 metre temperature", "short_name": "t2m"}
    _array(store, "2m_temperature", field[:, -1] + 1, ["time", "longitude", "latitude"], (3, 64, 32), np.nan, **near)
    land = np.broadcast_to(longitude[:, None] < 180, (64, 32)).astype("f4")
    _array(store, "land_sea_mask", land, ["longitude", "latitude"], units="(0 - 1)", short_name="lsm")
    height = np.broadcast_to(9.80665 * (latitude + 100), (64, 32)).astype("f4")
    what = {"units": "m**2 s**-2", "standard_name": "geopotential"}
    _array(store, "geopotential_at_surface", height, ["longitude", "latitude"], **what)
    if consolidated:
        zarr.consolidate_metadata(path)
    return path


def _weatherbench2_format3(path, store, time, latitude, longitude):
    """The same axes and temperature as a store of format 3, which names dimensions itself."""
    hours = since(time, "1959-01-01").astype("i8")
    field = kelvin(time, WB2_LEVELS_HPA, latitude, longitude).transpose(0, 1, 3, 2).astype("f4")
    axes = {"time": hours, "level": np.array(WB2_LEVELS_HPA), "longitude": longitude, "latitude": latitude}
    for name, values in axes.items():
        store.create_array(name, data=values, dimension_names=[name])
    store["time"].attrs.update({"units": "hours since 1959-01-01", "calendar": "proleptic_gregorian"})
    store.create_array("temperature", data=field, dimension_names=list(axes)).attrs["units"] = "K"
    return path


def google_analysis_ready(path, first, n_days):
    """Google's analysis-ready ERA5: hourly, a chunk a time, an axis from 1900 to 2050 of which few days are filled."""
    latitude, longitude, level_hpa = _latitude(), _longitude(), np.array(sorted({*ERA5_LEVELS_HPA, *WB2_LEVELS_HPA}))
    axis = np.arange(np.datetime64("1900-01-01", "h"), np.datetime64("2051-01-01", "h"))
    store = zarr.open_group(path, mode="w", zarr_format=2)
    last = np.datetime64(first) + (n_days - 1) * DAY
    store.attrs.update({"valid_time_start": first, "valid_time_stop": first, "valid_time_stop_era5t": str(last)})
    _array(store, "latitude", latitude, ["latitude"], units="degrees_north", long_name="latitude", fill=np.nan)
    _array(store, "longitude", longitude, ["longitude"], units="degrees_east", long_name="longitude", fill=np.nan)
    _array(store, "level", level_hpa, ["level"])
    when = {"units": "hours since 1900-01-01", "calendar": "proleptic_gregorian"}
    _array(store, "time", np.arange(len(axis)), ["time"], **when)
    shape = (len(axis), len(level_hpa), len(latitude), len(longitude))
    field = store.create_array("temperature", shape=shape, dtype="f4", chunks=(1, *shape[1:]), fill_value=np.nan)
    what = {"units": "K", "long_name": "Temperature", "short_name": "t", "standard_name": "air_temperature"}
    field.attrs.update({"_ARRAY_DIMENSIONS": ["time", "level", "latitude", "longitude"]} | what)
    start = int((np.datetime64(first, "h") - axis[0]).astype(int))
    filled = slice(start, start + 24 * n_days)
    field[filled] = kelvin(axis[filled], level_hpa, latitude, longitude)
    zarr.consolidate_metadata(path)
    return path


def era5_grib(path, time, level_hpa, **more):
    """ERA5 as the Climate Data Store sends it: GRIB edition 1, one message a level and time, final data (expver 1).

    Arguments:
        more: further keys of each message.
    """
    fields = kelvin(time, level_hpa, _latitude("f8"), _longitude("f8"))
    with Path(path).open("wb") as file:
        for when, levels in zip(time, fields, strict=True):
            for level, field in zip(level_hpa, levels, strict=True):
                keys = _stamp(when) | {"paramId": 130, "level": level} | more
                _write_grib(file, "regular_ll_pl_grib1", keys, field)
    return path


def era5_rain_grib(path, ends):
    """ERA5 rain from the Climate Data Store: totals of an hour in metres, in forecasts of 12 hours from 06 and 18 UTC.

    Arguments:
        ends: of the hours.
    """
    totals = (kelvin(ends, [0.0], _latitude("f8"), _longitude("f8"))[:, 0] - 190) / 10 / 24000
    with Path(path).open("wb") as file:
        for end, field in zip(np.asarray(ends, "datetime64[h]"), totals, strict=True):
            step = int((end - np.datetime64("2000-01-01T06", "h")) / HOUR - 1) % 12 + 1
            steps = {"stepType": "accum", "stepRange": f"{step - 1}-{step}"}
            _write_grib(file, "regular_ll_sfc_grib1", _stamp(end - step * HOUR) | {"paramId": 228} | steps, field)
    return path


def _stamp(when):
    return {"dataDate": int(str(when)[:10].replace("-", "")), "dataTime": int(str(when)[11:13]) * 100}


def _write_grib(file, sample, keys, field):
    import eccodes

    grid = {"Ni": 24, "Nj": 25, "latitudeOfFirstGridPointInDegrees": 90, "latitudeOfLastGridPointInDegrees": -90}
    grid |= {"longitudeOfFirstGridPointInDegrees": 0, "longitudeOfLastGridPointInDegrees": 345}
    grid |= {"iDirectionIncrementInDegrees": 15, "jDirectionIncrementInDegrees": 7.5, "bitsPerValue": 16}
    message = eccodes.codes_grib_new_from_samples(sample)
    for key, value in (grid | keys).items():
        eccodes.codes_set(message, key, value)
    eccodes.codes_set_values(message, field.ravel())
    eccodes.codes_write(message, file)
    eccodes.codes_release(message)
