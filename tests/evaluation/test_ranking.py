"""Rankings of embeddings by the rules of a benchmark: who is ranked, how ties are decided, block by block."""

import pytest
import torch

from cir_cot.data.benchmark import Benchmark
from cir_cot.evaluation import ranking
from cir_cot.evaluation.ranking import rank, relevant_images
from cir_cot.records import Record


def benchmark(records, gallery, remove_reference=True, **more) -> Benchmark:
    return Benchmark(
        "cirr",
        "val",
        None,
        records,
        list(gallery),
        (1,),
        remove_reference,
        {},
        lambda: None,
        **more,
    )


def record(query, targets, subset=(), reference="r") -> Record:
    return Record(query, reference, "text", tuple(targets), None, tuple(subset), "")


SAME = torch.ones(5, 1)  # of which every query is as near to each picture as to any other


def test_among_equals_the_most_valued_answer_comes_last_and_one_of_no_value_counts_as_wrong():
    graded = {"1": {"a": 0.0, "b": 1.0, "c": 0.5}}
    rows = [record("1", "b", "rabcd"), record("2", "da")]
    found, scores, subsets = rank(benchmark(rows, "rabcd", weights=graded), torch.ones(2, 1), SAME)
    assert found == {"1": list("adcb"), "2": list("bcad")}
    assert scores == {"1": [1.0] * 4, "2": [1.0] * 4}
    assert subsets == {"1": list("adcb"), "2": []}
    assert relevant_images(benchmark(rows, "rabcd", weights=graded), rows[0]) == ["b", "c"]


def test_the_reference_is_ranked_where_the_protocol_keeps_it():
    rows = [record("1", "a", "rab")]
    vectors = torch.tensor([[1.0, 0], [0.5, 0.5], [0, 1], [0.2, 0.8], [0.1, 0.9]])
    kept, _, within = rank(benchmark(rows, "rabcd", False), vectors[:1], vectors)
    removed, _, without = rank(benchmark(rows, "rabcd", True), vectors[:1], vectors)
    assert (kept, removed) == ({"1": list("racdb")}, {"1": list("acdb")})
    assert (within, without) == ({"1": list("rab")}, {"1": list("ab")})


@pytest.mark.parametrize("block", [1, 2, 3, 256])
def test_every_query_is_ranked_by_its_own_embedding_whatever_the_block(block, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK", block)
    names = [f"p{number}" for number in range(7)]
    rows = [record(str(number), [name], reference="none") for number, name in enumerate(names)]
    found, scores, subsets = rank(benchmark(rows, names), torch.eye(7), torch.eye(7), top=1)
    assert found == {str(number): [name] for number, name in enumerate(names)}
    assert scores == {str(number): [1.0] for number in range(7)}
    assert subsets is None
