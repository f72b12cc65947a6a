"""On scenes, where every text has a picture: does a query find what its edited chain says?"""

import random

import torch
from torch import Tensor

from cir_cot.data.scenes import render, scene_of
from cir_cot.retriever import ChainReader, inference

from .chain_quality import percent
from .counterfactuals import Asked, encode_with, swap_attribute


def arrivals(reader: ChainReader, asked: Asked, batch_size: int, seed: int) -> dict[str, float]:
    """On scenes, swap one attribute of the conclusion and add a picture of what it now says to the gallery.

    Returns:
        "queries" whose edited conclusion is a scene; of them, in percent, "arrived": the first answer is the added
        picture, and "without_edit": the same with the chain as it was.
    """
    rng = random.Random(seed)
    rows = []
    chains = []
    pictures = []
    for number, chain in enumerate(asked.chains):
        edited = swap_attribute(chain, chain, rng)
        scene = scene_of(edited.conclusion) if edited is not None else None
        if edited is not None and scene is not None:
            rows.append(number)
            chains.append(edited)
            pictures.append(render(scene, random.Random(f"{seed} {number}")))
    if not rows:
        return {"queries": 0}
    records = [asked.benchmark.records[row] for row in rows]
    vectors = encode_with(reader, asked.benchmark, records, chains, records, "", batch_size)
    with inference(reader):
        added = reader.encode_target(pictures).float().cpu()  # (K, D)
    first = [_beats_all(asked, row, *pair) for row, *pair in zip(rows, vectors, added, strict=True)]
    own = asked.vectors[rows]
    before = [_beats_all(asked, row, *pair) for row, *pair in zip(rows, own, added, strict=True)]
    return {
        "queries": len(rows),
        "arrived": round(percent(first), 2),
        "without_edit": round(percent(before), 2),
    }


def _beats_all(asked: Asked, row: int, vector: Tensor, added: Tensor) -> bool:
    """Tell whether an added picture scores above the whole gallery for a query's vector."""
    scores = asked.gallery @ vector  # (N,)
    record = asked.benchmark.records[row]
    if asked.benchmark.remove_reference and record.reference in asked.columns:
        scores[asked.columns[record.reference]] = -torch.inf
    return bool(added @ vector > scores.max())
