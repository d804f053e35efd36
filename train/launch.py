"""Who this process is among the others, told by the environment alone: no launcher needs an option.

`torchrun` and `deepspeed` set RANK and its companions; `srun` sets SLURM_PROCID and its own, and leaves the address
to the script. A shell, a notebook or a batch script inside an allocation carries SLURM's variables too, but is
one process.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from slams.config import ConfigError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *ADDRESS)
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", *ADDRESS)
LARGEST_PORT = 65535


class Place(NamedTuple):
    """A process among the processes of a run."""

    rank: int
    size: int
    local_rank: int


ALONE = Place(0, 1, 0)


def launch() -> Place:
    """This process's place, as the launcher set it; one process if there is no launcher.

    Raises:
        ConfigError: only some of the variables are set, or they make no sense together.
    """
    names = LAUNCH_VARIABLES
    if not _is_any_set(LAUNCH_VARIABLES[:3]):
        if _is_slurm_task():
            names = SLURM_VARIABLES
        elif "SLURM_JOB_ID" in os.environ or not _is_any_set(ADDRESS):
            return ALONE
    given = [name for name in names if name in os.environ]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"environment: {', '.join(given)} set, but not {', '.join(missing)}; set all five or none")
    rank, size, local_rank, port = (_number(name) for name in names if name != "MASTER_ADDR")
    if not (0 <= local_rank <= rank < size and 0 < port <= LARGEST_PORT):
        told = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise ConfigError(
            f"environment: {told} is not allowed; 0 <= local rank <= rank < number of processes, and a port"
        )
    return Place(rank, size, local_rank)


def check_host() -> None:
    """Where to meet: torch would ask for the address again and again, for half an hour.

    Raises:
        ConfigError: no such host.
    """
    name = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigError(f"environment: MASTER_ADDR={name!r} is no host that is known here ({error})") from None


def _is_any_set(names: tuple[str, ...]) -> bool:
    return any(name in os.environ for name in names)


def _is_slurm_task() -> bool:
    """Whether `srun` started this as one of several tasks."""
    several = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    # A batch script also is "task 0 of n", but of no step; it starts the tasks, and is none.
    script = "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ and not _is_any_set(ADDRESS)
    return several and not script


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise ConfigError(f"environment: {name}={value!r} is not allowed; a whole number, at least 0")
    return int(value)
