"""The configuration surface: every YAML is a whole run, every mistake one sentence, and no option appears unnoticed.

Run as a program, this file prints the names of all options: `python -m tests.test_configs > tests/golden/options.txt`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml

from data_prep.config import PrepConfig
from sample.config import SampleConfig
from slams.config import ConfigError, digest, load, to_dict, to_yaml
from train.config import TrainConfig

ROOT = Path(__file__).parents[1]
SCHEMAS = {"data_prep": PrepConfig, "train": TrainConfig, "sample": SampleConfig}
YAMLS = {f"{job}/{path.name}": path for job in SCHEMAS for path in sorted((ROOT / "configs" / job).glob("*.yaml"))}
TINY = {job: next(path for name, path in YAMLS.items() if name.startswith(f"{job}/tiny")) for job in SCHEMAS}
GOLDEN = ROOT / "tests" / "golden" / "options.txt"
YAML_LINES = 60


def parts(schema):
    """A schema's fields, with the dataclass each is made of, or None for a value."""
    for name, hint in get_type_hints(schema).items():
        yield name, next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)


def options(schema, prefix):
    """Names of all options of a schema."""
    for name, part in parts(schema):
        yield from options(part, f"{prefix}.{name}") if part else [f"{prefix}.{name}"]


def all_options():
    return [name for job, schema in SCHEMAS.items() for name in options(schema, job)]


def objects(value):
    """Everything inside a configuration."""
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from objects(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from objects(item)


def test_there_are_configurations_of_every_job():
    assert len(YAMLS) >= 4 and {name.split("/")[0] for name in YAMLS} == set(SCHEMAS)


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_is_one_whole_run(name):
    text = YAMLS[name].read_text()
    assert text.startswith("# ") and text.count("\n") <= YAML_LINES
    config = load(SCHEMAS[name.split("/")[0]], YAMLS[name])
    for value in objects(config):
        plain = type(value) in (str, int, float, bool, list, dict, type(None))
        assert plain or (dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen), value


@pytest.mark.parametrize("job", SCHEMAS)
def test_a_resolved_configuration_is_printed_stored_and_read_again(job, tmp_path):
    config = load(SCHEMAS[job], TINY[job])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    again = load(SCHEMAS[job], tmp_path / "again.yaml")
    assert again == config and digest(again) == digest(config)
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


MISTAKES = [
    ("data_prep", "archive.n_lat=3", "archive.n_lat"),
    ("data_prep", "archive.sources.wind=w.nc", "archive.sources.wind"),
    ("data_prep", "archive.n_latitude=many", "archive.n_latitude"),
    ("data_prep", "shards.keepbits=1.5", "shards.keepbits"),
    ("data_prep", "shards.keepbits=24", "keepbits: 24 is not allowed; 1 to 23"),
    ("data_prep", "archive.train_years=[1982, 1990]", "validation_years: 1990 belongs to train_years already"),
    ("data_prep", "observe.olr.operator=median", "median"),
    ("data_prep", "observe.olr.noise=0", "noise: 0.0 is not allowed; more than 0"),
    ("train", "optim.lr=1", "optim.lr"),
    ("train", "step=1", "step"),
    ("train", "samples=few", "samples"),
    ("train", "model.hidden=[a]", "model.hidden"),
    ("train", "samples=0", "samples: 0 is not allowed; at least 1"),
    ("train", "model.frames=2", "frames: 2 is not allowed"),
    ("train", "model.kind=diffusion", "diffusion"),
    ("train", "optim.learning_rate=.nan", "optim.learning_rate: nan is not allowed; a finite number"),
    ("train", "engine.gradient_clipping=.inf", "engine.gradient_clipping: inf is not allowed; a finite number"),
    ("train", "model.modality_weights=[1, .nan]", "model.modality_weights[1]: nan is not allowed; a finite number"),
    ("train", "model.hidden=64", "model.hidden: a list is needed, such as [1, 2]"),
    ("train", "model=3", "3 is not allowed where the fields of ModelConfig are needed"),
    ("train", "model.hidden={a: 1}", "a list stands where fields are needed, or fields where a list is"),
    ("train", "data.batch=[1", "did not find expected ',' or ']'"),
    ("sample", "guidance.theta=1", "guidance.theta"),
    ("sample", "members=many", "members"),
    ("sample", "sampler.steps=[1]", "sampler.steps"),
    ("sample", "members=0", "members: 0 is not allowed; at least 1"),
    ("sample", "period.first_day=1991-02-30", "first_day: '1991-02-30' is not a date"),
    ("sample", "sampler.kind=euler", "euler"),
    ("sample", "members", "a word of the form key.path=value is needed"),
]


@pytest.mark.parametrize(("job", "word", "named"), MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_field(job, word, named):
    with pytest.raises(ConfigError) as said:
        load(SCHEMAS[job], TINY[job], [word])
    sentence = str(said.value)
    assert named in sentence and "\n" not in sentence


REQUIRED = [
    ("data_prep", "archive"),
    ("data_prep", "archive.path"),
    ("data_prep", "archive.sources.temperature"),
    ("data_prep", "encode.autoencoder"),
    ("train", "samples"),
    ("train", "model.kind"),
    ("train", "data.batch"),
    ("sample", "score"),
    ("sample", "period.first_day"),
]


@pytest.mark.parametrize(("job", "name"), REQUIRED)
def test_what_is_required_and_not_given_is_named(job, name, tmp_path):
    value = yaml.safe_load(TINY[job].read_text())
    *above, last = name.split(".")
    section = value
    for part in above:
        section = section[part]
    del section[last]
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError) as said:
        load(SCHEMAS[job], tmp_path / "half.yaml")
    assert name in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 2, column 1: did not find expected ',' or ']'"),
        ("- 1\n- 2", "a list stands where fields are needed"),
        ("archive: 3", "archive: 3 is not allowed where the fields of ArchiveConfig are needed"),
        ("\tx: 1", "line 1, column 1: found character that cannot start any token"),
        ("archive:\n  path: x\n  path: y", "line 3, column 3: found duplicate key path"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, sentence):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as said:
        load(PrepConfig, tmp_path / "bad.yaml")
    assert sentence in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("preset", ["tiny", "small", "paper", "base"])
def test_a_preset_analyses_days_that_its_data_have(preset):
    """The days drawn beside a segment, too."""
    archive = load(PrepConfig, ROOT / f"configs/data_prep/{preset}.yaml").archive
    period = load(SampleConfig, ROOT / f"configs/sample/{preset}.yaml").period
    first, last = (np.datetime64(day) for day in (period.first_day, period.last_day))
    assert first - period.halo_days >= np.datetime64(f"{archive.test_years[0]}-01-01")
    assert last + period.halo_days <= np.datetime64(f"{archive.test_years[1]}-12-31")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load(PrepConfig, tmp_path / "none.yaml")


def test_words_replace_values_at_any_depth_and_leave_the_others():
    words = ["archive.sources.olr=other.nc", "archive.level_hpa=[500,850]", "observe.olr.noise=2", "world=null"]
    config, plain = load(PrepConfig, TINY["data_prep"], words), load(PrepConfig, TINY["data_prep"])
    assert config.archive.sources.olr == "other.nc" and config.archive.level_hpa == [500, 850]
    assert config.observe.olr.noise == 2.0 and config.observe.olr.factor == 8 and config.world is None
    assert config.archive.sources.temperature == plain.archive.sources.temperature and config.shards == plain.shards


def test_no_option_appears_or_goes_unnoticed():
    command = "python -m tests.test_configs > tests/golden/options.txt"
    assert all_options() == GOLDEN.read_text().split(), f"if it is meant: {command}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(all_options()) + "\n")
