"""Raw archives under canonical names, units, grids and dates: what every later stage reads.

Whatever the provider's layout, NetCDF, GRIB or Zarr, a field comes back as a lazy float32 array with latitude
descending, longitude ascending in 0 <= lon < 360, one time a UTC day (00:00, strictly increasing) and a
coordinate ``run(time)`` naming the simulation a day belongs to (empty for observations). Two different runs
are not continuous in time. Values are checked when they are read, so a bad block is refused on computing it.
"""

from data_prep.sources.cpc import open_precipitation
from data_prep.sources.era5 import open_static, open_temperature
from data_prep.sources.files import find_files, fingerprint
from data_prep.sources.olr import open_olr
from data_prep.sources.quantity import SourceError

__all__ = [
    "SourceError",
    "find_files",
    "fingerprint",
    "open_olr",
    "open_precipitation",
    "open_static",
    "open_temperature",
]
