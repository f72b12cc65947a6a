"""TODO."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Cot, Record

from .readings import NO_TOKEN


def chain_metrics(
    records: Sequence[Record], explanations: Mapping[str, str], flags: Mapping[str, str]
) -> dict[str, float | int]:
    """Percentages over the records' own chains: valid (all parts, in order, nothing forced), cut off, as annotated.

    `explanations` and `flags` are by record id, as in a Result. A part is exact when it equals the annotated one but
    for white space; a chain that does not parse has no exact part. The `exact_*` keys are left out without annotations.
    """
    chains = {record.id: text_to_cot(explanations[record.id]) for record in records}
    metrics = {
        "chains": len(records),
        "valid": percent(chain is not None and not flags[name] for name, chain in chains.items()),
        "missing_token": percent(flags[record.id].startswith(NO_TOKEN) for record in records),
    }
    annotated = [record for record in records if record.cot is not None]
    if annotated:
        metrics["annotated"] = len(annotated)
        for part in PARTS:
            metrics[f"exact_{part}"] = percent(
                same_part(chains[r.id], r.cot, part) for r in annotated
            )
    return metrics


def same_part(chain: Cot | None, truth: Cot, part: str) -> bool:
    """Tell whether one part of a chain says what the annotation says, white space aside."""
    return chain is not None and getattr(chain, part).split() == getattr(truth, part).split()


def percent(answers: Iterable[bool]) -> float:
    """Share of true answers in percent; 0 of none."""
    answers = list(answers)
    return 100 * sum(answers) / max(len(answers), 1)


def swap_chains(
    records: Sequence[Record], explanations: Mapping[str, str], seed: int = 0
) -> dict[str, Record] | None:
    """Lend each query the chain written for another one -> {record id: that other record, with its chain as cot}.

    Seeded; the other's conclusion and targets differ, so that a retriever which follows the chain must go elsewhere.
    None when a query has no such other, for example because hardly any chain is valid.
    """
    written = {record.id: text_to_cot(explanations[record.id]) for record in records}
    donors = [
        replace(record, cot=written[record.id])
        for record in records
        if written[record.id] is not None
    ]
    random.Random(seed).shuffle(donors)
    lent = {}
    for index, record in enumerate(records):
        turned = (donors[(index + step) % len(donors)] for step in range(len(donors)))
        donor = next(
            (donor for donor in turned if differs(donor, record, written[record.id])), None
        )
        if donor is None:
            return None
        lent[record.id] = donor
    return lent


def differs(donor: Record, record: Record, own: Cot | None) -> bool:
    """Tell whether a donor's chain leads elsewhere than the record's own chain and targets."""
    return not set(donor.targets) & set(record.targets) and (
        own is None or donor.cot.conclusion != own.conclusion
    )


def adaptive_curve(
    benchmark: Benchmark,
    stop_confidence: Mapping[str, float],
    full: tuple[dict, dict | None],
    fast: tuple[dict, dict | None],
    tokens: Mapping[str, int],
    steps: int = 20,
) -> list[dict]:
    """What the adaptive reading would find and cost at thresholds from 0 (no chain) to above all (a chain for each).

    `full` and `fast` are (rankings, subset rankings or None) of the same queries, `tokens` of a query's chain. A point
    is {"threshold", "chains": percent of the queries, "tokens": mean a query, "metrics"}.
    """
    values, curve = sorted(stop_confidence.values()), []
    cuts = [
        0.0,
        *(values[len(values) * step // steps] for step in range(1, steps)),
        values[-1] + 1e-6,
    ]
    for threshold in sorted(set(cuts)):
        written = {name for name, value in stop_confidence.items() if value < threshold}
        if curve and 100 * len(written) / len(stop_confidence) == curve[-1]["chains"]:
            continue
        rankings, subsets = (
            None
            if both[0] is None
            else {name: both[name not in written][name] for name in stop_confidence}
            for both in zip(full, fast, strict=True)
        )
        curve.append(
            {
                "threshold": threshold,
                "chains": 100 * len(written) / len(stop_confidence),
                "tokens": sum(tokens[name] for name in written) / len(stop_confidence),
                "metrics": score_rankings(benchmark, rankings, subsets),
            }
        )
    return curve


def calibrated(curve: Sequence[dict], metric: str, tolerance: float = 0.0) -> dict:
    """The cheapest point of a curve whose `metric` is within `tolerance` of the best."""
    best = max(point["metrics"][metric] for point in curve)
    return min(
        (p for p in curve if p["metrics"][metric] >= best - tolerance),
        key=lambda point: point["tokens"],
    )
