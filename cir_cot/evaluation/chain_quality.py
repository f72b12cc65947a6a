"""Measure generated chains: validity, agreement with the annotation, faithfulness, and recall against cost."""

import random
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Cot, Record
from cir_cot.retriever import Flag

Rankings = Mapping[str, Sequence[str]]


def chain_metrics(
    records: Sequence[Record], explanations: Mapping[str, str], flags: Mapping[str, str]
) -> dict[str, float | int]:
    """Return percentages of valid, truncated and exact chains over the records.

    Args:
        records: the queries. The `exact_*` metrics count those with an annotated chain, and are left out without any.
        explanations: generated chains by record id, as in a Result.
        flags: flags by record id; one of kind "missing_token" marks a truncated chain.

    Returns:
        `valid`: all sections, in order, nothing forced. `exact_<section>`: as annotated but for white space; a chain
        that does not parse has no exact section.
    """
    # None for a text that is no valid chain.
    chains = {record.id: text_to_cot(explanations[record.id]) for record in records}
    metrics: dict[str, float | int] = {
        "chains": len(records),
        "valid": percent(chain is not None and not flags[name] for name, chain in chains.items()),
        "missing_token": percent(is_truncated(flags[record.id]) for record in records),
    }
    # Sections against the annotation.
    annotated = {record.id: record.cot for record in records if record.cot is not None}
    if annotated:
        metrics["annotated"] = len(annotated)
        for part in PARTS:
            metrics[f"exact_{part}"] = percent(
                same_part(chains[name], truth, part) for name, truth in annotated.items()
            )
    return metrics


def is_truncated(flag: str) -> bool:
    """Tell whether a flag says that a section was cut at its token budget."""
    return isinstance(flag, Flag) and flag.kind == "missing_token"


def same_part(chain: Cot | None, truth: Cot, part: str) -> bool:
    """Tell whether a section of a chain equals that of the annotation, white space aside."""
    return chain is not None and getattr(chain, part).split() == getattr(truth, part).split()


def percent(answers: Iterable[bool]) -> float:
    """Return the share of true answers in percent; 0 of none."""
    answers = list(answers)
    return 100 * sum(answers) / max(len(answers), 1)


def swap_chains(
    records: Sequence[Record], explanations: Mapping[str, str], seed: int = 0
) -> dict[str, Record] | None:
    """Assign each query the chain generated for another one, for a test of faithfulness.

    Seeded. The other query's conclusion and targets differ, so a retriever that follows the chain must go elsewhere.

    Returns:
        The other record, with its generated chain as `cot`, by record id. None when a query has no such other, for
        example because hardly any chain is valid.
    """
    # All valid chains, in random order.
    written = {record.id: text_to_cot(explanations[record.id]) for record in records}
    donors = [
        replace(record, cot=written[record.id])
        for record in records
        if written[record.id] is not None
    ]
    random.Random(seed).shuffle(donors)
    # Each query takes the first suitable donor from its own position on, so that donors vary.
    lent = {}
    for index, record in enumerate(records):
        for step in range(len(donors)):
            donor = donors[(index + step) % len(donors)]
            if differs(donor, record, written[record.id]):
                lent[record.id] = donor
                break
        else:
            # No suitable donor: the experiment is not possible.
            return None
    return lent


def differs(donor: Record, record: Record, own: Cot | None) -> bool:
    """Tell whether a donor's chain leads elsewhere than the record's own chain and targets."""
    assert donor.cot is not None
    # Neither the same targets nor the same conclusion.
    apart = not set(donor.targets) & set(record.targets)
    return apart and (own is None or donor.cot.conclusion != own.conclusion)


def adaptive_curve(
    benchmark: Benchmark,
    stop_confidence: Mapping[str, float],
    full: tuple[Rankings, Rankings | None],
    fast: tuple[Rankings, Rankings | None],
    tokens: Mapping[str, int],
    steps: int = 20,
) -> list[dict]:
    """Return recall and cost of the adaptive reading at thresholds from 0 (no chain) to above all (always a chain).

    Args:
        benchmark: the queries and their protocol.
        stop_confidence: `CotRetriever.stop_confidence` by query.
        full: (rankings, subset rankings or None) of the queries, read with chains.
        fast: The same, read without chains.
        tokens: length of each query's chain.
        steps: most thresholds between both ends; they are quantiles of the confidences.

    Returns:
        Points {"threshold", "chains": percent of the queries, "tokens": mean per query, "metrics"}.
    """
    # Thresholds: 0, quantiles, and one above all.
    values = sorted(stop_confidence.values())
    quantiles = [values[len(values) * step // steps] for step in range(1, steps)]
    thresholds = {0.0, *quantiles, values[-1] + 1e-6}
    count = len(stop_confidence)
    curve: list[dict] = []
    for threshold in sorted(thresholds):
        written = {name for name, value in stop_confidence.items() if value < threshold}
        chains = 100 * len(written) / count
        # Equal confidences give the same point again.
        if curve and chains == curve[-1]["chains"]:
            continue
        # Each query has the ranking of the reading that the threshold chooses for it.
        rankings = _mixed(full[0], fast[0], written)
        subsets = None
        if full[1] is not None and fast[1] is not None:
            subsets = _mixed(full[1], fast[1], written)
        curve.append(
            {
                "threshold": threshold,
                "chains": chains,
                "tokens": sum(tokens[name] for name in written) / count,
                "metrics": score_rankings(benchmark, rankings, subsets),
            }
        )
    return curve


def _mixed(full: Rankings, fast: Rankings, written: AbstractSet[str]) -> dict[str, Sequence[str]]:
    """Return the full reading's rankings of the queries in `written`, the fast reading's of the others."""
    return {name: (full if name in written else fast)[name] for name in full}


def calibrated(curve: Sequence[dict], metric: str, tolerance: float = 0.0) -> dict:
    """Return the cheapest point of a curve whose `metric` is within `tolerance` of the best."""
    # The best value of the metric, then the cheapest point near it.
    best = max(point["metrics"][metric] for point in curve)
    good = [point for point in curve if point["metrics"][metric] >= best - tolerance]
    return min(good, key=lambda point: point["tokens"])
