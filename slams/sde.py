"""The perturbation kernel: z_t = alpha(t) z + sigma(t) eps, t in [0, 1].

The published cosine schedule (Qu et al. 2024, after Rozet & Louppe 2023): alpha(t) = cos^2(arccos(sqrt(eta)) t),
sigma(t)^2 = 1 - alpha(t)^2 + eta^2, so that alpha(1) = eta and sigma(0) = eta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CosineSDE:
    """The kernel's two functions of time. `eta` is the smallest signal and noise scale."""

    eta: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eta < 0.5:
            raise ValueError(f"eta: {self.eta} is not allowed; more than 0 and less than 0.5")

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        return torch.cos(math.acos(math.sqrt(self.eta)) * t) ** 2

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return torch.sqrt(1 - self.alpha(t) ** 2 + self.eta**2)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), which falls with t."""
        return torch.log(self.alpha(t) / self.sigma(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; in float64, as t near 0 hangs on the last digits of alpha near 1."""
        alpha = torch.sqrt((1 + self.eta**2) * torch.sigmoid(2 * log_snr.double())).clamp(max=1)
        return torch.acos(torch.sqrt(alpha)) / math.acos(math.sqrt(self.eta))

    def time_of_alpha(self, alpha: float) -> float:
        """The time at which the signal scale is alpha: the inverse of `alpha`."""
        return math.acos(math.sqrt(alpha)) / math.acos(math.sqrt(self.eta))
