"""Random numbers as functions of names, never of the clock, the process or what was drawn before.

`seed(base, context, *keys)` is a tree: each context (a fixed word) and each key (an integer: a member, a
frame's valid time, a step) opens a branch whose numbers are independent of every other branch's. Hence a
member's noise does not depend on which process draws it, nor on the batch it is drawn in, and two segments
of a trajectory that share a frame share that frame's noise.

The generator is Philox, a counter-based generator (Salmon et al. 2011), keyed by a SHA-256 of the branch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

Context = Literal[
    "data-order",
    "diffusion-time",
    "diffusion-noise",
    "init",
    "sampler",
    "redraw",
    "observation",
    "background",
    "validation",
    "enoi",
]


def seed(base: int, context: Context, *keys: int) -> int:
    """A 128-bit seed for one branch of the tree."""
    branch = ":".join([str(int(base)), context, *(str(int(k)) for k in keys)])
    return int.from_bytes(hashlib.sha256(branch.encode()).digest()[:16], "little")


def generator(base: int, context: Context, *keys: int) -> np.random.Generator:
    """A NumPy generator at the start of that branch."""
    return np.random.Generator(np.random.Philox(key=seed(base, context, *keys)))


def normal(base: int, context: Context, *keys: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 values of that branch."""
    return generator(base, context, *keys).standard_normal(tuple(shape), dtype=np.float32)
