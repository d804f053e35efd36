"""Long trajectories from short windows.

A network that sees 2k + 1 frames is asked for every window of a trajectory of L frames; the first k frames are
taken from the first window, the centre frame of each window, and the last k from the last (Rozet & Louppe 2023).
For a Markov chain of order k the composition is exact only in the noise-free limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slams.denoise import Background, Denoiser

WindowDenoiser = Callable[..., Tensor]


def unfold(x_BL: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, L - length + 1, length, ...): every window, in order."""
    return x_BL.unfold(1, length, 1).movedim(-1, 2)


def fold(windows: Tensor) -> Tensor:
    """(B, N, 2k + 1, ...) -> (B, N + 2k, ...): first k frames, centres, last k frames."""
    k = windows.shape[2] // 2
    return torch.cat([windows[:, 0, :k], windows[:, :, k], windows[:, -1, k + 1 :]], dim=1)


def windowed(
    denoise: WindowDenoiser, length: int, day_L5: Tensor, at_once: int = 0, z_b: Tensor | None = None
) -> Denoiser:
    """A denoiser of a whole trajectory, from one of windows.

    A background, the state of the day before the trajectory, is known to the first window alone: every later day is
    told of it by the days between, as in the Markov chain that the composition assumes.

    Arguments:
        denoise: (z_t (B, length, Z, H, W), t, day (B, length, 5)[, background]) -> d.
        length: frames a window, odd.
        day_L5: calendar of the trajectory's frames.
        at_once: windows of all members evaluated at once, see `in_chunks`; 0 = all.
        z_b: background, (Z, H, W), or none.

    Raises:
        ValueError: the trajectory is shorter than a window, or the window's length is even.
    """
    if length % 2 == 0 or len(day_L5) < length:
        raise ValueError(f"frames: {len(day_L5)} with windows of {length}; an odd window, no longer, is needed")
    day_N5 = unfold(day_L5[None], length)[0]

    def whole(z_t: Tensor, t: Tensor) -> Tensor:
        windows = unfold(z_t, length)
        flat = windows.flatten(0, 1)
        number = torch.arange(windows.shape[1], device=z_t.device).repeat(len(windows))

        def part(z: Tensor, number: Tensor) -> Tensor:
            return denoise(z, t, day_N5[number], *_background(z_b, number))

        return fold(in_chunks(part, at_once, flat, number).unflatten(0, windows.shape[:2]))

    return whole


def _background(z_b: Tensor | None, number: Tensor) -> tuple[Background, ...]:
    """What windows of those numbers are told; nothing where no window of them is the first."""
    known = number == 0
    return () if z_b is None or not known.any() else (Background(z_b.expand(len(number), -1, -1, -1), known),)


def in_chunks(f: Callable[..., Tensor], at_once: int, *inputs: Tensor) -> Tensor:
    """f over the first axis, `at_once` entries at a time (0 = all).

    Where there is more than one chunk, what the backward pass needs is computed again chunk by chunk (Chen et al.
    2016), so that the peak of memory does not grow with their number, for one more forward pass a derivative.
    """
    if not at_once or len(inputs[0]) <= at_once:
        return f(*inputs)
    chunks = zip(*(x.split(at_once) for x in inputs), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(f, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([f(*chunk) for chunk in chunks])


def saved_bytes(f: Callable[[Tensor], Tensor], x: Tensor, there: Iterable[Tensor] = ()) -> int:
    """What one evaluation of f keeps for its backward pass: each piece of memory counted once.

    Arguments:
        there: what is held anyway, weights and buffers, and not once more for each evaluation.
    """
    sizes: dict[int, int] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in there}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = f(x.detach().requires_grad_())
    del kept
    return sum(size for pointer, size in sizes.items() if pointer not in known)
