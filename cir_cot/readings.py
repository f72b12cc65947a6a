"""How queries are read: by the retriever's own way, by a baseline, or by what only a chain head can do.

A *reading* turns records and their reference pictures into query embeddings. `image_only` and `text_only` are
baselines that any retriever can give: what the picture alone, or the words alone, would find. `full` (the chain the
model writes), `fast` (no chain) and `oracle` (the annotated chain, an upper bound) need a head that writes chains.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from .prompts import PARTS, text_to_cot
from .protocols import Benchmark
from .records import Cot, InputError, Record, attach_chains
from .retriever import QueryOutput, Retriever

GREY = (127, 127, 127)
NO_TOKEN = "no retrieval token"  # how a head's flag begins when the token had to be forced
Pictures = Sequence[Image.Image]
Encode = Callable[[Sequence[Record], Pictures], QueryOutput]


@runtime_checkable
class ChainReader(Protocol):
    """What a head offers beyond the Retriever protocol when its chain can be skipped or replaced."""

    reading: str

    def embed_with(self, images: Pictures, texts: Sequence[str], chains: Sequence[Cot]) -> QueryOutput: ...


def reader(retriever: Retriever, reading: str | None) -> Encode:
    """The function (records, pictures) -> QueryOutput of a reading; InputError if this retriever has none such."""
    if reading is None:
        return lambda records, pictures: retriever.encode_query(pictures, texts_of(records))
    if reading not in READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(READINGS)}")
    if reading in CHAIN_READINGS and not isinstance(retriever, ChainReader):
        raise InputError(f"reading {reading!r} needs a retriever that writes chains; leave it out for this checkpoint")
    return lambda records, pictures: READINGS[reading](retriever, records, pictures)


def read_full(retriever: ChainReader, records: Sequence[Record], pictures: Pictures) -> QueryOutput:
    """Read with the chain that the model writes itself."""
    return retriever.encode_query(pictures, texts_of(records), reading="full")


def read_fast(retriever: ChainReader, records: Sequence[Record], pictures: Pictures) -> QueryOutput:
    """Read without a chain: the retrieval token follows the prompt at once."""
    return retriever.encode_query(pictures, texts_of(records), reading="fast")


def read_oracle(retriever: ChainReader, records: Sequence[Record], pictures: Pictures) -> QueryOutput:
    """Read with the annotated chain: an upper bound, for its teacher may have seen the target."""
    for record in records:
        if record.cot is None:
            raise InputError(
                f"record {record.id!r} has no chain; the oracle reading needs one for each (--chains FILE)"
            )
    return retriever.embed_with(pictures, texts_of(records), [record.cot for record in records])


def read_image_only(retriever: Retriever, records: Sequence[Record], pictures: Pictures) -> QueryOutput:
    """Search with the reference picture itself: what similarity alone finds."""
    return QueryOutput(retriever.encode_target(pictures), [""] * len(records), [""] * len(records))


def read_text_only(retriever: Retriever, records: Sequence[Record], pictures: Pictures) -> QueryOutput:
    """Search with a grey picture of the reference's size and the text: what the words alone find."""
    return retriever.encode_query([Image.new("RGB", picture.size, GREY) for picture in pictures], texts_of(records))


def texts_of(records: Sequence[Record]) -> list[str]:
    """List the modification texts of the records."""
    return [record.text for record in records]


def with_chains(benchmarks: Sequence[Benchmark], path: str | Path | None) -> list[Benchmark]:
    """Attach annotated chains: of a JSONL file, or of a folder holding chains[.<category>].<split>.jsonl for each."""
    if path is None:
        return list(benchmarks)
    chained = []
    for benchmark in benchmarks:
        name = ".".join(filter(None, ("chains", benchmark.category, benchmark.split, "jsonl")))
        file = Path(path) / name if Path(path).is_dir() else path
        chained.append(replace(benchmark, records=attach_chains(benchmark.records, file)))
    return chained


READINGS = {
    "full": read_full,
    "fast": read_fast,
    "oracle": read_oracle,
    "image_only": read_image_only,
    "text_only": read_text_only,
}
CHAIN_READINGS = ("full", "fast", "oracle")


def chain_metrics(
    records: Sequence[Record], explanations: Mapping[str, str], flags: Mapping[str, str]
) -> dict[str, float | int]:
    """Percentages over the records' own chains: valid (all parts, in order), cut off, and as annotated.

    `explanations` and `flags` are by record id, as in a Result. A part is exact when it equals the annotated one but
    for white space; a chain that does not parse has no exact part. The `exact_*` keys are left out without annotations.
    """
    chains = {record.id: text_to_cot(explanations[record.id]) for record in records}
    metrics = {
        "chains": len(records),
        "valid": percent(chain is not None for chain in chains.values()),
        "missing_token": percent(flags[record.id].startswith(NO_TOKEN) for record in records),
    }
    annotated = [record for record in records if record.cot is not None]
    if annotated:
        metrics["annotated"] = len(annotated)
        for part in PARTS:
            metrics[f"exact_{part}"] = percent(same_part(chains[r.id], r.cot, part) for r in annotated)
    return metrics


def same_part(chain: Cot | None, truth: Cot, part: str) -> bool:
    """Tell whether one part of a chain says what the annotation says, white space aside."""
    return chain is not None and getattr(chain, part).split() == getattr(truth, part).split()


def percent(answers: Iterable[bool]) -> float:
    """Share of true answers in percent; 0 of none."""
    answers = list(answers)
    return 100 * sum(answers) / max(len(answers), 1)


def swap_chains(records: Sequence[Record], explanations: Mapping[str, str], seed: int = 0) -> dict[str, Record] | None:
    """Lend each query the chain written for another one -> {record id: that other record, with its chain as cot}.

    Seeded; the other's conclusion and targets differ, so that a retriever which follows the chain must go elsewhere.
    None when a query has no such other, for example because hardly any chain is valid.
    """
    written = {record.id: text_to_cot(explanations[record.id]) for record in records}
    donors = [replace(record, cot=written[record.id]) for record in records if written[record.id] is not None]
    random.Random(seed).shuffle(donors)
    lent = {}
    for index, record in enumerate(records):
        turned = (donors[(index + step) % len(donors)] for step in range(len(donors)))
        donor = next((donor for donor in turned if differs(donor, record, written[record.id])), None)
        if donor is None:
            return None
        lent[record.id] = donor
    return lent


def differs(donor: Record, record: Record, own: Cot | None) -> bool:
    """Tell whether a donor's chain leads elsewhere than the record's own chain and targets."""
    return not set(donor.targets) & set(record.targets) and (own is None or donor.cot.conclusion != own.conclusion)
