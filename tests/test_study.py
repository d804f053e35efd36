"""Studies: one command runs what is missing, cases are compared on the same dates, claims can fail."""

import csv
import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from chain import ROOT, finish, start

from sample.__main__ import main as sample
from sample.leave import Leave
from sample.study.config import KINDS, CurveConfig, FindingConfig, Setting, StudyConfig, SystemConfig
from sample.study.findings import findings
from sample.study.plan import Plan, analysed, nearest_divisor, planned, preparations
from sample.study.results import published_scores
from sample.study.run import _parser, _rerun, _write
from sample.study.scored import Scored, gathered
from sample.study.settings import told
from sample.study.stages import Jobs, Stage, StageError, StoppedError, complete
from sample.sums import OF_MEMBERS, SCORES, Sums
from slams.config import ConfigError, load
from slams.contracts.envelope import ContractError
from slams.spec import TEMPERATURE, Grid, StateSpec

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
DATES = np.arange("2003-01-01", "2003-12-27", 15, dtype="datetime64[D]")


@pytest.fixture(scope="module")
def study(chain):
    """A study of the small planet: the score network and EnOI, on blocks of 4 and of 5 (which are 4) cells."""
    folder = chain.folder
    drawn = " ".join(chain.sample(f"archive={folder}/archive.zarr")[1:]).replace("verify.bootstrap=50", "")
    words = " ".join(w for w in drawn.split() if not w.startswith(("folder=", "observations=")))
    every = "method=enoi enoi.half_width_km=[6000] enoi.inflation=[0.5,0.7] enoi.tuning_dates=2"
    every += " enoi.validation={validation}"
    document = {
        "folder": f"{folder}/study",
        "title": "A small study",
        "question": "Does it run?",
        "data": {"planet": " ".join(w for w in chain.prepared if not w.startswith("observe."))},
        "prepare": ["data_prep archive ${data.planet}"],
        "observe": " ".join(f"observe.{m}.factor={{factor}}" for m in ("temperature", "precipitation", "olr")),
        "curves": {"coarse": {"group": "coarsening", "values": [4, 5], "label": "{factor} x {factor} cells"}},
        "systems": {
            "slams": {"label": "SLAMS", "data": "planet", "sample": words},
            "enoi": {"label": "EnOI", "data": "planet", "sample": f"{words} {every}", "settings": ["coarse-4"]},
        },
        "reference": "slams",
        "baselines": {"climatology": "slams"},
        "findings": [
            {"claim": "EnOI is better than climatology", "systems": ["enoi", "climatology"], "settings": ["coarse-4"]}
        ],
        "quick": [f"folder={folder}/quick", "only_systems=[slams]", "only_settings=[coarse-4]", "sample=members=2"],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    finish(start(["sample", "study", str(path)]))
    return path


def result(study):
    return json.loads((study.parent / "study" / "results.json").read_text())


def test_every_case_is_scored_in_all_settings_that_are_its_own(study):
    """EnOI takes part in blocks of 4 alone, and those of 5 are of 4 here."""
    found = result(study)["results"]
    assert set(found["coarse-4"]) == set(found["coarse-5"]) == {"slams", "enoi", "climatology"}
    page = (study.parent / "study" / "report.html").read_text()
    assert "A small study" in page and "Does it run?" in page


def test_what_the_preparation_cost_is_what_its_mark_says(study):
    (mark,) = (study.parent / "study" / "marks").glob("prepare-*.json")
    spent = json.loads(mark.read_text())
    expected = {part: spent[part] for part in ("seconds", "processor_seconds")} | {"label": "data_prep archive, tiny"}
    assert expected["seconds"] > 0 and result(study)["preparation"] == {"prepare-00-data_prep-archive": expected}


def test_scores_are_those_of_each_case_and_differences_are_theirs(study):
    own, found = result(study), {}
    for system in ("slams", "enoi"):
        scores = json.loads((study.parent / f"study/cases/coarse-4/{system}/verify/scores.json").read_text())
        found[system] = scores["systems"]["analysis"]
        for score in ("crps", "rmse"):
            for level in ("mean", "500"):
                value = own["results"]["coarse-4"][system][score][level]["value"]
                assert value == pytest.approx(found[system][score][level], rel=1e-9)
    gap = own["differences"]["coarse-4"]["enoi"]["crps"]["mean"]
    assert gap["value"] == pytest.approx(found["enoi"]["crps"]["mean"] - found["slams"]["crps"]["mean"], rel=1e-9)
    low, high = gap["interval"]
    assert low <= gap["value"] <= high and gap["significant"] == (low > 0 or high < 0)


def test_a_factor_that_does_not_divide_the_grid_is_replaced_and_said(study):
    notes = {setting["name"]: setting["note"] for setting in result(study)["settings"]}
    assert notes["coarse-4"] == ""
    assert notes["coarse-5"] == "5 does not divide the grid; 4 in its place, the same as coarse-4"
    labels = {setting["name"]: setting["label"] for setting in result(study)["settings"]}
    assert labels == {"coarse-4": "4 x 4 cells", "coarse-5": "4 x 4 cells (5 asked)"}
    with (study.parent / "study" / "results.csv").open(newline="") as file:
        assert {(row["setting_value"], row["factor"]) for row in csv.DictReader(file)} == {("4.0", "4"), ("5.0", "4")}
    both = [result(study)["results"][setting]["slams"]["rmse"]["mean"]["value"] for setting in ("coarse-4", "coarse-5")]
    assert both[0] == both[1]


def test_each_case_says_who_made_it_and_the_page_how_it_was_asked_for(study):
    own = result(study)
    for case, found in own["origins"].items():
        setting, system = case.split("/")
        scores = json.loads(Path(own["cases"][setting][system]).with_name("scores.json").read_text())
        assert found == {name: told for name, told in scores["provenance"].items() if name != "config"}
        assert len(found["products"]["analysis"]["observations_sha256"]) == 64
    assert set(own["origins"]) == {"coarse-4/slams", "coarse-4/enoi", "coarse-5/slams"}
    assert yaml.safe_load(own["config"])["observe"] == yaml.safe_load(study.read_text())["observe"]


def test_the_same_command_finds_all_done(study):
    products = list((study.parent / "study" / "cases").rglob("analysis.zarr/zarr.json"))
    before = [product.stat().st_mtime_ns for product in products]
    marks = {path: path.stat().st_mtime_ns for path in (study.parent / "study" / "marks").iterdir()}
    finish(start(["sample", "study", str(study)]))
    assert len(products) == 2 and before == [product.stat().st_mtime_ns for product in products]
    assert marks == {path: path.stat().st_mtime_ns for path in (study.parent / "study" / "marks").iterdir()}


def test_the_tables_name_the_command_that_makes_all_of_them(study):
    """Also where a program of a job array wrote them, which was asked for one case."""
    title = "title=One of many"
    finish(start(["sample", "study", "--only", "coarse-4/slams", "--threads", "2", str(study), title]))
    command = f"python -m sample study {study} '{title}'"
    assert f"`{command}`" in (study.parent / "study" / "results.md").read_text()
    assert f"<code>{html.escape(command)}</code>" in (study.parent / "study" / "report.html").read_text()
    assert "--quick" in _rerun(_parser().parse_args([str(study), "--quick", "--only", "coarse-4/slams"]))
    finish(start(["sample", "study", str(study)]))


def test_asked_to_leave_it_stops_its_jobs_and_goes_on(study):
    """To the scores of the study that was never disturbed, two cases at once."""
    words = ["sample", "study", str(study), f"folder={study.parent}/left", "only_settings=[coarse-4]"]
    process = start([*words, "--processes", "2"])
    ledger = study.parent / "left/cases/coarse-4/slams/analysis.zarr/ledger"
    while not (ledger.is_dir() and list(ledger.glob("*.json"))):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    mark = study.parent / "left/marks/coarse-4--slams.json"
    left = json.loads(mark.read_text())
    assert left["key"] == "" and left["processor_seconds"] > 0
    jobs = subprocess.run(["pgrep", "-f", f"folder={study.parent}/left/cases"], capture_output=True, text=True)
    assert jobs.stdout == ""
    finish(start([*words, "--processes", "2"]))
    found = json.loads((study.parent / "left" / "results.json").read_text())["results"]
    assert found["coarse-4"] == result(study)["results"]["coarse-4"]
    assert json.loads(mark.read_text())["processor_seconds"] > left["processor_seconds"]


def test_what_a_stage_cost_is_the_sum_of_its_runs(tmp_path):
    """The second run, of a job that finds nothing to do, would else be all that the first had cost."""
    given = tmp_path / "given.json"
    stage = Stage("case", (("json.tool", str(given)),))
    given.write_text("{")
    with pytest.raises(StageError):
        stage.run(tmp_path, 1, Jobs())
    first = json.loads(stage.mark(tmp_path).read_text())
    assert not stage.done(tmp_path) and first["seconds"] > 0
    stage.mark(tmp_path).write_text(json.dumps(first | {"seconds": 1000.0}))
    given.write_text("{}")
    stage.run(tmp_path, 1, Jobs())
    assert stage.done(tmp_path) and json.loads(stage.mark(tmp_path).read_text())["seconds"] > 1000
    for other in (
        replace(stage, commands=(("json.tool", "--compact", str(given)),)),
        replace(stage, files=(str(given),)),
    ):
        stage.mark(tmp_path).write_text(json.dumps(first | {"seconds": 1000.0}))
        other.run(tmp_path, 1, Jobs())
        assert json.loads(other.mark(tmp_path).read_text())["seconds"] < 1000


def test_another_command_upstream_makes_its_cases_run_again(study):
    config = load(StudyConfig, study)
    one, other = (planned(c, (16, 32)) for c in (config, replace(config, observe=f"{config.observe} observe.seed=3")))
    case = ("coarse-4", "slams")
    assert one.cases[case].commands == other.cases[case].commands
    assert one.cases[case].done(Path(config.folder)) and not other.cases[case].done(Path(config.folder))


def test_a_changed_file_or_a_removed_result_is_no_done_stage(tmp_path):
    yaml_file, left = tmp_path / "run.yaml", tmp_path / "scores.json"
    yaml_file.write_text("steps: 4")
    stage = Stage("case", (("sample", str(yaml_file)),), leaves=str(left))
    left.touch()
    stage.mark(tmp_path).parent.mkdir()
    stage.mark(tmp_path).write_text(json.dumps({"key": stage.key}))
    assert stage.done(tmp_path)
    yaml_file.write_text("steps: 8")
    assert not stage.done(tmp_path)
    yaml_file.write_text("steps: 4")
    left.unlink()
    assert not stage.done(tmp_path)


def test_a_comment_makes_nothing_run_again(tmp_path):
    yaml_file = tmp_path / "run.yaml"
    stage = Stage("case", (("sample", str(yaml_file)),))
    keys = []
    for text in ("steps: 4", "# why\nsteps:   4", "steps: 5"):
        yaml_file.write_text(text)
        keys.append(stage.key)
    assert keys[0] == keys[1] != keys[2]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes a module of some text a job of its own, and returns the stage that runs it."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")

    def made(text, name="job", **about):
        (tmp_path / f"{name}.py").write_text(text)
        return Stage(name, ((name, *about.pop("words", ())),), **about)

    return made


def test_a_file_that_changes_while_its_stage_runs_makes_it_run_again(job, tmp_path):
    """The mark is of what the job was given, not of what lies there when it has ended."""
    given = tmp_path / "run.yaml"
    given.write_text("steps: 4")
    stage = job(f"from pathlib import Path; Path({str(given)!r}).write_text('steps: 8')", words=(str(given),))
    stage.run(tmp_path, 1, Jobs())
    assert not stage.done(tmp_path)
    given.write_text("steps: 4")
    assert stage.done(tmp_path)


def test_a_stage_that_leaves_nothing_has_failed(job, tmp_path):
    stage = job("print('all is well')", leaves=str(tmp_path / "nothing"))
    with pytest.raises(StageError, match=r"stage job left no .*nothing: all is well"):
        stage.run(tmp_path, 1, Jobs())
    assert not stage.done(tmp_path)


def test_a_job_is_whole_whatever_array_or_step_the_study_is_in(job, tmp_path, monkeypatch):
    """By its number in them it would draw its share of the members, and the rest would never be."""
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4102444800")
    said = tmp_path / "said"
    job(f"import os; open({str(said)!r}, 'w').write(' '.join(os.environ))").run(tmp_path, 1, Jobs())
    names = {name for name in said.read_text().split() if name.startswith("SLURM")}
    assert names == {"SLURM_JOB_END_TIME"}, "the time there is holds for the job too"


def test_a_job_that_left_for_want_of_time_is_no_failure_and_no_other_is_begun(job, tmp_path, capsys):
    stages = [job(f"raise SystemExit({status})", name) for name, status in (("bad", 2), ("short", 75), ("later", 0))]
    with pytest.raises(Leave):
        complete(stages, tmp_path, 1, 1, independent=True)
    assert not stages[1].done(tmp_path) and not (tmp_path / "logs" / "later.log").exists()
    assert "stage bad ended with status 2" in capsys.readouterr().err


def test_who_was_asked_to_stop_begins_nothing_and_minds_no_job_that_has_ended(job, tmp_path):
    jobs, stage = Jobs(), job("raise SystemExit(0)")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    jobs.running.add(ended.pid)
    jobs.stop()
    with pytest.raises(StoppedError):
        stage.run(tmp_path, 1, jobs)
    assert not stage.done(tmp_path)


def test_a_preparation_whose_result_was_removed_is_no_done_one():
    """What each job leaves is where its configuration and words say."""
    found = {stage.label: stage.leaves for stage in preparations(load(StudyConfig, "configs/studies/paper.yaml"))}
    folder = "runs/studies/paper/TP"
    expected = {"data_prep archive": "archive.zarr", "data_prep shards": "shards", "data_prep encode": "latents"}
    for job_name, leaves in expected.items():
        assert found[f"{job_name}, tiny, TP"] == f"{folder}/{leaves}"
    assert found["train, paper_score, TP"] == f"{folder}/score/bundle"
    fair = preparations(load(StudyConfig, "configs/studies/fair.yaml"))
    assert [stage.leaves for stage in fair] == ["runs/demo/archive.zarr", "runs/studies/fair/background.zarr"]


def test_an_archive_of_other_files_is_observed_again(study):
    """The job then refuses the set that stands, in a sentence, if it is not of these files."""
    config = load(StudyConfig, study)
    stages = planned(config, (16, 32)).observe
    assert stages and {file for stage in stages for file in stage.files} == {
        f"{study.parent}/archive.zarr/raw_files.json"
    }
    assert all(Path(file).is_file() for stage in stages for file in stage.files)


def test_optimal_interpolation_does_not_stand_on_the_score_network(study):
    plan = planned(load(StudyConfig, study), (16, 32))
    models = {system: plan.cases["coarse-4", system].files for system in ("slams", "enoi")}
    assert any("score" in file for file in models["slams"]) and not any("score" in file for file in models["enoi"])


def test_the_archive_is_that_of_the_studys_own_words(study):
    config = load(StudyConfig, study, ["sample=archive=nowhere.zarr"])
    with pytest.raises(ContractError, match="nowhere"):
        analysed(config)


def test_programs_that_share_a_folder_take_turns(tmp_path):
    """The second waits for the first, and finds the stage done."""
    said = tmp_path / "said"
    (tmp_path / "job.py").write_text(f"import time; time.sleep(1); open({str(said)!r}, 'a').write('x')")
    words = f"""
import sys; from pathlib import Path; from sample.study.stages import Stage, complete
complete([Stage("one", (("job",),))], Path({str(tmp_path)!r}), 1, 1)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    both = [subprocess.Popen([sys.executable, "-c", words], env=environment, cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0] and said.read_text() == "x"


@pytest.mark.slow
def test_quick_is_the_files_own_trial(study):
    finish(start(["sample", "study", str(study), "--quick"]))
    found = json.loads((study.parent / "quick" / "results.json").read_text())
    assert found["members"] == {"slams": 2} and list(found["results"]) == ["coarse-4"]


def test_dry_run_tells_stages_and_writes_nothing(study, capsys):
    assert sample(["study", str(study), "folder=nowhere", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "5 stages, 5 left" in out and "observe.temperature.factor=4" in out
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "coarse-4/var"], "--only coarse-4/var: is no case"),
        (["reference=var"], "reference: 'var' is not among slams, enoi"),
        (["only_settings=[coarse-6]"], "only_settings: 'coarse-6'"),
        (["curves.coarse.values=[]"], "curves.values: [] is not allowed; at least one"),
        (["curves.coarse.values=[8,.inf]"], "curves.values: [8.0, inf] is not allowed"),
        (["curves.coarse.values=[.nan]"], "curves.values: [nan] is not allowed"),
        (["curves.coarse.factor=-4"], "curves.factor: -4 is not allowed; at least 0"),
        (["folder=''"], "folder: '' is not allowed"),
        (["only_settings=[coarse-4,coarse-4]"], "only_settings: ['coarse-4', 'coarse-4'] is not allowed; each once"),
        (
            ["findings=[{claim: c, systems: [slams, enoi], settings: [coarse-4], score: spread_skill}]"],
            "findings.score: 'spread_skill' is not allowed",
        ),
        (
            ["findings=[{claim: c, systems: [slams, enoi], settings: [coarse-4], score: w1}]"],
            "findings.score: 'w1' is not among crps, rmse, spread_skill",
        ),
        (
            [
                "curves.again={group: coarsening, values: [4], label: l}",
                "findings=[{claim: c, systems: [slams, enoi], kind: steadier, group: coarsening}]",
            ],
            "findings.group: 'coarsening' has a value twice, [4.0, 4.0, 5.0]",
        ),
        (["curves.coarse.values=[0.5]"], "curves.values: [0.5] is not allowed; whole numbers, or a factor"),
        (["curves.coarse.values=[4,4]"], "curves.values: [4.0, 4.0] is not allowed; each once"),
        (
            ["curves.noise={group: g, values: [0], label: l}"],
            "curves.values: [0.0] is not allowed; at least one",
        ),
        (["--processes", "0"], "--processes: 0 is not allowed"),
        (["observe=observe.temperature.factor={size}"], "nothing fills 'size'"),
        (["published=none.csv"], "none.csv"),
        (["systems.slams.data=moon"], "systems.slams.data: 'moon'"),
        (["systems.enoi.sample=missing.yaml"], "config missing.yaml: no such file"),
        (["scores=[rsme]"], "scores: 'rsme' is not among crps, rmse"),
        (["scores=[spread_skill]"], "findings.score: 'spread_skill' is not allowed"),
        (["baselines.climatolgy=slams"], "baselines: 'climatolgy'"),
        (["systems.climatology={label: x, data: planet, sample: y}"], "systems, baselines: 'climatology' is in both"),
        (["only_systems=[enoi]", "only_settings=[coarse-5]"], "only_settings, only_systems: leave no case"),
        (
            ["systems.slams.sample=configs/sample/tiny.yaml {data.planet}"],
            "nothing fills 'str' object has no attribute",
        ),
        (["prepare=[data_prep archive]"], "'data_prep archive' is not allowed; a job and its configuration"),
        (
            ["findings=[{claim: c, systems: [slams, enoi], settings: [coarse-4], levels_hpa: [60]}]"],
            "findings.levels_hpa: [60] are not among [",
        ),
    ],
)
def test_a_mistake_is_one_sentence(study, capsys, words, named):
    assert sample(["study", str(study), *words]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


def test_a_stage_that_fails_says_why_and_keeps_the_others(study):
    missing = f"systems.enoi.sample=configs/sample/tiny.yaml archive={study.parent}/archive.zarr score=nowhere"
    words = (f"folder={study.parent}/failing", missing, "only_settings=[coarse-4]")
    process = start(["sample", "study", str(study), *words])
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2 and err.count("\n") == 1
    assert "stage coarse-4/enoi" in err and "nowhere/model.json: no such file" in err
    found = json.loads((study.parent / "failing" / "results.json").read_text())["results"]
    assert set(found["coarse-4"]) == {"slams", "climatology"}


def test_a_page_that_cannot_be_written_does_not_hide_the_stage_that_failed(tmp_path, capsys, monkeypatch):
    def complete(stages, *_, independent=False):
        if independent:
            raise StageError("study: stage coarse-8/enoi ended with status 2")

    monkeypatch.setattr("sample.study.run.complete", complete)
    monkeypatch.setattr("sample.study.run.analysed", lambda _: StateSpec(Grid(32, 64), (TEMPERATURE,)))
    full = OSError("No space left on device")
    monkeypatch.setattr("sample.study.run._write", lambda *_: (_ for _ in ()).throw(full))
    assert sample(["study", "configs/studies/fair.yaml", f"folder={tmp_path}/study"]) == 2
    page, stage = capsys.readouterr().err.splitlines()
    assert "page was not written: No space left" in page and "stage coarse-8/enoi ended with status 2" in stage


@pytest.mark.parametrize("complete", [True, False])
def test_programs_that_share_a_folder_write_in_turn_and_log_what_is_whole(tmp_path, monkeypatch, complete):
    """Two writers at once, of a study whose second case has run or has not."""
    told, config = [], replace(load(StudyConfig, "configs/studies/fair.yaml"), folder=str(tmp_path))

    def write(*_):
        told.append("in")
        time.sleep(0.2)
        told.append("out")

    monkeypatch.setattr("sample.study.run.study", lambda *_: {})
    monkeypatch.setattr("sample.study.run.markdown", lambda _: "")
    monkeypatch.setattr("sample.study.report.write", write)
    monkeypatch.setattr("sample.study.run._log", lambda *_: told.append("logged"))
    monkeypatch.setattr(Stage, "done", lambda stage, _: complete or stage.name == "one")
    plan = Plan([], [], {("s", name): Stage(name, ()) for name in ("one", "two")}, {})
    writers = [Thread(target=_write, args=(config, plan, "again")) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert told == (["in", "out", "logged"] if complete else ["in", "out"]) * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.lock", "results.md"]


# Claims, by sums whose scores are known exactly


def scored(errors):
    """RMSE at two levels of systems by setting: {(setting, system): (error at 10 hPa, at 500 hPa) by date}."""
    sums = {}
    for case, error in errors.items():
        total = np.square(np.broadcast_to(np.asarray(error, float), (len(DATES), 2)))[:, None]
        sums[case] = Sums(DATES, {("analysis", "t", "rmse"): (total, np.ones((len(DATES), 2)))})
    systems = {system for _, system in errors}
    own = {"one": "analysis", "two": "analysis"}
    return Scored(DATES, sums, own, "t", [10, 500], "K", dict.fromkeys(systems, 1))


@pytest.mark.parametrize("score", OF_MEMBERS)
def test_a_single_field_has_no_spread(score):
    """The sums of a spread of 0 are there; the score is not, and no difference to one is made of it."""
    pair = np.ones((len(DATES), 2, 2)), np.ones((len(DATES), 2))
    sums = Sums(DATES, {(own, "t", score): pair for own in ("analysis", "climatology")})
    cases = {("c-4", system): sums for system in ("many", "single", "climatology")}
    own = {"many": "analysis", "single": "analysis", "climatology": "climatology"}
    found = Scored(DATES, cases, own, "t", [10, 500], "K", {"many": 8, "single": 1})
    assert found.estimate("c-4", "many", score) is not None
    assert found.estimate("c-4", "single", score) is None and found.estimate("c-4", "climatology", score) is None


@pytest.fixture
def verified(tmp_path, monkeypatch):
    """A function that leaves the verification of a case, and what gathers them all; a case is done if it is there."""
    monkeypatch.setattr(Stage, "done", lambda stage, _: Path(stage.leaves).exists())
    config = replace(asked(None), folder=str(tmp_path), baselines={})
    leaves = {case: f"{tmp_path}/{'/'.join(case)}/verify/scores.json" for case in config.cases}
    plan = Plan([], [], {case: Stage("-".join(case), (), leaves=path) for case, path in leaves.items()}, {})

    def leave(case, days=DATES, **others):
        folder = Path(leaves[case]).parent
        folder.mkdir(parents=True)
        Sums(days, {("analysis", "t", "rmse"): (np.ones((len(days), 1, 2)), np.ones((len(days), 2)))}).save(folder)
        told = {"variable": "t", "levels_hpa": [10, 500], "units": "K", "members": 1} | others
        told["provenance"] = {"archive": {"commit": "abc1"}, "config": {}}
        (folder / "scores.json").write_text(json.dumps(told))

    return leave, lambda **replaced: gathered(
        config, replace(plan, factors={"c-4": 4, "c-8": 8, "c-16": 16} | replaced)
    )


def test_cases_are_gathered_on_the_days_that_all_share(verified):
    leave, gather = verified
    leave(("c-4", "one"), DATES[2:])
    leave(("c-8", "two"), DATES[:6])
    found = gather()
    assert list(found.time) == list(DATES[2:6]) and {len(each.time) for each in found.sums.values()} == {4}
    assert found.origins["c-4", "one"] == {"archive": {"commit": "abc1"}}


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"days": DATES + 1}, "the cases have no date in common"),
        ({"levels_hpa": [10, 850]}, r"c-8/two: has levels_hpa \[10, 850\], others \[10, 500\]"),
        ({"units": "degC"}, "c-8/two: has units degC, others K"),
        ({"variable": "u"}, "c-8/two: has variable u, others t"),
    ],
)
def test_cases_that_do_not_compare_are_refused(verified, others, sentence):
    leave, gather = verified
    leave(("c-4", "one"))
    leave(("c-8", "two"), **others)
    with pytest.raises(ContractError, match=sentence) as error:
        gather()
    assert "\n" not in str(error.value)


def test_a_study_of_which_nothing_is_verified_is_refused(verified):
    _, gather = verified
    with pytest.raises(ContractError, match="no case is verified yet; run the study first"):
        gather()


def asked(finding):
    """Of a study of RMSE with settings 4, 8, 16."""
    curves = {"c": CurveConfig("coarse", [4, 8, 16], "")}
    systems = {name: SystemConfig(name, "", "d") for name in ("one", "two")}
    fixed = {"folder": "f", "title": "", "question": "", "data": {"d": ""}, "reference": "one", "scores": ["rmse"]}
    return StudyConfig(**fixed, curves=curves, systems=systems, findings=[finding] if finding else [])


def judged(finding, errors, replaced=()):
    factors = {f"c-{n}": n for n in (4, 8, 16)} | dict.fromkeys(replaced, 5)
    (found,) = findings(asked(finding), scored(errors), factors)
    return found


def test_what_has_run_in_one_of_two_settings_that_the_grid_makes_one_has_in_both(tmp_path, verified):
    leave, gather = verified
    leave(("c-4", "one"))
    assert set(gather(**{"c-4": 8}).sums) == {("c-4", "one"), ("c-8", "one")}
    assert set(gather().sums) == {("c-4", "one")}


def test_better_holds_fails_or_cannot_be_told():
    claim = FindingConfig("one is better", ["one", "two"], settings=["c-4"])
    wave = np.where(np.arange(len(DATES)) % 2, 3.0, 1.0)[:, None]
    assert judged(claim, {("c-4", "one"): 1, ("c-4", "two"): 2})["holds"] is True
    assert judged(claim, {("c-4", "one"): 2, ("c-4", "two"): 1})["holds"] is False
    assert judged(claim, {("c-4", "one"): wave, ("c-4", "two"): 4 - wave})["holds"] is None
    assert judged(claim, {("c-4", "one"): 1})["holds"] is None  # the other was not run
    both = FindingConfig("one is better", ["one", "two"], settings=["c-4", "c-8"])
    errors = {("c-4", "one"): 1, ("c-4", "two"): 2, ("c-8", "one"): 2, ("c-8", "two"): 1}
    assert judged(both, errors)["holds"] is False


def test_levels_are_those_of_the_claim():
    errors = {("c-4", "one"): (1, 5), ("c-4", "two"): (2, 2)}
    for levels, holds in (([10], True), ([500], False), ([], False)):
        claim = FindingConfig("one is better", ["one", "two"], settings=["c-4"], levels_hpa=levels)
        assert judged(claim, errors)["holds"] is holds


def test_crossover_is_where_both_sides_are_sure():
    def errors(*one):
        own = {(f"c-{n}", "one"): error for n, error in zip((4, 8, 16), one, strict=True)}
        return own | {(f"c-{n}", "two"): 2 for n in (4, 8, 16)}

    claim = FindingConfig("crossover", ["one", "two"], kind="crossover", group="coarse", between=[8, 16])
    wave = 2 + np.where(np.arange(len(DATES)) % 2, 0.9, -1.0)[:, None]
    assert judged(claim, errors(1, 1.5, 3))["holds"] is True
    assert judged(claim, errors(1, 3, 4))["holds"] is False  # before
    assert judged(claim, errors(3, 1, 1))["holds"] is False  # the other way round
    assert judged(claim, errors(1, wave, 3))["holds"] is None  # the middle cannot be told
    assert judged(claim, {("c-4", "one"): 1, ("c-4", "two"): 2})["holds"] is None
    moved = judged(claim, errors(1, 1.5, 3), replaced=["c-16"])
    assert moved["holds"] is None and "c-16 with 5 in its place" in moved["evidence"]
    once = judged(claim, errors(1, 3, 3), replaced=["c-8", "c-16"])
    assert once["holds"] is None and once["evidence"].count(": +1.000") == 1, "one factor, one point"
    with pytest.raises(ValueError, match=r"findings.between: \[4, 16\]; two neighbours of \[4, 8, 16\]"):
        asked(replace(claim, between=[4, 16]))


def test_steadier_is_whose_score_grows_by_the_smaller_factor():
    """From 4 to 16: by 2 or 3; the middle says nothing, nor does who is better."""

    def errors(last, other=(1, 1, 2), first=10.0):
        own = {("c-4", "one"): first, ("c-8", "one"): 1, ("c-16", "one"): last}
        return own | {(f"c-{n}", "two"): error for n, error in zip((4, 8, 16), other, strict=True)}

    claim = FindingConfig("one is steadier", ["one", "two"], kind="steadier", group="coarse")
    held = judged(claim, errors(15.0))
    assert held["holds"] is True and held["evidence"] == (
        "rmse at 16 over that at 4: one 1.50, two 2.00; difference -0.500 (-0.500 to -0.500)"
    )
    assert judged(claim, errors(30.0))["holds"] is False
    wave = np.where(np.arange(len(DATES)) % 2, 25.0, 13.0)[:, None]
    assert judged(claim, errors(wave))["holds"] is None
    assert judged(claim, errors(15.0, first=0.0))["holds"] is None, "of a score of 0 there is no growth"
    missing = errors(15.0)
    del missing["c-16", "one"]
    assert judged(claim, missing)["holds"] is None and "not run" in judged(claim, missing)["evidence"]
    assert "c-16 with 5 in its place" in judged(claim, errors(15.0), replaced=["c-16"])["evidence"]
    with pytest.raises(ValueError, match=r"findings.group: 'gap' has 0 settings; at least two are needed"):
        asked(replace(claim, group="gap"))


@pytest.mark.parametrize(("factor", "shape", "nearest"), [(12, (32, 64), 16), (15, (48, 96), 16), (20, (48, 96), 24)])
def test_nearest_divisor(factor, shape, nearest):
    assert nearest_divisor(factor, shape) == nearest


@pytest.mark.parametrize("factor", range(1, 40))
def test_nearest_divisor_by_trial(factor):
    found = nearest_divisor(factor, (120, 240))
    fitting = [n for n in range(1, 61) if 120 % n == 0 and 240 % n == 0]
    assert found in fitting and all(abs(found - factor) <= abs(n - factor) for n in fitting)


@pytest.mark.filterwarnings("error")
def test_published_scores_are_those_of_the_paper():
    """Means over the levels as printed beside the published tables; their range over the re-runs holds them."""
    levels = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
    found = published_scores(str(ROOT / "configs/studies/published_w1.csv"), levels)
    printed = {"coarse-4": (0.020, 0.184, 0.160, 0.204), "gap-16": (0.438, 0.188, 0.188, 0.236)}
    for setting, values in printed.items():
        for system, value in zip(("pixel", "latent", "in-situ", "ex-situ"), values, strict=True):
            mean = found[setting][system]["w1"]["mean"]
            assert mean["value"] == pytest.approx(value, abs=6e-4)
            repeated = setting != "gap-16"
            assert ("lowest" in mean) is repeated and ("highest" in mean) is repeated
            assert not repeated or mean["lowest"] <= mean["value"] <= mean["highest"]
    assert found["coarse-20"]["pixel"]["w1"]["mean"]["lowest"] == pytest.approx(0.300, abs=6e-4)
    assert "mean" not in published_scores(str(ROOT / "configs/studies/published_w1.csv"), ())["coarse-4"]["pixel"]["w1"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_project_are_whole(path):
    config = load(StudyConfig, path)
    plan = planned(config, (32, 64))
    assert set(config.cases) == set(plan.cases) and len(plan.stages) > len(set(plan.cases.values()))
    assert planned(load(StudyConfig, path, config.quick), (32, 64)).cases
    if config.published:
        with (ROOT / config.published).open() as file:
            named = {(row["setting"], row["system"]) for row in csv.DictReader(file)}
        assert named == set(config.cases)


def test_each_of_the_data_is_prepared_under_its_own_name_and_words(tmp_path, monkeypatch):
    """Written out by hand for three entries, whose words hold each other's names and an empty word."""
    system = {"label": "x", "sample": "c.yaml archive=runs/{data}.zarr", "data": "TP"}
    words = {"T": "w.yaml a.olr='\"\"' p=runs/{data}.zarr", "TP": "w.yaml p=runs/{data}.zarr"}
    config = StudyConfig(
        "runs", "t", "q", words, {"s": CurveConfig("g", [1], "l")}, {"m": SystemConfig(**system)}, "m",
        prepare_data=["data_prep archive {words}", "train t.yaml folder=runs/{data}"], prepare=["train pixel.yaml"],
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"config w\.yaml: no such file"):
        preparations(config)
    for name in ("w.yaml", "t.yaml", "pixel.yaml"):
        Path(name).write_text("a: {}")
    stages = preparations(config)
    assert [stage.commands for stage in stages] == [
        (("data_prep", "archive", "w.yaml", 'a.olr=""', "p=runs/T.zarr"),),
        (("train", "t.yaml", "folder=runs/T"),),
        (("data_prep", "archive", "w.yaml", "p=runs/TP.zarr"),),
        (("train", "t.yaml", "folder=runs/TP"),),
        (("train", "pixel.yaml"),),
    ]
    assert [stage.after for stage in stages] == [(), *((stage,) for stage in stages[:-1])]
    with pytest.raises(ValueError, match=r"prepare_data: 'train .word.': nothing fills 'word'; there are data, words"):
        preparations(replace(config, prepare_data=["train {word}"]))


def test_a_curve_is_a_setting_for_each_of_its_values():
    """Written out by hand."""
    noise = CurveConfig("noise", [0.5, 4], "{factor} cells, noise of {value}", 4, {"noise": "{value}", "share": "1"})
    assert noise.settings("loud") == {
        "loud-0.5": Setting("noise", 0.5, "{factor} cells, noise of 0.5", 4, {"noise": "0.5", "share": "1"}),
        "loud-4": Setting("noise", 4, "{factor} cells, noise of 4", 4, {"noise": "4", "share": "1"}),
    }
    assert CurveConfig("g", [8, 12], "").settings("c")["c-12"] == Setting("g", 12, "", 12, follows=True)


def test_settings_that_a_coarse_grid_makes_one_are_analysed_once():
    """On 32 x 64 cells blocks of 12, 15 and 20 are all of 16; on 120 x 240 each is its own, and so is each noise."""
    config = load(StudyConfig, ROOT / "configs/studies/paper.yaml")
    coarse, fine = (planned(config, shape) for shape in ((32, 64), (120, 240)))
    alike = {coarse.cases[f"coarse-{factor}", "latent"] for factor in (12, 15, 20)}
    assert len(alike) == 1 and coarse.folder(("coarse-20", "latent")) == coarse.folder(("coarse-12", "latent"))
    assert len(set(coarse.cases.values())) == 4 * 10 and len(set(fine.cases.values())) == 4 * 13
    assert coarse.stages.count(*alike) == 1


def test_the_settings_of_a_coarse_grid_say_what_they_are():
    config = load(StudyConfig, ROOT / "configs/studies/paper.yaml")
    coarse = {each["name"]: each for each in told(config, planned(config, (32, 64)).factors)}
    labels = {each["label"] for each in coarse.values() if each["group"] == "coarsening"}
    assert labels == {f"block means of {n} x {n} cells" for n in (4, 8)} | {
        f"block means of 16 x 16 cells ({n} asked)" for n in (12, 15, 20)
    }
    assert coarse["gap-12"]["label"] == "every 16-th point, every day (12 asked)"
    assert [coarse[f"coarse-{n}"]["same_as"] for n in (4, 12, 15, 20)] == ["", "", "coarse-12", "coarse-12"]
    assert coarse["gap-12"]["same_as"] == "gap-16" and coarse["gap-16"]["same_as"] == "", "the one that asked for it"
    assert {each["at"] for each in coarse.values() if each["group"] == "noise"} == {0.5, 1, 2, 4}
    assert [each["at"] for each in coarse.values() if each["group"] == "gap"] == [4, 8, 16, 16]
    fine = told(config, planned(config, (120, 240)).factors)
    assert not any(each["same_as"] for each in fine)
    assert [each["note"] for each in fine if each["note"]] == ["16 does not divide the grid; 15 in its place"]


def test_every_score_has_its_words():
    assert set(KINDS) == set(SCORES)
