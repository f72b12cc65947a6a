"""Draw line and column charts as pieces of HTML: inline SVG whose colours follow the page's style.

A chart is drawn in a box of 360 units, so that its labels are readable on a narrow screen. Lines differ by
colour and by dashes, columns carry their numbers: nothing is told by colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE = 360  # of the drawing, in its own units
TALL = 220
LEFT = 38  # room for the labels of the y axis
RIGHT = 18  # room for half of the last label
TOP = 22
FOOT = 40  # room for the labels of the x axis
STEPS = 5  # of an axis, at most
KINDS = 12  # lines that differ in colour or in dashes; see `.plot` in the page's style


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name and its points (x, y), x ascending."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """An axis: its label, its ends, its marks, and whether it is logarithmic (ends above 0)."""

    label: str
    low: float
    high: float
    marks: Sequence[float]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies on the axis: 0 at its low end, 1 at its high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis that covers the values, with marks at round numbers.

    Args:
        label: what the axis shows.
        values: finite values, at least one.
    """
    low = min(values)
    high = max(values)
    if low == high:
        low, high = low - abs(low) / 2 - 1e-3, high + abs(high) / 2 + 1e-3
    # The smallest round step that needs at most STEPS steps.
    raw = (high - low) / STEPS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(label, low, high, [index * step for index in range(first, last + 1)])


def line_chart(title: str, lines: Sequence[Line], across: Axis, up: Axis) -> str:
    """Return a figure with a line for each series, and a legend below it."""
    parts = _grid(across, up)
    keys = []
    for index, line in enumerate(lines):
        kind = f"line k{index % KINDS}"
        where = [f"{_x(across, x):.1f} {_y(up, y):.1f}" for x, y in line.points]
        # A line of one point would not be seen.
        if len(where) == 1:
            where.append(f"{_x(across, line.points[0][0]) + 3:.1f} {_y(up, line.points[0][1]):.1f}")
        parts.append(f'<path class="{kind}" d="M{" L".join(where)}"/>')
        sample = f'<svg width="34" height="10" aria-hidden="true"><path class="{kind}" d="M1 5H33"/></svg>'
        keys.append(f"<li>{sample} {escape(line.name)}</li>")
    legend = f"<ul>{''.join(keys)}</ul>" if len(lines) > 1 else ""
    return _figure(title, parts, legend)


def column_chart(title: str, columns: Sequence[tuple[str, int]], across: str) -> str:
    """Return a figure with a column for each (label, count); each carries its count."""
    highest = max(1, *(count for _, count in columns))
    width = (WIDE - LEFT - RIGHT) / len(columns)
    ground = TALL - FOOT
    parts = [f'<path class="grid" d="M{LEFT} {ground}H{WIDE - RIGHT}"/>']
    for index, (name, count) in enumerate(columns):
        height = (ground - TOP) * count / highest
        left = LEFT + width * index + 2
        middle = left + width / 2 - 2
        parts += [
            f'<path class="bar" d="M{left:.1f} {ground}v-{height:.1f}h{width - 4:.1f}v{height:.1f}z"/>',
            f'<text x="{middle:.1f}" y="{ground - height - 5:.1f}" text-anchor="middle">{count}</text>',
            f'<text x="{middle:.1f}" y="{ground + 15}" text-anchor="middle">{escape(name)}</text>',
        ]
    parts.append(_across(across))
    return _figure(title, parts, "")


def charts(pieces: Sequence[str]) -> str:
    """Return figures side by side, or one below the other where the screen is narrow."""
    return f'<div class="charts">{"".join(pieces)}</div>'


def _figure(title: str, parts: Sequence[str], legend: str) -> str:
    """Return a drawing with its title, which screen readers read."""
    box = f'viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{escape(title)}"'
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure class="plot">{caption}<svg {box}>{"".join(parts)}</svg>{legend}</figure>'


def _grid(across: Axis, up: Axis) -> list[str]:
    """Return the lines and labels of the marks of both axes."""
    parts = []
    for mark in up.marks:
        y = _y(up, mark)
        parts += [
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDE - RIGHT}"/>',
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{mark:.4g}</text>',
        ]
    for mark in across.marks:
        x = _x(across, mark)
        parts += [
            f'<path class="grid" d="M{x:.1f} {TOP}V{TALL - FOOT}"/>',
            f'<text x="{x:.1f}" y="{TALL - FOOT + 15}" text-anchor="middle">{mark:.6g}</text>',
        ]
    parts.append(_across(across.label))
    parts.append(f'<text x="2" y="13">{escape(up.label)}</text>')
    return parts


def _across(label: str) -> str:
    """Return the label of the x axis."""
    middle = (LEFT + WIDE - RIGHT) / 2
    return f'<text x="{middle}" y="{TALL - 6}" text-anchor="middle">{escape(label)}</text>'


def _x(across: Axis, value: float) -> float:
    """Return the place of a value on the x axis."""
    return LEFT + (WIDE - LEFT - RIGHT) * across.share(value)


def _y(up: Axis, value: float) -> float:
    """Return the place of a value on the y axis, whose high end is at the top."""
    return TALL - FOOT - (TALL - FOOT - TOP) * up.share(value)
