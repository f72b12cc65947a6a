"""What a retriever is worth on a benchmark: encode, rank exactly, score by the benchmark's own protocol.

1. The gallery is encoded once, each picture decoded once; its embeddings can be handed to the next reading.
2. Queries are encoded by one *reading*: the retriever's own, a baseline (`image_only`, `text_only`), or what only a
   chain head can do (`full`, `fast`, `oracle`).
3. Ranking is exact, over the whole gallery, and ties are pessimistic: among equal scores the right answers
   come last, so a model that scores everything alike is credited with nothing.
4. Numbers come from `score_rankings` alone, the code behind `cir-cot score`: a saved rankings file gives them again.
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
from cir_cot.retriever import Retriever, inference

from .encode import encode_gallery, encode_queries
from .ranking import rank
from .readings import ChainReader, Encode, record_encoder
from .results import Result


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
) -> Result:
    """Encode, rank and score one benchmark -> Result.

    `reading` names how queries are read (see READINGS; None: the retriever's own way); `encode` replaces it by a
    function of (records, reference pictures) -> QueryOutput, and `reading` is then only its label. `gallery` takes
    embeddings (N, D) of `benchmark.gallery` from `encode_gallery`. `limit` asks a seeded sample of the queries of the
    whole gallery. Raises InputError for a reading the retriever lacks, an unreadable picture, or embeddings that are
    not finite.
    """
    if encode is None:
        encode = record_encoder(retriever, reading)
        reading = reading or (retriever.reading if isinstance(retriever, ChainReader) else None)
    if gallery is None:
        gallery = encode_gallery(retriever, benchmark.gallery, images, batch_size, progress)
    asked = sample_queries(benchmark, limit, seed)
    started = time.perf_counter()
    with inference(retriever):
        output = encode_queries(asked.records, images, encode, batch_size, progress)
    speed = len(asked.records) / (time.perf_counter() - started)
    rankings, scores, subsets = rank(asked, output.embeddings, gallery)
    labelled = all(
        record.targets for record in asked.records
    )  # the test splits of CIRR and CIRCO are not
    ids = [record.id for record in asked.records]
    settings = {"reading": reading, "model": model, "seed": seed, "batch_size": batch_size}
    return Result(
        benchmark=asked,
        images=images,
        metrics=score_rankings(asked, rankings, subsets) if labelled else {},
        by_source=score_by_source(asked, rankings, subsets) if labelled else {},
        protocol=run_protocol(benchmark, asked)
        | settings
        | {"queries_per_second": round(speed, 2)},
        rankings=rankings,
        scores=scores,
        explanations=dict(zip(ids, output.explanations, strict=True)),
        flags=dict(zip(ids, output.flags, strict=True)),
        subset_rankings=subsets,
        choices=dict(zip(ids, output.routing, strict=True)) if output.routing else {},
    )


def run_protocol(benchmark: Benchmark, asked: Benchmark) -> dict:
    """Describe what is measured and by which code; `asked` holds the queries of `benchmark` that are asked."""
    count, total = len(asked.records), len(benchmark.records)
    return {
        **benchmark.protocol,
        "queries": count,
        "sample": None
        if count == total
        else f"{count} of {total} queries drawn by the seed, the whole gallery",
        "ties": "pessimistic",
        "prompts": PROMPTS_VERSION,
        "git": git_state(),
        "versions": package_versions(),
    }


def sample_queries(benchmark: Benchmark, limit: int | None, seed: int) -> Benchmark:
    """Keep a seeded sample of `limit` queries in their official order, and the whole gallery."""
    if limit is None or limit >= len(benchmark.records):
        return benchmark
    if limit < 1:
        raise InputError(f"limit is {limit}; ask at least one query")
    kept = sorted(random.Random(seed).sample(range(len(benchmark.records)), limit))
    return replace(benchmark, records=[benchmark.records[index] for index in kept])


def score_by_source(
    benchmark: Benchmark, rankings: dict, subset_rankings: dict | None
) -> dict[str, dict]:
    """Metrics of the queries of each `Record.source` (one source per edit type), when there is more than one."""
    groups: dict[str, list[Record]] = {}
    for record in benchmark.records:
        groups.setdefault(record.source, []).append(record)
    table = {}
    for source, records in sorted(groups.items()) if len(groups) > 1 else ():
        ids = [record.id for record in records]
        subsets = None if subset_rankings is None else {name: subset_rankings[name] for name in ids}
        part = replace(benchmark, records=records)
        table[source] = {
            "queries": len(ids),
            **score_rankings(part, {name: rankings[name] for name in ids}, subsets),
        }
    return table


# ---- encoding


def check_pictures(benchmark: Benchmark, images: ImageStore) -> None:
    """Refuse a benchmark of which pictures are missing, before anything is encoded; InputError counts them."""
    if not benchmark.gallery:
        raise InputError(
            f"{label(benchmark)}: no list of gallery images; retrieval needs one to rank them all"
        )
    needed = dict.fromkeys(
        [*benchmark.gallery, *(record.reference for record in benchmark.records)]
    )
    missing = [name for name in needed if name not in images]
    if missing:
        raise InputError(
            f"{label(benchmark)}: {len(missing)} of {len(needed)} pictures are missing below {images.root}, "
            f"the first is {missing[0]!r}; numbers over a smaller gallery would not be comparable"
        )
