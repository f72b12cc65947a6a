"""Look again at the first K of each ranking with a reranker, and score the new rankings by the same protocol."""

import math
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from cir_cot.data.scoring import score_rankings
from cir_cot.errors import InputError
from cir_cot.prompts import text_to_cot
from cir_cot.records import Record
from cir_cot.retriever import Judge, Judgement, inference

from .evaluate import score_by_source
from .results import Result
from .uncertainty import recall_intervals


def look_again(
    result: Result, judge: Judge, first: int, model: str = "", progress: bool = False
) -> Result:
    """Reorder the first K pictures of each ranking by a reranker's scores.

    The rest of a ranking keeps its order, and so do pictures of equal score. An image set (CIRR) is judged and
    reordered as a whole. The scores of the first K become probabilities of yes; those behind stay cosines.

    Args:
        result: of the first stage, with its chains.
        judge: the reranker, a `Judge`.
        first: K; fewer where a ranking is shorter.
        model: name of the reranker, for the protocol.
        progress: show a progress bar.

    Raises:
        InputError: a picture cannot be read, or a score is not finite.
    """
    if first < 1:
        raise InputError(f"rerank {first}: look at one picture at least")
    rankings = {}
    scores = {}
    subsets = None if result.subset_rankings is None else dict(result.subset_rankings)
    records = result.benchmark.records
    pictures = 0
    tokens = 0
    started = time.perf_counter()
    with inference(judge):
        for record in tqdm(records, desc="reranking", unit=" queries", disable=not progress):
            # Judge the first K and the image set, each picture once.
            ranking = result.rankings[record.id]
            members = subsets[record.id] if subsets is not None else []
            shown = list(dict.fromkeys([*ranking[:first], *members]))
            judged = judge_query(result, judge, record, shown)
            tokens += judged.tokens
            pictures += len(shown)
            # sorted() keeps the first stage's order at ties.
            score = dict(zip(shown, judged.scores.tolist(), strict=True))
            front = sorted(ranking[:first], key=lambda name: -score[name])
            rankings[record.id] = front + ranking[first:]
            sure = torch.tensor([score[name] for name in front]).sigmoid().tolist()
            scores[record.id] = sure + result.scores[record.id][first:]
            if subsets is not None:
                subsets[record.id] = sorted(members, key=lambda name: -score[name])
    # What it cost, a query.
    count = max(len(records), 1)
    cost = {
        "first": first,
        "model": model,
        "pictures": round(pictures / count, 2),
        "tokens": round(tokens / count, 1),
        "seconds": round((time.perf_counter() - started) / count, 3),
    }
    return _scored_anew(result, rankings, scores, subsets, cost)


def judge_query(result: Result, judge: Judge, record: Record, names: list[str]) -> Judgement:
    """Judge pictures for a query of a result, with the chain that the first stage wrote."""
    reference = result.images.load(record.reference)
    candidates = [result.images.load(name) for name in names]
    chain = text_to_cot(result.explanations[record.id])
    judged = judge.judge(reference, record.text, chain, candidates)
    for name, score in zip(names, judged.scores.tolist(), strict=True):
        if not math.isfinite(score):
            raise InputError(
                f"query {record.id!r}, picture {name!r}: the reranker's score is {score}; "
                "use float32, or another checkpoint"
            )
    return judged


def _scored_anew(
    result: Result, rankings: dict, scores: dict, subsets: dict | None, cost: dict
) -> Result:
    """Return the result with new rankings, scored where the first stage's were."""
    metrics = {}
    by_source = {}
    if result.metrics:
        metrics = score_rankings(result.benchmark, rankings, subsets)
        by_source = score_by_source(result.benchmark, rankings, subsets)
    return replace(
        result,
        rankings=rankings,
        scores=scores,
        subset_rankings=subsets,
        metrics=metrics,
        intervals=recall_intervals(result.benchmark, rankings, metrics),
        by_source=by_source,
        protocol={**result.protocol, "rerank": cost, "first_stage": result.metrics},
    )
