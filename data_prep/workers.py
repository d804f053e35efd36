"""Independent tasks on processes of this machine or on SLURM jobs, through dask; results in the order of the tasks."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

Task, Result = TypeVar("Task"), TypeVar("Result")
CONFIGURED = "~/.config/dask/jobqueue.yaml"
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
    if config.processes == 1 and not config.slurm_jobs:
        yield map
        return
    from dask.distributed import Client  # a second to import, for those who need it

    with _cluster(config) as cluster, Client(cluster) as client:
        if config.slurm_jobs:
            _submit(cluster, config.slurm_jobs)

        def in_order(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
            for future in client.map(function, tasks, pure=False, retries=0):
                yield future.result()
                future.release()

        yield in_order


def _submit(cluster: Any, jobs: int) -> None:
    """Have so many jobs, and others in place of those that end: without them dask would wait for ever.

    Raises:
        RuntimeError: SLURM refuses such a job, for which dask would wait as well.
    """
    with NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(cluster.job_script())
        script.flush()
        asked = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"workers.slurm_jobs: {jobs} are not to be had; {said[0]}; what each asks for: {CONFIGURED}")
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)


def _cluster(config: WorkersConfig) -> Any:
    if config.slurm_jobs:
        from dask_jobqueue.slurm import SLURMCluster

        return SLURMCluster()
    import dask
    from dask.distributed import LocalCluster

    # dask has its workers give freed memory back at once, and blocks of arrays then cost twice their processor time
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}):
        # what goes wrong in a task is raised where its result is wanted; dask need not tell it too
        return LocalCluster(
            n_workers=config.processes, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        )
