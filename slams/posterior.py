"""How a posterior is drawn: the choices that `slams.guidance` and `slams.samplers` carry out, and what they cost.

They stand in a file of their own, so that a run is planned without loading torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GuidanceConfig:
    """Which likelihood score; `slams.guidance` says what each is.

    Arguments:
        kind: ``mmps`` (covariance-aware, the product's), ``pgdm``, ``dps``, ``sda`` (the paper's), or ``none`` (draws
            from the prior).
        gamma: of ``sda``, in units of the prior variance.
        zeta: of ``dps``, the length of its step.
        iterations: conjugate gradient steps of ``mmps`` and ``pgdm``.
    """

    kind: Literal["none", "sda", "dps", "pgdm", "mmps"] = "mmps"
    gamma: float = 1e-2
    zeta: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma: {self.gamma} is not allowed; at least 0")
        if not 0 < self.zeta < math.inf:
            raise ValueError(f"zeta: {self.zeta} is not allowed; more than 0")
        if self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations} is not allowed; at least 1")


@dataclass(frozen=True)
class SamplerConfig:
    """How the reverse process is discretised.

    Arguments:
        kind: ``predictor_corrector`` (the paper), ``ddim``, ``heun`` (second order, two evaluations a step), or
            ``multistep`` (second order at the cost of ``ddim``).
        steps: reverse steps.
        spacing: steps equal in ``time`` (the paper), or in ``log_snr`` = log(alpha / sigma). Time serves the large
            scales; where the posterior is far narrower than the prior, its steps are too long near the end. Share of
            the variance that 16 multistep steps keep of a posterior of 0.05 prior std everywhere: 0.26 in time, 0.83
            in log_snr; relative covariance error of a sparsely observed one: 0.03 and 0.31 (tests/test_oracle.py).
        start_alpha: signal scale at which the reverse process starts; the published one is eta = 1e-3. Up to here the
            state is noise to within start_alpha^2 of its variance, and a network's Jacobian, which MMPS divides by
            alpha, is known too poorly: with 1e-3 the demo's members diverge.
        corrections, tau: Langevin corrections a step and their size (predictor_corrector).
        stochasticity: eta of DDIM, 0 (deterministic) to 1 (ancestral).
    """

    kind: Literal["predictor_corrector", "ddim", "heun", "multistep"] = "multistep"
    steps: int = 16
    spacing: Literal["time", "log_snr"] = "time"
    start_alpha: float = 0.02
    corrections: int = 1
    tau: float = 0.5
    stochasticity: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is not allowed; at least 1")
        if not 1e-3 <= self.start_alpha < 1:
            raise ValueError(f"start_alpha: {self.start_alpha} is not allowed; 0.001 to below 1")
        if self.corrections < 0 or not 0 < self.tau < math.inf:
            raise ValueError(f"corrections, tau: {self.corrections}, {self.tau}; at least 0 and more than 0 are needed")
        if not 0 <= self.stochasticity <= 1:
            raise ValueError(f"stochasticity: {self.stochasticity} is not allowed; 0 to 1")


@dataclass(frozen=True)
class Work:
    """Calls of the network for one window of one member.

    Arguments:
        forwards: evaluations.
        backwards: vector-Jacobian products.
    """

    forwards: int
    backwards: int

    @property
    def total(self) -> int:
        return self.forwards + self.backwards


def network_work(sampler: SamplerConfig, guidance: GuidanceConfig) -> Work:
    """What drawing one window of one member asks of the network.

    Decoder and observation operators are not counted, nor what is evaluated again where windows come in chunks.
    """
    evaluations = {
        "predictor_corrector": sampler.steps * (1 + sampler.corrections),
        "ddim": sampler.steps,
        "heun": 2 * sampler.steps - 1,  # the last step is of first order
        "multistep": sampler.steps,
    }[sampler.kind]
    products = {"none": 0, "sda": 1, "dps": 1, "pgdm": 1, "mmps": 1 + guidance.iterations}[guidance.kind]
    return Work(evaluations, evaluations * products)
