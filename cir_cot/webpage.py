"""Write self-contained web pages: the frame, tables, charts and thumbnails.

A page is one file: style, charts and images are inside. It loads nothing and runs no script, and a
content security policy enforces that. Every text is escaped here. Light and dark follow the
reader's system.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

SIDE = 144  # of a thumbnail in pixels: about 4 KB each
LARGE = 320  # of a picture that a click enlarges: about 12 KB each
FILTERS = 12  # of a list, at most
BAR = 44  # height of one bar with its label in pixels

# Of a scatter plot, in pixels.
WIDTH = 520
HEIGHT = 400
LEFT = 60  # room for the labels of the axes
FOOT = 60
TOP = 10
LEGEND = 330  # width
LINE = 20  # of the legend

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6670; --line: #d7dce1; --page: #fbfcfd; --card: #fff;
  --right: #12793a; --wrong: #b3261e; --bar: #2f6fb0; --base: #9aa7b3;
  --k0: #2f6fb0; --k1: #b3541e; --k2: #12793a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a0abb5; --line: #363d44; --page: #14171a;
  --card: #1c2024; --right: #5fd08a; --wrong: #ff8a80; --bar: #6ba8e5; --base: #66727d;
  --k0: #6ba8e5; --k1: #f0a070; --k2: #5fd08a; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  padding: 1rem; max-width: 68rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .75rem; }
p.note, figcaption, .rank { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; } tbody th { font-weight: 400; } th:first-child { text-align: left; padding-left: 0; }
svg { margin-top: 1.5rem; }
@media (max-width: 40rem) { table { font-size: .8125rem; } th, td { padding: .3rem .4rem; }
  th:first-child { white-space: normal; min-width: 8.5rem; } }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
.found { color: var(--right); } .missed { color: var(--wrong); }
.ask { display: flex; gap: 1rem; align-items: flex-start; } .ask p { margin: 0; }
figure { margin: 0; flex: 0 0 6.5rem; }
.text { font-size: 1.1rem; font-weight: 600; unicode-bidi: isolate; }
dl { margin: .75rem 0; } dt { font-weight: 600; font-size: .875rem; } dd { margin: 0 0 .5rem; unicode-bidi: isolate; }
ol { list-style: none; padding: 0; margin: .75rem 0 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
img { display: block; width: 6.5rem; height: 6.5rem; object-fit: contain; border: 1px solid var(--line);
  border-radius: .25rem; }
.right img { border: 4px solid var(--right); } .right strong { color: var(--right); }
svg text { fill: var(--ink); font-size: 14px; } svg .bar { fill: var(--bar); } svg .base { fill: var(--base); }
svg .track { fill: var(--line); opacity: .5; }
.charts { display: grid; gap: 1.5rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.plot { max-width: 32rem; } .plot > svg { width: 100%; margin: 0; } .plot > svg text { font-size: 12px; }
.plot ul { list-style: none; padding: 0; margin: .25rem 0 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem;
  font-size: .875rem; } .plot li svg { margin: 0; vertical-align: middle; }
.grid { stroke: var(--line); } .line { fill: none; stroke: var(--k0); stroke-width: 2; stroke-linejoin: round; }
.k1, .k5, .k9 { stroke-dasharray: 7 3; } .k2, .k6, .k10 { stroke-dasharray: 2 3; }
.k3, .k7, .k11 { stroke-dasharray: 9 3 2 3; } .k1, .k4, .k7, .k10 { stroke: var(--k1); }
.k2, .k5, .k8, .k11 { stroke: var(--k2); }
 pre { overflow-x: auto; font-size: .8rem; }
mark { background: none; color: inherit; text-decoration: underline 2px var(--wrong); text-underline-offset: 3px; }
.zoom { min-height: 6.5rem; } .zoom > summary { list-style: none; cursor: zoom-in; width: max-content; }
.zoom > summary::-webkit-details-marker { display: none; }
.zoom[open] > summary { position: fixed; inset: 0; z-index: 1; width: auto; display: grid; place-items: center;
  background: var(--page); cursor: zoom-out; }
.zoom[open] img { width: min(92vw, 92vh, 40rem); height: min(92vw, 92vh, 40rem); }
.queries > input { position: absolute; opacity: 0; width: 1px; margin: 0; }
.queries > label { display: inline-block; cursor: pointer;
  border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .75rem;
  margin: 0 .35rem .5rem 0; font-size: .875rem; }
.queries > input:checked + label { border-color: var(--ink); font-weight: 600; }
.queries > input:checked + label::before { content: "✓ "; }
.queries > input:focus-visible + label { outline: 3px solid var(--bar); }
"""
# A filter that is chosen hides the items that do not carry its class.
STYLE += "\n".join(
    f".queries > .f{number}:checked ~ article:not(.f{number}) {{ display: none; }}"
    for number in range(1, FILTERS + 1)
)
# Allows inline images and styles, and nothing else.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: Iterable[str]) -> str:
    """Return a complete page of pieces of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a table with its heading; it scrolls sideways on a narrow screen."""
    # the header
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    # the first cell of a row names it
    for first, *others in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<h2>{escape(title)}</h2>{below}<div class="wide" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def bars(values: Sequence[tuple[str, float, bool]], what: str) -> str:
    """Return a bar chart whose widths are in percent, so that it fits any screen.

    Args:
        values: for each bar its label, its value in percent and whether it is a baseline.
        what: what the chart shows, for screen readers.
    """
    parts = []
    for index, (name, value, base) in enumerate(values):
        top = BAR * index
        width = max(0.0, min(100.0, value))
        kind = "base" if base else "bar"
        parts.append(
            f'<text x="0" y="{top + 15}">{escape(name)}</text>'
            f'<rect class="track" x="0" y="{top + 21}" width="100%" height="12"/>'
            f'<rect class="{kind}" x="0" y="{top + 21}" width="{width:.2f}%" height="12"/>'
        )
    # screen readers read the label
    size = f'width="100%" height="{BAR * len(values)}"'
    return f'<svg {size} role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'


def scatter(points: Sequence[tuple[str, float, float]], across: str, up: str) -> str:
    """Return a scatter plot as a separate SVG file: numbered points, a logarithmic x axis, a legend.

    Args:
        points: for each point its label, its cost > 0 (x) and its value in percent (y).
        across: label of the x axis.
        up: label of the y axis.
    """
    # the x axis covers complete powers of ten
    costs = [cost for _, cost, _ in points]
    low = math.floor(math.log10(min(costs)))
    high = max(low + 1, math.ceil(math.log10(max(costs))))
    tall = max(HEIGHT, LINE * len(points)) + FOOT
    wide = LEFT + WIDTH + LEGEND
    parts = [f'<rect width="{wide}" height="{tall}" fill="#fff"/>']
    parts += _grid(low, high)

    # points and legend
    for number, (name, cost, percent) in enumerate(points, 1):
        x = LEFT + WIDTH * (math.log10(cost) - low) / (high - low)
        y = HEIGHT - (HEIGHT - TOP) * percent / 100
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2f6fb0"/>',
            f'<text x="{x + 6:.1f}" y="{y - 4:.1f}">{number}</text>',
            f'<text x="{LEFT + WIDTH + 20}" y="{LINE * number}">{number} {escape(name)}</text>',
        ]

    # labels of the axes
    parts += [
        f'<text x="{LEFT + WIDTH / 2}" y="{HEIGHT + 42}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>',
    ]
    size = f'viewBox="0 0 {wide} {tall}" width="{wide}"'
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#1c2024"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def _grid(low: int, high: int) -> list[str]:
    """Return the grid lines of a scatter plot: powers of ten across, percent upwards."""
    parts = []
    # a line at each power of ten
    for power in range(low, high + 1):
        x = LEFT + WIDTH * (power - low) / (high - low)
        parts += [
            f'<path d="M{x:.1f} {TOP}V{HEIGHT}" stroke="#d7dce1"/>',
            f'<text x="{x:.1f}" y="{HEIGHT + 18}" text-anchor="middle">{10.0**power:g}</text>',
        ]
    # a line at each 20 %
    for percent in range(0, 101, 20):
        y = HEIGHT - (HEIGHT - TOP) * percent / 100
        parts += [
            f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#d7dce1"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>',
        ]
    return parts


def thumbnail(picture: Image.Image, alt: str, side: int = SIDE) -> str:
    """Return a small copy of an image, of at most `side` pixels, that is part of the page."""
    # `thumbnail` works in place
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'


def zoomable(picture: Image.Image, alt: str) -> str:
    """Return a thumbnail that a click or Enter enlarges to the window, and another one makes small again."""
    # a folded element opens without a script; of elements of one name at most one is open
    image = thumbnail(picture, alt, LARGE)
    return f'<details class="zoom" name="zoom"><summary>{image}</summary></details>'


def filtered(name: str, labels: Sequence[str], items: Sequence[tuple[str, Iterable[int]]]) -> str:
    """Return a list with a filter for each label, without a script.

    Args:
        name: name of the list, unique in the page: letters and digits.
        labels: the filters, at most FILTERS; "all" comes before them.
        items: for each item its HTML, and the indices of the filters that show it.
    """
    parts = []
    for number, label in enumerate(["all", *labels]):
        checked = "" if number else " checked"
        place = f'id="{name}-{number}" class="f{number}"'
        parts.append(f'<input type="radio" name="{name}" {place}{checked}>')
        parts.append(f'<label for="{name}-{number}">{escape(label)}</label>')
    for content, shown_by in items:
        classes = " ".join(f"f{index + 1}" for index in shown_by)
        parts.append(f'<article class="{classes}">{content}</article>')
    return f'<section class="queries">{"".join(parts)}</section>'
