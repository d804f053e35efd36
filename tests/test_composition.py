"""What composing a long trajectory's denoiser from windows of 2k + 1 frames costs, against the exact long denoiser."""

import pytest
import torch
from gaussian import SDE, autoregressive, drawn, from_pure_noise

from slams.denoise import GaussianDenoiser
from slams.guidance import Likelihood, guided
from slams.posterior import GuidanceConfig
from slams.samplers import sample
from slams.windows import fold, unfold, windowed

FRAMES, SEEN, STD = 15, [2, 7, 12], 0.3
WEIGHTS = {1: (0.7,), 2: (1.2, -0.5), 3: (0.6, 0.1, 0.2)}  # AR(1), AR(2), AR(3): correlated over some 3, 4, 10 frames
Y = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
LIKELIHOOD = Likelihood(lambda z: z[:, SEEN, 0, 0, 0], Y, torch.full((3,), STD).double(), torch.ones(3).double())


def exact(covariance):
    return GaussianDenoiser(torch.zeros(len(covariance)).double(), covariance, SDE)


def composed(order, k, n_frames=FRAMES):
    short = exact(autoregressive(2 * k + 1, *WEIGHTS[order]))
    return windowed(lambda z, t, day: short(z, t), 2 * k + 1, torch.zeros(n_frames, 5))


def drawn_moments(denoise):
    """Mean and covariance that deterministic steps draw, from their matrix: no sampling error."""
    basis = torch.cat([torch.zeros(1, FRAMES), torch.eye(FRAMES)]).double()[..., None, None, None]
    with torch.no_grad():
        z = sample(denoise, from_pure_noise("multistep", steps=64), SDE, lambda step: basis).flatten(1)
    return z[0], (z[1:] - z[0]).T @ (z[1:] - z[0])


def errors(order, denoise):
    """Of the prior's covariance, the posterior's mean and its covariance, in units of the prior."""
    prior = autoregressive(FRAMES, *WEIGHTS[order])
    gain = prior[:, SEEN] @ torch.linalg.inv(prior[SEEN][:, SEEN] + STD**2 * torch.eye(3))
    _, covariance = drawn_moments(denoise)
    mean, posterior = drawn_moments(guided(denoise, LIKELIHOOD, GuidanceConfig("mmps", iterations=3), SDE))
    of_prior, of_posterior = covariance - prior, posterior - (prior - gain @ prior[SEEN])
    of_mean = (mean - gain @ Y).square().mean().sqrt()
    return (of_prior.norm() / prior.norm()).item(), of_mean.item(), (of_posterior.norm() / prior.norm()).item()


@pytest.mark.parametrize("order", WEIGHTS)
def test_the_whole_trajectory_in_one_window_costs_nothing(order):
    whole = exact(autoregressive(FRAMES, *WEIGHTS[order]))
    assert max(errors(order, whole)) < 0.005
    one = composed(order, FRAMES // 2)
    z = drawn(1, FRAMES).reshape(1, FRAMES, 1, 1, 1)
    torch.testing.assert_close(one(z, torch.tensor(0.5)), whole(z, torch.tensor(0.5)))


STORED = {  # (order, k): errors of the prior's covariance, the posterior's mean, its covariance
    (1, 1): (0.393, 0.087, 0.136),
    (1, 2): (0.203, 0.059, 0.072),
    (1, 3): (0.102, 0.019, 0.035),
    (1, 5): (0.019, 0.020, 0.006),
    (2, 1): (0.211, 0.098, 0.157),
    (2, 2): (0.195, 0.026, 0.091),
    (2, 3): (0.147, 0.015, 0.069),
    (2, 5): (0.025, 0.022, 0.013),
    (3, 1): (0.747, 0.183, 0.190),
    (3, 2): (0.594, 0.223, 0.101),
    (3, 3): (0.429, 0.105, 0.043),
    (3, 5): (0.155, 0.354, 0.015),
}


@pytest.mark.parametrize(("order", "k"), STORED)
def test_composition_costs_what_is_known_of_it(order, k):
    """Three of fifteen frames are observed. Windows hold only what lies within k frames, and at middling noise the best
    guess of a frame hangs on frames farther off, however short the chain's memory: windows of the chain's own order
    are not enough (AR(1), k = 1: the covariance is 39 % off). What counts is how k compares with the frames over which
    the field is correlated. The posterior suffers less where observations are as near as that, and its spread is too
    large rather than too small; between distant ones (AR(3)) its mean is off by a third of a standard deviation even
    with k = 5, more than with k = 3: not all errors fall evenly with k. Half of that comes of the composed Jacobian
    not being symmetric, none of the conjugate gradients (0.14 with its symmetric part, by a direct solution)."""
    assert errors(order, composed(order, k)) == pytest.approx(STORED[order, k], abs=0.005)


@pytest.mark.parametrize("order", WEIGHTS)
def test_composition_is_exact_in_the_limit_of_no_noise_where_k_reaches_the_order(order):
    """Error of the score of a noisy draw at t = 0.02: at most 0.006 where it does, at least 0.16 where it does not."""
    whole, t = exact(autoregressive(9, *WEIGHTS[order])), torch.tensor(0.02).double()
    z, noise = (drawn(key, 4 * 9).reshape(4, 9, 1, 1, 1) for key in (1, 2))
    z_t = SDE.alpha(t) * z + SDE.sigma(t) * noise
    for k in (1, 2, 3):
        score, short = (SDE.alpha(t) * d(z_t, t) - z_t for d in (whole, composed(order, k, 9)))
        assert ((short - score).norm() / score.norm() < 0.01) == (k >= order)


def test_windows_fold_back_to_the_trajectory():
    x = torch.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    torch.testing.assert_close(fold(unfold(x, 5)), x)


def test_a_trajectory_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="frames: 4 with windows of 5"):
        windowed(lambda z, t, day: z, 5, torch.zeros(4, 5))
