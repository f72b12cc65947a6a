"""Edit one part of a chain or the picture, and measure what becomes of the query: does the answer follow the chain?

A retriever that follows its chain changes its answer when an attribute of the conclusion changes, and keeps it when
the same things are said in another order. One that looks past its chain does neither.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, median

import torch
from PIL import Image
from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.errors import InputError
from cir_cot.prompts import PARTS, text_to_cot
from cir_cot.records import Cot, Record
from cir_cot.retriever import ChainReader, inference

from .chain_quality import percent
from .encode import load_batches
from .intervals import bootstrap
from .readings import GREY, modification_texts

# Words of one kind: one is exchanged for another. A list for garments and scenes, not a language's.
KINDS = (
    ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "gray", "cyan",
     "magenta", "beige", "navy"),
    ("large", "small"),
    ("long", "short"),
    ("dark", "light"),
    ("left", "right"),
    ("top", "bottom"),
    ("plain", "patterned"),
    ("circle", "triangle", "rectangle"),
)  # fmt: skip
EMPTY = "-"  # what stands in a part without text: no section of a chain may be empty


@dataclass(frozen=True)
class Counterfactual:
    """One kind of edit.

    Attributes:
        name: as tables say it.
        should: "move" or "stay": what the answer of a faithful retriever does; "" where nothing is expected.
        edit: maps (chain, another query's chain, random numbers) to the edited chain, or None where the edit does not
            apply.
        picture: what replaces the reference picture: "" nothing, "grey" or "another".
    """

    name: str
    should: str
    edit: Callable[[Cot, Cot, random.Random], Cot | None]
    picture: str = ""


def swap_attribute(chain: Cot, other: Cot, rng: random.Random) -> Cot | None:
    """Exchange one attribute of the conclusion for another of its kind."""
    places = []
    for kind in KINDS:
        pattern = re.compile(rf"\b(?:{'|'.join(kind)})\b", re.IGNORECASE)
        places += [(found, kind) for found in pattern.finditer(chain.conclusion)]
    if not places:
        return None
    found, kind = rng.choice(sorted(places, key=lambda place: place[0].start()))
    word = rng.choice([one for one in kind if one != found.group().lower()])
    text = chain.conclusion[: found.start()] + word + chain.conclusion[found.end() :]
    return replace(chain, conclusion=text)


def reorder(chain: Cot, other: Cot, rng: random.Random) -> Cot | None:
    """Say the clauses of the conclusion in the opposite order."""
    clauses = [clause.strip() for clause in chain.conclusion.rstrip(". ").split(",")]
    if len(clauses) < 2:
        return None
    return replace(chain, conclusion=", ".join(reversed(clauses)))


def _emptied(part: str) -> Callable[[Cot, Cot, random.Random], Cot]:
    return lambda chain, other, rng: replace(chain, **{part: EMPTY})


def _lent(part: str) -> Callable[[Cot, Cot, random.Random], Cot]:
    return lambda chain, other, rng: replace(chain, **{part: getattr(other, part)})


def _kept(chain: Cot, other: Cot, rng: random.Random) -> Cot:
    return chain


EDITS = (
    Counterfactual("one attribute of the conclusion swapped", "move", swap_attribute),
    Counterfactual("another query's conclusion", "move", _lent("conclusion")),
    Counterfactual("clauses of the conclusion reordered", "stay", reorder),
    *(Counterfactual(f"{part} emptied", "", _emptied(part)) for part in PARTS),
    Counterfactual("another query's reasoning", "", _lent("reasoning")),
    Counterfactual("another query's caption", "", _lent("caption")),
    Counterfactual("picture grey, chain kept", "stay", _kept, "grey"),
    Counterfactual("another query's picture, chain kept", "stay", _kept, "another"),
)


@dataclass(frozen=True)
class Asked:
    """Queries with a chain each, their vectors (Q, D) and the gallery that they search."""

    benchmark: Benchmark
    chains: Sequence[Cot]
    vectors: Tensor
    gallery: Tensor

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each picture of the gallery."""
        return {name: number for number, name in enumerate(self.benchmark.gallery)}


def read_chains(
    records: Sequence[Record], explanations: Mapping[str, str]
) -> tuple[list[Record], list[Cot]]:
    """Return the records whose chains can be edited, and these chains.

    Args:
        records: the queries.
        explanations: by record id, the chain as the model wrote it.

    Raises:
        InputError: fewer than two chains are valid, so that no query has another one to borrow from.
    """
    chains = [text_to_cot(explanations[record.id]) for record in records]
    pairs = [pair for pair in zip(records, chains, strict=True) if pair[1] is not None]
    if len(pairs) < 2:
        raise InputError(
            f"{len(pairs)} of {len(records)} chains that the model wrote are valid, and edits need 2; "
            "ask more queries (--limit), or train the model's chains further"
        )
    return [record for record, _ in pairs], [chain for _, chain in pairs if chain is not None]


def measure(reader: ChainReader, asked: Asked, batch_size: int, seed: int) -> list[dict]:
    """Measure every edit -> a row each, see `measure_edit`."""
    return [measure_edit(reader, asked, edit, batch_size, seed) for edit in EDITS]


def measure_edit(
    reader: ChainReader, asked: Asked, edit: Counterfactual, batch_size: int, seed: int
) -> dict:
    """Apply one edit to every query that it applies to, and compare.

    Returns:
        "queries" it applies to; "cosine" of edited and own query vectors; "moved": first answers that change, in
        percent, with a 95 % bootstrap interval "moved_interval"; "found_before" and "found_after": right answers at
        rank 1, in percent; "rank_before" and "rank_after": the median rank of the target.
    """
    # The edited chains; each query borrows from another one, drawn at random.
    rng = random.Random(seed)
    records = asked.benchmark.records
    rows: list[int] = []
    chains: list[Cot] = []
    donors: list[Record] = []
    for number, chain in enumerate(asked.chains):
        donor = rng.randrange(len(records) - 1)
        donor += donor >= number
        edited = edit.edit(chain, asked.chains[donor], rng)
        if edited is not None:
            rows.append(number)
            chains.append(edited)
            donors.append(records[donor])
    if not rows:
        return {"edit": edit.name, "should": edit.should, "queries": 0}
    # Vectors and answers with the edited chains, beside those with the chains as they were.
    chosen = [records[row] for row in rows]
    vectors = encode_with(reader, asked.benchmark, chosen, chains, donors, edit.picture, batch_size)
    before = [_placed(asked, row, asked.vectors[row]) for row in rows]
    after = [_placed(asked, row, vector) for row, vector in zip(rows, vectors, strict=True)]
    moved = [first[0] != then[0] for first, then in zip(before, after, strict=True)]
    cosines = (vectors * asked.vectors[rows]).sum(dim=1)
    return {
        "edit": edit.name,
        "should": edit.should,
        "queries": len(rows),
        "cosine": round(cosines.mean().item(), 4),
        "moved": round(percent(moved), 2),
        "moved_interval": bootstrap([100.0 * value for value in moved], seed),
        "found_before": round(percent(place == 1 for _, place in before), 2),
        "found_after": round(percent(place == 1 for _, place in after), 2),
        "rank_before": median(place for _, place in before),
        "rank_after": median(place for _, place in after),
    }


def examples(
    reader: ChainReader, asked: Asked, count: int, batch_size: int, seed: int
) -> list[dict[str, str]]:
    """Return queries with one attribute of their conclusion swapped, and the first answers before and after.

    Returns:
        The query's "id", both conclusions "before" and "after", and the image ids "reference", "first" and "then".
    """
    rng = random.Random(seed)
    rows: list[int] = []
    chains = []
    for number, chain in enumerate(asked.chains):
        edited = swap_attribute(chain, chain, rng)
        if edited is not None and len(rows) < count:
            rows.append(number)
            chains.append(edited)
    if not rows:
        return []
    records = [asked.benchmark.records[row] for row in rows]
    vectors = encode_with(reader, asked.benchmark, records, chains, records, "", batch_size)
    gallery = asked.benchmark.gallery
    found = []
    for row, chain, vector in zip(rows, chains, vectors, strict=True):
        record = asked.benchmark.records[row]
        found.append(
            {
                "id": record.id,
                "text": record.text,
                "before": asked.chains[row].conclusion,
                "after": chain.conclusion,
                "reference": record.reference,
                "first": gallery[_placed(asked, row, asked.vectors[row])[0]],
                "then": gallery[_placed(asked, row, vector)[0]],
            }
        )
    return found


def encode_with(
    reader: ChainReader,
    benchmark: Benchmark,
    records: Sequence[Record],
    chains: Sequence[Cot],
    donors: Sequence[Record],
    picture: str,
    batch_size: int,
) -> Tensor:
    """Encode records with given chains, the picture replaced as an edit says -> (K, D)."""
    shown = donors if picture == "another" else records
    parts = []
    done = 0
    with inference(reader):
        for pictures in load_batches(
            [one.reference for one in shown], benchmark.images(), batch_size
        ):
            stop = done + len(pictures)
            images = pictures
            if picture == "grey":
                images = [Image.new("RGB", image.size, GREY) for image in pictures]
            texts = modification_texts(records[done:stop])
            parts.append(reader.embed_with(images, texts, chains[done:stop]).embeddings)
            done = stop
    return torch.cat(parts).float().cpu()


def _placed(asked: Asked, row: int, vector: Tensor) -> tuple[int, int]:
    """Return the column of a vector's first answer, and the best rank of the query's targets; ties against them."""
    benchmark = asked.benchmark
    record = benchmark.records[row]
    columns = asked.columns
    scores = asked.gallery @ vector  # (N,)
    if benchmark.remove_reference and record.reference in columns:
        scores[columns[record.reference]] = -torch.inf
    right = [columns[name] for name in record.targets if name in columns]
    best = scores[right].max()
    others = torch.ones(len(scores), dtype=torch.bool)
    others[right] = False
    place = 1 + int((scores[others] >= best).sum())
    return int(scores.argmax()), place


def composition(found: dict[str, Sequence[bool]]) -> dict[str, float]:
    """Return how many queries need both picture and text (CIRCUS's composition gap), in percent.

    Args:
        found: for the readings "full", "image_only" and "text_only", whether each query's first answer is right.

    Returns:
        The share found by each reading and by either alone, and "composed": found by full and by neither alone.
    """
    full = found["full"]
    either = [a or b for a, b in zip(found["image_only"], found["text_only"], strict=True)]
    composed = [whole and not part for whole, part in zip(full, either, strict=True)]
    shares = {name: round(percent(values), 2) for name, values in found.items()}
    return shares | {"either": round(percent(either), 2), "composed": round(percent(composed), 2)}


def mean_shares(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of attribution shares over queries."""
    return (
        {name: round(mean(one[name] for one in shares), 4) for name in shares[0]} if shares else {}
    )
