"""Denoisers: d(z_t, t) ~ E[z | z_t], from which eps = (z_t - alpha d) / sigma and score = -eps / sigma.

A denoiser is any callable (z_t (B, L, Z, H, W), t ()) -> d of the same shape. `NetworkDenoiser` makes one of a
network, by what the network predicts: ``eps`` (the published choice) or ``v`` = alpha eps - sigma z (Salimans & Ho
2022), whose scale is the same at every noise level. `GaussianDenoiser` is exact for a Gaussian prior: the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from slams.sde import CosineSDE

Denoiser = Callable[[Tensor, Tensor], Tensor]
Prediction = Literal["eps", "v"]


class Background(NamedTuple):
    """A first guess of the day before each window, in standardised latents, where there is one.

    Arguments:
        z_BZHW: the state; anything where not known.
        known_B: whether a window has it.
    """

    z_BZHW: Tensor
    known_B: Tensor


def _like(value_B: Tensor, x: Tensor) -> Tensor:
    return value_B.reshape(-1, *(1,) * (x.ndim - 1))


class NetworkDenoiser:
    """d(z_t, t, day[, background]) from a network's prediction.

    Arguments:
        network: (z_t (B, L, Z, H, W), t (B,), day (B, L, 5)[, background]) -> prediction.
        sde: the perturbation kernel.
        prediction: what the network predicts.
    """

    def __init__(self, network: nn.Module, sde: CosineSDE, prediction: Prediction) -> None:
        self.network, self.sde, self.prediction = network, sde, prediction

    def __call__(self, z_t: Tensor, t: Tensor, day_BL5: Tensor, background: Background | None = None) -> Tensor:
        t_B = t.expand(len(z_t))
        alpha, sigma = _like(self.sde.alpha(t_B), z_t), _like(self.sde.sigma(t_B), z_t)
        given = () if background is None else (background,)
        out = self.network(z_t, t_B, day_BL5, *given).to(z_t.dtype)
        if self.prediction == "eps":
            return (z_t - sigma * out) / alpha
        return (alpha * z_t - sigma * out) / (alpha**2 + sigma**2)


class ScoreTask(nn.Module):
    """Training objective of a score network: mean squared error of its prediction (denoising score matching).

    With `draw_error` the first frame of a batch is no part of the window: it is the day before it, which with an error
    added becomes the background, dropped at random, so that one network learns the prior with and without it.

    Arguments:
        network: as in `NetworkDenoiser`.
        draw_error: white noise (B, Z, H, W) -> error of a background; None where there is no background.
        dropped: share of the windows that are given none.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: CosineSDE,
        prediction: Prediction,
        draw_error: Callable[[Tensor], Tensor] | None = None,
        dropped: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.sde, self.prediction = network, sde, prediction
        self.draw_error, self.dropped = draw_error, dropped

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z, noise, t = torch.nan_to_num(batch["x"]), batch["noise"], batch["t"]
        given: tuple[Background, ...] = ()
        if self.draw_error is not None:
            known = batch["chance"] >= self.dropped
            given = (Background(z[:, 0] + self.draw_error(noise[:, 0]), known),)
            z, noise = z[:, 1:], noise[:, 1:]
        alpha, sigma = _like(self.sde.alpha(t), z), _like(self.sde.sigma(t), z)
        target = noise if self.prediction == "eps" else alpha * noise - sigma * z
        out = self.network(alpha * z + sigma * noise, t, batch["day"], *given).float()
        each = ((out - target) ** 2).flatten(1).mean(dim=1)
        return {"loss": each.mean(), "each": each.detach()}


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
