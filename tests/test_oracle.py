"""The sampler and its guidance against exact answers: with a Gaussian prior the posterior is a formula.

Prior: AR(1) in time, smooth in space, correlated between channels. Observations: noisy block means of one channel
on some days. Exact posterior: the Kalman (Gauss-Markov) formula in one step over the whole window, which for a
linear Gaussian problem is what a Kalman smoother gives. Errors are in units of the prior's scale.
"""

import inspect

import pytest
import torch

from slams import guidance
from slams.contracts.observations import Operator
from slams.denoise import GaussianDenoiser
from slams.guidance import Likelihood, conjugate_gradients, guided
from slams.observe import observe
from slams.posterior import GuidanceConfig, SamplerConfig
from slams.rng import normal
from slams.samplers import sample
from slams.sde import CosineSDE
from slams.windows import fold, unfold, windowed

L, Z, H, W = 5, 2, 4, 8
SHAPE = (L, Z, H, W)
SDE = CosineSDE()
MEMBERS, FEWER = 2000, 800
NOISE_STD = 0.3


def prior_covariance(n_frames=L, memory=0.7):
    """Kronecker product of AR(1) in time, two correlated channels, and a smooth field on a periodic grid."""
    frames = torch.arange(n_frames)
    time = memory ** (frames[:, None] - frames).abs().double()
    channel = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    rows, columns = torch.arange(H), torch.arange(W)
    apart = (columns[:, None] - columns).abs()
    apart = torch.minimum(apart, W - apart)
    space = torch.kron(0.6 ** (rows[:, None] - rows).abs().double(), 0.7 ** apart.double())
    return torch.kron(torch.kron(time, channel), space)


def predict(z):
    """2 x 2 block means of channel 0 on the first, middle and last day, as (B, N)."""
    return observe(Operator("block_mean", 2), z[:, ::2, 0]).flatten(1)


def drawn_observations():
    """Observations of one draw from the prior."""
    truth = torch.linalg.cholesky(COVARIANCE) @ torch.from_numpy(normal(1, "observation", shape=(D,))).double()
    error = torch.from_numpy(normal(2, "observation", shape=(len(OPERATOR),))).double()
    return OPERATOR @ truth + NOISE_STD * error


def from_pure_noise(kind, **fields):
    """A sampler that starts at alpha = 1e-3: the exact denoiser's Jacobian is known there too."""
    return SamplerConfig(kind, start_alpha=1e-3, **fields)


COVARIANCE = prior_covariance()
D = len(COVARIANCE)
PRIOR = GaussianDenoiser(torch.zeros(D), COVARIANCE.float(), SDE)
OPERATOR = predict(torch.eye(D).reshape(-1, *SHAPE)).T.double()
N = len(OPERATOR)
Y = drawn_observations()
GAIN = COVARIANCE @ OPERATOR.T @ torch.linalg.inv(OPERATOR @ COVARIANCE @ OPERATOR.T + NOISE_STD**2 * torch.eye(N))
MEAN, POSTERIOR = GAIN @ Y, COVARIANCE - GAIN @ OPERATOR @ COVARIANCE
LIKELIHOOD = Likelihood(predict, Y.float(), torch.full((N,), NOISE_STD), torch.ones(N))
EXACT = GuidanceConfig("mmps", iterations=N)
CHEAP = from_pure_noise("multistep", steps=16)
MEAN_BOUND, COVARIANCE_BOUND = 0.05, 0.02  # the second on top of the sampling error


def sampling_error(covariance, members):
    """Frobenius error of the sample covariance of M members, sqrt((tr(C)^2 + |C|^2) / M), as `errors` counts it."""
    return (((covariance.trace() ** 2 + covariance.norm() ** 2) / members).sqrt() / COVARIANCE.norm()).item()


def keyed_noise(members, scale=1.0):
    def noise(step):
        return scale * torch.stack([torch.from_numpy(normal(0, "sampler", m, step, shape=SHAPE)) for m in members])

    return noise


def draw(guide=EXACT, sampler=CHEAP, members=range(MEMBERS), scale=1.0):
    with torch.no_grad():
        return sample(guided(PRIOR, LIKELIHOOD, guide, SDE), sampler, SDE, keyed_noise(members, scale))


def errors(z, mean=MEAN, covariance=POSTERIOR):
    """Errors of mean and covariance, relative to the prior's standard deviation and covariance."""
    flat = z.flatten(1).double()
    mean_error = (flat.mean(0) - mean).square().mean().sqrt() / COVARIANCE.diagonal().mean().sqrt()
    return mean_error.item(), ((torch.cov(flat.T) - covariance).norm() / COVARIANCE.norm()).item()


def variance_ratio(z):
    return (z.flatten(1).var(0).mean() / POSTERIOR.diagonal().mean()).item()


def test_exact_guidance_draws_from_the_exact_posterior():
    mean_error, covariance_error = errors(draw())
    assert mean_error < MEAN_BOUND
    assert covariance_error < min(sampling_error(POSTERIOR, MEMBERS) + COVARIANCE_BOUND, 0.10)


def test_without_guidance_the_draws_are_from_the_prior():
    z = draw(GuidanceConfig("none"))
    mean_error, covariance_error = errors(z, torch.zeros(D).double(), COVARIANCE)
    assert mean_error < MEAN_BOUND
    assert covariance_error < sampling_error(COVARIANCE, MEMBERS) + COVARIANCE_BOUND


def test_ancestral_steps_agree_with_deterministic_ones():
    assert within_bounds(draw(sampler=from_pure_noise("ddim", steps=64, stochasticity=1.0), members=range(FEWER)))


@pytest.mark.parametrize("kind", ["ddim", "multistep"])
def test_more_steps_lose_less_of_the_spread(kind):
    drawn = [draw(sampler=from_pure_noise(kind, steps=n), members=range(FEWER)) for n in (6, 24)]
    lost = [abs(1 - variance_ratio(z)) for z in drawn]
    assert lost[1] < lost[0] / 2


def test_second_order_steps_keep_the_spread_that_first_order_steps_lose():
    samplers = [from_pure_noise(kind, steps=16) for kind in ("ddim", "multistep")]
    first, second = (variance_ratio(draw(sampler=sampler, members=range(FEWER))) for sampler in samplers)
    assert first < 0.9
    assert second == pytest.approx(1, abs=0.08)


FAULTS = {
    "1/alpha forgotten in the covariance": ("sde.sigma(t) ** 2 / sde.alpha(t)", "sde.sigma(t) ** 2"),
    "residual's sign flipped": (
        "seen.y_N / seen.std_N - predicted.detach()",
        "predicted.detach() - seen.y_N / seen.std_N",
    ),
    "identity as the prior's covariance": (
        "gain * torch.autograd.grad(d, z, back, retain_graph=True)[0]",
        "gain / sde.alpha(t) * back",
    ),
    "network's Jacobian forgotten in the gradient": (
        "d.detach() + pull(u)",
        "d.detach() + gain * torch.autograd.grad(predicted, state, u)[0]",
    ),
    "prior's covariance forgotten in the system": ("u + push(pull(u))", "u"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(fault, monkeypatch):
    right, wrong = FAULTS[fault]
    source = inspect.getsource(guidance._mmps)
    assert right in source
    scope = dict(vars(guidance))
    exec("from __future__ import annotations\n" + source.replace(right, wrong), scope)
    monkeypatch.setattr(guidance, "_mmps", scope["_mmps"])
    assert not within_bounds(draw(members=range(FEWER)))


def test_wrong_noise_is_refused():
    assert not within_bounds(draw(members=range(FEWER), scale=0.9))


def test_an_error_variance_given_as_standard_deviation_is_refused(monkeypatch):
    wrong = Likelihood(predict, LIKELIHOOD.y_N, LIKELIHOOD.std_N**2, LIKELIHOOD.scale_N)
    monkeypatch.setitem(globals(), "LIKELIHOOD", wrong)
    assert not within_bounds(draw(members=range(FEWER)))


def within_bounds(z):
    mean_error, covariance_error = errors(z)
    return mean_error < MEAN_BOUND and covariance_error < sampling_error(POSTERIOR, len(z)) + COVARIANCE_BOUND


def test_members_do_not_depend_on_their_batch_or_order():
    together = draw(members=[3, 1, 4])
    for i, member in enumerate([3, 1, 4]):
        torch.testing.assert_close(draw(members=[member])[0], together[i], rtol=1e-4, atol=1e-4)


def test_the_published_sampler_and_guidance_need_their_many_steps():
    """Predictor-corrector with SDA, gamma 1e-2: its Langevin steps mend what a diagonal J V J' gets wrong, given enough
    of them. Error of the mean, measured with 800 members: 0.085, 0.047, 0.038 with 64, 128, 256 steps (0.028 is the
    sampling error); the spread is 1.02 of the exact one throughout."""
    published = GuidanceConfig("sda", gamma=1e-2)
    for steps, mean_error in ((64, 0.085), (128, 0.047)):
        z = draw(published, from_pure_noise("predictor_corrector", steps=steps), range(FEWER))
        assert errors(z)[0] == pytest.approx(mean_error, abs=0.015)
        assert variance_ratio(z) == pytest.approx(1.02, abs=0.04)


def test_the_published_guidance_fails_with_few_deterministic_steps():
    """Why the cheap sampler goes with MMPS: a diagonal J V J' counts correlated observations many times over."""
    assert not within_bounds(draw(GuidanceConfig("sda", gamma=1e-2), members=range(FEWER)))


def test_conjugate_gradients_solve_the_system():
    root = torch.from_numpy(normal(5, "observation", shape=(3, 12, 12)))
    matrices = root @ root.mT + torch.eye(12)
    b = torch.from_numpy(normal(6, "observation", shape=(3, 12)))
    u = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 24)
    torch.testing.assert_close(u, torch.linalg.solve(matrices, b), rtol=1e-3, atol=1e-3)


def test_windows_fold_back_to_the_trajectory():
    x = torch.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    torch.testing.assert_close(fold(unfold(x, 5)), x)


def test_composed_score_of_a_markov_chain_is_exact_in_the_limit_of_no_noise():
    """An AR(1) chain is of order 1, so windows of 3 and of 5 both suffice; the error must vanish with the noise."""
    n = 9
    long = GaussianDenoiser(torch.zeros(n * D // L), prior_covariance(n).float(), SDE)
    z = torch.from_numpy(normal(7, "observation", shape=(4, n, *SHAPE[1:])))
    for length in (3, 5):
        short = GaussianDenoiser(torch.zeros(length * D // L), prior_covariance(length).float(), SDE)
        whole = windowed(lambda z, t, day, short=short: short(z, t), length, torch.zeros(n, 5))
        off = []
        for t in (torch.tensor(0.5), torch.tensor(0.02)):
            exact, composed = (d(z, t) - z * SDE.alpha(t) for d in (long, whole))
            off.append(((composed - exact).norm() / exact.norm()).item())
        assert off[1] < off[0] / 3


def test_a_trajectory_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="frames: 4 with windows of 5"):
        windowed(lambda z, t, day: z, 5, torch.zeros(4, 5))
