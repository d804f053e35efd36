"""Reverse steps from noise to states, each a function of the denoiser alone.

* `predictor_corrector`, the published sampler: an exponential-integrator step, then Langevin corrections with step
  tau / mean(score^2) (Rozet & Louppe 2023, algorithm 4). With 512 steps equal in time from alpha = 1e-3, one
  correction and tau 0.5 it is the published protocol: noise of variance 1 at t = 1, corrections at the new time, the
  last at t = 0, the mean over the whole trajectory. It differs in two ways that change no distribution: members are
  drawn side by side, each with its own mean, and the noise is keyed.
* `ddim`: the non-Markovian steps of Song et al. 2021 with stochasticity eta: 0 deterministic, 1 ancestral.
* `heun`: deterministic and of second order, a trial step and its mending.
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
# A denoised state is a mean of states, and no standardised weather is so far from its mean: the rainiest day on record,
# 1.8 m, is some hundreds of standard deviations. The bound grows with sigma / alpha, which multiplies the error of a
# network that predicts the noise: harmless at the start, where a step heeds alpha d only.
LARGEST_STATE = 1000.0


class DivergenceError(FloatingPointError):
    """A member's denoised state is not finite, or farther out than any state.

    Arguments:
        member, frame: positions in the batch and in the trajectory.
        step: reverse step, from 0.
        departure: the largest value of that frame, in standard deviations.
    """

    def __init__(self, member: int, frame: int, step: int, departure: float) -> None:
        super().__init__(member, frame, step, departure)
        self.member, self.frame, self.step, self.departure = member, frame, step, departure

    def __str__(self) -> str:
        return (
            f"member {self.member} of the batch diverged at step {self.step}: its frame {self.frame} is "
            f"{self.departure:.3g} standard deviations from the mean"
        )


def sample(denoise: Denoiser, config: SamplerConfig, sde: CosineSDE, noise: Noise) -> Tensor:
    """Draw states.

    Arguments:
        denoise: (guided) denoiser.
        noise: step -> standard normal (B, L, Z, H, W); step 0 is the start, the corrections and stochastic steps
            follow in order.

    Returns:
        States at t = 0, (B, L, Z, H, W).

    Raises:
        DivergenceError: a member left the world.
    """
    start = noise(0)
    times = step_times(config, sde).to(start)
    z = start * sde.sigma(times[0])
    before: tuple[Tensor, Tensor] | None = None
    for step, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        held = partial(_refuse_divergence, denoise, sde, step)
        if config.kind == "predictor_corrector":
            z = predict(held, z, t, s, sde)
            for j in range(config.corrections):
                z = correct(held, z, s, sde, config.tau, noise(1 + step * config.corrections + j))
        elif config.kind == "multistep":
            d = held(z, t)
            z, before = multistep(d, before, z, t, s, sde), (d, t)
        elif config.kind == "heun" and step < config.steps - 1:
            z = heun(held, z, t, s, sde)
        else:
            eta = config.stochasticity if config.kind == "ddim" else 0.0
            z = ddim(held, z, t, s, sde, eta, partial(noise, step + 1))
    return z


def step_times(config: SamplerConfig, sde: CosineSDE) -> Tensor:
    """Times from the start to 0, (steps + 1,), float64."""
    first = min(1.0, sde.time_of_alpha(config.start_alpha))
    times = torch.linspace(first, 0.0, config.steps + 1, dtype=torch.float64)
    if config.spacing == "log_snr":
        low, high = sde.log_snr(times[[0, -1]]).tolist()
        inner = torch.linspace(low, high, config.steps + 1, dtype=torch.float64)[1:-1]
        times[1:-1] = sde.time_of_log_snr(inner)
    return times


def _refuse_divergence(denoise: Denoiser, sde: CosineSDE, step: int, z_t: Tensor, t: Tensor) -> Tensor:
    """d(z_t, t), if it can be one of a state; a single number is waited for."""
    d = denoise(z_t, t)
    bound = LARGEST_STATE * (1 + sde.sigma(t) / sde.alpha(t))
    if not bool(d.abs().amax() < bound):  # also where it is not a number
        farthest_BL = d.abs().flatten(2).amax(2)
        member, frame = (~(farthest_BL < bound)).nonzero()[0].tolist()
        raise DivergenceError(member, frame, step, farthest_BL[member, frame].item())
    return d


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


def heun(denoise: Denoiser, z_t: Tensor, t: Tensor, s: Tensor, sde: CosineSDE) -> Tensor:
    """One step t -> s along the angle phi = atan(sigma / alpha), where dz / dphi = v (Salimans & Ho 2022, appendix D).

    A step of DDIM shows v at the end; then z_s = z_t + tan((phi_s - phi_t) / 2) (v_t + v_s), in units of
    rho = sqrt(alpha^2 + sigma^2): the trapezoid rule, with the tangent for half the angle. So it is exact where state
    and noise stand still, as DDIM is, and for a standard normal prior, whose v is 0. (Heun's rule for z / alpha is not,
    and with 8 steps overshoots the covariance by its own size.)
    """

    def turning(z: Tensor, t: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        rho = torch.hypot(alpha, sigma)
        return rho, torch.atan2(sigma, alpha), (alpha / rho * z - rho * d) / sigma

    d = denoise(z_t, t)
    trial = sde.alpha(s) * d + sde.sigma(s) / sde.sigma(t) * (z_t - sde.alpha(t) * d)
    rho_t, phi_t, v_t = turning(z_t, t, d)
    rho_s, phi_s, v_s = turning(trial, s, denoise(trial, s))
    return rho_s * (z_t / rho_t + torch.tan((phi_s - phi_t) / 2) * (v_t + v_s))


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
