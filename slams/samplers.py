"""Reverse steps from noise to states, each a function of the denoiser alone.

* `predictor_corrector`, the published sampler: an exponential-integrator step, then Langevin corrections with step
  tau / mean(score^2) (Rozet & Louppe 2023, algorithm 4).
* `ddim`: the non-Markovian steps of Song et al. 2021 with stochasticity eta: 0 deterministic, 1 ancestral.
* `multistep`: deterministic and of second order, by extrapolating the denoised state from the step before: the cost
  of `ddim`, and far less of the spread lost to few steps.

Noise comes from a function of the step, so that who draws it, and beside whom, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from slams.denoise import Denoiser
from slams.posterior import SamplerConfig
from slams.sde import CosineSDE

Noise = Callable[[int], Tensor]
QUADRATURE_NODES = 513


def sample(denoise: Denoiser, config: SamplerConfig, sde: CosineSDE, noise: Noise) -> Tensor:
    """Draw states.

    Arguments:
        denoise: (guided) denoiser.
        noise: step -> standard normal (B, L, Z, H, W); step 0 is the start, the corrections and stochastic steps
            follow in order.

    Returns:
        States at t = 0, (B, L, Z, H, W).
    """
    start = noise(0)
    first = min(1.0, sde.time_of_alpha(config.start_alpha))
    times = torch.linspace(first, 0.0, config.steps + 1, dtype=start.dtype, device=start.device)
    z = start * sde.sigma(times[0])
    before: tuple[Tensor, Tensor] | None = None
    for step, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if config.kind == "ddim":
            z = ddim(denoise, z, t, s, sde, config.stochasticity, partial(noise, step + 1))
        elif config.kind == "multistep":
            d = denoise(z, t)
            z, before = multistep(d, before, z, t, s, sde), (d, t)
        else:
            z = predict(denoise, z, t, s, sde)
            for j in range(config.corrections):
                z = correct(denoise, z, s, sde, config.tau, noise(1 + step * config.corrections + j))
    return z


def ddim(
    denoise: Denoiser, z_t: Tensor, t: Tensor, s: Tensor, sde: CosineSDE, eta: float, noise: Callable[[], Tensor]
) -> Tensor:
    """One step t -> s: z_s = alpha_s d + sigma_s (sqrt(1 - tau) eps + sqrt(tau) noise) (Song et al. 2021, eq. 12)."""
    d = denoise(z_t, t)
    eps = (z_t - sde.alpha(t) * d) / sde.sigma(t)
    ratio = (sde.alpha(t) * sde.sigma(s)) / (sde.alpha(s) * sde.sigma(t))
    tau = eta * (1 - ratio**2)
    if eta > 0:
        eps = torch.sqrt(1 - tau) * eps + torch.sqrt(tau) * noise()
    return sde.alpha(s) * d + sde.sigma(s) * eps


def multistep(
    d: Tensor, before: tuple[Tensor, Tensor] | None, z_t: Tensor, t: Tensor, s: Tensor, sde: CosineSDE
) -> Tensor:
    """One step t -> s of the exact solution z_s / sigma_s = z_t / sigma_t + integral of D d(alpha / sigma), with D the
    line in t through the denoised state d and the one before (an exponential Adams-Bashforth step; Zhang & Chen 2023).
    """
    u_t, u_s = sde.alpha(t) / sde.sigma(t), sde.alpha(s) / sde.sigma(s)
    z = sde.sigma(s) / sde.sigma(t) * z_t + sde.sigma(s) * (u_s - u_t) * d
    if before is None:
        return z
    d_before, t_before = before
    # Integral of (t' - t) du by parts, on nodes that crowd towards t = 0, where u = alpha / sigma is steep.
    nodes = s + (t - s) * torch.linspace(0, 1, QUADRATURE_NODES, dtype=torch.float64, device=t.device) ** 2
    area = -torch.trapezoid(sde.alpha(nodes) / sde.sigma(nodes), nodes)
    moment = (s - t) * u_s - area.to(t.dtype)
    return z + sde.sigma(s) * moment * (d - d_before) / (t - t_before)


def predict(denoise: Denoiser, z_t: Tensor, t: Tensor, s: Tensor, sde: CosineSDE) -> Tensor:
    """Exponential integrator: z_s = r z_t + (sigma_s - r sigma_t) eps, r = alpha_s / alpha_t."""
    eps = (z_t - sde.alpha(t) * denoise(z_t, t)) / sde.sigma(t)
    ratio = sde.alpha(s) / sde.alpha(t)
    return ratio * z_t + (sde.sigma(s) - ratio * sde.sigma(t)) * eps


def correct(denoise: Denoiser, z_s: Tensor, s: Tensor, sde: CosineSDE, tau: float, noise: Tensor) -> Tensor:
    """Langevin: z += delta score + sqrt(2 delta) noise, delta = tau / mean(score^2) over the trajectory."""
    eps = (z_s - sde.alpha(s) * denoise(z_s, s)) / sde.sigma(s)
    mean_square = (eps**2).mean(dim=tuple(range(1, eps.ndim)), keepdim=True)
    delta = tau / mean_square
    return z_s - sde.sigma(s) * (delta * eps + torch.sqrt(2 * delta) * noise)
