"""A Gaussian prior of windows of latents, fitted in seconds, that a score network starts from and corrects.

Statistics are taken to be the same at every longitude and to know nothing else about the atmosphere. Then zonal
waves are independent of each other, and for each wavenumber m the latitudes and latent channels have one covariance,
whose leading eigenvectors (empirical orthogonal functions with their phase, hence complex) are kept. Each such mode
has its own covariance over the frames of a window, Hermitian, so that growth, decay and travel of a wave from day to
day are in it. What the kept modes leave is white noise.

For such a prior the denoiser is a formula: E[z | z_t] = mu + alpha C (alpha^2 C + sigma^2 I)^-1 (z_t - alpha mu), by
the eigenvectors of C. A known state z_b of the day before the window, with an error of a stated share of the
climatological spread, moves mu and shrinks C, as conditioning does to any Gaussian. All arithmetic is real: a complex
number a + ib is the pair (a, b), a complex matrix the real one [[Re, -Im], [Im, Re]].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from slams.denoise import Background
from slams.sde import CosineSDE

Windows = Callable[[], Iterable[np.ndarray]]
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


class ZonalGaussian(nn.Module):
    """The prior and its exact denoiser; untrained until `fit`.

    Arguments:
        frames: L of a window.
        shape_ZHW: of a frame.
        modes: eigenvectors kept of each wavenumber.
        background_error: error of a background state, as a share of the climatological spread; 0 = no background.
    """

    def __init__(self, frames: int, shape_ZHW: tuple[int, ...], modes: int, background_error: float = 0.0) -> None:
        super().__init__()
        z, height, width = shape_ZHW
        self.frames, self.background_error = frames, background_error
        self.modes = min(modes, z * height)
        waves, both = width // 2 + 1, 2 * frames
        self.register_buffer("fourier", torch.from_numpy(fourier_basis(width)).float(), persistent=False)
        self._zeros("vectors", waves, 2 * z * height, 2 * self.modes)
        self._zeros("rest", waves)
        self._zeros("axes", waves, self.modes, both, both)
        self._zeros("variance", waves, self.modes, both)
        self._zeros("spread", waves, self.modes)
        if background_error:
            self._zeros("regression", waves, self.modes, both, 2)
            self._zeros("axes_known", waves, self.modes, both, both)
            self._zeros("variance_known", waves, self.modes, both)

    def _zeros(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(shape))

    def forward(self, z_t: Tensor, alpha_B: Tensor, sigma_B: Tensor, z_b: Tensor | None = None) -> Tensor:
        """E[z | z_t], or E[z | z_t, z_b].

        Arguments:
            z_t: (B, L, Z, H, W).
            alpha_B, sigma_B: the kernel's scales.
            z_b: (B, Z, H, W), the day before the window.
        """
        with torch.autocast(z_t.device.type, enabled=False):
            wave = self._waves(z_t.float())
            mode = wave @ self._of("vectors")
            alpha, sigma = alpha_B[:, None], sigma_B[:, None]
            left = self._rest_gain(alpha, sigma) * (wave - mode @ self._of("vectors").mT)
            known = "" if z_b is None else "_known"
            mean = None if z_b is None else self._regressed(z_b)
            filtered = self._filter(self._by_mode(mode, len(z_t)), alpha, sigma, mean, known)
            return self._fields(self._by_wave(filtered) @ self._of("vectors").mT + left, z_t.shape)

    def draw(self, noise_BZHW: Tensor) -> Tensor:
        """Frames with the climatological covariance, from white noise of the same shape."""
        wave = self._waves(noise_BZHW[:, None].float())
        spread = self._of("spread").repeat(1, 2)[:, None]
        mode = (wave @ self._of("vectors")) * spread
        return self._fields(mode @ self._of("vectors").mT, noise_BZHW[:, None].shape)[:, 0]

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _waves(self, z_BLZHW: Tensor) -> Tensor:
        """(B, L, Z, H, W) -> (m, B L, 2 Z H)."""
        wave = torch.einsum("blzhw,wpm->mblpzh", z_BLZHW, self._of("fourier"))
        return wave.flatten(3).flatten(1, 2)

    def _fields(self, wave: Tensor, shape: torch.Size) -> Tensor:
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

    def _rest_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        rest = self._of("rest")[:, None, None]
        gain = alpha * rest / (alpha**2 * rest + sigma**2)  # (m, B, 1)
        return gain.repeat_interleave(self.frames, dim=1)

    def _regressed(self, z_b: Tensor) -> Tensor:
        mode = self._by_mode(self._waves(z_b[:, None].float()) @ self._of("vectors"), len(z_b))
        return mode @ self._of("regression").mT

    def _filter(self, mode: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor | None, known: str) -> Tensor:
        axes, variance = self._of("axes" + known), self._of("variance" + known)[:, :, None]
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        if mean is None:
            return ((mode @ axes) * gain) @ axes.mT
        return mean + (((mode - alpha * mean) @ axes) * gain) @ axes.mT

    @torch.no_grad()
    def fit(self, windows: Windows) -> None:
        """Estimate the covariances.

        Arguments:
            windows: each call gives batches (B, 1 + L, Z, H, W) of consecutive frames of the train years, the first
                the day before the window; it is called twice.
        """
        vectors, variance, rest = self._spatial(windows)
        self._of("vectors").copy_(torch.from_numpy(_as_real(vectors)))
        self._of("rest").copy_(torch.from_numpy(rest))
        self._of("spread").copy_(torch.from_numpy(np.sqrt(variance)))
        time = self._temporal(windows, vectors)
        self._store("", time[..., 1:, 1:])
        if self.background_error:
            before = time[..., 0, 0] + self.background_error**2 * variance
            gain = time[..., 1:, :1] / before[..., None, None]
            self._of("regression").copy_(torch.from_numpy(_as_real(gain)))
            self._store("_known", time[..., 1:, 1:] - gain @ time[..., :1, 1:])

    def _store(self, name: str, covariance: np.ndarray) -> None:
        variance, axes = np.linalg.eigh(_as_real(covariance))
        self._of("axes" + name).copy_(torch.from_numpy(axes))
        self._of("variance" + name).copy_(torch.from_numpy(np.maximum(variance, SMALLEST_VARIANCE)))

    def _complex_waves(self, windows: Windows) -> Iterator[np.ndarray]:
        """Batches (m, B, 1 + L, Z H), of unit variance for white noise."""
        fourier = self._of("fourier").double().cpu().numpy()
        both = np.where(fourier[:, 1].any(axis=0), 0.5**0.5, 1.0)  # two parts of variance 1 each, or one
        basis = (fourier[:, 0] + 1j * fourier[:, 1]) * both
        for x in windows():
            yield np.einsum("blzhw,wm->mblzh", x, basis, optimize=True).reshape(basis.shape[1], *x.shape[:2], -1)

    def _spatial(self, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total, count = np.zeros(()), 0
        for wave in self._complex_waves(windows):
            flat = wave.reshape(len(wave), -1, wave.shape[-1])
            total = total + flat.swapaxes(1, 2) @ flat.conj()
            count += flat.shape[1]
        variance, vectors = np.linalg.eigh(total / count)
        kept = slice(variance.shape[1] - self.modes, None)
        left = variance[:, : kept.start]
        rest = left.mean(axis=1) if kept.start else np.zeros(len(variance))
        return vectors[..., kept], np.maximum(variance[:, kept], SMALLEST_VARIANCE), rest

    def _temporal(self, windows: Windows, vectors: np.ndarray) -> np.ndarray:
        """Covariance of each mode over the frames, (m, r, 1 + L, 1 + L), Hermitian."""
        total, count = np.zeros(()), 0
        for wave in self._complex_waves(windows):
            mode = np.einsum("mbld,mdr->mrlb", wave, vectors.conj(), optimize=True)
            total = total + mode @ mode.conj().swapaxes(-1, -2)
            count += mode.shape[-1]
        return np.asarray(total / count)


class CorrectedGaussian(nn.Module):
    """A score network that predicts v = alpha eps - sigma z as the prior's exact answer plus a learned correction.

    The correction sees the prior's answer beside the noisy window, and with it what lies beyond the reach of its
    convolutions. It starts at zero, so that an untrained network is the prior.

    Arguments:
        prior: fitted before training.
        correction: (z_t, t, day, context (B, L Z [+ Z + 1], H, W)) -> (B, L, Z, H, W).
        sde: the perturbation kernel.
    """

    def __init__(self, prior: ZonalGaussian, correction: nn.Module, sde: CosineSDE) -> None:
        super().__init__()
        self.prior, self.correction, self.sde = prior, correction, sde

    def forward(self, z_t: Tensor, t_B: Tensor, day_BL5: Tensor, background: Background | None = None) -> Tensor:
        alpha, sigma = self.sde.alpha(t_B), self.sde.sigma(t_B)
        d = self.prior(z_t, alpha, sigma)
        if background is not None:
            known = background.known_B[:, None, None, None, None]
            d = torch.where(known, self.prior(z_t, alpha, sigma, background.z_BZHW), d)
        alpha, sigma = (scale[:, None, None, None, None] for scale in (alpha, sigma))
        v = (alpha * z_t - (alpha**2 + sigma**2) * d) / sigma
        return v + self.correction(z_t, t_B, day_BL5, self._context(v, background))

    def _context(self, v_BLZHW: Tensor, background: Background | None) -> Tensor:
        context = v_BLZHW.flatten(1, 2)
        if not self.prior.background_error:
            return context
        batch, _, z, *field = v_BLZHW.shape
        if background is None:
            return torch.cat([context, context.new_zeros(batch, z + 1, *field)], dim=1)
        known = background.known_B[:, None, None, None].to(context.dtype)
        return torch.cat([context, background.z_BZHW * known, known.expand(-1, -1, *field)], dim=1)
