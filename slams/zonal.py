"""A Gaussian of windows that knows no longitude, and forecasts within it.

Where statistics are the same at every longitude, zonal waves are independent, and for each wavenumber m the latitudes
and latent channels have one covariance, whose leading eigenvectors (complex, for their phase) are kept. Each such mode
has its own covariance over the frames of a window, Hermitian, so that growth, decay and travel of a wave from day to
day are in it. What the modes leave is white noise.

All arithmetic is real: a complex number a + ib is the pair (a, b), a complex matrix [[Re, -Im], [Im, Re]].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from slams.patterns import SMALLEST_VARIANCE, gain

Windows = Callable[[], Iterable[np.ndarray]]


def fourier_basis(width: int) -> np.ndarray:
    """Orthonormal cosines and sines over a circle of cells, (W, 2, W // 2 + 1); waves that are no waves are zero."""
    wave, angle = np.arange(width // 2 + 1), 2 * np.pi * np.arange(width) / width
    scale = np.where((wave == 0) | (2 * wave == width), 1.0, 2.0) / width
    phase = angle[:, None] * wave
    sine = np.where((wave == 0) | (2 * wave == width), 0.0, -np.sin(phase))
    return np.stack([np.cos(phase), sine], axis=1) * np.sqrt(scale)


def _as_real(matrix: Tensor) -> Tensor:
    """Complex (..., a, b) to the real matrix (..., 2a, 2b) that does the same to (real part, imaginary part)."""
    rows = torch.cat([matrix.real, -matrix.imag], dim=-1), torch.cat([matrix.imag, matrix.real], dim=-1)
    return torch.cat(rows, dim=-2)


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

    def _set(self, name: str, value: Tensor) -> None:
        self._of(name).copy_(value)

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

    def _complex_waves(self, windows: Windows) -> Iterator[Tensor]:
        """Batches (m, B, L, Z H), of unit variance for white noise."""
        fourier = self._of("fourier").double()
        both = fourier[:, 1].any(dim=0)  # two parts of variance 1 each, or one
        basis = torch.where(both, 0.5**0.5, 1.0) * fourier
        for x in windows():
            parts = torch.einsum("blzhw,wpm->mblzhp", torch.from_numpy(x).to(basis), basis)
            yield torch.view_as_complex(parts.contiguous()).flatten(3)

    def _fit_modes(self, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvectors (m, Z H, r), their variances (m, r), and the mean variance of what they leave (m,)."""
        total, count = torch.zeros(()), 0
        for wave in self._complex_waves(windows):
            flat = wave.flatten(1, 2)
            total = flat.mT @ flat.conj() + total.to(flat)
            count += flat.shape[1]
        variance, vectors = torch.linalg.eigh(total / count)
        left, kept = variance.split([variance.shape[1] - self.modes, self.modes], dim=1)
        rest = left.mean(dim=1) if left.shape[1] else torch.zeros_like(kept[:, 0])
        vectors = vectors[..., -self.modes :]
        self._set("vectors", _as_real(vectors))
        return vectors, kept.clamp_min(SMALLEST_VARIANCE), rest

    def _fit_frames(self, windows: Windows, vectors: Tensor) -> Tensor:
        """Covariance of each mode over the frames, (m, r, L, L), Hermitian."""
        total, count = torch.zeros(()), 0
        for wave in self._complex_waves(windows):
            mode = (wave.flatten(1, 2) @ vectors.conj()).unflatten(1, wave.shape[1:3]).permute(0, 3, 2, 1)
            total = mode @ mode.mH + total.to(mode)
            count += mode.shape[-1]
        return total / count


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
        rest = gain(self._of("rest")[:, None, None], alpha, sigma).repeat_interleave(self.frames, dim=1)
        axes, variance = self._of("axes"), self._of("variance")[:, :, None]
        filtered = ((self._by_mode(mode, len(z_t)) @ axes) * gain(variance, alpha, sigma)) @ axes.mT
        # gains of the modes, and of what they leave: the field less its modes
        return self._fields((self._by_wave(filtered) - rest * mode) @ vectors.mT + rest * wave, z_t.shape)

    @torch.no_grad()
    def fit(self, windows: Windows) -> None:
        """Estimate the covariances.

        Arguments:
            windows: each call gives batches (B, L, Z, H, W) of the train years; it is called twice.
        """
        vectors, _, rest = self._fit_modes(windows)
        variance, axes = torch.linalg.eigh(_as_real(self._fit_frames(windows, vectors)))
        self._set("rest", rest)
        self._set("axes", axes)
        self._set("variance", variance.clamp_min(SMALLEST_VARIANCE))


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
        self._set("spread", variance.sqrt())
