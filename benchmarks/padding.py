"""Padding on the sphere beside torch's own operations: alone, and within a step of the flagship's score network.

    python benchmarks/padding.py      # on the GPU if there is one, else at the demo's size

Forward and gradient, pairs in turn; medians, and of the ratio the median, the lowest and the highest.
"""

import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slams import layers
from slams.layers import pad_sphere
from slams.unet import UNet

PAIRS = 15
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, HIDDEN, BLOCKS, SHAPE = (128, [96, 192, 320], [3, 3, 3], (60, 120))
if DEVICE.type == "cpu":
    BATCH, HIDDEN, BLOCKS, SHAPE = (32, [80, 96], [2, 2], (8, 16))


def plain(x, width):
    """The same field by flip, roll, concatenation and torch's circular padding."""
    half = x.shape[-1] // 2
    north, south = x[..., :width, :].flip(-2).roll(half, -1), x[..., -width:, :].flip(-2).roll(half, -1)
    return F.pad(torch.cat([north, x, south], dim=-2), (width, width, 0, 0), mode="circular")


def seconds(function):
    """Of a call, work on a GPU included."""
    began = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def paired(name, ours, theirs):
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(PAIRS + 3)][3:]
    ratios = sorted(a / b for a, b in pairs)
    told = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{name}: torch {told[0]:.2f} ms, here {told[1]:.2f} ms, {spread} times as fast", flush=True)


def alone(kind):
    x = torch.randn(BATCH, HIDDEN[0], *SHAPE, device=DEVICE, dtype=kind).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(pad_sphere(x, 1))
    ways = (lambda pad=pad: pad(x.requires_grad_(), 1).backward(gradient) for pad in (pad_sphere, plain))
    paired(f"padding {tuple(x.shape)}, {kind}", *ways)


def step(bf16):
    """Of the network, with the rest of what was plain: the field was padded before it was cast."""
    frames, latent = 5, 16
    fixed = torch.zeros(3, *SHAPE)
    network = UNet(frames * latent, HIDDEN, BLOCKS, "sphere", True, fixed, True, frames * latent + latent + 1)
    network = network.to(DEVICE, memory_format=torch.channels_last)
    z, day = torch.randn(BATCH, frames, latent, *SHAPE, device=DEVICE), torch.randn(BATCH, frames, 5, device=DEVICE)
    context, t = torch.randn(BATCH, (frames + 1) * latent + 1, *SHAPE, device=DEVICE), torch.rand(BATCH, device=DEVICE)

    def ours():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = (network(z, t, day, context) ** 2).mean()
        loss.backward()

    def theirs():
        with patch.dict(layers.PADDINGS, sphere=plain), patch.object(layers, "_cast", lambda x: x):
            ours()

    paired(f"step of {HIDDEN}, batch {BATCH}, {SHAPE[0]} x {SHAPE[1]}, {'bf16' if bf16 else 'float32'}", ours, theirs)


def main():
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}")
    for kind in (torch.float32, torch.bfloat16):
        alone(kind)
    for bf16 in (False, True):
        step(bf16)


if __name__ == "__main__":
    main()
