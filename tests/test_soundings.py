"""Real stations: soundings and tables are read as others read them, planted errors are found, and only those."""

import json
import os
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep import stations
from data_prep.__main__ import main
from data_prep.config import ArchiveConfig, PrepConfig, SourcesConfig
from data_prep.limits import Limits, QualityConfig, StationsConfig
from data_prep.quality import CODES, counts, quality_control, with_errors
from data_prep.sources.igra import read_igra
from data_prep.sources.quantity import SourceError
from data_prep.sources.reports import Reports, read_table
from slams.contracts import archive
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Gridded, Operator, open_observations, write_observations
from slams.interpolate import usable
from slams.observe import Interpolation
from slams.spec import OLR, PRECIPITATION, Grid, Modality, StateSpec
from slams.statistics import Statistics, day_features

REAL = Path(__file__).parent / "data" / "igra_USM00070026_20100601.txt"
LEVELS = (500, 1000, 100)  # channel order need not be that of height
SPEC = StateSpec(Grid(12, 24), (Modality("temperature", "state", "K", "air_temperature", LEVELS), PRECIPITATION, OLR))
FIRST, LAST = np.datetime64("2010-06-01"), np.datetime64("2010-06-04")
COLUMNS = {  # of a level record, first and last column as NCEI's format description counts them
    "LVLTYP1": (1, 1), "LVLTYP2": (2, 2), "ETIME": (4, 8), "PRESS": (10, 15), "PFLAG": (16, 16), "GPH": (17, 21),
    "ZFLAG": (22, 22), "TEMP": (23, 27), "TFLAG": (28, 28), "RH": (29, 33), "DPDP": (35, 39), "WDIR": (41, 45),
    "WSPD": (47, 51),
}  # fmt: skip
HEADER = {
    "HEADREC": (1, 1), "ID": (2, 12), "YEAR": (14, 17), "MONTH": (19, 20), "DAY": (22, 23), "HOUR": (25, 26),
    "RELTIME": (28, 31), "NUMLEV": (33, 36), "P_SRC": (38, 45), "NP_SRC": (47, 54), "LAT": (56, 62), "LON": (64, 71),
}  # fmt: skip
TWO_DIGITS = ("MONTH", "DAY", "HOUR")
UNKNOWN = {"ETIME": -9999, "GPH": -9999, "RH": -9999, "DPDP": -9999, "WDIR": -9999, "WSPD": -9999}


# ---- fixtures in IGRA's layout


def record(columns, width, values):
    """One line, each value at the right of its columns."""
    line = [" "] * width
    for name, (first, last) in columns.items():
        text = f"{values[name]:02d}" if name in TWO_DIGITS else str(values[name])
        line[first - 1 : last] = text.rjust(last - first + 1)
    return "".join(line) + "\n"


def level(pressure_hpa, celsius, **other):
    """A standard level; -9999 and -8888 are given as they are."""
    values = {"LVLTYP1": 1, "LVLTYP2": 0, "PFLAG": " ", "ZFLAG": " ", "TFLAG": "B"} | UNKNOWN
    values["PRESS"] = pressure_hpa if pressure_hpa < 0 else round(100 * pressure_hpa)
    values["TEMP"] = celsius if celsius < -8000 else round(10 * celsius)
    return record(COLUMNS, 52, values | other)


def sounding(day, levels, hour=0, station="USM00070026", latitude=71.2889, longitude=-156.7833, **other):
    """A header and its levels."""
    year, month, date = (int(part) for part in str(day).split("-"))
    values = {"HEADREC": "#", "ID": station, "YEAR": year, "MONTH": month, "DAY": date, "HOUR": hour}
    values |= {"RELTIME": 9999, "NUMLEV": len(levels), "P_SRC": "ncdc6301", "NP_SRC": "ncdc6301"}
    values |= {"LAT": round(1e4 * latitude), "LON": round(1e4 * longitude)}
    return record(HEADER, 71, values | other) + "".join(levels)


def read(path, first=FIRST, last=LAST, levels=LEVELS):
    return read_igra(path, levels, first, last)


def as_pandas(path):
    """The level records of a file, each with its sounding's number and hour, read by pandas."""
    places = [(first - 1, last) for first, last in COLUMNS.values()]
    table = pd.read_fwf(path, colspecs=places, names=list(COLUMNS), header=None, dtype=str, keep_default_na=False)
    head = [line for line in path.read_text().splitlines() if line[0] == "#"]
    table["sounding"] = (table["LVLTYP1"] == "#").cumsum() - 1
    table["hour"] = [int(head[i][24:26]) for i in table["sounding"]]
    return table[table["LVLTYP1"] != "#"]


# ---- soundings


def test_the_fixtures_are_in_the_real_files_layout_byte_for_byte():
    lines = REAL.read_text().splitlines(keepends=True)
    for line in lines:
        columns, width = (HEADER, 71) if line[0] == "#" else (COLUMNS, 52)
        values = {name: line[first - 1 : last].strip() for name, (first, last) in columns.items()}
        values |= {name: int(values[name]) for name in TWO_DIGITS if name in columns}
        assert record(columns, width, values) == line
    assert len(lines) == 317


def test_a_real_file_is_read_as_pandas_reads_it():
    table = as_pandas(REAL)
    hpa = table["PRESS"].astype(int) / 100
    wanted = table[np.isin(hpa, (10, 250, 500, 1000)) & (table["TEMP"].astype(int) > -8000)]
    found = read(REAL, levels=(10, 250, 500, 1000))
    np.testing.assert_allclose(found.value, wanted["TEMP"].astype(int) / 10 + 273.15)
    np.testing.assert_array_equal(found.level_hpa, wanted["PRESS"].astype(int) / 100)
    np.testing.assert_array_equal(found.time, np.datetime64("2010-06-01T00:00") + 60 * wanted["hour"].to_numpy())
    # by hand: both soundings have the four levels; the first says -272 tenths of a degree at 500 hPa
    assert len(found) == 8 and found.value[found.level_hpa == 500][0] == pytest.approx(245.95)
    assert (found.latitude == 71.2889).all() and (found.longitude == -156.7833).all()
    assert set(found.station_id) == {"USM00070026"} and not found.refused.any() and not found.moves.any()


def test_the_zip_of_the_provider_is_read_as_the_text_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "USM.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(REAL, "USM00070026-data.txt")
    for field in fields(Reports):
        np.testing.assert_array_equal(getattr(read(tmp_path / "USM.zip"), field.name), getattr(read(REAL), field.name))


temperatures = st.one_of(st.integers(-1200, 600).map(lambda tenths: tenths / 10), st.sampled_from([-9999, -8888]))
pressures = st.one_of(st.sampled_from([100, 500, 1000, 925, 499.99]), st.sampled_from([-9999, -8888]))
ascents = st.tuples(st.integers(0, 5), st.integers(0, 23), st.lists(st.tuples(pressures, temperatures), max_size=6))


@given(st.lists(ascents, min_size=1, max_size=5))
def test_what_was_written_is_read(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("igra") / "x.txt"
    path.write_text(
        "".join(sounding(FIRST + day, [level(*one) for one in found], hour) for day, hour, found in written)
    )
    expected = [
        (FIRST + day + np.timedelta64(hour, "h"), np.nan if hpa < 0 else hpa, np.nan if t == -8888 else t + 273.15)
        for day, hour, found in written
        for hpa, t in found
        if FIRST + day <= LAST and t != -9999 and hpa in (*LEVELS, -8888)
    ]
    found = read(path)
    assert found.time.tolist() == [np.datetime64(time, "m").item() for time, _, _ in expected]
    np.testing.assert_array_equal(found.level_hpa, [hpa for _, hpa, _ in expected])
    np.testing.assert_allclose(found.value, [value for _, _, value in expected], rtol=1e-12)
    np.testing.assert_array_equal(found.refused, np.isnan(found.value) | np.isnan(found.level_hpa))


@pytest.mark.parametrize(("hour", "release", "meant"), [(0, 2303, 0), (99, 1130, 11), (99, 999, 9), (99, 9999, 12)])
def test_the_day_is_the_nominal_hours_and_the_release_stands_in_for_it(tmp_path, hour, release, meant):
    (tmp_path / "x.txt").write_text(sounding(FIRST, [level(500, -20)], hour, RELTIME=release))
    assert read(tmp_path / "x.txt").time[0] == np.datetime64(f"2010-06-01T{meant:02d}:00")


@pytest.mark.parametrize(("station", "moves"), [("ZZV000ABCDE", True), ("ASM00094203", False), ("VVX00000001", False)])
def test_volunteer_ships_may_move(tmp_path, station, moves):
    (tmp_path / "x.txt").write_text(sounding(FIRST, [level(500, -20)], station=station))
    assert read(tmp_path / "x.txt").moves.tolist() == [moves]


GOOD = sounding(FIRST, [level(1000, 1.5), level(500, -20)]) + sounding(LAST, [level(500, -21.3)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("station,year\n", "line 1: begins with 'station,year', so it is no IGRA file; '#' is needed"),
        ("", "is empty; an IGRA file is needed"),
        ("#70026201006010023  2\n", "line 1: a header record has 21 characters, so it is cut; 71 are needed"),
        (GOOD[:-20], "line 5: a level record has 33 characters, so it is cut; 51 are needed"),
        (GOOD[:125], "line 3: the sounding of USM00070026 at 2010-06-01T00:00 ends here; its header counts 2 levels"),
        (GOOD.replace(" 2 ncdc", " 3 ncdc"), "line 4: the sounding of USM00070026 at 2010-06-01T00:00 ends here"),
        (GOOD.replace(" 2 ncdc", " 1 ncdc"), "line 3: a level record follows the number that its header counts"),
        (GOOD.replace(" -213B", " -2x3B"), "line 5: TEMP is '-2x3'; a whole number is needed in columns 23 to 27"),
        (GOOD.replace(" -213B", "-3213B"), "line 5: TEMP is -3213 tenths of a degree C; -2731 or more"),
        (GOOD.replace(" -213B", " -213Q"), "line 5: TFLAG is 'Q'; one of ' AB' is allowed"),
        (GOOD.replace("100000 ", "-10000 "), "line 2: PRESS is -10000 Pa; more than 0, -9999 or -8888 is allowed"),
        (GOOD.replace("100000 ", "100000C"), "line 2: PFLAG is 'C'; one of ' AB' is allowed"),
        (GOOD.replace("\n10 ", "\n40 ", 1), "line 2: LVLTYP1 is '4'; one of '123' is allowed"),
        (GOOD.replace("2010 06 04", "2010 06 31"), "line 4: YEAR, MONTH, DAY are '2010-06-31'; a date is needed"),
        (GOOD.replace("06 04 00", "06 04 24"), "line 4: HOUR is 24; 0 to 23, or 99 for missing, is allowed"),
        (GOOD.replace("712889", "7128.9"), "line 1: LAT is '7128.9'; a whole number is needed in columns 56 to 62"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_soundings_is_refused_by_line_and_field(tmp_path, text, sentence):
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(SourceError) as said:
        read(tmp_path / "x.txt")
    assert f"x.txt: {sentence}" in str(said.value) and "\n" not in str(said.value)


def test_records_of_other_days_are_counted_too(tmp_path):
    (tmp_path / "x.txt").write_text(sounding("2001-01-01", [level(500, -20)], NUMLEV=2) + GOOD)
    with pytest.raises(SourceError, match=r"line 3: the sounding of USM00070026 at 2001-01-01T00:00 ends here"):
        read(tmp_path / "x.txt")


def test_what_is_no_text_or_no_whole_zip_is_refused(tmp_path):
    (tmp_path / "x.nc").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(SourceError, match=r"x\.nc: is no IGRA file; it holds characters that are not ASCII"):
        read(tmp_path / "x.nc")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(REAL, "a.txt")
    whole = bytearray((tmp_path / "x.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    whole[600] ^= 1
    (tmp_path / "flipped.zip").write_bytes(whole)
    for name in ("cut.zip", "flipped.zip"):
        with pytest.raises(SourceError, match=name):
            read(tmp_path / name)


# ---- tables

TABLE = """time,latitude,longitude,level_hpa,variable,value,units,station_id
2010-06-01,48.2,16.4,500,temperature,-20.0,degC,11035
2010-06-01T12:30Z,48.2,16.4,850,temperature,275.5,K,11035
2010-06-02,-10,350,,precipitation,3.5,mm/day,gauge
"""


def test_a_table_in_text_is_read_in_the_states_units(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    found = read_table(tmp_path / "t.csv", SPEC)
    np.testing.assert_allclose(found.value, [253.15, 275.5, 3.5])
    assert [str(time) for time in found.time] == ["2010-06-01T00:00", "2010-06-01T12:30", "2010-06-02T00:00"]
    np.testing.assert_array_equal(found.level_hpa, [500, 850, np.nan])
    assert found.station_id.tolist() == ["11035", "11035", "gauge"] and np.isnan(found.error_std).all()


def test_a_table_in_parquet_says_the_same(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    plain = pd.read_csv(tmp_path / "t.csv", dtype={"station_id": str})
    plain["time"] = pd.to_datetime(plain["time"], format="ISO8601", utc=True)
    plain.to_parquet(tmp_path / "t.parquet")
    for field in fields(Reports):
        text, binary = (getattr(read_table(tmp_path / name, SPEC), field.name) for name in ("t.csv", "t.parquet"))
        np.testing.assert_array_equal(text, binary)


def test_what_a_table_refuses_itself_need_not_be_right_and_is_not_used(tmp_path):
    header, *rows = TABLE.strip().split("\n")
    rows[1] = rows[1].replace(",850,temperature,275.5", ",,temperature,")
    text = "\n".join([header + ",qc", rows[0] + ",0", rows[1] + ",3", rows[2] + ","])
    (tmp_path / "t.csv").write_text(text)
    found = read_table(tmp_path / "t.csv", SPEC)
    assert found.refused.tolist() == [False, True, False] and np.isnan(found.value).tolist() == [False, True, False]
    assert checked(found) == [0, CODES["provider"], 0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (",value,", ",valeu,", "has no column 'value'; time, latitude, longitude, variable, value, station_id are"),
        ("temperature,275.5", "wind,275.5", "line 3: variable is 'wind'; temperature, precipitation, olr is allowed"),
        ("3.5,mm/day", "3.5,inch", "line 4: units is 'inch'; mm/day is allowed for precipitation"),
        ("275.5,K", "275.5,F", "line 3: units is 'F'; K or degC is allowed for temperature"),
        ("275.5", "27o.5", "line 3: value is '27o.5'; a number is needed"),
        ("275.5", "", "line 3: value is ''; a finite number is needed"),
        ("275.5", "inf", "line 3: value is 'inf'; a finite number is needed"),
        (",850,", ",,", "line 3: level_hpa is ''; temperature needs a pressure, more than 0"),
        ("2010-06-02", "2010-06-31", "line 4: time is '2010-06-31'; an ISO date or UTC time is needed"),
        ("2010-06-02", "02.06.2010", "line 4: time is '02.06.2010'; an ISO date or UTC time is needed"),
        ("12:30Z", "12:30+02:00", "line 3: time is '2010-06-01T12:30+02:00'; an ISO date or UTC time is needed"),
        (",gauge", ",", "line 4: station_id is ''; a name is needed"),
        (",units,", ",unit,", "does not say the unit of precipitation; a column 'units' is needed"),
        ("mm/day,gauge", "mm/day", "cannot be read as a CSV or Parquet table"),
    ],
)
def test_a_wrong_table_is_refused_by_line_and_column(tmp_path, old, new, sentence):
    (tmp_path / "t.csv").write_text(TABLE.replace(old, new))
    with pytest.raises(SourceError) as said:
        read_table(tmp_path / "t.csv", SPEC)
    assert f"t.csv: {sentence}" in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(("value", "unit", "seen"), [(-20.0, "K", "-20"), (253.2, "degC", "526.35")])
def test_celsius_given_as_kelvin_and_kelvin_as_celsius_are_refused(tmp_path, value, unit, seen):
    line = f"2010-06-01,48.2,16.4,500,temperature,{value},{unit},11035\n"
    (tmp_path / "t.csv").write_text(TABLE.split("\n")[0] + "\n" + line)
    with pytest.raises(
        SourceError, match=rf"half of temperature is beyond {seen} K, so it is not in {unit}; 100 to 400"
    ):
        read_table(tmp_path / "t.csv", SPEC)


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("latitude", [True] * 3, "column 'latitude' is of type bool; numbers are needed"),
        ("time", [1, 2, 3], "column 'time' is of type int64; dates or times are needed"),
        ("value", [1.0, float("nan"), 2.0], "row 2: value is None; a finite number is needed"),
    ],
)
def test_a_wrong_column_of_a_parquet_table_is_refused_by_row_and_type(tmp_path, column, values, sentence):
    (tmp_path / "t.csv").write_text(TABLE)
    plain = pd.read_csv(tmp_path / "t.csv", dtype={"station_id": str})
    plain[column] = values
    plain.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(SourceError) as said:
        read_table(tmp_path / "t.parquet", SPEC)
    assert f"t.parquet: {sentence}" in str(said.value)


# ---- quality control


def reports(values, **columns):
    """Good reports of one station at 500 hPa, an hour apart, but for the columns given."""
    n = len(values)
    plain = {
        "time": np.datetime64("2010-06-01T00:00") + 60 * np.arange(n),
        "latitude": np.full(n, 48.2),
        "longitude": np.full(n, 16.4),
        "level_hpa": np.full(n, 500.0),
        "variable": np.full(n, "temperature", object),
        "value": np.array(values, float),
        "error_std": np.full(n, np.nan),
        "station_id": np.full(n, "11035", object),
        "refused": np.zeros(n, bool),
        "moves": np.zeros(n, bool),
    }
    return Reports(**plain | {name: np.asarray(column) for name, column in columns.items()})


def checked(given, statistics=None, **options):
    config = QualityConfig(**options)
    return quality_control(with_errors(given, config), SPEC, config, statistics).tolist()


def test_a_value_beyond_the_limits_of_its_level_is_rejected():
    limits = {"temperature": Limits(at_hpa=[100, 1000], low=[180, 200], high=[260, 320], error_std=[1, 2])}
    middle = np.sqrt(100 * 1000)  # half way in the logarithm
    given = reports([189.9, 190.1, 289.9, 290.1, 179, 181], level_hpa=[middle] * 4 + [50, 50])
    assert checked(given, limits=limits) == [4, 0, 0, 4, 4, 0]
    np.testing.assert_allclose(with_errors(given, QualityConfig(limits=limits)).error_std, [1.5] * 4 + [1, 1])


def test_an_error_that_is_known_is_kept():
    given = with_errors(reports([250, 250, 250], error_std=[0.3, -1, np.nan]), QualityConfig())
    np.testing.assert_allclose(given.error_std, [0.3, 0.8, 0.8])


def test_equal_reports_count_once_and_contradicting_ones_not_at_all():
    hour = np.array([0, 0, 1, 1, 2, 2, 2, 3, 4])
    given = reports([250, 250, 251, 252, 253, 253, 254, 255, 256], time=np.datetime64("2010-06-01T00:00") + 60 * hour)
    assert checked(given) == [0, 6, 5, 5, 5, 5, 5, 0, 0]
    assert checked(given.take(np.arange(9)[::-1])) == [0, 0, 5, 5, 5, 5, 5, 0, 6]
    apart = {"level_hpa": [500] * 8 + [501], "station_id": np.array(["a"] * 8 + ["b"], object)}
    same = reports([250.0] * 9, time=np.full(9, FIRST.astype("datetime64[m]")), **apart)
    assert checked(same) == [0, *[6] * 7, 0]


def test_a_report_that_was_rejected_contradicts_none():
    assert checked(reports([250, 999], time=np.full(2, FIRST.astype("datetime64[m]")))) == [0, 4]


def test_impossible_places_are_rejected_and_all_allowed_longitudes_are_not():
    given = reports([250] * 6, latitude=[90.1, -98.8888, np.nan, 48, 48, 48], longitude=[16, 16, 16, 361, -181, 16])
    assert checked(given) == [2, 2, 2, 2, 2, 0]
    station = np.array(["a", "b", "c"], object)
    assert checked(reports([250] * 3, longitude=[-180, 0, 360], station_id=station)) == [0, 0, 0]


def test_a_station_that_is_elsewhere_once_is_rejected_there_unless_it_is_a_ship():
    latitude = [48.2, 48.2, -48.2, 48.6, 48.7, 48.2]  # 0.4 degrees are 44 km, 0.5 are 56 km
    assert checked(reports([250] * 6, latitude=latitude)) == [0, 0, 3, 0, 3, 0]
    assert checked(reports([250] * 6, latitude=latitude, moves=np.ones(6, bool))) == [0] * 6
    longitude = [16.4, 16.4, 17.2, 17.4]  # at 60 degrees north 44 km and 56 km
    assert checked(reports([250] * 4, latitude=[60] * 4, longitude=longitude)) == [0, 0, 0, 3]
    seam = reports([250] * 3, longitude=[179.9, 179.9, -179.9])
    assert checked(seam) == [0, 0, 0]
    other = np.array(["a", "b", "a", "b"], object)
    assert checked(reports([250] * 4, latitude=[10, 60, 10, 60], station_id=other)) == [0] * 4


def seasonal(kind="anomaly"):
    """Statistics with a season, different at each level; rain by its logarithm, seen on the eastern half only."""
    harmonics = np.zeros((5, SPEC.n_channels, *SPEC.grid.shape))
    harmonics[0, :3] = np.array([250, 280, 210])[:, None, None] + 0.3 * SPEC.grid.latitude[:, None]
    harmonics[1, :3] = -8.0
    harmonics[0, 3], harmonics[0, 4] = 1.0, 240.0
    observed = np.ones((SPEC.n_channels, *SPEC.grid.shape), bool)
    observed[3, :, 12:] = False
    std = np.array([2.0, 4.0, 1.5, 0.5, 20.0])[:, None, None]
    return Statistics(harmonics, std, np.array([False] * 3 + [True, False]), observed)


def test_the_background_check_is_its_formula():
    latitude, hpa, error, k = -60.0, 700.0, 1.5, 4.0
    up = np.log(700 / 500) / np.log(1000 / 500)
    season = -8 * day_features(FIRST[None])[0, 1]
    mean = (1 - up) * 250 + up * 280 + 0.3 * latitude + season
    reach = k * np.hypot((1 - up) * 2 + up * 4, error)
    values = mean + reach * np.array([-1.001, -0.999, 0.999, 1.001])
    same = {"latitude": [latitude] * 4, "level_hpa": [hpa] * 4, "error_std": [error] * 4}
    time = FIRST.astype("datetime64[m]") + np.arange(4)
    assert checked(reports(values, time=time, **same), seasonal(), background_k=k) == [7, 0, 0, 7]
    above = same | {"level_hpa": [50] * 4}  # the state does not say what is normal there
    assert checked(reports(values, time=time, **above), seasonal(), background_k=k) == [0] * 4


def test_rain_is_compared_in_its_logarithm_where_gauges_are():
    k, error, rain = 4.0, 5.0, np.arange(10.0, 60.0, 0.5)
    far = np.abs(np.log1p(rain) - 1) > k * np.hypot(0.5, error / (1 + rain))
    assert 10 < far.sum() < 90
    name = np.full(len(rain), "precipitation", object)
    given = reports(rain, variable=name, level_hpa=np.full(len(rain), np.nan))
    assert checked(given, seasonal(), background_k=k) == np.where(far, CODES["background"], 0).tolist()
    west = replace(given, longitude=np.full(len(rain), 200.0))
    assert checked(west, seasonal(), background_k=k) == [0] * len(rain)


def test_reports_are_counted_by_reason_at_the_nearest_level():
    level_hpa = [250, 520, 980, np.nan]  # 250 is nearer to 500 than to 100 in its logarithm
    given = reports([230, 999, 280, 999], level_hpa=level_hpa, refused=[False, False, False, True])
    found = counts(given, np.array(checked(given)), SPEC)
    nothing = dict.fromkeys(CODES, 0) | {"variable": "temperature"}
    assert found == [
        nothing | {"level_hpa": 500, "used": 1, "range": 1},
        nothing | {"level_hpa": 1000, "used": 1},
        nothing | {"level_hpa": None, "provider": 1},
    ]


# ---- the stage


def truth(latitude, longitude, hpa):
    """Kelvin: linear in what the operator interpolates in, between 40 and 320 degrees east."""
    return 245 + 0.2 * latitude + 0.05 * longitude + 12 * np.log(hpa / 500)


def whole(folder, **section):
    years = {"train_years": [2008, 2008], "validation_years": [2009, 2009], "test_years": [2010, 2010]}
    given = ArchiveConfig(f"{folder}/archive", SourcesConfig("none"), 12, 24, level_hpa=list(LEVELS), **years)
    plain = {"path": f"{folder}/set", "first_day": str(FIRST), "last_day": str(LAST), "igra": f"{folder}/*.txt"}
    return PrepConfig(given, stations=StationsConfig(**plain | section))


def run(config):
    stations.run(config.stations, config)
    return open_observations(config.stations.path)


def write_archive(folder):
    path = folder / "archive"
    attributes = {"config": {}, "splits": {"test": [2010, 2010]}, "missing_days": {}}
    archive.create(path, SPEC, FIRST + np.arange(4), np.zeros(4, int), attributes)
    grid, known = SPEC.grid, seasonal()
    mesh = grid.latitude[None, :, None], grid.longitude[None, None, :], np.array(LEVELS, float)[:, None, None]
    harmonics = known.harmonics[:1].copy()
    harmonics[0, :3] = truth(*mesh)
    archive.finish(path, replace(known, harmonics=harmonics), [1.0] * 5)


PLACES = {"ASM00094203": (-17.95, 122.23), "CHM00050527": (49.25, 119.7), "USM00072293": (32.83, 242.88)}


def write_network(folder):
    """Two soundings a day of three stations, true to a tenth of a degree."""
    for station, (latitude, longitude) in PLACES.items():
        text = ""
        for day in range(3):
            for hour, apart in ((0, -1.5), (12, 1.5)):
                true = [level(hpa, truth(latitude, longitude, hpa) + apart - 273.15) for hpa in (1000, 850, 500, 100)]
                where = {"latitude": latitude, "longitude": (longitude + 180) % 360 - 180}
                text += sounding(FIRST + day, true, hour, station, **where)
        (folder / f"{station}-data.txt").write_text(text)


def test_a_few_stations_are_held_at_once_and_each_with_all_its_files(tmp_path, monkeypatch):
    """A sounding that stands in two files is a repeated one, whatever part of the reports is looked at."""
    write_network(tmp_path)
    (tmp_path / "again.txt").write_text((tmp_path / "ASM00094203-data.txt").read_text())
    (tmp_path / "set.reports").mkdir()  # left behind by one that was killed
    monkeypatch.setattr("data_prep.sorting.STATION_PARTS", 1)
    at_once = run(whole(tmp_path, path=f"{tmp_path}/at_once"))
    monkeypatch.undo()
    looked_at, control = [], quality_control
    seen = lambda reports, *more: looked_at.append(reports) or control(reports, *more)  # noqa: E731
    monkeypatch.setattr("data_prep.stations.quality_control", seen)
    found = run(whole(tmp_path))
    assert sorted(len(reports) for reports in looked_at) == [18, 18, 36]
    reports = (json.loads((tmp_path / name / "quality.json").read_text())["counts"] for name in ("at_once", "set"))
    assert (
        next(reports)
        == next(reports)
        == [
            dict.fromkeys(CODES, 0) | {"variable": "temperature", "level_hpa": level, "used": 18, "repeated": 6}
            for level in LEVELS
        ]
    )
    assert rows_of(found) == rows_of(at_once) and len(rows_of(found)) == 27 + 18
    assert not list(tmp_path.glob("*.reports"))


def rows_of(found):
    """Every row, in an order of their own."""
    seen = found.read_stations("temperature", found.time)
    columns = (seen.time, seen.station_id, seen.level_hpa, seen.qc, seen.value)
    return sorted(zip(*(column.astype(str) for column in columns), strict=True))


@pytest.mark.parametrize("station", ["XXM00000000", "ASM00094203"])
def test_a_set_does_not_outlive_the_files_that_it_was_made_of(tmp_path, station):
    """One more, or one that was corrected; those that are gone are no matter. Earlier versions did not list them."""
    write_network(tmp_path)
    run(whole(tmp_path))
    (tmp_path / "CHM00050527-data.txt").unlink()
    run(whole(tmp_path))
    other, report = tmp_path / f"{station}-data.txt", tmp_path / "set" / "quality.json"
    other.write_text((tmp_path / "ASM00094203-data.txt").read_text())
    os.utime(other, ns=(0, 0))
    with pytest.raises(ContractError, match=f"^{other}: is new or has changed since {tmp_path}/set was made; remove"):
        run(whole(tmp_path))
    found = json.loads(report.read_text())
    del found["raw_files"]
    report.write_text(json.dumps(found))
    run(whole(tmp_path))


def test_a_pattern_relative_to_here_is_the_same_file(tmp_path, monkeypatch):
    write_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    here = whole(tmp_path)
    here = replace(here, stations=replace(here.stations, igra="./*-data.txt"))
    assert len(run(here).time) == len(run(here).time)


def test_the_operator_finds_the_fields_values_at_real_stations(tmp_path):
    write_network(tmp_path)
    found = run(whole(tmp_path))
    seen = found.read_all(["temperature"], found.time)[0]
    used, at = usable(seen, found.spec)
    assert len(used) == len(seen.value) == 3 * 3 * 3  # stations, days, levels of the state
    assert sorted(zip(seen.time[used].astype(str), seen.station_id[used], strict=True)) == sorted(
        (str(FIRST + day), station) for day in range(3) for station in PLACES for _ in LEVELS
    )
    grid = found.spec.grid
    mesh = grid.latitude[:, None], grid.longitude, np.array(LEVELS, float)[:, None, None]
    field = torch.from_numpy(np.broadcast_to(truth(*mesh), (4, 3, *grid.shape)).copy())
    at_stations = Interpolation(at, seen.frame[used], field.shape[1:])(field[None])[0].numpy()
    np.testing.assert_allclose(at_stations, seen.value[used], atol=0.051)  # a tenth of a degree, rounded
    np.testing.assert_allclose(seen.error_std, QualityConfig().limits["temperature"].at("error_std", seen.level_hpa))


def plant(folder):
    """One error of each kind, all at 500 hPa and on the last day, when the good ones say nothing."""
    station, place = "CHM00050527", {"latitude": 49.25, "longitude": 119.7}
    good = truth(*place.values(), 500) - 273.15
    day = {"day": LAST, "station": station}
    planted = [
        sounding(levels=[level(500, -8888)], hour=1, **day, **place),
        sounding(levels=[level(500, good)], hour=2, **day, latitude=-98.8888, longitude=119.7),
        sounding(levels=[level(500, good)], hour=3, **day, latitude=-49.25, longitude=119.7),
        sounding(levels=[level(500, good + 200)], hour=4, **day, **place),
        *2 * [sounding(levels=[level(500, good)], hour=5, **day, **place)],
        *(sounding(levels=[level(500, good + more)], hour=6, **day, **place) for more in (0, 0.1)),
        sounding(levels=[level(500, good + 20)], hour=7, **day, **place),
    ]
    path = folder / f"{station}-data.txt"
    path.write_text(path.read_text() + "".join(planted))


PLANTED = {"provider": 1, "position": 1, "moved": 1, "range": 1, "contradicted": 2, "repeated": 1, "background": 1}


@pytest.mark.parametrize("with_archive", [True, False])
def test_each_planted_error_is_found_counted_and_never_used(tmp_path, capsys, with_archive):
    write_network(tmp_path)
    plant(tmp_path)
    if with_archive:
        write_archive(tmp_path)
    found = run(whole(tmp_path))
    expected = PLANTED if with_archive else PLANTED | {"background": 0}
    report = json.loads((tmp_path / "set" / "quality.json").read_text())
    at_500 = next(row for row in report["counts"] if row["level_hpa"] == 500)
    used = 18 + 1 + (not with_archive)
    assert at_500 == {"variable": "temperature", "level_hpa": 500, "used": used} | expected
    assert all(
        row["used"] == 18 and sum(row[name] for name in PLANTED) == 0 for row in report["counts"] if row != at_500
    )
    assert report["codes"] == CODES and (report["background"]["statistics"] != "none") == with_archive
    assert f"{'all':>12}{'':>12}{used + 36:>12}" in capsys.readouterr().out
    seen = found.read_all(["temperature"], found.time)[0]
    rejected = np.bincount(seen.qc, minlength=len(CODES))[1:]
    assert dict(zip([*CODES][1:], rejected.tolist(), strict=True)) == expected
    last = seen.used & (seen.time == LAST)
    mean = truth(49.25, 119.7, 500) + (0 if with_archive else 10.0)
    np.testing.assert_allclose(seen.value[last], mean, atol=0.051)
    assert len(usable(seen, found.spec)[0]) == 27 + 1


def test_a_table_and_soundings_make_one_set_and_a_set_is_read_as_a_table(tmp_path):
    write_network(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE)
    both = {"table": f"{tmp_path}/*.csv", "variables": ["precipitation", "temperature"]}
    found = run(whole(tmp_path, **both))
    assert found.names == ("precipitation", "temperature")
    rain = found.read_all(["precipitation"], found.time)[0]
    assert rain.value.tolist() == [3.5] and rain.error_std.tolist() == [5.0] and rain.time[0] == FIRST + 1
    temperature = found.read_all(["temperature"], found.time)[0]
    assert len(temperature.value) == 27 + 2 and (np.diff(temperature.frame) >= 0).all()
    again = run(whole(tmp_path, path=f"{tmp_path}/again", igra="", **both | {"table": f"{tmp_path}/set/*.parquet"}))
    for name in found.names:
        first, second = (one.read_all([name], one.time)[0].content for one in (found, again))
        assert first == second


def test_soundings_and_a_gridded_set_become_one_set_by_writing_both(tmp_path):
    write_network(tmp_path)
    real, value = run(whole(tmp_path)), np.full((6, 1, 6, 12), 240.0)
    olr = Gridded("olr", Operator("block_mean", 2), value, np.full_like(value, 5.0), np.ones(value.shape, bool))
    write_observations(tmp_path / "gridded", SPEC, FIRST - 2 + np.arange(6), [olr], {"config": {}})
    gridded = open_observations(tmp_path / "gridded")
    days = np.intersect1d(real.time, gridded.time)
    observed = [*real.read_all(["temperature"], days), *gridded.read_all(["olr"], days)]
    write_observations(tmp_path / "both", gridded.spec, days, observed, {"config": {}})
    both = open_observations(tmp_path / "both")
    assert both.names == ("temperature", "olr") and len(both.time) == 4
    for name, one in (("temperature", real), ("olr", gridded)):
        assert both.read_all([name], days)[0].content == one.read_all([name], days)[0].content


def test_files_that_overlap_change_nothing(tmp_path):
    write_network(tmp_path)
    one = run(whole(tmp_path)).read_all(["temperature"], FIRST + np.arange(4))[0]
    text = (tmp_path / "CHM00050527-data.txt").read_text()
    (tmp_path / "CHM00050527-data-beg2010.txt").write_text(text)
    two = run(whole(tmp_path, path=f"{tmp_path}/two")).read_all(["temperature"], FIRST + np.arange(4))[0]
    for name in ("frame", "latitude", "level_hpa", "value", "error_std", "station_id"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name)[two.used])
    assert (two.qc == CODES["repeated"]).sum() == 18


def test_a_set_stands_until_its_archive_or_configuration_changes(tmp_path):
    write_network(tmp_path)
    before = run(whole(tmp_path)).checksum
    assert run(whole(tmp_path)).checksum == before
    with pytest.raises(ContractError, match=r"made with another configuration \(different: first_day\)"):
        run(whole(tmp_path, first_day="2010-06-02"))
    write_archive(tmp_path)
    with pytest.raises(ContractError, match=r"made with another configuration \(different: statistics\)"):
        run(whole(tmp_path))


def test_a_bad_file_leaves_nothing_under_the_name(tmp_path):
    write_network(tmp_path)
    (tmp_path / "ZZ.txt").write_text(GOOD[:-20])
    with pytest.raises(SourceError, match=r"ZZ\.txt: line 5"):
        run(whole(tmp_path))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"igra": "none/*.txt"}, "stations.igra: no file matches none/*.txt"),
        ({"first_day": "2011-01-01", "last_day": "2011-01-02"}, "no report of temperature from 2011-01-01 to"),
        ({"variables": ["wind"], "table": "x"}, "quality.limits: has no 'wind', one of variables; it has"),
        ({"variables": ["olr"]}, "variables: ['olr'] is not allowed; IGRA files give ['temperature'] only"),
        ({"variables": []}, "variables: [] is not allowed; at least one, each once"),
        ({"igra": ""}, "igra, table: both are empty; a glob pattern of files is needed"),
        ({"last_day": "2010-05-01"}, "last_day: 2010-05-01 is before first_day, 2010-06-01"),
        ({"first_day": "2010-6-1"}, "first_day: '2010-6-1' is not a date of the form 1989-01-31"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(tmp_path, section, sentence):
    write_network(tmp_path)
    with pytest.raises(ValueError) as said:
        run(whole(tmp_path, **section))
    assert sentence in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"low": [1.0]}, "low: [1.0] is not allowed; 2 numbers, as at_hpa has"),
        ({"at_hpa": [500.0, 100.0]}, "at_hpa: [500.0, 100.0] is not allowed; pressures in ascending order"),
        ({"high": [100.0, 100.0]}, "low: [180.0, 200.0] is not allowed; each less than its high, [100.0, 100.0]"),
        ({"error_std": [0.0, 1.0]}, "error_std: [0.0, 1.0] is not allowed; more than 0"),
    ],
)
def test_limits_that_contradict_themselves_are_refused(change, sentence):
    plain = {"at_hpa": [100.0, 500.0], "low": [180.0, 200.0], "high": [260.0, 300.0], "error_std": [1.0, 1.0]}
    with pytest.raises(ValueError) as said:
        Limits(**plain | change)
    assert str(said.value) == sentence


def test_the_command_plans_writes_and_tells_a_mistake(tmp_path, capsys):
    write_network(tmp_path)
    words = [f"stations.{name}={tmp_path}/{value}" for name, value in {"path": "set", "igra": "*.txt"}.items()]
    words += [f"stations.first_day={FIRST}", f"stations.last_day={LAST}", f"archive.path={tmp_path}/none"]
    command = ["stations", "configs/data_prep/tiny.yaml", *words]
    assert main([*command, "--dry-run"]) == 0 and not (tmp_path / "set").exists()
    assert "3 igra files, 2010-06-01 to 2010-06-04, checked against no climatology" in capsys.readouterr().out
    assert main(command) == 0 and len(open_observations(tmp_path / "set").time) == 4
    assert main([*command, "stations.igra=none"]) == 2 and "stations:" in capsys.readouterr().err
