"""Look again: closed forms with a judge that knows, ties keep the first stage, depths, costs, faults, submissions."""

import json
import shutil

import pytest
import torch
from number_benchmarks import SHADES, cirr
from tiny_training import tiny_head
from toy_retriever import Toy, shade_of, write_json

from cir_cot.data import load_benchmark
from cir_cot.data.scene_files import write_scenes
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.look_again import look_again
from cir_cot.evaluation.results import save_results
from cir_cot.heads.rerank import Reranker
from cir_cot.retriever import Judgement
from cir_cot.scripts.eval import check_submission, retrieval, score, submit


class Knowing:
    """Says how far a candidate is from reference + number, the wanted shade; counts what it sees."""

    def __init__(self, broken=None):
        self.broken, self.seen, self.chains = broken, [], []

    def judge(self, reference, text, chain, candidates):
        self.seen.append(len(candidates))
        self.chains.append(chain)
        wanted = shade_of(reference) + int(text)
        shades = [shade_of(picture) for picture in candidates]
        scores = torch.tensor([-float(abs(shade - wanted)) for shade in shades])
        if self.broken is not None and self.broken in shades:
            scores[shades.index(self.broken)] = float("nan")
        return Judgement(scores, 10 + 3 * len(candidates))


class Undecided:
    """Gives every picture the same score."""

    def judge(self, reference, text, chain, candidates):
        return Judgement(torch.zeros(len(candidates)), 1)


def first_stage(folder, reading="fast", retriever=None):
    (benchmark,) = load_benchmark("folder", folder, "val")
    return evaluate(retriever or Toy(), benchmark, benchmark.images(), reading=reading)


def test_a_judge_that_knows_finds_every_target_among_the_first_k(folder):
    before = first_stage(folder)
    after = look_again(before, Knowing(), 10, "judge")
    # Of each target within the first K the rank becomes 1, of every other one it stays.
    assert before.metrics["R@1"] < before.metrics["R@10"]
    assert after.metrics["R@1"] == before.metrics["R@10"]
    assert after.metrics["R@50"] == before.metrics["R@50"]
    low, high = after.intervals["R@1"]
    assert low <= after.metrics["R@1"] <= high
    assert after.intervals["R@1"] != before.intervals["R@1"]
    for name, ranking in after.rankings.items():
        assert ranking[10:] == before.rankings[name][10:]
        assert sorted(ranking[:10]) == sorted(before.rankings[name][:10])
        assert after.scores[name][:10] == sorted(after.scores[name][:10], reverse=True)
        assert after.scores[name][10:] == before.scores[name][10:]
    cost = after.protocol["rerank"]
    assert cost.pop("seconds") >= 0
    assert cost == {"first": 10, "model": "judge", "pictures": 10.0, "tokens": 40.0}
    assert after.protocol["first_stage"] == before.metrics


def test_ties_keep_the_order_of_the_first_stage(folder):
    before = first_stage(folder)
    after = look_again(before, Undecided(), 20)
    assert after.rankings == before.rankings
    assert after.metrics == before.metrics


def test_k_beyond_the_gallery_judges_all_of_it(folder):
    before = first_stage(folder)
    judge = Knowing()
    after = look_again(before, judge, 10_000)
    assert set(judge.seen) == {len(ranking) for ranking in before.rankings.values()}
    assert after.metrics["R@1"] == 100


def test_the_judge_reads_the_chain_that_the_first_stage_wrote(folder):
    judge = Knowing()
    result = first_stage(folder, "full")
    look_again(result, judge, 2)
    assert [chain.conclusion for chain in judge.chains][:1] == [f"shade {SHADES[12] - 4}"]
    judge = Knowing()
    look_again(first_stage(folder), judge, 2)
    assert set(judge.chains) == {None}


def test_a_score_that_is_not_finite_names_query_and_picture(folder):
    result = first_stage(folder)
    name = next(iter(result.rankings))
    picture = result.rankings[name][1]
    shade = shade_of(result.images.load(picture))
    with pytest.raises(InputError, match=f"query '{name}', picture '{picture}'.*nan"):
        look_again(result, Knowing(broken=shade), 3)


def test_a_broken_picture_is_named(folder):
    result = first_stage(folder)
    picture = next(iter(result.rankings.values()))[0]
    result.images.path(picture).write_bytes(b"no picture")
    with pytest.raises(InputError, match=picture):
        look_again(result, Knowing(), 3)


@pytest.mark.parametrize("first", [0, -1])
def test_no_picture_to_look_at_is_refused(folder, first):
    with pytest.raises(InputError, match=f"rerank {first}"):
        look_again(first_stage(folder), Knowing(), first)


def test_image_sets_are_judged_with_the_first_k_and_rankings_submit(tmp_path):
    """CIRR's test split: rankings of a reranked result become submission files that validate."""
    cirr(tmp_path)
    captions = tmp_path / "cirr/captions/cap.rc2.val.json"
    hidden = json.loads(captions.read_text())
    for entry in hidden:
        del entry["target_hard"], entry["target_soft"]
    write_json(tmp_path / "cirr/captions/cap.rc2.test1.json", hidden)
    split = tmp_path / "cirr/image_splits/split.rc2.val.json"
    files = split.read_text().replace("./dev/", "./test1/")
    (tmp_path / "cirr/image_splits/split.rc2.test1.json").write_text(files)
    shutil.copytree(tmp_path / "dev", tmp_path / "test1")
    # The validation split: half of the captions name the target's shade, the others another one of the set.
    (known,) = load_benchmark("cirr", tmp_path, "val")
    judge = Knowing()
    before = evaluate(Toy(), known, known.images(), reading="fast")
    after = look_again(before, judge, 3)
    assert before.metrics["Rsub@1"] == 30
    assert after.metrics["Rsub@1"] == 50
    assert all(5 <= count <= 8 for count in judge.seen)  # the set's five and those of three
    # The test split.
    (benchmark,) = load_benchmark("cirr", tmp_path, "test1")
    result = look_again(
        evaluate(Toy(), benchmark, benchmark.images(), reading="fast"), Knowing(), 3
    )
    assert result.metrics == {}
    save_results([result], tmp_path / "out")
    files = ("rankings", "subset_rankings")
    options = []
    for name in files:
        option = "--" + name.replace("_", "-")
        options += [option, str(tmp_path / "out" / f"{name}.json.gz")]
    where = ["--benchmark", "cirr", "--root", str(tmp_path), "--split", "test1"]
    assert submit.main([*where, *options, "--out", str(tmp_path / "sub")]) == 0
    written = [str(path) for path in sorted((tmp_path / "sub").glob("[!.]*.json"))]
    assert len(written) >= 2
    assert check_submission.main([*written, "--root", str(tmp_path)]) == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A first stage and a reranker on tiny Qwens, saved, and scenes."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_head(lora=False, max_new_tokens=4).save(folder / "model")
    head = tiny_head(lora=False)
    Reranker(head.backbone, "tiny").save(folder / "reranker")
    write_scenes(folder / "scenes", seed=0, references=4, edits=3, size=84)
    return folder


def test_retrieval_reranks_records_the_cost_and_its_rankings_score_again(tiny, tmp_path, capsys):
    where = ["--benchmark", "folder", "--root", str(tiny / "scenes"), "--split", "iid"]
    argv = [*where, "--model", str(tiny / "model"), "--device", "cpu", "--reading", "fast"]
    more = ["--rerank", "4", "--reranker", str(tiny / "reranker"), "--out", str(tmp_path / "out")]
    assert retrieval.main([*argv, *more, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    cost = answer["protocol"]["rerank"]
    assert (cost["first"], cost["pictures"]) == (4, 4.0)
    assert cost["model"] == str(tiny / "reranker")
    assert cost["tokens"] > 4 * 9
    rankings = str(tmp_path / "out" / "rankings.json.gz")
    assert score.main([*where, "--rankings", rankings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == answer["metrics"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--rerank", "3"], "--reranker DIR"),
        (["--reranker", "x"], "--rerank K"),
        (["--rerank", "0", "--reranker", "x"], "--rerank 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(given, named):
    where = ["--benchmark", "folder", "--root", "absent", "--split", "iid", "--model", "absent"]
    with pytest.raises(InputError, match=named):
        retrieval.main([*where, *given])
