"""Pieces of a self-contained web page: frame, table, bars, thumbnail.

The page is one file: style, charts and pictures are inside, it loads nothing and runs no script, and a content security
policy says so to the browser. Every text that goes in is escaped here. Light and dark follow the reader's system.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

SIDE = 144  # thumbnails, pixels: about 4 KB each
BAR = 44  # pixels that one bar and its label take
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6670; --line: #d7dce1; --page: #fbfcfd; --card: #fff;
  --right: #12793a; --wrong: #b3261e; --bar: #2f6fb0; --base: #9aa7b3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a0abb5; --line: #363d44; --page: #14171a;
  --card: #1c2024; --right: #5fd08a; --wrong: #ff8a80; --bar: #6ba8e5; --base: #66727d; } }
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
svg .track { fill: var(--line); opacity: .5; } pre { overflow-x: auto; font-size: .8rem; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: Iterable[str]) -> str:
    """A whole page of the given pieces of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """One table with its heading, scrolling sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<h2>{escape(title)}</h2>{words}<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def bars(values: Sequence[tuple[str, float, bool]], what: str) -> str:
    """A bar for each (label, percent, is a baseline); widths in percent, so that the chart fits any screen."""
    parts = []
    for index, (words, value, base) in enumerate(values):
        top, width = BAR * index, max(0.0, min(100.0, value))
        kind = "base" if base else "bar"
        parts.append(
            f'<text x="0" y="{top + 15}">{escape(words)}</text>'
            f'<rect class="track" x="0" y="{top + 21}" width="100%" height="12"/>'
            f'<rect class="{kind}" x="0" y="{top + 21}" width="{width:.2f}%" height="12"/>'
        )
    size = f'width="100%" height="{BAR * len(values)}"'
    return f'<svg {size} role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'


def scatter(points: Sequence[tuple[str, float, float]], across: str, up: str) -> str:
    """A drawing of its own of (label, cost > 0, percent): costs on a logarithmic axis, numbered points, a legend."""
    width, height, left, foot = 520, 400, 60, 60  # of the plot, and room for the axes' words
    tall = max(height, 20 * len(points)) + foot
    low = math.floor(math.log10(min(cost for _, cost, _ in points)))
    high = max(low + 1, math.ceil(math.log10(max(cost for _, cost, _ in points))))
    parts = [f'<rect width="{left + width + 330}" height="{tall}" fill="#fff"/>']
    for power in range(low, high + 1):
        x = left + width * (power - low) / (high - low)
        parts.append(f'<path d="M{x:.1f} 10V{height}" stroke="#d7dce1"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for percent in range(0, 101, 20):
        y = height - (height - 10) * percent / 100
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#d7dce1"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    for number, (words, cost, percent) in enumerate(points, 1):
        x, y = (
            left + width * (math.log10(cost) - low) / (high - low),
            height - (height - 10) * percent / 100,
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2f6fb0"/>')
        parts.append(f'<text x="{x + 6:.1f}" y="{y - 4:.1f}">{number}</text>')
        parts.append(
            f'<text x="{left + width + 20}" y="{20 * number}">{number} {escape(words)}</text>'
        )
    parts.append(
        f'<text x="{left + width / 2}" y="{height + 42}" text-anchor="middle">{escape(across)}</text>'
    )
    parts.append(
        f'<text transform="translate(16 {height / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    size = f'viewBox="0 0 {left + width + 330} {tall}" width="{left + width + 330}"'
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#1c2024"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def thumbnail(picture: Image.Image, alt: str) -> str:
    """A small copy of a picture, inside the page."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
