"""Search an index with a picture and a sentence.

from cir_cot.search.search import open_search
search = open_search("runs/model", "runs/index")
print(search.one("reference.jpg", "the same in red").hits)
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cir_cot.errors import InputError, shown
from cir_cot.evaluation.readings import query_encoder, query_stream
from cir_cot.heads import load_retriever
from cir_cot.images import ImageStore, list_pictures
from cir_cot.inputs import open_picture
from cir_cot.records import Cot, check_chain, check_text
from cir_cot.retriever import ChainReader, QueryOutput, Retriever, inference

from .answer import Answer
from .build import build, open_index
from .faiss_index import Index
from .gallery_index import GalleryIndex
from .index_files import read_metadata
from .reference import copies_of, digest_of
from .second_look import SecondLook


def open_search(model: str | Path, index: str | Path, **options: Any) -> "Search":
    """Open a saved retriever and an index made with it.

    Args:
        model: folder of the retriever.
        index: folder of the index.
        **options: device and dtype of the model, see `load_retriever`.
    """
    # Open the index first: it is quicker to fail than a model.
    opened = open_index(index)
    retriever = load_retriever(model, **options)
    # An index of another retriever would return arbitrary pictures.
    opened.check(retriever, str(index))
    return Search(retriever, opened, Path(index))


class Search:
    """Search a gallery with a retriever and an index of the same embedding space.

    Example:
        search = Search(retriever, open_index("runs/index"))
        answer = search.one("shirt.jpg", "the same with long sleeves", k=5)
        answer.hits  # [("shirt-017", 0.83), …]
    """

    def __init__(self, retriever: Retriever, index: GalleryIndex, folder: Path | None = None):
        self.retriever = retriever
        self.index = index
        self.folder = folder  # from which `refresh` opens the index again
        self.again: SecondLook | None = None  # looks again at the first hits of `one` and `many`
        self._pictures: ImageStore | None = None

    @classmethod
    def from_images(
        cls,
        retriever: Retriever,
        paths: Sequence[str | Path],
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> "Search":
        """Encode picture files and search them, without a folder for an index; ids are the paths as given.

        Args:
            retriever: encodes the pictures.
            paths: files, of any folders.
            batch_size: pictures encoded at a time.
            show_progress: show a bar.

        Raises:
            InputError: there is no path, a file is missing, or none is a readable picture.

        Example:
            Search.from_images(retriever, Path("photos").glob("*.jpg")).one("photos/a.jpg", "in red").hits
        """
        files = {str(path): Path(path).resolve() for path in paths}
        if not files:
            raise InputError("no picture to search: give at least one path")
        for name, file in files.items():
            if not file.is_file():
                raise InputError(f"{shown(name)}: no such file")
        # One root that all lie below.
        root = Path(os.path.commonpath([file.parent for file in files.values()]))
        images = ImageStore(
            root, {name: str(file.relative_to(root)) for name, file in files.items()}
        )
        # The index is built as any other, and stays in memory.
        with tempfile.TemporaryDirectory() as folder:
            build(
                retriever,
                images,
                list(files),
                folder,
                batch_size=batch_size,
                progress=show_progress,
            )
            search = cls(retriever, open_index(folder))
        search._pictures = images
        return search

    def refresh(self) -> bool:
        """Open the index again if it has been saved anew since -> whether it was.

        A Qdrant collection is always read as it is, but for the ids that `index.json` was saved with.

        Raises:
            InputError: what is in the folder now is damaged, or an index of another retriever.
        """
        if self.folder is None or not isinstance(self.index, Index):
            return False
        if read_metadata(self.folder) == self.index.metadata:
            return False
        opened = open_index(self.folder)
        opened.check(self.retriever, str(self.folder))
        self.index = opened
        self._pictures = None
        return True

    def path(self, name: str) -> Path:
        """Return the file of a picture in the gallery, such as that of a hit; InputError when it is not there."""
        if self._pictures is None:
            self._pictures = list_pictures(self.index.metadata["images"])
        return self._pictures.path(name)

    def one(
        self,
        image: Image.Image | str | Path,
        text: str,
        k: int = 10,
        reading: str | None = None,
        chain: Cot | None = None,
        where: Mapping | None = None,
        without: Sequence[str] = (),
        keep_reference: bool = False,
    ) -> Answer:
        """Answer one query: a picture or its file, and a sentence. The other arguments are those of `many`."""
        picture = image if isinstance(image, Image.Image) else open_picture(image)
        references = [] if keep_reference else [digest_of(image)]
        # A batch of one.
        chains = None if chain is None else [chain]
        return self.many([picture], [text], k, reading, chains, where, without, references)[0]

    def many(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        k: int = 10,
        reading: str | None = None,
        chains: Sequence[Cot] | None = None,
        where: Mapping | None = None,
        without: Sequence[str] = (),
        references: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Answer B queries in one batch.

        Args:
            images: B reference pictures.
            texts: B modification texts.
            k: how many pictures to find for each.
            reading: one of the head's readings; None for its default.
            chains: B chains to encode instead of the ones that the model would write.
            where: a filter of payloads.
            without: image ids to leave out of the hits.
            references: digests of the references' files, "" for none: pictures of the same content are no hits.
                By default those of pictures as `PIL.Image.open` returns them; () leaves none out.

        Raises:
            InputError: a text is too long, or this retriever lacks the reading or encodes no chains.
        """
        if references is None:
            references = [digest_of(image) for image in images]
        # Encode, measuring the time that it takes, then search.
        started = time.perf_counter()
        with inference(self.retriever):
            output = self.encode(images, texts, reading, chains)
        seconds = time.perf_counter() - started
        if self.again is None:
            return self.find(output, k, where, without, seconds, references)
        # Look again, at hits beyond k too.
        first = max(k, self.again.first)
        answers = self.find(output, first, where, without, seconds, references)
        looked = []
        for image, text, answer in zip(images, texts, answers, strict=True):
            hits, cost = self.again(image, text, answer.explanation, answer.hits)
            looked.append(replace(answer, hits=hits[:k], rerank=cost))
        return looked

    def encode(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        reading: str | None = None,
        chains: Sequence[Cot] | None = None,
    ) -> QueryOutput:
        """Check and encode B queries; the arguments are those of `many`."""
        # Texts come from users: refuse long ones and control characters before they are encoded.
        for text in texts:
            check_text(text, "the text of the query")
        for chain in chains or ():
            check_chain(chain, "the chain of the query")
        # Encode with the model's own chains, or with the given ones.
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
        where: Mapping | None = None,
        without: Sequence[str] = (),
        reference: str | None = None,
    ) -> Iterator[str | Answer]:
        """Yield the chain whenever it has grown, and finally the answer; `reference` is one of `many`'s."""
        # Nothing of a refused text is yielded.
        check_text(text, "the text of the query")
        started = time.perf_counter()
        output = None
        # Every output holds the chain so far; the last one also the embedding.
        with inference(self.retriever):
            for output in query_stream(self.retriever, reading)([image], [text]):
                yield output.explanations[0]
        assert output is not None, "a stream yields at least the complete chain"
        references = [digest_of(image) if reference is None else reference]
        seconds = time.perf_counter() - started
        yield self.find(output, k, where, without, seconds, references)[0]

    def find(
        self,
        output: QueryOutput,
        k: int,
        where: Mapping | None,
        without: Sequence[str],
        seconds: float,
        references: Sequence[str] = (),
    ) -> list[Answer]:
        """Search with B encoded queries; encoding them took `seconds`."""
        # Search deeper by the number of pictures that may be left out.
        started = time.perf_counter()
        vectors = torch.as_tensor(output.embeddings).float().cpu()  # (B, D)
        copies = copies_of(self.index, references or [""] * len(vectors))
        left_out = [same.union(without) for same in copies]
        deeper = max(map(len, left_out), default=0)
        found = self.index.search(vectors, k + deeper, where) if len(vectors) else []
        spent = time.perf_counter() - started
        # Put each query's hits, chain and times together.
        count = max(len(found), 1)
        agreements: list[float | None] = [*output.agreement] or [None] * len(found)
        rows = zip(
            found,
            left_out,
            output.explanations,
            output.flags or [""] * len(found),
            output.routing or [{}] * len(found),
            agreements,
            vectors,
            strict=True,
        )
        answers = []
        for hits, gone, explanation, flag, routing, agreement, vector in rows:
            kept = [hit for hit in hits if hit[0] not in gone][:k]
            times = (seconds / count, spent / count)
            facts = (explanation, flag, routing, *times, agreement)
            answers.append(Answer(kept, *facts, vector=vector, path_of=self.path))
        return answers
