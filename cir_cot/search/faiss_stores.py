"""Make, fill, search and read the FAISS indexes that hold the vectors of a gallery."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import faiss
import numpy as np

from cir_cot.errors import InputError

from .index_files import STORES, Metadata, faiss_message
from .vector_store import Vectors, truncate_dims

CODE_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a stored number
BLOCK = 65536  # vectors moved at a time
DEEPER = 32  # candidates beyond k, because FAISS's float32 sums may rank them differently
TRAINING = 262144  # at most this many vectors train int8's ranges and approximate kinds

ReadRows = Callable[[np.ndarray], np.ndarray]  # row numbers (n,) -> vectors (n, width)


def check_kind(kind: str, width: int) -> None:
    """Refuse a kind that is neither "exact" nor a FAISS factory string."""
    if kind == "exact":
        return
    try:
        faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"kind {kind!r} is neither exact nor a FAISS factory string like IVF1024,Flat or HNSW32 "
            f"({faiss_message(error)})"
        ) from None


def new_store(metadata: Metadata, count: int, read: ReadRows) -> faiss.IndexFlatCodes:
    """Make an empty store of the dtype of `metadata`; int8's ranges come from a sample of `count` vectors."""
    # int8 needs training: it learns the range of each dimension.
    store = faiss.index_factory(
        metadata["width"], STORES[metadata["dtype"]], faiss.METRIC_INNER_PRODUCT
    )
    if not store.is_trained:
        store.train(read(sample(count)))
    return cast(faiss.IndexFlatCodes, store)


def empty_like(store: faiss.Index) -> faiss.IndexFlatCodes:
    """Return an empty copy of a store; it keeps int8's ranges, so vectors stored again do not change."""
    # A copy of all vectors for a moment; reset removes them and keeps what was trained.
    copy = faiss.clone_index(store)
    copy.reset()
    return cast(faiss.IndexFlatCodes, copy)


def fill(store: faiss.Index, count: int, read: ReadRows) -> None:
    """Add rows 0 to count - 1 to a store, a block at a time."""
    for start in range(0, count, BLOCK):
        store.add(read(np.arange(start, min(start + BLOCK, count))))


def decode(store: faiss.IndexFlatCodes, rows: np.ndarray) -> np.ndarray:
    """Return the vectors (n, width) of the rows (n,) of a store, as float32."""
    # View the stored codes as an array without copying them.
    codes = faiss.rev_swig_ptr(store.codes.data(), store.ntotal * store.code_size)
    codes = codes.reshape(store.ntotal, -1)  # (N, code_size)
    return store.sa_decode(np.ascontiguousarray(codes[rows]))


def is_finite(store: faiss.IndexFlatCodes, count: int) -> bool:
    """Tell whether the first `count` rows of a store hold finite numbers only."""
    for start in range(0, count, BLOCK):
        block = decode(store, np.arange(start, min(start + BLOCK, count)))
        if not np.isfinite(block).all():
            return False
    return True


def vector_reader(
    hashes: Sequence[str],
    fresh: Vectors,
    width: int,
    held: Mapping[str, int] = MappingProxyType({}),
    read_held: ReadRows | None = None,
) -> ReadRows:
    """Return a function that reads vectors by row number.

    Args:
        hashes: content hash of each row.
        fresh: vectors (D,) by content hash.
        width: dimensions of a stored vector.
        held: rows of another index by content hash; their vectors are read from there.
        read_held: reads vectors (n, width) of that index.
    """

    def read(numbers: np.ndarray) -> np.ndarray:
        # Split by where the vectors come from.
        wanted = [hashes[number] for number in numbers]
        kept = [at for at, digest in enumerate(wanted) if digest in held]
        new = [at for at, digest in enumerate(wanted) if digest not in held]
        # Read both kinds into their places.
        vectors = np.zeros((len(wanted), width), dtype=np.float32)  # (n, width)
        if read_held is not None and kept:
            vectors[kept] = read_held(np.array([held[wanted[at]] for at in kept]))
        vectors[new] = truncate_dims(fresh[[wanted[at] for at in new]], width)
        return vectors

    return read


def make_approximate(metadata: Metadata, count: int, read: ReadRows) -> faiss.Index:
    """Train and fill an index of an approximate kind; InputError when the gallery is too small for it."""
    kind = metadata["kind"]
    # Train on a sample: clusters, or nothing for a graph.
    try:
        index = faiss.index_factory(metadata["width"], kind, faiss.METRIC_INNER_PRODUCT)
        index.train(read(sample(count)))
    except RuntimeError as error:
        raise InputError(
            f"{kind!r} cannot be made of {count} pictures ({faiss_message(error)})"
        ) from None
    # Add every vector.
    fill(index, count, read)
    return index


def sample(count: int) -> np.ndarray:
    """Return at most TRAINING of `count` row numbers, drawn with a fixed seed, in ascending order."""
    if count <= TRAINING:
        return np.arange(count)
    # Ascending order reads the vectors in one pass.
    return np.sort(np.random.default_rng(0).choice(count, TRAINING, replace=False))


# ---- search


def search_exact(
    store: faiss.Index, queries: np.ndarray, k: int, among: np.ndarray | None = None
) -> list[np.ndarray]:
    """Find for each query all rows whose float32 score may reach the k-th best: they hold its k best.

    Args:
        store: unit vectors (N, D).
        queries: unit vectors (B, D).
        k: how many rows are wanted; at most N, or at most the number of rows in `among`.
        among: search only these rows (n,).
    """
    # Twice the error bound of a float32 sum, for unit vectors.
    slack = queries.shape[1] * 2.0**-23
    # Restrict the search to the rows of `among`.
    params = None
    count = store.ntotal
    if among is not None:
        selector = faiss.IDSelectorBatch(among)  # must outlive the search
        params = faiss.SearchParameters()
        params.sel = selector
        count = len(among)
    found: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(queries)
    asked = np.arange(len(queries))  # queries without a certain answer
    depth = k
    while len(asked) and k:
        # Ask for more candidates, until the last one is too far from the k-th to matter.
        depth = min(count, 4 * depth if depth > k else depth + DEEPER)
        scores, rows = store.search(queries[asked], depth, params=params)  # (B, depth)
        certain = (depth == count) | (scores[:, -1] < scores[:, k - 1] - slack)  # (B,)
        for query, row in zip(asked[certain], rows[certain], strict=True):
            found[query] = row
        asked = asked[~certain]
    return found


def search_approximate(index: faiss.Index, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """Find for each of queries (B, D) a few more than k rows, as an approximate kind finds them."""
    _, rows = index.search(queries, min(index.ntotal, k + DEEPER))  # (B, k + DEEPER)
    # FAISS fills up with -1 where it finds fewer.
    return [row[row >= 0] for row in rows]
