"""Measure what the adaptive reading finds and costs at each threshold."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from cir_cot.data.benchmark import Benchmark
from cir_cot.records import Record
from cir_cot.retriever import Retriever, inference

from .chain_quality import adaptive_curve
from .encode import encode_gallery, load_batches
from .evaluate import evaluate
from .readings import Pictures, modification_texts
from .report_charts import first_ranks
from .results import Result
from .tables import Table

READINGS = ("full", "fast")


class Tokenizer(Protocol):
    """Splits text into tokens."""

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""


class AdaptiveReader(Retriever, Protocol):
    """A retriever that can decide, query by query, whether to write a chain."""

    def stop_confidence(self, images: Pictures, texts: Sequence[str]) -> Tensor:
        """Return (B,), in 0 .. 1, the model's preference to answer without a chain."""

    def prompt_states(self, images: Pictures, texts: Sequence[str]) -> Tensor:
        """Return (B, H), the hidden states at the ends of the prompts, of which the preference is made."""

    def encoder(self) -> Tokenizer:
        """Return the tokenizer of its chains."""


class Utility(NamedTuple):
    """What chains were worth on a split: states (N, H), bool (N,) whether a chain was needless, the protocol."""

    states: Tensor
    needless: Tensor
    protocol: dict


class Calibration(NamedTuple):
    """The points of the curve, from no chain to a chain for each query, and the protocol."""

    curve: list[dict]
    protocol: dict


def calibrate(
    retriever: AdaptiveReader, full: Result, fast: Result, batch_size: int = 32
) -> Calibration:
    """Mix the rankings of the readings full and fast at each threshold.

    Args:
        retriever: The one that was evaluated; it has an adaptive reading.
        full: Its result with a chain for each query of a validation split.
        fast: Its result without, on the same queries.
        batch_size: Pictures in one forward pass.
    """
    # Ask the model how sure it is without a chain, and count what each chain costs.
    confidence = stop_confidences(retriever, full.benchmark, batch_size)
    ids = list(confidence)
    chains = retriever.encoder().plain_ids([full.explanations[name] for name in ids])
    tokens = [len(chain) for chain in chains]
    # Mix the two rankings at each threshold.
    curve = adaptive_curve(
        full.benchmark,
        confidence,
        (full.rankings, full.subset_rankings),
        (fast.rankings, fast.subset_rankings),
        dict(zip(ids, tokens, strict=True)),
    )
    return Calibration(curve, full.protocol | {"reading": "adaptive"})


def utility(retriever: AdaptiveReader, full: Result, fast: Result, batch_size: int = 32) -> Utility:
    """Note for each query whether its chain was needless: it brings the first right picture no further forward.

    The arguments are those of `calibrate`, of another split than the one that is calibrated on.
    """
    records = full.benchmark.records
    states = [torch.zeros(0)]
    with inference(retriever):
        for pictures, batch in picture_batches(records, full.benchmark, batch_size):
            states.append(retriever.prompt_states(pictures, modification_texts(batch)))
    needless = torch.tensor(chains_needless(full, fast))
    return Utility(torch.cat(states[1:]), needless, full.protocol)


def chains_needless(full: Result, fast: Result) -> list[bool]:
    """Return for each query whether its first right picture stands with a chain no further forward than without."""
    found = []
    for with_chain, without in zip(first_ranks(full), first_ranks(fast), strict=True):
        # A picture that is not among the ranked ones stands behind them all.
        behind = float("inf")
        found.append((without or behind) <= (with_chain or behind))
    return found


def evaluate_both(
    retriever: AdaptiveReader,
    benchmark: Benchmark,
    *,
    model: str = "",
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> list[Result]:
    """Evaluate with a chain for each query, and without -> both results, on the same queries.

    Args:
        retriever: A retriever that writes chains.
        benchmark: One category of a split.
        model: Name of the checkpoint, for the protocol.
        limit: Evaluate a sample of this many queries.
        batch_size: Pictures in one forward pass.
        seed: Seed of the sample.
        progress: Show progress bars.
    """
    images = benchmark.images()
    gallery = encode_gallery(retriever, benchmark.gallery, images, batch_size, progress)
    results = []
    for reading in READINGS:
        result = evaluate(
            retriever,
            benchmark,
            images,
            reading=reading,
            gallery=gallery,
            model=model,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        results.append(result)
    return results


def picture_batches(
    records: Sequence[Record], benchmark: Benchmark, batch_size: int
) -> Iterator[tuple[list[Image], list[Record]]]:
    """Yield the reference pictures of records in batches, with their records."""
    done = 0
    references = [record.reference for record in records]
    for pictures in load_batches(references, benchmark.images(), batch_size):
        yield pictures, list(records[done : done + len(pictures)])
        done += len(pictures)


def stop_confidences(
    retriever: AdaptiveReader, benchmark: Benchmark, batch_size: int
) -> dict[str, float]:
    """Return the model's preference to answer without a chain, by query id."""
    records = benchmark.records
    values: list[float] = []
    with inference(retriever):
        for pictures, batch in picture_batches(records, benchmark, batch_size):
            values += retriever.stop_confidence(pictures, modification_texts(batch)).tolist()
    return {record.id: value for record, value in zip(records, values, strict=True)}


def curve_table(curve: Sequence[dict]) -> Table:
    """Return the curve as a table: threshold, share of chains, tokens a query, metrics."""
    # A row for each point.
    names = list(curve[0]["metrics"])
    rows: list[list] = []
    for point in curve:
        metrics = [round(point["metrics"][name], 2) for name in names]
        costs = [round(point["chains"], 1), round(point["tokens"], 1)]
        rows.append([f"{point['threshold']:.4g}", *costs, *metrics])
    header = ["threshold", "chains %", "tokens a query", *names]
    return Table("Recall against cost", header, rows)
