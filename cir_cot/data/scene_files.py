"""Write the procedural benchmark of scenes as a folder dataset with true chains.

These hold by construction:

- train and iid give rectangles and triangles disjoint sets of colours; novel swaps the two sets;
- a scene belongs to training or to test by a hash of its text, whatever the seed: no test scene is
  ever trained on;
- the right answers are all gallery pictures of the target scene, and the results of each
  reference's other edits are in the gallery as distractors;
- every picture is drawn by itself, with jitter and a background of its own: no target is a copy of
  another picture.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.ownership import writing
from cir_cot.records import Record, write_records
from cir_cot.storage import written

from .scenes import (
    PALETTES,
    Edit,
    Palette,
    Scene,
    chain,
    is_test_scene,
    random_edit,
    random_scene,
    render,
)

SPLITS = ("train", "iid", "novel")
MAX_EDITS = 40  # of a reference: small scenes have few distinct results
TRIES = 200  # draws for each edit that is wanted, before a scene is given up
PICTURES_PER_JOB = 500  # that one process draws before it reports

Progress = Callable[[int, int], None]  # called with (pictures that are written, all pictures)


class Split(NamedTuple):
    """Hold the queries of a split and its gallery, {image id: scene} in gallery order."""

    records: list[Record]
    gallery: dict[str, Scene]


# ---- queries and galleries


def make_split(seed: int, split: str, references: int, edits: int) -> Split:
    """Draw `references` x `edits` queries and their gallery.

    Args:
        seed: the same seed gives the same split.
        split: one of SPLITS.
        references: number of reference scenes.
        edits: queries on each of them.
    """
    # every reference and every result of an edit is one image of the gallery
    gallery: dict[str, Scene] = {}
    queries = []
    for number, (scene, drawn) in enumerate(_references(seed, split, references, edits)):
        reference = f"{split}-{number:04d}-00"
        gallery[reference] = scene
        for turn, edit in enumerate(drawn, 1):
            target = f"{split}-{number:04d}-{turn:02d}"
            gallery[target] = edit.result
            queries.append((target, reference, scene, edit))

    # all images of the target scene are right answers
    same = defaultdict(list)
    for image, scene in gallery.items():
        same[scene].append(image)
    records = []
    for target, reference, scene, edit in queries:
        record = Record(
            id=target,
            reference=reference,
            text=edit.text,
            targets=tuple(same[edit.result]),
            cot=chain(scene, edit),
            source=f"scenes/{split}/{edit.kind}",
        )
        records.append(record)
    return Split(records, gallery)


def _references(
    seed: int, split: str, references: int, edits: int
) -> Iterator[tuple[Scene, list[Edit]]]:
    """Yield distinct scenes of a split, each with `edits` edits that lead to distinct scenes."""
    # every split has its own random numbers
    rng = random.Random(f"{seed}/{split}")
    test = split != "train"
    seen: set[Scene] = set()
    while len(seen) < references:
        scene = random_scene(rng, PALETTES[split])
        if scene in seen or is_test_scene(scene) != test:
            continue
        # a scene with too few distinct edits is given up
        drawn = _distinct_edits(rng, scene, PALETTES[split], edits, test)
        if len(drawn) == edits:
            seen.add(scene)
            yield scene, drawn


def _distinct_edits(
    rng: random.Random, scene: Scene, palette: Palette, count: int, test: bool
) -> list[Edit]:
    """Return `count` edits with distinct results that are test scenes or not, or else fewer."""
    found: dict[Scene, Edit] = {}
    for _ in range(TRIES * count):
        edit = random_edit(rng, scene, palette)
        if edit and edit.result not in found and is_test_scene(edit.result) == test:
            found[edit.result] = edit
            if len(found) == count:
                break
    return list(found.values())


# ---- files


def write_scenes(
    folder: str | Path,
    seed: int,
    references: int = 1000,
    edits: int = 16,
    size: int = 84,
    progress: Progress | None = None,
    test_references: int | None = None,
    train_edits: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the benchmark as a folder dataset; the same arguments give the same bytes.

    Args:
        folder: where it is written; it is created if needed.
        seed: of all random choices.
        references: reference pictures in train, and in iid and novel unless `test_references` is
            given.
        edits: queries on each reference.
        size: width and height of a picture in pixels, a multiple of 12 (three cells, drawn twice as
            large).
        progress: called as pictures are written.
        test_references: reference pictures in iid and in novel.
        train_edits: queries on each reference in train. Few give more removals: small scenes have
            many distinct additions, and few other edits.
        overwrite: replace files that this function did not write, too.

    Returns:
        {split: number of pictures in its gallery}.
    """
    # references and edits by split
    counts = {split: test_references or references for split in SPLITS} | {"train": references}
    edits_of = dict.fromkeys(SPLITS, edits)
    edits_of["train"] = edits if train_edits is None else train_edits
    _check_sizes(counts, edits_of, size)

    # draw the queries, then list all files before the first one is written
    folder = Path(folder)
    splits = {split: make_split(seed, split, counts[split], edits_of[split]) for split in SPLITS}
    images: list[tuple[str, Scene]] = []
    texts = []
    for split, drawn in splits.items():
        images += drawn.gallery.items()
        texts += [f"records.{split}.jsonl", f"gallery.{split}.txt"]
    pictures = [f"images/{image}.png" for image, _ in images]

    # write texts, then pictures
    with written(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with writing(folder, "scenes", texts, overwrite, unread=pictures):
            for split, drawn in splits.items():
                write_records(folder / f"records.{split}.jsonl", drawn.records)
                write_text_atomic(folder / f"gallery.{split}.txt", "\n".join(drawn.gallery) + "\n")
            _draw_all(folder / "images", images, seed, size, progress)
    return {split: len(drawn.gallery) for split, drawn in splits.items()}


def _check_sizes(references: dict[str, int], edits: dict[str, int], size: int) -> None:
    """Refuse numbers of references and edits by split, or a size in pixels, that cannot be drawn."""
    usable = all(1 <= count <= MAX_EDITS for count in edits.values())
    if min(references.values()) < 1 or not usable or size < 24 or size % 12:
        raise InputError(
            f"scenes: references {references}, edits {edits}, size {size}: give references >= 1, "
            f"edits 1..{MAX_EDITS}, size a multiple of 12 from 24"
        )


def _draw_all(
    folder: Path,
    images: list[tuple[str, Scene]],
    seed: int,
    size: int,
    progress: Progress | None,
) -> None:
    """Draw pictures in several processes."""
    jobs = []
    for start in range(0, len(images), PICTURES_PER_JOB):
        jobs.append((str(folder), images[start : start + PICTURES_PER_JOB], seed, size))
    done = 0
    # results come in order, so that progress only grows
    with ProcessPoolExecutor() as pool:
        for count in pool.map(_draw, jobs):
            done += count
            if progress:
                progress(done, len(images))


def _draw(job: tuple[str, list[tuple[str, Scene]], int, int]) -> int:
    """Draw the pictures of one job; return their number."""
    folder, images, seed, size = job
    for image, scene in images:
        # a seed of its own: a picture does not depend on the others
        picture = render(scene, random.Random(f"{seed}/{image}"), size)
        picture.save(f"{folder}/{image}.png", compress_level=1)
    return len(images)
