"""Draw scenes of simple shapes, edits of them and their true chains: the procedural benchmark.

A scene has up to nine objects on a 3 x 3 grid (after CSS of TIRG, arXiv 1812.07119). A query is a
picture of a scene and an edit whose selector is partial: "remove cyan object" acts on every cyan
object, so the edit must be resolved against the picture before the target is known. `scene_files`
draws data sets of them.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from cir_cot.records import Cot

GRID = 3  # rows, and columns
SLOTS = tuple(
    f"{row}-{column}"
    for row in ("top", "middle", "bottom")
    for column in ("left", "center", "right")
)
SIZES = ("small", "large")  # of an object
COLOURS = {
    "gray": (87, 87, 87),
    "red": (244, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 205, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
SHAPES = ("circle", "rectangle", "triangle")
OBJECT_TEXT = re.compile(
    " ".join(f"({'|'.join(words)})" for words in (SLOTS, SIZES, COLOURS, SHAPES))
)
KINDS = ("add", "remove", "colour", "size")
KIND_WEIGHTS = (1, 3, 3, 3)  # of small scenes, few edits but additions lead to distinct targets

# Colours by shape. Training and iid give rectangles and triangles disjoint sets of colours; novel
# swaps the two sets (as CLEVR-CoGenT does).
Palette = Mapping[str, tuple[str, ...]]
COOL = ("gray", "blue", "brown", "yellow")
WARM = ("red", "green", "purple", "cyan")
PALETTES: dict[str, Palette] = {
    "train": {"circle": tuple(COLOURS), "rectangle": COOL, "triangle": WARM},
    "novel": {"circle": tuple(COLOURS), "rectangle": WARM, "triangle": COOL},
    "all": {shape: tuple(COLOURS) for shape in SHAPES},
}
PALETTES["iid"] = PALETTES["train"]

# How an object is drawn, as shares of a cell's side.
HALF_SIDES = {"small": 0.19, "large": 0.36}
JITTER = 0.09
BACKGROUND = (215, 255)  # range of each of the three channels

Object = tuple[str, str, str]  # size, colour, shape
Scene = tuple[Object | None, ...]  # nine slots in reading order
# What a selector asks for: slot, size, colour, shape; None means any.
Pick = tuple[str | None, str | None, str | None, str | None]


@dataclass(frozen=True)
class Edit:
    """Describe an edit as text, and what it does to a scene."""

    kind: str  # one of KINDS
    text: str  # the modification of a query
    result: Scene  # the scene after the edit
    action: str  # what happens to the selected objects, or the object that is added
    selector: str = ""  # what selects objects; "" for an addition
    meant: tuple[bool, ...] = ()  # for each object in reading order, whether it is selected


# ---- text


def object_text(slot: int, thing: Object) -> str:
    """Return the name of one object, e.g. "top-left small red circle"."""
    return f"{SLOTS[slot]} {' '.join(thing)}"


def scene_text(scene: Scene) -> str:
    """Return the list of a scene's objects in reading order, which identifies the scene."""
    return ", ".join(object_text(slot, thing) for slot, thing in enumerate(scene) if thing)


def scene_of(text: str) -> Scene | None:
    """Return the scene that a text as of `scene_text` describes; None for any other text."""
    slots: list[Object | None] = [None] * len(SLOTS)
    for phrase in text.split(", "):
        found = OBJECT_TEXT.fullmatch(phrase)
        # Two objects in one place are no scene either.
        if found is None or slots[SLOTS.index(found[1])]:
            return None
        slots[SLOTS.index(found[1])] = (found[2], found[3], found[4])
    return tuple(slots)


def selector_text(pick: Pick) -> str:
    """Return the text of a selector, e.g. "cyan object" for (None, None, "cyan", None)."""
    slot, size, colour, shape = pick
    return " ".join(word for word in (slot, size, colour, shape or "object") if word)


def is_test_scene(scene: Scene) -> bool:
    """Return whether a scene belongs to the test splits.

    It is decided by a hash of the scene's text, so that no seed can put a test scene into training.
    """
    return hashlib.sha256(scene_text(scene).encode()).digest()[0] % 2 == 1


# ---- random scenes and edits


def random_scene(rng: random.Random, palette: Palette, least: int = 2, most: int = 5) -> Scene:
    """Draw a scene of `least` to `most` objects in colours that the palette allows."""
    # which slots are filled
    slots = rng.sample(range(len(SLOTS)), rng.randint(least, most))
    scene: list[Object | None] = [None] * len(SLOTS)
    for slot in slots:
        scene[slot] = _random_object(rng, palette)
    return tuple(scene)


def _random_object(rng: random.Random, palette: Palette) -> Object:
    """Draw an object in a colour that the palette allows for its shape."""
    shape = rng.choice(SHAPES)
    return rng.choice(SIZES), rng.choice(palette[shape]), shape


def random_pick(rng: random.Random, scene: Scene) -> Pick:
    """Draw a selector: a random non-empty subset of the attributes of an object of the scene."""
    # the object whose attributes are named
    objects = {slot: thing for slot, thing in enumerate(scene) if thing}
    chosen = rng.choice(list(objects))
    size, colour, shape = objects[chosen]

    # four bits say which attributes are named
    mask = rng.randrange(1, 16)
    return (
        SLOTS[chosen] if mask & 1 else None,
        size if mask & 2 else None,
        colour if mask & 4 else None,
        shape if mask & 8 else None,
    )


def matches(pick: Pick, slot: int, thing: Object) -> bool:
    """Return whether an object has every attribute that a selector names."""
    return all(want in (None, have) for want, have in zip(pick, (SLOTS[slot], *thing), strict=True))


def random_edit(
    rng: random.Random,
    scene: Scene,
    palette: Palette,
    kind: str | None = None,
    pick: Pick | None = None,
) -> Edit | None:
    """Draw an edit of a scene.

    Args:
        rng: source of random numbers.
        scene: the scene to edit.
        palette: the colours that the result may have.
        kind: one of KINDS; drawn if None.
        pick: the selector; drawn if None.

    Returns:
        The edit, or None where the drawn one changes nothing, empties the scene or leaves the
        palette.
    """
    kind = kind or rng.choices(KINDS, KIND_WEIGHTS)[0]
    # an addition selects nothing
    if kind == "add":
        return _random_addition(rng, scene, palette)

    # which objects are edited, and into what
    pick = pick or random_pick(rng, scene)
    selector = selector_text(pick)
    if kind == "remove":
        value = ""
        action = "remove"
        text = f"remove {selector}"
    else:
        value = rng.choice(SIZES if kind == "size" else tuple(COLOURS))
        action = f"make {value}"
        text = f"make {selector} {value}"

    # the scene after the edit
    selected = [thing is not None and matches(pick, at, thing) for at, thing in enumerate(scene)]
    result = tuple(
        _changed(thing, kind, value) if thing and hit else thing
        for thing, hit in zip(scene, selected, strict=True)
    )
    if result == scene or not any(result) or not _within(palette, result):
        return None
    meant = tuple(hit for thing, hit in zip(scene, selected, strict=True) if thing)
    return Edit(kind, text, result, action, selector, meant)


def _changed(thing: Object, kind: str, value: str) -> Object | None:
    """Return a selected object after an edit; None where it is removed."""
    size, colour, shape = thing
    if kind == "remove":
        return None
    if kind == "size":
        return (value, colour, shape)
    return (size, value, shape)


def _within(palette: Palette, scene: Scene) -> bool:
    """Return whether the palette allows the colour of every object."""
    return all(thing is None or thing[1] in palette[thing[2]] for thing in scene)


def _random_addition(rng: random.Random, scene: Scene, palette: Palette) -> Edit | None:
    """Draw an edit that adds an object to an empty slot."""
    # a scene has an empty slot, because it has at most five objects
    slot = rng.choice([slot for slot, thing in enumerate(scene) if thing is None])
    thing = _random_object(rng, palette)
    result = (*scene[:slot], thing, *scene[slot + 1 :])
    text = f"add {' '.join(thing)} to {SLOTS[slot]}"
    return Edit("add", text, result, f"add {object_text(slot, thing)}")


# ---- chains


def chain(scene: Scene, edit: Edit) -> Cot:
    """Return the true chain of an edit: the scene, what the edit selects and does, the result."""
    return Cot(
        caption=scene_text(scene), reasoning=notes(scene, edit), conclusion=scene_text(edit.result)
    )


def notes(scene: Scene, edit: Edit) -> str:
    """Return the reasoning: which objects of a scene an edit selects, and what happens to them."""
    if not edit.selector:
        return edit.action
    # what happens stands beside each selected object, so a conclusion needs no line but the object's
    outcome = edit.action.removeprefix("make ")
    lines = []
    for line in verdicts(scene, edit.selector, edit.meant):
        lines.append(f"{line} {outcome}" if line.endswith(": yes") else line)
    return "; ".join(lines)


def verdicts(scene: Scene, selector: str, meant: Sequence[bool]) -> list[str]:
    """Return the selector and, for each object in reading order, whether it is selected."""
    # the selector comes first, so that it is resolved before the verdicts
    lines = [f"meant by: {selector}"]
    objects = [(slot, thing) for slot, thing in enumerate(scene) if thing]
    for (slot, thing), selected in zip(objects, meant, strict=True):
        lines.append(f"{object_text(slot, thing)}: {'yes' if selected else 'no'}")
    return lines


# ---- pictures


def render(scene: Scene, rng: random.Random, size: int = 84) -> Image.Image:
    """Draw a scene as an RGB picture, twice supersampled.

    Args:
        scene: what is drawn.
        rng: draws the background and moves each object a little.
        size: width and height in pixels.
    """
    side = 2 * size  # before it is reduced
    cell = side / GRID  # of the grid, in pixels
    # drawn at twice the size, so that edges are smooth
    background = tuple(rng.randint(*BACKGROUND) for _ in range(3))
    picture = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(picture)
    for slot, thing in enumerate(scene):
        if thing is not None:
            row, column = divmod(slot, GRID)
            x = cell * (column + 0.5) + rng.uniform(-1, 1) * cell * JITTER
            y = cell * (row + 0.5) + rng.uniform(-1, 1) * cell * JITTER
            _draw_object(draw, thing, x, y, cell * HALF_SIDES[thing[0]])
    return picture.reduce(2)


def _draw_object(draw: ImageDraw.ImageDraw, thing: Object, x: float, y: float, half: float) -> None:
    """Draw an object around (x, y), `half` of its side to each direction, in pixels."""
    _, colour, shape = thing
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "rectangle":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        corners = [(x, y - half), (x - half, y + half), (x + half, y + half)]
        draw.polygon(corners, fill=COLOURS[colour])
