"""Evaluate a retriever on a benchmark: encode, rank exactly, score by the official protocol.

1. The gallery is encoded once and each picture is decoded once. Its embeddings can be reused for
   the next reading.
2. Queries are encoded by one *reading*: the retriever's own, a baseline (`image_only`,
   `text_only`), or one that needs a head that writes chains (`full`, `short`, `adaptive`,
   `fast`, `oracle`).
3. Ranking is exact, over the complete gallery, and ties are decided against the model: among
   equal scores the right images come last, so a model that gives every image the same score earns
   nothing.
4. All numbers come from `score_rankings`, the code behind `cir-cot score`: a saved rankings file
   scores the same.
"""

import random
import time
from dataclasses import replace

from torch import Tensor

from cir_cot.data.benchmark import Benchmark, label
from cir_cot.data.scoring import score_rankings
from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.prompts import PROMPTS_VERSION
from cir_cot.provenance import git_state, package_versions
from cir_cot.records import Record
from cir_cot.retriever import ChainReader, QueryOutput, Retriever, inference

from .encode import encode_gallery, encode_queries, queue_size
from .encoded_rows import Encoding, rows_of
from .ranking import rank
from .readings import Encode, record_encoder, require_chains
from .results import Result
from .uncertainty import recall_intervals


def evaluate(
    retriever: Retriever,
    benchmark: Benchmark,
    images: ImageStore,
    encode: Encode | None = None,
    *,
    reading: str | None = None,
    gallery: Tensor | None = None,
    model: str = "",
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
    encoding: Encoding | None = None,
) -> Result:
    """Encode, rank and score one benchmark.

    Example:
        >>> evaluate(retriever, benchmark, benchmark.images()).metrics["mAP@10"]

    Args:
        retriever: Encodes queries and gallery images.
        benchmark: Queries, gallery and protocol.
        images: Pictures of the benchmark, `benchmark.images()`.
        encode: Function of (records, reference pictures) in place of a reading, then only a label.
        reading: One of `readings.READINGS`; None is the retriever's own.
        gallery: (N, D) embeddings of `benchmark.gallery` by `encode_gallery`, to reuse them.
        model: Name of the checkpoint, for the protocol.
        limit: Evaluate a sample of this many queries; the gallery stays complete.
        batch_size: Pictures in one forward pass.
        seed: Seed of the sample.
        progress: Show progress bars.
        encoding: Keeps rows, to continue or to share an evaluation.

    Raises:
        InputError: The retriever lacks the reading, or a picture or an embedding is unusable.
    """
    if encode is None:
        encode = record_encoder(retriever, reading)
        reading = reading or (retriever.reading if isinstance(retriever, ChainReader) else None)
    asked = sample_queries(benchmark, limit, seed)
    if reading == "oracle":
        require_chains(asked.records)
    if gallery is None:
        gallery = encode_gallery(
            retriever, benchmark.gallery, images, batch_size, progress, rows_of(encoding, "gallery")
        )
    # Encode the queries; only these are timed.
    rows = rows_of(encoding, "queries", reading or "own", benchmark.category)
    continued = rows is not None and bool(rows.rows())
    started = time.perf_counter()
    with inference(retriever):
        queued = queue_size(retriever, batch_size)
        output = encode_queries(asked.records, images, encode, queued, progress, rows)
    speed = len(asked.records) / (time.perf_counter() - started)
    # Record what the metrics depend on.
    protocol = run_protocol(benchmark, asked) | reading_conditions(retriever, reading)
    protocol |= {"model": model, "seed": seed, "batch_size": batch_size}
    protocol["queries_per_second"] = None if continued else round(speed, 2)
    return rank_and_score(asked, images, output, gallery, protocol)


def rank_and_score(
    asked: Benchmark,
    images: ImageStore,
    output: QueryOutput,
    gallery: Tensor,
    protocol: dict,
) -> Result:
    """Rank the gallery for encoded queries, and score the rankings where answers are published.

    Args:
        asked: The queries that were encoded.
        images: Pictures of the benchmark.
        output: The encoded queries, embeddings (Q, D).
        gallery: (N, D) embeddings of the gallery.
        protocol: What the metrics depend on.
    """
    rankings, scores, subsets = rank(asked, output.embeddings, gallery)
    # The test splits of CIRR and CIRCO have no targets.
    labelled = all(record.targets for record in asked.records)
    metrics = score_rankings(asked, rankings, subsets) if labelled else {}
    by_source = score_by_source(asked, rankings, subsets) if labelled else {}
    # Everything that was written or chosen for a query is kept by its id.
    ids = [record.id for record in asked.records]
    return Result(
        benchmark=asked,
        images=images,
        metrics=metrics,
        by_source=by_source,
        protocol=protocol,
        rankings=rankings,
        scores=scores,
        explanations=dict(zip(ids, output.explanations, strict=True)),
        flags=dict(zip(ids, output.flags, strict=True)),
        subset_rankings=subsets,
        routing=dict(zip(ids, output.routing, strict=True)) if output.routing else {},
        intervals=recall_intervals(asked, rankings, metrics),
    )


def reading_conditions(retriever: Retriever, reading: str | None) -> dict:
    """Return the reading, the engine of its chains, and what else a retriever's numbers depend on."""
    conditions = {"reading": reading, "engine": "transformers"}
    # A retriever may name more: pixel bounds, precision, a serving engine.
    if hasattr(retriever, "conditions"):
        conditions |= retriever.conditions()
    # Chains of a serving engine are not the model's own decoding.
    if reading == "full" and conditions["engine"] != "transformers":
        conditions["reading"] = f"full (chains by {conditions['engine']})"
    return conditions


def run_protocol(benchmark: Benchmark, asked: Benchmark) -> dict:
    """Describe what is measured and by which code.

    Args:
        benchmark: The benchmark.
        asked: The same benchmark with the queries that are evaluated, all or a sample.
    """
    count = len(asked.records)
    total = len(benchmark.records)
    sample = f"{count} of {total} queries drawn by the seed, the whole gallery"
    return {
        "prompt": None,  # where a benchmark has several texts of a query, which
        **benchmark.protocol,
        "queries": count,
        "sample": None if count == total else sample,
        "ties": "pessimistic",
        "prompts": PROMPTS_VERSION,
        "git": git_state(),
        "versions": package_versions(),
    }


def sample_queries(benchmark: Benchmark, limit: int | None, seed: int) -> Benchmark:
    """Keep a random sample of `limit` queries in official order, and the complete gallery."""
    if limit is None or limit >= len(benchmark.records):
        return benchmark
    if limit < 1:
        raise InputError(f"limit is {limit}; ask at least one query")
    # The order stays official, so that a sample of all queries is the benchmark itself.
    kept = sorted(random.Random(seed).sample(range(len(benchmark.records)), limit))
    return replace(benchmark, records=[benchmark.records[index] for index in kept])


def score_by_source(
    benchmark: Benchmark, rankings: dict, subset_rankings: dict | None
) -> dict[str, dict]:
    """Score the queries of each `Record.source`, such as a type of edit; {} for one source."""
    # Group the queries.
    groups: dict[str, list[Record]] = {}
    for record in benchmark.records:
        groups.setdefault(record.source, []).append(record)
    if len(groups) == 1:
        return {}
    # Score each group as a benchmark of its own, over the same gallery.
    metrics = {}
    for source, records in sorted(groups.items()):
        ids = [record.id for record in records]
        lists = {name: rankings[name] for name in ids}
        subsets = None if subset_rankings is None else {name: subset_rankings[name] for name in ids}
        scored = score_rankings(replace(benchmark, records=records), lists, subsets)
        metrics[source] = {"queries": len(ids), **scored}
    return metrics


def check_pictures(benchmark: Benchmark, images: ImageStore) -> None:
    """Refuse a benchmark whose pictures are not all there, before anything is encoded.

    Raises:
        InputError: The gallery is unknown, or pictures are missing; the message counts them.
    """
    if not benchmark.gallery:
        raise InputError(
            f"{label(benchmark)}: no list of gallery images; retrieval needs one to rank them all"
        )
    # Gallery images and references, each once.
    references = [record.reference for record in benchmark.records]
    needed = dict.fromkeys([*benchmark.gallery, *references])
    missing = [name for name in needed if name not in images]
    if missing:
        count = f"{len(missing)} of {len(needed)} pictures are missing below {images.root}"
        raise InputError(
            f"{label(benchmark)}: {count}, the first is {missing[0]!r}; "
            "numbers over a smaller gallery would not be comparable"
        )
