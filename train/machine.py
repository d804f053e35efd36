"""What each process of a run computes on, and whether all of that makes one run."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import NamedTuple

import torch

from slams.config import ConfigError


class Machine(NamedTuple):
    """What a process computes on.

    Arguments:
        kind: ``cpu`` or ``cuda``.
        gpu: its identity; empty on a processor.
        bf16: whether it computes in that, other than by emulation.
    """

    host: str
    kind: str
    gpu: str
    bf16: bool


def this_machine(device: torch.device) -> Machine:
    """What this process computes on."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Machine(socket.gethostname(), device.type, gpu, computes_in_bf16())


def computes_in_bf16() -> bool:
    """Whether this machine does, other than by emulation."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def check_together(machines: Sequence[Machine]) -> None:
    """Refuse processes that could only wait for each other.

    Arguments:
        machines: of every process, in order.

    Raises:
        ConfigError: some compute on GPUs and some on processors, or two on the same GPU.
    """
    first, known = machines[0], dict[tuple[str, str], int]()
    for i, machine in enumerate(machines):
        if machine.kind != first.kind:
            raise ConfigError(
                f"environment: process 0 on {first.host} computes on {first.kind}, process {i} on {machine.host} on "
                f"{machine.kind}; all on one kind"
            )
        other = known.setdefault((machine.host, machine.gpu), i)
        if machine.gpu and other < i:
            told = f"processes {other} and {i} on {machine.host} compute on the same GPU, {machine.gpu}"
            raise ConfigError(f"environment: {told}; one process a GPU")
