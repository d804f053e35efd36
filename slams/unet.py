"""The score network: a U-Net over a window of frames, the frames stacked as channels.

Published form (Qu et al. 2024): 3x3 convolutions padded circularly, three levels, blocks
x + conv(SiLU(conv(x + Linear(embedding)))), stride-2 convolutions down, nearest-neighbour up, additive skips, no
normalisation. The flagship form adds sphere-aware padding, group normalisation whose scale and shift come from the
embedding, static fields as input channels, and the calendar in the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.layers import Conv, Padding, group_norm

N_WAVES = 16
EMBEDDING, EMBEDDING_HIDDEN = 64, 256


class TimeEmbedding(nn.Sequential):
    """cos and sin of pi k t, k = 1..16, through a small network: t (B,) -> (B, 64)."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2 * N_WAVES, EMBEDDING_HIDDEN), nn.SiLU(), nn.Linear(EMBEDDING_HIDDEN, EMBEDDING))
        self.register_buffer("frequency", math.pi * torch.arange(1, N_WAVES + 1), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.get_buffer("frequency")
        return super().forward(torch.cat([phase.cos(), phase.sin()], dim=1))  # type: ignore[no-untyped-call]


class Block(nn.Module):
    """x + conv(SiLU(conv(x + Linear(embedding))))."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.project = nn.Linear(EMBEDDING, channels)
        self.first = Conv(channels, channels, 3, padding)
        self.second = Conv(channels, channels, 3, padding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        inner = x + self.project(embedding)[:, :, None, None]
        return x + self.second(nn.functional.silu(self.first(inner)))


class ModulatedBlock(nn.Module):
    """x + conv(SiLU(conv((1 + scale) norm(x) + shift))), scale and shift Linear(embedding) (Perez et al. 2018)."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.project = nn.Linear(EMBEDDING, 2 * channels)
        self.norm = group_norm(channels)
        self.first = Conv(channels, channels, 3, padding)
        self.second = Conv(channels, channels, 3, padding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = (1 + scale) * self.norm(x) + shift
        return x + self.second(nn.functional.silu(self.first(inner)))


class Level(nn.ModuleList):
    """Blocks in sequence at one resolution."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """Window in, window out: (B, L, Z, H, W), t (B,), day (B, L, 5)[, context (B, c, H, W)] -> (B, L, Z, H, W).

    Arguments:
        window: L x Z, the channels of a stacked window.
        hidden: channels at each level; H and W must divide by 2 a level.
        blocks: blocks at each level, on the way down and again on the way up.
        padding: edges of the convolutions.
        normalise: group normalisation in the blocks, modulated by the embedding.
        static_SHW: fields given as extra input channels, or None.
        calendar: whether the day of year enters the embedding.
        context: channels of the context.
    """

    def __init__(
        self,
        window: int,
        hidden: Sequence[int],
        blocks: Sequence[int],
        padding: Padding = "circular",
        normalise: bool = False,
        static_SHW: Tensor | None = None,
        calendar: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__()
        pairs = list(zip(hidden[:-1], hidden[1:], strict=True))
        self.register_buffer("static", static_SHW, persistent=static_SHW is not None)
        self.embed = TimeEmbedding()
        self.calendar = nn.Linear(4, EMBEDDING) if calendar else None
        fixed = 0 if static_SHW is None else len(static_SHW)
        self.enter = Conv(window + context + fixed, hidden[0], 3, padding)
        self.down = nn.ModuleList(self._level(c, n, padding, normalise) for c, n in zip(hidden, blocks, strict=True))
        self.up = nn.ModuleList(self._level(c, n, padding, normalise) for c, n in zip(hidden, blocks, strict=True))
        self.shrink = nn.ModuleList(Conv(fine, coarse, 3, padding, stride=2) for fine, coarse in pairs)
        self.grow = nn.ModuleList(Conv(coarse, fine, 3, padding) for fine, coarse in pairs)
        self.leave = Conv(hidden[0], window, 3, padding)

    @staticmethod
    def _level(channels: int, n_blocks: int, padding: Padding, normalise: bool) -> Level:
        kind = ModulatedBlock if normalise else Block
        return Level(kind(channels, padding) for _ in range(n_blocks))

    def forward(self, z_BLZHW: Tensor, t_B: Tensor, day_BL5: Tensor, context_BcHW: Tensor | None = None) -> Tensor:
        embedding = self.embed(t_B)
        if self.calendar is not None:
            embedding = embedding + self.calendar(day_BL5[:, day_BL5.shape[1] // 2, 1:])
        x, static = z_BLZHW.flatten(1, 2), self._buffers["static"]
        if context_BcHW is not None:
            x = torch.cat([x, context_BcHW], dim=1)
        if static is not None:
            x = torch.cat([x, static.expand(len(x), -1, -1, -1).to(x.dtype)], dim=1)
        return self._cascade(self.enter(x), embedding).unflatten(1, z_BLZHW.shape[1:3])

    def _cascade(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = []
        for level, shrink in zip(self.down, [*self.shrink, None], strict=True):
            x = level(x, embedding)
            if shrink is not None:
                skips.append(x)
                x = shrink(x)
        for level, grow in zip(reversed(self.up), [None, *reversed(self.grow)], strict=True):
            if grow is not None:
                x = grow(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")) + skips.pop()
            x = level(x, embedding)
        return self.leave(x)
