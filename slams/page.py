"""The look that the jobs' reports share: one page of HTML that needs no network, its tables, and figures inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
PHONE_INCHES = 7  # a broader figure would be too small on a phone, and is scrolled instead
INK, MUTED, UNSEEN = "#1c2733", "#5b6770", "#e7e9ec"
# Even in lightness; longwave as a satellite shows it, cold cloud tops white
COLOURS = {"state": "plasma", "in_situ": "YlGnBu", "ex_situ": "gray_r"}
COAST = {"gray_r": "#e69f00"}
FIGURE_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
CSS = """\
:root { --ink: #1c2733; --muted: #5b6770; --line: #dfe3e7; --accent: #0b3d91; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.1rem 4rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p { max-width: 46rem; }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
.summary { font-size: 1.1rem; margin: 1.2rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; }
.cards div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.55rem; color: var(--accent); font-variant-numeric: tabular-nums; }
.cards span { color: var(--muted); font-size: .85rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; border-bottom-color: var(--muted); }
tbody th { text-align: left; font-weight: 500; }
td b { color: var(--accent); }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
.broad img { min-width: 44rem; }
ul { padding-left: 1.2rem; max-width: 46rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: #f5f6f8; border-radius: .5rem; padding: .9rem; overflow-x: auto; font-size: .82rem; }"""


def document(title: str, body: str) -> str:
    """A whole page.

    Arguments:
        title: text.
        body: HTML.
    """
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"\n<title>{html.escape(title)}</title>\n<style>\n{CSS}\n</style>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def table(heads: Iterable[str], body: Iterable[tuple[str, list[str]]]) -> str:
    """A table with a name before each row; names are text, all else is HTML."""
    head = "".join(f"<th>{text}</th>" for text in ("", *heads))
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for name, cells in body
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def figure(drawing: Figure, words: str, path: Path | None = None) -> str:
    """A figure inside the page, with its caption, and as a file where a path is given."""
    drawn = io.BytesIO()
    drawing.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    if path is not None:
        path.write_bytes(drawn.getvalue())
    source = base64.b64encode(drawn.getvalue()).decode()
    caption = html.escape(words)
    image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
    broad = " broad" if drawing.get_figwidth() > PHONE_INCHES else ""
    return f'<figure><div class="wide{broad}">{image}</div><figcaption>{caption}</figcaption></figure>'


def cards(shown: Iterable[tuple[str, str]]) -> str:
    """Numbers to see first, each with what it is."""
    found = "".join(
        f"<div><b>{html.escape(number)}</b><span>{html.escape(what)}</span></div>" for number, what in shown
    )
    return f'<div class="cards">{found}</div>'
