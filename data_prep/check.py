"""`python -m data_prep check PATH`: read every byte of an archive, a shard set (of states or of latents), a bundle, an
observation set or an analysis, compare every checksum, and say what is wrong: one line each, by file and time.

The path may be a URL for archives and shard sets. Status 0: sound; 1: something is wrong; 2: nothing there to check.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from data_prep import stores
from data_prep.stores import Step, named, physical_range, statistics_of
from slams.contracts import analysis, archive, bundle, observations, shards
from slams.contracts.bundle import Bundle, open_bundle
from slams.contracts.envelope import ContractError, check_header, sha256
from slams.contracts.shards import MEMBER, Frame, Manifest, open_shards
from slams.contracts.storage import place
from slams.statistics import Statistics


def main(arguments: list[str] | None = None) -> int:
    """Check what lies at a path; returns the exit status."""
    parser = argparse.ArgumentParser(
        "data_prep check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="folder or URL")
    path = parser.parse_args(arguments).path
    n_wrong = 0
    try:
        what, steps = plan(path)
        bar = track(steps, description="check", transient=True, console=Console(stderr=True))
        for line in (line for step in bar for line in said(step)):
            n_wrong += 1
            sys.stdout.write(line + "\n")
    except (ContractError, OSError) as error:
        sys.stderr.write(f"data_prep check: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{path}: {what}, {len(steps)} parts checked, {f'{n_wrong} wrong' if n_wrong else 'sound'}\n")
    return 1 if n_wrong else 0


def plan(path: str) -> tuple[str, list[Step]]:
    """What lies there, in a word, and the steps of its check, each of which gives the lines of what is wrong.

    Raises:
        ContractError: nothing there, nothing that is known, or of a newer version.
    """
    folder = place(path)
    marker = next((name for name in MARKERS if (folder / name).is_file()), None)
    if marker is None:
        raise ContractError(f"{path}: no archive, shard set, bundle, observation set or analysis lies there")
    try:
        document: dict[str, Any] = json.loads((folder / marker).read_bytes())
        found = document["attributes"] if marker == "zarr.json" else document
        name = found["format"]
    except (ValueError, KeyError, TypeError):
        return "nothing that is known", [lambda: [f"{folder / marker}: damaged, or of no contract of this project"]]
    if name not in KINDS or (name not in AT_URLS and "://" in str(folder)):
        raise ContractError(f"{path}: is {name!r}, which cannot be checked{' at a URL; copy it' * (name in KINDS)}")
    what, version, steps = KINDS[name]
    check_header(found, name, version, folder)
    return what, steps(path)


def said(step: Step) -> Iterator[str]:
    """What a step says; what a reader refuses is what is wrong."""
    try:
        yield from step()
    except ContractError as error:
        yield str(error)


# ---- bundles


def _bundle(path: str) -> list[Step]:
    opened = open_bundle(path)
    return [partial(_statistics, opened), *(partial(_weights, opened, kind) for kind in ("ema", "raw"))]


def _statistics(opened: Bundle | Manifest) -> Iterable[str]:
    opened.statistics()
    return ()


def _weights(opened: Bundle, kind: str) -> Iterator[str]:
    found, path = opened.weights(kind), opened.folder / "weights.safetensors"
    if not found:
        yield f"{path}: holds no weights of the kind {kind!r}"
    for name, value in found.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"{path}: {kind}.{name} is not finite"


# ---- shard sets


def _shards(path: str) -> list[Step]:
    manifest = open_shards(path, complete=False)
    try:
        n_tars, _ = len(manifest.files), manifest.frames
    except (KeyError, TypeError, ValueError) as error:
        told = f"{manifest.folder / 'manifest.json'}: damaged, what it lists cannot be read: {error}"
        return [lambda: [told]]
    tars = (partial(_shard, manifest, i) for i in range(n_tars))
    return [partial(_sealed, manifest), partial(_statistics, manifest), partial(_order, manifest), *tars]


def _sealed(manifest: Manifest) -> Iterable[str]:
    manifest.check()
    return ()


def _order(manifest: Manifest) -> Iterator[str]:
    """Days must increase and no run come back: a window is whole where its last day is its first and its length on."""
    path, ended = manifest.folder / "manifest.json", set[int]()
    if not manifest.frames:
        yield f"{path}: lists no frame"
    for last, frame in pairwise(manifest.frames):
        if frame.time <= last.time:
            yield f"{path}: {frame.time}: follows {last.time}; days must increase, or windows cross gaps unseen"
        if frame.run != last.run:
            ended.add(last.run)
            if frame.run in ended:
                yield f"{path}: {frame.time}: run {frame.run} had ended before"
    for name, (first, last_year) in manifest.document["splits"].items():
        if not any(first <= _year(frame) <= last_year for frame in manifest.frames):
            yield f"{path}: split {name} ({first} to {last_year}) holds no frame"


def _year(frame: Frame) -> int:
    return int(frame.time.astype("datetime64[Y]").astype(int)) + 1970


def _shard(manifest: Manifest, index: int) -> Iterator[str]:
    """One tar against its manifest: size and checksum, members, then every frame."""
    path, listed = manifest.files[index], manifest.document["shards"][index]
    frames = [frame for frame in manifest.frames if frame.shard == index]
    days = named([frame.time for frame in frames])
    if not path.is_file():
        yield f"{path}: {days}: no such file, though the manifest lists it"
        return
    size = path.stat().st_size
    if not size:
        yield f"{path}: {days}: empty, but the manifest says {listed['bytes']} bytes"
        return
    if size != listed["bytes"]:
        yield f"{path}: {days}: {size} bytes, but the manifest says {listed['bytes']}"
    elif sha256(path) != listed["sha256"]:
        yield f"{path}: {days}: the sha256 is not the manifest's"
    yield from _members(path, frames)
    damaged = dict(manifest.damaged(index))
    first = next(i for i, frame in enumerate(manifest.frames) if frame.shard == index)
    statistics = statistics_of(manifest)
    for i, frame in enumerate(frames, first):
        if i in damaged:
            yield f"{path}: {frame.time}: {damaged[i].partition(': ')[2]}"
        else:
            yield from (f"{path}: {frame.time}: {what}" for what in _content(manifest, frame, statistics))


def _members(path: Path, frames: list[Frame]) -> Iterator[str]:
    """The tar as `tarfile` sees it: members by name, place and size, none too many."""
    expected = {f"{frame.time}".replace("-", "") + f".{MEMBER}": frame for frame in frames}
    found: dict[str, tarfile.TarInfo] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
            found.update((member.name, member) for member in tar)
    except (tarfile.TarError, EOFError) as error:
        yield f"{path}: not a whole tar ({str(error).splitlines()[0]})"
    for name, frame in expected.items():
        member = found.pop(name, None)
        if member is None:
            yield f"{path}: {frame.time}: no member {name}"
        elif (member.offset_data, member.size) != (frame.offset, frame.size):
            yield f"{path}: {frame.time}: member {name} lies elsewhere than the manifest says"
    for name in found:
        yield f"{path}: member {name} is not in the manifest"


def _content(manifest: Manifest, frame: Frame, statistics: Statistics | None) -> Iterator[str]:
    """What is wrong with the values of a frame whose checksum is right."""
    try:
        x_CHW = manifest.read(frame)
    except (ValueError, RuntimeError) as error:
        yield f"cannot be decoded ({error})"
        return
    if manifest.content == "latent":
        if not np.isfinite(x_CHW).all():
            yield f"{np.sum(~np.isfinite(x_CHW))} latents are not finite"
        return
    if statistics is not None:
        x_CHW = statistics.physical(x_CHW[None], np.array([frame.time]))[0]
    channels = [(m, name) for m in manifest.spec.modalities for name in m.channel_names]
    for (modality, name), field in zip(channels, x_CHW, strict=True):
        if np.isnan(field).all():
            yield f"{name} has no value"
        elif statistics is not None:
            yield from (f"{name} {what}" for what in physical_range(modality, field))


KINDS: dict[str, tuple[str, int, Callable[[str], list[Step]]]] = {
    shards.FORMAT: ("shard set", shards.VERSION, _shards),
    bundle.FORMAT: ("bundle", bundle.VERSION, _bundle),
    archive.FORMAT: ("archive", archive.VERSION, stores.archive_steps),
    observations.FORMAT: ("observation set", observations.VERSION, stores.observation_steps),
    analysis.FORMAT: ("analysis", analysis.VERSION, stores.analysis_steps),
}
AT_URLS = (archive.FORMAT, shards.FORMAT)
MARKERS = ("manifest.json", "model.json", "zarr.json")
