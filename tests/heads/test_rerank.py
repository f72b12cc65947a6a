"""The judging pass: the shared query equals complete rows, on every generation; answers, batches, refusals."""

import pytest
import torch
from tiny_training import SIZES, Pictures, record, tiny_head

from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.base import TrainingRow
from cir_cot.heads.rerank import JudgeCollator, Reranker, answer_ids, load_reranker
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.prompts import judge_prompt
from cir_cot.records import Cot

CHAIN = Cot("a red picture", "change the bar", "red with a blue bar")
NAMES = ("red-blue", "green-blue", "blue-cyan", "cyan-red", "yellow-magenta")


def tiny_reranker(kind: str = "qwen2_5_vl", lora: bool = False) -> Reranker:
    tokenizer = tiny_tokenizer(["make the bar red", "yes no"], vocab_size=400)
    base = tiny_model(kind, tokenizer, **SIZES), tiny_processor(kind, tokenizer)
    torch.manual_seed(0)
    adapter = {"r": 4, "alpha": 8, "dropout": 0.0} if lora else None
    return Reranker(load_backbone(base, lora=adapter), "tiny").eval()


def pictures(names=NAMES):
    """Pictures of different sizes, so that rows are padded."""
    shown = [Pictures().load(name) for name in names]
    return [p.resize((56 + 28 * (i % 3), 56)) for i, p in enumerate(shown)]


@torch.no_grad()
def unshared(reranker: Reranker, text: str, chain, candidates) -> torch.Tensor:
    """Scores by one complete row a candidate, each alone and without a cache."""
    reference = Pictures().load("red-green")
    scores = []
    for candidate in candidates:
        inputs, _ = reranker.encoder.pairs([(reference, text, chain)], [candidate], [[]])
        logits = reranker.backbone.logits(reranker.backbone(inputs))[0, -1]
        scores.append(logits[reranker.answers[0]] - logits[reranker.answers[1]])
    return torch.stack(scores)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_shared_query_equals_complete_rows(kind, batch_size):
    reranker = tiny_reranker(kind)
    reranker.batch_size = batch_size
    shown = pictures()
    judged = reranker.judge(Pictures().load("red-green"), "make the bar blue", CHAIN, shown)
    expected = unshared(reranker, "make the bar blue", CHAIN, shown)
    assert expected.std() > 1e-3
    assert torch.allclose(judged.scores, expected, atol=1e-5, rtol=0)


def test_tokens_are_those_of_the_query_once_and_of_each_candidate():
    reranker = tiny_reranker()
    shown = pictures()
    reference = Pictures().load("red-green")
    complete, _ = reranker.encoder.pairs(
        [(reference, "make the bar blue", CHAIN)] * 5, shown, [[]] * 5
    )
    query = reranker.encoder.before([(reference, "make the bar blue", CHAIN)])["input_ids"].numel()
    judged = reranker.judge(reference, "make the bar blue", CHAIN, shown)
    assert judged.tokens == int(complete["attention_mask"].sum()) - 4 * query


def test_no_candidates_are_no_scores():
    judged = tiny_reranker().judge(Pictures().load("red-green"), "blue", None, [])
    assert judged.scores.shape == (0,)


def test_a_prompt_shows_text_and_chain_and_nothing_is_replaced_twice():
    assert judge_prompt("red {chain}", None).startswith("Modify this picture: red {chain}\nIs ")
    assert "{text}</conclusion>\nIs the next" in judge_prompt("x", Cot("a", "b", "{text}"))


def row(draw: int, negative: str | None = "green-red") -> TrainingRow:
    query = record(0, "red-green", "blue")
    load = Pictures().load
    negatives = () if negative is None else ((negative, load(negative)),)
    return TrainingRow(query, load("red-green"), load("red-blue"), draw, negatives)


def test_half_of_the_rows_show_a_negative_and_the_answer_says_so():
    reranker = tiny_reranker()
    yes, no = answer_ids(reranker.encoder)
    collate = JudgeCollator(reranker.encoder, reranker.answers)
    batch = collate([row(draw) for draw in range(60)])
    answers = batch["labels"][batch["labels"] >= 0].tolist()
    assert len(answers) == 60
    assert 20 <= answers.count(no) <= 40
    # The picture is the one of the answer: patches of the negative differ from those of the target.
    alone = collate([row(answers.index(no))])["query"]["pixel_values"]
    target = collate([row(answers.index(yes))])["query"]["pixel_values"]
    assert not torch.equal(alone, target)


def test_a_target_that_fills_up_for_a_negative_is_answered_yes():
    reranker = tiny_reranker()
    batch = reranker.collator()([row(draw, "red-blue") for draw in range(20)])
    assert set(batch["labels"][batch["labels"] >= 0].tolist()) == {reranker.answers[0]}
    assert len(reranker.collator()([row(0, None)])["labels"]) == 1


def test_the_loss_is_the_cross_entropy_of_the_answer():
    reranker = tiny_reranker()
    batch = reranker.collator()([row(draw) for draw in range(4)])
    loss = reranker(batch["query"], labels=batch["labels"]).aux["lm"]
    # In closed form: softplus of the score, with the sign of the answer.
    expected = []
    for index in range(4):
        logits = reranker.backbone.logits(reranker.backbone(batch["query"]))[index]
        at = int((batch["labels"][index] >= 0).nonzero()[0])
        score = logits[at - 1, reranker.answers[0]] - logits[at - 1, reranker.answers[1]]
        sign = -1 if batch["labels"][index, at] == reranker.answers[0] else 1
        expected.append(torch.nn.functional.softplus(sign * score))
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_a_few_steps_fit_a_batch():
    reranker = tiny_reranker().train()
    batch = reranker.collator()([row(draw) for draw in range(16)])
    optimizer = torch.optim.AdamW(reranker.parameters(), lr=3e-3)
    for _ in range(40):
        loss = reranker(batch["query"], labels=batch["labels"]).aux["lm"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    reranker.eval()
    row_ = row(0)
    shown = [row_.target, row_.negatives[0][1]]
    yes, no = reranker.judge(row_.reference, row_.record.text, None, shown).scores
    assert yes > 1 > -1 > no


def test_a_saved_reranker_judges_alike_and_is_no_retriever(tmp_path):
    reranker = tiny_reranker()
    reranker.save(tmp_path)
    shown = pictures()
    reference = Pictures().load("red-green")
    loaded = load_reranker(tmp_path, device="cpu", dtype="float32")
    mine, theirs = (r.judge(reference, "blue", None, shown).scores for r in (reranker, loaded))
    assert torch.allclose(mine, theirs, atol=1e-6)
    with pytest.raises(InputError, match="kind 'rerank'"):
        load_retriever(tmp_path)
    with pytest.raises(InputError, match="embeds nothing"):
        loaded.encode_target(shown)


def test_a_retriever_is_no_reranker(tmp_path):
    tiny_head(lora=False).save(tmp_path)
    with pytest.raises(
        InputError, match="a 'cot' retriever; give a folder that cir-cot rerank wrote"
    ):
        load_reranker(tmp_path)
