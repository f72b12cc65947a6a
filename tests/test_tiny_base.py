"""The lessons of the tiny base: answers are true, supervision is where it should be, the shipped weights know them."""

import importlib.util
import random
import re
from pathlib import Path

import pytest

from cir_cot import prompts, scenes
from cir_cot.checkpoint import TINY_BASE, load_model, load_processor
from cir_cot.collate import IGNORE, ChatEncoder

SCRIPT = Path(__file__).resolve().parent.parent / "train" / "tiny_base.py"
spec = importlib.util.spec_from_file_location("tiny_base", SCRIPT)
tiny_base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_base)


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(load_processor(TINY_BASE), ret_id=-1)


def drawn(task: str, rows: int = 40, test: bool = False) -> list:
    rng = random.Random(task)
    return [tiny_base.TASKS[task](rng, test) for _ in range(rows)]


def test_half_of_the_selections_describe_first_and_every_verdict_is_true():
    described = 0
    for scene, prompt, answer in drawn("select"):
        before, selector, verdicts = re.fullmatch(r"(.*?)(?:; )?meant by: ([^;]*); (.*)", answer).groups()
        assert before in ("", scenes.scene_text(scene))
        described += bool(before)
        assert prompt == (prompts.DESCRIBE_SELECT if before else prompts.SELECT).replace("{text}", selector)
        names = [scenes.object_text(slot, thing) for slot, thing in enumerate(scene) if thing]
        wanted = set(selector.split()) - {"object"}
        assert verdicts.split("; ") == [f"{n}: {'yes' if wanted <= set(n.split()) else 'no'}" for n in names]
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
        assert changed == [] if word == "remove" else all(action.split()[1] in name for name in changed)
    assert kinds == {"add", "remove", "make"}


@pytest.mark.parametrize("task", tiny_base.TASKS)
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
def test_of_a_selection_the_selector_and_the_verdicts_are_supervised_and_no_name(encoder, pictures):
    rows = drawn("select", 12)
    _, labels = tiny_base.encode(encoder, rows, random.Random(0), True, pictures)
    for (_, _, answer), row in zip(rows, labels, strict=True):
        selector = re.search(r"meant by: ([^;]*);", answer)[1]
        verdicts = re.findall(r": (yes|no)", answer)
        assert encoder.tokenizer.decode(row[row != IGNORE]) == f" by: {selector} {' '.join(verdicts)}"


def test_the_shipped_base_describes_and_selects_as_its_run_says(encoder):
    model = load_model(TINY_BASE).float().eval()
    measured = {
        name: tiny_base.exact_rows(model, encoder, drawn(name, 48, True), random.Random(0), name == "select")
        for name in ("describe", "select")
    }
    assert measured["describe"] > 0.95  # run.json: 100 %
    assert measured["select"] > 0.8  # run.json: 92 %
