"""Archive -> one page of HTML beside it: what is there and what is missing, maps, histograms, sizes, codec losses."""

from __future__ import annotations

import html
import json
from itertools import groupby
from pathlib import Path

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from data_prep.config import ArchiveConfig, PrepConfig
from data_prep.stations import REPORT
from data_prep.summary import Summary, summarise
from slams.config import to_dict
from slams.contracts.archive import Archive, open_archive
from slams.contracts.envelope import read_json
from slams.page import COAST, COLOURS, FIGURE_STYLE, INK, UNSEEN, cards, document, figure, table
from slams.spec import Grid, Modality

N_LEVELS = 3  # of a modality that are drawn
MISSING = "#d55e00"
COVERAGE = LinearSegmentedColormap.from_list("coverage", ["#c6dbef", "#08306b"])
DAY = np.timedelta64(1, "D")
MEGABYTE = 1e6


def plan(config: ArchiveConfig, whole: PrepConfig) -> list[str]:
    """What the stage would do, for people."""
    return [f"report {page_path(config.path)}: of {config.path}, written anew"]


def page_path(archive: str | Path) -> Path:
    """Where the page of an archive lies: beside it."""
    return Path(archive).with_name(f"{Path(archive).stem}_report.html")


def run(config: ArchiveConfig, whole: PrepConfig) -> None:
    """Write the page.

    Raises:
        ContractError: no archive, or a damaged one.
    """
    archive = open_archive(config.path)
    page = page_path(config.path)
    aside = page.with_name(page.name + ".partial")
    aside.write_text(write(archive, summarise(archive), whole), encoding="utf-8")
    aside.replace(page)
    print(page)  # noqa: T201 - where the result is


def write(archive: Archive, summaries: list[Summary], config: PrepConfig) -> str:
    """The page."""
    title = f"What {Path(archive.path).name} holds"
    grid = archive.spec.grid
    about = f"{archive.time[0]} to {archive.time[-1]} &middot; {grid.n_latitude} by {grid.n_longitude} cells"
    about += "".join(f" &middot; {name} {a} to {b}" for name, (a, b) in archive.splits.items())
    missing, coast = archive.attributes["missing_days"], archive.statistics().static.get("land_fraction")
    told = {key: archive.attributes[key] for key in ("format", "version", "provenance")}
    parts = [
        f'<h1>{html.escape(title)}</h1><p class="muted">{about}</p>',
        _cards(archive, summaries),
        "<h2>Coverage</h2>" + figure(calendar(archive, summaries), CALENDAR_WORDS),
        "<h3>Missing days</h3>" + _missing(missing, len(archive.time)) + _rejected(config),
        f'<h2>Numbers</h2>{_numbers(summaries, grid)}<p class="muted">{NUMBER_WORDS}</p>',
        "<h2>Climate</h2>" + "".join(figure(maps(s, grid, coast), _map_words(s.modality)) for s in summaries),
        "<h2>Histograms</h2>" + figure(histograms(summaries), HISTOGRAM_WORDS),
        f'<h2>Storage</h2>{_storage(summaries)}<p class="muted">{STORAGE_WORDS}</p>',
        "<h2>Where it comes from</h2>",
        "<p>To make this page again: <code>python -m data_prep report CONFIG</code>, with this configuration.</p>",
        f"<details><summary>Configuration</summary><pre>{_configuration(archive, config)}</pre></details>",
        f"<details><summary>Versions</summary><pre>{html.escape(json.dumps(told, indent=1))}</pre></details>",
    ]
    return document(title, "\n".join(parts))


CALENDAR_WORDS = (
    "Share of the sphere that has values, day by day; orange: a day without any, grey: outside the archive. "
    "Gauges measure on land, so their share is never whole."
)
NUMBER_WORDS = (
    "Area-weighted mean and standard deviation over all cells and days with a value; smallest and largest value; mean "
    "share of the sphere that has one."
)
HISTOGRAM_WORDS = "How often values occur, all cells alike; rain by its logarithm, dry days (below 0.1 mm) left out."
STORAGE_WORDS = "Ratio: of the float32 values to the files. Largest error: what the codec may change a value by."


# ---- words and tables


def _configuration(archive: Archive, config: PrepConfig) -> str:
    """The one that was given, but for the archive's section, which is that which made it."""
    told = to_dict(config) | {"archive": archive.attributes["config"]}
    return html.escape(yaml.safe_dump(told, sort_keys=False))


def _cards(archive: Archive, summaries: list[Summary]) -> str:
    """The numbers to see first."""
    stored, raw = sum(s.n_stored for s in summaries), sum(s.n_bytes for s in summaries)
    n_missing = sum(len(days) for days in archive.attributes["missing_days"].values())
    return cards(
        [
            (f"{len(archive.time)}", "days"),
            (f"{archive.spec.n_channels}", "channels"),
            (f"{n_missing}", "missing days, of all modalities"),
            (f"{stored / MEGABYTE:.1f} MB", "on disk"),
            (f"{raw / stored:.2f}", "compression ratio"),
        ]
    )


def _missing(missing: dict[str, list[str]], n_days: int) -> str:
    """Every missing day, consecutive ones together."""
    body = []
    for name, days in missing.items():
        share = f"{100 * len(days) / n_days:.2f} %"
        body.append((name, [str(len(days)), share, html.escape(", ".join(spans(days))) or "-"]))
    return table(["days", "of all", "which"], body) if body else "<p>None.</p>"


def spans(days: list[str]) -> list[str]:
    """Days as text, consecutive ones as first and last."""
    time = np.sort(np.array(days, "datetime64[D]"))
    runs = groupby(enumerate(time), key=lambda pair: pair[1] - pair[0] * DAY)
    found = [[day for _, day in run] for _, run in runs]
    return [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in found]


def _rejected(config: PrepConfig) -> str:
    """What the quality control of stations refused, where the configuration has such a set and it stands."""
    path = Path(config.stations.path) / REPORT if config.stations else None
    if path is None or not path.is_file():
        return ""
    found = read_json(path, "the counts of the quality control")
    heads = list(found["codes"])
    body = [
        (f"{row['variable']} {row['level_hpa'] or ''}".strip(), [str(row.get(head, 0)) for head in heads])
        for row in found["counts"]
    ]
    return "<h3>Reports of stations: used, and rejected by what</h3>" + table(heads, body)


def _numbers(summaries: list[Summary], grid: Grid) -> str:
    body = []
    for s in summaries:
        assert s.moments is not None
        means, deviations = s.moments.over(grid.area_weights)
        for row in zip(s.modality.channel_names, means, deviations, s.low_C, s.high_C, strict=True):
            name, *numbers = row
            cells = [f"{number:.3f}" for number in numbers] + [f"{100 * np.mean(s.share_L):.1f} %"]
            body.append((f"{name} ({s.modality.units})", cells))
    return table(["mean", "standard deviation", "smallest", "largest", "observed"], body)


def _storage(summaries: list[Summary]) -> str:
    body = []
    for s in summaries:
        loss = f"{s.loss_bound:g} {html.escape(s.modality.units)}" if s.loss_bound else "none"
        body.append((s.modality.name, [f"{s.n_stored / MEGABYTE:.2f} MB", f"{s.n_bytes / s.n_stored:.2f}", loss]))
    return table(["on disk", "ratio", "largest error"], body)


# ---- figures


def calendar(archive: Archive, summaries: list[Summary]) -> Figure:
    """Years by days of the year, one panel a modality."""
    year = archive.time.astype("datetime64[Y]")
    row, column = (year - year[0]).astype(int), (archive.time - year.astype("datetime64[D]")).astype(int)
    n_years = int(row[-1]) + 1
    first = int(year[0].astype(int)) + 1970
    with rc_context(FIGURE_STYLE):
        drawing = Figure(figsize=(11, len(summaries) * (0.8 + 0.13 * n_years)))
        panels = drawing.subplots(len(summaries), 1, sharex=True, squeeze=False)[:, 0]
        for axes, s in zip(panels, summaries, strict=True):
            share = np.full((n_years, 366), np.nan)
            share[row, column] = s.share_L
            axes.set_facecolor(UNSEEN)
            shown, extent = np.ma.masked_invalid(share), (0.5, 366.5, first + n_years - 0.5, first - 0.5)
            colours = COVERAGE.with_extremes(under=MISSING)
            drawn = axes.imshow(
                shown, colours, vmin=1e-9, vmax=1, aspect="auto", extent=extent, interpolation="nearest"
            )
            axes.set_title(s.modality.name)
            axes.yaxis.get_major_locator().set_params(integer=True)
            drawing.colorbar(drawn, ax=axes, label="share", extend="min")
        panels[-1].set_xlabel("day of the year")
    return drawing


def shown_channels(modality: Modality) -> list[int]:
    """A few levels from the highest to the lowest."""
    n = modality.n_channels
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, N_LEVELS))})


def maps(s: Summary, grid: Grid, coast: np.ndarray | None) -> Figure:
    """Mean and standard deviation in time, one row a level."""
    assert s.moments is not None
    shown, mean, std = shown_channels(s.modality), s.moments.mean, s.moments.std
    with rc_context(FIGURE_STYLE):
        drawing = Figure(figsize=(11, 2.9 * len(shown)))
        panels = drawing.subplots(len(shown), 2, sharex=True, sharey=True, squeeze=False)
        for (left, right), channel in zip(panels, shown, strict=True):
            name, colours = s.modality.channel_names[channel], COLOURS[s.modality.role]
            seen = s.moments.count[channel] > 0
            ink = COAST.get(colours, INK)
            _map(left, grid, np.where(seen, mean[channel], np.nan), (f"{name}, mean", colours, s.modality.units))
            _map(right, grid, std[channel], (f"{name}, standard deviation", "viridis", s.modality.units))
            for axes, line in ((left, ink), (right, "white")):
                if coast is not None:
                    axes.contour(*_rolled(grid, coast), levels=[0.5], colors=line, linewidths=0.6)
    return drawing


def _map(axes: Axes, grid: Grid, field: np.ndarray, words: tuple[str, str, str]) -> None:
    title, colours, units = words
    axes.set_facecolor(UNSEEN)
    longitude, latitude, rolled = _rolled(grid, field)
    drawn = axes.pcolormesh(longitude, latitude, np.ma.masked_invalid(rolled), cmap=colours, rasterized=True)
    axes.set_title(title)
    axes.figure.colorbar(drawn, ax=axes, label=units)


def _rolled(grid: Grid, field: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and values with Greenwich in the middle."""
    half = grid.n_longitude // 2
    longitude = np.roll(grid.longitude, -half)
    return np.where(longitude >= 180, longitude - 360, longitude), grid.latitude, np.roll(field, -half, axis=1)


def _map_words(modality: Modality) -> str:
    return f"{modality.name}: mean and standard deviation of the daily values at each cell. Grey: no value."


def histograms(summaries: list[Summary]) -> Figure:
    """One panel a modality, one line a level."""
    with rc_context(FIGURE_STYLE):
        drawing = Figure(figsize=(11, 3.2))
        for axes, s in zip(drawing.subplots(1, len(summaries), squeeze=False)[0], summaries, strict=True):
            is_rain = s.modality.standard_name == "lwe_precipitation_rate"
            kept = slice(1 if is_rain else 0, None)
            for channel in shown_channels(s.modality):
                count = s.histogram_CN[channel, kept]
                level = f"{s.modality.level_hpa[channel]} hPa" if s.modality.level_hpa else None
                axes.stairs(count / max(1, count.sum()), s.edges[kept], label=level)
            used = np.flatnonzero(s.histogram_CN[:, kept].sum(axis=0))
            if len(used):
                axes.set_xlim(s.edges[kept][used[0]], s.edges[kept][used[-1] + 1])
            axes.set_xscale("log" if is_rain else "linear")
            axes.set_title(s.modality.name)
            axes.set_xlabel(s.modality.units)
            axes.set_ylabel("share of values")
            if s.modality.level_hpa:
                axes.legend()
    return drawing
