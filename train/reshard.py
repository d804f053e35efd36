"""A checkpoint for another number of processes or ZeRO stage, through DeepSpeed's universal form.

The form is a folder ``form/zero/<parameter>/{fp32,exp_avg,exp_avg_sq}.pt``, each file one whole tensor. Written by
DeepSpeed's converter from a partitioned checkpoint, here from a whole one; read here, part by part.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")  # DeepSpeed's names
KEYS = (WEIGHT, *MOMENTS)


def numel(parameter: Tensor) -> int:
    """Numbers in a parameter, also where ZeRO 3 left an empty tensor in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def part(parameter: Tensor, whole: Tensor, rank: int, size: int) -> Tensor:
    """What a process holds of a parameter: all of it, or under ZeRO 3 its share, padded with zeros."""
    if not hasattr(parameter, "ds_tensor"):
        return whole.reshape(parameter.shape)
    share = parameter.ds_tensor.numel()
    padded = nn.functional.pad(whole.flatten(), (0, share * size - whole.numel()))
    return padded[share * rank :][:share]


def join(parameter: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The whole of a parameter, flat, from the parts that the processes held in order; the inverse of `part`."""
    return torch.cat([p.flatten() for p in parts])[: numel(parameter)]


def convert_whole(source: Path, target: Path, names: list[str]) -> None:
    """Write the form of a checkpoint at stage 0, which DeepSpeed's converter does not know.

    Arguments:
        names: the parameters in the optimizer's order.
    """
    saved = _load(source / "mp_rank_00_model_states.pt")
    for i, name in enumerate(names):
        folder = target / "form" / "zero" / name
        folder.mkdir(parents=True)
        for key in KEYS:
            value = saved["module"][name] if key == WEIGHT else saved["optimizer"]["state"][i][key]
            torch.save(value.contiguous(), folder / f"{key}.pt")


def read_converted(converted: Path, name: str, key: str) -> Tensor:
    """One tensor of the form, whole."""
    saved = _load(converted / "form" / "zero" / name / f"{key}.pt")
    return saved["param"] if isinstance(saved, dict) else saved


def read_module(source: Path) -> dict[str, Tensor]:
    """The state of the module as process 0 wrote it; under ZeRO 3 its buffers only."""
    return _load(min(source.glob("*model_states.pt")))["module"]


def begin_optimizer(optimizer: Any, trained: Iterable[Tensor], stage: int, step: int) -> None:
    """Give AdamW an empty state of so many steps, which it else makes at its first step."""
    held, inner = trained, optimizer
    if stage:
        name = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
        held, inner = getattr(optimizer, name), optimizer.optimizer
    for flat in held:
        count = torch.tensor(float(step), device=flat.device)
        inner.state[flat] = {"step": count} | {key: torch.zeros_like(flat) for key in MOMENTS}
    if stage in (1, 2):
        optimizer._lazy_init_hp_params_optimizer_state()  # so that parameters find their moments


def _load(path: Path) -> Any:
    # DeepSpeed's files are pickles; they are this run's own, and their checksums were compared
    return torch.load(path, map_location="cpu", weights_only=False)
