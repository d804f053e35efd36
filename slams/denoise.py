"""Denoisers: d(z_t, t) ~ E[z | z_t], from which eps = (z_t - alpha d) / sigma and score = -eps / sigma.

A denoiser is any callable (z_t (B, L, Z, H, W), t ()) -> d of the same shape. `NetworkDenoiser` makes one of a
network, by what the network predicts: ``eps`` (the published choice) or ``v`` = alpha eps - sigma z (Salimans & Ho
2022), whose scale is the same at every noise level. `GaussianDenoiser` is exact for a Gaussian prior: the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from slams.sde import CosineSDE

Denoiser = Callable[[Tensor, Tensor], Tensor]
Prediction = Literal["eps", "v"]


def _like(value_B: Tensor, x: Tensor) -> Tensor:
    return value_B.reshape(-1, *(1,) * (x.ndim - 1))


class NetworkDenoiser:
    """d(z_t, t, day) from a network's prediction.

    Arguments:
        network: (z_t (B, L, Z, H, W), t (B,), day (B, L, 5)) -> prediction.
        sde: the perturbation kernel.
        prediction: what the network predicts.
    """

    def __init__(self, network: nn.Module, sde: CosineSDE, prediction: Prediction) -> None:
        self.network, self.sde, self.prediction = network, sde, prediction

    def __call__(self, z_t: Tensor, t: Tensor, day_BL5: Tensor) -> Tensor:
        t_B = t.expand(len(z_t))
        alpha, sigma = _like(self.sde.alpha(t_B), z_t), _like(self.sde.sigma(t_B), z_t)
        out = self.network(z_t, t_B, day_BL5).to(z_t.dtype)
        if self.prediction == "eps":
            return (z_t - sigma * out) / alpha
        return (alpha * z_t - sigma * out) / (alpha**2 + sigma**2)


class ScoreTask(nn.Module):
    """Training objective of a score network: mean squared error of its prediction (denoising score matching).

    Arguments:
        network: as in `NetworkDenoiser`.
    """

    def __init__(self, network: nn.Module, sde: CosineSDE, prediction: Prediction) -> None:
        super().__init__()
        self.network, self.sde, self.prediction = network, sde, prediction

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z, noise, t = torch.nan_to_num(batch["x"]), batch["noise"], batch["t"]
        alpha, sigma = _like(self.sde.alpha(t), z), _like(self.sde.sigma(t), z)
        target = noise if self.prediction == "eps" else alpha * noise - sigma * z
        out = self.network(alpha * z + sigma * noise, t, batch["day"]).float()
        return {"loss": ((out - target) ** 2).mean()}


class GaussianDenoiser:
    """The exact denoiser of a Gaussian prior N(mean, covariance).

    d = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (z_t - alpha mean), by the eigenvectors of C.

    Arguments:
        mean: (D,), the flattened state.
        covariance: (D, D).
        sde: the perturbation kernel.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, sde: CosineSDE) -> None:
        self.mean, self.sde = mean, sde
        self.variance, self.vectors = torch.linalg.eigh(covariance)

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        departure = (z_t.flatten(1) - alpha * self.mean) @ self.vectors
        return (self.mean + (departure * gain) @ self.vectors.T).reshape(z_t.shape)
