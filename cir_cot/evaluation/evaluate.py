"""What a retriever is worth on a benchmark: encode, rank exactly, score by the benchmark's own protocol.

1. The gallery is encoded once, each picture decoded once; its embeddings can be handed to the next reading.
2. Queries are encoded by one *reading*: the retriever's own, a baseline (`image_only`, `text_only`), or what only a
   chain head can do (`full`, `fast`, `oracle`).
3. Ranking is exact, over the whole gallery, and ties are pessimistic: among equal scores the right answers
   come last, so a model that scores everything alike is credited with nothing.
4. Numbers come from `score_rankings` alone, the code behind `cir-cot score`: a saved rankings file gives them again.
"""

import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .images import ImageStore
from .prompts import PROMPTS_VERSION
from .protocols import Benchmark, label, score_rankings
from .provenance import git_state, package_versions
from .ranking import rank
from .readings import ChainReader, Encode, reader
from .records import InputError, Record
from .retriever import QueryOutput, Retriever, concatenate


@dataclass(frozen=True)
class Result:
    """Numbers, and all that is needed to check them: protocol, rankings with scores, chains. Keys are query ids.

    `choices` are those of QueryOutput, empty for a head that routes nothing.
    """

    benchmark: Benchmark  # its records are the queries that were asked
    images: ImageStore
    metrics: dict
    by_source: dict[str, dict]
    protocol: dict
    rankings: dict[str, list[str]]
    scores: dict[str, list[float]]
    explanations: dict[str, str]
    flags: dict[str, str]
    subset_rankings: dict[str, list[str]] | None = None
    choices: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name the measured set, e.g. "fashioniq.dress.val"; rankings of several categories are filed under it."""
        return set_name(self.benchmark)


def set_name(benchmark: Benchmark) -> str:
    """Name a measured set, e.g. "fashioniq.dress.val"; rankings of several categories are filed under it."""
    return ".".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))


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
        encode = reader(retriever, reading)
        reading = reading or (retriever.reading if isinstance(retriever, ChainReader) else None)
    if gallery is None:
        gallery = encode_gallery(retriever, benchmark.gallery, images, batch_size, progress)
    asked = sample_queries(benchmark, limit, seed)
    started = time.perf_counter()
    with inference(retriever):
        output = encode_queries(asked.records, images, encode, batch_size, progress)
    speed = len(asked.records) / (time.perf_counter() - started)
    rankings, scores, subsets = rank(asked, output.embeddings, gallery)
    labelled = all(record.targets for record in asked.records)  # the test splits of CIRR and CIRCO are not
    ids = [record.id for record in asked.records]
    settings = {"reading": reading, "model": model, "seed": seed, "batch_size": batch_size}
    return Result(
        benchmark=asked,
        images=images,
        metrics=score_rankings(asked, rankings, subsets) if labelled else {},
        by_source=score_by_source(asked, rankings, subsets) if labelled else {},
        protocol=run_protocol(benchmark, asked) | settings | {"queries_per_second": round(speed, 2)},
        rankings=rankings,
        scores=scores,
        explanations=dict(zip(ids, output.explanations, strict=True)),
        flags=dict(zip(ids, output.flags, strict=True)),
        subset_rankings=subsets,
        choices=dict(zip(ids, output.choices, strict=True)) if output.choices else {},
    )


def run_protocol(benchmark: Benchmark, asked: Benchmark) -> dict:
    """Describe what is measured and by which code; `asked` holds the queries of `benchmark` that are asked."""
    count, total = len(asked.records), len(benchmark.records)
    return {
        **benchmark.protocol,
        "queries": count,
        "sample": None if count == total else f"{count} of {total} queries drawn by the seed, the whole gallery",
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


def score_by_source(benchmark: Benchmark, rankings: dict, subset_rankings: dict | None) -> dict[str, dict]:
    """Metrics of the queries of each `Record.source` (one source per edit type), when there is more than one."""
    groups: dict[str, list[Record]] = {}
    for record in benchmark.records:
        groups.setdefault(record.source, []).append(record)
    table = {}
    for source, records in sorted(groups.items()) if len(groups) > 1 else ():
        ids = [record.id for record in records]
        subsets = None if subset_rankings is None else {name: subset_rankings[name] for name in ids}
        part = replace(benchmark, records=records)
        table[source] = {"queries": len(ids), **score_rankings(part, {name: rankings[name] for name in ids}, subsets)}
    return table


# ---- encoding


def check_pictures(benchmark: Benchmark, images: ImageStore) -> None:
    """Refuse a benchmark of which pictures are missing, before anything is encoded; InputError counts them."""
    if not benchmark.gallery:
        raise InputError(f"{label(benchmark)}: no list of gallery images; retrieval needs one to rank them all")
    needed = dict.fromkeys([*benchmark.gallery, *(record.reference for record in benchmark.records)])
    missing = [name for name in needed if name not in images]
    if missing:
        raise InputError(
            f"{label(benchmark)}: {len(missing)} of {len(needed)} pictures are missing below {images.root}, "
            f"the first is {missing[0]!r}; numbers over a smaller gallery would not be comparable"
        )


@contextmanager
def inference(retriever: Retriever) -> Iterator[None]:
    """Without gradients and without dropout; a model in training goes on as it was."""
    modes = (
        {module: module.training for module in retriever.modules()} if isinstance(retriever, torch.nn.Module) else {}
    )
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def encode_gallery(
    retriever: Retriever, names: Sequence[str], images: ImageStore, batch_size: int = 32, progress: bool = False
) -> Tensor:
    """Embeddings (N, D) float32 of the pictures `names`, on the CPU; each picture is decoded once."""
    parts = []
    with inference(retriever), tqdm(total=len(names), desc="gallery", unit=" images", disable=not progress) as bar:
        for pictures in load_batches(names, images, batch_size):
            parts.append(retriever.encode_target(pictures).float().cpu())
            bar.update(len(pictures))
    return check_embeddings(torch.cat(parts), names)


def encode_queries(
    records: Sequence[Record], images: ImageStore, encode: Encode, batch_size: int = 32, progress: bool = False
) -> QueryOutput:
    """Embeddings (Q, D), explanations and flags of the records, from `encode(records, reference pictures)`."""
    parts, done = [], 0
    with tqdm(total=len(records), desc="queries", unit=" queries", disable=not progress) as bar:
        for pictures in load_batches([record.reference for record in records], images, batch_size):
            parts.append(encode(records[done : done + len(pictures)], pictures))
            done += len(pictures)
            bar.update(len(pictures))
    output = concatenate(parts)
    check_embeddings(output.embeddings, [record.id for record in records])
    return output


def load_batches(names: Sequence[str], images: ImageStore, size: int) -> Iterator[list[Image.Image]]:
    """Pictures of `names` in batches; threads decode the next batch while the caller works on this one.

    A name that occurs more than once in a batch is decoded once.
    """
    if size < 1:
        raise InputError(f"batch_size is {size}; encode at least one picture at a time")
    waiting: deque[list] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), size):
            batch = names[start : start + size]
            pending = {name: pool.submit(images.load, name) for name in dict.fromkeys(batch)}
            waiting.append([pending[name] for name in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


def check_embeddings(embeddings: Tensor, names: Sequence[str]) -> Tensor:
    """Return the embeddings (N, D) of `names` unchanged; InputError names the first that is not finite."""
    if embeddings.shape[0] != len(names):
        raise ValueError(f"{len(names)} inputs gave {embeddings.shape[0]} embeddings; a retriever gives one for each")
    bad = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise InputError(f"the embedding of {names[int(bad[0])]!r} is not finite; the checkpoint has diverged")
    return embeddings
