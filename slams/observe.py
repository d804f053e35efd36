"""Observation operators: from fields on the grid to what is observed of them, differentiably."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slams.contracts.gridded import Gridded, Operator
from slams.contracts.stations import Stations
from slams.interpolate import Placement, usable
from slams.spec import StateSpec


def observe(operator: Operator, x: Tensor, weight_HW: Tensor | None = None) -> Tensor:
    """Apply an operator to fields (..., H, W) -> (..., y, x).

    Arguments:
        weight_HW: what each cell counts in a block mean; a block whose cells count nothing gives 0.

    Raises:
        ValueError: a factor does not divide the field.
    """
    f = operator.factor
    if x.shape[-2] % f or x.shape[-1] % f:
        raise ValueError(f"factor: {f} does not divide the field of {x.shape[-2]} x {x.shape[-1]} cells")
    if operator.kind == "block_mean":
        value, weight = _weighted_mean(x, f, weight_HW)
    elif operator.kind == "subsample":
        kept = (..., slice(f // 2, None, f), slice(f // 2, None, f))
        value, weight = x[kept], None if weight_HW is None else weight_HW[kept]
    else:
        value, weight = x, weight_HW
    return observe(operator.then, value, weight) if operator.then else value


def _weighted_mean(x: Tensor, f: int, weight_HW: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Block means, and what each of them counts in a block mean of block means."""
    if weight_HW is None:
        return _block_mean(x, f), None
    share = _block_mean(weight_HW, f)
    return torch.where(share > 0, _block_mean(x * weight_HW, f) / share.clamp_min(1e-12), 0.0), share


def _block_mean(x: Tensor, f: int) -> Tensor:
    *lead, height, width = x.shape
    return x.reshape(*lead, height // f, f, width // f, f).mean(dim=(-1, -3))


class Interpolation:
    """States at points: a sum over the neighbours of each, whose indices and weights are found once.

    Arguments:
        placement: of the N points.
        frame_N: which frame each point is of.
        shape_CHW: of a state.
        first_channel: where the modality's channels begin in it.
        device: of the states.
    """

    def __init__(
        self,
        placement: Placement,
        frame_N: np.ndarray,
        shape_CHW: tuple[int, int, int],
        first_channel: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        channels, height, width = shape_CHW
        channel_NK = frame_N[:, None] * channels + first_channel + placement.channel
        self.index = torch.from_numpy(channel_NK * height * width + placement.cell).to(device)
        self.weight = torch.from_numpy(placement.weight).to(device)

    def __call__(self, x_BLCHW: Tensor) -> Tensor:
        """(B, N)."""
        found = x_BLCHW.flatten(1).index_select(1, self.index.flatten()).unflatten(1, self.index.shape)
        return (found * self.weight.to(x_BLCHW.dtype)).sum(dim=-1)


def needed_cells(observed: Sequence[Gridded | Stations], spec: StateSpec) -> np.ndarray:
    """Which cells of which days any observation touches, (L, H, W): no other has to be decoded.

    Of a block mean all cells that count in it, of a station its neighbours whose weight is not 0.
    """
    return np.any([_touched(seen, spec) for seen in observed], axis=0)


def _touched(seen: Gridded | Stations, spec: StateSpec) -> np.ndarray:
    if isinstance(seen, Stations):
        touched = np.zeros((len(seen.days), spec.grid.n_latitude * spec.grid.n_longitude), bool)
        used, at = usable(seen, spec)
        frame, counts = np.broadcast_to(seen.frame[used, None], at.cell.shape), at.weight != 0
        touched[frame[counts], at.cell[counts]] = True
        return touched.reshape(-1, *spec.grid.shape)
    footprint = seen.operator.footprint(spec.grid)
    counts = footprint >= 0 if seen.weight_HW is None else (footprint >= 0) & (seen.weight_HW > 0)
    seen_at_all = seen.mask.any(axis=1).reshape(len(seen.mask), -1)
    return np.where(counts, seen_at_all[:, footprint], False)
