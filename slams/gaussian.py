"""A Gaussian prior of windows of latents, fitted in minutes, that a score network starts from and corrects.

Two parts, independent of each other by construction:

* `Patterns`: leading patterns of whole windows in space and time, of a covariance localised in distance, that has a
  season: what is special to places, oceans and continents, jets and their shifts.
* `ZonalGaussian`: what they leave, taken to be the same at every longitude.

For a Gaussian prior the denoiser is a formula: E[z | z_t] = mu + alpha C (alpha^2 C + sigma^2 I)^-1 (z_t - alpha mu). A
background, the state z_b of the day before the window with an error of a stated share of the climatological spread,
moves mu by regression, mode by mode, and what is left of the window has covariances C of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from slams.denoise import Background
from slams.patterns import Patterns, SeasonalAmplitudes, season_of
from slams.sde import CosineSDE
from slams.zonal import ZonalForecast, ZonalGaussian

FIT_CHUNK = 64  # windows in memory at once, beyond the record itself


class HybridGaussian(nn.Module):
    """Amplitudes of patterns and the zonal Gaussian of what they leave.

    Arguments:
        frames, shape_ZHW, modes: see `ZonalGaussian`.
        patterns: P.
    """

    def __init__(self, frames: int, shape_ZHW: tuple[int, ...], modes: int, patterns: int) -> None:
        super().__init__()
        self.amplitudes = SeasonalAmplitudes(patterns)
        self.zonal = ZonalGaussian(frames, shape_ZHW, modes)

    def forward(self, patterns: Patterns, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor, season_B: Tensor) -> Tensor:
        """E[z | z_t], (B, L, Z, H, W)."""
        amplitude, left = patterns.split(z_t)
        mine = patterns.sum(self.amplitudes(amplitude, alpha_B, sigma_B, season_B))
        # what the filter gives back along the patterns is theirs already
        return mine + patterns.split(self.zonal(left, alpha_B, sigma_B))[1]

    @torch.no_grad()
    def fit(
        self, patterns: Patterns, halves: tuple[Patterns, Patterns], windows_BLZHW: np.ndarray, year_B: np.ndarray
    ) -> None:
        """Estimate the covariances of given patterns and of what they leave.

        Patterns fit the years they are taken from better than other years. What they leave is therefore measured on
        years they are not taken from: those of each half of the record on the other half.

        Arguments:
            halves: patterns of the first half of the record alone, and of the second.
            windows_BLZHW: of the train years in time order.
            year_B: share of the year of each window, 0 to 1.
        """

        device = patterns.get_buffer("patterns").device

        def left() -> Iterator[np.ndarray]:
            middle = len(windows_BLZHW) // 2
            for known, other in ((halves[0], windows_BLZHW[middle:]), (halves[1], windows_BLZHW[:middle])):
                for part in torch.from_numpy(other).split(FIT_CHUNK):
                    yield known.split(part.to(device))[1].cpu().numpy()

        self.zonal.fit(left)
        self.amplitudes.fit(patterns, windows_BLZHW, year_B)


class GaussianPrior(nn.Module):
    """The prior without a background, and, where `background_error` is not 0, the one given a background.

    Both have the same patterns.

    Arguments:
        frames, shape_ZHW, modes: see `ZonalGaussian`.
        patterns, half_width_km: see `Patterns`.
        background_error: error of a background state, as a share of the climatological spread; 0 = no background.
    """

    def __init__(
        self,
        frames: int,
        shape_ZHW: tuple[int, ...],
        modes: int,
        patterns: int,
        half_width_km: float = math.inf,
        background_error: float = 0.0,
    ) -> None:
        super().__init__()
        self.patterns = Patterns((frames, *shape_ZHW), patterns, half_width_km)
        self.climatological = HybridGaussian(frames, shape_ZHW, modes, patterns)
        self.forecast = self.departure = None
        if background_error:
            self.forecast = ZonalForecast(frames, shape_ZHW, modes, background_error)
            self.departure = HybridGaussian(frames, shape_ZHW, modes, patterns)

    def forward(
        self, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor, season_B: Tensor, z_b: Tensor | None = None
    ) -> Tensor:
        """E[z | z_t], or E[z | z_t, z_b].

        Arguments:
            z_t: (B, L, Z, H, W).
            alpha_B, sigma_B: the kernel's scales.
            season_B: of `season_of`.
            z_b: (B, Z, H, W), the day before the window.
        """
        with torch.autocast(z_t.device.type, enabled=False):
            if z_b is None or self.forecast is None or self.departure is None:
                return self.climatological(self.patterns, z_t.float(), alpha_B, sigma_B, season_B)
            mean = self.forecast(z_b.float())
            departure = z_t.float() - alpha_B[:, None, None, None, None] * mean
            return mean + self.departure(self.patterns, departure, alpha_B, sigma_B, season_B)

    @torch.no_grad()
    def fit(self, windows_BLZHW: np.ndarray, year_B: np.ndarray, noise_BZHW: np.ndarray | None = None) -> None:
        """Estimate all covariances, on the device where they are to lie.

        Arguments:
            windows_BLZHW: of the train years in time order, with the day before each window first, (B, 1 + L, ...);
                twice as many as patterns and more.
            year_B: share of the year of each window, 0 to 1.
            noise_BZHW: white noise, of which errors of backgrounds are made.
        """
        windows, middle = windows_BLZHW[:, 1:], len(windows_BLZHW) // 2
        halves = self._patterns_of(windows[:middle]), self._patterns_of(windows[middle:])
        self.patterns.fit(windows)
        self.climatological.fit(self.patterns, halves, windows, year_B)
        if self.forecast is None or self.departure is None or noise_BZHW is None:
            return
        self.forecast.fit(lambda: (part.numpy() for part in torch.from_numpy(windows_BLZHW).split(FIT_CHUNK)))
        departures, device = np.empty_like(windows), self.patterns.get_buffer("patterns").device
        for i in range(0, len(departures), FIT_CHUNK):
            some = slice(i, i + FIT_CHUNK)
            before, noise = (torch.from_numpy(x).to(device) for x in (windows_BLZHW[some, 0], noise_BZHW[some]))
            z_b = before + self.forecast.draw_error(noise)
            departures[some] = windows[some] - self.forecast(z_b).cpu().numpy()
        self.departure.fit(self.patterns, halves, departures, year_B)

    def _patterns_of(self, windows_BLZHW: np.ndarray) -> Patterns:
        """Others of the same kind; this prior's own stay as they are."""
        return copy.deepcopy(self.patterns).fit(windows_BLZHW)


class CorrectedGaussian(nn.Module):
    """A score network that predicts v = alpha eps - sigma z as the prior's exact answer plus a learned correction.

    The correction sees the prior's answer beside the noisy window, and with it what lies beyond the reach of its
    convolutions. It starts at zero, so that an untrained network is the prior.

    Arguments:
        prior: fitted before training.
        correction: (z_t, t, day, context (B, L Z [+ Z + 1], H, W)) -> (B, L, Z, H, W).
        sde: the perturbation kernel.
    """

    def __init__(self, prior: GaussianPrior, correction: nn.Module, sde: CosineSDE) -> None:
        super().__init__()
        self.prior, self.correction, self.sde = prior, correction, sde

    def forward(self, z_t: Tensor, t_B: Tensor, day_BL5: Tensor, background: Background | None = None) -> Tensor:
        alpha, sigma = self.sde.alpha(t_B), self.sde.sigma(t_B)
        d = self._prior(z_t, alpha, sigma, season_of(day_BL5), background)
        alpha, sigma = (scale[:, None, None, None, None] for scale in (alpha, sigma))
        v = (alpha * z_t - (alpha**2 + sigma**2) * d) / sigma
        return v + self.correction(z_t, t_B, day_BL5, self._context(v, background))

    def _prior(
        self, z_t: Tensor, alpha: Tensor, sigma: Tensor, season: Tensor, background: Background | None
    ) -> Tensor:
        """The prior's answer, each window by what is known of it."""
        if background is None or not background.known_B.any():
            return self.prior(z_t, alpha, sigma, season)
        if background.known_B.all():
            return self.prior(z_t, alpha, sigma, season, background.z_BZHW)
        known, free = (which.nonzero()[:, 0] for which in (background.known_B, ~background.known_B))
        told = self.prior(z_t[known], alpha[known], sigma[known], season[known], background.z_BZHW[known])
        untold = self.prior(z_t[free], alpha[free], sigma[free], season[free])
        return torch.cat([told, untold])[torch.cat([known, free]).argsort()]

    def _context(self, v_BLZHW: Tensor, background: Background | None) -> Tensor:
        context = v_BLZHW.flatten(1, 2)
        if self.prior.forecast is None:
            return context
        batch, _, z, *field = v_BLZHW.shape
        if background is None:
            return torch.cat([context, context.new_zeros(batch, z + 1, *field)], dim=1)
        known = background.known_B[:, None, None, None].to(context.dtype)
        return torch.cat([context, background.z_BZHW * known, known.expand(-1, -1, *field)], dim=1)
