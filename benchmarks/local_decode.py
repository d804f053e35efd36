"""What decoding only what is observed saves: `Decoder.within` against decoding the whole globe, in interleaved pairs.

    python benchmarks/local_decode.py       # a minute; no data and no trained model needed

A flagship autoencoder with random weights on the published grid of 1.5 degrees (12 channels on 120 x 240 cells,
reduction 4, width 48), a trajectory of 29 days, stations on all levels. Forward alone, and with the derivative that
guidance takes; CPU time, so that whatever else the machine does counts little. Writes benchmarks/local_decode.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slams.autoencoder import Autoencoder
from slams.contracts.stations import Stations
from slams.decoder import Decoder
from slams.observe import needed_cells
from slams.rng import generator, normal
from slams.spec import OLR, PAPER_LEVELS_HPA, PRECIPITATION, Grid, Modality, StateSpec

TEMPERATURE = Modality("temperature", "state", "K", "air_temperature", PAPER_LEVELS_HPA)
SPEC = StateSpec(Grid(120, 240), (TEMPERATURE, PRECIPITATION, OLR))
DAYS = np.arange("2021-01-01", "2021-01-30", dtype="datetime64[D]")
LATENT_CHANNELS, REDUCTION, HIDDEN = 32, 4, 48
GLOBE, BOX = (-90.0, 90.0, 0.0, 360.0), (40.0, 60.0, 0.0, 30.0)  # south, north, west, east
CASES = {  # where, stations, and every how many-th day they report
    "20 x 30 degrees, every day": (BOX, 30, 1),
    "20 x 30 degrees, every 4th day": (BOX, 30, 4),
    "the globe, every 4th day": (GLOBE, 288, 4),
    "the globe, every day": (GLOBE, 288, 1),
}
PAIRS, WARM_UP = 11, 2


def network() -> Decoder:
    """A decoder whose branches are not zero, as after training."""
    torch.manual_seed(0)
    static = torch.from_numpy(normal(0, "init", shape=(6, 120 // REDUCTION, 240 // REDUCTION)))
    found = Autoencoder(SPEC.n_channels, LATENT_CHANNELS, HIDDEN, 1, REDUCTION, static).eval().requires_grad_(False)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Decoder(found, torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS))


def stations(where: tuple[float, float, float, float], count: int, every: int) -> Stations:
    """A network in a box, evenly over its area, that reports every level on its days."""
    south, north, west, east = where
    rng, levels = generator(0, "observation", count), np.array(PAPER_LEVELS_HPA, np.float32)
    low, high = np.sin(np.deg2rad([south, north]))
    latitude, longitude = np.rad2deg(np.arcsin(rng.uniform(low, high, count))), rng.uniform(west, east, count)
    frame = np.arange(0, len(DAYS), every)
    day, station, level = (a.ravel() for a in np.meshgrid(frame, np.arange(count), levels, indexing="ij"))
    n, places = len(day), (latitude[station], longitude[station])
    value, error = np.full(n, 250, np.float32), np.ones(n, np.float32)
    names = np.array([f"s{i}" for i in station], object)
    return Stations("temperature", DAYS, day, *places, level, value, error, names, np.zeros(n, np.int8))


def forward(decode: Callable[[Tensor], Tensor], z: Tensor) -> None:
    with torch.no_grad():
        decode(z)


def with_derivative(decode: Callable[[Tensor], Tensor], z: Tensor) -> None:
    z = z.detach().requires_grad_()
    torch.autograd.grad(decode(z).sum(), z)


def seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(decoder: Decoder, needed: np.ndarray, kind: Callable[..., None]) -> tuple[float, float, list[float]]:
    """Median seconds of the whole and of the part, and the pairs' ratios part / whole in order."""
    z = torch.from_numpy(normal(1, "init", shape=(1, len(DAYS), LATENT_CHANNELS, 120 // REDUCTION, 240 // REDUCTION)))
    days = np.flatnonzero(needed.any(axis=(1, 2)))  # a likelihood asks for no others

    def local(z: Tensor) -> Tensor:
        return decoder.within(z[:, days], needed[days])

    def pair() -> tuple[float, float]:
        return seconds(lambda: kind(decoder, z)), seconds(lambda: kind(local, z))

    pairs = [pair() for _ in range(WARM_UP + PAIRS)][WARM_UP:]
    whole, part = (statistics.median(column) for column in zip(*pairs, strict=True))
    return whole, part, sorted(part / whole for whole, part in pairs)


def main() -> None:
    torch.set_num_threads(1)
    decoder, lines = network(), []
    for name, system in CASES.items():
        needed = needed_cells([stations(*system)], SPEC)
        for what, kind in (("forward", forward), ("with derivative", with_derivative)):
            whole, part, ratios = measured(decoder, needed, kind)
            spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            lines.append(f"| {name} | {what} | {whole * 1e3:.0f} ms | {part * 1e3:.0f} ms | {spread} |")
            print(lines[-1], flush=True)
    page = Path(__file__).with_suffix(".md")
    page.write_text(RECORD.format(machine=machine(), day=date.today(), pairs=PAIRS, lines="\n".join(lines)))


def machine() -> str:
    return f"one thread of {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"


RECORD = """# Decoding only what is observed

`python benchmarks/local_decode.py`; {machine}, {day}.

A flagship autoencoder with random weights, 12 channels on 120 x 240 cells, reduction 4, width 48; a trajectory of 29
days; all levels of temperature at 30 stations in a box, or at 288 on the globe. CPU time of one member, medians of
{pairs} interleaved pairs of one run; of the ratio the median (lowest to highest).

| stations | | whole globe, all days | `Decoder.within` | ratio |
|---|---|---|---|---|
{lines}

Days without observations are not decoded at all. Of a day the box around the stations is, with the decoder's reach
of four latent cells around it: a network all over the globe gains nothing in space, and loses nothing.
"""


if __name__ == "__main__":
    main()
