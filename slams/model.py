"""Which network a name means: the only place that builds one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from slams.autoencoder import Autoencoder, PaperAutoencoder, ReconstructionTask
from slams.contracts.bundle import Bundle
from slams.denoise import NetworkDenoiser, Prediction, ScoreTask
from slams.gaussian import CorrectedGaussian, GaussianPrior
from slams.localisation import Localisation
from slams.sde import CosineSDE
from slams.spec import Grid, StateSpec
from slams.statistics import Statistics
from slams.unet import UNet


@dataclass(frozen=True)
class ModelConfig:
    """A network.

    Arguments:
        kind: ``autoencoder`` or ``score``.
        network: ``paper`` (as published) or ``base`` (the flagship).
        frames: L, days a window: 1 for an autoencoder, odd for a score network.
        hidden: channels at each level (score), or the width of the branches (autoencoder, one number).
        blocks: blocks at each level (score), or a branch (autoencoder, one number).
        latent_channels: Z (autoencoder).
        reduction: grid cells a latent cell in each direction (autoencoder).
        prediction: what a score network predicts.
        eta: of the perturbation kernel.
        patterns, modes: of the Gaussian prior that a flagship score network corrects: patterns of whole windows, and
            modes of each zonal wavenumber in what they leave.
        localisation_km: half-width beyond which the patterns' covariance is not believed; 0 = all of it is.
        background_error: assumed error of a background, the state of the day before the window, as a share of the
            climatological spread; 0 = the network takes none (flagship score network).
        background_dropped: share of the training windows that are given no background.
        modality_weights: weight of each modality's channels in the reconstruction loss; empty means 1.
    """

    kind: Literal["autoencoder", "score"]
    network: Literal["paper", "base"] = "base"
    frames: int = 1
    hidden: list[int] = field(default_factory=lambda: [64])
    blocks: list[int] = field(default_factory=lambda: [2])
    latent_channels: int = 5
    reduction: int = 1
    prediction: Prediction = "v"
    eta: float = 1e-3
    patterns: int = 400
    modes: int = 256
    localisation_km: float = 9000.0
    background_error: float = 0.0
    background_dropped: float = 0.5
    modality_weights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind == "autoencoder" and self.frames != 1:
            raise ValueError(f"frames: {self.frames} is not allowed for an autoencoder; 1")
        if self.frames < 1 or self.frames % 2 == 0:
            raise ValueError(f"frames: {self.frames} is not allowed; an odd number")
        if len(self.hidden) != len(self.blocks) or min([*self.hidden, *self.blocks, 1]) < 1 or not self.hidden:
            raise ValueError(f"hidden, blocks: {self.hidden}, {self.blocks}; as many of each, at least 1, are needed")
        if self.latent_channels < 1 or self.reduction < 1:
            raise ValueError(f"latent_channels, reduction: {self.latent_channels}, {self.reduction}; at least 1")
        if self.kind == "autoencoder" and len(self.hidden) != 1:
            raise ValueError(f"hidden: {self.hidden} is not allowed for an autoencoder; one number")
        CosineSDE(self.eta)
        if self.modes < 1 or self.patterns < 1:
            raise ValueError(f"patterns, modes: {self.patterns}, {self.modes} are not allowed; at least 1")
        self._check_localisation()
        if self.background_error < 0 or not 0 < self.background_dropped < 1:
            raise ValueError(
                f"background_error, background_dropped: {self.background_error}, {self.background_dropped}; "
                "at least 0, and between 0 and 1"
            )
        if self.background_error and not self.corrects_gaussian:
            raise ValueError("background_error: only a score network of kind 'base' takes a background")
        if self.corrects_gaussian and self.prediction != "v":
            raise ValueError(f"prediction: {self.prediction} is not allowed for a base score network; v")

    def _check_localisation(self) -> None:
        if math.isinf(self.localisation_km):  # which JSON does not know
            raise ValueError(f"localisation_km: {self.localisation_km} is not allowed; 0 where all is believed")
        Localisation(self.half_width_km)

    @property
    def half_width_km(self) -> float:
        """`localisation_km`; infinite where nothing is localised."""
        return self.localisation_km or math.inf

    @property
    def corrects_gaussian(self) -> bool:
        """Whether the network corrects a Gaussian prior that has to be fitted first."""
        return self.kind == "score" and self.network == "base"

    @property
    def lead(self) -> int:
        """Days before each window that training reads, to make its background of."""
        return 1 if self.background_error else 0


def build(config: ModelConfig, spec: StateSpec, shape_CHW: tuple[int, ...], statistics: Statistics) -> nn.Module:
    """The network of a configuration.

    Arguments:
        spec: modalities and grid of the states.
        shape_CHW: shape of one frame: the state's, or the latent's for a latent score network.
        statistics: whose static fields the flagship networks see.

    Raises:
        ValueError: the grid does not divide as the network needs.
    """
    channels, height, width = shape_CHW
    if config.kind == "autoencoder":
        return _autoencoder(config, spec, statistics)
    fold = 2 ** (len(config.hidden) - 1)
    if height % fold or width % fold:
        raise ValueError(f"hidden: {len(config.hidden)} levels need a grid divisible by {fold}, not {height} x {width}")
    if config.network == "paper":
        return UNet(config.frames * channels, config.hidden, config.blocks)
    static, window = static_fields(statistics, Grid(height, width)), config.frames * channels
    context = window + (channels + 1 if config.background_error else 0)
    network = UNet(window, config.hidden, config.blocks, "sphere", True, static, True, context)
    prior = GaussianPrior(
        config.frames, shape_CHW, config.modes, config.patterns, config.half_width_km, config.background_error
    )
    return CorrectedGaussian(prior, _zero_start(network), CosineSDE(config.eta))


def _autoencoder(config: ModelConfig, spec: StateSpec, statistics: Statistics) -> nn.Module:
    if config.network == "paper":
        return PaperAutoencoder(spec.n_channels, spec.modalities[0].n_channels)
    static = static_fields(statistics, spec.grid.coarsened(config.reduction))
    return Autoencoder(
        spec.n_channels, config.latent_channels, config.hidden[0], config.blocks[0], config.reduction, static
    )


def _zero_start(network: UNet) -> UNet:
    """Start from a zero prediction, the mean of v."""
    nn.init.zeros_(network.leave.weight)
    if network.leave.bias is not None:
        nn.init.zeros_(network.leave.bias)
    return network


def static_fields(statistics: Statistics, grid: Grid) -> Tensor:
    """What does not change, on a grid, (S, H, W): sines and cosines of position, land fraction, orography (km)."""
    latitude, longitude = np.meshgrid(np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    across = np.cos(latitude)
    fields = [np.sin(latitude), across, across * np.cos(longitude), across * np.sin(longitude)]
    for name, unit in (("land_fraction", 1.0), ("orography", 1000.0)):
        if name in statistics.static:
            fine = statistics.static[name] / unit
            factor = fine.shape[0] // grid.n_latitude
            fields.append(fine.reshape(grid.n_latitude, factor, grid.n_longitude, factor).mean(axis=(1, 3)))
    return torch.tensor(np.stack(fields), dtype=torch.float32)


def build_task(
    config: ModelConfig, spec: StateSpec, shape_CHW: tuple[int, ...], statistics: Statistics
) -> ReconstructionTask | ScoreTask:
    """The network with its training objective; `.network` is what a bundle keeps."""
    network = build(config, spec, shape_CHW, statistics)
    if isinstance(network, PaperAutoencoder | Autoencoder):
        area = torch.tensor(spec.grid.area_weights, dtype=torch.float32)
        decoded = slice(network.n_decoded)
        observed = torch.from_numpy(statistics.observed[decoded].astype(np.float32)).to(area.device)
        return ReconstructionTask(network, area, _channel_weights(config, spec)[decoded], observed)
    forecast = network.prior.forecast if isinstance(network, CorrectedGaussian) else None
    errors = None if forecast is None else forecast.draw_error
    return ScoreTask(network, CosineSDE(config.eta), config.prediction, errors, config.background_dropped)


def _channel_weights(config: ModelConfig, spec: StateSpec) -> Tensor:
    weights = config.modality_weights or [1.0] * len(spec.modalities)
    if len(weights) != len(spec.modalities) or min(weights) <= 0:
        raise ValueError(f"modality_weights: {weights}; a positive number for each of {spec.names} is needed")
    return torch.tensor([w for m, w in zip(spec.modalities, weights, strict=True) for _ in range(m.n_channels)])


def _open(bundle: Bundle) -> tuple[ModelConfig, nn.Module]:
    config = ModelConfig(**bundle.document["model"])
    network = build(config, bundle.spec, tuple(bundle.document["input"]), bundle.statistics())
    network.load_state_dict({name: torch.from_numpy(value) for name, value in bundle.weights().items()})
    return config, network.eval().requires_grad_(False)


def open_autoencoder(bundle: Bundle) -> PaperAutoencoder | Autoencoder:
    """The trained autoencoder of a bundle, in evaluation mode: batch normalisation uses its running statistics.

    Raises:
        ValueError: the bundle holds another kind of model.
    """
    _, network = _open(bundle)
    if not isinstance(network, PaperAutoencoder | Autoencoder):
        raise ValueError(f"{bundle.folder}: holds a score network, not an autoencoder")
    return network


def open_score(bundle: Bundle) -> tuple[NetworkDenoiser, ModelConfig]:
    """The trained denoiser of windows of a bundle, and its configuration.

    Raises:
        ValueError: the bundle holds another kind of model.
    """
    config, network = _open(bundle)
    if config.kind != "score":
        raise ValueError(f"{bundle.folder}: holds an autoencoder, not a score network")
    return NetworkDenoiser(network, CosineSDE(config.eta), config.prediction), config


def describe(network: nn.Module) -> dict[str, Any]:
    """What a person wants to know of a network before paying for it."""
    return {"parameters": sum(p.numel() for p in network.parameters())}
