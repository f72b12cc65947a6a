"""The procedural benchmark: 3 x 3 scenes of simple shapes, edits in words, true chains; after CSS (TIRG, 1812.07119).

A query is a picture of a scene and an edit whose selector is partial: "remove cyan object" acts on every cyan object,
so the edit must be resolved against the picture before the target is known. Facts that hold by construction:

- train and iid draw rectangles and triangles from disjoint colour sets, novel swaps the two sets (CLEVR-CoGenT);
- a scene belongs to training or to test by a hash of its words, whatever the seed: no test scene is ever trained on;
- the right answers are all gallery pictures of the target scene (canonical words), and each reference's other edits
  are in the gallery as distractors;
- every picture is rendered by itself with jitter and a background of its own: no target is a copy of another picture.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.ownership import writing
from cir_cot.records import Cot, Record, write_records
from cir_cot.storage import written

SPLITS = ("train", "iid", "novel")
SLOTS = tuple(
    f"{row}-{column}"
    for row in ("top", "middle", "bottom")
    for column in ("left", "center", "right")
)
SIZES = ("small", "large")
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
KINDS = ("add", "remove", "colour", "size")
KIND_WEIGHTS = (1, 3, 3, 3)  # small scenes soon run out of distinct targets but for additions
COOL, WARM = ("gray", "blue", "brown", "yellow"), ("red", "green", "purple", "cyan")
PALETTES = {
    "train": {"circle": tuple(COLOURS), "rectangle": COOL, "triangle": WARM},
    "novel": {"circle": tuple(COLOURS), "rectangle": WARM, "triangle": COOL},
    "all": {shape: tuple(COLOURS) for shape in SHAPES},
}
PALETTES["iid"] = PALETTES["train"]

Object = tuple[str, str, str]  # size, colour, shape
Scene = tuple[Object | None, ...]  # nine slots in reading order
Pick = tuple[
    str | None, str | None, str | None, str | None
]  # slot, size, colour, shape; None = any


@dataclass(frozen=True)
class Edit:
    """An edit in words and what it does to a scene.

    `meant` says of each object of the reference, in reading order, whether the `selector` means it; `action` is what
    happens to those, or the object that is added (then there is no selector).
    """

    kind: str
    text: str
    result: Scene
    action: str
    selector: str = ""
    meant: tuple[bool, ...] = ()


def object_text(slot: int, thing: Object) -> str:
    """Name one object, e.g. "top-left small red circle"."""
    return f"{SLOTS[slot]} {' '.join(thing)}"


def scene_text(scene: Scene) -> str:
    """List a scene in reading order; the canonical key of a scene."""
    return ", ".join(object_text(slot, thing) for slot, thing in enumerate(scene) if thing)


def is_test_scene(scene: Scene) -> bool:
    """Tell whether a scene belongs to the test splits; a property of its words alone, so no seed can mix them."""
    return hashlib.sha256(scene_text(scene).encode()).digest()[0] % 2 == 1


def selector_text(pick: Pick) -> str:
    """Name what a selector asks for, e.g. (None, None, "cyan", None) -> "cyan object"."""
    return " ".join(word for word in (*pick[:3], pick[3] or "object") if word)


def matches(pick: Pick, slot: int, thing: Object) -> bool:
    """Tell whether an object has every attribute that a selector names."""
    return all(want in (None, have) for want, have in zip(pick, (SLOTS[slot], *thing), strict=True))


def random_pick(rng: random.Random, scene: Scene) -> Pick:
    """Draw a selector: a random non-empty subset of the attributes of an existing object."""
    slot = rng.choice([slot for slot, thing in enumerate(scene) if thing])
    attributes = (SLOTS[slot], *scene[slot])
    mask = rng.randrange(1, 16)
    return tuple(value if mask >> bit & 1 else None for bit, value in enumerate(attributes))


def random_scene(rng: random.Random, palette: dict, least: int = 2, most: int = 5) -> Scene:
    """Draw a scene of `least` to `most` objects whose colours the palette allows."""
    slots = rng.sample(range(9), rng.randint(least, most))
    scene: list[Object | None] = [None] * 9
    for slot in slots:
        scene[slot] = _random_object(rng, palette)
    return tuple(scene)


def random_edit(
    rng: random.Random,
    scene: Scene,
    palette: dict,
    kind: str | None = None,
    pick: Pick | None = None,
) -> Edit | None:
    """Draw an edit of a scene; None when the draw is a no-op, empties the scene or leaves the palette.

    `kind` and `pick` are drawn unless they are given.
    """
    kind = kind or rng.choices(KINDS, KIND_WEIGHTS)[0]
    if kind == "add":
        return _add(rng, scene, palette)
    pick = pick or random_pick(rng, scene)
    selector = selector_text(pick)
    if kind == "remove":
        change, action, text = (lambda thing: None), "remove", f"remove {selector}"
    else:
        value = rng.choice(SIZES if kind == "size" else tuple(COLOURS))
        at = 0 if kind == "size" else 1
        change, action = (lambda thing: (*thing[:at], value, *thing[at + 1 :])), f"make {value}"
        text = f"make {selector} {value}"
    touched = {slot for slot, thing in enumerate(scene) if thing and matches(pick, slot, thing)}
    result = tuple(change(thing) if slot in touched else thing for slot, thing in enumerate(scene))
    if (
        result == scene
        or not any(result)
        or not all(t is None or t[1] in palette[t[2]] for t in result)
    ):
        return None
    meant = tuple(slot in touched for slot, thing in enumerate(scene) if thing)
    return Edit(kind, text, result, action, selector, meant)


def chain(scene: Scene, edit: Edit) -> Cot:
    """Write the true chain: the scene, which of its objects the selector means and what becomes of them, the target."""
    return Cot(
        caption=scene_text(scene), reasoning=notes(scene, edit), conclusion=scene_text(edit.result)
    )


def notes(scene: Scene, edit: Edit) -> str:
    """Say which objects of a scene an edit's selector means, and what becomes of them."""
    meant = verdicts(scene, edit.selector, edit.meant) if edit.selector else []
    return "; ".join([*meant, edit.action])


def verdicts(scene: Scene, selector: str, meant: Sequence[bool]) -> list[str]:
    """Restate a selector, then say of each object of a scene, in reading order, whether it is meant."""
    names = [object_text(slot, thing) for slot, thing in enumerate(scene) if thing]
    answers = [f"{name}: {'yes' if yes else 'no'}" for name, yes in zip(names, meant, strict=True)]
    return [f"meant by: {selector}", *answers]


def _random_object(rng: random.Random, palette: dict) -> Object:
    shape = rng.choice(SHAPES)
    return rng.choice(SIZES), rng.choice(palette[shape]), shape


def _add(rng: random.Random, scene: Scene, palette: dict) -> Edit | None:
    slot, thing = (
        rng.choice([slot for slot in range(9) if scene[slot] is None]),
        _random_object(rng, palette),
    )
    result = (*scene[:slot], thing, *scene[slot + 1 :])
    text = f"add {' '.join(thing)} to {SLOTS[slot]}"
    return Edit("add", text, result, f"add {object_text(slot, thing)}")


def render(scene: Scene, rng: random.Random, size: int = 84) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels, twice supersampled; `rng` jitters it."""
    cell = 2 * size / 3
    picture = Image.new("RGB", (2 * size, 2 * size), tuple(rng.randint(215, 255) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for slot, thing in enumerate(scene):
        if thing is None:
            continue
        row, column = divmod(slot, 3)
        half = cell * (0.36 if thing[0] == "large" else 0.19)
        x = cell * (column + 0.5) + rng.uniform(-1, 1) * cell * 0.09
        y = cell * (row + 0.5) + rng.uniform(-1, 1) * cell * 0.09
        box = (x - half, y - half, x + half, y + half)
        if thing[2] == "circle":
            draw.ellipse(box, fill=COLOURS[thing[1]])
        elif thing[2] == "rectangle":
            draw.rectangle(box, fill=COLOURS[thing[1]])
        else:
            draw.polygon(
                [(x, y - half), (x - half, y + half), (x + half, y + half)], fill=COLOURS[thing[1]]
            )
    return picture.reduce(2)


def _distinct_edits(
    rng: random.Random, scene: Scene, palette: dict, count: int, test: bool
) -> list[Edit]:
    """Return `count` edits with distinct target scenes of the wanted side of the train/test hash, else fewer."""
    found: dict[Scene, Edit] = {}
    for _ in range(200 * count):
        edit = random_edit(rng, scene, palette)
        if edit and edit.result not in found and is_test_scene(edit.result) == test:
            found[edit.result] = edit
            if len(found) == count:
                break
    return list(found.values())


def _references(
    seed: int, split: str, references: int, edits: int
) -> Iterator[tuple[Scene, list[Edit]]]:
    rng, test = random.Random(f"{seed}/{split}"), split != "train"
    seen: set[Scene] = set()
    while len(seen) < references:
        scene = random_scene(rng, PALETTES[split])
        if scene in seen or is_test_scene(scene) != test:
            continue
        made = _distinct_edits(rng, scene, PALETTES[split], edits, test)
        if len(made) == edits:
            seen.add(scene)
            yield scene, made


def make_split(
    seed: int, split: str, references: int, edits: int
) -> tuple[list[Record], dict[str, Scene]]:
    """Return the queries of a split (with true chains) and its gallery (image id -> scene), in gallery order."""
    gallery: dict[str, Scene] = {}
    queries = []
    for number, (scene, made) in enumerate(_references(seed, split, references, edits)):
        reference = f"{split}-{number:04d}-00"
        gallery[reference] = scene
        for turn, edit in enumerate(made, 1):
            target = f"{split}-{number:04d}-{turn:02d}"
            gallery[target] = edit.result
            queries.append((target, reference, scene, edit))
    same = defaultdict(list)
    for image, scene in gallery.items():
        same[scene].append(image)
    records = []
    for target, reference, scene, edit in queries:
        source = f"scenes/{split}/{edit.kind}"
        same_scene = tuple(same[edit.result])
        records.append(
            Record(target, reference, edit.text, same_scene, chain(scene, edit), (), source)
        )
    return records, gallery


def _draw(job: tuple[str, list[tuple[str, Scene]], int, int]) -> int:
    folder, images, seed, size = job
    for image, scene in images:
        picture = render(scene, random.Random(f"{seed}/{image}"), size)
        picture.save(f"{folder}/{image}.png", compress_level=1)
    return len(images)


def write_scenes(
    folder: str | Path,
    seed: int,
    references: int = 1000,
    edits: int = 16,
    size: int = 84,
    progress: Callable[[int, int], None] | None = None,
    test_references: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the benchmark as a folder dataset (train, iid, novel) and return the gallery size of each split.

    `references` x `edits` queries a split, `test_references` x `edits` in iid and novel where it is given; `size` in
    pixels, a multiple of 12 (three cells, drawn twice as large). `progress(done, total)` is called as pictures are
    written. The same arguments give the same bytes. InputError where a file is there that no run of this function
    wrote, unless `overwrite`.
    """
    counts = {
        split: references if split == "train" else test_references or references for split in SPLITS
    }
    if min(counts.values()) < 1 or not 1 <= edits <= 40 or size < 24 or size % 12:
        raise InputError(
            f"scenes: references {references} and {test_references}, edits {edits}, size {size}: "
            "give references >= 1, edits 1..40, size a multiple of 12 from 24"
        )
    folder = Path(folder)
    made = {split: make_split(seed, split, counts[split], edits) for split in SPLITS}
    images = [pair for _, gallery in made.values() for pair in gallery.items()]
    texts = [
        f"{kind}.{split}.{end}"
        for split in SPLITS
        for kind, end in (("records", "jsonl"), ("gallery", "txt"))
    ]
    pictures = [f"images/{image}.png" for image, _ in images]
    with written(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with writing(folder, "scenes", texts, overwrite, unread=pictures):
            for split, (records, gallery) in made.items():
                write_records(folder / f"records.{split}.jsonl", records)
                write_text_atomic(folder / f"gallery.{split}.txt", "\n".join(gallery) + "\n")
            _draw_all(folder / "images", images, seed, size, progress)
    return {split: len(gallery) for split, (_, gallery) in made.items()}


def _draw_all(
    folder: Path, images: list[tuple[str, Scene]], seed: int, size: int, progress: Callable | None
) -> None:
    """Draw pictures in several processes."""
    jobs = [(str(folder), images[at : at + 500], seed, size) for at in range(0, len(images), 500)]
    done = 0
    with ProcessPoolExecutor() as pool:
        for count in pool.map(_draw, jobs):
            done += count
            if progress:
                progress(done, len(images))
