"""Archives of a small planet for the tests of the preparation, and what tells two of them apart."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_errors import FILES, spoil, write_prep
from world import write_world

from data_prep.__main__ import main as prepare

ROOT = Path(__file__).parents[1]


def tree(folder):
    """Checksum of every file, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same_tree(left, right, document="zarr.json"):
    """But for its own path, which its attributes and so their checksum have, and the commit, which may change."""
    found, expected = tree(left), tree(right)
    own = '"(commit|document_sha256)": "[^"]*"'
    texts = [re.sub(own, "", (folder / document).read_text()) for folder in (left, right)]
    assert texts[0].replace(str(left), str(right)) == texts[1]
    del found[document], expected[document]
    assert found == expected


def words(folder, *more):
    return ["archive", str(folder / "prep.yaml"), *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory, planet):
    """An archive made in one go, under the name that every test's archive has."""
    folder = tmp_path_factory.mktemp("made")
    write_prep(folder, planet)
    assert prepare(words(folder)) == 0
    return folder


@pytest.fixture
def here(tmp_path, made):
    """A folder with the configuration of the archive, and a function that says whether what it holds is the same."""
    shutil.copy(made / "prep.yaml", tmp_path / "prep.yaml")
    place = f"archive.path={tmp_path / 'archive'}"

    def assert_same():
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "prep.yaml"]
        assert_same_tree(tmp_path / "archive", made / "archive")

    return place, assert_same


def start(folder, *more, **options):
    command = [sys.executable, "-m", "data_prep", *words(folder, *more)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **options)


def wait_for(path, pattern, count):
    for _ in range(6000):
        if len(list(path.glob(pattern))) >= count:
            return
        time.sleep(0.005)
    pytest.fail(f"{path}/{pattern} did not come")


@pytest.fixture(scope="module")
def four_years(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    write_world(folder / "raw", (2001, 2002, 2003, 2004), n_latitude=9, n_longitude=16)
    write_prep(folder, folder / "raw")
    return folder


def gone(raw, *years):
    for year in years:
        for name in FILES.values():
            (raw / f"{name}.{year}.nc").unlink()
    (raw / "static.nc").unlink()


@pytest.fixture
def longer(four_years, tmp_path):
    """Configuration and raw files of four years, in two runs, with a day missing in the first and in the last."""
    raw = tmp_path / "raw"
    shutil.copytree(four_years / "raw", raw)
    write_prep(tmp_path, raw)
    config = yaml.safe_load((tmp_path / "prep.yaml").read_text())
    config["archive"] |= {"missing_days_allowed": 2}
    config["archive"]["sources"]["static"] = f"{raw}/static.nc"
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    for year in (2001, 2004):
        spoil(raw, "temperature", lambda dataset: dataset.drop_isel(time=300), year)
    for year in (2003, 2004):
        spoil(raw, "temperature", lambda dataset: dataset.assign_attrs(simulation_run="second"), year)
    return tmp_path
