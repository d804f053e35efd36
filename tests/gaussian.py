"""A problem whose answers are formulas: a Gaussian prior, observed linearly.

Prior: AR(1) in time, smooth in space, two correlated channels; 5 frames of 4 x 4. Exact posterior: the Gauss-Markov
formula in one step over the whole trajectory, which is what a Kalman smoother gives. All in float64. Errors are those
of the mean in units of the prior's standard deviation, and of the covariance in units of the prior's (Frobenius).
"""

import torch

from slams.contracts.observations import Operator
from slams.denoise import GaussianDenoiser
from slams.guidance import Likelihood, guided
from slams.observe import observe
from slams.posterior import GuidanceConfig, SamplerConfig
from slams.rng import normal
from slams.samplers import sample
from slams.sde import CosineSDE

L, Z, H, W = SHAPE = (5, 2, 4, 4)
D = L * Z * H * W
SDE = CosineSDE()


def autoregressive(n_frames, *weights):
    """Autocovariance of x_i = sum_j w_j x_(i-j) + noise, of unit variance: by the response to each past noise."""
    response = torch.zeros(600, dtype=torch.float64)
    response[0] = 1
    for i in range(1, len(response)):
        response[i] = sum(w * response[i - j] for j, w in enumerate(weights, 1) if j <= i)
    lagged = torch.stack([(response[: len(response) - k] * response[k:]).sum() for k in range(n_frames)])
    frames = torch.arange(n_frames)
    return (lagged / lagged[0])[(frames[:, None] - frames).abs()]


def prior_covariance(time):
    """Kronecker product of time, two correlated channels, and a smooth field, periodic in longitude."""
    channel = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    rows, columns = torch.arange(H), torch.arange(W)
    apart = (columns[:, None] - columns).abs()
    space = torch.kron(0.6 ** (rows[:, None] - rows).abs().double(), 0.7 ** torch.minimum(apart, W - apart).double())
    return torch.kron(torch.kron(time, channel), space)


def drawn(key, n):
    return torch.from_numpy(normal(key, "observation", shape=(n,))).double()


class Problem:
    """One draw from a prior, observed through `predict` with errors `std_N`, and its exact posterior."""

    def __init__(self, covariance, predict, std_N):
        self.covariance, self.predict, self.std_N = covariance, predict, std_N
        self.prior = GaussianDenoiser(torch.zeros(len(covariance)).double(), covariance, SDE)
        zero = predict(torch.zeros(1, *SHAPE).double())[0]
        self.matrix = (predict(torch.eye(D).double().reshape(-1, *SHAPE)) - zero).T
        truth = torch.linalg.cholesky(covariance) @ drawn(1, D)
        self.y_N = zero + self.matrix @ truth + std_N * drawn(2, len(std_N))
        innovation = self.matrix @ covariance @ self.matrix.T + torch.diag(std_N**2)
        gain = torch.linalg.solve(innovation, self.matrix @ covariance).T
        self.mean, self.posterior = gain @ (self.y_N - zero), covariance - gain @ self.matrix @ covariance
        scale_N = torch.einsum("nd,de,ne->n", self.matrix, covariance, self.matrix).sqrt()
        self.likelihood = Likelihood(predict, self.y_N, std_N, scale_N)
        self.exact = GaussianDenoiser(self.mean, self.posterior, SDE)

    def draw(self, guidance, sampler, noise):
        with torch.no_grad():
            return sample(guided(self.prior, self.likelihood, guidance, SDE), sampler, SDE, noise)

    def errors(self, mean, covariance):
        off = (mean - self.mean).square().mean().sqrt() / self.covariance.diagonal().mean().sqrt()
        return off.item(), ((covariance - self.posterior).norm() / self.covariance.norm()).item()

    def errors_of(self, z):
        """Of members (B, L, Z, H, W)."""
        return self.errors(z.flatten(1).mean(0), torch.cov(z.flatten(1).T))

    def sampling_error(self, members):
        """What M exact draws have: root mean square of `errors_of`, |C_M - C|^2 = (tr(C)^2 + |C|^2) / M."""
        c = self.posterior
        mean = (c.trace() / members / D).sqrt() / self.covariance.diagonal().mean().sqrt()
        return mean.item(), (((c.trace() ** 2 + c.norm() ** 2) / members).sqrt() / self.covariance.norm()).item()


def sparse(z):
    """2 x 2 block means of channel 0 on the first, middle and last frame, as (B, N)."""
    return observe(Operator("block_mean", 2), z[:, ::2, 0]).flatten(1)


def two_modalities(z):
    """Block means of channel 0 on three frames, in units of its own, beside points of channel 1 on all frames."""
    return torch.cat([10 * sparse(z) + 3, observe(Operator("subsample", 2), z[:, :, 1]).flatten(1)], dim=1)


COVARIANCE = prior_covariance(autoregressive(L, 0.7))
SPARSE = Problem(COVARIANCE, sparse, torch.full((12,), 0.3).double())
N = len(SPARSE.y_N)
EXACT = GuidanceConfig("mmps", iterations=N)


def keyed_noise(members):
    def noise(step):
        return torch.stack([torch.from_numpy(normal(0, "sampler", m, step, shape=SHAPE)) for m in members]).double()

    return noise


def every_noise(shape, sampler):
    """A batch of one member without noise and one for each step's noise alone, all ones."""

    def noise(step):
        z = torch.zeros(sampler.steps + 2, *shape).double()
        z[step + 1] = 1
        return z

    return noise


def moments(problem, guidance, sampler):
    """Mean and covariance that a deterministic, affine sampler draws, without sampling error: from its matrix."""
    basis = torch.cat([torch.zeros(1, D), torch.eye(D)]).double().reshape(-1, *SHAPE)
    z = problem.draw(guidance, sampler, lambda step: basis).flatten(1)
    return z[0], (z[1:] - z[0]).T @ (z[1:] - z[0])


def from_pure_noise(kind, **fields):
    """A sampler that starts at alpha = 1e-3: the exact denoiser's Jacobian is known there too."""
    return SamplerConfig(kind, start_alpha=1e-3, **fields)
