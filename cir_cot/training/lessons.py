"""Draw the examples that the tiny base is trained on: descriptions, selectors and edits of scenes.

An `Example` is a scene, a question about its picture, and the true answer. Scenes are drawn from
the training side of the benchmark's train/test hash, without end, in all combinations of shape and
colour, as a pretrained model would have seen them. No example holds a chain, and none retrieves a
picture from another picture and a text. Held-out examples (`test=True`) come from the test side.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from cir_cot import prompts
from cir_cot.data import scenes

ATTRIBUTES = ("slot", "size", "colour", "shape")
EVEN = (1.0, 1.0, 1.0, 1.0)  # how often a selector names nothing but its slot, size, colour, shape
MAX_NEIGHBOURS = 8  # scenes of a family: one scene, and others that are one edit away


class Example(NamedTuple):
    """A scene, a question about its picture, and the answer."""

    scene: scenes.Scene
    prompt: str
    answer: str


def draw_scene(rng: random.Random, test: bool, least: int = 1, most: int = 6) -> scenes.Scene:
    """Draw a scene of `least` to `most` objects from one side of the train/test hash."""
    while True:
        scene = scenes.random_scene(rng, scenes.PALETTES["all"], least, most)
        if scenes.is_test_scene(scene) == test:
            return scene


def draw_pick(
    rng: random.Random, scene: scenes.Scene, alone: Sequence[float] = EVEN, subsets: float = 0.4
) -> scenes.Pick:
    """Draw a selector of some objects of a scene.

    In a selector of several attributes the slot alone often decides, so the others are learned late
    or never: with such selectors only, colours were not distinguished after 2,700 steps, with
    single attributes they were after hundreds (docs/log.md).

    Args:
        alone: weights of slot, size, colour and shape as the only attribute.
        subsets: share of selectors that name several attributes.
    """
    # Several attributes.
    if rng.random() < subsets:
        return scenes.random_pick(rng, scene)
    # One attribute of one object.
    objects = {slot: thing for slot, thing in enumerate(scene) if thing}
    slot = rng.choice(list(objects))
    (only,) = rng.choices(range(4), alone)
    attributes = (scenes.SLOTS[slot], *objects[slot])
    picked = [value if at == only else None for at, value in enumerate(attributes)]
    return cast(scenes.Pick, tuple(picked))


def describe(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> Example:
    """Draw a scene to be described."""
    scene = draw_scene(rng, test)
    return Example(scene, prompts.DESCRIBE, scenes.scene_text(scene))


def select(
    rng: random.Random,
    test: bool = False,
    alone: Sequence[float] = EVEN,
    subsets: float = 0.4,
    most: int = 9,
) -> Example:
    """Draw a selector; the answer says for each object whether the selector means it.

    Half of the answers describe the scene first, as many instructions ask: an earlier part of an
    answer must not distract.
    """
    # A scene, a selector, and which objects it means.
    scene = draw_scene(rng, test, most // 2, most)
    pick = draw_pick(rng, scene, alone, subsets)
    meant = [scenes.matches(pick, slot, thing) for slot, thing in enumerate(scene) if thing]
    selector = scenes.selector_text(pick)
    parts = scenes.verdicts(scene, selector, meant)
    # With or without a description.
    if rng.random() < 0.5:
        return Example(scene, prompts.SELECT.replace("{text}", selector), "; ".join(parts))
    answer = "; ".join([scenes.scene_text(scene), *parts])
    return Example(scene, prompts.DESCRIBE_SELECT.replace("{text}", selector), answer)


def draw_edit(
    rng: random.Random, test: bool, alone: Sequence[float] = EVEN
) -> tuple[scenes.Scene, scenes.Edit]:
    """Draw a scene and an edit of it; both scenes are on one side of the train/test hash."""
    while True:
        scene = draw_scene(rng, test)
        pick = draw_pick(rng, scene, alone)
        # Not every kind of edit is possible in every scene: then draw again.
        kind = rng.choice(scenes.KINDS)
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"], kind, pick)
        if edit and scenes.is_test_scene(edit.result) == test:
            return scene, edit


def apply(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> Example:
    """Draw an edit: the answer describes the scene after it."""
    scene, edit = draw_edit(rng, test, alone)
    return Example(
        scene, prompts.APPLY.replace("{text}", edit.text), scenes.scene_text(edit.result)
    )


def revise(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> Example:
    """Draw an edit whose objects are named one by one: the answer describes the scene after it."""
    scene, edit = draw_edit(rng, test, alone)
    # The action comes last here, unlike in a chain, where it stands beside each object.
    selected = scenes.verdicts(scene, edit.selector, edit.meant) if edit.selector else []
    question = prompts.REVISE.replace("{text}", "; ".join([*selected, edit.action]))
    return Example(scene, question, scenes.scene_text(edit.result))


TASKS: dict[str, Callable[..., Example]] = {
    "describe": describe,
    "select": select,
    "apply": apply,
    "revise": revise,
}


def draw_family(rng: random.Random, size: int, test: bool = False) -> list[scenes.Scene]:
    """Draw a scene and up to `size` - 1 others that are one edit away, as hard negatives."""
    scene = draw_scene(rng, test)
    family = {scene: None}  # an ordered set
    for _ in range(50 * size):  # small scenes have few edits: give up at some point
        if len(family) == size:
            break
        kind = rng.choice(scenes.KINDS)
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"], kind, draw_pick(rng, scene))
        if edit and scenes.is_test_scene(edit.result) == test:
            family[edit.result] = None
    return list(family)


def draw_distinct_scenes(rng: random.Random, count: int, test: bool = False) -> list[scenes.Scene]:
    """Draw `count` distinct scenes in families of up to MAX_NEIGHBOURS, for a contrastive batch."""
    drawn: dict[scenes.Scene, None] = {}
    while len(drawn) < count:
        drawn |= dict.fromkeys(draw_family(rng, MAX_NEIGHBOURS, test))
    return list(drawn)[:count]


def corpus() -> list[str]:
    """Return texts that hold every word that scenes use, so that each becomes one token."""
    rng = random.Random(0)
    questions = [prompts.QUERY, prompts.TARGET, prompts.DESCRIPTION]
    # Prompts and special words first, then enough examples to see every other word.
    lines = [*questions, "<|im_start|>system user assistant\n", "remove make add to yes no"]
    for _ in range(300):
        scene = scenes.random_scene(rng, scenes.PALETTES["all"])
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"])
        if edit is None:
            continue
        lines += [prompts.cot_to_text(scenes.chain(scene, edit)), edit.text]
        for task in TASKS.values():
            example = task(rng)
            lines.append(f"{example.prompt}\n{example.answer}")
    return lines
