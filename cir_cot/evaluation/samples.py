"""Choose the queries that a report shows, and describe how each of them went."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Record

from .chain_quality import same_part
from .results import Result

SHOWN = 6  # ranked images shown for a query
OUTCOMES = {"missed": "missed", "found": "found first", "unknown": "without a published answer"}


def sample(result: Result, count: int, seed: int) -> list[Record]:
    """Draw up to `count` failures, successes and unlabelled queries, each in official order."""
    # Sort the queries by how they went.
    pools: dict[str, list[Record]] = {name: [] for name in OUTCOMES}
    for record in result.benchmark.records:
        pools[outcome(result, record)].append(record)
    # Draw from each pool with the same seed.
    drawn = []
    for pool in pools.values():
        kept = sorted(random.Random(seed).sample(range(len(pool)), min(count, len(pool))))
        drawn += [pool[index] for index in kept]
    return drawn


def drawn_text(result: Result, records: Sequence[Record]) -> str:
    """Write how many of the missed and of the found queries are shown."""
    shown = Counter(outcome(result, record) for record in records)
    total = Counter(outcome(result, record) for record in result.benchmark.records)
    counts = [f"{shown[k]} of {total[k]} {text}" for k, text in OUTCOMES.items() if total[k]]
    return f"Drawn by the seed: {', '.join(counts)}."


def outcome(result: Result, record: Record) -> str:
    """Return "found" (a right image came first), "missed" or "unknown" (no published answer)."""
    if not record.targets:
        return "unknown"
    return "found" if place(result, record) == 1 else "missed"


def place(result: Result, record: Record) -> int | None:
    """Return the rank of the first right image, from 1; None where the stored ranking has none."""
    ranking = result.rankings[record.id]
    return next((rank for rank, name in enumerate(ranking, 1) if name in record.targets), None)


def verdict(result: Result, record: Record) -> str:
    """Write at which rank the first right image came."""
    if not record.targets:
        return "no published answer"
    rank = place(result, record)
    if rank is None:
        length = len(result.rankings[record.id])
        return f"✗ missed: the right answer is not among the first {length}"
    return "✓ found first" if rank == 1 else f"✗ missed: the right answer is at rank {rank}"


def chain_lines(result: Result, record: Record) -> list[tuple[str, str]]:
    """Return (name, text) of each section of the chain, compared with the annotation if any.

    A head that routes names what it chose in the chain's place.
    """
    written = result.explanations[record.id]
    chain = text_to_cot(written)
    # No chain, or none that can be parsed.
    if chain is None:
        if not written:
            return []
        return [("read with" if result.routing else "not a valid chain", written)]
    # A section that differs from the annotation is followed by the annotated one.
    lines = []
    for part in PARTS:
        text = getattr(chain, part)
        if record.cot is None:
            lines.append((part, text))
        elif same_part(chain, record.cot, part):
            lines.append((f"{part} ✓ as annotated", text))
        else:
            lines.append((f"{part} ✗ not as annotated", text))
            lines.append((f"the annotated {part}", getattr(record.cot, part)))
    return lines


def answers(result: Result, record: Record) -> Iterator[tuple[str, str, str, bool]]:
    """Yield (rank, image id, score, whether it is right) of the first ranked images, each as text.

    A right image that came later, or that is not in the ranking, is listed last.
    """
    ranking = result.rankings[record.id]
    scores = result.scores[record.id]
    first = place(result, record)
    # The first images, and the first right one where it came later.
    ranks = list(range(1, min(SHOWN, len(ranking)) + 1))
    if first is not None and first > SHOWN:
        ranks.append(first)
    for rank in ranks:
        name = ranking[rank - 1]
        yield f"{rank}.", name, f"{scores[rank - 1]:.3f}", name in record.targets
    # A right image that the stored ranking does not hold.
    if first is None:
        known = [name for name in record.targets if name in result.images]
        for name in known[:1]:
            yield "not listed:", name, "", True
