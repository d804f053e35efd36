"""Guidance: a denoiser of the posterior, made of a denoiser of the prior and a likelihood.

With p(y | z_t) ~ N(y; h(d(z_t)), R + J V J'), J the Jacobian of h, V = Cov[z | z_t], the guided denoiser is
d + (sigma^2 / alpha) grad log p(y | z_t). The kinds differ in J V J':

* ``sda``: gamma (sigma / alpha)^2 (Rozet & Louppe 2023), the published choice;
* ``mmps``: V = (sigma^2 / alpha) d d / d z_t (Tweedie), and (R + J V J') u = y - h(d) is solved by a few conjugate
  gradient steps without ever forming a matrix (Rozet et al. 2024).
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
    """p(y | z) = N(y; h(z), diag(std^2)).

    Arguments:
        predict: h, from states z (B, L, Z, H, W) to (B, N).
        y_N: what was observed.
        std_N: standard deviation of its error.
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
    if config.kind == "sda":
        return lambda z_t, t: _sda(denoise, likelihood, config.gamma, sde, z_t, t)
    return lambda z_t, t: _mmps(denoise, likelihood, config.iterations, sde, z_t, t)


def _sda(denoise: Denoiser, seen: Likelihood, gamma: float, sde: CosineSDE, z_t: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        d = denoise(z, t)
        variance = seen.std_N**2 + gamma * (sigma / alpha * seen.scale_N) ** 2
        log_p = -((seen.y_N - seen.predict(d)) ** 2 / variance).sum() / 2
        (gradient,) = torch.autograd.grad(log_p, z)
    return d.detach() + sigma**2 / alpha * gradient


def _mmps(denoise: Denoiser, seen: Likelihood, iterations: int, sde: CosineSDE, z_t: Tensor, t: Tensor) -> Tensor:
    """The system is solved for whitened residuals, (I + S J V J' S) S^-1 u = S (y - h(d)), S = 1 / std."""
    gain = sde.sigma(t) ** 2 / sde.alpha(t)
    with torch.enable_grad():
        z = z_t.detach().requires_grad_()
        d = denoise(z, t)
        state = d.detach().requires_grad_()
        predicted = seen.predict(state) / seen.std_N
        probe = torch.zeros_like(predicted, requires_grad=True)
        (pulled,) = torch.autograd.grad(predicted, state, probe, create_graph=True)

    def pull(u: Tensor) -> Tensor:  # V J' u, one network and one decoder VJP
        (back,) = torch.autograd.grad(predicted, state, u, retain_graph=True)
        return gain * torch.autograd.grad(d, z, back, retain_graph=True)[0]

    def push(v: Tensor) -> Tensor:  # J v: the derivative of J' u by u, applied to v
        return torch.autograd.grad(pulled, probe, v, retain_graph=True)[0]

    residual = seen.y_N / seen.std_N - predicted.detach()
    u = conjugate_gradients(lambda u: u + push(pull(u)), residual, iterations)
    return d.detach() + pull(u)


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
