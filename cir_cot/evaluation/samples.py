"""Choose the queries that a report shows, and describe how each of them went."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Record

from .chain_quality import same_part
from .results import Result

SHOWN = 6  # ranked images shown for a query
OUTCOMES = {"missed": "missed", "found": "found first", "unknown": "without a published answer"}
COMPARED = {"fast": "by fast", "oracle": "with the annotated chain"}  # readings, and their names
MAX_WORDS = 400  # of a section that is compared word by word: the time grows with the square


def sample(result: Result, count: int, seed: int, results: Sequence[Result] = ()) -> list[Record]:
    """Draw up to `count` failures, successes and unlabelled queries, and some of each other group.

    Args:
        result: The queries are drawn by how they went in it.
        count: How many of each outcome; of a group of `groups` half as many, unless drawn already.
        seed: Seed of every draw.
        results: Other readings of the same queries.

    Returns:
        Failures, successes and unlabelled queries, each in official order.
    """
    # Sort the queries by how they went, and into the other groups.
    records = result.benchmark.records
    pools: dict[str, list[int]] = {name: [] for name in OUTCOMES}
    for index, record in enumerate(records):
        pools[outcome(result, record)].append(index)
    others = other_readings(result, results)
    for index, record in enumerate(records):
        for name in groups(result, record, others)[1:]:
            pools.setdefault(name, []).append(index)
    # Draw from each pool with the same seed what is missing of it.
    kept: set[int] = set()
    for name, pool in pools.items():
        missing = [index for index in pool if index not in kept]
        wanted = count if name in OUTCOMES else (count + 1) // 2
        wanted = max(0, wanted - (len(pool) - len(missing)))
        kept.update(random.Random(seed).sample(missing, min(wanted, len(missing))))
    drawn = []
    for name in OUTCOMES:
        drawn += [records[index] for index in pools[name] if index in kept]
    return drawn


def other_readings(result: Result, results: Sequence[Result]) -> dict[str, Result]:
    """Return the other results of the same measured set by their reading."""
    found = {}
    for other in results:
        if other.name == result.name and other is not result:
            found[str(other.protocol["reading"])] = other
    return found


def groups(result: Result, record: Record, others: Mapping[str, Result]) -> list[str]:
    """Name the groups that a query is in: its outcome, then what other readings and its chain tell.

    Args:
        result: The result whose outcome counts.
        record: The query.
        others: See `other_readings`.
    """
    how = outcome(result, record)
    found = [OUTCOMES[how]]
    # A query that another reading answers, or loses.
    for reading, name in COMPARED.items():
        if reading in others:
            other = outcome(others[reading], record)
            if (how, other) == ("missed", "found"):
                found.append(f"missed, found {name}")
            elif (how, other) == ("found", "missed"):
                found.append(f"found first, missed {name}")
    # What is wrong with the chain.
    written = result.explanations[record.id]
    chain = text_to_cot(written)
    if written and chain is None and not result.routing:
        found.append("no valid chain")
    elif chain is not None and record.cot is not None:
        if not all(same_part(chain, record.cot, part) for part in PARTS):
            found.append("chain not as annotated")
        elif how == "missed":
            found.append("missed, chain as annotated")
    return found


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


def chain_lines(result: Result, record: Record) -> list[tuple[str, str, str | None]]:
    """Return (name, text, what it is compared with) of each section of the chain and its annotation.

    A section that is as annotated is compared with nothing. A head that routes names what it chose in
    the chain's place.
    """
    written = result.explanations[record.id]
    chain = text_to_cot(written)
    # No chain, or none that can be parsed.
    if chain is None:
        if not written:
            return []
        return [("read with" if result.routing else "not a valid chain", written, None)]
    # A section that differs from the annotation is followed by the annotated one.
    lines: list[tuple[str, str, str | None]] = []
    for part in PARTS:
        text = getattr(chain, part)
        if record.cot is None:
            lines.append((part, text, None))
        elif same_part(chain, record.cot, part):
            lines.append((f"{part} ✓ as annotated", text, None))
        else:
            annotated = getattr(record.cot, part)
            lines.append((f"{part} ✗ not as annotated", text, annotated))
            lines.append((f"the annotated {part}", annotated, text))
    return lines


def different_words(text: str, other: str) -> list[tuple[str, bool]]:
    """Split a text into pieces (words, whether they are missing in the other text), in order.

    A text of more than MAX_WORDS words is not compared.
    """
    words = text.split()
    others = other.split()
    if max(len(words), len(others)) > MAX_WORDS:
        return [(text, False)]
    pieces = []
    end = 0
    for start, _, size in SequenceMatcher(None, words, others, False).get_matching_blocks():
        # What lies between two matches is missing in the other text.
        if start > end:
            pieces.append((" ".join(words[end:start]), True))
        end = start + size
        if size:
            pieces.append((" ".join(words[start:end]), False))
    return pieces


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
