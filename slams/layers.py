"""Layers that know the shape of the Earth."""

from __future__ import annotations

from typing import Literal

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
    half = x.shape[-1] // 2
    north = x[..., :width, :].flip(-2).roll(half, -1)
    south = x[..., -width:, :].flip(-2).roll(half, -1)
    return F.pad(torch.cat([north, x, south], dim=-2), (width, width, 0, 0), mode="circular")


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
        if self.edge == "sphere":
            return super().forward(pad_sphere(x, self.width))
        mode = "circular" if self.edge == "circular" else "constant"
        return super().forward(F.pad(x, (self.width,) * 4, mode=mode))


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
