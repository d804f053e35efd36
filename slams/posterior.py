"""How a posterior is drawn: the choices that `slams.guidance` and `slams.samplers` carry out.

They stand in a file of their own, so that a run is planned without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GuidanceConfig:
    """Which likelihood score.

    Arguments:
        kind: ``sda``, ``mmps``, or ``none`` (draws from the prior).
        gamma: of ``sda``, in units of the prior variance.
        iterations: conjugate gradient steps of ``mmps``.
    """

    kind: Literal["none", "sda", "mmps"] = "mmps"
    gamma: float = 1e-2
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma: {self.gamma} is not allowed; at least 0")
        if self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations} is not allowed; at least 1")


@dataclass(frozen=True)
class SamplerConfig:
    """How the reverse process is discretised.

    Arguments:
        kind: ``predictor_corrector`` (the paper), ``ddim``, or ``multistep`` (second order, the cheapest).
        steps: reverse steps, equal in t.
        start_alpha: signal scale at which the reverse process starts; the published one is eta = 1e-3. Up to here the
            state is noise to within start_alpha^2 of its variance, and a network's Jacobian, which MMPS divides by
            alpha, is known too poorly: with 1e-3 the demo's members diverge.
        corrections, tau: Langevin corrections a step and their size (predictor_corrector).
        stochasticity: eta of DDIM, 0 to 1.
    """

    kind: Literal["predictor_corrector", "ddim", "multistep"] = "multistep"
    steps: int = 16
    start_alpha: float = 0.02
    corrections: int = 1
    tau: float = 0.5
    stochasticity: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is not allowed; at least 1")
        if not 1e-3 <= self.start_alpha < 1:
            raise ValueError(f"start_alpha: {self.start_alpha} is not allowed; 0.001 to below 1")
        if self.corrections < 0 or self.tau <= 0:
            raise ValueError(f"corrections, tau: {self.corrections}, {self.tau}; at least 0 and more than 0 are needed")
        if not 0 <= self.stochasticity <= 1:
            raise ValueError(f"stochasticity: {self.stochasticity} is not allowed; 0 to 1")
