"""A searchable gallery on FAISS: exact by default, and then with the ranks of a float64 brute force.

`vectors.faiss` holds every vector once, as float32, float16 or int8 (FAISS's Flat, SQfp16, SQ8), whole or its first
numbers. Above a million pictures `near.faiss`, any of FAISS's approximate kinds by its factory
string, finds candidates, which the stored vectors then rank. In either case scores are dot products in float64, rounded
once, and of equal scores the picture that stands first in the gallery comes first.

An index knows a fingerprint of its retriever (three made pictures, encoded) and refuses another; an update encodes what
is new or has changed, by content. `rows` is a line for each picture, in the order of the vectors. Files of a new state
are written beside the old ones and `index.json` changes over last.
"""

import json
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch

from .encoding import check_probe, shorten
from .provenance import git_state, package_versions
from .records import InputError, read_json, read_jsonl, write_text_atomic
from .retriever import Retriever

FORMAT = 1
STORES = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}
DEEPER = 32  # candidates beyond k: what FAISS's float32 sums may order otherwise
BLOCK = 65536  # vectors moved at a time
TRAINING = 262144  # vectors that int8's ranges and approximate kinds are trained on, a seeded sample
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
            rows = np.array([row for row, name in enumerate(self.ids) if fits(self.payloads.get(name, {}), where)])
            found = self._exact(queries, min(k, len(rows)), rows)
        else:
            found = self._exact(queries, min(k, len(self))) if self.near is None else self._near(queries, k)
        answers = []
        for query, rows in zip(queries, found, strict=True):
            scores = (self.vectors(rows).astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
            order = np.lexsort((rows, -scores))[:k]
            answers.append([(self.ids[rows[n]], float(scores[n])) for n in order])
        return answers

    def _exact(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> list[np.ndarray]:
        """Return for each query rows that certainly hold its k best: all whose float32 score may reach the k-th."""
        slack = queries.shape[1] * 2.0**-23  # twice the bound of a float32 sum's error, for unit vectors
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
            raise InputError(f"{settings!r} has nothing to set: an exact index looks at every picture")
        try:
            faiss.ParameterSpace().set_index_parameters(self.near, settings)
        except RuntimeError as error:
            raise InputError(f"{settings!r} is no setting of {self.facts['kind']!r} ({words_of(error)})") from None
        self.facts["tuned"] = settings

    def check(self, retriever: Retriever, where: str = "the index") -> None:
        """Refuse a retriever that encodes pictures otherwise than the one the gallery was encoded with."""
        check_probe(self.facts["probe"], retriever, where)

    # ---- changes

    def remove(self, ids: Collection[str]) -> "Index":
        """Return the index without the pictures `ids`, to be saved; InputError names one that it does not hold."""
        gone = set(ids)
        if missing := sorted(gone - set(self.ids)):
            raise InputError(f"image {missing[0]!r} is not in the index, nor are {len(missing) - 1} others")
        rows = [row for row, name in enumerate(self.ids) if name not in gone]
        store = emptied(self.store)
        for at in range(0, len(rows), BLOCK):
            store.add(self.vectors(np.array(rows[at : at + BLOCK])))
        payloads = {name: value for name, value in self.payloads.items() if name not in gone}
        return assemble([(self.ids[row], self.hashes[row]) for row in rows], store, self.facts, payloads)

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write the index; readers see the old one or the whole new one, and the old one's files go."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name.split(".")[1]) for path in folder.glob("rows.*.jsonl")), default=0)
        rows = [
            {"id": name, "hash": digest} | ({"payload": self.payloads[name]} if name in self.payloads else {})
            for name, digest in zip(self.ids, self.hashes, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text_atomic(folder / f"rows.{number}.jsonl", lines)
        faiss.write_index(self.store, str(folder / f"vectors.{number}.faiss"))
        if self.near is not None:
            faiss.write_index(self.near, str(folder / f"near.{number}.faiss"))
        self.facts |= {"number": number, "count": len(self)}
        write_facts(folder, self.facts)
        for path in folder.glob("*.*.*"):
            if path.suffix in (".faiss", ".jsonl") and path.name.split(".")[1] != str(number):
                path.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> "Index":
        """Load what `save` wrote; InputError when there is none, or files of it are missing."""
        folder = Path(folder)
        facts = read_facts(folder)
        number = facts["number"]
        rows = [row for _, row in read_jsonl(folder / f"rows.{number}.jsonl")]
        index = cls(
            ids=[row["id"] for row in rows],
            hashes=[row["hash"] for row in rows],
            store=_read(folder / f"vectors.{number}.faiss"),
            facts=facts,
            near=None if facts["kind"] == "exact" else _read(folder / f"near.{number}.faiss"),
            payloads={row["id"]: row["payload"] for row in rows if "payload" in row},
        )
        if index.store.ntotal != len(rows) or facts["count"] != len(rows):
            raise InputError(f"{folder}: {len(rows)} rows and {index.store.ntotal} vectors; encode the gallery again")
        if facts.get("tuned"):
            index.tune(facts["tuned"])
        return index


def write_facts(folder: Path, facts: dict) -> None:
    """Write index.json: what the index holds, of which retriever, made by which code."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, **facts, "git": git_state(), "versions": package_versions()}
    write_text_atomic(folder / "index.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def read_facts(folder: Path) -> dict:
    """Return index.json of a folder; InputError when it is no index or one of another version."""
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"{folder}: no index.json here; make an index with cir-cot index --out {folder}")
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{path}: not an index of format {FORMAT}; encode the gallery again")
    return facts


def _read(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({words_of(error)}); encode the gallery again") from None


def words_of(error: RuntimeError) -> str:
    """Return the end of what FAISS says of an error, without its place in FAISS's source."""
    return str(error).strip().split("\n")[0][-120:]


def check_queries(queries: torch.Tensor | np.ndarray, k: int, facts: dict) -> None:
    """Refuse a k below 1 and vectors of another length than the index's."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least one picture")
    if queries.shape[1] != facts["dim"]:
        raise InputError(f"queries of {queries.shape[1]} numbers, the index holds {facts['dim']}; use its retriever")


def fits(payload: Mapping, where: Mapping) -> bool:
    """Tell whether a payload has all that `where` asks for: key -> value, list of values, or bounds {"lt": 50}."""
    for key, wanted in where.items():
        value = payload.get(key)
        if isinstance(wanted, Mapping):
            if not isinstance(value, (int, float)) or not all(BOUNDS[name](value, it) for name, it in wanted.items()):
                return False
        elif value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def check_where(where: object) -> dict:
    """Return a payload filter; InputError if it is none."""
    if not isinstance(where, dict):
        raise InputError(f'a filter is an object like {{"category": "dress", "price": {{"lt": 50}}}}, not {where!r}')
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


def assemble(rows: Sequence[tuple[str, str]], store: faiss.Index, facts: dict, payloads: Mapping[str, dict]) -> Index:
    """Return an index of (id, hash) rows and their stored vectors; an approximate kind is trained and filled here."""
    index = Index([name for name, _ in rows], [digest for _, digest in rows], store, dict(facts), None, dict(payloads))
    if facts["kind"] != "exact":
        try:
            near = faiss.index_factory(facts["width"], facts["kind"], faiss.METRIC_INNER_PRODUCT)
            near.train(index.vectors(sample(len(rows))))
        except RuntimeError as error:
            raise InputError(f"{facts['kind']!r} cannot be made of {len(rows)} pictures ({words_of(error)})") from None
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
