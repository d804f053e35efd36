"""Independent tasks on processes of this machine or on SLURM jobs, through dask; results in the order of the tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Task, Result = TypeVar("Task"), TypeVar("Result")
InOrder = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True)
class WorkersConfig:
    """Who does the work; the result is the same, bit for bit.

    Arguments:
        processes: on this machine; 1 is this process itself.
        slurm_jobs: SLURM jobs in their place; what each asks for stands in dask-jobqueue's own configuration
            (``~/.config/dask/jobqueue.yaml``, section ``slurm``).
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
    """A map whose results come in order, as they are ready; an error of a task is raised here."""
    if config.processes == 1 and not config.slurm_jobs:
        yield map
        return
    from dask.distributed import Client  # a second to import, for those who need it

    with _cluster(config) as cluster, Client(cluster) as client:

        def in_order(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
            for future in client.map(function, tasks, pure=False, retries=0):
                yield future.result()
                future.release()

        yield in_order


def _cluster(config: WorkersConfig) -> Any:
    if config.slurm_jobs:
        from dask_jobqueue.slurm import SLURMCluster

        return SLURMCluster(n_workers=config.slurm_jobs)
    import dask
    from dask.distributed import LocalCluster

    # dask has its workers give freed memory back at once, and blocks of arrays then cost twice their processor time
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}):
        # what goes wrong in a task is raised where its result is wanted; dask need not tell it too
        return LocalCluster(
            n_workers=config.processes, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        )
