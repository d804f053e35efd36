"""The multimodal autoencoder: z = E(x), x^ = D(z).

`PaperAutoencoder` is the published one: five 5x5 convolutions each way, no spatial reduction, the ten temperatures
decoded (Qu et al. 2024). `Autoencoder` is the flagship: a linear code (blocks of cells to latent channels and back),
corrected by residual sphere-aware convolutions on both sides, every modality decoded. Both take standardised
channels with NaN where missing; a missing value enters as 0, which is its climatological mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.layers import ChannelNorm, Conv

Part = tuple[slice | Tensor, slice | Tensor]  # rows and columns of latent cells
EVERYTHING: Part = (slice(None), slice(None))


class PaperAutoencoder(nn.Module):
    """The published network. 14,695 / 14,920 / 15,145 parameters for 10 / 11 / 12 input channels.

    Arguments:
        n_input: channels in, temperatures first.
        n_decoded: channels out, the temperatures.
    """

    WIDTHS = (9, 8, 7, 6, 5)
    reduction = 1
    reach = 2 * len(WIDTHS)  # latent cells, in each direction, that a decoded cell depends on
    wraps = False

    def __init__(self, n_input: int, n_decoded: int) -> None:
        super().__init__()
        self.n_decoded = n_decoded
        self.encoder = self._stack((n_input, *self.WIDTHS), nn.Conv2d)
        self.decoder = self._stack((*reversed(self.WIDTHS), n_decoded), nn.ConvTranspose2d)

    @staticmethod
    def _stack(widths: Sequence[int], layer: type[nn.Conv2d] | type[nn.ConvTranspose2d]) -> nn.Sequential:
        parts: list[nn.Module] = []
        for channels_in, channels_out in zip(widths[:-1], widths[1:], strict=True):
            parts += [layer(channels_in, channels_out, 5, padding=2), nn.BatchNorm2d(channels_out), nn.ReLU()]
        return nn.Sequential(*parts[:-2])

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 5, H, W)."""
        return self.encoder(torch.nan_to_num(x_BCHW))

    def decode(self, z_BZHW: Tensor, part: Part = EVERYTHING) -> Tensor:
        """(B, 5, H, W) -> (B, n_decoded, H, W); latents of a part of the globe give that part."""
        return self.decoder(z_BZHW)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(norm(x)))), the last convolution zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = Conv(channels, channels, 3, "sphere")
        self.second = Conv(channels, channels, 3, "sphere")
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(self.norm(x))))


class Branch(nn.Sequential):
    """A residual stack between two widths that is zero at the start, so that training begins from the linear code."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, n_blocks: int) -> None:
        last = Conv(hidden, channels_out, 3, "sphere")
        nn.init.zeros_(last.weight)
        super().__init__(
            Conv(channels_in, hidden, 3, "sphere"), *(ResidualBlock(hidden) for _ in range(n_blocks)), nn.SiLU(), last
        )


class Autoencoder(nn.Module):
    """The flagship: linear code + residual branches, all at the latent's resolution.

    Arguments:
        n_channels: C, all decoded.
        latent_channels: Z.
        hidden: width of the residual branches.
        n_blocks: residual blocks a branch.
        reduction: cells a latent cell in each direction.
        static_SHW: fixed fields at the latent's resolution, seen by both branches.
    """

    def __init__(
        self, n_channels: int, latent_channels: int, hidden: int, n_blocks: int, reduction: int, static_SHW: Tensor
    ) -> None:
        super().__init__()
        self.n_decoded, self.reduction = n_channels, reduction
        self.reach, self.wraps = 2 + 2 * n_blocks, True
        blocked, n_static = n_channels * reduction**2, len(static_SHW)
        self.register_buffer("static", static_SHW)
        self.fold, self.unfold = nn.PixelUnshuffle(reduction), nn.PixelShuffle(reduction)
        self.encode_linear = nn.Conv2d(blocked, latent_channels, 1)
        self.decode_linear = nn.Conv2d(latent_channels, blocked, 1)
        self.encode_branch = Branch(blocked + n_static, hidden, latent_channels, n_blocks)
        self.decode_branch = Branch(latent_channels + n_static, hidden, blocked, n_blocks)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, Z, H / r, W / r)."""
        x = self.fold(torch.nan_to_num(x_BCHW))
        return self.encode_linear(x) + self.encode_branch(self._with_static(x))

    def decode(self, z_BZHW: Tensor, part: Part = EVERYTHING) -> Tensor:
        """(B, Z, H / r, W / r) -> (B, C, H, W); latents of a part of the globe give that part."""
        return self.unfold(self.decode_linear(z_BZHW) + self.decode_branch(self._with_static(z_BZHW, part)))

    def _with_static(self, x: Tensor, part: Part = EVERYTHING) -> Tensor:
        static = self.get_buffer("static")[:, part[0]][..., part[1]]
        return torch.cat([x, static.expand(len(x), -1, -1, -1).to(x.dtype)], dim=1)


class ReconstructionTask(nn.Module):
    """Training objective of an autoencoder: mean squared error, area-weighted, of what is observed and decoded.

    Each modality counts by its number of channels times its weight; a missing value (the ocean has no gauges)
    counts for nothing. The sum is divided by the weight of what is usually observed, not of what a batch happens to
    hold: so the loss of a batch is the mean of those of its parts, however it is cut.

    Arguments:
        network: with `encode`, `decode`, `n_decoded`.
        area_HW: share of the sphere a cell covers.
        weight_C: weight of each decoded channel.
        observed_CHW: where each decoded channel is usually observed.
    """

    def __init__(
        self, network: PaperAutoencoder | Autoencoder, area_HW: Tensor, weight_C: Tensor, observed_CHW: Tensor
    ) -> None:
        super().__init__()
        self.network = network
        weight = weight_C[:, None, None] * area_HW
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("whole", (weight * observed_CHW).sum(), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x_BCHW = batch["x"].flatten(0, 1)
        target = x_BCHW[:, : self.network.n_decoded]
        decoded = self.network.decode(self.network.encode(x_BCHW)).float()
        error = torch.where(torch.isfinite(target), decoded - torch.nan_to_num(target), 0.0) ** 2
        return {"loss": (self.get_buffer("weight") * error).sum() / (len(target) * self.get_buffer("whole"))}
