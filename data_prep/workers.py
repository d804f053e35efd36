"""Independent tasks on processes of this machine, or on SLURM jobs through dask; results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import Any, TypeVar

Task, Result = TypeVar("Task"), TypeVar("Result")
CONFIGURED = "~/.config/dask/jobqueue.yaml"
# For processes side by side: the memory of a block serves the next, where pages taken afresh cost a tenth of the time,
# and none has threads of its own for linear algebra.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
ENVIRONMENT |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
InOrder = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True)
class WorkersConfig:
    """Who does the work; the result is the same, bit for bit.

    Arguments:
        processes: on this machine; 1 is this process itself.
        slurm_jobs: SLURM jobs in their place; what each asks for stands in dask-jobqueue's own configuration
            (``~/.config/dask/jobqueue.yaml``, section ``slurm``). One that ends too early is replaced.
    """

    processes: int = 1
    slurm_jobs: int = 0

    def __post_init__(self) -> None:
        if self.processes < 1 or self.slurm_jobs < 0:
            raise ValueError(
                f"processes, slurm_jobs: {self.processes}, {self.slurm_jobs} are not allowed; at least 1 and at least 0"
            )


@contextmanager
def workers(config: WorkersConfig) -> Iterator[InOrder]:
    """A map whose results come in order, as they are ready; an error of a task is raised here.

    Raises:
        RuntimeError: SLURM refuses such jobs.
    """
    if config.slurm_jobs:
        with _jobs(config.slurm_jobs) as in_order:
            yield in_order
    elif config.processes > 1:
        with _processes(config.processes) as in_order:
            yield in_order
    else:
        yield map


@contextmanager
def _processes(number: int) -> Iterator[InOrder]:
    """Of this machine; they leave it to this one to be interrupted, and end when it does, however it ends."""
    pool = ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), _follow)
    before = os.environ.copy()
    os.environ.update(ENVIRONMENT | before)
    try:
        for _ in range(number):  # each starts a process, which loads the program in the meantime
            pool.submit(int)
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        yield pool.map
    except BaseException:
        pool.shutdown(cancel_futures=True)  # what they are at ends before anybody else may write there
        raise
    pool.shutdown(wait=False)  # they have nothing left to do, and nobody waits for their end


def _follow() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # killed, it would never ask for more nor say that there is no more
        os._exit(1)


@contextmanager
def _jobs(number: int) -> Iterator[InOrder]:
    from dask.distributed import Client  # a second to import, for those who need it
    from dask_jobqueue.slurm import SLURMCluster

    # not the default: what this process computes of raw files it computes itself
    with SLURMCluster() as cluster, Client(cluster, set_as_default=False) as client:
        _refuse_jobs_that_cannot_be(cluster, number)
        # in place of those that end come others; once there is work, as raw files may be refused before
        submitted = cache(lambda: cluster.adapt(minimum_jobs=number, maximum_jobs=number))

        def in_order(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
            submitted()
            for future in client.map(function, tasks, pure=False, retries=0):
                yield future.result()
                future.release()

        yield in_order


def _refuse_jobs_that_cannot_be(cluster: Any, jobs: int) -> None:
    """Dask would wait for ever for a job that SLURM refuses.

    Raises:
        RuntimeError: SLURM refuses such a job.
    """
    with NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(cluster.job_script())
        script.flush()
        asked = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"workers.slurm_jobs: {jobs} are not to be had; {said[0]}; what each asks for: {CONFIGURED}")
