"""A search that looks again: depth, ties, what it reads, costs, faults, and the command."""

import json

import pytest
import torch
from tiny_training import tiny_head
from toy_retriever import Toy, shade_of, write_shades

from cir_cot.errors import InputError
from cir_cot.heads.rerank import Reranker
from cir_cot.images import list_pictures
from cir_cot.inputs import open_picture
from cir_cot.retriever import Judgement
from cir_cot.scripts.eval import build_index
from cir_cot.scripts.eval import search as search_script
from cir_cot.search.build import build, open_index
from cir_cot.search.search import Search
from cir_cot.search.second_look import SecondLook

SHADES = range(0, 200, 20)


class Darkest:
    """Prefers dark pictures; with `ties` it has no preference, with `broken` its last score is NaN."""

    def __init__(self, ties=False, broken=False):
        self.ties, self.broken, self.chains = ties, broken, []

    def judge(self, reference, text, chain, candidates):
        self.chains.append(chain)
        scores = torch.tensor([0.0 if self.ties else -shade_of(p) / 100 for p in candidates])
        if self.broken:
            scores[-1] = float("nan")
        return Judgement(scores, 7 * len(candidates))


@pytest.fixture
def toy(tmp_path):
    write_shades(tmp_path / "images", SHADES)
    images = list_pictures(tmp_path / "images")
    build(Toy(), images, list(images.files), tmp_path / "index")
    return Search(Toy(), open_index(tmp_path / "index")), images


def reference(images):
    return open_picture(images.path("s100"))


def test_a_hit_beyond_k_can_become_the_first(toy):
    search, images = toy
    plain = search.one(reference(images), "0", k=5)
    search.again = SecondLook(Darkest(), 5, images)
    answer = search.one(reference(images), "0", k=2)
    wanted = sorted(name for name, _ in plain.hits)[:2]
    assert [name for name, _ in answer.hits] == wanted
    shade = int(wanted[0][1:])
    assert answer.hits[0][1] == pytest.approx(1 / (1 + 2.718281828 ** (shade / 100)), rel=1e-5)
    assert answer.rerank["seconds"] >= 0
    assert {**answer.rerank, "seconds": 0} == {
        "first": 5,
        "pictures": 5,
        "tokens": 35,
        "seconds": 0,
    }
    assert "rerank" in answer.as_dict()
    assert "rerank" not in plain.as_dict()
    assert search.again.judge.chains[0].conclusion == "shade 100"


def test_ties_and_what_is_behind_the_first_k_keep_their_order(toy):
    search, images = toy
    plain = search.one(reference(images), "0", k=10)
    search.again = SecondLook(Darkest(ties=True), 3, images)
    answer = search.one(reference(images), "0", k=10)
    assert [name for name, _ in answer.hits] == [name for name, _ in plain.hits]
    assert answer.hits[3:] == plain.hits[3:]
    # More than the gallery holds: all of it.
    search.again = SecondLook(Darkest(), 1000, images)
    assert search.one(reference(images), "0", k=10).hits[0][0] == "s000"


def test_a_score_that_is_not_finite_names_the_picture(toy):
    search, images = toy
    last = search.one(reference(images), "0", k=3).hits[-1][0]
    search.again = SecondLook(Darkest(broken=True), 3, images)
    with pytest.raises(InputError, match=f"picture '{last}'.*nan"):
        search.one(reference(images), "0", k=3)


def test_a_picture_that_is_gone_is_named(toy):
    search, images = toy
    shown = reference(images)
    images.path("s120").unlink()
    search.again = SecondLook(Darkest(), 5, images)
    with pytest.raises(InputError, match="s120"):
        search.one(shown, "0", k=1)


def test_no_picture_to_look_at_is_refused(toy):
    with pytest.raises(InputError, match="rerank 0"):
        SecondLook(Darkest(), 0, toy[1])


def test_the_command_looks_again(tmp_path, capsys):
    write_shades(tmp_path / "images", SHADES)
    head = tiny_head(lora=False, max_new_tokens=4)
    head.save(tmp_path / "model")
    Reranker(head.backbone, "tiny").save(tmp_path / "reranker")
    model = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    out = str(tmp_path / "index")
    assert build_index.main([*model, "--images", str(tmp_path / "images"), "--out", out]) == 0
    capsys.readouterr()
    query = ["--image", str(tmp_path / "images" / "s100.png"), "--text", "darker", "--k", "3"]
    argv = [*model, "--index", out, *query, "--reading", "fast"]
    again = ["--rerank", "6", "--reranker", str(tmp_path / "reranker")]
    assert search_script.main([*argv, *again, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["hits"]) == 3
    assert answer["rerank"]["pictures"] == 6
    assert search_script.main([*argv, *again]) == 0
    assert "reranked  6 pictures" in capsys.readouterr().out
    with pytest.raises(InputError, match="--reranker DIR"):
        search_script.main([*argv, "--rerank", "6"])
