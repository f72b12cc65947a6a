"""A searchable gallery on FAISS: exact by default, and then with the ranks of a float64 brute force.

`vectors.faiss` holds every vector once, as float32, float16 or int8 (FAISS's Flat, SQfp16, SQ8), whole or its first
numbers. Above a million pictures `near.faiss`, any of FAISS's approximate kinds by its factory
string, finds candidates, which the stored vectors then rank. In either case scores are dot products in float64, rounded
once, and of equal scores the picture that stands first in the gallery comes first.

An index knows a fingerprint of its retriever (three made pictures, encoded) and refuses another; an update encodes what
is new or has changed, by content. `rows` is a line for each picture, in the order of the vectors.
"""

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch

from cir_cot.errors import InputError
from cir_cot.retriever import Retriever, check_fingerprint

from .index_files import CURE, file_names, read_facts, read_rows, read_store, save_files, words_of
from .vector_store import shorten

CODE_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a stored number
DEEPER = 32  # candidates beyond k: what FAISS's float32 sums may order otherwise
BLOCK = 65536  # vectors moved at a time
TRAINING = (
    262144  # vectors that int8's ranges and approximate kinds are trained on, a seeded sample
)
BOUNDS = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


@dataclass
class Index:
    """Pictures by id and their vectors; `build`, or `load` what was built, then `search`."""

    ids: list[str]
    hashes: list[str]
    store: faiss.Index
    facts: dict
    near: faiss.Index | None = None
    payloads: dict[str, dict] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Give back what is held; nothing here, a connection in a QdrantIndex."""

    # ---- search

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 10, where: Mapping | None = None
    ) -> list[list[tuple[str, float]]]:
        """Find for each of queries (B, D) its k best pictures -> (id, score) pairs, best first; fewer if there are.

        `where` keeps pictures by their payload, see `fits`; then every one that fits is looked at, whatever the kind.
        """
        check_queries(queries, k, self.facts)
        queries = shorten(queries, self.facts["width"])
        if where is not None:
            rows = np.array(
                [
                    row
                    for row, name in enumerate(self.ids)
                    if fits(self.payloads.get(name, {}), where)
                ]
            )
            found = self._exact(queries, min(k, len(rows)), rows)
        else:
            found = (
                self._exact(queries, min(k, len(self)))
                if self.near is None
                else self._near(queries, k)
            )
        answers = []
        for query, rows in zip(queries, found, strict=True):
            scores = (self.vectors(rows).astype(np.float64) @ query.astype(np.float64)).astype(
                np.float32
            )
            order = np.lexsort((rows, -scores))[:k]
            answers.append([(self.ids[rows[n]], float(scores[n])) for n in order])
        return answers

    def _exact(
        self, queries: np.ndarray, k: int, among: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Return for each query rows that certainly hold its k best: all whose float32 score may reach the k-th."""
        # twice the bound of a float32 sum's error, for unit vectors
        slack = queries.shape[1] * 2.0**-23
        params = None if among is None else faiss.SearchParameters(sel=faiss.IDSelectorBatch(among))
        count, asked, depth = len(self) if among is None else len(among), np.arange(len(queries)), k
        found: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(queries)
        while len(asked) and k:
            depth = min(count, 4 * depth if depth > k else depth + DEEPER)
            scores, rows = self.store.search(queries[asked], depth, params=params)
            settled = (depth == count) | (scores[:, -1] < scores[:, k - 1] - slack)
            for query, row in zip(asked[settled], rows[settled], strict=True):
                found[query] = row
            asked = asked[~settled]
        return found

    def _near(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        _, rows = self.near.search(queries, min(len(self), k + DEEPER))
        return [row[row >= 0] for row in rows]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the stored vectors (n, width) of rows (n,) of the gallery."""
        codes = faiss.rev_swig_ptr(self.store.codes.data(), len(self) * self.store.code_size)
        return self.store.sa_decode(np.ascontiguousarray(codes.reshape(len(self), -1)[rows]))

    def tune(self, settings: str) -> None:
        """Set how hard an approximate kind searches, in FAISS's words: "nprobe=16", "efSearch=128"."""
        if self.near is None:
            raise InputError(
                f"{settings!r} has nothing to set: an exact index looks at every picture"
            )
        try:
            faiss.ParameterSpace().set_index_parameters(self.near, settings)
        except RuntimeError as error:
            raise InputError(
                f"{settings!r} is no setting of {self.facts['kind']!r} ({words_of(error)})"
            ) from None
        self.facts["tuned"] = settings

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever that encodes pictures otherwise than the one the gallery was encoded with."""
        check_fingerprint(self.facts["probe"], retriever, where)

    # ---- changes

    def remove(self, ids: Collection[str]) -> "Index":
        """Return the index without the pictures `ids`, to be saved; InputError names one that it does not hold."""
        gone = set(ids)
        if missing := sorted(gone - set(self.ids)):
            raise InputError(
                f"image {missing[0]!r} is not in the index, nor are {len(missing) - 1} others"
            )
        rows = [row for row, name in enumerate(self.ids) if name not in gone]
        store = emptied(self.store)
        for at in range(0, len(rows), BLOCK):
            store.add(self.vectors(np.array(rows[at : at + BLOCK])))
        payloads = {name: value for name, value in self.payloads.items() if name not in gone}
        return assemble(
            [(self.ids[row], self.hashes[row]) for row in rows], store, self.facts, payloads
        )

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write the index; readers see the old one or the whole new one, and the old one's files go."""
        rows = (
            {"id": name, "hash": digest}
            | ({"payload": self.payloads[name]} if name in self.payloads else {})
            for name, digest in zip(self.ids, self.hashes, strict=True)
        )
        stores = {"vectors": self.store} | ({} if self.near is None else {"near": self.near})
        self.facts = save_files(Path(folder), self.facts | {"count": len(self)}, rows, stores)

    @classmethod
    def load(cls, folder: str | Path) -> "Index":
        """Load what `save` wrote; InputError when there is none, or files of it are missing or damaged."""
        facts = read_facts(Path(folder))
        try:
            return cls._load(Path(folder), facts)
        except InputError:
            # A writer may have changed the state and removed the old files since.
            if read_facts(Path(folder)).get("number") == facts.get("number"):
                raise
        return cls.load(folder)

    @classmethod
    def _load(cls, folder: Path, facts: dict) -> "Index":
        # Read what the digests vouch for, or what an earlier version wrote.
        count, width, digests = facts["count"], facts["width"], facts.get("digests") or {}
        paths = {part: folder / name for part, name in file_names(facts.get("number", 0)).items()}
        rows = list(read_rows(paths["rows"], digests.get("rows")))
        index = cls(
            ids=[row["id"] for row in rows],
            hashes=[row["hash"] for row in rows],
            store=read_store(paths["vectors"], digests.get("vectors"), width, count),
            facts=facts,
            payloads={row["id"]: row["payload"] for row in rows if "payload" in row},
        )
        if facts["kind"] != "exact":
            index.near = read_store(paths["near"], digests.get("near"), width, count)
        # Check that the files belong together.
        if len(rows) != count or len(set(index.ids)) != count:
            raise InputError(
                f"{paths['rows']}: {len(set(index.ids))} pictures, not {count}, so it is damaged; {CURE}"
            )
        if getattr(index.store, "code_size", None) != width * CODE_BYTES[facts["dtype"]]:
            raise InputError(
                f"{paths['vectors']}: not stored as {facts['dtype']}, so it is damaged; {CURE}"
            )
        for at in range(0, count, BLOCK):
            if not np.isfinite(index.vectors(np.arange(at, min(at + BLOCK, count)))).all():
                raise InputError(
                    f"{paths['vectors']}: holds a number that is not finite, so it is damaged; {CURE}"
                )
        if facts.get("tuned"):
            index.tune(facts["tuned"])
        return index


def check_queries(queries: torch.Tensor | np.ndarray, k: int, facts: dict) -> None:
    """Refuse a k below 1 and vectors of another length than the index's."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least one picture")
    if queries.shape[1] != facts["dim"]:
        raise InputError(
            f"queries of {queries.shape[1]} numbers, the index holds {facts['dim']}; use its retriever"
        )


def fits(payload: Mapping, where: Mapping) -> bool:
    """Tell whether a payload has all that `where` asks for: key -> value, list of values, or bounds {"lt": 50}."""
    for key, wanted in where.items():
        value = payload.get(key)
        if isinstance(wanted, Mapping):
            if not isinstance(value, (int, float)) or not all(
                BOUNDS[name](value, it) for name, it in wanted.items()
            ):
                return False
        elif value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def check_where(where: object) -> dict:
    """Return a payload filter; InputError if it is none."""
    if not isinstance(where, dict):
        raise InputError(
            f'a filter is an object like {{"category": "dress", "price": {{"lt": 50}}}}, not {where!r}'
        )
    for key, wanted in where.items():
        for name, bound in wanted.items() if isinstance(wanted, dict) else ():
            if name not in BOUNDS or not isinstance(bound, (int, float)):
                raise InputError(
                    f"filter {key!r}: {name!r}: {bound!r} is no bound; {', '.join(BOUNDS)} with a number are"
                )
    return where


def emptied(store: faiss.Index) -> faiss.Index:
    """Return an empty store of the same kind, with int8's ranges, so that what is stored again stays as it is."""
    store = faiss.clone_index(store)
    store.reset()
    return store


def assemble(
    rows: Sequence[tuple[str, str]], store: faiss.Index, facts: dict, payloads: Mapping[str, dict]
) -> Index:
    """Return an index of (id, hash) rows and their stored vectors; an approximate kind is trained and filled here."""
    index = Index(
        [name for name, _ in rows],
        [digest for _, digest in rows],
        store,
        dict(facts),
        None,
        dict(payloads),
    )
    if facts["kind"] != "exact":
        try:
            near = faiss.index_factory(facts["width"], facts["kind"], faiss.METRIC_INNER_PRODUCT)
            near.train(index.vectors(sample(len(rows))))
        except RuntimeError as error:
            raise InputError(
                f"{facts['kind']!r} cannot be made of {len(rows)} pictures ({words_of(error)})"
            ) from None
        for at in range(0, len(rows), BLOCK):
            near.add(index.vectors(np.arange(at, min(at + BLOCK, len(rows)))))
        index.near = near
        if facts.get("tuned"):
            index.tune(facts["tuned"])
    return index


def sample(count: int) -> np.ndarray:
    """Return at most TRAINING of `count` rows, drawn with a fixed seed, in order."""
    if count <= TRAINING:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, TRAINING, replace=False))
