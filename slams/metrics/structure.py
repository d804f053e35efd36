"""What fields look like, where errors in each cell do not tell: scales, profiles, and the change from day to day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.metrics.area import AreaMean, check_shapes, mean

KAPPA = 2 / 7  # R / c_p of dry air


class ZonalSpectrum(AreaMean):
    """Power of the fields along circles of latitude by wavenumber, (C, W // 2 + 1), the mean over the rows by area.

    Square of the field's units; the sum over all wavenumbers is the area mean of the squared field (Parseval), its
    first value the square of the zonal mean. It is no score: compare members, ensemble mean, increments and truth, each
    by a spectrum of its own. Members as energetic as the truth at every wavenumber are realistic, and a mean that
    loses power at small scales is as it should be; white noise is a flat line. It misleads where phases matter: a
    field in the wrong place has the right spectrum. Wavenumbers count waves around the circle, so that the same
    number is a shorter wave near the poles. Of members it is unbiased for any number of them; that of their mean keeps
    1 / M of the members' spread at each wavenumber. A row whose truth is not known all around is left out. Reference:
    Durran et al. 2017; Rasp et al. 2024 (WeatherBench 2), section 4.
    """

    higher_is_better = None

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, **kwargs: Any) -> None:
        super().__init__(n_channels, weights_HW, n_sums=np.shape(weights_HW)[-1] // 2 + 1, **kwargs)

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        check_shapes(x_MCHW, truth_CHW, (len(self.weight), *self.weights.shape))
        known = ~truth_CHW.isnan().any(dim=-1)
        power = zonal_power(torch.where(known[..., None], x_MCHW.double(), 0.0)).mean(dim=0)
        weight_CH = self.weights.sum(dim=-1) * known
        return torch.einsum("ch,chk->kc", weight_CH, power), weight_CH.sum(dim=-1)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.moveaxis(mean(total, weight), -2, -1)


def zonal_power(x: Tensor) -> Tensor:
    """Power of real rows (..., W) by wavenumber, (..., W // 2 + 1): the sum is the mean square of the row."""
    n = x.shape[-1]
    power: Tensor = (torch.fft.rfft(x, norm="forward")).abs().square()
    twice = power[..., 1 : (n + 1) // 2]  # wavenumbers that stand for their negative as well: not 0, not n / 2
    twice *= 2
    return power


class UnstableLayers(AreaMean):
    """Share of the members' layers steeper than the dry adiabat, (K - 1,), one number a layer between two levels.

    0 to 1; a layer is unstable where the potential temperature theta = T (p0 / p)^(2/7) falls with height. Layers are
    in order of pressure, from the top, whatever the order of the levels. In daily means on large cells nearly all
    layers are stable: compare with the truth's share, `UnstableLayers` of the truth itself. It misleads near the
    ground, where hot land is truly unstable by noon and levels may lie below the surface, and says nothing of moist
    stability. Unbiased for any number of members; the mean of an ensemble is more stable than they are. A layer counts
    where the truth is known at both levels. Reference: Wallace & Hobbs 2006, section 3.6.

    Arguments:
        level_hpa: pressure of the K channels.
    """

    higher_is_better = None
    exner: Tensor

    def __init__(self, level_hpa: Sequence[float], weights_HW: np.ndarray | Tensor, **kwargs: Any) -> None:
        if len(level_hpa) < 2 or len(set(level_hpa)) < len(level_hpa):
            raise ValueError(f"level_hpa: {list(level_hpa)} is not allowed; at least two levels, none of them twice")
        super().__init__(len(level_hpa) - 1, weights_HW, **kwargs)
        self.order = np.argsort(level_hpa).tolist()
        pressure = torch.as_tensor(np.sort(level_hpa), dtype=torch.float64)
        self.register_buffer("exner", ((pressure / 1000) ** KAPPA)[:, None, None], persistent=False)

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        check_shapes(x_MCHW, truth_CHW, (len(self.order), *self.weights.shape))
        theta, known = x_MCHW[:, self.order].double() / self.exner, truth_CHW[self.order]
        # falls with height, or rises with pressure; NaN stays NaN, where a comparison would call it stable
        rise = theta.diff(dim=1)
        share = torch.where(rise.isnan(), rise, (rise > 0).double()).mean(dim=0)
        return self._summed([share], known[1:] + known[:-1])


class DayChange(AreaMean):
    """Size of the members' change from one day to the next beside that of the truth, (C,).

    The ratio of the root-mean-squares: 1 when the weather moves as fast as it should, below 1 sluggish, above 1
    flickering; days drawn independently of one another jump, an ensemble mean creeps. `update` is given changes,
    x(t + 1) - x(t) of each member and of the truth, of consecutive days alone. It misleads where errors of speed
    cancel between regions, and a state that moves at the right pace into a wrong direction scores 1. A truth that
    never changes gives no score. 0 upwards; the squares are unbiased for any number of members, their ratio by less
    than one over the number of independent changes. No reference; Ben Bouallegue et al. 2024 measure activity likewise,
    of anomalies.
    """

    higher_is_better = None

    def __init__(self, n_channels: int, weights_HW: np.ndarray | Tensor, **kwargs: Any) -> None:
        super().__init__(n_channels, weights_HW, n_sums=2, **kwargs)

    def sums(self, x_MCHW: Tensor, truth_CHW: Tensor) -> tuple[Tensor, Tensor]:
        check_shapes(x_MCHW, truth_CHW, (len(self.weight), *self.weights.shape))
        squares = [x_MCHW.double().square().mean(dim=0), truth_CHW.double().square()]
        return self._summed(squares, truth_CHW)

    @staticmethod
    def value(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = total[..., 0, :] / total[..., 1, :]
        found: np.ndarray = np.sqrt(np.where((weight > 0) & (total[..., 1, :] > 0), ratio, np.nan))
        return found
