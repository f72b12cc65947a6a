"""Search a gallery in a Qdrant collection: for galleries larger than one machine, or shared by many users.

The kind of such an index is "qdrant:<server or folder>#<collection>": the address of a server, or a folder in which
qdrant-client keeps a small collection itself, for tests and trials. The server's key is read from QDRANT_API_KEY. A
point holds the picture's id, its content hash and its payload; Qdrant filters by payload while it searches.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch

from cir_cot.errors import InputError
from cir_cot.fingerprint import check_identity
from cir_cot.retriever import Retriever

from .gallery_index import Hit, Rows, check_held, check_queries
from .index_files import Metadata, read_metadata, write_metadata
from .qdrant_address import address, connect, point_id
from .vector_store import Vectors, truncate_dims

if TYPE_CHECKING:
    from qdrant_client import models

ROW = {"id", "hash", "payload"}  # what a point of an index holds
BLOCK = 512  # points sent or fetched at a time


class QdrantIndex:
    """A gallery in a collection; see `GalleryIndex` for what the methods mean.

    Nothing of the collection is held in memory: `list_ids`, `list_hashes`, `list_payloads`, `remove` and `update`
    read every point of it, BLOCK points at a time.
    """

    def __init__(self, metadata: Metadata):
        place, self.collection = address(metadata["kind"])
        self.client = connect(place, self.collection)
        # An optional package, so it is imported here: `connect` has reported if it is missing.
        from qdrant_client import models

        self.metadata = metadata
        self.models = models

    def close(self) -> None:
        """Close the connection to the server, or release the folder's lock."""
        self.client.close()

    def __len__(self) -> int:
        if not self._exists():
            return 0
        return self.client.count(self.collection, exact=True).count

    def _exists(self) -> bool:
        return self.client.collection_exists(self.collection)

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever other than the one that encoded the gallery."""
        check_identity(self.metadata, retriever, where)

    # ---- search

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 10, where: Mapping | None = None
    ) -> list[list[Hit]]:
        """Return the k best pictures for each of queries (B, D), best first, of those that match `where`."""
        check_queries(queries, k, self.metadata)
        # Qdrant filters while it searches, so k results are found where k pictures match.
        condition = None if where is None else self._condition(where)
        # One request for each query: results come back in the order of the queries.
        answers = []
        for query in truncate_dims(queries, self.metadata["width"]):
            found = self.client.query_points(
                self.collection,
                query=query.tolist(),
                limit=k,
                query_filter=condition,
                with_payload=["id"],
            )
            answers.append([(cast(dict, hit.payload)["id"], hit.score) for hit in found.points])
        return answers

    def _condition(self, where: Mapping) -> "models.Filter":
        """Translate a payload filter into Qdrant's."""
        models = self.models
        conditions: list[Any] = []
        for key, wanted in where.items():
            name = f"payload.{key}"  # payloads are stored below the key of their own
            if isinstance(wanted, Mapping):
                condition = models.FieldCondition(key=name, range=models.Range(**wanted))
            elif isinstance(wanted, list):
                condition = models.FieldCondition(key=name, match=models.MatchAny(any=wanted))
            else:
                condition = models.FieldCondition(key=name, match=models.MatchValue(value=wanted))
            conditions.append(condition)
        return models.Filter(must=conditions)

    def tune(self, settings: str) -> None:
        """Refuse: how a collection searches is set on its server."""
        raise InputError(
            f"{settings!r} is a setting of FAISS; a Qdrant collection is tuned on its server"
        )

    # ---- reading every point

    def _read_points(self) -> dict[str, dict[str, Any]]:
        """Read {image id: {"id", "hash", "payload"}} of every point; InputError at a point of no index."""
        rows: dict[str, dict[str, Any]] = {}
        # Scroll through the collection; the last page has no next offset.
        offset = None
        while self._exists():
            points, offset = self.client.scroll(
                self.collection, limit=BLOCK, offset=offset, with_payload=True
            )
            for point in points:
                # Somebody else's points may be in a collection of the same name.
                if not isinstance(point.payload, dict) or not point.payload.keys() >= ROW:
                    raise InputError(
                        f"collection {self.collection!r}: point {point.id} is not of an index; "
                        "name another collection"
                    )
                rows[point.payload["id"]] = point.payload
            if offset is None:
                break
        return rows

    def list_ids(self) -> list[str]:
        """Read the ids of all pictures."""
        return list(self._read_points())

    def list_hashes(self) -> list[str]:
        """Read the content hashes of all pictures."""
        return [row["hash"] for row in self._read_points().values()]

    def ids_of(self, digest: str) -> list[str]:
        """Find the ids of the pictures of a content hash."""
        match = self.models.MatchValue(value=digest)
        same = self.models.Filter(must=[self.models.FieldCondition(key="hash", match=match)])
        points, _ = self.client.scroll(
            self.collection, scroll_filter=same, limit=BLOCK, with_payload=["id"]
        )
        return [cast(dict, point.payload)["id"] for point in points]

    def list_payloads(self) -> dict[str, dict]:
        """Read the payloads of the pictures that have one."""
        return {name: row["payload"] for name, row in self._read_points().items() if row["payload"]}

    # ---- making and changing

    @staticmethod
    def check_settings(metadata: Metadata) -> None:
        """Refuse a kind that is no address of a collection."""
        address(metadata["kind"])

    @classmethod
    def create(
        cls, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Make the pictures `rows` the content of a collection, which may hold a part of them already.

        Raises:
            InputError: the collection holds pictures of another index, which would be replaced or removed.
        """
        index = cls(metadata)
        if not index._exists():
            index._create_collection()
        # Refuse to replace or remove another index's pictures; points of an interrupted run may stay.
        held = index._read_points()
        hashes = dict(rows)
        foreign = [name for name, row in held.items() if hashes.get(name) != row["hash"]]
        if foreign:
            raise InputError(
                f"collection {index.collection!r}: holds {len(foreign)} pictures of another index, "
                f"the first {foreign[0]!r}; name another collection"
            )
        index._fill(rows, fresh, payloads, held)
        return index

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open the collection that index.json of a folder names."""
        return cls(read_metadata(Path(folder)))

    def update(
        self, rows: Rows, fresh: Vectors, payloads: Mapping[str, dict], metadata: Metadata
    ) -> Self:
        """Make the pictures `rows` the content of the collection; unchanged points stay as they are."""
        self.metadata = metadata
        # The collection may have been deleted on the server since.
        if not self._exists():
            self._create_collection()
        self._fill(rows, fresh, payloads, self._read_points())
        return self

    def remove(self, ids: Collection[str]) -> Self:
        """Remove the pictures `ids` from the collection; InputError names one that it does not hold."""
        check_held(ids, self._read_points())
        self._delete(ids)
        return self

    def _fill(
        self,
        rows: Rows,
        fresh: Vectors,
        payloads: Mapping[str, dict],
        held: Mapping[str, dict[str, Any]],
    ) -> None:
        """Store what differs between the pictures `rows` and the points `held`; remove the others."""
        # Find the points whose id, hash or payload is new.
        wanted: dict[str, dict[str, Any]] = {}
        for name, digest in rows:
            wanted[name] = {"id": name, "hash": digest, "payload": payloads.get(name, {})}
        changed = [row for name, row in wanted.items() if row != held.get(name)]
        # Send them a block at a time; a renamed picture's vector is taken from its old point.
        names = {row["hash"]: name for name, row in held.items()}
        for start in range(0, len(changed), BLOCK):
            block = changed[start : start + BLOCK]
            # Vectors of the block, then its points.
            vectors = self._vectors([row["hash"] for row in block], fresh, names)
            points = []
            for row in block:
                vector = vectors[row["hash"]]
                points.append(
                    self.models.PointStruct(id=point_id(row["id"]), vector=vector, payload=row)
                )
            self.client.upsert(self.collection, points)
        # Remove the pictures that left the gallery.
        gone = [name for name in held if name not in wanted]
        if gone:
            self._delete(gone)

    def _vectors(
        self, hashes: Sequence[str], fresh: Vectors, names: Mapping[str, str]
    ) -> dict[str, list[float]]:
        """Return {content hash: vector (width,)}: fresh ones, else those of the stored pictures `names`."""
        # Fresh vectors are truncated here; stored ones already are.
        new = [digest for digest in hashes if digest in fresh]
        truncated = truncate_dims(fresh[new], self.metadata["width"])  # (n, width)
        vectors = dict(zip(new, truncated.tolist(), strict=True))
        stored = self._read_vectors([names[digest] for digest in hashes if digest not in vectors])
        return vectors | stored

    def _read_vectors(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Read {content hash: stored vector (width,)} of the pictures `names`."""
        if not names:
            return {}
        found = self.client.retrieve(
            self.collection,
            [point_id(name) for name in names],
            with_payload=["hash"],
            with_vectors=True,
        )
        # Points come back in any order; the hash says whose vector it is.
        vectors: dict[str, list[float]] = {}
        for point in found:
            vectors[cast(dict, point.payload)["hash"]] = cast(list[float], point.vector)
        return vectors

    def _delete(self, ids: Collection[str]) -> None:
        """Delete the points of the pictures `ids`."""
        points = self.models.PointIdsList(points=[point_id(name) for name in ids])
        self.client.delete(self.collection, points)

    def _create_collection(self) -> None:
        """Create the collection, for vectors of the width and dtype of the metadata."""
        models = self.models
        dtype = self.metadata["dtype"]
        half = dtype == "float16"
        # Unit vectors: the dot product is the cosine.
        params = models.VectorParams(
            size=self.metadata["width"],
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16 if half else models.Datatype.FLOAT32,
        )
        # int8 is a quantised copy that is searched; the vectors stay beside it.
        quantization = None
        if dtype == "int8":
            quantization = models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
            )
        self.client.create_collection(
            self.collection, vectors_config=params, quantization_config=quantization
        )

    def save(self, folder: str | Path) -> None:
        """Write index.json, which names the collection."""
        write_metadata(Path(folder), self.metadata | {"count": len(self)})
