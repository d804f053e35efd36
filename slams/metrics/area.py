"""What the scores have in common: sums over cells and dates, and a function that makes a score of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


class AreaMean(Metric):
    """A score that is a function of area-weighted sums of cell values, S sums a channel, and of their weight.

    A score says what it sums (`sums`) and what it makes of the sums (`value`). `update` and `compute` do both over
    time; who resamples the dates (`slams.uncertainty`) keeps the sums of each and calls `value` himself.

    Arguments:
        n_channels: C.
        weights_HW: area weight of each cell; only their ratios matter.
        n_sums: S.
    """

    is_differentiable = False
    full_state_update = False
    weights: Tensor
    total: Tensor
    weight: Tensor

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, n_sums: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("weights", torch.as_tensor(weights_HW, dtype=torch.float64), persistent=False)
        self.add_state("total", torch.zeros(n_sums, n_channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(n_channels, dtype=torch.float64), dist_reduce_fx="sum")

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """What a date adds: sums (S, C) and weights (C,).

        Raises:
            ValueError: fields of another shape.
        """
        raise NotImplementedError

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The score, (..., C), of sums (..., S, C) and weights (..., C); NaN where nothing was known."""
        return mean(total, weight)[..., 0, :]

    def update(self, x_MCHW: Tensor, truth_CHW: Tensor) -> None:
        total, weight = self.sums(x_MCHW, truth_CHW)
        self.total += total
        self.weight += weight

    def compute(self) -> Tensor:
        """The score of each channel, (C,)."""
        found = self.value(self.total.cpu().numpy(), self.weight.cpu().numpy())
        return torch.as_tensor(found, device=self.total.device)

    def _errors(self, x_MCHW: Tensor, truth_CHW: Tensor) -> Tensor:
        """Members minus truth in float64."""
        check_shapes(x_MCHW, truth_CHW, (len(self.weight), *self.weights.shape))
        return x_MCHW.double() - truth_CHW.double()

    def _summed(self, values_CHW: Iterable[Tensor], truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of cell values where the truth is known, one field for each, and the weight there."""
        known = ~truth_CHW.isnan()
        sums = [(self.weights * torch.where(known, value, 0.0)).sum(dim=(-2, -1)) for value in values_CHW]
        return torch.stack(sums), (self.weights * known).sum(dim=(-2, -1))


def mean(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums (..., S, C) over their weights (..., C); NaN without weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = total / weight[..., None, :]
    return found


def check_shapes(x_MCHW: Tensor, truth_CHW: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse members and truth of another shape than (M, *expected) and expected.

    Raises:
        ValueError: naming both shapes.
    """
    if x_MCHW.shape[1:] != expected or truth_CHW.shape != expected:
        given = f"members {tuple(x_MCHW.shape)} and truth {tuple(truth_CHW.shape)}"
        raise ValueError(f"{given}: (M, *{expected}) and {expected} are needed")
