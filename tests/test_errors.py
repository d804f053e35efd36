"""What a user gets wrong ends in one sentence and status 2, and leaves nothing under the name of a result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

from data_prep.__main__ import main as prepare
from sample.__main__ import main as assimilate
from slams.contracts.archive import consolidate
from slams.contracts.bundle import write_bundle
from slams.contracts.envelope import written_aside
from slams.contracts.observations import open_observations, write_observations
from slams.contracts.shards import open_shards
from slams.model import ModelConfig, build
from slams.spec import StateSpec
from slams.statistics import Statistics
from train.__main__ import run as learn

ROOT = Path(__file__).parents[1]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FILES = {"temperature": "era5_t", "precipitation": "precip", "olr": "olr.2xdaily"}
VARIABLES = {"temperature": "t", "precipitation": "precip", "olr": "olr"}


def write_prep(folder, planet):
    """Configuration of the preparation of a planet."""
    sources = {name: f"{planet}/{file}.*.nc" for name, file in FILES.items()}
    years = {f"{split}_years": [2001 + i, 2001 + i] for i, split in enumerate(("train", "validation", "test"))}
    config = {
        "archive": {"path": f"{folder}/archive", "sources": sources, "n_latitude": 8, "n_longitude": 16, **years},
        "shards": {"path": f"{folder}/shards", "frames_per_shard": 300},
        "encode": {"path": f"{folder}/latents", "autoencoder": f"{folder}/autoencoder"},
        "observe": {"path": f"{folder}/observations", **{name: {"factor": 4} for name in FILES}},
    }
    (folder / "prep.yaml").write_text(yaml.safe_dump(config))


def write_sample(folder):
    names = {name: f"{folder}/{name}" for name in ("score", "autoencoder", "observations", "archive")}
    period = {"first_day": "2003-01-10", "last_day": "2003-01-10", "halo_days": 1}
    config = {"folder": f"{folder}/run", **names, "period": period, "members": 1, "sampler": {"steps": 2}}
    (folder / "sample.yaml").write_text(yaml.safe_dump(config))


def write_train(folder):
    config = {"folder": f"{folder}/training", "shards": f"{folder}/shards", "bundle": f"{folder}/trained"}
    config |= {"model": {"kind": "autoencoder", "hidden": [4], "blocks": [1]}, "data": {"batch": 8}}
    config |= {"samples": 16, "wandb": "disabled"}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))


def write_model(path, model, shards, spec=None, statistics=None, **document):
    """An untrained bundle, as training on those shards would leave it."""
    spec, statistics = spec or shards.spec, statistics or shards.statistics()
    shape = document.pop("shape", (spec.n_channels, *spec.grid.shape))
    network = build(ModelConfig(**model), spec, shape, statistics)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    with written_aside(path) as aside:
        document |= {"config": {}, "model": vars(ModelConfig(**model)), "input": list(shape)}
        document["report"] = {f"rmse/{name}": 1.0 for name in spec.channel_names}
        write_bundle(aside, {"ema": weights, "raw": weights}, spec, statistics, document)


AUTOENCODER = {"kind": "autoencoder", "hidden": [4], "blocks": [1], "latent_channels": 3}
SCORE = {"kind": "score", "frames": 3, "hidden": [4], "blocks": [1]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, planet):
    """Everything that a run needs, sound."""
    folder = tmp_path_factory.mktemp("prepared")
    write_prep(folder, planet)
    for stage in ("archive", "shards", "observe"):
        assert prepare([stage, str(folder / "prep.yaml")]) == 0
    write_model(folder / "autoencoder", AUTOENCODER, open_shards(folder / "shards"))
    assert prepare(["encode", str(folder / "prep.yaml")]) == 0
    latents = open_shards(folder / "latents")
    made = {key: latents.document[key] for key in ("autoencoder", "latent")}
    write_model(folder / "score", SCORE, latents, shape=latents.shape, **made)
    return folder


@pytest.fixture
def folder(tmp_path, prepared):
    """A copy to spoil, with configurations that point into it."""
    for name in ("archive", "shards", "observations", "autoencoder", "latents", "score"):
        shutil.copytree(prepared / name, tmp_path / name)
    write_sample(tmp_path)
    write_train(tmp_path)
    config = yaml.safe_load((prepared / "prep.yaml").read_text().replace(str(prepared), str(tmp_path)))
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; returns its one sentence."""

    def run(main, *arguments):
        assert main([str(word) for word in arguments]) == 2
        said = capsys.readouterr().err
        assert said.endswith("\n") and said.count("\n") == 1 and "Traceback" not in said
        return said

    return run


def flip(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


# ---- raw archives


@pytest.fixture
def raw(tmp_path, planet):
    """The planet with links in place of its files, each of which may be replaced by a spoiled one."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for path in planet.iterdir():
        (folder / path.name).symlink_to(path)
    write_prep(tmp_path, folder)
    return folder


def spoil(raw, name, change, year=2002):
    """Replace a year's file of a modality."""
    path = raw / f"{FILES[name]}.{year}.nc"
    with xr.open_dataset(path, decode_times=False) as sound:
        changed = change(sound.load())
    path.unlink()
    changed.to_netcdf(path)
    return path


def units(text):
    return lambda dataset: dataset.map(lambda field: field.assign_attrs(units=text), keep_attrs=True)


@pytest.mark.parametrize(
    ("name", "text"), [("temperature", "degC"), ("precipitation", "inches"), ("olr", "K"), ("temperature", None)]
)
def test_wrong_units(raw, refused, name, text):
    def change(dataset):
        field = dataset[VARIABLES[name]]
        field.attrs = {k: v for k, v in field.attrs.items() if k != "units"} | ({"units": text} if text else {})
        return dataset

    path = spoil(raw, name, change)
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert f"{path}: {VARIABLES[name]}: " in said and "allowed" in said and (text or "units") in said
    assert not (raw.parent / "archive").exists()


def test_celsius_that_claims_to_be_kelvin(raw, refused):
    path = spoil(raw, "temperature", lambda dataset: dataset.assign(t=(dataset.t - 273.15).assign_attrs(units="K")))
    assert str(path) in refused(prepare, "archive", raw.parent / "prep.yaml")
    assert not (raw.parent / "archive").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_the_variable(raw, refused, name):
    path = spoil(raw, name, lambda dataset: dataset.rename({VARIABLES[name]: "humidity"}))
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert f"{path}: no {name}: it has" in said and "humidity" in said
    assert not (raw.parent / "archive").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_file(raw, refused, name, share):
    path = raw / f"{FILES[name]}.2002.nc"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: int(share * len(data))])
    assert str(path) in refused(prepare, "archive", raw.parent / "prep.yaml")
    assert not (raw.parent / "archive").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_day_that_one_modality_lacks(raw, refused, name):
    def change(dataset):
        halves = 2 if name == "olr" else 1
        return dataset.drop_isel(time=range(100 * halves, 101 * halves))

    spoil(raw, name, change)
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert f"{name}: 1 of the 1095 days" in said and "are missing (2002-04-11)" in said
    assert not (raw.parent / "archive").exists()


def test_a_missing_day_that_is_allowed_stays_missing(raw, capsys):
    spoil(raw, "precipitation", lambda dataset: dataset.drop_isel(time=100))
    assert prepare(["archive", str(raw.parent / "prep.yaml"), "archive.missing_days_allowed=1"]) == 0
    assert prepare(["shards", str(raw.parent / "prep.yaml"), "archive.missing_days_allowed=1"]) == 0
    days = [str(frame.time) for frame in open_shards(raw.parent / "shards").frames]
    assert len(days) == 1094 and "2002-04-11" not in days


def test_no_file_at_all(raw, refused):
    word = f"archive.sources.olr={raw}/none.*.nc"
    assert f"sources.olr: no file matches {raw}/none" in refused(prepare, "archive", raw.parent / "prep.yaml", word)


def test_a_raw_file_that_is_text(raw, refused):
    path = raw / "precip.2002.nc"
    path.unlink()
    path.write_text("<html>404 not found</html>")
    assert f"{path}: starts with b'<htm'" in refused(prepare, "archive", raw.parent / "prep.yaml")


# ---- configurations


@pytest.mark.parametrize(
    ("main", "arguments", "word", "named"),
    [
        (prepare, ["archive", "prep.yaml"], "archive.grid=8", "archive.grid"),
        (prepare, ["shards", "prep.yaml"], "shards.keepbits=99", "keepbits: 99 is not allowed"),
        (prepare, ["world", "prep.yaml"], "seed=1", "seed"),
        (prepare, ["observe", "prep.yaml"], "observe.olr.noise=.nan", "noise: nan is not allowed"),
        (prepare, ["observe", "prep.yaml"], "observe.olr.masks=[sea]", "masks: 'sea' is not allowed; land, ocean"),
        (learn, ["train.yaml"], "model.depth=8", "model.depth"),
        (learn, ["train.yaml"], "samples=0", "samples: 0 is not allowed"),
        (assimilate, ["sample.yaml"], "member=8", "member"),
        (assimilate, ["sample.yaml"], "period.last_day=tomorrow", "last_day: 'tomorrow' is not a date"),
        (assimilate, ["verify", "sample.yaml"], "verify.bootstrap=0", "bootstrap: 0 is not allowed"),
    ],
)
def test_an_unknown_key_or_a_refused_value(folder, refused, main, arguments, word, named):
    before = sorted(folder.rglob("*"))
    *stage, config = arguments
    assert named in refused(main, *stage, folder / config, word)
    assert sorted(folder.rglob("*")) == before


def test_a_stage_without_its_section(folder, refused):
    assert "has no section 'world'" in refused(prepare, "world", folder / "prep.yaml")
    assert "has no section 'shards'" in refused(prepare, "shards", folder / "prep.yaml", "shards=null")


@pytest.mark.parametrize("stage", ["archive", "shards", "encode", "observe"])
def test_what_is_prepared_is_not_written_into_a_bucket(folder, refused, stage):
    """It was a folder of that name, `s3:`, which no later job found."""
    said = refused(prepare, stage, folder / "prep.yaml", f"{stage}.path=s3://bucket/name")
    assert f"{stage}.path: s3://bucket/name is not allowed; a folder" in said


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("observe.olr.factor=3", "factor: 3 does not divide the grid of 8 x 16 cells"),
        ("observe.olr.keep_every=3", "factor: 3 does not divide the grid of 2 x 4 cells"),
        ("observe.temperature.noise_by_level=[1,2]", "noise_by_level: 2 numbers for 10 levels of temperature"),
        ("observe.olr.masks=[land]", "masks: ['land'] of olr need archive.sources.static"),
    ],
)
def test_an_observing_system_that_does_not_fit(folder, refused, word, named):
    shutil.rmtree(folder / "observations")
    assert named in refused(prepare, "observe", folder / "prep.yaml", word)
    assert not (folder / "observations").exists()


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("archive.regrid.olr=nearest", "archive.regrid.olr='conservative', but the configuration has 'nearest'"),
        ("archive.train_years=[2000,2001]", "archive.train_years=[2001, 2001], but the configuration has [2000, 2001]"),
        ("archive.decimals=3", "archive.decimals=2, but the configuration has 3"),
        ("archive.normalise=scalar", "archive.normalise='anomaly', but the configuration has 'scalar'"),
    ],
)
def test_shards_of_an_archive_of_another_make(folder, refused, word, named):
    shutil.rmtree(folder / "shards")
    said = refused(prepare, "shards", folder / "prep.yaml", word)
    assert f"{folder}/archive: was made with {named}" in said and not (folder / "shards").exists()
    assert not list(folder.glob("shards.*"))


def test_shards_of_an_archive_that_was_moved(folder):
    """Where it lies, and how many missing days would have been too many, change nothing that it holds."""
    shutil.rmtree(folder / "shards")
    (folder / "archive").rename(folder / "moved")
    words = [f"archive.path={folder}/moved", "archive.missing_days_allowed=3"]
    assert prepare(["shards", str(folder / "prep.yaml"), *words]) == 0
    assert len(open_shards(folder / "shards").frames) == 1095


def test_a_result_of_another_configuration_is_not_written_over(folder, refused):
    config = folder / "prep.yaml"
    said = refused(prepare, "observe", config, "observe.seed=1")
    assert f"{folder}/observations: was made with another configuration (different: " in said and "seed" in said


# ---- files between the jobs


def newest(path):
    document = json.loads(path.read_text())
    (document["attributes"] if path.name == "zarr.json" else document)["version"] = 9
    path.write_text(json.dumps(document))


def of_other_channels(folder):
    """An autoencoder of the same fields in another order."""
    shards = open_shards(folder / "shards")
    shutil.rmtree(folder / "autoencoder")
    spec = StateSpec(shards.spec.grid, shards.spec.modalities[::-1])
    write_model(folder / "autoencoder", AUTOENCODER, shards, spec)


def of_other_statistics(folder):
    shards = open_shards(folder / "shards")
    shutil.rmtree(folder / "autoencoder")
    found = shards.statistics()
    other = Statistics(found.harmonics, found.std * 2, found.log1p, found.observed, found.static)
    write_model(folder / "autoencoder", AUTOENCODER, shards, statistics=other)


def of_other_latents(folder):
    """A second autoencoder, trained on the very same shards."""
    shutil.rmtree(folder / "autoencoder")
    write_model(folder / "autoencoder", AUTOENCODER, open_shards(folder / "shards"))


def of_other_units(folder):
    """Observations of temperature on the right grid, in another unit."""
    found = open_observations(folder / "observations")
    seen = [found.read(name, found.time) for name in found.names]
    document = found.spec.to_json()
    document["modalities"][0]["units"] = "degC"
    shutil.rmtree(folder / "observations")
    write_observations(folder / "observations", StateSpec.from_json(document), found.time, seen, {"config": {}})


def observations(path, change):
    """Change something inside the observations as another program might."""

    def spoil(folder):
        group = zarr.open_group(folder / "observations", mode="r+", use_consolidated=False)
        change(group[path])
        consolidate(folder / "observations")

    return spoil


def in_celsius(value):
    value[:] = value[:] - 273.15


def with_(**attributes):
    return lambda node: node.attrs.update(attributes)


def to(number):
    return lambda values: values.__setitem__(slice(None), number)


def without(name):
    return lambda folder: shutil.rmtree(folder / name)


def flipped(name, at=-5):
    return lambda folder: flip(folder / name, at)


def newer(name):
    return lambda folder: newest(folder / name)


ENCODE, SHARDS, TRAIN = (prepare, ["encode", "prep.yaml"]), (prepare, ["shards", "prep.yaml"]), (learn, ["train.yaml"])
SAMPLE, VERIFY = (assimilate, ["sample.yaml"]), (assimilate, ["verify", "sample.yaml"])
FIRST, STATISTICS, WEIGHTS = "frames-00000.tar", "statistics.safetensors", "weights.safetensors"
FAULTS = {
    "no archive": (SHARDS, without("archive"), ["archive: no archive there"]),
    "no shards to encode": (ENCODE, without("shards"), ["shards/manifest.json: no such file"]),
    "no shards to train on": (TRAIN, without("shards"), ["shards/manifest.json: no such file"]),
    "no autoencoder": (ENCODE, without("autoencoder"), ["autoencoder/model.json: no such file"]),
    "no score": (SAMPLE, without("score"), ["score/model.json: no such file"]),
    "no observations": (SAMPLE, without("observations"), ["observations: no observations there"]),
    "no analysis": (VERIFY, without("score"), ["run/analysis.zarr: no analysis there"]),
    "newer shards": (TRAIN, newer("shards/manifest.json"), ["shards: slams-shards version 9"]),
    "newer bundle": (SAMPLE, newer("score/model.json"), ["score: slams-bundle version 9"]),
    "newer archive": (SHARDS, newer("archive/zarr.json"), ["archive: slams-archive version 9"]),
    "other channels": (ENCODE, of_other_channels, ["was trained on olr, precipitation", "shards holds temperature_10"]),
    "other statistics": (ENCODE, of_other_statistics, ["autoencoder: was trained with other statistics", "/shards"]),
    "other autoencoder": (SAMPLE, of_other_latents, ["learned the latents of another autoencoder", "/autoencoder"]),
    "other units": (SAMPLE, of_other_units, ["observations: temperature", "degC", "is not what the model analyses"]),
    "Celsius that claims to be kelvin": (
        SAMPLE,
        observations("temperature/value", in_celsius),
        ["observations: temperature is ", "which cannot be kelvin"],
    ),
    "Celsius": (
        SAMPLE,
        observations("temperature/value", with_(units="degC")),
        ["observations: value of temperature is in 'degC'; 'K' is needed"],
    ),
    "error of zero": (SAMPLE, observations("olr/error_std", to(0)), ["observations: error_std of olr is 0.0"]),
    "error that is no number": (
        SAMPLE,
        observations("olr/error_std", to(np.nan)),
        ["observations: error_std of olr is nan"],
    ),
    "nothing observed": (
        SAMPLE,
        observations("olr/mask", to(0)),
        ["observations: every value of olr is masked from 2003-01-09 to 2003-01-11"],
    ),
    "operator that does not divide": (
        SAMPLE,
        observations("olr", with_(operator={"kind": "block_mean", "factor": 3})),
        ["observations: operator", "of olr cannot be applied (factor: 3 does not divide the grid of 8 x 16 cells)"],
    ),
    "shard to encode": (ENCODE, flipped(f"shards/{FIRST}", 5000), [f"{FIRST}: the checksum of frame"]),
    "shard to train on": (TRAIN, flipped(f"shards/{FIRST}", 5000), [f"{FIRST}: the checksum of frame"]),
    "encoder's weights": (ENCODE, flipped(f"autoencoder/{WEIGHTS}"), [f"autoencoder/{WEIGHTS}: the checksum"]),
    "decoder's weights": (SAMPLE, flipped(f"autoencoder/{WEIGHTS}"), [f"autoencoder/{WEIGHTS}: the checksum"]),
    "score's weights": (SAMPLE, flipped(f"score/{WEIGHTS}"), [f"score/{WEIGHTS}: the checksum"]),
    "archive's statistics": (SHARDS, flipped(f"archive/{STATISTICS}"), [f"archive/{STATISTICS}: the checksum"]),
    "shards' statistics": (TRAIN, flipped(f"shards/{STATISTICS}"), [f"shards/{STATISTICS}: the checksum"]),
}
RESULTS = {"shards": "shards", "encode": "latents", "train.yaml": "trained", "sample.yaml": "run", "verify": "run"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_there_not_whole_or_not_of_this_make(folder, refused, fault):
    (main, arguments), spoiled, parts = FAULTS[fault]
    spoiled(folder)
    result = folder / RESULTS[arguments[0]]
    if main is prepare:
        shutil.rmtree(result)
    said = refused(main, *arguments[:-1], folder / arguments[-1])
    assert all(part in said for part in parts), said
    assert not result.exists()


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("without=[wind]", "modality: 'wind' is not one of temperature, precipitation, olr"),
        ("error_inflation={wind: 2}", "modality: 'wind' is not one of temperature, precipitation, olr"),
        ("error_inflation={olr: 0}", "error_inflation.olr: 0.0 is not allowed; a number above 0"),
        ("without=[temperature,precipitation,olr]", "leaves no modality to assimilate"),
        ("autoencoder=''", "score: learned latents; `autoencoder` must name the bundle that made them"),
    ],
)
def test_a_sample_of_what_is_not_there(folder, refused, word, named):
    assert named in refused(assimilate, folder / "sample.yaml", word)
    assert not (folder / "run").exists()


def test_days_that_were_not_observed(folder, refused):
    word = "period.first_day=2003-01-01"  # its halo begins in the year before
    assert "observations: 2002-12-31 is outside 2003-01-01 to 2003-12-31" in refused(
        assimilate, folder / "sample.yaml", word
    )


def test_a_bundle_of_the_other_kind(folder, refused):
    said = refused(assimilate, folder / "sample.yaml", f"score={folder}/autoencoder")
    assert "autoencoder: holds an autoencoder, not a score network" in said
    shutil.rmtree(folder / "latents")
    said = refused(prepare, "encode", folder / "prep.yaml", f"encode.autoencoder={folder}/score")
    assert "score: holds a score network, not an autoencoder" in said


def test_a_folder_that_cannot_be_written(folder, refused):
    for main, words in (
        (prepare, ["observe", folder / "prep.yaml", f"observe.path={folder}/prep.yaml/observations"]),
        (learn, [folder / "train.yaml", f"folder={folder}/prep.yaml/training"]),
        (assimilate, [folder / "sample.yaml", f"folder={folder}/prep.yaml/run"]),
    ):
        assert "prep.yaml/" in refused(main, *words)


def test_what_broke_is_mended_and_the_same_command_goes_on(folder, refused):
    shutil.rmtree(folder / "latents")
    flip(folder / "shards" / "frames-00003.tar", 5000)
    refused(prepare, "encode", folder / "prep.yaml")
    assert not (folder / "latents").exists()
    flip(folder / "shards" / "frames-00003.tar", 5000)
    assert prepare(["encode", str(folder / "prep.yaml")]) == 0
    found = open_shards(folder / "latents")
    assert np.isfinite(found.read(found.frames[-1])).all() and not list(folder.glob("*.partial"))


def test_latents_of_shards_that_were_made_anew_do_not_stand(folder, refused):
    shutil.rmtree(folder / "latents")
    assert prepare(["encode", str(folder / "prep.yaml")]) == 0
    shutil.rmtree(folder / "shards")
    assert prepare(["shards", str(folder / "prep.yaml"), "shards.keepbits=6"]) == 0
    said = refused(prepare, "encode", folder / "prep.yaml")
    assert f"{folder / 'latents'}: was made from another {folder / 'shards'} than is there now; remove it" in said


def test_jobs_that_end_at_one_task_are_a_sentence(folder, refused, monkeypatch):
    """As dask says it, which is no error of a kind that Python has a name for."""
    scheduler = pytest.importorskip("distributed.scheduler", reason="dask-jobqueue is not installed")

    def run(*_):
        raise scheduler.KilledWorker("write", SimpleNamespace(address="tcp://10.0.0.1:1"), 3)

    monkeypatch.setattr("data_prep.observe.run", run)
    assert "workers.slurm_jobs: one job after the other ended" in refused(prepare, "observe", folder / "prep.yaml")


def test_no_dask_of_jobs_is_loaded_for_an_error(tmp_path):
    code = (
        "import sys; from data_prep.__main__ import main; main(['world', 'none']); print('distributed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["data_prep", "archive", "none.yaml"], "data_prep archive: config {}/none.yaml: no such file"),
        (["train", "train.yaml"], "slams-train: {}/shards/frames-00000.tar: the checksum of frame"),
        (["sample", "sample.yaml"], "sample: {}/score/weights.safetensors: the checksum does not match"),
        (["sample", "verify", "sample.yaml"], "sample verify: {}/run/analysis.zarr: no analysis there"),
    ],
)
def test_the_programs_themselves(folder, command, sentence):
    """Each entry point as a process: the status, and one line on its standard error."""
    flip(folder / "shards" / FIRST, 5000)
    flip(folder / "score" / WEIGHTS)
    *words, config = command
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    command = [sys.executable, "-m", *words, str(folder / config)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith(sentence.format(folder)), done.stderr
    assert done.stderr.count("\n") == 1 and not (folder / "run").exists() and not (folder / "trained").exists()
