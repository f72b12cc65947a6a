"""Change words of chains and look where retrieval goes: corrections of misses, and planted errors."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL.Image import Image
from torch import Tensor

from cir_cot.data.scene_chains import plant
from cir_cot.prompts import PARTS, cot_to_text, text_to_cot
from cir_cot.records import Cot, Record
from cir_cot.retriever import QueryOutput

from .chain_quality import percent, same_part
from .ranking import rank
from .results import Result
from .samples import outcome

# Of (pictures, texts, begun chains): queries whose chains the model writes on.
WriteOn = Callable[[Sequence[Image], Sequence[str], Sequence[str]], QueryOutput]


def repairs(full: Result, oracle: Result) -> dict[str, float | int]:
    """Count the misses that a corrected chain turns into hits at rank 1.

    Args:
        full: the queries, read with the chains that the model wrote.
        oracle: the same queries, read with the true chains.

    Returns:
        "missed": queries without a right answer at rank 1; "wrong_chain": those of them whose
        chain was not the true one, and "repaired", "repaired_wrong_chain": the share (%) of both
        that the true chain finds.
    """
    missed = [record for record in full.benchmark.records if outcome(full, record) == "missed"]
    wrong = [record for record in missed if not written_right(full, record)]
    return {
        "missed": len(missed),
        "repaired": round(_found(oracle, missed), 2),
        "wrong_chain": len(wrong),
        "repaired_wrong_chain": round(_found(oracle, wrong), 2),
    }


def written_right(result: Result, record: Record) -> bool:
    """Return whether the model wrote the true chain of a query."""
    chain = text_to_cot(result.explanations[record.id])
    assert record.cot is not None, "only annotated queries have a true chain"
    return all(same_part(chain, record.cot, part) for part in PARTS)


def _found(result: Result, records: Sequence[Record]) -> float:
    """Return the share (%) of queries with a right answer at rank 1."""
    return percent(outcome(result, record) == "found" for record in records)


def follow_planted_words(
    write_on: WriteOn, full: Result, gallery: Tensor, queries: int = 500, seed: int = 0
) -> dict[str, dict[str, float | int]]:
    """Plant a wrong word in the true chains of scenes, and measure whether retrieval follows it.

    After a word in the caption or in the reasoning the model writes on by itself.

    Args:
        write_on: writes on begun chains, `CotRetriever.write_on`.
        full: queries on scenes, whose order and sample are kept.
        gallery: (N, D) embeddings of the gallery.
        queries: the first queries with a place for the word, for each section.
        seed: of the words.

    Returns:
        For each section: "queries"; "written": conclusions (%) that say what the word leads to;
        "left": first answers (%) that are no right ones any more; "shown": queries whose planted
        scene is in the gallery; "arrived": those of them (%) with that scene as the first answer.
    """
    pictures_of = _pictures_by_scene(full)
    measured = {}
    for section in PARTS:
        # The first queries with a place for a wrong word.
        rng = random.Random(seed)
        planted: list[tuple[Record, Cot]] = []
        for record in full.benchmark.records:
            chain = plant(record, section, rng)
            if chain is not None and len(planted) < queries:
                planted.append((record, chain))
        records = [record for record, _ in planted]
        chains = [chain for _, chain in planted]
        # The model writes on after the section with the word.
        output = write_on(
            [full.images.load(record.reference) for record in records],
            [record.text for record in records],
            [begun_after(chain, section) for chain in chains],
        )
        asked = replace(full.benchmark, records=records)
        rankings, _, _ = rank(asked, output.embeddings, gallery)
        measured[section] = _followed(planted, output.explanations, rankings, pictures_of)
    return measured


def begun_after(chain: Cot, section: str) -> str:
    """Return the tagged text of a chain up to the end of a section."""
    return cot_to_text(chain).partition(f"</{section}>")[0] + f"</{section}>"


def _pictures_by_scene(full: Result) -> dict[str, set[str]]:
    """Return the pictures of each scene that a chain describes, by the scene's text."""
    found: dict[str, set[str]] = {}
    for record in full.benchmark.records:
        assert record.cot is not None, "records of scenes have chains"
        found.setdefault(record.cot.conclusion, set()).update(record.targets)
        found.setdefault(record.cot.caption, set()).add(record.reference)
    return found


def _followed(
    planted: Sequence[tuple[Record, Cot]],
    explanations: Sequence[str],
    rankings: dict[str, list[str]],
    pictures_of: dict[str, set[str]],
) -> dict[str, float | int]:
    """Return one section's row of `follow_planted_words`."""
    written = []
    left = []
    arrived = []
    for (record, chain), explanation in zip(planted, explanations, strict=True):
        first = rankings[record.id][0]
        written.append(same_part(text_to_cot(explanation), chain, "conclusion"))
        left.append(first not in record.targets)
        # The query's own picture is no answer.
        shown = pictures_of.get(chain.conclusion, set()) - {record.reference}
        if shown:
            arrived.append(first in shown)
    return {
        "queries": len(planted),
        "written": round(percent(written), 2),
        "left": round(percent(left), 2),
        "shown": len(arrived),
        "arrived": round(percent(arrived), 2),
    }
