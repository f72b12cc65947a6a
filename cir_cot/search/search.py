"""From a checkpoint to results: a picture and a sentence in, a chain and ranked pictures out.

from cir_cot.search.search import open_search
search = open_search("runs/model", "runs/index")
print(search.one("reference.jpg", "the same in red").hits)
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from cir_cot.errors import InputError, shown
from cir_cot.evaluation.readings import ChainReader, query_encoder, query_stream
from cir_cot.heads import load_retriever
from cir_cot.images import ImageStore
from cir_cot.records import Cot, check_chain, check_text
from cir_cot.retriever import QueryOutput, Retriever, inference

from .build import open_index
from .faiss_index import Index
from .qdrant_index import QdrantIndex


@dataclass(frozen=True)
class Answer:
    """What one query found: (id, score) pairs, best first; the chain or explanation, its flag, where time went."""

    hits: list[tuple[str, float]]
    explanation: str
    flag: str
    choices: dict[str, float]
    encode_seconds: float
    search_seconds: float

    def as_dict(self) -> dict:
        """Return the answer as JSON has it."""
        hits = [{"id": name, "score": round(score, 6)} for name, score in self.hits]
        seconds = {"encode": round(self.encode_seconds, 4), "search": round(self.search_seconds, 4)}
        answer = {
            "hits": hits,
            "explanation": self.explanation,
            "flag": self.flag,
            "seconds": seconds,
        }
        return answer | ({"choices": self.choices} if self.choices else {})


def open_search(model: str | Path, index: str | Path, **options) -> "Search":
    """Open a saved retriever and an index made with it; `options` (device, dtype) go to `load_retriever`."""
    opened = open_index(index)
    retriever = load_retriever(model, **options)
    opened.check(retriever, str(index))
    return Search(retriever, opened)


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file safely -> RGB; InputError names what is wrong with it."""
    try:
        path = Path(path).resolve()
        found = path.is_file()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long a name, a circle of links, a NUL
        raise InputError(
            f"{shown(str(path))}: cannot be opened ({getattr(error, 'strerror', error)})"
        ) from error
    if not found:
        raise InputError(f"{path}: no such file")
    return ImageStore(path.parent, {path.name: path.name}).load(path.name)


class Search:
    """A retriever and an index of the same space."""

    def __init__(self, retriever: Retriever, index: Index | QdrantIndex):
        self.retriever, self.index = retriever, index

    def one(self, image: Image.Image | str | Path, text: str, k: int = 10, **options) -> Answer:
        """Answer one query, a picture or its file and a sentence; `options` as in `many`."""
        picture = image if isinstance(image, Image.Image) else open_picture(image)
        chains = {"chains": [options.pop("chain")]} if options.get("chain") is not None else {}
        return self.many([picture], [text], k, **options, **chains)[0]

    def many(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        k: int = 10,
        reading: str | None = None,
        chains: Sequence[Cot] | None = None,
        where: Mapping | None = None,
        without: Sequence[str] = (),
    ) -> list[Answer]:
        """Answer B queries in one batch.

        `reading` is one of the head's, `chains` are read instead of what the model would write, `where` filters by
        payload, and pictures `without` are left out of the hits.
        """
        started = time.perf_counter()
        with inference(self.retriever):
            output = self.encode(images, texts, reading, chains)
        return self.find(output, k, where, without, time.perf_counter() - started)

    def encode(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        reading: str | None = None,
        chains: Sequence[Cot] | None = None,
    ) -> QueryOutput:
        """Encode B queries in the way that is asked for; InputError for a text that is too long, or none."""
        for text in texts:
            check_text(text, "the text of the query")
        for chain in chains or ():
            check_chain(chain, "the chain of the query")
        if chains is None:
            return query_encoder(self.retriever, reading)(images, texts)
        if not isinstance(self.retriever, ChainReader):
            raise InputError("this retriever reads no chain; leave the chain out")
        return self.retriever.embed_with(images, texts, chains)

    def stream(
        self,
        image: Image.Image,
        text: str,
        k: int = 10,
        reading: str | None = None,
        without: Sequence[str] = (),
    ) -> Iterator[str | Answer]:
        """Yield the chain as far as it is written, as often as it grows, and at last the answer."""
        check_text(text, "the text of the query")
        started, output = time.perf_counter(), None
        with inference(self.retriever):
            for output in query_stream(self.retriever, reading)([image], [text]):
                yield output.explanations[0]
        yield self.find(output, k, None, without, time.perf_counter() - started)[0]

    def find(
        self,
        output: QueryOutput,
        k: int,
        where: Mapping | None,
        without: Sequence[str],
        seconds: float,
    ) -> list[Answer]:
        """Search with encoded queries, which took `seconds`."""
        started, left_out = time.perf_counter(), set(without)
        vectors = torch.as_tensor(output.embeddings).float().cpu()
        found = self.index.search(vectors, k + len(left_out), where) if len(vectors) else []
        spent, count = time.perf_counter() - started, max(len(found), 1)
        rows = zip(
            found,
            output.explanations,
            output.flags or [""] * len(found),
            output.routing or [{}] * len(found),
            strict=True,
        )
        return [
            Answer(
                [hit for hit in hits if hit[0] not in left_out][:k],
                words,
                flag,
                choice,
                seconds / count,
                spent / count,
            )
            for hits, words, flag, choice in rows
        ]
