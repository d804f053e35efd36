"""Guidance: a denoiser of the posterior, made of a denoiser of the prior and a likelihood.

With p(y | z_t) ~ N(y; h(d(z_t)), R + J V J'), J the Jacobian of h, V = Cov[z | z_t], the guided denoiser is
d + (sigma^2 / alpha) grad log p(y | z_t). The kinds differ in J V J':

* ``sda``: gamma (sigma / alpha)^2 (Rozet & Louppe 2023), the published choice;
* ``dps``: none, and the gradient of |r|^2 / 2, r = (y - h(d)) / std, is scaled by zeta / |r| (Chung et al. 2023, whose
  own step, after the sampler's and whatever its length, makes zeta depend on the number of steps: here it does not);
* ``pgdm``: V = sigma^2 / (alpha^2 + sigma^2) I, right for independent latents of unit variance (Song et al. 2023);
* ``mmps``: V = (sigma^2 / alpha) d d / d z_t (Tweedie; Rozet et al. 2024).

The last two solve (R + J V J') u = y - h(d) by a few conjugate gradient steps without ever forming a matrix, whatever
h is and however many sets of observations it stacks, and take (d d / d z_t)' J' u as the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.denoise import Denoiser
from slams.posterior import GuidanceConfig
from slams.sde import CosineSDE


@dataclass(frozen=True)
class Likelihood:
    """p(y | z) = N(y; h(z), diag(std^2)): all observations in one stack, in whatever units each has.

    Arguments:
        predict: h, from states z (B, L, Z, H, W) to (B, N).
        y_N: what was observed.
        std_N: standard deviation of its error; infinite where it says nothing.
        scale_N: prior standard deviation of the observed quantity, the unit in which `gamma` counts.
    """

    predict: Callable[[Tensor], Tensor]
    y_N: Tensor
    std_N: Tensor
    scale_N: Tensor


def guided(denoise: Denoiser, likelihood: Likelihood, config: GuidanceConfig, sde: CosineSDE) -> Denoiser:
    """The posterior's denoiser."""
    if config.kind == "none":
        return denoise
    score = {"sda": _sda, "dps": _dps, "pgdm": _with_covariance, "mmps": _with_covariance}[config.kind]
    return lambda z_t, t: score(denoise, likelihood, config, sde, z_t, t)


def _sda(denoise: Denoiser, seen: Likelihood, config: GuidanceConfig, sde: CosineSDE, z_t: Tensor, t: Tensor) -> Tensor:
    variance = seen.std_N**2 + config.gamma * (sde.sigma(t) / sde.alpha(t) * seen.scale_N) ** 2
    return _uphill(denoise, lambda d: -((seen.y_N - seen.predict(d)) ** 2 / variance).sum() / 2, sde, z_t, t)


def _dps(denoise: Denoiser, seen: Likelihood, config: GuidanceConfig, sde: CosineSDE, z_t: Tensor, t: Tensor) -> Tensor:
    def log_p(d: Tensor) -> Tensor:  # its gradient is that of -|r|^2 / 2, times zeta / |r|
        residual = seen.y_N / seen.std_N - seen.predict(d) / seen.std_N
        return -config.zeta * torch.linalg.vector_norm(residual, dim=1).sum()

    return _uphill(denoise, log_p, sde, z_t, t)


def _uphill(denoise: Denoiser, log_p: Callable[[Tensor], Tensor], sde: CosineSDE, z_t: Tensor, t: Tensor) -> Tensor:
    """d + (sigma^2 / alpha) times the gradient of log p(d(z_t))."""
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        d = denoise(z, t)
        (gradient,) = torch.autograd.grad(log_p(d), z)
    return d.detach() + sde.sigma(t) ** 2 / sde.alpha(t) * gradient


def _with_covariance(
    denoise: Denoiser, seen: Likelihood, config: GuidanceConfig, sde: CosineSDE, z_t: Tensor, t: Tensor
) -> Tensor:
    """The system is solved for whitened residuals, (I + S J V J' S) S^-1 u = S (y - h(d)), S = 1 / std."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        d = denoise(z, t)
        state = d.detach().requires_grad_()
        predicted = seen.predict(state) / seen.std_N
        probe = torch.zeros_like(predicted, requires_grad=True)
        (pulled,) = torch.autograd.grad(predicted, state, probe, create_graph=True)

    def back(u: Tensor) -> Tensor:  # J' u: one VJP of decoder and operators
        return torch.autograd.grad(predicted, state, u, retain_graph=True)[0]

    def forth(v: Tensor) -> Tensor:  # J v: the derivative of J' u by u, applied to v
        return torch.autograd.grad(pulled, probe, v, retain_graph=True)[0]

    def tweedie(v: Tensor) -> Tensor:  # (sigma^2 / alpha) (d d / d z_t)' v: one VJP of the network
        return sigma**2 / alpha * torch.autograd.grad(d, z, v, retain_graph=True)[0]

    def isotropic(v: Tensor) -> Tensor:
        return sigma**2 / (alpha**2 + sigma**2) * v

    covariance = tweedie if config.kind == "mmps" else isotropic
    residual = seen.y_N / seen.std_N - predicted.detach()
    u = conjugate_gradients(lambda u: u + forth(covariance(back(u))), residual, config.iterations)
    return d.detach() + tweedie(back(u))


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b_BN: Tensor, iterations: int) -> Tensor:
    """Solve A u = b for each row, A = I + a covariance, from u = 0 (Hestenes & Stiefel 1952).

    A learned Jacobian is only nearly a covariance, and may even seem negative in places: the curvature along a
    direction p is therefore held to what the identity alone gives, p'p, which bounds the step.
    """
    u, r = torch.zeros_like(b_BN), b_BN
    p, rr = r, (r * r).sum(1, keepdim=True)
    for _ in range(iterations):
        a_p = apply(p)
        curvature = torch.maximum((p * a_p).sum(1, keepdim=True), (p * p).sum(1, keepdim=True))
        step = rr / curvature.clamp_min(torch.finfo(rr.dtype).tiny)
        u, r = u + step * p, r - step * a_p
        new = (r * r).sum(1, keepdim=True)
        p = r + new / rr.clamp_min(torch.finfo(rr.dtype).tiny) * p
        rr = new
    return u
