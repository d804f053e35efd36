"""The sampling job from bucket to bucket: it reads models, observations and truth there, and writes the analysis."""

import fsspec
import xarray as xr
from chain import DATES
from test_analysis import bucket  # noqa: F401  a fixture

from sample.__main__ import main as assimilate
from slams.contracts.departures import open_departures

TWO_DATES = ("period.last_day=2003-05-01", "sampler.steps=2", "guidance.iterations=1")
GIVEN = ("archive.zarr", "observations.zarr", "autoencoder/bundle", "score/bundle")


def test_an_analysis_in_a_bucket_is_that_in_a_folder(chain, bucket, tmp_path, capsys):
    """The same command with URLs; again it has nothing to do; the verification puts its pages on this machine."""
    store = fsspec.filesystem("s3")
    for name in GIVEN:
        store.put(f"{chain.folder}/{name}/", f"{bucket}/chain/{name}", recursive=True)
    local = chain.sample(*TWO_DATES, run="local")[1:]
    remote = [word.replace(str(chain.folder), f"{bucket}/chain") for word in local]
    assert assimilate(local) == 0 and assimilate(remote) == 0
    here, there = chain.folder / "local" / "analysis.zarr", f"{bucket}/chain/local/analysis.zarr"
    one, two = xr.open_zarr(here).load(), xr.open_zarr(there).load()
    assert list(one.time.values.astype("datetime64[D]").astype(str)) == list(DATES[:2])
    assert all(one[name].values.tobytes() == two[name].values.tobytes() for name in one)
    assert open_departures(here).read().equals(open_departures(there).read())
    written = etags(store, there)
    assert assimilate(remote) == 0 and assimilate([*remote, "--dry-run"]) == 0
    assert "units 2 of 3 members, finished 2" in capsys.readouterr().out
    assert etags(store, there) == written
    assert assimilate(["verify", *remote]) == 2
    assert "verify.folder: is empty" in capsys.readouterr().err
    assert assimilate(["verify", *remote, f"verify.folder={tmp_path}/scores"]) == 0
    assert (tmp_path / "scores" / "report.html").is_file()


def etags(store, path):
    """Every object with the mark that changes when it is written."""
    store.invalidate_cache()
    return {name: found["ETag"] for name, found in store.find(path, detail=True).items()}
