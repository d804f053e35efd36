"""A Gaussian prior of windows of latents, fitted in minutes, that a score network starts from and corrects.

Two parts, independent of each other by construction:

* `Patterns`: the leading empirical orthogonal functions of whole windows, each a pattern in space and time with its own
  variance: what is special to places, oceans and continents, jets and their shifts.
* `ZonalGaussian`: what they leave, taken to be the same at every longitude. Then zonal waves are independent, and for
  each wavenumber m the latitudes and latent channels have one covariance, whose leading eigenvectors (complex, for
  their phase) are kept. Each such mode has its own covariance over the frames of a window, Hermitian, so that growth,
  decay and travel of a wave from day to day are in it. What the modes leave is white noise.

For a Gaussian prior the denoiser is a formula: E[z | z_t] = mu + alpha C (alpha^2 C + sigma^2 I)^-1 (z_t - alpha mu). A
background, the state z_b of the day before the window with an error of a stated share of the climatological spread,
moves mu by regression, mode by mode, and what is left of the window has covariances C of its own.

All arithmetic is real: a complex number a + ib is the pair (a, b), a complex matrix [[Re, -Im], [Im, Re]].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from slams.denoise import Background
from slams.sde import CosineSDE

Windows = Callable[[], Iterable[np.ndarray]]
FIT_CHUNK = 64  # windows in memory at once, beyond the record itself
SMALLEST_VARIANCE = 1e-6  # of a mode at a frame: a mode the train years never excited stays possible


def fourier_basis(width: int) -> np.ndarray:
    """Orthonormal cosines and sines over a circle of cells, (W, 2, W // 2 + 1); waves that are no waves are zero."""
    wave, angle = np.arange(width // 2 + 1), 2 * np.pi * np.arange(width) / width
    scale = np.where((wave == 0) | (2 * wave == width), 1.0, 2.0) / width
    phase = angle[:, None] * wave
    sine = np.where((wave == 0) | (2 * wave == width), 0.0, -np.sin(phase))
    return np.stack([np.cos(phase), sine], axis=1) * np.sqrt(scale)


def _as_real(matrix: np.ndarray) -> np.ndarray:
    """Complex (..., a, b) to the real matrix (..., 2a, 2b) that does the same to (real part, imaginary part)."""
    return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])


class ZonalModes(nn.Module):
    """The modes of each zonal wavenumber, common to what is made of them.

    Arguments:
        shape_ZHW: of a frame.
        modes: eigenvectors kept of each wavenumber.
    """

    def __init__(self, shape_ZHW: tuple[int, ...], modes: int) -> None:
        super().__init__()
        z, height, width = shape_ZHW
        self.modes = min(modes, z * height)
        self.waves = width // 2 + 1
        self.register_buffer("fourier", torch.from_numpy(fourier_basis(width)).float(), persistent=False)
        self._zeros("vectors", self.waves, 2 * z * height, 2 * self.modes)

    def _zeros(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(shape))

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _set(self, name: str, value: np.ndarray) -> None:
        self._of(name).copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def _waves(self, z_BLZHW: Tensor) -> Tensor:
        """(B, L, Z, H, W) -> (m, B L, 2 Z H)."""
        wave = torch.einsum("blzhw,wpm->mblpzh", z_BLZHW, self._of("fourier"))
        return wave.flatten(3).flatten(1, 2)

    def _fields(self, wave: Tensor, shape: Iterable[int]) -> Tensor:
        batch, frames, z, height, _ = shape
        parts = wave.reshape(len(wave), batch, frames, 2, z, height)
        return torch.einsum("mblpzh,wpm->blzhw", parts, self._of("fourier"))

    def _by_mode(self, mode: Tensor, batch: int) -> Tensor:
        """(m, B L, 2 r) -> (m, r, B, 2 L)."""
        parts = mode.reshape(len(mode), batch, -1, 2, self.modes)
        return parts.permute(0, 4, 1, 3, 2).flatten(3)

    def _by_wave(self, mode: Tensor) -> Tensor:
        """(m, r, B, 2 L) -> (m, B L, 2 r): the inverse of `_by_mode`."""
        parts = mode.unflatten(3, (2, -1)).permute(0, 2, 4, 3, 1)
        return parts.flatten(3).flatten(1, 2)

    def _complex_waves(self, windows: Windows) -> Iterator[np.ndarray]:
        """Batches (m, B, L, Z H), of unit variance for white noise."""
        fourier = self._of("fourier").double().cpu().numpy()
        both = np.where(fourier[:, 1].any(axis=0), 0.5**0.5, 1.0)  # two parts of variance 1 each, or one
        basis = (fourier[:, 0] + 1j * fourier[:, 1]) * both
        for x in windows():
            yield np.einsum("blzhw,wm->mblzh", x, basis, optimize=True).reshape(basis.shape[1], *x.shape[:2], -1)

    def _fit_modes(self, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvectors (m, Z H, r), their variances (m, r), and the mean variance of what they leave (m,)."""
        total, count = np.zeros(()), 0
        for wave in self._complex_waves(windows):
            flat = wave.reshape(len(wave), -1, wave.shape[-1])
            total = total + flat.swapaxes(1, 2) @ flat.conj()
            count += flat.shape[1]
        variance, vectors = np.linalg.eigh(total / count)
        kept = slice(variance.shape[1] - self.modes, None)
        left = variance[:, : kept.start]
        rest = left.mean(axis=1) if kept.start else np.zeros(len(variance))
        self._set("vectors", _as_real(vectors[..., kept]))
        return vectors[..., kept], np.maximum(variance[:, kept], SMALLEST_VARIANCE), rest

    def _fit_frames(self, windows: Windows, vectors: np.ndarray) -> np.ndarray:
        """Covariance of each mode over the frames, (m, r, L, L), Hermitian."""
        total, count = np.zeros(()), 0
        for wave in self._complex_waves(windows):
            mode = (wave.reshape(len(wave), -1, wave.shape[-1]) @ vectors.conj()).reshape(*wave.shape[:3], -1)
            mode = mode.transpose(0, 3, 2, 1)  # (m, r, L, B)
            total = total + mode @ mode.conj().swapaxes(-1, -2)
            count += mode.shape[-1]
        return np.asarray(total / count)


class ZonalGaussian(ZonalModes):
    """A Gaussian of windows that knows no longitude, and its exact denoiser; untrained until `fit`.

    Arguments:
        frames: L of a window.
        shape_ZHW, modes: see `ZonalModes`.
    """

    def __init__(self, frames: int, shape_ZHW: tuple[int, ...], modes: int) -> None:
        super().__init__(shape_ZHW, modes)
        self.frames = frames
        self._zeros("rest", self.waves)
        self._zeros("axes", self.waves, self.modes, 2 * frames, 2 * frames)
        self._zeros("variance", self.waves, self.modes, 2 * frames)

    def forward(self, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
        """E[z | z_t], (B, L, Z, H, W)."""
        alpha, sigma = alpha_B[:, None], sigma_B[:, None]
        wave, vectors = self._waves(z_t), self._of("vectors")
        mode = wave @ vectors
        rest = _gain(self._of("rest")[:, None, None], alpha, sigma).repeat_interleave(self.frames, dim=1)
        axes, variance = self._of("axes"), self._of("variance")[:, :, None]
        filtered = ((self._by_mode(mode, len(z_t)) @ axes) * _gain(variance, alpha, sigma)) @ axes.mT
        # gains of the modes, and of what they leave: the field less its modes
        return self._fields((self._by_wave(filtered) - rest * mode) @ vectors.mT + rest * wave, z_t.shape)

    @torch.no_grad()
    def fit(self, windows: Windows) -> None:
        """Estimate the covariances.

        Arguments:
            windows: each call gives batches (B, L, Z, H, W) of the train years; it is called twice.
        """
        vectors, _, rest = self._fit_modes(windows)
        variance, axes = np.linalg.eigh(_as_real(self._fit_frames(windows, vectors)))
        self._set("rest", rest)
        self._set("axes", axes)
        self._set("variance", np.maximum(variance, SMALLEST_VARIANCE))


class ZonalForecast(ZonalModes):
    """The window expected after the day before it, by regression of each mode on itself, with an error allowed for.

    Arguments:
        error: of the state it starts from, as a share of the climatological spread.
    """

    def __init__(self, frames: int, shape_ZHW: tuple[int, ...], modes: int, error: float) -> None:
        super().__init__(shape_ZHW, modes)
        self.error = error
        self._zeros("regression", self.waves, self.modes, 2 * frames, 2)
        self._zeros("spread", self.waves, self.modes)

    def forward(self, z_b: Tensor) -> Tensor:
        """E[z | z_b]: (B, Z, H, W) -> (B, L, Z, H, W)."""
        mode = self._by_mode(self._waves(z_b[:, None]) @ self._of("vectors"), len(z_b))
        forecast = self._by_wave(mode @ self._of("regression").mT) @ self._of("vectors").mT
        return self._fields(forecast, (len(z_b), forecast.shape[1] // len(z_b), *z_b.shape[1:]))

    def draw_error(self, noise_BZHW: Tensor) -> Tensor:
        """Errors of the state it starts from: climatological fields, scaled, from white noise of the same shape."""
        wave = self._waves(noise_BZHW[:, None].float())
        mode = (wave @ self._of("vectors")) * self._of("spread").repeat(1, 2)[:, None] * self.error
        return self._fields(mode @ self._of("vectors").mT, noise_BZHW[:, None].shape)[:, 0]

    @torch.no_grad()
    def fit(self, windows: Windows) -> None:
        """Estimate from batches (B, 1 + L, Z, H, W), the day before first; called twice."""
        vectors, variance, _ = self._fit_modes(windows)
        time = self._fit_frames(windows, vectors)
        before = time[..., 0, 0].real + self.error**2 * variance
        self._set("regression", _as_real(time[..., 1:, :1] / before[..., None, None]))
        self._set("spread", np.sqrt(variance))


class Patterns(nn.Module):
    """Leading empirical orthogonal functions of windows; untrained until `fit`.

    Arguments:
        shape_LZHW: of a window.
        count: P.
    """

    def __init__(self, shape_LZHW: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.shape = shape_LZHW
        self.register_buffer("patterns", torch.zeros(count, math.prod(shape_LZHW)))
        self.register_buffer("variance", torch.zeros(count))

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes (B, P), and what the patterns leave of windows (B, L, Z, H, W)."""
        amplitude = z.flatten(1) @ self.get_buffer("patterns").mT
        return amplitude, z - self.sum(amplitude)

    def sum(self, amplitude_BP: Tensor) -> Tensor:
        """(B, P) -> (B, L, Z, H, W)."""
        return (amplitude_BP @ self.get_buffer("patterns")).unflatten(1, self.shape)

    @torch.no_grad()
    def fit(self, windows_BLZHW: np.ndarray) -> None:
        """The leading eigenvectors of the covariance; of few windows, by that of the windows with each other."""
        flat, count = torch.from_numpy(windows_BLZHW).flatten(1), len(self.get_buffer("variance"))
        few = len(flat) < flat.shape[1]
        power, vectors = torch.linalg.eigh((flat @ flat.mT if few else flat.mT @ flat).double())
        power, vectors = power[-count:].clamp_min(SMALLEST_VARIANCE), vectors[:, -count:]
        patterns = (vectors / power.sqrt()).float().mT @ flat if few else vectors.float().mT
        self.get_buffer("patterns").copy_(patterns)
        self.get_buffer("variance").copy_(power.float() / len(flat))


class HybridGaussian(nn.Module):
    """Patterns and the zonal Gaussian of what they leave.

    The patterns fit the years they are taken from better than other years. What they leave is therefore measured on
    years they are not taken from: those of each half of the record on the other half.

    Arguments:
        frames, shape_ZHW, modes: see `ZonalGaussian`.
        patterns: P.
    """

    def __init__(self, frames: int, shape_ZHW: tuple[int, ...], modes: int, patterns: int) -> None:
        super().__init__()
        self.patterns = Patterns((frames, *shape_ZHW), patterns)
        self.zonal = ZonalGaussian(frames, shape_ZHW, modes)

    def forward(self, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
        """E[z | z_t], (B, L, Z, H, W)."""
        amplitude, left = self.patterns.split(z_t)
        gain = _gain(self.patterns.get_buffer("variance"), alpha_B[:, None], sigma_B[:, None])
        # what the filter gives back along the patterns is theirs already
        return self.patterns.sum(amplitude * gain) + self.patterns.split(self.zonal(left, alpha_B, sigma_B))[1]

    @torch.no_grad()
    def fit(self, windows_BLZHW: np.ndarray) -> None:
        """Estimate from windows of the train years in time order, twice as many as patterns and more."""
        self.zonal.fit(lambda: self._left(windows_BLZHW))
        self.patterns.fit(windows_BLZHW)

    def _left(self, windows_BLZHW: np.ndarray) -> Iterator[np.ndarray]:
        """What the patterns of each half of the record leave of the other half."""
        middle = len(windows_BLZHW) // 2
        halves = windows_BLZHW[:middle], windows_BLZHW[middle:]
        for known, other in (halves, halves[::-1]):
            self.patterns.fit(known)
            for part in torch.from_numpy(other).split(FIT_CHUNK):
                yield self.patterns.split(part)[1].numpy()


class GaussianPrior(nn.Module):
    """The prior without a background, and, where `background_error` is not 0, the one given a background.

    Arguments:
        frames, shape_ZHW, modes, patterns: see `HybridGaussian`.
        background_error: error of a background state, as a share of the climatological spread; 0 = no background.
    """

    def __init__(
        self, frames: int, shape_ZHW: tuple[int, ...], modes: int, patterns: int, background_error: float = 0.0
    ) -> None:
        super().__init__()
        self.climatological = HybridGaussian(frames, shape_ZHW, modes, patterns)
        self.forecast = self.departure = None
        if background_error:
            self.forecast = ZonalForecast(frames, shape_ZHW, modes, background_error)
            self.departure = HybridGaussian(frames, shape_ZHW, modes, patterns)

    def forward(self, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor, z_b: Tensor | None = None) -> Tensor:
        """E[z | z_t], or E[z | z_t, z_b].

        Arguments:
            z_t: (B, L, Z, H, W).
            alpha_B, sigma_B: the kernel's scales.
            z_b: (B, Z, H, W), the day before the window.
        """
        with torch.autocast(z_t.device.type, enabled=False):
            if z_b is None or self.forecast is None or self.departure is None:
                return self.climatological(z_t.float(), alpha_B, sigma_B)
            mean = self.forecast(z_b.float())
            return mean + self.departure(z_t.float() - alpha_B[:, None, None, None, None] * mean, alpha_B, sigma_B)

    @torch.no_grad()
    def fit(self, windows_BLZHW: np.ndarray, noise_BZHW: np.ndarray | None = None) -> None:
        """Estimate all covariances.

        Arguments:
            windows_BLZHW: of the train years in time order, with the day before each window first, (B, 1 + L, ...).
            noise_BZHW: white noise, of which errors of backgrounds are made.
        """
        self.climatological.fit(windows_BLZHW[:, 1:])
        if self.forecast is None or self.departure is None or noise_BZHW is None:
            return
        self.forecast.fit(lambda: (part.numpy() for part in torch.from_numpy(windows_BLZHW).split(FIT_CHUNK)))
        departures = np.empty_like(windows_BLZHW[:, 1:])
        for i in range(0, len(departures), FIT_CHUNK):
            some = slice(i, i + FIT_CHUNK)
            before, noise = (torch.from_numpy(x) for x in (windows_BLZHW[some, 0], noise_BZHW[some]))
            z_b = before + self.forecast.draw_error(noise)
            departures[some] = windows_BLZHW[some, 1:] - self.forecast(z_b).numpy()
        self.departure.fit(departures)


def _gain(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha * variance / (alpha**2 * variance + sigma**2)


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
        d = self._prior(z_t, alpha, sigma, background)
        alpha, sigma = (scale[:, None, None, None, None] for scale in (alpha, sigma))
        v = (alpha * z_t - (alpha**2 + sigma**2) * d) / sigma
        return v + self.correction(z_t, t_B, day_BL5, self._context(v, background))

    def _prior(self, z_t: Tensor, alpha: Tensor, sigma: Tensor, background: Background | None) -> Tensor:
        """The prior's answer, each window by what is known of it."""
        if background is None or not background.known_B.any():
            return self.prior(z_t, alpha, sigma)
        if background.known_B.all():
            return self.prior(z_t, alpha, sigma, background.z_BZHW)
        known, free = (which.nonzero()[:, 0] for which in (background.known_B, ~background.known_B))
        told = self.prior(z_t[known], alpha[known], sigma[known], background.z_BZHW[known])
        untold = self.prior(z_t[free], alpha[free], sigma[free])
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
