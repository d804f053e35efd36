"""The loaded models of a run: observations of some days -> members of the posterior on those days.

Members are drawn in groups that fit the memory budget. On a CPU a group always has the same size, and a member its own
place in it: sums round by size and place, and a member is then the same to the last bit whoever is drawn with it.
Where not even one trajectory fits the budget, its windows and frames are taken in chunks, for one more evaluation a
derivative.

A member that diverges is drawn again with other noise, at most twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sample.config import SampleConfig
from sample.drawn import DivergedMemberError, Drawn, diverged, refuse_diverged
from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.contracts.bundle import Bundle, open_bundle
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Observed
from slams.decoder import Decoder
from slams.guidance import Likelihood, guided
from slams.likelihood import Physical, latent_likelihood, physical_likelihood
from slams.model import open_autoencoder, open_score
from slams.rng import normal
from slams.samplers import DivergenceError, Noise, sample
from slams.sde import CosineSDE
from slams.spec import StateSpec, not_negative
from slams.statistics import Statistics, day_features
from slams.windows import saved_bytes, windowed

REDRAWS = 2
# Members drawn at once on a CPU. Alone one costs twice what it does among eight, and 1.2 times among four, where a
# segment is one window; longer ones, and units of fewer members than there are places, gain nothing from more.
PLACES, PLACES_OF_A_WINDOW = 4, 8
DECODER_GRAPHS = 3  # forward, its derivative, and the derivative of that: what an observation operator keeps


class Assimilator:
    """Score network and decoder of a run.

    Raises:
        ContractError, ValueError: bundles that do not belong together.
    """

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = config.bf16  # else a GPU's convolutions are those of a CPU to 1e-3 only
        self.score = open_bundle(config.score)
        self.denoise, self.model = open_score(self.score)
        self.denoise.network.to(self.device)
        self.sde = CosineSDE(self.model.eta)
        self.bundle = _autoencoder(config, self.score)
        self.network = None if self.bundle is None else open_autoencoder(self.bundle).to(self.device)
        self.spec = self.score.spec if self.bundle is None else _decoded(self.bundle, self.network)
        self.unresolved_C = _unresolved(self.bundle, self.spec)
        self._bytes = self._measured()

    @cached_property
    def statistics(self) -> Statistics:
        return self.score.statistics()

    @property
    def frames(self) -> int:
        """Days of a window of the network."""
        return self.model.frames

    @property
    def prior(self) -> str:
        return "climatological"

    @property
    def told(self) -> dict[str, Any]:
        """For the ledger: nothing but what the configuration says."""
        return {}

    @property
    def checksums(self) -> dict[str, str]:
        """Of the bundles."""
        return {"score_sha256": self.score.checksum} | (
            {"autoencoder_sha256": self.bundle.checksum} if self.bundle else {}
        )

    @property
    def shape_ZHW(self) -> tuple[int, ...]:
        """Of a frame of what is drawn."""
        return tuple(self.score.document["input"])

    def encode(self, x_CHW: np.ndarray, day: np.ndarray) -> Tensor:
        """A state in physical units as a standardised latent, (Z, H, W).

        Arguments:
            day: its valid day, (1,).
        """
        x = torch.from_numpy(self.statistics.standardise(x_CHW[None], day)).to(self.device)
        if self.network is None:
            return torch.nan_to_num(x[0])
        decoder = self._decoder(0)
        with torch.no_grad():
            return ((self.network.encode(x) - decoder.mean) / decoder.std)[0]

    def draw(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None = None) -> Drawn:
        """Members of the posterior on consecutive days.

        Arguments:
            seen: what was observed on those days; nothing at all gives the prior.
            days: (L,).
            members: their numbers, (M,).
            z_b: background of the day before, (Z, H, W), or none.
        """
        parts = [self._group(seen, days, group, z_b) for group in self._groups(members, len(days))]
        reasons = {member: reason for part in parts for member, reason in part.diverged.items()}
        return Drawn(np.concatenate([part.x_MLCHW for part in parts]), reasons)

    def seconds(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None) -> float:
        """What drawing those takes, from trials of one and of two steps."""

        def trial(steps: int) -> float:
            of = copy(self)
            of.config = replace(self.config, sampler=replace(self.config.sampler, steps=steps))
            began = time.perf_counter()
            of.draw(seen, days, members, z_b)
            return time.perf_counter() - began

        _, one, two = (trial(n) for n in (1, 1, 2))  # the first also pays for what is done once
        return one + (self.config.sampler.steps - 1) * max(two - one, 0.0)

    def _groups(self, members: np.ndarray, n_days: int) -> list[np.ndarray]:
        """Members that are drawn together; on a CPU those of the same multiple of their places."""
        at_once = self.members_at_once(n_days)
        if self.device.type == "cpu":
            at_once = self._places(n_days)
            return np.split(members, np.flatnonzero(np.diff(members // at_once)) + 1)
        return [members[i : i + at_once] for i in range(0, len(members), at_once)]

    def _places(self, n_days: int) -> int:
        """The most that fit the budget and that members fill by more than half."""
        most = min(self.members_at_once(n_days), 2 * self.config.members - 1)
        one_window = n_days <= self.model.frames
        return next((n for n in (*[PLACES_OF_A_WINDOW] * one_window, PLACES) if n <= most), 1)

    def members_at_once(self, n_days: int) -> int:
        """How many trajectories of that length the memory budget holds; at least 1."""
        return max(1, self._budget // self._trajectory_bytes(n_days))

    def _group(self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, z_b: Tensor | None) -> Drawn:
        """Members drawn together, those that diverge again and again left out, and why."""
        diverged: dict[int, list[str]] = {}
        x_MLCHW = np.full((len(members), len(days), self.spec.n_channels, *self.spec.grid.shape), np.nan, np.float32)
        while True:
            attempts = np.array([len(diverged.get(int(member), ())) for member in members])
            left = attempts <= REDRAWS
            if not left.any():
                return Drawn(x_MLCHW, diverged)
            try:
                x_MLCHW[left] = self._placed(seen, days, members[left], attempts[left], z_b)
                return Drawn(x_MLCHW, diverged)
            except DivergedMemberError as error:
                diverged.setdefault(error.member, []).append(str(error))

    def _placed(
        self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, attempts: np.ndarray, z_b: Tensor | None
    ) -> np.ndarray:
        """One attempt at members, on a CPU each in its place and the first of them in those that are free."""
        if self.device.type != "cpu":
            return self._draw(seen, days, members, attempts, z_b)
        place = members % self._places(len(days))
        who = np.zeros(self._places(len(days)), int)
        who[place] = np.arange(len(members))
        return self._draw(seen, days, members[who], attempts[who], z_b)[place]

    def _draw(
        self, seen: Sequence[Observed], days: np.ndarray, members: np.ndarray, attempts: np.ndarray, z_b: Tensor | None
    ) -> np.ndarray:
        """One attempt at members.

        Raises:
            DivergedMemberError: one of them diverged.
        """
        decoder = self._decoder(self._at_once("frame", len(days)))
        physical = Physical(self.statistics, days, self.device)
        calendar = torch.from_numpy(day_features(days)).float().to(self.device)
        windows = self._at_once("window", len(days))
        denoise = windowed(self.denoise, self.model.frames, calendar, windows, z_b)
        if seen:
            denoise = guided(denoise, self._likelihood(seen, physical, decoder), self.config.guidance, self.sde)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16), torch.no_grad():
            try:
                z = sample(denoise, self.config.sampler, self.sde, self._noise(days, members, attempts))
            except DivergenceError as error:
                raise diverged(members[error.member], days[error.frame], error) from None
            x = decoder(z).float() if self.network is not None else z
        refuse_diverged(members, days, x[:, :, self.spec.channels(self.spec.names[0])])
        return self._admissible(physical(x).cpu().numpy())

    def _likelihood(self, seen: Sequence[Observed], physical: Physical, decoder: Decoder) -> Likelihood:
        if seen[0].name == "latent":
            return latent_likelihood(seen[0], self.device)
        decode = decoder.within if self.network is not None else lambda z, needed: z
        unresolved_C = self.unresolved_C.to(self.device)
        return physical_likelihood(seen, self.spec, decode, physical, unresolved_C, self.config.error_inflation)

    def _admissible(self, x_MLCHW: np.ndarray) -> np.ndarray:
        """Rain not below none, which a linear decoder may give, and nothing where a channel is never observed."""
        observed = self.statistics.observed[: self.spec.n_channels]
        return np.where(observed, not_negative(x_MLCHW, self.spec), np.nan)

    def _noise(self, days: np.ndarray, members: np.ndarray, attempts: np.ndarray) -> Noise:
        """Noise keyed by (seed, member, valid day, step): a frame's is its own, whoever draws it, in any segment; that
        of a later attempt by its number too."""
        shape, frames = self.shape_ZHW, days.astype(int)

        def one(member: int, attempt: int, day: int, step: int) -> np.ndarray:
            if not attempt:
                return normal(self.config.seed, "sampler", member, day, step, shape=shape)
            return normal(self.config.seed, "redraw", attempt, member, day, step, shape=shape)

        def noise(step: int) -> Tensor:
            parts = [[one(m, a, day, step) for day in frames] for m, a in zip(members, attempts, strict=True)]
            return torch.from_numpy(np.array(parts)).to(self.device)

        return noise

    def _decoder(self, at_once: int) -> Decoder:
        latent = self.score.document.get("latent", {"mean": [0.0], "std": [1.0]})
        mean, std = (torch.tensor(latent[part], device=self.device) for part in ("mean", "std"))
        return Decoder(self.network, mean, std, at_once)

    @property
    def _budget(self) -> int:
        return int(self.config.memory_gib * 2**30)

    def _measured(self) -> dict[str, int]:
        """What one window of the network and one frame of the decoder keep for a derivative, in bytes."""
        frames = self.model.frames
        z, t = torch.zeros(1, frames, *self.shape_ZHW, device=self.device), torch.tensor(0.5, device=self.device)
        day = torch.zeros(1, frames, 5, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            window = saved_bytes(lambda z: self.denoise(z, t, day), z, _held(self.denoise.network))
            decoder = self.network
            frame = 0 if decoder is None else saved_bytes(self._decoder(0), z[:, :1], _held(decoder))
        return {"window": max(1, window), "frame": max(1, DECODER_GRAPHS * frame)}

    def at_once(self, n_days: int) -> list[int]:
        """What rounding on a CPU depends on: members, windows and frames at once. A GPU does not promise to the bit."""
        if self.device.type != "cpu":
            return []
        return [self._places(n_days), self._at_once("window", n_days), self._at_once("frame", n_days)]

    @property
    def threads(self) -> int:
        """On these, too, rounding on a CPU depends: OMP_NUM_THREADS, or as many as there are cores; 0 on a GPU."""
        return torch.get_num_threads() if self.device.type == "cpu" else 0

    def use_threads(self, number: int) -> None:
        """As many as a product was begun with; 0 = as they are."""
        if number:
            torch.set_num_threads(number)

    def held_bytes(self, n_days: int, n_members: int) -> int:
        """What the networks hold at most while so many members are drawn."""
        together = self._places(n_days) if self.device.type == "cpu" else n_members
        return min(together * self._trajectory_bytes(n_days), self._budget)

    def _trajectory_bytes(self, n_days: int) -> int:
        """Of a segment at the end of a period, too, those of a whole one: it is drawn as the others are."""
        n_days = max(n_days, self.config.period.segment_days + 2 * self.config.period.halo_days)
        return (n_days - self.model.frames + 1) * self._bytes["window"] + n_days * self._bytes["frame"]

    def _at_once(self, what: str, n_days: int) -> int:
        """Windows or frames a chunk, each with half of the budget; 0 = all, where a whole trajectory fits."""
        if self._trajectory_bytes(n_days) <= self._budget:
            return 0
        return max(1, self._budget // 2 // self._bytes[what])


def _held(network: nn.Module) -> Iterator[Tensor]:
    """Weights and buffers."""
    yield from network.parameters()
    yield from network.buffers()


def _autoencoder(config: SampleConfig, score: Bundle) -> Bundle | None:
    """The bundle whose latents the score network learned; none for a score network of states."""
    wanted = score.document.get("autoencoder")
    if not config.autoencoder:
        if wanted:
            raise ContractError(f"{score.folder}: learned latents; `autoencoder` must name the bundle that made them")
        return None
    bundle = open_bundle(config.autoencoder)
    if bundle.checksum != wanted:
        raise ContractError(f"{score.folder}: learned the latents of another autoencoder than {bundle.folder}")
    if not bundle.document.get("report"):
        raise ContractError(f"{bundle.folder}: holds no reconstruction report; train it to its end")
    return bundle


def _decoded(bundle: Bundle, network: Autoencoder | PaperAutoencoder) -> StateSpec:
    """What the autoencoder gives back: everything, or the state alone."""
    whole = network.n_decoded == bundle.spec.n_channels
    return bundle.spec if whole else bundle.spec.subset(bundle.spec.names[:1])


def _unresolved(bundle: Bundle | None, spec: StateSpec) -> Tensor:
    """Root mean square of what the autoencoder loses of each channel, in physical units, measured on validation
    years, (C,)."""
    if bundle is None:
        return torch.zeros(spec.n_channels)
    return torch.tensor([bundle.document["report"][f"rmse/{name}"] for name in spec.channel_names])
