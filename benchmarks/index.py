"""Measure the index beside plain FAISS at the size of CIRCO: ranks, speed, memory, and what compression loses.

Vectors are drawn around centres, so that they have neighbourhoods as embeddings do. The exact index is compared with
the ranks of a float64 brute force, and in time and memory with IndexFlatIP over the same vectors, in turns. Then come
smaller types and widths, and an approximate kind at `--many` vectors: recall@10 against the exact index, and the time
of a query, at several settings.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np

from cir_cot.cli import run
from cir_cot.files import write_text_atomic
from cir_cot.search.faiss_index import Index

CENTRES = 2000  # of the drawn vectors
SPREAD = 0.7  # noise around a centre, relative to it
LOOSE = 2.0  # the same with --many


class Drawn:
    """Hold vectors by row number, as `Index.create` expects it."""

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors

    def __getitem__(self, hashes: Sequence[str]) -> np.ndarray:
        """Return vectors of rows."""
        return self.vectors[[int(digest) for digest in hashes]]


def draw(count: int, dim: int, seed: int, spread: float = SPREAD) -> np.ndarray:
    """Return unit vectors (count, dim) around centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    vectors = random.standard_normal((count, dim), dtype=np.float32)
    vectors *= spread
    vectors += centres[random.integers(0, CENTRES, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def make(
    vectors: np.ndarray, kind: str = "exact", dtype: str = "float32", width: int | None = None
) -> Index:
    """Return our index of vectors."""
    dim = vectors.shape[1]
    metadata = {"kind": kind, "dtype": dtype, "dim": dim, "width": width or dim}
    rows = [(str(row), str(row)) for row in range(len(vectors))]
    return Index.create(rows, Drawn(vectors), {}, metadata)


def resident() -> int:
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(build: Callable) -> tuple[object, int]:
    """Return the result of `build`, and by how many bytes the process has grown."""
    before = resident()
    made = build()
    return made, resident() - before


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[str]]:
    """Return the k best rows of float64 products, rounded once, of equal ones the first."""
    precise = queries.astype(np.float64)
    blocks = []
    for at in range(0, len(vectors), 8192):
        blocks.append(precise @ vectors[at : at + 8192].T.astype(np.float64))
    scores = np.concatenate(blocks, axis=1).astype(np.float32)  # (Q, N)
    best = []
    for line in scores:
        order = np.lexsort((np.arange(len(vectors)), -line))  # by score, then by row
        best.append([str(row) for row in order[:k]])
    return best


def names(answers: list[list[tuple[str, float]]]) -> list[list[str]]:
    """Return the ids of answers."""
    ids = []
    for answer in answers:
        ids.append([name for name, _ in answer])
    return ids


def recall(found: list[list[str]], wanted: list[list[str]]) -> float:
    """Return the share of wanted ids that were found."""
    return sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)) / sum(
        map(len, wanted)
    )


def exact_against_faiss(
    vectors: np.ndarray, queries: np.ndarray, k: int, repeats: int
) -> tuple[dict, dict, list]:
    """Measure our exact index and IndexFlatIP -> the numbers of both, and the true ranks."""

    def plain():
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index

    theirs, their_bytes = grown(plain)
    ours, our_bytes = grown(lambda: make(vectors))
    # Search in turns, so that other load affects both.
    seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
    for _ in range(repeats):
        for name, search in (("ours", ours.search), ("faiss", theirs.search)):
            started = time.perf_counter()
            answer = search(queries, k)
            seconds[name].append(time.perf_counter() - started)
            if name == "ours":
                found = names(answer)
    # Count the queries whose ranks are the true ones.
    wanted = brute_force(vectors, queries, k)
    row = {
        "milliseconds_a_query": 1000 * statistics.median(seconds["ours"]) / len(queries),
        "bytes": our_bytes,
    }
    row["queries_ranked_as_float64"] = sum(a == b for a, b in zip(found, wanted, strict=True))
    peer = {
        "milliseconds_a_query": 1000 * statistics.median(seconds["faiss"]) / len(queries),
        "bytes": their_bytes,
    }
    their_ranks = [list(map(str, line)) for line in theirs.search(queries, k)[1]]
    same = (a == b for a, b in zip(their_ranks, wanted, strict=True))
    peer["queries_ranked_as_float64"] = sum(same)
    return row, peer, wanted


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--count", type=int, default=123_403, help="vectors (default 123,403, CIRCO's gallery)")
    add("--dim", type=int, default=1024)
    add("--queries", type=int, default=100)
    add("--k", type=int, default=50)
    add("--repeats", type=int, default=3)
    add(
        "--many",
        type=int,
        default=0,
        metavar="N",
        help="vectors of the approximate kind, e.g. 1000000 (default: none)",
    )
    add("--many-dim", type=int, default=128)
    add("--kind", default="IVF1024,Flat")
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure and write one JSON file."""
    args = parse(argv)
    vectors = draw(args.count, args.dim, 1)
    queries = draw(args.queries, args.dim, 2)
    ours, peer, wanted = exact_against_faiss(vectors, queries, args.k, args.repeats)
    # Smaller types and widths.
    ours["stored"] = {}
    for dtype, width in (
        ("float16", None),
        ("int8", None),
        ("float32", args.dim // 4),
        ("int8", args.dim // 4),
    ):
        found = names(make(vectors, "exact", dtype, width).search(queries, args.k))
        bytes_each = (width or args.dim) * {"float32": 4, "float16": 2, "int8": 1}[dtype]
        row = {"bytes_a_picture": bytes_each, f"recall@{args.k}": recall(found, wanted)}
        ours["stored"][f"{dtype}, {width or args.dim} numbers"] = row
    if args.many:
        del vectors
        vectors, queries = (
            draw(n, args.many_dim, s, LOOSE) for n, s in ((args.many, 3), (args.queries, 4))
        )
        wanted = names(make(vectors).search(queries, 10))
        started = time.perf_counter()
        index = make(vectors, args.kind)
        ours["approximate"] = {
            "kind": args.kind,
            "vectors": args.many,
            "built_seconds": time.perf_counter() - started,
        }
        for probes in (1, 4, 16, 64, 256):
            index.tune(f"nprobe={probes}" if "IVF" in args.kind else f"efSearch={16 * probes}")
            started = time.perf_counter()
            found = names(index.search(queries, 10))
            spent = 1000 * (time.perf_counter() - started) / len(queries)
            row = {"recall@10": recall(found, wanted), "milliseconds_a_query": spent}
            ours["approximate"][index.metadata["tuned"]] = row
    ratio = {
        "time_vs_faiss": peer["milliseconds_a_query"] / ours["milliseconds_a_query"],
        "memory_vs_faiss": peer["bytes"] / ours["bytes"],
    }
    versions = {"faiss": version("faiss-cpu"), "numpy": version("numpy")}
    result = {
        "name": "index",
        "setting": vars(args),
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "versions": versions,
    }
    print(json.dumps(result, indent=1))
    if args.json:
        write_text_atomic(args.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
