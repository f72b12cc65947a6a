"""Compose the charts of a report: ranks of the right pictures, recall curves, the training curve."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypeGuard

from cir_cot.errors import InputError
from cir_cot.files import read_json

from .plot import Axis, Line, axis, charts, column_chart, line_chart
from .ranking import TOP, relevant_images
from .results import Result
from .tables import Table, heading, label, leading

# Ranks that are counted together: the first and the last of each group.
GROUPS = ((1, 1), (2, 5), (6, 10), (11, 50), (51, TOP))
PERCENTS = (0, 20, 40, 60, 80, 100)
DEPTHS = (1, 2, 5, 10, 20, 50, TOP)  # marks of a recall curve
METRICS_FILE = "metrics.json"  # what a finished training reports, with its history
MAX_POINTS = 500  # of a training curve, evenly chosen; more are not seen in the drawing
RANKS_NOTE = (
    "Queries by the rank of their first right picture. Later: not among the first "
    f"{TOP}, or not in a shorter ranking. The median counts these as the worst."
)


def first_ranks(result: Result) -> list[int | None]:
    """Return for each query the rank of its first right image, from 1; None where none is ranked."""
    found = []
    for record in result.benchmark.records:
        right = set(relevant_images(result.benchmark, record))
        ranking = result.rankings[record.id]
        found.append(next((rank for rank, name in enumerate(ranking, 1) if name in right), None))
    return found


def rank_counts(ranks: Sequence[int | None]) -> list[tuple[str, int]]:
    """Return (ranks, number of queries) of each group of ranks; those without a rank come last."""
    counts = []
    for low, high in GROUPS:
        name = str(low) if low == high else f"{low}–{high}"
        inside = [rank for rank in ranks if rank is not None and low <= rank <= high]
        counts.append((name, len(inside)))
    counts.append(("later", len(ranks) - sum(count for _, count in counts)))
    return counts


def recall_curve(ranks: Sequence[int | None], deepest: int) -> list[tuple[float, float]]:
    """Return (k, percent of queries with a right image among the first k) for k up to `deepest`."""
    points = []
    for k in range(1, deepest + 1):
        hits = [rank for rank in ranks if rank is not None and rank <= k]
        points.append((float(k), 100 * len(hits) / len(ranks)))
    return points


def rank_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield for each measured set with published answers how often each rank occurred."""
    for first in leading(results):
        if not first.metrics:
            continue
        rows = []
        header: list[str] = []
        for result in _readings(results, first):
            ranks = first_ranks(result)
            counts = rank_counts(ranks)
            middle = median(math.inf if rank is None else rank for rank in ranks)
            header = ["reading", *(name for name, _ in counts), "median"]
            shown = "later" if math.isinf(middle) else f"{middle:g}"
            rows.append([label(result), *(count for _, count in counts), shown])
        yield Table(f"Ranks of the right pictures, {first.name}", header, rows, RANKS_NOTE)


def rank_charts(results: Sequence[Result]) -> Iterator[str]:
    """Yield for each measured set with published answers its recall curve and its histogram of ranks."""
    for first in leading(results):
        if not first.metrics:
            continue
        # A curve for each reading, as deep as the shortest ranking allows.
        readings = _readings(results, first)
        deepest = min(len(ranking) for one in readings for ranking in one.rankings.values())
        if deepest < 2:
            continue
        lines = []
        for result in readings:
            lines.append(Line(label(result), recall_curve(first_ranks(result), deepest)))
        marks = [depth for depth in DEPTHS if depth <= deepest]
        across = Axis("first k pictures", 1, deepest, marks, logarithmic=True)
        up = Axis("queries with a right one among them, %", 0, 100, PERCENTS)
        curve = line_chart(f"Recall, {first.name}", lines, across, up)
        # The histogram is of the first reading; the table has all.
        counts = rank_counts(first_ranks(first))
        title = f"Ranks of the right pictures, {heading(first)}"
        yield charts([curve, column_chart(title, counts, "rank (number of queries above)")])


def _readings(results: Sequence[Result], first: Result) -> list[Result]:
    """Return the results of the same measured set."""
    return [result for result in results if result.name == first.name]


# ---- Training


def training_charts(results: Sequence[Result]) -> Iterator[str]:
    """Yield the training curves of the measured models whose folders hold a history."""
    models = dict.fromkeys(str(result.protocol.get("model") or "") for result in results)
    for model in models:
        path = Path(model) / METRICS_FILE
        if not model or not path.is_file():
            continue
        # A history that cannot be read must not cost the measurement its report.
        try:
            history = training_history(path)
        except InputError:
            continue
        drawn = history_charts(path.resolve().parent.name, history)
        if drawn:
            yield charts(drawn)


def training_history(path: Path) -> list[dict]:
    """Return the entries of a training's log, oldest first; [] where the file has none.

    Raises:
        InputError: the file is no strict JSON.
    """
    content = read_json(path)
    history = content.get("history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        return []
    return [entry for entry in history if isinstance(entry, dict)]


def history_charts(name: str, history: Sequence[dict]) -> list[str]:
    """Return the curve of the loss and that of the recalls which were measured during training."""
    drawn = []
    losses = series(history, "loss")
    if len(losses) > 1:
        up = axis("loss", [value for _, value in losses])
        drawn.append(_curve(f"Training loss, {name}", [Line("loss", losses)], up))
    # The recalls of each evaluation, e.g. eval_full_R@1.
    names: dict[str, None] = {}
    for entry in history:
        names |= dict.fromkeys(key for key in entry if key.startswith("eval_") and "R@" in key)
    lines = [
        Line(key.removeprefix("eval_").replace("_", " "), series(history, key)) for key in names
    ]
    lines = [line for line in lines if line.points]
    if lines:
        up = Axis("percent of the queries", 0, 100, PERCENTS)
        drawn.append(_curve(f"Recall during training, {name}", lines, up))
    return drawn


def series(history: Sequence[dict], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of the entries that hold finite numbers of both, by step."""
    points = {}
    for entry in history:
        step = entry.get("step")
        value = entry.get(key)
        if _is_finite(step) and _is_finite(value):
            points[float(step)] = float(value)
    steps = sorted(points)
    # Choose evenly, the last one always.
    kept = steps[:: -max(1, -(-len(steps) // MAX_POINTS))][::-1]
    return [(step, points[step]) for step in kept]


def _is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number that a drawing can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _curve(title: str, lines: Sequence[Line], up: Axis) -> str:
    """Draw lines over the steps of a training."""
    steps = [x for line in lines for x, _ in line.points]
    return line_chart(title, lines, axis("step", steps), up)
