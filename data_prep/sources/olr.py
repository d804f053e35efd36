"""Outgoing longwave radiation at the top of the atmosphere (NOAA twice daily; GRIB at the nominal top)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from data_prep.sources.daily import open_daily
from data_prep.sources.quantity import Quantity

OLR = Quantity(
    name="olr",
    units="W m-2",
    standard_name="toa_outgoing_longwave_flux",
    variables=("olr",),
    grib=(("sulwrf", "nominalTop"), ("ulwrf", "nominalTop")),
    factors=dict.fromkeys(("W m-2", "W/m^2", "W/m2", "W m**-2"), 1.0),
    valid_range=(0.0, 500.0),
)


def open_olr(paths: Sequence[str | Path]) -> xr.DataArray:
    """Daily mean OLR (time, latitude, longitude) in W m-2.

    A day is the mean of its two halves, cell by cell; where either is missing the day is missing.

    Raises:
        SourceError: a file that cannot be used; on computing, a value outside 0..500 W m-2.
    """
    return open_daily(paths, OLR)
