"""How sure a measurement is: intervals of its recalls over queries, and wins and losses between two readings."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cir_cot.data.benchmark import Benchmark

from .intervals import bootstrap, sign_test
from .ranking import Rankings, relevant_images
from .results import Result
from .tables import Table, label, leading

RECALL = re.compile(r"R@(\d+)")
SAME = 0.01  # in percent: what a recall that is computed twice may differ by
INTERVALS_NOTE = "95 % bootstrap intervals over queries, in percent: what another sample of such queries would give."
PAIRED_NOTE = (
    "Right answers at rank 1 of the same queries: found by this reading alone, found by the first one alone, and the "
    "probability of a difference that large if both were alike (exact sign test)."
)


def hits_at(benchmark: Benchmark, rankings: Rankings, k: int) -> list[bool]:
    """Tell for each query whether a right image is among the first k."""
    hits = []
    for record in benchmark.records:
        right = set(relevant_images(benchmark, record))
        hits.append(not right.isdisjoint(rankings[record.id][:k]))
    return hits


def recall_intervals(
    benchmark: Benchmark, rankings: Rankings, metrics: Mapping[str, Any], seed: int = 0
) -> dict[str, list[float]]:
    """Return the interval of every recall that is a mean of hits; {} without published answers."""
    found = {}
    for name, value in metrics.items():
        match = RECALL.fullmatch(name)
        if match is None:
            continue
        values = [100.0 * hit for hit in hits_at(benchmark, rankings, int(match.group(1)))]
        # Graded and other recalls are no means of hits.
        if values and abs(sum(values) / len(values) - value) < SAME:
            found[name] = bootstrap(values, seed)
    return found


def interval_table(results: Sequence[Result]) -> Iterator[Table]:
    """Yield the intervals of all results, if any has some."""
    rows = []
    names: dict[str, None] = {}
    for result in results:
        found = result.intervals
        names |= dict.fromkeys(found)
        if found:
            rows.append((f"{result.name} · {label(result)}", found))
    cells = []
    for name, found in rows:
        spans = [found.get(metric) for metric in names]
        cells.append([name, *("" if span is None else f"{span[0]} – {span[1]}" for span in spans)])
    if cells:
        yield Table("Intervals", ["set · reading", *names], cells, INTERVALS_NOTE)


def paired(first: Result, second: Result) -> dict[str, float]:
    """Compare two results of the same queries: "wins" and "losses" of the second, and the "p" of a sign test."""
    one = hits_at(first.benchmark, first.rankings, 1)
    other = hits_at(second.benchmark, second.rankings, 1)
    wins = sum(b and not a for a, b in zip(one, other, strict=True))
    losses = sum(a and not b for a, b in zip(one, other, strict=True))
    return {"wins": wins, "losses": losses, "p": sign_test(wins, losses)}


def paired_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield for each measured set how its other readings compare with the first."""
    for first in leading(results):
        others = [result for result in results if result.name == first.name and result is not first]
        if not others or not first.metrics:
            continue
        rows = []
        for other in others:
            found = paired(first, other)
            rows.append([label(other), found["wins"], found["losses"], f"{found['p']:.2g}"])
        header = [f"against {label(first)}", "found by it alone", "lost by it", "p"]
        yield Table(f"Readings compared, {first.name}", header, rows, PAIRED_NOTE)


def doubts(results: Sequence[Result]) -> list[str]:
    """Return what a reader should doubt: an oracle that is worse than the model's own chains."""
    found = []
    for first in leading(results):
        by_reading = {
            result.protocol.get("reading"): result
            for result in results
            if result.name == first.name
        }
        full, oracle = by_reading.get("full"), by_reading.get("oracle")
        if full is None or oracle is None or not full.metrics:
            continue
        metric = next(iter(full.metrics))
        if oracle.metrics[metric] < full.metrics[metric]:
            found.append(
                f"{first.name}: {metric} with the annotated chain ({oracle.metrics[metric]}) is below that with the "
                f"model's own ({full.metrics[metric]}): the chains are of another form than those it was trained on, "
                "or of another file."
            )
    return found
