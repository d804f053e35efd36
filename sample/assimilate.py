"""The sampling job: units of work, drawn and written one by one, until a period is analysed.

A unit goes from observations over guided denoiser, sampler and decoder into the product, and then into its ledger. Any
number of processes share the units by their index and never talk: one that dies costs its own units, which the same
command draws again.
"""

from __future__ import annotations

import math
import os
import sys
import time
from datetime import timedelta
from typing import Any

import numpy as np

from sample.assimilator import REDRAWS
from sample.config import SampleConfig
from sample.departures import write_departures
from sample.leave import AGAIN, Clock, Leave, leaving_on_signals, minutes_left
from sample.plan import Unit, by_segment, evaluations, segments, share
from sample.progress import progress
from sample.run import Run
from slams.contracts.analysis import Analysis, create, open_analysis, stands
from slams.contracts.envelope import is_finished, provenance
from slams.contracts.presence import Presence, present
from slams.contracts.product import checksum, stored


def plan(config: SampleConfig) -> list[str]:
    """What a run would do, for people: units, memory, and time from a trial of one unit.

    Raises:
        ContractError, ValueError: see `Run`.
    """
    made = Run(config)
    work = made.units()
    made.check_days(work)
    begun = open_analysis(config.product) if stands(config.product) else None
    if begun:
        _check_same(begun, made.made_by)
    done = sum(begun.finished(unit.name) is not None for unit in work) if begun else 0
    n_days, n_members = len(work[0].all_days), len(work[0].members)
    held = made.method.held_bytes(n_days, n_members) / 2**30
    fields = 8 * n_members * n_days * made.spec.n_channels * math.prod(made.spec.grid.shape) / 2**30
    seconds = made.seconds(work[0])
    left = timedelta(seconds=round(seconds * (len(work) - done)))
    return [
        f"product {config.product}: {len(segments(config.period))} segments of {n_days} days, halo included, "
        f"{config.members} members; prior: {made.prior}",
        f"units {len(work)} of {n_members} members, finished {done}",
        *([f"network evaluations: {evaluations(config)} a member and window"] if config.method == "score" else []),
        f"memory: {held:.2f} GiB while drawing, and {fields:.2f} GiB of fields",
        f"time: {seconds:.1f} s a unit, from a trial of a few steps; {left} for what is left, on one process",
    ]


def run(config: SampleConfig) -> int:
    """Draw what is missing of this process's share; whoever ends a segment writes its mean and spread.

    Returns:
        Exit status: 0, or `AGAIN` where the time limit or a scheduler's signal came first.

    Raises:
        ContractError, ValueError: see `Run`; or the product was removed meanwhile.
    """
    made = Run(config)
    work = made.units()
    mine = share(work, os.environ)
    made.check_days(work)
    product = _product(config, made, len(work[0].members))
    todo = [unit for unit in mine if product.finished(unit.name) is None]
    minutes = minutes_left(config.time_limit_minutes, os.environ)
    clock = Clock(minutes, made.seconds(todo[0]) if minutes and todo else 0.0)
    segments = by_segment(work)
    with present(product.path) as here, leaving_on_signals():
        try:
            for unit in progress(todo, f"sample {config.product.name}"):
                if not clock.allows():
                    return AGAIN
                _draw_and_write(made, product, unit, here)
                _finish_segment(product, segments[unit.days[0]])
            _finish(product, segments)
            if product.is_complete:
                here.sweep()
        except Leave:
            return AGAIN
    _report_missing(product, mine)
    return 0


def _draw_and_write(made: Run, product: Analysis, unit: Unit, here: Presence) -> None:
    began = time.perf_counter()
    first_guess = made.first_guess_of(unit.all_days)
    drawn = made.analyse(unit, first_guess)
    here.check()  # as late as can be
    where = np.searchsorted(product.time, unit.days)
    crc32 = product.write(unit.members, where, drawn.x_MLCHW)
    departures = write_departures(
        product.path, unit, made.observations, made.spec, made.statistics, drawn.x_MLCHW, first_guess, made.observed
    )  # fmt: skip
    entry: dict[str, Any] = {"unit": unit.name, "days": [str(day) for day in unit.days]}
    entry |= {"members": unit.members.tolist(), "crc32": crc32, "diverged": drawn.diverged}
    entry |= {"departures": departures} | _background(first_guess) | made.method.told
    entry |= {"seed": made.config.seed, "seconds": round(time.perf_counter() - began, 3)}
    product.close_unit(unit.name, entry | made.checksums | {"provenance": provenance()})


def _background(first_guess_CHW: np.ndarray | None) -> dict[str, int]:
    """CRC32 of what the prior was conditioned on; the archive or analysis that held it may be another by tomorrow."""
    return {} if first_guess_CHW is None else {"background_crc32": checksum(stored(first_guess_CHW))}


def _finish_segment(product: Analysis, units: list[Unit]) -> None:
    if all(product.finished(unit.name) for unit in units):
        product.finish_segment(np.searchsorted(product.time, units[0].days))


def _finish(product: Analysis, segments: dict[np.datetime64, list[Unit]]) -> None:
    """Close the product if this process is the one that sees the last unit done."""
    if not product.is_complete and all(product.finished(u.name) for units in segments.values() for u in units):
        for units in segments.values():
            product.finish_segment(np.searchsorted(product.time, units[0].days))
        product.finish()


def _report_missing(product: Analysis, work: list[Unit]) -> None:
    """Say which members no attempt could draw: they are missing in the product, and counted out of mean and spread."""
    entries = [product.finished(unit.name) or {} for unit in work]
    lost = [reasons[-1] for e in entries for reasons in e.get("diverged", {}).values() if len(reasons) > REDRAWS]
    if lost:
        sys.stderr.write(f"sample: {product.path}: {len(lost)} members of units are missing; {lost[0]}\n")


def _product(config: SampleConfig, made: Run, members_per_unit: int) -> Analysis:
    """The product to write into: the one that stands, if the same configuration began it, or a new one."""
    made_by, path = made.made_by, config.product
    if not stands(path):
        attributes = {
            "config": made_by,
            "title": "SLAMS ensemble of analyses",
            "prior": made.prior,
            "assimilated": made.observed,
        }
        time_axis = np.concatenate(segments(config.period))
        unit = (members_per_unit, config.period.segment_days)
        create(path, made.spec, time_axis, config.members, attributes, unit, config.keepbits)
    product = open_analysis(path)
    _check_same(product, made_by)
    return product


def _check_same(begun: Analysis, made_by: dict[str, Any]) -> None:
    """Refuse to go on with a product that another configuration began; an early version did not tell its background.

    Raises:
        ContractError: it did; names what is different.
    """
    given = begun.attributes["config"]
    told = {name: value for name, value in made_by.items() if name != "background_sha256" or name in given}
    is_finished(begun.path, given, told)
