"""How queries are read: by the retriever's own way, by a baseline, or by what only a chain head can do.

A *reading* turns records and their reference pictures into query embeddings. `image_only` and `text_only` are
baselines that any retriever can give: what the picture alone, or the words alone, would find. The others need a head
that writes chains: `full` (the chain the model writes), `short` (its conclusion alone), `adaptive` (a chain where the
model is not sure without), `fast` (no chain) and `oracle` (the annotated chain, an upper bound).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from cir_cot.data.benchmark import Benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.records import Cot, Record
from cir_cot.retriever import QueryOutput, Retriever

GREY = (127, 127, 127)
NO_TOKEN = "no retrieval token"  # how a head's flag begins when the token had to be forced
Pictures = Sequence[Image.Image]
Encode = Callable[[Sequence[Record], Pictures], QueryOutput]


@runtime_checkable
class ChainReader(Protocol):
    """What a head offers beyond the Retriever protocol when its chain can be skipped or replaced."""

    reading: str

    def embed_with(
        self, images: Pictures, texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput: ...


@runtime_checkable
class ChainWriter(ChainReader, Protocol):
    """What a head offers whose chain can be watched while it is written."""

    def stream(
        self, images: Pictures, texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]: ...


def record_encoder(retriever: Retriever, reading: str | None) -> Encode:
    """The function (records, pictures) -> QueryOutput of a reading; InputError if this retriever has none such."""
    if reading is None or reading in OWN_READINGS:
        encode = query_encoder(retriever, reading)
        return lambda records, pictures: encode(pictures, modification_texts(records))
    if reading not in READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(READINGS)}")
    if reading == "oracle":
        check_reader(retriever, reading)
    return lambda records, pictures: READINGS[reading](retriever, records, pictures)


def query_encoder(
    retriever: Retriever, reading: str | None
) -> Callable[[Pictures, Sequence[str]], QueryOutput]:
    """The function (pictures, texts) -> QueryOutput of one of OWN_READINGS; None is the retriever's own way."""
    if reading is None:
        return retriever.encode_query
    if reading not in OWN_READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(OWN_READINGS)}")
    check_reader(retriever, reading)
    return partial(retriever.encode_query, reading=reading)


def query_stream(
    retriever: Retriever, reading: str | None
) -> Callable[[Pictures, Sequence[str]], Iterator[QueryOutput]]:
    """As `query_encoder`, but the function yields what is written so far; the last output is the whole one."""
    encode = query_encoder(retriever, reading)
    if isinstance(retriever, ChainWriter):
        return partial(retriever.stream, reading=reading)
    return lambda pictures, texts: iter([encode(pictures, texts)])


def check_reader(retriever: Retriever, reading: str) -> None:
    """Refuse a retriever that writes no chains."""
    if not isinstance(retriever, ChainReader):
        raise InputError(
            f"reading {reading!r} needs a retriever that writes chains; leave it out for this checkpoint"
        )


def read_own(
    retriever: ChainReader, records: Sequence[Record], pictures: Pictures, reading: str
) -> QueryOutput:
    """Read in one of the head's own ways."""
    return retriever.encode_query(pictures, modification_texts(records), reading=reading)


def read_oracle(
    retriever: ChainReader, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Read with the annotated chain: an upper bound, for its teacher may have seen the target."""
    for record in records:
        if record.cot is None:
            raise InputError(
                f"record {record.id!r} has no chain; the oracle reading needs one for each (--chains FILE)"
            )
    return retriever.embed_with(
        pictures, modification_texts(records), [record.cot for record in records]
    )


def read_image_only(
    retriever: Retriever, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Search with the reference picture itself: what similarity alone finds."""
    return QueryOutput(retriever.encode_target(pictures), [""] * len(records), [""] * len(records))


def read_text_only(
    retriever: Retriever, records: Sequence[Record], pictures: Pictures
) -> QueryOutput:
    """Search with a grey picture of the reference's size and the text: what the words alone find."""
    return retriever.encode_query(
        [Image.new("RGB", picture.size, GREY) for picture in pictures], modification_texts(records)
    )


def modification_texts(records: Sequence[Record]) -> list[str]:
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


OWN_READINGS = ("full", "short", "adaptive", "fast")
READINGS = {
    **{reading: partial(read_own, reading=reading) for reading in OWN_READINGS},
    "oracle": read_oracle,
    "image_only": read_image_only,
    "text_only": read_text_only,
}
