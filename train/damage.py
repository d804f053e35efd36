"""Frames that cannot be read, found before the first step, so that every process leaves out the same windows."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from rich.progress import track

from slams.contracts.shards import Manifest, open_shards
from train.data import DataConfig
from train.engine import World

NAMED_DAYS = 32
log = logging.getLogger("slams.train")


def opened(shards: str, config: DataConfig) -> Manifest:
    """The shard set of a run. Its shards may be damaged where that is to be left out; what says so may not.

    Raises:
        ContractError: as `open_shards`.
    """
    manifest = open_shards(shards, complete=config.stops_at_damage)
    manifest.check()
    return manifest


def usable(manifest: Manifest, config: DataConfig, world: World) -> Manifest:
    """The shard set, without windows that contain a damaged frame if those are to be left out.

    Each process reads its share of the shards.
    """
    if config.stops_at_damage:
        return manifest
    shards = range(world.rank, len(manifest.files), world.size)
    bad = torch.zeros(len(manifest.frames), device=world.device)
    for shard in track(shards, description="looking for damage", transient=True, disable=world.rank > 0):
        for frame, reason in manifest.damaged(shard):
            log.error("%s; left out", reason)  # said by the process that found it
            bad[frame] = 1.0
    found = frozenset(world.mean(bad).nonzero().flatten().tolist())
    if found:
        days = [str(manifest.frames[i].time) for i in sorted(found)[:NAMED_DAYS]]
        told = (manifest.folder, len(found), len(bad), ", ".join(days))
        log.warning("%s: %d of %d frames are damaged; no window has them: %s", *told)
    return replace(manifest, unusable=found)
