"""Plant a wrong word in the true chain of a scene, and say where the changed chain leads.

A model that follows its chain then writes another conclusion, and finds another picture.
"""

import random
from dataclasses import replace

from cir_cot.records import Cot, Record

from .scenes import COLOURS, SIZES, SLOTS

YES = ": yes "
NO = ": no"


def conclusion_of(caption: str, reasoning: str) -> str:
    """Return the conclusion that a caption and its notes lead to, whether or not they are true.

    Args:
        caption: the objects, as `scenes.scene_text` lists them.
        reasoning: an addition, or a verdict on each object, as `scenes.notes` writes them.

    Returns:
        The objects that are left, as they are after the edit; "" for none.
    """
    # An addition has its place in reading order.
    objects = caption.split(", ")
    if reasoning.startswith("add "):
        objects.append(reasoning.removeprefix("add "))
        return ", ".join(sorted(objects, key=lambda name: SLOTS.index(name.split()[0])))
    # What happens to the objects that are meant, by slot.
    outcomes = {}
    for line in reasoning.split("; "):
        name, meant, outcome = line.partition(YES)
        if meant:
            outcomes[name.split()[0]] = outcome
    # The objects that are left.
    left = []
    for name in objects:
        slot, size, colour, shape = name.split()
        outcome = outcomes.get(slot, "")
        size = outcome if outcome in SIZES else size
        colour = outcome if outcome in COLOURS else colour
        if outcome != "remove":
            left.append(f"{slot} {size} {colour} {shape}")
    return ", ".join(left)


def plant(record: Record, section: str, rng: random.Random) -> Cot | None:
    """Return a record's true chain with one wrong word in a section, and the conclusion that follows.

    Args:
        record: a query on a scene, with its chain.
        section: "caption": another colour of an object that the edit leaves alone; "reasoning": a
            yes for an object that is not meant; "conclusion": another colour of an object.
        rng: draws the object and the colour.

    Returns:
        None where there is no such object, or where the word would change nothing.
    """
    chain = record.cot
    assert chain is not None, "records of scenes have chains"
    lines = chain.reasoning.split("; ")
    if section == "conclusion":
        # A colour of the wanted picture.
        name = rng.choice(chain.conclusion.split(", "))
        return replace(
            chain, conclusion=chain.conclusion.replace(name, _recolour(record, name, rng))
        )
    # An object that the edit leaves alone.
    unmeant = [line.removesuffix(NO) for line in lines if line.endswith(NO)]
    if not unmeant:
        return None
    name = rng.choice(unmeant)
    if section == "caption":
        new = _recolour(record, name, rng)
        caption = chain.caption.replace(name, new)
        reasoning = chain.reasoning.replace(name, new)
    else:
        outcome = next(line.partition(YES)[2] for line in lines if YES in line)
        caption = chain.caption
        reasoning = chain.reasoning.replace(f"{name}{NO}", f"{name}{YES}{outcome}")
    conclusion = conclusion_of(caption, reasoning)
    if conclusion in ("", chain.conclusion):
        return None
    return Cot(caption, reasoning, conclusion)


def _recolour(record: Record, name: str, rng: random.Random) -> str:
    """Return an object's name in another colour that the request does not name."""
    slot, size, old, shape = name.split()
    named = record.text.split()
    others = [colour for colour in COLOURS if colour != old and colour not in named]
    return f"{slot} {size} {rng.choice(others)} {shape}"
