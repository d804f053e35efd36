"""From latent trajectories to standardised channels: all of the globe, or no more than observations need.

A decoder of finite reach R gives a part of the globe from the latents of that part and a margin of R cells, whose own
answers are thrown away. Where the margin would cross a pole, the rows up to the pole are taken all around the globe,
because the sphere's padding joins opposite longitudes there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.windows import in_chunks


@dataclass(frozen=True)
class Crop:
    """Latent rows and columns to decode, and which of them are right afterwards.

    Arguments:
        rows, columns: indices of latent cells, margin included.
        good_rows, good_columns: positions in those without the margin.
    """

    rows: np.ndarray
    columns: np.ndarray
    good_rows: slice
    good_columns: slice


def crop(needed_hw: np.ndarray, reach: int, wraps: bool) -> Crop:
    """The smallest crop that holds the needed latent cells and their margin.

    Arguments:
        needed_hw: at least one is needed.
        wraps: whether the decoder joins the edges as the sphere does.
    """
    height, width = needed_hw.shape
    found = np.flatnonzero(needed_hw.any(axis=1))
    top, bottom = found[0] - reach, found[-1] + 1 + reach
    at_pole = top < 0 or bottom > height
    top, bottom = max(top, 0), min(bottom, height)
    left, count = _arc(np.asarray(needed_hw.any(axis=0)), wraps)
    first, last = left - reach, left + count + reach
    if not wraps:
        first, last = max(first, 0), min(last, width)
    elif at_pole or last - first >= width:
        first, last, left, count = 0, width, 0, width
    good_rows, good_columns = slice(found[0] - top, found[-1] + 1 - top), slice(left - first, left - first + count)
    return Crop(np.arange(top, bottom), np.arange(first, last) % width, good_rows, good_columns)


def _arc(needed_w: np.ndarray, wraps: bool) -> tuple[int, int]:
    """First column and number of columns of the shortest stretch that holds all needed ones."""
    found = np.flatnonzero(needed_w)
    if not wraps:
        return int(found[0]), int(found[-1] - found[0] + 1)
    gaps = np.diff(np.append(found, found[0] + len(needed_w)))
    widest = int(gaps.argmax())
    return int(found[(widest + 1) % len(found)]), len(needed_w) - int(gaps[widest]) + 1


class Decoder:
    """D with the latents' standardisation undone.

    Arguments:
        network: a trained autoencoder.
        mean, std: of each latent channel, (Z,).
        at_once: frames decoded at once, see `slams.windows.in_chunks`; 0 = all.
    """

    def __init__(self, network: Autoencoder | PaperAutoencoder, mean: Tensor, std: Tensor, at_once: int = 0) -> None:
        self.network, self.at_once = network, at_once
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __call__(self, z_BLZhw: Tensor) -> Tensor:
        """(B, L, Z, h, w) -> (B, L, C, H, W)."""
        z = (z_BLZhw * self.std + self.mean).flatten(0, 1)
        return in_chunks(self.network.decode, self.at_once, z).unflatten(0, z_BLZhw.shape[:2])

    def within(self, z_BLZhw: Tensor, needed_LHW: np.ndarray) -> Tensor:
        """The same where it is needed, and zeros or right values elsewhere.

        Arguments:
            needed_LHW: cells of which frames are needed; at least one.
        """
        r = self.network.reduction
        days, height, width = needed_LHW.shape
        frames = torch.from_numpy(np.flatnonzero(needed_LHW.any(axis=(1, 2))))
        needed_hw = np.asarray(needed_LHW.any(axis=0).reshape(height // r, r, width // r, r).any(axis=(1, 3)))
        part = crop(needed_hw, self.network.reach, self.network.wraps)
        if len(frames) == days and (len(part.rows), len(part.columns)) == needed_hw.shape:
            return self(z_BLZhw)
        rows, columns = torch.from_numpy(part.rows), torch.from_numpy(part.columns)
        z = (z_BLZhw[:, frames][..., rows[:, None], columns] * self.std + self.mean).flatten(0, 1)
        x = in_chunks(lambda z: self.network.decode(z, (rows, columns)), self.at_once, z)
        x = x[..., _fine(part.good_rows, r), _fine(part.good_columns, r)].unflatten(0, (len(z_BLZhw), len(frames)))
        canvas = x.new_zeros(len(x), days, x.shape[2], height, width)
        rows, columns = _cells(part.rows[part.good_rows], r), _cells(part.columns[part.good_columns], r)
        canvas[:, frames[:, None, None, None], torch.arange(x.shape[2])[:, None, None], rows[:, None], columns] = x
        return canvas


def _fine(coarse: slice, r: int) -> slice:
    return slice(coarse.start * r, coarse.stop * r)


def _cells(coarse: np.ndarray, r: int) -> Tensor:
    return torch.from_numpy((coarse[:, None] * r + np.arange(r)).reshape(-1))
