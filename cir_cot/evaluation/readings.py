"""Encode evaluation queries by a named reading: the retriever's default, with a chain, or as a baseline.

A *reading* turns records and their reference images into query embeddings; `cir_cot.retriever.READINGS` lists all.
`image_only` and `text_only` are baselines of any retriever. The others need a `ChainReader`: `full` (the model
generates the chain), `short` (its conclusion only), `adaptive` (a chain only where the model is unsure without one),
`fast` (no chain) and `oracle` (the annotated chain, an upper bound that must never be reported as a result).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.records import Cot, Record
from cir_cot.retriever import CHAIN_READINGS, READINGS, ChainReader, QueryOutput, Retriever

# Of the image that stands in for the reference of `text_only`.
GREY = (127, 127, 127)
Pictures = Sequence[Image.Image]
Encode = Callable[[Sequence[Record], Pictures], QueryOutput]


def record_encoder(retriever: Retriever, reading: str | None) -> Encode:
    """Return the function (records, reference images) -> QueryOutput of a reading; None is the retriever's default.

    Raises:
        InputError: there is no such reading, or this retriever does not offer it.

    Example:
        encode = record_encoder(retriever, "oracle")
        output = encode(benchmark.records, images)
    """
    # Readings of queries alone.
    if reading is None or reading in CHAIN_READINGS:
        encode = query_encoder(retriever, reading)
        return lambda records, pictures: encode(pictures, modification_texts(records))
    if reading not in READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(READINGS)}")
    # Baselines of any retriever, and the reading that needs annotated records.
    if reading == "image_only":
        return partial(encode_image_only, retriever)
    if reading == "text_only":
        return partial(encode_text_only, retriever)
    return partial(encode_oracle, chain_reader(retriever, reading))


def query_encoder(
    retriever: Retriever, reading: str | None
) -> Callable[[Pictures, Sequence[str]], QueryOutput]:
    """Return the function (images, texts) -> QueryOutput of a reading that needs no annotation.

    Raises:
        InputError: there is no such reading, or this retriever does not offer it.
    """
    if reading is None:
        return retriever.encode_query
    if reading not in CHAIN_READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(CHAIN_READINGS)}")
    return partial(chain_reader(retriever, reading).encode_query, reading=reading)


def query_stream(
    retriever: Retriever, reading: str | None
) -> Callable[[Pictures, Sequence[str]], Iterator[QueryOutput]]:
    """Return a function like that of `query_encoder` that yields partial chains; the last output is complete."""
    encode = query_encoder(retriever, reading)
    if isinstance(retriever, ChainReader):
        return partial(retriever.stream, reading=reading)
    # A retriever without chains has a single, complete output.
    return lambda pictures, texts: iter([encode(pictures, texts)])


def chain_reader(retriever: Retriever, reading: str) -> ChainReader:
    """Return the retriever if it encodes chains; InputError says that `reading` needs that."""
    if not isinstance(retriever, ChainReader):
        raise InputError(
            f"reading {reading!r} needs a retriever that writes chains; leave it out for this checkpoint"
        )
    return retriever


def encode_oracle(
    retriever: ChainReader, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Encode queries with their annotated chains: an upper bound, for the annotator may have seen the target."""
    chains = require_chains(records)
    return retriever.embed_with(pictures, modification_texts(records), chains)


def require_chains(records: Sequence[Record]) -> list[Cot]:
    """Return the chain of each record; InputError if one has none."""
    chains = []
    for record in records:
        # A mean over the annotated records alone would be another number.
        if record.cot is None:
            raise InputError(
                f"record {record.id!r} has no chain; the oracle reading needs one for each (--chains FILE)"
            )
        chains.append(record.cot)
    return chains


def encode_image_only(
    retriever: Retriever, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Encode the reference images as targets: the baseline that ignores the text."""
    nothing = [""] * len(records)
    return QueryOutput(retriever.encode_target(pictures), nothing, list(nothing))


def encode_text_only(
    retriever: Retriever, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Encode the texts with grey images of the references' sizes: the baseline that ignores the image."""
    # The size stays, so that the model reads as many visual tokens.
    grey = [Image.new("RGB", picture.size, GREY) for picture in pictures]
    return retriever.encode_query(grey, modification_texts(records))


def modification_texts(records: Sequence[Record]) -> list[str]:
    """Return the modification text of each record."""
    return [record.text for record in records]


def with_chains(benchmarks: Sequence[Benchmark], path: str | Path | None) -> list[Benchmark]:
    """Attach annotated chains to the records of benchmarks.

    Args:
        benchmarks: categories of a benchmark.
        path: a JSONL file, or a folder that holds `chains[.<category>].<split>.jsonl` for each benchmark; None
            leaves the records as they are.
    """
    if path is None:
        return list(benchmarks)
    chained = []
    for benchmark in benchmarks:
        # In a folder each category has a file of its own.
        name = ".".join(filter(None, ("chains", benchmark.category, benchmark.split, "jsonl")))
        file = Path(path) / name if Path(path).is_dir() else path
        chained.append(replace(benchmark, records=attach_chains(benchmark.records, file)))
    return chained
