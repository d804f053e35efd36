"""What a verification compares: the products of a run, the truth, and the systems they have to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sample.background import FirstGuess
from sample.config import PeriodConfig, SampleConfig
from sample.figures import Example
from sample.plan import segments
from slams import baselines
from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.contracts.analysis import Analysis, drawn, open_analysis
from slams.contracts.archive import Archive, open_archive
from slams.contracts.bundle import Bundle, open_bundle
from slams.contracts.envelope import ContractError
from slams.contracts.observations import Observations, Observed, open_observations
from slams.contracts.storage import place, reading
from slams.model import open_autoencoder
from slams.spec import Modality, StateSpec, not_negative
from slams.statistics import Statistics

Reconstruction = tuple[Bundle, Autoencoder | PaperAutoencoder]
Interpolation = Callable[[Observed, StateSpec, np.ndarray], np.ndarray]
SEASONS = np.array(["2001-01-15", "2001-04-15", "2001-07-15", "2001-10-15"], "datetime64[D]")


@dataclass(frozen=True)
class Case:
    """All that is compared: products, truth, and what the baselines are made from. Channels are the products'.

    Arguments:
        first_guess: the background, where the analysis was given one.
        before: the day of that background, by the day analysed.
    """

    products: dict[str, Analysis]
    archive: Archive
    observations: Observations
    climatology: Statistics
    reconstruction: Reconstruction | None
    first_guess: FirstGuess | None
    before: dict[np.datetime64, np.datetime64]

    @property
    def analysis(self) -> Analysis:
        return self.products["analysis"]

    @property
    def spec(self) -> StateSpec:
        return self.analysis.spec

    @property
    def time(self) -> np.ndarray:
        return self.analysis.time

    @property
    def state(self) -> Modality:
        """What is analysed: the first modality in that role."""
        return next(m for m in self.spec.modalities if m.role == "state")

    def is_join(self, where: int) -> bool:
        """Whether a date of the analysis is the first of a segment that was drawn apart from the date before."""
        return "unit" in self.analysis.attributes and where > 0 and where % self.analysis.unit[1] == 0

    def truth(self, where: int) -> np.ndarray:
        """x_CHW of a date; NaN where, by its train years, an archive does not count as observed: no analysis is there.

        Raises:
            ContractError: a level of the state is missing altogether.
        """
        day = self.time[where : where + 1]
        x_CHW: np.ndarray = _select(self.archive.read(self.archive.index_of(day)), self.archive.spec, self.spec)[0]
        x_CHW = np.where(self._ever_observed, x_CHW, np.nan)
        if np.isnan(x_CHW[self.spec.channels(self.state.name)]).all(axis=(1, 2)).any():
            raise ContractError(f"{self.archive.path}: has no {self.state.name} on {day[0]} to verify against")
        return x_CHW

    def systems(self, where: int) -> Iterator[tuple[str, np.ndarray]]:
        """Each system's members of a date, x_MCHW; NaN in modalities it does not know, and where one was not drawn."""
        day = self.time[where : where + 1]
        for name, product in self.products.items():
            yield name, product.read(where)
        known = self._known(day)
        if seen := {name: parts[0] for name, parts in self.observed(day).items()}:
            observed = np.where(self._ever_observed, known, np.nan)  # elsewhere it is 0, which is no climatology
            yield "anomaly_interpolation", self._each(observed, seen, baselines.anomaly_interpolation)
            yield "interpolation", self._each(known, seen, baselines.interpolation)
        if self.first_guess is not None:
            yield "persistence", baselines.persistence(self.guess(where), 1)
        yield "climatology", known
        yield "autoencoder", self._reconstructed(day)

    def guess(self, where: int) -> np.ndarray:
        """What was known of a date before it was observed, x_CHW: the background, or the climatology."""
        day = self.time[where : where + 1]
        if self.first_guess is None:
            return self._known(day)[0]
        return not_negative(self.first_guess.read(self.before[day[0]]), self.spec)

    @cached_property
    def _ever_observed(self) -> np.ndarray:
        """Of each of the products' cells, (C, H, W)."""
        given = self.climatology.observed[None].astype(np.float32)
        return _select(given, self.archive.spec, self.spec)[0] == 1

    def _known(self, day: np.ndarray) -> np.ndarray:
        known = _select(baselines.climatology(self.climatology, day), self.archive.spec, self.spec)
        return not_negative(known, self.spec)

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and standard deviation of each channel over the globe and the year, (C,): of the archive alone."""
        fields = _select(baselines.climatology(self.climatology, SEASONS), self.archive.spec, self.spec)
        std_C = np.full(self.spec.n_channels, np.nan)
        for name in set(self.spec.names) & set(self.archive.spec.names):
            part = self.archive.spec.channels(name)
            std_C[self.spec.channels(name)] = self.archive.attributes["global_std"][part]
        return fields.mean(axis=(0, 2, 3), dtype=np.float64), std_C

    def observed(self, day: np.ndarray) -> dict[str, list[Observed]]:
        """What was observed of the products' modalities, on grids before at stations; nothing of latents."""
        names = [name for name in self.observations.names if name in self.spec.names]
        return {name: self.observations.read_all([name], day) for name in names}

    def _each(self, known_LCHW: np.ndarray, seen: dict[str, Observed], method: Interpolation) -> np.ndarray:
        """An interpolation, modality by modality; climatology where a modality was not observed."""
        x_LCHW = known_LCHW.copy()
        for name, observed in seen.items():
            part = self.spec.channels(name)
            x_LCHW[:, part] = method(observed, self.spec, known_LCHW[:, part])
        return not_negative(x_LCHW, self.spec)

    def _reconstructed(self, day: np.ndarray) -> np.ndarray:
        truth = self.archive.read(self.archive.index_of(day))
        if self.reconstruction is None:
            return _select(truth, self.archive.spec, self.spec)
        bundle, network = self.reconstruction
        statistics = bundle.statistics()
        given = statistics.standardise(_select(truth, self.archive.spec, bundle.spec), day)
        with torch.inference_mode():
            decoded = network.decode(network.encode(torch.from_numpy(given))).numpy()
        x_LCHW = np.full(given.shape, np.nan, np.float32)
        x_LCHW[:, : decoded.shape[1]] = decoded
        return not_negative(_select(statistics.physical(x_LCHW, day), bundle.spec, self.spec), self.spec)

    def example(self, where: int) -> Example:
        """A date for the maps."""
        static = self.climatology.static
        coast = static.get("land_fraction")
        if coast is None and "precipitation" in self.archive.spec.names:
            rain = self.archive.spec.channels("precipitation")
            coast = self.climatology.observed[rain][0].astype(np.float32)
        day = self.time[where : where + 1]
        members = self.analysis.read(where)
        members = members[drawn(members)]
        space = self.observations.space
        fields = self.truth(where), self.guess(where), members
        return Example(day[0], self.spec, coast, *fields, self.observed(day), space)


def _select(x_LCHW: np.ndarray, given: StateSpec, wanted: StateSpec) -> np.ndarray:
    """The wanted modalities' channels; NaN where one is not given."""
    shape = (len(x_LCHW), wanted.n_channels, *wanted.grid.shape)
    chosen = np.full(shape, np.nan, np.float32)
    for name in wanted.names:
        if name in given.names:
            chosen[:, wanted.channels(name)] = x_LCHW[:, given.channels(name)]
    return chosen


def open_case(config: SampleConfig) -> Case:
    """Open what a run's verification needs.

    Raises:
        ContractError: a product is missing, unfinished or has holes, or products, truth and observations do not
            belong together.
    """
    products = _open_products(place(config.folder))
    first = products["analysis"]
    archive, observations = open_archive(config.archive), open_observations(config.observations)
    for path, spec in ((archive.path, archive.spec), (observations.path, observations.spec)):
        _check_same_fields(first, path, spec)
    observations.check_truth(archive.path, archive.attributes["statistics_sha256"])
    archive.index_of(first.time)
    bundle = open_bundle(config.autoencoder) if config.autoencoder else None
    guess = FirstGuess(config.background, first.spec) if config.background else None
    for product in products.values():
        _check_assimilated(product, observations)
        _check_made_with(product, config, bundle, guess)
    if bundle is not None:
        _check_same_fields(first, bundle.folder, bundle.spec)
    reconstruction = (bundle, open_autoencoder(bundle)) if bundle is not None else None
    before = _before(first, _period(first, config)) if guess is not None else {}
    for product in products.values():
        _check_drawn(product)
    return Case(products, archive, observations, baselines.climatology_of(archive), reconstruction, guess, before)


def _period(product: Analysis, config: SampleConfig) -> PeriodConfig:
    """The period that a product was drawn with; that of the configuration where it does not say."""
    made = product.attributes.get("config", {}).get("period")
    return PeriodConfig(**made) if made else config.period


def _before(product: Analysis, period: PeriodConfig) -> dict[np.datetime64, np.datetime64]:
    """The day whose state a segment with its halo was told, by each kept day."""
    found = {day: kept[0] - period.halo_days - 1 for kept in segments(period) for day in kept}
    for day in product.time:
        if day not in found:
            raise ContractError(f"{product.path}: holds {day}, no day of `period`; give the one it was made with")
    return found


def _open_products(folder: Path) -> dict[str, Analysis]:
    with reading(folder):
        found_there = [*folder.glob("analysis.zarr"), *folder.glob("analysis-without-*.zarr")]
        paths = sorted(found_there, key=lambda path: path.stem)
    found = {path.stem: open_analysis(path) for path in paths}
    first = found.get("analysis") or open_analysis(folder / "analysis.zarr")
    for product in found.values():
        if not product.is_complete:
            raise ContractError(f"{product.path}: is not finished; run `python -m sample` again to finish it")
        if product.spec != first.spec:
            raise ContractError(f"{product.path}: holds other fields or another grid than {first.path}")
        if not np.array_equal(product.time, first.time):
            raise ContractError(f"{product.path}: holds other valid days than {first.path}")
    if not any(m.role == "state" for m in first.spec.modalities):
        raise ContractError(f"{first.path}: holds no state to verify, only {', '.join(first.spec.names)}")
    return found


def _check_assimilated(product: Analysis, observations: Observations) -> None:
    """The baselines must be given what the analysis was."""
    given = product.attributes.get("config", {}).get("observations_sha256")
    if given is not None and given != observations.checksum:
        raise ContractError(f"{observations.path}: is not what was assimilated in {product.path}; give that set")


def _check_made_with(product: Analysis, config: SampleConfig, bundle: Bundle | None, guess: FirstGuess | None) -> None:
    """Persistence, increments and the autoencoder's error are those of this analysis or of none."""
    made = product.attributes.get("config", {})
    told = f"{product.path}: was made with another"
    if bundle is not None and made.get("autoencoder_sha256", bundle.checksum) != bundle.checksum:
        raise ContractError(f"{told} autoencoder than {bundle.folder}; give that one")
    if bool(made.get("background", config.background)) != bool(config.background):
        own = made["background"] or "none"
        raise ContractError(f"{told} background than {config.background or 'none'}: {own}; give that one")
    if guess is not None and made.get("background_sha256", guess.checksum) != guess.checksum:
        raise ContractError(f"{told} background than {guess.path} is now: {made['background']}; give that one")


def _check_drawn(product: Analysis) -> None:
    if len(bare := product.time[product.n_drawn == 0]):
        on = f"on {len(bare)} of {len(product.time)} days, the first {bare[0]}"
        raise ContractError(f"{product.path}: holds no member {on}: all diverged; remove it and take more steps")


def _check_same_fields(product: Analysis, path: Path, spec: StateSpec) -> None:
    if spec.grid != product.spec.grid:
        shapes = f"{spec.grid.shape}, but {product.path} one of {product.spec.grid.shape}"
        raise ContractError(f"{path}: has a grid of {shapes}")
    for modality in product.spec.modalities:
        if modality.name in spec.names and spec.modality(modality.name) != modality:
            raise ContractError(f"{path}: levels or units of {modality.name} are not those of {product.path}")
