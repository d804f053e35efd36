"""Long trajectories from short windows.

A network that sees 2k + 1 frames is asked for every window of a trajectory of L frames; the first k frames are
taken from the first window, the centre frame of each window, and the last k from the last (Rozet & Louppe 2023).
For a Markov chain of order k the composition is exact only in the noise-free limit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slams.denoise import Denoiser


def unfold(x_BL: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, L - length + 1, length, ...): every window, in order."""
    return x_BL.unfold(1, length, 1).movedim(-1, 2)


def fold(windows: Tensor) -> Tensor:
    """(B, N, 2k + 1, ...) -> (B, N + 2k, ...): first k frames, centres, last k frames."""
    k = windows.shape[2] // 2
    return torch.cat([windows[:, 0, :k], windows[:, :, k], windows[:, -1, k + 1 :]], dim=1)


def windowed(denoise: Callable[[Tensor, Tensor, Tensor], Tensor], length: int, day_L5: Tensor) -> Denoiser:
    """A denoiser of a whole trajectory, from one of windows.

    Arguments:
        denoise: (z_t (B, length, Z, H, W), t, day (B, length, 5)) -> d.
        length: frames a window, odd.
        day_L5: calendar of the trajectory's frames.

    Raises:
        ValueError: the trajectory is shorter than a window, or the window's length is even.
    """
    if length % 2 == 0 or len(day_L5) < length:
        raise ValueError(f"frames: {len(day_L5)} with windows of {length}; an odd window, no longer, is needed")
    day_N5 = unfold(day_L5[None], length)[0]

    def whole(z_t: Tensor, t: Tensor) -> Tensor:
        windows = unfold(z_t, length)
        day = day_N5.expand(len(z_t), -1, -1, -1).flatten(0, 1)
        return fold(denoise(windows.flatten(0, 1), t, day).unflatten(0, windows.shape[:2]))

    return whole
