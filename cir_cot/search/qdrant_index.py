"""The same few methods over a Qdrant collection: for galleries beyond one machine, or shared by many.

The kind of such an index is "qdrant:<server or folder>#<collection>": a server's address, or a folder in which
qdrant-client keeps a small collection itself, for tests and trials. A server's key is read from QDRANT_API_KEY. A point
holds the picture's id, its content hash and its payload, and Qdrant filters by the payload while it searches.
"""

import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cir_cot.errors import InputError
from cir_cot.retriever import Retriever, check_fingerprint

from .faiss_index import check_queries
from .index_files import write_facts
from .vector_store import Vectors, shorten

PREFIX = "qdrant:"
SPACE = uuid.UUID(
    "6c1d4a52-7d5e-4c0e-9a0c-0d5a3f1b2c11"
)  # of the names that points get from image ids
ROW = {"id", "hash", "payload"}  # what a point of an index holds
BLOCK = 512  # points sent or fetched at a time


def is_qdrant(kind: str) -> bool:
    """Tell whether a kind is the address of a collection."""
    return kind.startswith(PREFIX)


def address(kind: str) -> tuple[str, str]:
    """Return server or folder, and collection, of a kind; InputError if it is no address."""
    place, _, collection = kind.removeprefix(PREFIX).rpartition("#")
    if not place or not collection:
        raise InputError(f"{kind!r} is no address; write qdrant:<server or folder>#<collection>")
    return place, collection


def point_name(image: str) -> str:
    """Return the name of the point that holds a picture."""
    return str(uuid.uuid5(SPACE, image))


class QdrantIndex:
    """A collection of pictures; see `Index` for what the methods mean."""

    def __init__(self, facts: dict):
        place, self.collection = address(facts["kind"])
        try:
            import qdrant_client
        except ImportError:
            raise InputError(
                "a Qdrant collection needs the package: pip install 'cir-cot[qdrant]'"
            ) from None
        from qdrant_client.http.exceptions import ApiException

        self.facts, self.models = facts, qdrant_client.models
        try:
            if place.startswith(("http://", "https://")):
                self.client = qdrant_client.QdrantClient(
                    url=place, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False
                )
                self._there()
            else:
                self.client = qdrant_client.QdrantClient(path=place)
        except (RuntimeError, OSError, ValueError, ApiException) as error:
            why = str(error).partition("\n")[0]
            raise InputError(
                f"{place}: no Qdrant collection can be opened here ({why}); start the server, or wait for whoever has "
                "the folder open"
            ) from error

    def close(self) -> None:
        """Give the server's connection, or the folder's lock, back."""
        self.client.close()

    def __len__(self) -> int:
        return self.client.count(self.collection, exact=True).count if self._there() else 0

    def _there(self) -> bool:
        return self.client.collection_exists(self.collection)

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever that encodes pictures otherwise than the one the gallery was encoded with."""
        check_fingerprint(self.facts["probe"], retriever, where)

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 10, where: Mapping | None = None
    ) -> list[list[tuple[str, float]]]:
        """Find for each of queries (B, D) its k best pictures, of those that fit `where` -> (id, score) pairs."""
        check_queries(queries, k, self.facts)
        condition = None if where is None else self._condition(where)
        answers = []
        for query in shorten(queries, self.facts["width"]):
            found = self.client.query_points(
                self.collection,
                query=query.tolist(),
                limit=k,
                query_filter=condition,
                with_payload=["id"],
            )
            answers.append([(point.payload["id"], point.score) for point in found.points])
        return answers

    def _condition(self, where: Mapping):
        models, parts = self.models, []
        for key, wanted in where.items():
            field = f"payload.{key}"
            if isinstance(wanted, Mapping):
                parts.append(models.FieldCondition(key=field, range=models.Range(**wanted)))
            elif isinstance(wanted, list):
                parts.append(models.FieldCondition(key=field, match=models.MatchAny(any=wanted)))
            else:
                parts.append(
                    models.FieldCondition(key=field, match=models.MatchValue(value=wanted))
                )
        return models.Filter(must=parts)

    def _rows(self) -> dict[str, dict]:
        """Return {image id: {"id", "hash", "payload"}} of every point."""
        rows, offset = {}, None
        while self._there():
            points, offset = self.client.scroll(
                self.collection, limit=BLOCK, offset=offset, with_payload=True
            )
            for point in points:
                if not isinstance(point.payload, dict) or not point.payload.keys() >= ROW:
                    raise InputError(
                        f"collection {self.collection!r}: point {point.id} is not of an index; name another collection"
                    )
                rows[point.payload["id"]] = point.payload
            if offset is None:
                break
        return rows

    @property
    def ids(self) -> list[str]:
        """Return the ids of all pictures."""
        return list(self._rows())

    @property
    def hashes(self) -> list[str]:
        """Return the content hashes of all pictures."""
        return [row["hash"] for row in self._rows().values()]

    @property
    def payloads(self) -> dict[str, dict]:
        """Return the payloads that pictures have."""
        return {name: row["payload"] for name, row in self._rows().items() if row["payload"]}

    def remove(self, ids: Collection[str]) -> "QdrantIndex":
        """Remove the pictures `ids` from the collection; InputError names one that it does not hold."""
        if missing := sorted(set(ids) - set(self._rows())):
            raise InputError(
                f"image {missing[0]!r} is not in the index, nor are {len(missing) - 1} others"
            )
        self.client.delete(
            self.collection, self.models.PointIdsList(points=[point_name(name) for name in ids])
        )
        return self

    def fill(
        self,
        rows: Sequence[tuple[str, str]],
        fresh: Vectors,
        payloads: Mapping[str, dict],
        new: bool = False,
    ) -> None:
        """Make the (id, hash) rows the content of the collection; unchanged points stay as they are.

        InputError where a `new` index would replace or remove what another one has put there.
        """
        if not self._there():
            self._create()
        held, hashes = self._rows(), dict(rows)
        foreign = (
            [name for name, row in held.items() if hashes.get(name) != row["hash"]] if new else []
        )
        if foreign:
            raise InputError(
                f"collection {self.collection!r}: holds {len(foreign)} pictures of another index, the first "
                f"{foreign[0]!r}; name another collection"
            )
        wanted = {
            name: {"id": name, "hash": digest, "payload": payloads.get(name, {})}
            for name, digest in rows
        }
        changed = [row for name, row in wanted.items() if row != held.get(name)]
        at = {row["hash"]: name for name, row in held.items()}
        for start in range(0, len(changed), BLOCK):
            block = changed[start : start + BLOCK]
            kept = self._vectors([at[row["hash"]] for row in block if row["hash"] not in fresh])
            new = iter(
                shorten(
                    fresh[[row["hash"] for row in block if row["hash"] in fresh]],
                    self.facts["width"],
                )
            )
            vectors = [
                next(new) if row["hash"] in fresh else kept[at[row["hash"]]] for row in block
            ]
            points = [
                self.models.PointStruct(
                    id=point_name(row["id"]), vector=list(map(float, vector)), payload=row
                )
                for row, vector in zip(block, vectors, strict=True)
            ]
            self.client.upsert(self.collection, points)
        if gone := [name for name in held if name not in wanted]:
            self.remove(gone)

    def _create(self) -> None:
        models, dtype = self.models, self.facts["dtype"]
        params = models.VectorParams(
            size=self.facts["width"],
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16 if dtype == "float16" else models.Datatype.FLOAT32,
        )
        int8 = models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
        )
        self.client.create_collection(
            self.collection,
            vectors_config=params,
            quantization_config=int8 if dtype == "int8" else None,
        )

    def _vectors(self, names: Sequence[str]) -> dict[str, list[float]]:
        points = [point_name(name) for name in names]
        found = (
            self.client.retrieve(self.collection, points, with_payload=["id"], with_vectors=True)
            if names
            else []
        )
        return {point.payload["id"]: point.vector for point in found}

    def save(self, folder: str | Path) -> None:
        """Write index.json, which names the collection."""
        write_facts(Path(folder), self.facts | {"count": len(self)})
