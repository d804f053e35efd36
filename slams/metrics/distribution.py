"""The distribution of all values together, whatever the place and the day."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.metrics.area import AreaMean, mean


class Wasserstein(AreaMean):
    """Wasserstein-1 distance between the pooled values of members and truth, (C,), in units of a scale.

    0 (the same distribution) upwards; what the mean value has to be moved by to turn one distribution into the other.
    All members are pooled, each with the weight 1 / M; for a single draw give one, x_MCHW[:1]. Cells count alike,
    whatever their area, so that the poles weigh too much. It misleads: place and day are forgotten, so that a state
    of another year scores perfectly, and a bias that alternates is not seen; it is the published score of this method
    and kept for comparison. With few values it is biased upwards, by about the spread over sqrt(number of independent
    values); resamples of the dates hold fewer of them and lie above it, and its interval is centred for that reason.
    Reference: Qu et al. 2024 (their code: `scipy.stats.wasserstein_distance` of the flattened fields).

    The distance is the area between the two cumulative distributions F, integral |F_x - F_y|. Of each of the `CELLS`
    cells of the axis, `WIDTH` wide about the centre, the integral of F_x - F_y is kept, which is what a histogram with
    linear (cloud-in-cell) binning knows; of what lies beyond, on both sides without end, as well: no value is lost.
    So the score is never above the distance, and it is below only by what cancels inside a cell in which F_x and F_y
    cross: at most WIDTH / 2 times the shares of both distributions in such cells (WIDTH in all, were it everywhere),
    for one crossing of smooth densities WIDTH^2 / 4 times their difference there, 1e-4. The exception is a crossing
    beyond `reach`, where only the means count.

    Arguments:
        centre_C, scale_C: of each channel, in its units; the scale is the unit of the score.
    """

    higher_is_better = False
    CELLS, WIDTH = 256, 1 / 32
    centre: Tensor
    scale: Tensor

    def __init__(self, centre_C: np.ndarray, scale_C: np.ndarray, shape_HW: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(len(scale_C), torch.ones(shape_HW), n_sums=self.CELLS + 2, **kwargs)
        for name, values in (("centre", centre_C), ("scale", scale_C)):
            column = torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    @property
    def reach(self) -> float:
        """How far from the centre the cells go, in units of the scale."""
        return self.CELLS * self.WIDTH / 2

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        self._errors(x_MCHW[:0], truth_CHW)
        known = ~truth_CHW.isnan()
        members, truth = self._integrals(x_MCHW, known), self._integrals(truth_CHW[None], known)
        return (members / len(x_MCHW) - truth).T, known.sum(dim=(-2, -1)).double()

    def _integrals(self, x_MCHW: Tensor, known_CHW: Tensor) -> Tensor:
        """Minus the integral of the number of values below, over each cell, up to a constant; (C, S).

        Within its own cell a value counts the way from the left edge, in each cell on the left of it the whole width.
        """
        place = torch.where(known_CHW, (x_MCHW.double() - self.centre) / self.scale, 0.0) + self.reach
        cell = (place / self.WIDTH).floor().nan_to_num(0).clamp(-1, self.CELLS).long() + 1
        way = place - (cell - 1).clamp(0) * self.WIDTH
        flat = (cell + len(self.total) * torch.arange(len(self.weight), device=cell.device)[:, None, None]).flatten()
        size = self.total.numel()
        ways = torch.bincount(flat, way.flatten(), minlength=size).reshape(len(self.weight), -1)
        count = torch.bincount(flat, minlength=size).reshape(len(self.weight), -1)
        beyond = count.flip(1).cumsum(1).flip(1) - count  # values in cells on the right
        beyond[:, 0] = 0  # the first cell has no left edge; what is above it counts alike for both
        return ways + self.WIDTH * beyond

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.abs(mean(total, weight)).sum(axis=-2)
