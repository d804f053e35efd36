"""Gauge precipitation (CPC unified analysis; GRIB ``tp`` and ``prate``): missing over the ocean, not zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from data_prep.sources.daily import open_daily
from data_prep.sources.quantity import Quantity

SECONDS_PER_DAY = 86400.0
MM_PER_METRE = 1000.0

PRECIPITATION = Quantity(
    name="precipitation",
    units="mm/day",
    standard_name="lwe_precipitation_rate",
    variables=("precip", "precipitation", "tp", "total_precipitation", "pr", "prate"),
    grib=(("tp", "surface"), ("prate", "surface"), ("tprate", "surface")),
    # one kilogram of water over one square metre is one millimetre
    factors={
        **dict.fromkeys(("mm", "mm/day", "mm day-1", "mm d-1", "mm/d"), 1.0),
        **dict.fromkeys(("kg m-2 day-1", "kg m**-2 day**-1"), 1.0),
        **dict.fromkeys(("kg m-2 s-1", "kg m**-2 s**-1"), SECONDS_PER_DAY),
        **dict.fromkeys(("m", "m/day"), MM_PER_METRE),
    },
    valid_range=(-0.1, 3000.0),  # packing leaves small negative rain, set to zero; the record is near 1800
    totals=("mm", "m"),
    # The Earth has 2.6 mm a day, its land 2.0, each of their days and hours more than half of that. Totals of an hour
    # taken for those of a day come to 0.11 and 0.08 at most, metres taken for millimetres to 0.003.
    least_mean=0.3,
)


def open_precipitation(paths: Sequence[str | Path]) -> xr.DataArray:
    """Daily precipitation (time, latitude, longitude) in mm/day, NaN where nothing was measured.

    Raises:
        SourceError: a file that cannot be used; on computing, a value outside the valid range, or less rain over much
            of the Earth than falls there.
    """
    return open_daily(paths, PRECIPITATION).clip(min=0.0, keep_attrs=True)
