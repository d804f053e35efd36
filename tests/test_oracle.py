"""The sampler and its guidance against exact answers: with a Gaussian prior the posterior is a formula (gaussian.py).

Most answers here carry no sampling error: a deterministic sampler of a linear problem is an affine map, and its matrix
gives the mean and covariance that it draws. Where members are drawn, the error of as many exact draws is known too.
"""

import inspect
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from gaussian import (
    COVARIANCE,
    EXACT,
    SDE,
    SHAPE,
    SPARSE,
    D,
    N,
    Problem,
    drawn,
    every_noise,
    from_pure_noise,
    keyed_noise,
    moments,
    sparse,
    two_modalities,
)

from slams import guidance, samplers
from slams.denoise import GaussianDenoiser
from slams.guidance import Likelihood, conjugate_gradients, guided
from slams.posterior import GuidanceConfig, SamplerConfig, Work, network_work
from slams.samplers import ddim, heun, sample, step_times

KINDS = ("none", "sda", "dps", "pgdm", "mmps")
SAMPLERS = ("predictor_corrector", "ddim", "heun", "multistep")
TIMES = torch.tensor([1.0, 0.9, 0.5, 0.1, 0.01], dtype=torch.float64)
CHEAP = from_pure_noise("multistep", steps=32)
MEAN_BOUND, COVARIANCE_BOUND = 0.05, 0.10
ONE_STD = torch.full((N,), 0.3).double()
TWO_STD = torch.cat([torch.full((12,), 4.0), torch.full((20,), 0.1)]).double()
TWO = Problem(COVARIANCE, two_modalities, TWO_STD)
WHITE = Problem(torch.eye(D).double(), two_modalities, TWO_STD)


def states(n=3):
    return drawn(3, n * D).reshape(n, *SHAPE)


def assert_denoises_exactly(problem, config):
    posterior = guided(problem.prior, problem.likelihood, config, SDE)
    for t in TIMES:
        torch.testing.assert_close(posterior(states(), t), problem.exact(states(), t), rtol=1e-6, atol=1e-6)


# Guidance


@pytest.mark.parametrize("problem", [SPARSE, TWO], ids=["sparse", "two modalities"])
def test_covariance_guidance_is_the_exact_posterior_denoiser(problem):
    assert_denoises_exactly(problem, GuidanceConfig("mmps", iterations=3 * len(problem.y_N)))


def test_pseudo_inverse_guidance_is_exact_where_the_prior_is_white_and_nowhere_else():
    assert_denoises_exactly(WHITE, GuidanceConfig("pgdm", iterations=3 * len(TWO_STD)))
    with pytest.raises(AssertionError):
        assert_denoises_exactly(TWO, GuidanceConfig("pgdm", iterations=3 * len(TWO_STD)))


def test_two_thousand_members_have_the_exact_mean_and_covariance():
    """Two modalities, with operators, units and errors of their own. Of the errors (0.015 and 0.040 here), 0.014 and
    0.042 are what 2,000 exact draws have; the rest is that of 32 steps."""
    members = 2000
    sampling = TWO.sampling_error(members)
    z = TWO.draw(
        GuidanceConfig("mmps", iterations=16), from_pure_noise("multistep", steps=16), keyed_noise(range(members))
    )
    mean_error, covariance_error = TWO.errors_of(z)
    assert mean_error < min(MEAN_BOUND, 2 * sampling[0])
    assert covariance_error < min(COVARIANCE_BOUND, 1.5 * sampling[1])


def within_bounds(kind="mmps"):
    """Of moments without sampling error; the covariance's bound is what it leaves to 2,000 members."""
    mean, covariance = SPARSE.errors(*moments(SPARSE, replace(EXACT, kind=kind), CHEAP))
    return mean < MEAN_BOUND and covariance < COVARIANCE_BOUND - SPARSE.sampling_error(2000)[1]


FAULTS = {
    "none": ("back", "back"),
    "1/alpha forgotten in the covariance": ("sigma**2 / alpha * torch", "sigma**2 * torch"),
    "identity as the prior's covariance": (
        'tweedie if config.kind == "mmps" else isotropic',
        "lambda v: sigma**2 / alpha**2 * v",
    ),
    "network's Jacobian forgotten in the gradient": (
        "d.detach() + tweedie(back(u))",
        "d.detach() + sigma**2 / alpha * back(u)",
    ),
    "standard deviation used as variance": ("seen.std_N", "seen.std_N**0.5"),
    "residual's sign flipped": (
        "seen.y_N / seen.std_N - predicted.detach()",
        "predicted.detach() - seen.y_N / seen.std_N",
    ),
    "prior's covariance forgotten in the system": ("u + forth(covariance(back(u)))", "u"),
}


def plant(monkeypatch, module, name, right, wrong):
    source = inspect.getsource(getattr(module, name))
    assert right in source
    scope = dict(vars(module))
    exec("from __future__ import annotations\n" + source.replace(right, wrong), scope)
    monkeypatch.setattr(module, name, scope[name])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(fault, monkeypatch):
    plant(monkeypatch, guidance, "_with_covariance", *FAULTS[fault])
    assert within_bounds() == (fault == "none")


@pytest.mark.parametrize("scale", ["1.0", "0.9"])
def test_injected_noise_of_another_size_is_refused(scale, monkeypatch):
    plant(monkeypatch, samplers, "ddim", "torch.sqrt(tau) * noise()", f"{scale} * torch.sqrt(tau) * noise()")
    assert (spread_error(from_pure_noise("ddim", steps=128, stochasticity=1.0)) < 0.05) == (scale == "1.0")


@pytest.mark.parametrize(
    ("config", "mean_error", "covariance_error"),
    [
        (GuidanceConfig("sda", gamma=0.01), 0.169, 0.104),
        (GuidanceConfig("sda", gamma=0.1), 0.131, 0.031),
        (GuidanceConfig("sda", gamma=1.0), 0.453, 0.380),
        (GuidanceConfig("pgdm", iterations=N), 0.369, 0.117),
    ],
)
def test_cheaper_guidance_has_the_bias_that_is_known_of_it(config, mean_error, covariance_error):
    """In the limit of many deterministic steps. ``sda`` takes J V J' for a multiple of the identity, larger than it is
    at the end or smaller at the start, whatever gamma: 12 observations of correlated values count as independent, or
    too little. ``pgdm`` is right in each value's variance but sees no correlation at all."""
    mean, covariance = SPARSE.errors(*moments(SPARSE, config, from_pure_noise("heun", steps=64)))
    assert mean == pytest.approx(mean_error, abs=0.002)
    assert covariance == pytest.approx(covariance_error, abs=0.002)


@pytest.mark.parametrize(
    ("zeta", "mean_error", "covariance_error"), [(0.3, 0.230, 0.416), (1.0, 0.277, 0.144), (3.0, 0.339, 0.136)]
)
def test_the_normalised_step_has_the_bias_that_is_known_of_it(zeta, mean_error, covariance_error):
    """``dps`` follows the residual's direction with a weight zeta / |r| that is set by hand, not by the errors: the
    posterior's width along the observations is not that of the problem. It is not affine: 500 members, whose own
    errors are 0.036 and 0.109."""
    z = SPARSE.draw(GuidanceConfig("dps", zeta=zeta), from_pure_noise("multistep", steps=64), keyed_noise(range(500)))
    found = SPARSE.errors_of(z)
    assert found == pytest.approx((mean_error, covariance_error), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_no_observations_and_worthless_ones_leave_the_prior(kind):
    nothing = Likelihood(lambda z: sparse(z)[:, :0], *3 * [torch.zeros(0).double()])
    worthless = replace(SPARSE.likelihood, std_N=torch.full((N,), torch.inf).double())
    for likelihood in (nothing, worthless):
        denoise = guided(SPARSE.prior, likelihood, GuidanceConfig(kind), SDE)
        for t in TIMES:
            torch.testing.assert_close(denoise(states(), t), SPARSE.prior(states(), t))


def test_unguided_draws_are_from_the_prior():
    none = GuidanceConfig("none")
    mean, covariance = moments(SPARSE, none, from_pure_noise("heun", steps=64))
    assert mean.abs().max() < 1e-9
    assert (covariance - COVARIANCE).norm() / COVARIANCE.norm() < 0.002


def test_conjugate_gradients_solve_the_system():
    root = drawn(5, 3 * 12 * 12).reshape(3, 12, 12)
    matrices = root @ root.mT + torch.eye(12)
    b = drawn(6, 3 * 12).reshape(3, 12)
    u = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 24)
    torch.testing.assert_close(u, torch.linalg.solve(matrices, b), rtol=1e-6, atol=1e-6)


def test_the_exact_denoiser_is_the_conditional_mean():
    """By the joint covariance of z and z_t, in one solve."""
    for t in TIMES:
        alpha, sigma = SDE.alpha(t), SDE.sigma(t)
        noisy = alpha**2 * SPARSE.posterior + sigma**2 * torch.eye(D)
        z_t = states().flatten(1)
        d = SPARSE.mean + alpha * (z_t - alpha * SPARSE.mean) @ torch.linalg.solve(noisy, SPARSE.posterior)
        torch.testing.assert_close(SPARSE.exact(states(), t).flatten(1), d)


# Samplers


def spread_error(sampler, std=None):
    """Error of the covariance drawn with the exact denoiser, in units of the posterior's; no sampling error.

    In the covariance's eigenvectors its D values are drawn apart, so that one run tells the weight of each step's
    noise in each of them. `std` puts another posterior in place of the sparse problem's.
    """
    variance = torch.linalg.eigvalsh(SPARSE.posterior).clamp_min(0) if std is None else torch.full((D,), std**2)
    exact = GaussianDenoiser(torch.zeros(D).double(), torch.diag(variance).double(), SDE)
    z = sample(exact, sampler, SDE, every_noise((1, D, 1, 1), sampler)).flatten(1)
    return (((z[1:] - z[0]) ** 2).sum(0) - variance).norm().item() / variance.norm().item()


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize(
    ("kind", "eta", "ratio"),
    [("ddim", 0.0, 0.6), ("ddim", 0.5, 0.6), ("ddim", 1.0, 0.6), ("heun", 0.0, 0.3), ("multistep", 0.0, 0.35)],
)
def test_twice_the_steps_halve_the_error_or_quarter_it(kind, eta, ratio, spacing):
    """First order and second; stored errors of the covariance are in the test below."""
    steps = (32, 64, 128)
    errors = [spread_error(from_pure_noise(kind, steps=n, stochasticity=eta, spacing=spacing)) for n in steps]
    assert errors[1] < ratio * errors[0] and errors[2] < ratio * errors[1]


@pytest.mark.parametrize(
    ("kind", "spacing", "broad", "narrow"),
    [
        ("ddim", "time", 0.174, 0.873),
        ("ddim", "log_snr", 0.351, 0.350),
        ("heun", "time", 0.020, 0.865),
        ("heun", "log_snr", 0.089, 0.239),
        ("multistep", "time", 0.031, 0.734),
        ("multistep", "log_snr", 0.306, 0.166),
    ],
)
def test_each_spacing_serves_its_posterior(kind, spacing, broad, narrow):
    """Error of the covariance with 16 steps, in its own units: time for the sparse problem's posterior, whose variance
    is in the large scales; log_snr for one of 0.05 prior standard deviations everywhere, as dense accurate
    observations leave it. (Steps equal in the angle atan(sigma / alpha) lie between the two for both.)"""
    sampler = from_pure_noise(kind, steps=16, spacing=spacing)
    assert spread_error(sampler) == pytest.approx(broad, abs=0.005)
    assert spread_error(sampler, std=0.05) == pytest.approx(narrow, abs=0.005)


def test_ancestral_steps_have_the_posterior_variance_of_the_forward_process():
    """eta = 1: mean and variance of q(z_s | z_t, z), by Bayes' rule for z_t = (alpha_t / alpha_s) z_s + noise."""
    z, z_t, noise = drawn(7, D).reshape(1, *SHAPE), drawn(8, D).reshape(1, *SHAPE), drawn(9, D).reshape(1, *SHAPE)
    for t, s in ((0.9, 0.7), (0.5, 0.45), (0.05, 0.0)):
        t, s = torch.tensor([t, s], dtype=torch.float64)
        slope = SDE.alpha(t) / SDE.alpha(s)
        precision = 1 / SDE.sigma(s) ** 2 + slope**2 / (SDE.sigma(t) ** 2 - slope**2 * SDE.sigma(s) ** 2)
        mean = SDE.alpha(s) * z / SDE.sigma(s) ** 2
        mean = (mean + slope * z_t / (SDE.sigma(t) ** 2 - slope**2 * SDE.sigma(s) ** 2)) / precision
        drawn_s = ddim(lambda z_t, t: z, z_t, t, s, SDE, 1.0, lambda: noise)
        torch.testing.assert_close(drawn_s, mean + noise / precision.sqrt())


def test_a_heun_step_is_exact_for_a_normal_of_unit_variance_and_for_a_point():
    """A state keeps its quantile along the exact flow: (z - alpha m) / sqrt(alpha^2 variance + sigma^2) stands."""
    t, s, z = torch.tensor(0.9).double(), torch.tensor(0.2).double(), states()
    for variance in (1.0, 0.0):
        exact = GaussianDenoiser(torch.ones(D).double(), variance * torch.eye(D).double(), SDE)
        std_t, std_s = (torch.sqrt(SDE.alpha(u) ** 2 * variance + SDE.sigma(u) ** 2) for u in (t, s))
        flow = SDE.alpha(s) + std_s / std_t * (z - SDE.alpha(t))
        torch.testing.assert_close(heun(exact, z, t, s, SDE), flow)


def test_the_published_sampler_is_followed_to_the_letter():
    """The published loop, in noise prediction, with the guidance's gradient by hand (Rozet & Louppe 2023)."""
    steps, tau, gamma, std, a = 6, 0.5, 1e-2, 0.3, SPARSE.matrix
    mu, sigma, noise = SDE.alpha, SDE.sigma, keyed_noise(range(3))

    def eps(x, t):
        jacobian = mu(t) * torch.linalg.solve(mu(t) ** 2 * COVARIANCE + sigma(t) ** 2 * torch.eye(D), COVARIANCE)
        d = x @ jacobian
        variance = std**2 + gamma * (sigma(t) / mu(t)) ** 2 * SPARSE.likelihood.scale_N**2
        gradient = ((SPARSE.y_N - d @ a.T) / variance) @ a @ jacobian
        return (x - mu(t) * d) / sigma(t) - sigma(t) * gradient

    x = noise(0).flatten(1)
    for i, t in enumerate(torch.linspace(1, 0, steps + 1).double()[:-1]):
        s = t - 1 / steps if i < steps - 1 else torch.zeros(()).double()
        r = mu(s) / mu(t)
        x = r * x + (sigma(s) - r * sigma(t)) * eps(x, t)
        e = eps(x, s)
        delta = tau / e.square().mean(dim=1, keepdim=True)
        x = x - (delta * e + torch.sqrt(2 * delta) * noise(1 + i).flatten(1)) * sigma(s)
    ours = SPARSE.draw(GuidanceConfig("sda", gamma=gamma), from_pure_noise("predictor_corrector", steps=steps), noise)
    torch.testing.assert_close(ours.flatten(1), x, rtol=1e-5, atol=1e-5)


def test_the_published_sampler_and_guidance_need_their_many_steps():
    """Predictor-corrector with SDA, gamma 1e-2: its Langevin steps mend what a diagonal J V J' gets wrong, given enough
    of them. Errors of 400 members; exact draws have 0.040 and 0.122."""
    stored = {16: (0.147, 0.129), 64: (0.079, 0.131), 128: (0.054, 0.130)}
    for steps, found in stored.items():
        sampler = from_pure_noise("predictor_corrector", steps=steps)
        z = SPARSE.draw(GuidanceConfig("sda", gamma=1e-2), sampler, keyed_noise(range(400)))
        assert SPARSE.errors_of(z) == pytest.approx(found, abs=0.01)


def test_steps_run_from_the_start_to_zero_and_equal_what_they_should():
    for start in (1e-3, 0.02):
        for spacing in ("time", "log_snr"):
            times = step_times(SamplerConfig(steps=9, spacing=spacing, start_alpha=start), SDE)
            assert SDE.alpha(times[0]).item() == pytest.approx(start) and times[-1] == 0
            apart = (times if spacing == "time" else SDE.log_snr(times)).diff()
            torch.testing.assert_close(apart, apart.mean().expand(9), rtol=1e-6, atol=0)


# Members, processes, cost


def members(numbers):
    return SPARSE.draw(EXACT, from_pure_noise("ddim", steps=6, stochasticity=0.5), keyed_noise(numbers))


def test_members_do_not_depend_on_batch_order_or_process():
    together = members([3, 1, 4, 0])
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        apart = list(pool.map(members, [[3, 1], [4, 0]]))
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.cat([members([m]) for m in (0, 4, 1, 3)]).flip(0), together, rtol=1e-7, atol=1e-7)


class Counted:
    """A denoiser that counts its evaluations and the backward passes through it."""

    def __init__(self):
        self.work = [0, 0]

    def __call__(self, z, t):
        work = self.work

        class Pass(torch.autograd.Function):
            @staticmethod
            def forward(ctx, d):
                work[0] += 1
                return d.clone()

            @staticmethod
            def backward(ctx, gradient):
                work[1] += 1
                return gradient

        return Pass.apply(SPARSE.prior(z, t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_cost_of_a_member_is_counted_exactly(kind, sampler):
    configs = SamplerConfig(sampler, steps=3, corrections=2), GuidanceConfig(kind, iterations=4)
    counted = Counted()
    with torch.no_grad():
        sample(guided(counted, SPARSE.likelihood, configs[1], SDE), configs[0], SDE, keyed_noise([0]))
    assert Work(*counted.work) == network_work(*configs)
    assert sum(counted.work) == network_work(*configs).total
