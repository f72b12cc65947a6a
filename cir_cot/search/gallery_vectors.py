"""Take the embeddings of a benchmark's gallery from an index."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.images import ImageStore
from cir_cot.retriever import Retriever

from .build import open_index
from .faiss_index import Index
from .gallery_scan import hash_picture


def gallery_vectors(
    folder: str, retriever: Retriever, names: Sequence[str], images: ImageStore
) -> Tensor:
    """Return the embeddings (N, D) of `names` from an index of the same retriever.

    Args:
        folder: the index.
        retriever: must be the one that encoded it.
        names: image ids of the gallery.
        images: their store; a picture whose content has changed since is refused.

    Raises:
        InputError: the index is of another retriever, lacks a picture, holds another one under its id, or does not
            store complete vectors.
    """
    index = open_index(folder)
    try:
        index.check(retriever, folder)
        held = index.metadata
        complete = held["width"] == held["dim"] and held["dtype"] == "float32"
        if not isinstance(index, Index) or not complete:
            raise InputError(
                f"{folder}: an evaluation needs complete float32 vectors of a local index; build one without --width, "
                "--store-dtype and --kind"
            )
        # The row of each picture, by id and content.
        places = {name: row for row, name in enumerate(index.list_ids())}
        hashes = index.list_hashes()
        rows = []
        for name in names:
            row = places.get(name)
            if row is None or hash_picture(images, name) != hashes[row]:
                problem = "is not in it" if row is None else "has changed since it was encoded"
                raise InputError(f"{folder}: picture {name!r} {problem}; run cir-cot index again")
            rows.append(row)
        return torch.from_numpy(np.array(index.vectors(np.array(rows, dtype=np.int64))))
    finally:
        index.close()
