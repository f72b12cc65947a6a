"""Making and updating an index: encode what is new, in any number of processes, then write the whole of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np

from .encoding import Vectors, check_probe, encode_share, probe, read_seen, shorten
from .images import ImageStore
from .index import BLOCK, STORES, Index, assemble, emptied, read_facts, sample, words_of
from .qdrant import QdrantIndex, address, is_qdrant
from .records import InputError, read_json, write_text_atomic
from .retriever import Retriever

PARTS = "encoding"  # the folder of parts below the index while it is built


def open_index(folder: str | Path) -> Index | QdrantIndex:
    """Open what `build` made; InputError when there is none."""
    facts = read_facts(Path(folder))
    return QdrantIndex(facts) if is_qdrant(facts["kind"]) else Index.load(folder)


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

    Every process calls it with its `rank` and with `wait`, a barrier; the first one writes the index. `kind` is
    "exact", a factory string of FAISS or the address of a Qdrant collection, `width` how many numbers of a vector are
    kept, `dtype` one of STORES; None as `payloads` keeps those that are there. An interrupted run is continued by
    calling it again.
    """
    folder, old = Path(folder), None
    facts = {"kind": kind, "dtype": dtype, "dim": retriever.dim, "width": width or retriever.dim}
    check_settings(facts)
    if (folder / "index.json").exists():
        old = open_index(folder)
        old.check(retriever, str(folder))
        if changed := [key for key in facts if facts[key] != old.facts[key]]:
            was = old.facts[changed[0]]
            raise InputError(f"{folder}: its {changed[0]} is {was!r}; encode into a new folder to change that")
    parts = folder / PARTS
    if rank == 0:
        _claim(parts, retriever)
    wait()
    known = set() if old is None else set(old.hashes)
    count = encode_share(retriever, images, names, parts, known, batch_size, rank, world, progress)
    wait()
    if rank == 0:
        seen, unreadable = read_seen(parts, world)
        facts |= read_json(parts / "probe.json") | {"images": str(images.root), "unreadable": unreadable}
        rows = [(name, seen[name]) for name in names if name in seen]
        if not rows:
            raise InputError(
                f"{images.root}: no picture can be read; {next(iter(unreadable.values()), 'none is there')}"
            )
        _write(folder, rows, old, Vectors(parts, retriever.dim), facts, payloads)
        for path in sorted(parts.iterdir()):
            path.unlink()
        parts.rmdir()
    if old is not None:
        old.close()
    wait()
    return count


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


def _claim(parts: Path, retriever: Retriever) -> None:
    """Write the retriever's fingerprint beside the parts, or check the one of the run that is continued."""
    parts.mkdir(parents=True, exist_ok=True)
    path = parts / "probe.json"
    if path.exists():
        check_probe(read_json(path)["probe"], retriever, str(parts))
    else:
        write_text_atomic(path, json.dumps({"probe": probe(retriever).tolist()}))


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
        index.fill(rows, fresh, held)
    else:
        if old is not None and old.facts.get("tuned"):
            facts["tuned"] = old.facts["tuned"]
        index = assemble(rows, gather(rows, old, fresh, facts), facts, held)
    index.save(folder)
    index.close()


def gather(rows: Sequence[tuple[str, str]], old: Index | None, fresh: Vectors, facts: dict) -> faiss.Index:
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
        store = faiss.index_factory(facts["width"], STORES[facts["dtype"]], faiss.METRIC_INNER_PRODUCT)
        if not store.is_trained:
            store.train(vectors([hashes[row] for row in sample(len(rows))]))
    for start in range(0, len(rows), BLOCK):
        store.add(vectors(hashes[start : start + BLOCK]))
    return store
