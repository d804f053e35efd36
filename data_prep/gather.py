"""An archive is read again before it is closed: whether all of it is there, and the sums of its train days.

By spans of a year of a modality, the same whoever does the work, whose sums are added in order of time: the result has
the same bits. Sums go from one process to another by files, as at 0.25 degrees a span has 0.5 GB of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.progress import track

from data_prep.blocks import Block, days_with_values, read_block
from data_prep.stats import Totals
from data_prep.workers import InOrder
from slams.contracts.archive import open_archive
from slams.spec import Modality
from slams.statistics import Kind

SPAN_DAYS = 366
Span = tuple[Block, ...]


def gather(
    gatherer: Gatherer, blocks: Sequence[Block], in_order: InOrder
) -> tuple[dict[str, Totals], dict[Block, list[str]]]:
    """Sums over the train days of each modality that has any, and what is lost of each block that is not all there."""
    shutil.rmtree(gatherer.sums, ignore_errors=True)
    spans = [tuple(span) for _, span in groupby(blocks, lambda block: (block.modality, block.start // SPAN_DAYS))]
    bar = track(in_order(gatherer, spans), "read again", len(spans), transient=True, disable=not sys.stdout.isatty())
    totals: dict[str, Totals] = {}
    lost: dict[Block, list[str]] = {}
    for span, (is_summed, found) in zip(spans, bar, strict=True):
        lost |= found
        if not is_summed:
            continue
        name, folder = span[0].modality, gatherer.folder_of(span)
        if name in totals:
            totals[name] += Totals.load(folder)
        else:
            totals[name] = Totals.load(folder)
        shutil.rmtree(folder)
    return totals, lost


@dataclass(frozen=True)
class Gatherer:
    """Reads spans of an archive that is being made.

    Arguments:
        folder: the archive aside; of each modality the missing days are known already, and on others all is written.
        sums: folder for what goes to the process that adds them up.
        kind: of the statistics.
        log_precipitation: whether they are of log(1 + rain).
    """

    folder: Path
    sums: Path
    kind: Kind
    log_precipitation: bool

    def folder_of(self, span: Span) -> Path:
        """Where the sums of a span go."""
        return self.sums / span[0].name

    def __call__(self, span: Span) -> tuple[bool, dict[Block, list[str]]]:
        """Save the sums of its train days; whether there are any, and what of each block is lost, a line for a file."""
        archive = open_archive(self.folder, is_whole=False)
        modality = next(m for m in archive.spec.modalities if m.name == span[0].modality)
        seen = days_with_values(archive, modality.name)
        summed = seen & np.isin(np.arange(len(archive.time)), archive.days("train"))
        totals, lost = None, {}
        for block in (block for block in span if seen[block.start : block.stop].any()):
            where = slice(block.start, block.stop)
            values, wrong = read_block(archive, block)
            if values is None:
                lost[block] = wrong
            elif summed[where].any():
                totals = totals or self._empty(modality, archive.spec.grid.shape)
                x_LCHW = values.reshape(len(values), modality.n_channels, *values.shape[-2:])
                totals.add(x_LCHW[summed[where]], archive.time[where][summed[where]])
        if totals is not None:
            totals.save(self.folder_of(span))
        return totals is not None, lost

    def _empty(self, modality: Modality, shape_HW: tuple[int, int]) -> Totals:
        log1p = self.log_precipitation and modality.name == "precipitation"
        return Totals.empty(self.kind, log1p, modality.n_channels, shape_HW)
