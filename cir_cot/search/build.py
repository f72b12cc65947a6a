"""Making and updating an index: encode what is new, in any number of processes, then write the whole of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import faiss
import numpy as np

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.retriever import Retriever
from cir_cot.storage import locked

from .faiss_index import BLOCK, Index, assemble, emptied, sample
from .index_files import STORES, read_facts, words_of
from .qdrant_index import QdrantIndex, address, is_qdrant
from .vector_store import (
    Vectors,
    claim_parts,
    encode_share,
    read_probe,
    read_seen,
    remove_parts,
    shorten,
)

PARTS = "encoding"  # the folder of parts below the index while it is built


def open_index(folder: str | Path) -> Index | QdrantIndex:
    """Open what `build` made; InputError when there is none."""
    facts = read_facts(Path(folder))
    return QdrantIndex(facts) if is_qdrant(facts["kind"]) else Index.load(folder)


@contextmanager
def change(folder: str | Path) -> Iterator[Index | QdrantIndex]:
    """Open an index to change and save it; other processes that would write it are refused meanwhile."""
    read_facts(Path(folder))
    with locked(Path(folder)):
        index = open_index(folder)
        try:
            yield index
        finally:
            index.close()


def build(
    retriever: Retriever,
    images: ImageStore,
    names: Sequence[str],
    folder: str | Path,
    kind: str = "exact",
    width: int | None = None,
    dtype: str = "float32",
    payloads: Mapping[str, dict] | None = None,
    batch_size: int = 32,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    progress: bool = False,
) -> int:
    """Make the gallery `names` the content of the index in `folder`, new or not -> pictures this process encoded.

    Every process calls it with its `rank` and with `wait`, a barrier; the first one locks the folder and writes the
    index. `kind` is "exact", a factory string of FAISS or the address of a Qdrant collection, `width` how many numbers
    of a vector are kept, `dtype` one of STORES; None as `payloads` keeps those that are there. An interrupted run is
    continued by calling it again.
    """
    folder = Path(folder)
    facts = {"kind": kind, "dtype": dtype, "dim": retriever.dim, "width": width or retriever.dim}
    check_settings(facts)
    with locked(folder) if rank == 0 else nullcontext():
        wait()
        # Open what is there, and refuse what cannot become the wanted index.
        old = _open_old(folder, retriever, facts)
        if rank == 0:
            claim_parts(folder / PARTS, retriever)
        wait()
        # Encode what is new.
        names, unnamed = split_names(names)
        known = set() if old is None else set(old.hashes)
        count = encode_share(
            retriever, images, names, folder / PARTS, known, batch_size, rank, world, progress
        )
        wait()
        # Write the index, then remove the parts.
        if rank == 0:
            _finish(folder, images, names, unnamed, old, facts, payloads, world)
        if old is not None:
            old.close()
        wait()
    return count


def split_names(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names that are text, and {escaped name: problem} of those that come from files whose names are not."""
    good = [name for name in names if escaped(name) == name]
    problem = "the name of its file is no UTF-8; rename the file"
    return good, {escaped(name): problem for name in names if escaped(name) != name}


def escaped(name: str) -> str:
    """Return a file's name with escapes for what is no UTF-8 in it."""
    return name.encode("utf-8", "backslashreplace").decode()


def _open_old(folder: Path, retriever: Retriever, facts: dict) -> Index | QdrantIndex | None:
    """Open the index that is in the folder, if there is one; InputError when it is of another retriever or kind."""
    if not (folder / "index.json").exists():
        return None
    old = open_index(folder)
    old.check(retriever, str(folder))
    if changed := [key for key in facts if facts[key] != old.facts[key]]:
        was = old.facts[changed[0]]
        raise InputError(
            f"{folder}: its {changed[0]} is {was!r}; encode into a new folder to change that"
        )
    return old


def _finish(
    folder: Path,
    images: ImageStore,
    names: Sequence[str],
    unnamed: Mapping[str, str],
    old: Index | QdrantIndex | None,
    facts: dict,
    payloads: Mapping[str, dict] | None,
    world: int,
) -> None:
    """Write the index of what all processes have encoded, then remove their parts."""
    parts = folder / PARTS
    seen, unreadable = read_seen(parts, world)
    unreadable |= unnamed
    rows = [(name, seen[name]) for name in names if name in seen]
    if not rows:
        raise InputError(
            f"{images.root}: no picture can be read; {next(iter(unreadable.values()), 'none is there')}"
        )
    facts |= {"probe": read_probe(parts / "probe.json")}
    facts |= {"images": escaped(str(images.root)), "unreadable": unreadable}
    _write(folder, rows, old, Vectors(parts, facts["dim"]), facts, payloads)
    remove_parts(parts)


def check_settings(facts: dict) -> None:
    """Refuse a dtype, a width or a kind that there is not."""
    if facts["dtype"] not in STORES:
        raise InputError(f"dtype {facts['dtype']!r} is not one of {', '.join(STORES)}")
    if not 1 <= facts["width"] <= facts["dim"]:
        raise InputError(f"width {facts['width']}: a vector has {facts['dim']} numbers")
    if is_qdrant(facts["kind"]):
        address(facts["kind"])
    if facts["kind"] == "exact" or is_qdrant(facts["kind"]):
        return
    try:
        faiss.index_factory(facts["width"], facts["kind"], faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"kind {facts['kind']!r} is neither exact nor a FAISS factory string like IVF1024,Flat or HNSW32 "
            f"({words_of(error)})"
        ) from None


def _write(
    folder: Path,
    rows: Sequence[tuple[str, str]],
    old: Index | QdrantIndex | None,
    fresh: Vectors,
    facts: dict,
    payloads: Mapping[str, dict] | None,
) -> None:
    """Write the index of (id, hash) rows: fresh vectors, and those of the old index."""
    payloads = ({} if old is None else old.payloads) if payloads is None else payloads
    held = {name: payloads[name] for name, _ in rows if name in payloads}
    if is_qdrant(facts["kind"]):
        index = QdrantIndex(facts) if old is None else old
        index.facts = facts
        index.fill(rows, fresh, held, new=old is None)
    else:
        if old is not None and old.facts.get("tuned"):
            facts["tuned"] = old.facts["tuned"]
        index = assemble(rows, gather(rows, old, fresh, facts), facts, held)
    index.save(folder)
    index.close()


def gather(
    rows: Sequence[tuple[str, str]], old: Index | None, fresh: Vectors, facts: dict
) -> faiss.Index:
    """Return the store of (id, hash) rows, in order: fresh vectors, and those of the old index."""
    at = {digest: row for row, digest in enumerate([] if old is None else old.hashes)}

    def vectors(hashes: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(hashes), facts["width"]), dtype=np.float32)
        kept = [n for n, digest in enumerate(hashes) if digest in at]
        new = [n for n, digest in enumerate(hashes) if digest not in at]
        if kept:
            out[kept] = old.vectors(np.array([at[hashes[n]] for n in kept]))
        out[new] = shorten(fresh[[hashes[n] for n in new]], facts["width"])
        return out

    hashes = [digest for _, digest in rows]
    if old is not None:
        store = emptied(old.store)
    else:
        store = faiss.index_factory(
            facts["width"], STORES[facts["dtype"]], faiss.METRIC_INNER_PRODUCT
        )
        if not store.is_trained:
            store.train(vectors([hashes[row] for row in sample(len(rows))]))
    for start in range(0, len(rows), BLOCK):
        store.add(vectors(hashes[start : start + BLOCK]))
    return store
