"""The lessons of the tiny base: answers are true, supervision is where it should be, the shipped weights know them."""

import json
import random
import re

import numpy as np
import pytest
import torch

from cir_cot import prompts
from cir_cot.data import scenes
from cir_cot.hub import TINY_BASE
from cir_cot.models.backbone import Backbone, load_backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.prompts import RET
from cir_cot.scripts.train.tiny_base import main
from cir_cot.training.curriculum import Curriculum, train
from cir_cot.training.lesson_batches import (
    ALIGN,
    Lesson,
    alignment_batch,
    draw_batch,
    language_batch,
    new_base,
)
from cir_cot.training.lesson_losses import (
    alignment_recall,
    embed,
    exact_rows,
    hidden_states,
    lesson_loss,
    to_device,
)
from cir_cot.training.lessons import TASKS, draw_distinct_scenes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> Backbone:
    return load_backbone(TINY_BASE)


@pytest.fixture(scope="module")
def encoder(base) -> ChatEncoder:
    return ChatEncoder(base.processor, base.ret_id)


def drawn(task: str, rows: int = 40, test: bool = False) -> list:
    rng = random.Random(task)
    return [TASKS[task](rng, test) for _ in range(rows)]


def test_half_of_the_selections_describe_first_and_every_verdict_is_true():
    described = 0
    for scene, prompt, answer in drawn("select"):
        before, selector, verdicts = re.fullmatch(
            r"(.*?)(?:; )?meant by: ([^;]*); (.*)", answer
        ).groups()
        assert before in ("", scenes.scene_text(scene))
        described += bool(before)
        assert prompt == (prompts.DESCRIBE_SELECT if before else prompts.SELECT).replace(
            "{text}", selector
        )
        names = [scenes.object_text(slot, thing) for slot, thing in enumerate(scene) if thing]
        wanted = set(selector.split()) - {"object"}
        assert verdicts.split("; ") == [
            f"{n}: {'yes' if wanted <= set(n.split()) else 'no'}" for n in names
        ]
    assert 10 < described < 30


def test_notes_name_each_object_and_lead_to_the_answer():
    kinds = set()
    for scene, prompt, answer in drawn("revise"):
        *verdicts, action = prompt.removeprefix(prompts.REVISE.replace("{text}", "")).split("; ")
        names = scenes.scene_text(scene).split(", ")
        word = action.split()[0]
        kinds.add(word)
        if word == "add":
            assert verdicts == []
            assert set(answer.split(", ")) == {*names, action.removeprefix("add ")}
            continue
        meant = {line.removesuffix(": yes") for line in verdicts if line.endswith(": yes")}
        assert [line.rpartition(": ")[0] for line in verdicts[1:]] == names
        kept = [name for name in names if name not in meant]
        changed = [name for name in answer.split(", ") if name not in kept]
        assert [name for name in answer.split(", ") if name in kept] == kept
        assert (
            changed == []
            if word == "remove"
            else all(action.split()[1] in name for name in changed)
        )
    assert kinds == {"add", "remove", "make"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("test", [False, True])
def test_scenes_stay_on_their_side_of_the_hash_and_answers_have_no_chain(task, test):
    for scene, prompt, answer in drawn(task, 15, test):
        assert scenes.is_test_scene(scene) == test
        assert not prompts.TAG.search(prompt + answer)
        if task in ("apply", "revise"):
            assert scenes.is_test_scene(tuple(parse(answer))) == test


def parse(text: str) -> list:
    things = {slot: None for slot in scenes.SLOTS}
    for name in text.split(", "):
        slot, *thing = name.split()
        things[slot] = tuple(thing)
    return list(things.values())


@pytest.mark.parametrize("pictures", [True, False])
def test_of_a_selection_the_selector_and_the_verdicts_are_supervised_and_no_name(
    base, encoder, pictures
):
    rows = drawn("select", 12)
    batch = language_batch(base, encoder, random.Random(0), rows, True, pictures)
    assert ("pictures" in batch) == pictures
    for (_, _, answer), row in zip(rows, batch["labels"], strict=True):
        selector = re.search(r"meant by: ([^;]*);", answer)[1]
        verdicts = re.findall(r": (yes|no)", answer)
        assert (
            encoder.tokenizer.decode(row[row != IGNORE]) == f" by: {selector} {' '.join(verdicts)}"
        )


def test_pictures_of_one_size_are_read_as_the_model_itself_reads_them(base, encoder):
    rows = drawn("describe", 5)
    batch = to_device(language_batch(base, encoder, random.Random(3), rows), CPU)
    rng = random.Random(3)
    pictures = [scenes.render(row.scene, rng) for row in rows]
    answers = [
        [*ids, encoder.tokenizer.eos_token_id]
        for ids in encoder.plain_ids([row.answer for row in rows])
    ]
    inputs, labels = encoder(pictures, [row.prompt for row in rows], answers)
    with torch.no_grad():
        ours = hidden_states(base, batch)
        theirs = base(inputs)
    there = inputs["attention_mask"].bool()
    assert torch.equal(labels, batch["labels"])
    assert torch.allclose(ours[there], theirs[there], atol=1e-5)


def test_a_description_is_aligned_with_its_picture_alone(base, encoder):
    rng = random.Random(4)
    batch = alignment_batch(base, encoder, rng, draw_distinct_scenes(rng, 16, test=True))
    texts = [encoder.tokenizer.decode(row) for row in batch["text_input_ids"]]
    pictures = [encoder.tokenizer.decode(row) for row in batch["input_ids"]]
    assert all(text.count(RET) == 1 and "<|image_pad|>" not in text for text in texts)
    assert all(prompts.TARGET in text and text.count(RET) == 1 for text in pictures)
    assert not any(prompts.TAG.search(text.replace(RET, "")) for text in texts)
    assert len(set(texts)) == 16


def test_families_hold_neighbours_on_one_side_of_the_hash():
    family = draw_distinct_scenes(random.Random(0), 40, test=True)
    assert len(set(family)) == 40
    assert all(scenes.is_test_scene(scene) for scene in family)
    slots = [sum(a != b for a, b in zip(family[0], other, strict=True)) for other in family[1:8]]
    assert min(slots) == 1


def test_the_loss_of_alignment_is_the_mean_of_both_directions(base, encoder):
    rng = random.Random(5)
    batch = to_device(alignment_batch(base, encoder, rng, draw_distinct_scenes(rng, 6)), CPU)
    with torch.no_grad():
        loss, recall = lesson_loss(base, Lesson(ALIGN, 6, 0), batch)
        logits = embed(base, batch, "text_") @ embed(base, batch, "").T / 0.03
    both = -(logits.log_softmax(dim=1).diagonal() + logits.log_softmax(dim=0).diagonal()).mean() / 2
    assert loss.item() == pytest.approx(both.item(), rel=1e-5, abs=1e-7)
    assert recall == 1


def test_a_worker_draws_what_the_training_process_draws():
    lesson = Lesson("revise", 4, 7)
    first, second = draw_batch(lesson), draw_batch(lesson)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_lesson_that_is_not_known_comes_more_often():
    curriculum = Curriculum(8, 0)
    curriculum.text_stages = []
    curriculum.losses = {"describe": 0.0, "select": 1.0, "apply": 0.0, "revise": 0.0}
    names = [curriculum.next_lesson().name for _ in range(1000)]
    assert 250 < names.count(ALIGN) < 350
    assert names.count("select") > 0.9 * (1000 - names.count(ALIGN))
    assert len(set(names)) == 5


def test_selectors_come_without_pictures_until_they_are_known_or_it_is_time(base):
    curriculum = Curriculum(8, 0)
    lessons = [curriculum.next_lesson() for _ in range(50)]
    assert {lesson.name for lesson in lessons} == {"describe", "select"}
    assert all((lesson.most_objects == 3) == (lesson.name == "select") for lesson in lessons)
    curriculum.known = [2.0] * 4  # more than any measurement can take away
    curriculum.assess(base, 0.1)
    assert curriculum.text_stages == [6, 9]
    curriculum.assess(base, 0.3)
    assert curriculum.text_stages == []


def test_training_lowers_the_loss_and_is_the_same_again():
    def trained() -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        base = new_base(2)
        curriculum = Curriculum(6, 3)
        assert train(base, curriculum, 12, 3e-3) == 12
        return curriculum.losses[
            "describe"
        ], base.plain.get_input_embeddings().weight.detach().clone()

    (loss, weights), (again, same) = trained(), trained()
    assert loss < 2.5  # 6.2 at the start
    assert loss == again
    assert torch.equal(weights, same)


def test_the_command_saves_a_checkpoint_with_its_facts(tmp_path, capsys):
    assert (
        main(["--out", str(tmp_path), "--steps", "2", "--batch-size", "2", "--held-out", "4"]) == 0
    )
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["steps"] == 2
    assert facts["held_out_scenes"]["describe"] == 0
    assert load_backbone(tmp_path).ret_id == load_backbone(TINY_BASE).ret_id


def test_the_shipped_base_answers_and_aligns_as_its_run_says(base):
    for name in ("describe", "select", "revise"):
        assert (
            exact_rows(base, drawn(name, 48, True), random.Random(0), name == "select") > 0.97
        )  # run.json: 100 %
    assert exact_rows(base, drawn("apply", 48, True), random.Random(0)) > 0.75  # run.json: 90 %
    assert alignment_recall(base, 64) > 98  # run.json: 100 % among 500
