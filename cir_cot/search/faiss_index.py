"""Search a gallery with FAISS: exact by default, with the ranks of a float64 brute force.

`vectors.N.faiss` holds every vector once, as float32, float16 or int8 (FAISS's Flat, SQfp16, SQ8), full-width or
truncated to the first `width` dimensions. Above a million pictures an approximate kind, named by its FAISS factory
string, finds candidates in `near.N.faiss`, which are then ranked by the stored vectors. In both cases scores are dot
products in float64, rounded once to float32; pictures of equal score are ranked in the order of the gallery.

An index holds a fingerprint of its retriever (three synthetic pictures, encoded) and refuses another one. An update
encodes only pictures that are new or have changed. `rows.N.jsonl` has one line for each picture, in vector order.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import faiss
import numpy as np
import torch

from cir_cot.errors import InputError
from cir_cot.fingerprint import check_identity
from cir_cot.retriever import Retriever

from . import faiss_stores
from .gallery_index import Hit, Rows, check_held, check_queries
from .index_files import (
    CURE,
    Metadata,
    faiss_message,
    file_names,
    read_metadata,
    read_rows,
    read_store,
    save_files,
)
from .payload_filter import matching_rows
from .vector_store import Vectors, truncate_dims


@dataclass
class Index:
    """The gallery as FAISS holds it in memory; see `GalleryIndex` for what the methods mean.

    Attributes:
        ids: image id of each row.
        hashes: content hash of each row.
        store: the vectors (N, width).
        metadata: what index.json holds.
        approximate: of an approximate kind, the FAISS index that finds candidates.
        payloads: {image id: payload}, of the pictures that have one.
    """

    ids: list[str]
    hashes: list[str]
    store: faiss.IndexFlatCodes
    metadata: Metadata
    approximate: faiss.Index | None = None
    payloads: dict[str, dict] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def list_ids(self) -> list[str]:
        """Return the ids of all pictures, in the order of the gallery."""
        return self.ids

    def list_hashes(self) -> list[str]:
        """Return the content hashes of all pictures, in the order of the gallery."""
        return self.hashes

    def ids_of(self, digest: str) -> list[str]:
        """Return the ids of the pictures of a content hash."""
        return [self.ids[row] for row in self._rows_of.get(digest, ())]

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """The rows of each content hash."""
        rows: dict[str, list[int]] = {}
        for row, digest in enumerate(self.hashes):
            rows.setdefault(digest, []).append(row)
        return rows

    def list_payloads(self) -> dict[str, dict]:
        """Return the payloads of the pictures that have one."""
        return self.payloads

    def close(self) -> None:
        """Release nothing: this index holds no connection."""

    # ---- search

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 10, where: Mapping | None = None
    ) -> list[list[Hit]]:
        """Find the k best pictures for each query.

        Args:
            queries: unit vectors (B, D) of the retriever.
            k: how many pictures to find; fewer are returned when the gallery has fewer.
            where: a filter of payloads, see `payload_filter`; the search is then exact, whatever the kind.

        Returns:
            For each query (image id, score) pairs, best first.
        """
        check_queries(queries, k, self.metadata)
        truncated = truncate_dims(queries, self.metadata["width"])  # (B, width)
        # Find candidates that certainly, or for an approximate kind probably, hold the k best.
        if where is not None:
            rows = matching_rows(self.ids, self.payloads, where)
            candidates = faiss_stores.search_exact(self.store, truncated, min(k, len(rows)), rows)
        elif self.approximate is None:
            candidates = faiss_stores.search_exact(self.store, truncated, min(k, len(self)))
        else:
            candidates = faiss_stores.search_approximate(self.approximate, truncated, k)
        # Rank them by their scores in float64.
        pairs = zip(truncated, candidates, strict=True)
        return [self._rank(query, rows, k) for query, rows in pairs]

    def _rank(self, query: np.ndarray, rows: np.ndarray, k: int) -> list[Hit]:
        """Return the k best of the candidates `rows` by their float64 scores with a query (width,)."""
        # Dot products in float64, rounded once; equal scores in the order of the gallery.
        exact = self.vectors(rows).astype(np.float64) @ query.astype(np.float64)  # (n,)
        scores = exact.astype(np.float32)
        order = np.lexsort((rows, -scores))[:k]
        return [(self.ids[rows[at]], float(scores[at])) for at in order]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the stored vectors (n, width) of rows (n,) of the gallery."""
        return faiss_stores.decode(self.store, rows)

    def tune(self, settings: str) -> None:
        """Set how thoroughly an approximate kind searches, in FAISS's names: "nprobe=16", "efSearch=128"."""
        if self.approximate is None:
            raise InputError(
                f"{settings!r} has nothing to set: an exact index looks at every picture"
            )
        parameters: Any = faiss.ParameterSpace()  # its stub lacks the form that takes text
        try:
            parameters.set_index_parameters(self.approximate, settings)
        except RuntimeError as error:
            kind = self.metadata["kind"]
            raise InputError(
                f"{settings!r} is no setting of {kind!r} ({faiss_message(error)})"
            ) from None
        # Saved with the index, so that it is set again when the index is loaded.
        self.metadata["tuned"] = settings

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever other than the one that encoded the gallery."""
        check_identity(self.metadata, retriever, where)

    # ---- making and changing

    @staticmethod
    def check_settings(metadata: Metadata) -> None:
        """Refuse a kind that is neither exact nor a FAISS factory string."""
        faiss_stores.check_kind(metadata["kind"], metadata["width"])

    @classmethod
    def create(
        cls, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Make an index of the pictures `rows`, whose vectors (D,) are in `fresh`."""
        hashes = [digest for _, digest in rows]
        read = faiss_stores.vector_reader(hashes, fresh, metadata["width"])
        # Train and fill the store.
        store = faiss_stores.new_store(metadata, len(rows), read)
        faiss_stores.fill(store, len(rows), read)
        return cls._assemble(rows, store, payloads, metadata)

    def update(
        self, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Return an index of the pictures `rows`: vectors of this one by content hash, else from `fresh`."""
        hashes = [digest for _, digest in rows]
        held = {digest: row for row, digest in enumerate(self.hashes)}
        # Of a hash that is in both, the stored vector is kept.
        read = faiss_stores.vector_reader(hashes, fresh, metadata["width"], held, self.vectors)
        # A new store with the ranges of the old one: vectors that stay are not rounded again.
        store = faiss_stores.empty_like(self.store)
        faiss_stores.fill(store, len(rows), read)
        # Settings of an approximate kind stay through updates.
        if self.metadata.get("tuned"):
            metadata = metadata | {"tuned": self.metadata["tuned"]}
        return self._assemble(rows, store, payloads, metadata)

    def remove(self, ids: Collection[str]) -> Self:
        """Return the index without the pictures `ids`, to be saved; InputError names one that it lacks."""
        check_held(ids, self.ids)
        # Move the other vectors to a new store.
        gone = set(ids)
        kept = np.array([row for row, name in enumerate(self.ids) if name not in gone], dtype=int)
        store = faiss_stores.empty_like(self.store)
        faiss_stores.fill(store, len(kept), lambda numbers: self.vectors(kept[numbers]))
        rows = [(self.ids[row], self.hashes[row]) for row in kept]
        payloads = {name: value for name, value in self.payloads.items() if name not in gone}
        return self._assemble(rows, store, payloads, self.metadata)

    @classmethod
    def _assemble(
        cls,
        rows: Rows,
        store: faiss.IndexFlatCodes,
        payloads: Mapping[str, dict],
        metadata: Metadata,
    ) -> Self:
        """Return an index of rows and their stored vectors; an approximate kind is trained and filled here."""
        index = cls(
            ids=[name for name, _ in rows],
            hashes=[digest for _, digest in rows],
            store=store,
            metadata=dict(metadata),
            payloads=dict(payloads),
        )
        if metadata["kind"] != "exact":
            index.approximate = faiss_stores.make_approximate(metadata, len(rows), index.vectors)
            if metadata.get("tuned"):
                index.tune(metadata["tuned"])
        return index

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write the index; readers see the old state or the complete new one, then the old files are removed."""
        stores: dict[str, faiss.Index] = {"vectors": self.store}
        if self.approximate is not None:
            stores["near"] = self.approximate
        metadata = self.metadata | {"count": len(self)}
        self.metadata = save_files(Path(folder), metadata, self._saved_rows(), stores)

    def _saved_rows(self) -> Iterator[dict[str, Any]]:
        """Yield what is saved of each picture."""
        for name, digest in zip(self.ids, self.hashes, strict=True):
            row: dict[str, Any] = {"id": name, "hash": digest}
            if name in self.payloads:
                row["payload"] = self.payloads[name]
            yield row

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load what `save` wrote; InputError when files are missing or damaged."""
        metadata = read_metadata(Path(folder))
        try:
            return cls._load(Path(folder), metadata)
        except InputError:
            # A writer may have replaced the state and removed the old files since.
            if read_metadata(Path(folder)).get("number") == metadata.get("number"):
                raise
        return cls.load(folder)

    @classmethod
    def _load(cls, folder: Path, metadata: Metadata) -> Self:
        """Load and check the state that `metadata` names."""
        # Read the files and check their digests; an earlier version wrote down none.
        count = metadata["count"]
        width = metadata["width"]
        digests = metadata.get("digests") or {}
        names = file_names(metadata.get("number", 0))
        paths = {part: folder / name for part, name in names.items()}
        rows = list(read_rows(paths["rows"], digests.get("rows")))
        store = read_store(paths["vectors"], digests.get("vectors"), width, count)
        # Put them together; an approximate kind has a second file.
        index = cls(
            ids=[row["id"] for row in rows],
            hashes=[row["hash"] for row in rows],
            store=cast(faiss.IndexFlatCodes, store),
            metadata=metadata,
            payloads={row["id"]: row["payload"] for row in rows if "payload" in row},
        )
        if metadata["kind"] != "exact":
            index.approximate = read_store(paths["near"], digests.get("near"), width, count)
        # Check what no digest can tell.
        index._check_files(paths)
        if metadata.get("tuned"):
            index.tune(metadata["tuned"])
        return index

    def _check_files(self, paths: Mapping[str, Path]) -> None:
        """Check that rows and vectors belong together and that every number is finite."""
        # As many rows as vectors, and no picture twice.
        count = self.metadata["count"]
        distinct = len(set(self.ids))
        if len(self.ids) != count or distinct != count:
            raise InputError(
                f"{paths['rows']}: {distinct} pictures, not {count}, so it is damaged; {CURE}"
            )
        # The store is of the dtype that index.json names.
        dtype = self.metadata["dtype"]
        if (
            getattr(self.store, "code_size", None)
            != self.metadata["width"] * faiss_stores.CODE_BYTES[dtype]
        ):
            raise InputError(f"{paths['vectors']}: not stored as {dtype}, so it is damaged; {CURE}")
        # One NaN would come first in every search.
        if not faiss_stores.is_finite(self.store, count):
            raise InputError(
                f"{paths['vectors']}: holds a number that is not finite, so it is damaged; {CURE}"
            )
