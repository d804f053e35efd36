"""The look that the jobs' reports share: one page of HTML that needs no network, its tables, and figures inside it."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slams.contracts.envelope import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
CSS_DPI = 96
PHONE_INCHES = 7  # a broader figure would be too small on a phone, and is scrolled instead
INK, MUTED, UNSEEN = "#1c2733", "#5b6770", "#e7e9ec"
# Even in lightness; longwave as a satellite shows it, cold cloud tops white
COLOURS = {"state": "plasma", "in_situ": "YlGnBu", "ex_situ": "gray_r"}
COAST = {"gray_r": "#e69f00"}
# Of differences: told by a sign as well as by a colour; open is one that cannot be told from none
MARKS = {"better": "▲", "worse": "▼", "other": "◆", "open": "○"}
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
  overflow-wrap: anywhere;
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
thead th { color: var(--muted); font-weight: 500; border-bottom-color: var(--muted); white-space: normal;
  vertical-align: bottom; overflow-wrap: normal; }
tbody th { text-align: left; font-weight: 500; }
tbody th, thead th:first-child { position: sticky; left: 0; background: #fff; white-space: normal;
  overflow-wrap: normal; min-width: 8.5rem; padding-left: 0; }
tbody th[colspan] { position: static; max-width: none; padding-top: 1rem; }
tbody th[colspan] span { position: sticky; left: 0; color: var(--muted); font-size: .85rem; }
td small { display: block; color: var(--muted); font-size: .8rem; }
td.said { text-align: left; white-space: normal; min-width: 16rem; }
.better, .worse, .other, .open { display: inline-block; border-radius: .3rem; padding: 0 .35rem; }
.better { background: #d3e4f7; color: #0b3d91; font-weight: 600; }
.worse { background: #fbdfc8; color: #843600; font-weight: 600; }
.other { background: #e7e3f3; color: #43317a; font-weight: 600; }
.open, .missing { color: var(--muted); }
.badge { border-radius: .3rem; padding: .1rem .45rem; font-size: .85rem; font-weight: 600; white-space: nowrap; }
.legend > span { display: inline-block; margin-right: 1.1rem; }
.plain { list-style: none; padding: 0; } .plain li { margin: .7rem 0; }
.plain small { display: block; color: var(--muted); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 0 1.5rem; }
a { color: var(--accent); }
@media (min-width: 45rem) { tbody th, thead th:first-child { min-width: 14rem; } }
@media (max-width: 30rem) { th, td { padding: .38rem .4rem; } }
td b { color: var(--accent); }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
.broad img { min-width: 44rem; }
ul { padding-left: 1.2rem; max-width: 46rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: #f5f6f8; border-radius: .5rem; padding: .9rem; overflow-x: auto; font-size: .82rem; }"""


def slug(*words: str) -> str:
    """Words as a name of a file or an artifact."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


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
    """A table with a name before each row; names are text, all else is HTML. A row without cells heads others."""
    columns = ["", *heads]
    head = "".join(f"<th>{text}</th>" for text in columns)
    lines = "".join(f"<tr>{_row(html.escape(name), cells, len(columns))}</tr>" for name, cells in body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _row(name: str, cells: list[str], n_columns: int) -> str:
    if not cells:
        return f'<th colspan="{n_columns}"><span>{name}</span></th>'
    return f"<th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in cells)


def figure(drawing: Figure, words: str, path: Path | None = None) -> str:
    """A figure inside the page, with its caption; where a path is given, as that PNG and as SVG beside it too."""
    from matplotlib import rc_context  # here: words and marks need no plotting library

    drawn, lines = io.BytesIO(), io.BytesIO()
    drawing.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    if path is not None:
        write_bytes(path, drawn.getvalue())
        with rc_context({"svg.hashsalt": path.name}):  # the same figure is the same file
            drawing.savefig(lines, format="svg", metadata={"Date": None}, facecolor="white")
        write_bytes(path.with_suffix(".svg"), lines.getvalue())
    source = base64.b64encode(drawn.getvalue()).decode()
    caption = html.escape(words)
    width = round(CSS_DPI * drawing.get_figwidth())  # so that its letters are as large as the page's
    image = f'<img alt="{caption}" width="{width}" src="data:image/png;base64,{source}">'
    broad = " broad" if drawing.get_figwidth() > PHONE_INCHES else ""
    return f'<figure><div class="wide{broad}">{image}</div><figcaption>{caption}</figcaption></figure>'


def cards(shown: Iterable[tuple[str, str]]) -> str:
    """Numbers to see first, each with what it is."""
    found = "".join(
        f"<div><b>{html.escape(number)}</b><span>{html.escape(what)}</span></div>" for number, what in shown
    )
    return f'<div class="cards">{found}</div>'


def difference(kind: str, text: str, under: str = "") -> str:
    """A difference with its mark, one of `MARKS`, and what stands below it; HTML of text."""
    chip = f'<span class="{kind}">{MARKS[kind]} {html.escape(text)}</span>'
    return chip + (f"<small>{html.escape(under)}</small>" if under else "")


def legend(meanings: dict[str, str], *others: str) -> str:
    """What marks say, and other words of the kind.

    Arguments:
        meanings: words by mark.
    """
    parts = [f'<span><span class="{kind}">{MARKS[kind]}</span> {html.escape(w)}</span>' for kind, w in meanings.items()]
    parts += [f"<span>{html.escape(words)}</span>" for words in others]
    return f'<p class="muted legend">{" ".join(parts)}</p>'
