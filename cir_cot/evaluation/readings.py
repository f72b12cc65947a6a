"""How queries are read: by the retriever's own way, by a baseline, or by what only a chain head can do.

A *reading* turns records and their reference pictures into query embeddings. `image_only` and `text_only` are
baselines that any retriever can give: what the picture alone, or the words alone, would find. The others need a head
that writes chains: `full` (the chain the model writes), `short` (its conclusion alone), `adaptive` (a chain where the
model is not sure without), `fast` (no chain) and `oracle` (the annotated chain, an upper bound).
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from .prompts import PARTS, text_to_cot
from .protocols import Benchmark, score_rankings
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


@runtime_checkable
class ChainWriter(ChainReader, Protocol):
    """What a head offers whose chain can be watched while it is written."""

    def stream(self, images: Pictures, texts: Sequence[str], reading: str | None = None) -> Iterator[QueryOutput]: ...


def reader(retriever: Retriever, reading: str | None) -> Encode:
    """The function (records, pictures) -> QueryOutput of a reading; InputError if this retriever has none such."""
    if reading is None or reading in OWN_READINGS:
        encode = pick(retriever, reading)
        return lambda records, pictures: encode(pictures, texts_of(records))
    if reading not in READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(READINGS)}")
    if reading == "oracle":
        check_reader(retriever, reading)
    return lambda records, pictures: READINGS[reading](retriever, records, pictures)


def pick(retriever: Retriever, reading: str | None) -> Callable[[Pictures, Sequence[str]], QueryOutput]:
    """The function (pictures, texts) -> QueryOutput of one of OWN_READINGS; None is the retriever's own way."""
    if reading is None:
        return retriever.encode_query
    if reading not in OWN_READINGS:
        raise InputError(f"unknown reading {reading!r}; choose from {', '.join(OWN_READINGS)}")
    check_reader(retriever, reading)
    return partial(retriever.encode_query, reading=reading)


def streams(retriever: Retriever, reading: str | None) -> Callable[[Pictures, Sequence[str]], Iterator[QueryOutput]]:
    """As `pick`, but the function yields what is written so far; the last output is the whole one."""
    encode = pick(retriever, reading)
    if isinstance(retriever, ChainWriter):
        return partial(retriever.stream, reading=reading)
    return lambda pictures, texts: iter([encode(pictures, texts)])


def check_reader(retriever: Retriever, reading: str) -> None:
    """Refuse a retriever that writes no chains."""
    if not isinstance(retriever, ChainReader):
        raise InputError(f"reading {reading!r} needs a retriever that writes chains; leave it out for this checkpoint")


def read_own(retriever: ChainReader, records: Sequence[Record], pictures: Pictures, reading: str) -> QueryOutput:
    """Read in one of the head's own ways."""
    return retriever.encode_query(pictures, texts_of(records), reading=reading)


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


OWN_READINGS = ("full", "short", "adaptive", "fast")
READINGS = {
    **{reading: partial(read_own, reading=reading) for reading in OWN_READINGS},
    "oracle": read_oracle,
    "image_only": read_image_only,
    "text_only": read_text_only,
}


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


def adaptive_curve(
    benchmark: Benchmark,
    sureness: Mapping[str, float],
    full: tuple[dict, dict | None],
    fast: tuple[dict, dict | None],
    tokens: Mapping[str, int],
    steps: int = 20,
) -> list[dict]:
    """What the adaptive reading would find and cost at thresholds from 0 (no chain) to above all (a chain for each).

    `full` and `fast` are (rankings, subset rankings or None) of the same queries, `tokens` of a query's chain. A point
    is {"threshold", "chains": percent of the queries, "tokens": mean a query, "metrics"}.
    """
    values, curve = sorted(sureness.values()), []
    cuts = [0.0, *(values[len(values) * step // steps] for step in range(1, steps)), values[-1] + 1e-6]
    for threshold in sorted(set(cuts)):
        written = {name for name, value in sureness.items() if value < threshold}
        if curve and 100 * len(written) / len(sureness) == curve[-1]["chains"]:
            continue
        rankings, subsets = (
            None if both[0] is None else {name: both[name not in written][name] for name in sureness}
            for both in zip(full, fast, strict=True)
        )
        curve.append(
            {
                "threshold": threshold,
                "chains": 100 * len(written) / len(sureness),
                "tokens": sum(tokens[name] for name in written) / len(sureness),
                "metrics": score_rankings(benchmark, rankings, subsets),
            }
        )
    return curve


def calibrated(curve: Sequence[dict], metric: str, tolerance: float = 0.0) -> dict:
    """The cheapest point of a curve whose `metric` is within `tolerance` of the best."""
    best = max(point["metrics"][metric] for point in curve)
    return min((p for p in curve if p["metrics"][metric] >= best - tolerance), key=lambda point: point["tokens"])
