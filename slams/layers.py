"""Layers that know the shape of the Earth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["sphere", "circular", "zeros"]


def pad_sphere(x: Tensor, width: int) -> Tensor:
    """Continue a field over its edges as the sphere does.

    Longitude wraps; across a pole the rows come back, nearest first, at longitude + 180 degrees.

    Arguments:
        x: (B, C, H, W), W even.
        width: rows and columns to add on each side.

    Returns:
        (B, C, H + 2 width, W + 2 width).
    """
    return _Padded.apply(x, width, True)  # type: ignore[no-untyped-call]


def pad_circular(x: Tensor, width: int) -> Tensor:
    """Continue a field as if both directions wrapped; arguments as of `pad_sphere`."""
    return _Padded.apply(x, width, False)  # type: ignore[no-untyped-call]


class _Padded(torch.autograd.Function):
    """A field with its edges. One pass over it each way, where torch's own padding takes four and its gradient more:
    on a GPU, half of the time of a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int, is_sphere: bool) -> Tensor:
        ctx.how = width, is_sphere
        *batch, height, columns = x.shape
        shape = (*batch, height + 2 * width, columns + 2 * width)
        padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))
        inside = padded[..., width:-width]
        inside[..., width:-width, :] = x
        north, south = _seen_across(width, is_sphere)
        inside[..., :width, :] = _across(x[..., north, :], is_sphere)
        inside[..., -width:, :] = _across(x[..., south, :], is_sphere)
        padded[..., :width], padded[..., -width:] = inside[..., -width:], inside[..., :width]
        return padded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Folded.apply(gradient, *ctx.how), None, None  # type: ignore[no-untyped-call]


class _Folded(torch.autograd.Function):
    """The transpose of `_Padded`: what lies on an edge is added to where it came from."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, width: int, is_sphere: bool) -> Tensor:
        ctx.how = width, is_sphere
        rows = padded[..., width:-width, :]
        x = rows[..., width:-width].clone(memory_format=_layout(padded))
        _add_columns(x, rows, width)
        north, south = _seen_across(width, is_sphere)
        for origin, edge in ((north, padded[..., :width, :]), (south, padded[..., -width:, :])):
            folded = edge[..., width:-width].clone()
            _add_columns(folded, edge, width)
            x[..., origin, :] += _across(folded, is_sphere)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Padded.apply(gradient, *ctx.how), None, None  # type: ignore[no-untyped-call]


def _seen_across(width: int, is_sphere: bool) -> tuple[slice, slice]:
    """Rows that stand beyond the northern edge and beyond the southern one."""
    top, bottom = slice(None, width), slice(-width, None)
    return (top, bottom) if is_sphere else (bottom, top)


def _across(rows: Tensor, is_sphere: bool) -> Tensor:
    """Rows as they are seen beyond an edge, and back again."""
    return rows.flip(-2).roll(rows.shape[-1] // 2, -1) if is_sphere else rows


def _add_columns(x: Tensor, padded: Tensor, width: int) -> None:
    x[..., -width:] += padded[..., :width]
    x[..., :width] += padded[..., -width:]


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def pad_zeros(x: Tensor, width: int) -> Tensor:
    """Continue a field with zeros; arguments as of `pad_sphere`."""
    return F.pad(x, (width,) * 4)


PADDINGS: dict[Padding, Callable[[Tensor, int], Tensor]]
PADDINGS = {"sphere": pad_sphere, "circular": pad_circular, "zeros": pad_zeros}


class Conv(nn.Conv2d):
    """A 2-D convolution that keeps the size (or halves it with stride 2), padded as the field demands.

    Arguments:
        padding: ``sphere`` (`pad_sphere`), ``circular`` (both directions wrap, the published score network),
            ``zeros``.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, padding: Padding, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride)
        self.edge: Padding = padding
        self.width = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.width == 0:
            return super().forward(x)
        return super().forward(PADDINGS[self.edge](_cast(x), self.width))


def _cast(x: Tensor) -> Tensor:
    """To what a convolution under autocast would cast it, once it were padded and more."""
    kind = x.device.type
    is_cast = x.dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if is_cast else x


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most eight groups of equal size."""
    return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)


class ChannelNorm(nn.Module):
    """Each cell's channels scaled to a root mean square of 1 (Zhang & Sennrich 2019), times a learned weight.

    Unlike group normalisation it mixes no cells: the network around it keeps its finite receptive field.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + 1e-6) * self.weight
