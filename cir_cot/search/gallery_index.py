"""The GalleryIndex protocol: what every kind of index offers, whether on FAISS or in a Qdrant collection."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch

from cir_cot.errors import InputError
from cir_cot.retriever import Retriever

from .index_files import Metadata
from .vector_store import Vectors

Hit = tuple[str, float]  # image id, score
Rows = Sequence[
    tuple[str, str]
]  # (image id, content hash) of each picture, in the order of the gallery


class GalleryIndex(Protocol):
    """Search the embeddings of a gallery; change and save them.

    A new kind of index is one class with these methods and one entry in `build.KINDS`.
    `metadata` is the content of index.json: kind, dtype, dim (of the retriever), width (of the stored vectors),
    count, probe and pixels (the retriever's `identity`), images (their folder) and unreadable.

    Example:
        index = open_index("runs/index")
        index.search(query.embeddings, k=10, where={"price": {"lt": 50}})
    """

    metadata: Metadata

    # ---- making and opening

    @staticmethod
    def check_settings(metadata: Metadata) -> None:
        """Refuse a kind that this class cannot make."""
        ...

    @classmethod
    def create(
        cls, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Make an index of the pictures `rows`, whose vectors (D,) are in `fresh`."""
        ...

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open what `save` wrote; InputError when it is missing or damaged."""
        ...

    # ---- reading

    def __len__(self) -> int: ...

    def list_ids(self) -> list[str]:
        """Return the ids of all pictures; of a collection on a server this reads every point."""
        ...

    def list_hashes(self) -> list[str]:
        """Return the content hashes of all pictures; of a collection on a server this reads every point."""
        ...

    def ids_of(self, digest: str) -> list[str]:
        """Return the ids of the pictures of a content hash."""
        ...

    def list_payloads(self) -> dict[str, dict]:
        """Return {image id: payload}; of a collection on a server this reads every point."""
        ...

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 10, where: Mapping | None = None
    ) -> list[list[Hit]]:
        """Return the k best pictures for each of queries (B, D), best first, of those that match `where`."""
        ...

    def tune(self, settings: str) -> None:
        """Set how thoroughly an approximate kind searches, e.g. "nprobe=16"."""
        ...

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever other than the one that encoded the gallery."""
        ...

    # ---- changing

    def update(
        self, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Return the index with the pictures `rows` as its content.

        Vectors are taken from `fresh`, or from this index where the content hash is the same.
        """
        ...

    def remove(self, ids: Collection[str]) -> Self:
        """Return the index without the pictures `ids`; InputError names one that it does not hold."""
        ...

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write the index, or where its collection is, to a folder."""
        ...

    def close(self) -> None:
        """Release connections and locks."""
        ...


def check_queries(queries: torch.Tensor | np.ndarray, k: int, metadata: Metadata) -> None:
    """Refuse a k below 1, and queries (B, D) of another width than the retriever's."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least one picture")
    if queries.shape[1] != metadata["dim"]:
        raise InputError(
            f"queries of {queries.shape[1]} numbers, the index holds {metadata['dim']}; "
            "use its retriever"
        )


def check_held(ids: Collection[str], held: Collection[str]) -> None:
    """Refuse to remove pictures that an index does not hold."""
    # The first missing one is named, in alphabetical order.
    if missing := sorted(set(ids) - set(held)):
        raise InputError(
            f"image {missing[0]!r} is not in the index, nor are {len(missing) - 1} others"
        )
