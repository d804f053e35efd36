"""The same schedule, denoiser and noise in azula (The Probabilists, MIT licence): samplers and guidance, to the digit.

Conventions that differ, and how they are brought together, stand with each test. Not comparable: azula has neither SDA
nor the paper's corrector (test_oracle.py holds both to the published loop), and its corrector has a fixed size and
comes before the predictor.
"""

import pytest
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.denoise import GaussianDenoiser as AzulaGaussian
from azula.guidance import DPSSampler, MMPSDenoiser, PGDMSampler
from azula.linalg.covariance import DiagonalCovariance, FullCovariance
from azula.noise import Schedule
from azula.sample import DDIMSampler, DDPMSampler, EulerSampler, HeunSampler, xEABSampler
from gaussian import COVARIANCE, SDE, SHAPE, SPARSE, D, Problem, drawn, from_pure_noise, two_modalities

from slams.guidance import Likelihood, guided
from slams.posterior import GuidanceConfig
from slams.samplers import ddim, sample, step_times

STEPS, MEMBERS = 8, 3
SHAPES = (MEMBERS, *SHAPE)
TIMES = torch.tensor([0.95, 0.5, 0.1, 0.01], dtype=torch.float64)
TWO = Problem(COVARIANCE, two_modalities, torch.cat([torch.full((12,), 4.0), torch.full((20,), 0.1)]).double())


class Kernel(Schedule):
    def __call__(self, t):
        return SDE.alpha(t), SDE.sigma(t)


class Ours(Denoiser):
    """One of our denoisers, as azula sees it."""

    def __init__(self, denoise):
        super().__init__()
        self.denoise, self.schedule = denoise, Kernel()

    def forward(self, x_t, t):
        return DiracPosterior(self.denoise(x_t, t))


def states(key=11):
    return drawn(key, MEMBERS * D).reshape(SHAPES)


def replayed(seed):
    """Our noise from the generator that azula draws with: the start, then one draw a step."""
    torch.manual_seed(seed)
    rest = [torch.randn(SHAPES, dtype=torch.float64) for _ in range(STEPS)]
    torch.manual_seed(seed)
    return lambda step: states() if step == 0 else rest[step - 1]


def ours(sampler):
    return sample(SPARSE.exact, sampler, SDE, replayed(0))


def theirs(kind, **options):
    """azula leaves the start to the caller, ours is noise of std sigma(1), which is 1."""
    sampler = kind(Ours(SPARSE.exact), steps=STEPS, silent=True, dtype=torch.float64, **options)
    return sampler(states())


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", TIMES)
def test_the_gaussian_denoiser(t):
    """azula solves with the covariance of z_t, d = (z_t - sigma^2 C_t^-1 (z_t - alpha m)) / alpha."""
    variance, vectors = torch.linalg.eigh(SPARSE.posterior)
    other = AzulaGaussian(SPARSE.mean, FullCovariance(vectors, variance), Kernel())
    close(SPARSE.exact(states(), t).flatten(1), other(states().flatten(1), t).mean, 1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(eta):
    close(ours(from_pure_noise("ddim", steps=STEPS, stochasticity=eta)), theirs(DDIMSampler, eta=eta))


def test_ancestral_steps():
    close(ours(from_pure_noise("ddim", steps=STEPS, stochasticity=1.0)), theirs(DDPMSampler))


def test_the_predictor_without_corrections():
    """The paper's exponential integrator is Euler's step for z / alpha, and DDIM without noise."""
    close(ours(from_pure_noise("predictor_corrector", steps=STEPS, corrections=0)), theirs(EulerSampler))


@pytest.mark.parametrize(("kind", "other"), [("heun", HeunSampler), ("multistep", xEABSampler)])
def test_second_order_samplers_in_the_limit(kind, other):
    """azula's Heun steps z / alpha along sigma / alpha, ours along the angle; its multistep line is straight in
    log(sigma / alpha), ours in t: different discretisations of one flow, which must meet."""
    steps = 2000
    end = sample(SPARSE.exact, from_pure_noise(kind, steps=steps), SDE, lambda step: states())
    sampler = other(Ours(SPARSE.exact), steps=steps, silent=True, dtype=torch.float64)
    close(end, sampler(states()), 1e-4)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("iterations", [1, 3, 12])
def test_covariance_guidance_at_every_number_of_iterations(t, iterations):
    """azula does not whiten the system; with one error for all observations the iterations are the same."""
    other = MMPSDenoiser(
        Ours(SPARSE.prior), SPARSE.y_N, SPARSE.predict, DiagonalCovariance(SPARSE.std_N**2), "cg", iterations
    )
    found = guided(SPARSE.prior, SPARSE.likelihood, GuidanceConfig("mmps", iterations=iterations), SDE)
    close(found(states(), t), other(states(), t).mean, 1e-6)


@pytest.mark.parametrize("t", TIMES)
def test_covariance_guidance_of_two_modalities(t):
    """Whitened or not, conjugate gradients or GMRES, the solution is one."""
    other = MMPSDenoiser(Ours(TWO.prior), TWO.y_N, TWO.predict, DiagonalCovariance(TWO.std_N**2), "gmres", len(TWO.y_N))
    found = guided(TWO.prior, TWO.likelihood, GuidanceConfig("mmps", iterations=96), SDE)
    close(found(states(), t), other(states(), t).mean, 1e-6)


def weight_of_d(t, s, eta):
    """d z_s / d d of a DDIM step, which turns a change of the denoised state into one of the step."""
    kept = torch.sqrt(1 - eta * (1 - (SDE.alpha(t) * SDE.sigma(s) / (SDE.alpha(s) * SDE.sigma(t))) ** 2))
    return SDE.alpha(s) - SDE.sigma(s) * kept * SDE.alpha(t) / SDE.sigma(t)


@pytest.mark.parametrize("step", range(STEPS))
def test_diffusion_posterior_sampling(step):
    """azula's zeta, like the paper's, is a step of z_s whatever s; ours is a weight of the score. It takes one norm
    over the batch (hence members one by one), and does not divide by the observation error."""
    t, s = step_times(from_pure_noise("ddim", steps=STEPS), SDE)[step : step + 2]
    zeta, std = 0.7, SPARSE.std_N[0]
    step_of_z = zeta * weight_of_d(t, s, 1.0) * SDE.sigma(t) ** 2 / SDE.alpha(t) / std
    denoise = guided(SPARSE.prior, SPARSE.likelihood, GuidanceConfig("dps", zeta=zeta), SDE)
    for z in states().split(1):
        torch.manual_seed(1)
        noise = torch.randn_like(z)
        torch.manual_seed(1)
        other = DPSSampler(Ours(SPARSE.prior), SPARSE.y_N, SPARSE.predict, zeta=step_of_z, silent=True)
        close(ddim(denoise, z, t, s, SDE, 1.0, lambda noise=noise: noise), other.step(z, t, s))


@pytest.mark.parametrize("step", range(STEPS))
def test_pseudo_inverse_guidance(step):
    """azula's is for observations without error, given the operator's pseudo-inverse, and adds alpha_s alpha_t times
    the gradient to z_s; ours adds (alpha^2 + sigma^2) / alpha of it to d."""
    t, s = step_times(from_pure_noise("ddim", steps=STEPS), SDE)[step : step + 2]
    inverse = torch.linalg.pinv(SPARSE.matrix)
    likelihood = Likelihood(SPARSE.predict, SPARSE.y_N, torch.full_like(SPARSE.std_N, 1e-7), SPARSE.std_N)
    denoise = guided(SPARSE.prior, likelihood, GuidanceConfig("pgdm", iterations=12), SDE)
    z = states()
    other = PGDMSampler(
        Ours(SPARSE.prior), SPARSE.y_N, SPARSE.predict, lambda y: (y @ inverse.T).reshape(-1, *SHAPE), silent=True
    )
    gradient = (other.step(z, t, s) - ddim(SPARSE.prior, z, t, s, SDE, 0.0, lambda: z)) / (SDE.alpha(s) * SDE.alpha(t))
    added = (SDE.alpha(t) ** 2 + SDE.sigma(t) ** 2) / SDE.alpha(t) * gradient
    close(denoise(z, t), SPARSE.prior(z, t) + added, 1e-6)
