"""A SLURM of this machine, and what is submitted to it: chains, and jobs of a shell command."""

import os
import shlex
import socket
import subprocess
import time
from pathlib import Path

from chain import ROOT
from crew import outside

NODES = 3
SCRIPTS = {"data_prep": "prep", "train": "train", "sample": "sample"}
ONE_CORE = ("--cpus-per-task=1", "--time=10")


def free_ports(n):
    """First of n neighbouring ports that nobody uses, below those that connections are given."""
    for first in range(17000, 19990, n):
        try:
            for port in range(first, first + n):
                with socket.socket() as found:
                    found.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


class Cluster:
    """A devcluster, and the commands that talk to it."""

    def __init__(self, folder):
        self.folder = folder
        ours = {"DEVCLUSTER_DIR": str(folder), "DEVCLUSTER_PORT": str(free_ports(NODES + 1)), "OMP_NUM_THREADS": "1"}
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment = outside() | ours | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}

    def __call__(self, *command, status=0):
        words = [str(word) for word in command]
        found = subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)
        assert found.returncode == status, (words, found.stdout, found.stderr)
        return found.stdout + found.stderr

    def devcluster(self, *words):
        return self("slurm/devcluster", *words)

    def submit(self, *words, status=0):
        return self("slurm/submit", *words, status=status)

    def field(self, job, name):
        """What SLURM says of a job, or of each task of an array."""
        return self("squeue", "-h", "-r", "-t", "all", "-j", job, "-O", f"{name}:200").split()

    def lose(self, node):
        """Until SLURM has seen it; then the node is there again."""
        self.devcluster("crash", node)
        wait_until(lambda: self("sinfo", "-h", "-n", node, "-o", "%T").startswith("down"))
        self.devcluster("revive", node)

    def left(self):
        """Processes of this cluster that live."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if f"{self.folder}/".encode() in command and process.name != str(os.getpid()):
                found.append(command)
        return found


def wait_until(is_reached, seconds=180):
    end = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


class Submitted:
    """A chain's file, its logs, and its jobs on the cluster."""

    def __init__(self, cluster, file):
        self.cluster, self.file, self.logs = cluster, file, file.parent / f"{file.stem}-logs"
        self.lines = [f"logs={self.logs}"]

    def stage(self, name, command, *options, after=None):
        job, *words = command
        script = words.pop(0) if words[0] == "verify" else SCRIPTS[job]
        waits = [] if after is None else [f"after={after}"]
        self.lines.append(shlex.join(["stage", name, *waits, *ONE_CORE, *options, script, *words]))

    def submit(self, *words):
        self.file.write_text("\n".join(self.lines) + "\n")
        said = self.cluster.submit(self.file, *words)
        self.jobs = dict(line.split() for line in said.splitlines())

    def status(self, status=0):
        return self.cluster.submit("status", self.file, status=status)

    def runs(self, name):
        return "RUNNING" in self.cluster.field(self.jobs[name], "State")

    def end(self):
        wait_until(lambda: not self.cluster("squeue", "-h"), 400)
        return self.status()

    def restarts(self, name):
        return sum(map(int, self.cluster.field(self.jobs[name], "RestartCnt")))


class Job:
    """A job of a shell command under slurm/job.sh, and what its command has said of each of its starts."""

    def __init__(self, cluster, folder, name, command, *options):
        self.cluster, self.out = cluster, folder / f"{name}.out"
        script = folder / f"{name}.sbatch"
        fixed = ("--requeue", "--open-mode=append", f"--output={folder}/{name}-%a.log", f"--job-name={name}")
        head = [f"#SBATCH {option}" for option in (*fixed, *options)]
        says = f'echo "$SLURM_RESTART_COUNT:$SLURM_ARRAY_TASK_ID:$RANK" >> {self.out}; {command}'
        body = ("source slurm/job.sh", f"ranked bash -c {shlex.quote(says)}")
        script.write_text("\n".join(["#!/bin/bash", *head, *body]))
        self.number = cluster("sbatch", "--parsable", script).strip()

    @property
    def starts(self):
        return sorted(self.out.read_text().split()) if self.out.exists() else []

    def states(self):
        return self.cluster.field(self.number, "State")
