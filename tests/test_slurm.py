"""The chain on a real SLURM of three nodes: submitted once it ends in a verified analysis, whatever is done to it."""

import json
import os
import re
import shutil
import subprocess
import sys
from copy import copy

import pytest
from chain import ROOT, SCORE, Chain
from cluster import NODES, Cluster, Job, Submitted, wait_until
from crew import outside
from test_analysis import files

pytestmark = pytest.mark.slurm
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
PRESETS = sorted(path.stem for path in (ROOT / "slurm" / "chains").glob("*.sh"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    started = subprocess.run(
        ["slurm/devcluster", "up", str(NODES)], cwd=ROOT, env=cluster.environment, capture_output=True, text=True
    )
    if not shutil.which("slurmctld", path=cluster.environment["PATH"]):
        pytest.skip(f"no SLURM here: {started.stderr.strip()}")
    try:
        assert started.returncode == 0, started.stderr
        yield cluster
    finally:
        cluster.devcluster("down")
    assert not cluster.left()


class Case:
    """A training of the prior and an analysis with it, in a folder of their own within the chain's."""

    def __init__(self, chain, name, *sampling):
        self.score, self.run = chain.folder / f"score-{name}", chain.folder / f"run-{name}"
        words = ["model.background_error=0.3", "log_every=160", "checkpoint_every=1600"]
        self.train = chain.train("score", "latents", 400, *SCORE, *words, name=self.score.name)
        words = [f"score={self.score}/bundle", "members_per_unit=1", "verify.bootstrap=20"]
        self.sample, self.verify = (chain.sample(*words, run=self.run.name, verify=v) for v in (False, True))
        self.array = sampling

    def add_to(self, submitted):
        submitted.stage("score", self.train, *TWO_NODES, after="encode")
        submitted.stage("sample", self.sample, *self.array, after="score,observe")
        submitted.stage("verify", self.verify)

    def steps(self):
        path = self.score / "metrics.jsonl"
        return path.read_text().count('"samples"') * 10 if path.exists() else 0

    def units(self):
        return len(list((self.run / "analysis.zarr" / "ledger").glob("*.json")))

    def result(self):
        chunks = sorted(path for path in (self.run / "analysis.zarr").rglob("c/**/*") if path.is_file())
        assert len(chunks) > 3 * 12
        weights = (self.score / "bundle" / "weights.safetensors").read_bytes()
        return weights, {str(path.relative_to(self.run)): path.read_bytes() for path in chunks}


@pytest.fixture(scope="module")
def chain(tmp_path_factory, planet):
    return Chain(tmp_path_factory.mktemp("chain"), planet)


@pytest.fixture(scope="module")
def undisturbed(cluster, chain):
    """The whole chain, submitted once, to its end; what was said while it ran, and at its end."""
    case, whole = Case(chain, "whole", "--array=0-1"), Submitted(cluster, chain.folder / "whole.sh")
    archive, shards, observe, autoencoder, encode = chain.commands[:5]
    whole.stage("archive", archive)
    whole.stage("shards", shards)
    whole.stage("observe", observe, after="archive")
    whole.stage("autoencoder", autoencoder, *TWO_NODES, after="shards")
    whole.stage("encode", encode)
    case.add_to(whole)
    whole.submit()
    whole.refused = cluster.submit(whole.file, status=2)
    whole.early = whole.status()
    whole.late = whole.end()
    return case, whole


def rows(said):
    """What status says of each stage; after them stands what to do."""
    return {line.split()[0]: line for line in reversed(said.splitlines()[1:])}


def test_a_chain_submitted_once_ends_in_a_verified_analysis(undisturbed):
    case, whole = undisturbed
    assert (case.run / "analysis.zarr" / "complete.json").is_file()
    assert (case.run / "verify" / "report.html").is_file()
    early, late = rows(whole.early), rows(whole.late)
    assert early.keys() == late.keys() == whole.jobs.keys()
    assert "PENDING" in early["verify"] and "Dependency" in early["verify"]
    assert all(" COMPLETED" in line and line.endswith(" done") for line in late.values())
    assert "2 COMPLETED" in late["sample"]


def test_a_chain_under_way_is_not_submitted_again(undisturbed):
    _, whole = undisturbed
    assert len(whole.refused.splitlines()) == 1
    assert "chain whole is under way already, as jobs" in whole.refused


def test_a_training_spans_two_nodes(cluster, undisturbed):
    case, whole = undisturbed
    assert cluster.field(whole.jobs["score"], "NodeList") == ["node[1-2]"]
    assert json.loads((case.score / "environment.json").read_text())["processes"] == 2


def started(cluster, chain, name, *sampling, **options):
    """Another training and analysis of the same chain, submitted; what stands already is found done."""
    case, submitted = Case(chain, name, *sampling), Submitted(cluster, chain.folder / f"{name}.sh")
    submitted.stage("encode", chain.commands[4])
    submitted.stage("observe", chain.commands[2])
    case.add_to(submitted)
    submitted.submit(*(f"{stage}.--{option}" for stage, given in options.items() for option in given))
    return case, submitted


def test_jobs_queued_again_in_the_middle_change_no_bit(cluster, chain, undisturbed):
    """A training, and one task of an array whose two ranks share the work otherwise than the undisturbed one's."""
    case, again = started(cluster, chain, "again", "--array=0-1", "--ntasks=2")
    wait_until(lambda: case.steps() >= 50)
    cluster("scontrol", "requeue", again.jobs["score"])
    wait_until(lambda: case.units() >= 2)
    cluster("scontrol", "requeue", f"{again.jobs['sample']}_0")
    found = rows(again.end())
    assert (again.restarts("score"), again.restarts("sample")) == (1, 1)
    assert "saved step" in (again.logs / f"score.{again.jobs['score']}.log").read_text()
    assert re.search(r" COMPLETED .*:\d\d +1 ", found["score"]) and re.search(r" 2 COMPLETED .* 1 ", found["sample"])
    assert case.result() == undisturbed[0].result()


@pytest.mark.slow
def test_nodes_lost_in_the_middle_change_no_bit(cluster, chain, undisturbed):
    case, lost = started(cluster, chain, "lost", "--array=0-1")
    for name, reached in (("score", lambda: case.steps() >= 50), ("sample", lambda: case.units() >= 2)):
        wait_until(reached)
        nodes = cluster("scontrol", "show", "hostnames", *cluster.field(lost.jobs[name], "NodeList")[:1]).split()
        cluster.lose(nodes[-1])
    lost.end()
    assert lost.restarts("score") == 1 and lost.restarts("sample") >= 1
    assert case.result() == undisturbed[0].result()


@pytest.mark.slow
def test_a_training_over_its_time_limit_changes_no_bit(cluster, chain, undisturbed):
    """Halted until SLURM warns, which it does half a minute before the limit of one."""
    case, late = started(cluster, chain, "late", "--array=0-1", score=("time=1", "signal=B:USR1@30"))
    wait_until(lambda: case.steps() >= 50)
    step, log = f"{late.jobs['score']}.0", late.logs / f"score.{late.jobs['score']}.log"
    cluster("scancel", "--signal=STOP", step)
    wait_until(lambda: "asked to leave" in log.read_text())
    cluster("scancel", "--signal=CONT", step)
    late.end()
    assert late.restarts("score") >= 1 and "saved step" in log.read_text()
    assert case.result() == undisturbed[0].result()


@pytest.fixture
def site(cluster, tmp_path):
    """The cluster, for one who has configured dask for it; nodes that say nothing of their memory grant none."""
    asked = {"cores": 1, "memory": "1GB", "walltime": "00:10:00", "job-directives-skip": ["--mem"]}
    asked |= {"log-directory": f"{tmp_path}/jobs"}
    (tmp_path / "jobqueue.yaml").write_text(json.dumps({"jobqueue": {"slurm": asked}}))
    site = copy(cluster)
    site.environment = cluster.environment | {"DASK_CONFIG": str(tmp_path)}
    return site


SEALED = re.compile(rb'"document_sha256": "[0-9a-f]{64}"')  # of metadata that hold the name


@pytest.mark.slow
def test_an_archive_made_by_jobs_of_its_own_is_that_of_one_process(site, chain, tmp_path):
    """But for its name: one by a process here, one by a job that submits two more."""
    one, two = (chain.prep("archive", f"archive.path={tmp_path}/{name}.zarr") for name in ("one", "two"))
    site(sys.executable, "-m", *one)
    submitted = Submitted(site, tmp_path / "jobs.sh")
    submitted.stage("archive", [*two, "workers.slurm_jobs=2"])
    submitted.submit()
    assert " COMPLETED" in rows(submitted.end())["archive"]
    one, two = ({k: SEALED.sub(b"", v) for k, v in files(tmp_path / f"{name}.zarr").items()} for name in ("one", "two"))
    assert two == {name: data.replace(b"one.zarr", b"two.zarr") for name, data in one.items()}
    logs = [path.read_text() for path in (tmp_path / "jobs").glob("*.err")]
    assert len(logs) == 2 and all("Registered to" in log for log in logs)


REPLACED = """
import os, subprocess, time
from data_prep.workers import WorkersConfig, workers
def work(number):
    time.sleep(0.5)
    return number, int(os.environ["SLURM_JOB_ID"])
if __name__ == "__main__":
    with workers(WorkersConfig(slurm_jobs=2)) as in_order:
        for number, job in in_order(work, range(16)):
            print(number, job)
            if number == 4:
                subprocess.run(["scancel", "--name=dask-worker"], check=True)
"""


@pytest.mark.slow
def test_jobs_that_end_before_the_work_are_replaced(site, tmp_path):
    """As at their time limit; each task's result comes once, in its order."""
    (tmp_path / "replaced.py").write_text(REPLACED)
    site.environment |= {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    said = [line.split() for line in site(sys.executable, tmp_path / "replaced.py").splitlines() if line[:1].isdigit()]
    assert [int(number) for number, _ in said] == [*range(16)]
    assert {job for _, job in said[:5]}.isdisjoint(job for _, job in said[-5:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"cores": 1, "memory": "1GB", "queue": "nowhere"}, "invalid partition specified: nowhere; what each asks for"),
        ({}, "You must specify how much cores and memory per job"),
    ],
)
def test_jobs_that_slurm_refuses_are_one_sentence(site, chain, tmp_path, asked, sentence):
    (tmp_path / "jobqueue.yaml").write_text(json.dumps({"jobqueue": {"slurm": asked}}))
    words = [f"archive.path={tmp_path}/archive.zarr", "workers.slurm_jobs=2"]
    said = site(sys.executable, "-m", *chain.prep("archive", *words), status=2)
    assert sentence in said and len(said.splitlines()) == 1, said


def test_a_stage_that_fails_ends_its_chain_and_status_says_how_to_go_on(cluster, chain, tmp_path):
    broken = Submitted(cluster, tmp_path / "broken.sh")
    broken.stage("archive", chain.commands[0])
    broken.stage("shards", chain.commands[1])
    broken.submit("archive.archive.nonsense=1")
    wait_until(lambda: not cluster("squeue", "-h"))
    said = broken.status(status=1)
    found, last = rows(said), said.splitlines()[-1]
    assert "FAILED" in found["archive"] and "nonsense" in found["archive"] and "CANCELLED" in found["shards"]
    assert str(broken.logs / f"archive.{broken.jobs['archive']}.log") in last
    assert last.endswith(f"slurm/submit {broken.file} archive.archive.nonsense=1")


def submit(*words, status=0):
    """Where there is no SLURM."""
    command = ["slurm/submit", *map(str, words)]
    found = subprocess.run(command, cwd=ROOT, env=outside(), capture_output=True, text=True)
    assert found.returncode == status, found.stderr
    return found.stderr if status else found.stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_is_a_program_that_submits_the_chain(preset, tmp_path):
    """Run with another sbatch, which numbers its calls."""
    program = tmp_path / "sbatch"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ["verify.members=3", "score.--nodes=7"]
    subprocess.run(["bash", "-euc", submit(preset, *words, "--dry-run")], env={"PATH": path}, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    number = {re.search(r"--job-name=\w+\.(\w+)", call)[1]: n for n, call in enumerate(calls, start=1)}
    score, verify = calls[number["score"] - 1], calls[number["verify"] - 1]
    assert f"--dependency=afterok:{number['sample']} --kill-on-invalid-dep=yes" in verify
    assert verify.endswith(f" slurm/verify.sbatch configs/sample/{preset}.yaml members=3")
    assert " --nodes=7 " in score and score.index("--nodes=7") > score.index("--nodes=2")
    assert f"--dependency=afterok:{number['score']}:{number['observe']} " in calls[number["sample"] - 1]


@pytest.mark.parametrize(
    ("line", "words", "said"),
    [
        ("", ["samples=3"], "'samples=3' is not allowed; STAGE.key=value, where STAGE is one of first"),
        ("", ["second.samples=3"], "'second.samples=3' is not allowed"),
        ("stage first prep", [], "stage first is there twice"),
        ("stage second after=third prep", [], "stage second is to come after 'third', which is no stage above it"),
        ("stage second nothing", [], "stage second is to run 'nothing'; prep sample train verify"),
        ("stage second prep archive none.yaml", [], "stage second needs none.yaml, which is not there"),
        ("stage 2nd prep", [], "stage '2nd' is not allowed"),
    ],
)
def test_what_is_wrong_with_a_chain_is_one_sentence(tmp_path, line, words, said):
    file = tmp_path / "chain.sh"
    file.write_text(f"stage first prep\n{line}\n")
    found = submit(file, *words, "--dry-run", status=2)
    assert said in found and len(found.splitlines()) == 1


def test_no_such_chain_is_one_sentence():
    assert submit("nowhere", status=2) == "submit: no chain 'nowhere'; a file, or one of paper tiny\n"


# A command that leaves when it is asked to by SLURM, as the training does; it is finished in its second life.
LEAVES = """[ -n "$SLURM_RESTART_COUNT" ] && exit 0
trap "exit 75" USR1 TERM; for i in {1..300}; do sleep 0.1; done; exit 1"""


# Fails where the command is not told when its job ends.
IN_FIVE_MINUTES = "left=$((SLURM_JOB_END_TIME - $(date +%s))); [ $left -gt 200 ] && [ $left -le 300 ]"

# SLURM tells of a job without a limit that it ends in a year.
IN_MONTHS = '[ -z "$SLURM_JOB_END_TIME" ] || [ $((SLURM_JOB_END_TIME - $(date +%s))) -gt 8000000 ]'


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    """Jobs of every kind, at once, to their ends."""
    folder = tmp_path_factory.mktemp("jobs")
    jobs = {
        "again": Job(cluster, folder, "again", '[ -n "$SLURM_RESTART_COUNT" ] && exit 0; exit 75'),
        "warned": Job(cluster, folder, "warned", LEAVES),
        "cancelled": Job(cluster, folder, "cancelled", LEAVES),
        "wrong": Job(cluster, folder, "wrong", "exit 3"),
        "limited": Job(cluster, folder, "limited", IN_FIVE_MINUTES, "--time=5"),
        "unlimited": Job(cluster, folder, "unlimited", IN_MONTHS, "--time=UNLIMITED"),
        "array": Job(cluster, folder, "array", f'[ "$SLURM_ARRAY_TASK_ID" = 2 ] || exit 0; {LEAVES}', "--array=0-2"),
    }
    wait_until(lambda: all(job.starts for job in jobs.values()) and len(jobs["array"].starts) == 3)
    cluster("scancel", "--batch", "--signal=USR1", jobs["warned"].number)  # what SLURM does before the time limit
    cluster("scancel", "--batch", "--signal=USR1", f"{jobs['array'].number}_2")
    cluster("scancel", jobs["cancelled"].number)
    wait_until(lambda: not cluster("squeue", "-h"))
    return jobs


@pytest.mark.parametrize("name", ["again", "warned"])
def test_a_command_that_leaves_to_be_started_again_is(jobs, name):
    assert jobs[name].starts == ["1::0", "::0"] and jobs[name].states() == ["COMPLETED"]


def test_a_task_that_leaves_is_started_again_and_not_its_array(jobs):
    """Its last task carries the number of the array."""
    assert jobs["array"].starts == ["1:2:0", ":0:0", ":1:0", ":2:0"]
    assert jobs["array"].states() == ["COMPLETED"] * 3


def test_a_job_that_was_cancelled_or_went_wrong_is_not_started_again(jobs):
    assert jobs["cancelled"].starts == jobs["wrong"].starts == ["::0"]
    assert (jobs["cancelled"].states(), jobs["wrong"].states()) == (["CANCELLED"], ["FAILED"])


@pytest.mark.parametrize("name", ["limited", "unlimited"])
def test_a_command_is_told_when_its_job_ends(jobs, name):
    assert jobs[name].states() == ["COMPLETED"]


# The first task waits for the other, which runs on the same machine, and fails when that is gone; as gloo and NCCL do.
PAIR = """other=OTHER-$SLURM_RESTART_COUNT
case $SLURM_RESTART_COUNT:$RANK in 2:*) exit 0;; *:1) echo $$ > $other; sleep 300;; esac
until [ -s $other ]; do sleep 0.1; done; while kill -0 $(cat $other); do sleep 0.1; done; exit 1"""


@pytest.mark.slow
def test_a_job_survives_the_loss_of_either_node(cluster, tmp_path):
    other = tmp_path / "other"
    job = Job(cluster, tmp_path, "pair", PAIR.replace("OTHER", str(other)), *TWO_NODES)
    for life, lost in ((1, 1), (2, 0)):
        wait_until(lambda life=life: len(job.starts) == 2 * life)
        nodes = cluster("scontrol", "show", "hostnames", *cluster.field(job.number, "NodeList")).split()
        cluster.lose(nodes[lost])
    wait_until(lambda: not cluster("squeue", "-h"))
    assert job.states() == ["COMPLETED"] and job.starts == ["1::0", "1::1", "2::0", "2::1", "::0", "::1"]
