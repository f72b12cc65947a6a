"""mteb's tasks of the official protocols give the very numbers of `evaluate`, and rank what the protocol has."""

import json

import pytest
import torch
from number_benchmarks import Numbers, circo, cirr, fashioniq
from toy_retriever import Constant, Plain, Toy

from cir_cot.data import load_benchmark
from cir_cot.data.scoring import mean_of_categories
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("default")  # mteb's and sentence-transformers' own
mteb = pytest.importorskip(
    "mteb", minversion="2.26", reason="needs mteb >= 2.26: pip install 'cir-cot[mteb]'"
)

from mteb.types import PromptType  # noqa: E402

from cir_cot.integrations.mteb_tasks import (  # noqa: E402
    CircoVal,
    CirEncoder,
    CirrVal,
    FashionIQVal,
    columns,
    unit,
)

TASKS = {"cirr": CirrVal, "fashioniq": FashionIQVal, "circo": CircoVal}
WRITE = {"cirr": cirr, "fashioniq": fashioniq, "circo": circo}


def run(encoder, task, **options):
    """mteb's result of one task, nothing cached: {category or "default": scores}, and the task's score."""
    found = mteb.evaluate(
        encoder, task, cache=None, co2_tracker=False, show_progress_bar=False, **options
    )
    (result,) = found.task_results
    return {row["hf_subset"]: row for row in result.scores["val"]}, result.get_score()


def ours(retriever, name, root, **options):
    """What `evaluate` gives: {category or "default": metrics in percent}."""
    benchmarks = load_benchmark(name, root, "val")
    return {
        b.category or "default": evaluate(retriever, b, b.images(), **options).metrics
        for b in benchmarks
    }


def same(found, metrics):
    flat = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    flat |= {
        f"semantic_mAP@10 {aspect}": value
        for aspect, value in metrics.get("semantic_mAP@10", {}).items()
    }
    assert {name: found[name] for name in flat} == {
        name: value / 100 for name, value in flat.items()
    }
    assert set(found) - set(flat) <= {"Avg", "main_score", "hf_subset", "languages", "mteb_version"}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("retriever", [Numbers(), Constant()], ids=["numbers", "constant"])
def test_numbers_are_those_of_evaluate(name, retriever, tmp_path):
    WRITE[name](tmp_path)
    found, score = run(
        CirEncoder(retriever), TASKS[name](tmp_path), encode_kwargs={"batch_size": 7}
    )
    expected = ours(retriever, name, tmp_path)
    assert found.keys() == expected.keys()
    for category, metrics in expected.items():
        same(found[category], metrics)
    if name == "fashioniq":
        assert score == pytest.approx(mean_of_categories(expected)["average"]["Avg"] / 100)
    else:
        assert score == expected["default"]["Avg" if name == "cirr" else "mAP@5"] / 100
    if isinstance(retriever, Constant):
        assert score == 0, "ties are decided against the model"
    else:
        assert 0 < score < 1


@pytest.mark.parametrize("name", TASKS)
def test_the_gallery_is_the_split_with_or_without_the_reference(name, tmp_path):
    WRITE[name](tmp_path / "data")
    task = TASKS[name](tmp_path / "data")
    run(CirEncoder(Numbers()), task, prediction_folder=tmp_path)
    predicted = json.loads((tmp_path / f"{task.metadata.name}_predictions.json").read_text())
    for benchmark in load_benchmark(name, tmp_path / "data", "val"):
        rankings = predicted[benchmark.category or "default"]["val"]
        assert list(rankings) == [record.id for record in benchmark.records]
        for record in benchmark.records:
            left_out = {record.reference} if name == "cirr" else set()
            assert rankings[record.id].keys() == set(benchmark.gallery) - left_out


@pytest.mark.parametrize("reading", ["fast", "full"])
def test_a_reading_is_asked_for(reading, tmp_path):
    """CIRR's texts are plain numbers, which the toy adds in its chain and leaves out without one."""
    cirr(tmp_path)
    encoder = CirEncoder(Toy(), "me/toy", reading=reading)
    found, _ = run(encoder, CirrVal(tmp_path))
    same(found["default"], ours(Toy(), "cirr", tmp_path, reading=reading)["default"])
    assert encoder.mteb_model_meta.experiment_kwargs == {"reading": reading}


def test_a_real_model_and_its_export_through_sentence_transformers_score_alike(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from test_export import base_head

    from cir_cot.integrations.sentence_transformers import write_sentence_form

    circo(tmp_path / "data")
    head = base_head(tmp_path / "base", projection=16)
    expected = ours(head, "circo", tmp_path / "data", reading="fast")["default"]
    found, _ = run(CirEncoder(head, reading="fast"), CircoVal(tmp_path / "data"))
    same(found["default"], expected)
    head.save(tmp_path / "out")
    write_sentence_form(head, tmp_path / "out")
    exported = SentenceTransformerEncoderWrapper(
        sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    )
    exported.mteb_model_meta = exported.mteb_model_meta.model_copy(
        update={"modalities": ["image", "text"]}
    )
    found, _ = run(exported, CircoVal(tmp_path / "data"))
    same(found["default"], expected)


def test_results_of_another_checkpoint_are_not_taken_from_the_cache(tmp_path):
    first, again, other = (
        CirEncoder(Numbers(), "a/b"),
        CirEncoder(Numbers(), "a/b"),
        CirEncoder(Constant(), "a/b"),
    )
    assert (
        first.mteb_model_meta.revision
        == again.mteb_model_meta.revision
        != other.mteb_model_meta.revision
    )
    cirr(tmp_path / "data")
    cache = mteb.ResultCache(cache_path=tmp_path / "cache")
    scores = [
        mteb.evaluate(
            encoder, CirrVal(tmp_path / "data"), cache=cache, show_progress_bar=False
        ).task_results[0]
        for encoder in (first, other, again)
    ]
    assert scores[0].get_score() == scores[2].get_score() > scores[1].get_score() == 0


def test_what_cannot_be_ranked_is_refused(tmp_path):
    cirr(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        run(CirEncoder(Plain()), CirrVal(tmp_path / "nowhere"))
    (tmp_path / "dev/s000.png").unlink()
    with pytest.raises(InputError, match="1 of 60 pictures are missing"):
        run(CirEncoder(Plain()), CirrVal(tmp_path))
    encoder = CirEncoder(Plain())
    for kind, batch in (
        (PromptType.query, {"text": ["x"]}),
        (PromptType.document, {"image": [], "text": []}),
    ):
        with pytest.raises(InputError, match="CIRRVal: an input of"):
            encoder.encode([batch], task_metadata=CirrVal.metadata, prompt_type=kind)
    with pytest.raises(InputError, match="cosine or dot product"):
        unit(
            torch.ones(1, 2),
            encoder.mteb_model_meta.model_copy(update={"similarity_fn_name": "MaxSim"}),
        )


def test_vectors_of_other_encoders_are_compared_by_their_own_similarity():
    meta = CirEncoder(Plain()).mteb_model_meta
    vectors = torch.tensor([[3.0, 4.0]])
    assert unit(vectors, meta).tolist() == [[3.0, 4.0]]
    for other in (None, "cosine"):
        assert unit(vectors.numpy(), meta.model_copy(update={"similarity_fn_name": other}))[
            0
        ].tolist() == pytest.approx([0.6, 0.8])
    assert columns([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]) == {
        "id": ["a", "b"],
        "text": ["x", "y"],
    }
    encoder = CirEncoder(Plain())
    assert encoder.similarity([[1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]).tolist() == [[0.0, 1.0]]
    assert encoder.similarity_pairwise([[1.0, 0.0]], [[1.0, 0.0]]).tolist() == [1.0]
