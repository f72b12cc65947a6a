"""The procedural benchmark: what holds by construction, and that the words, the pictures and the truth agree."""

import random
import re
import resource
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cir_cot import cli
from cir_cot.data import scene_files, scenes
from cir_cot.errors import InputError
from cir_cot.records import read_records
from cir_cot.scripts.data_gen.scenes import main as write_scenes_command


@pytest.fixture(scope="module")
def splits():
    return {
        split: scene_files.make_split(7, split, references=60, edits=10)
        for split in scene_files.SPLITS
    }


def combinations(gallery):
    return {(thing[1], thing[2]) for scene in gallery.values() for thing in scene if thing}


def test_no_test_scene_is_ever_a_training_scene(splits):
    train = set(scene_files.make_split(123, "train", references=80, edits=10)[1].values()) | set(
        splits["train"][1].values()
    )
    for split in ("iid", "novel"):
        assert not train & set(splits[split][1].values())
    for split, (_, gallery) in splits.items():
        assert {scenes.is_test_scene(scene) for scene in gallery.values()} == {split != "train"}


def test_novel_swaps_the_colours_of_rectangles_and_triangles(splits):
    train, iid, novel = (combinations(splits[split][1]) for split in scene_files.SPLITS)
    for shape in ("rectangle", "triangle"):
        seen = {colour for colour, kind in train if kind == shape}
        new = {colour for colour, kind in novel if kind == shape}
        assert len(seen) == len(new) == 4
        assert not seen & new
        assert {colour for colour, kind in iid if kind == shape} == seen
    assert {colour for colour, kind in novel if kind == "circle"} == set(scenes.COLOURS)


def parse(text):
    """Read a scene back from its words, independently of how they were written."""
    return {words[0]: tuple(words[1:]) for words in (part.split() for part in text.split(", "))}


def resolve(text, scene):
    """Apply an edit to a scene by reading its words: a second implementation of what an edit means."""
    verb, *rest = text.split()
    if verb == "add":
        return {**scene, rest[-1]: tuple(rest[:3])}
    value = rest.pop() if verb == "make" else None
    wanted = set(rest) - {"object"}
    touched = [slot for slot, thing in scene.items() if wanted <= {slot, *thing}]
    changed = dict(scene)
    for slot in touched:
        size, colour, shape = changed.pop(slot)
        if verb == "make":
            changed[slot] = (
                (value, colour, shape) if value in scenes.SIZES else (size, value, shape)
            )
    return changed


def test_every_edit_in_words_leads_from_the_caption_to_the_conclusion(splits):
    for records, gallery in splits.values():
        for record in records:
            assert resolve(record.text, parse(record.cot.caption)) == parse(
                record.cot.conclusion
            ), record
            assert scenes.scene_text(gallery[record.reference]) == record.cot.caption
            assert scenes.scene_text(gallery[record.id]) == record.cot.conclusion


def verdicts(record):
    """The verdict of the reasoning on each object: {slot: meant or not}."""
    found = {}
    for name, verdict in re.findall(r"(?:^|; )([^;]+): (yes|no)\b", record.cot.reasoning):
        found[name.split()[0]] = verdict == "yes"
    return found


def test_reasoning_resolves_the_selector_to_exactly_the_objects_it_means(splits):
    for record in splits["iid"][0]:
        before, after = parse(record.cot.caption), parse(record.cot.conclusion)
        steps = record.cot.reasoning.split("; ")
        first = steps[0]
        if record.text.startswith("add"):
            slot = record.text.split()[-1]
            assert steps == [f"add {slot} {' '.join(after[slot])}"]
            continue
        wanted = set(first.removeprefix("meant by: ").split()) - {"object"}
        assert verdicts(record) == {
            slot: wanted <= {slot, *thing} for slot, thing in before.items()
        }
        assert {slot for slot in before if before[slot] != after.get(slot)} <= {
            s for s, yes in verdicts(record).items() if yes
        }
        # What happens is said beside every selected object, in the words of the request.
        outcome = "remove" if record.text.startswith("remove") else record.text.split()[-1]
        outcomes = {step.partition(": yes ")[2] for step in steps if ": yes" in step}
        assert outcomes == {outcome}


def test_targets_are_all_pictures_of_the_target_scene_and_never_the_reference(splits):
    for records, gallery in splits.values():
        for record in records:
            wanted = record.cot.conclusion
            assert {
                image for image, scene in gallery.items() if scenes.scene_text(scene) == wanted
            } == set(record.targets)
            assert record.reference not in record.targets


def test_a_references_other_edits_are_in_the_gallery_and_differ(splits):
    records, gallery = splits["train"]
    for reference, count in Counter(record.reference for record in records).items():
        results = {gallery[record.id] for record in records if record.reference == reference}
        assert count == len(results) == 10
        assert gallery[reference] not in results


def test_selectors_are_partial_and_some_touch_several_objects(splits):
    meant = [
        sum(verdicts(r).values())
        for records, _ in splits.values()
        for r in records
        if not r.text.startswith("add")
    ]
    assert min(meant) == 1
    assert sum(count > 1 for count in meant) > 0.1 * len(meant)
    assert {record.source.rpartition("/")[2] for record in splits["iid"][0]} == set(scenes.KINDS)


def test_training_scenes_may_have_other_numbers_of_edits_than_test_scenes(tmp_path):
    scene_files.write_scenes(tmp_path, 0, 4, edits=6, test_references=3, train_edits=2)
    for split, count in {"train": 4 * 2, "iid": 3 * 6, "novel": 3 * 6}.items():
        assert len(read_records(tmp_path / f"records.{split}.jsonl")) == count
    # The test splits are the same for every number of edits in training.
    expected = scene_files.make_split(0, "iid", 3, 6).records
    assert read_records(tmp_path / "records.iid.jsonl") == expected


def test_pictures_show_the_words_and_no_two_renderings_are_equal():
    scene = scenes.random_scene(random.Random(1), scenes.PALETTES["all"], 4, 4)
    first, second = (np.asarray(scenes.render(scene, random.Random(seed))) for seed in (1, 2))
    assert first.shape == (84, 84, 3)
    assert (first != second).any()
    for slot, thing in enumerate(scene):
        row, column = divmod(slot, 3)
        middle = first[28 * row + 14, 28 * column + 14].astype(int)
        if thing:
            assert np.abs(middle - scenes.COLOURS[thing[1]]).max() <= 2, (slot, thing, middle)
        else:
            assert middle.min() >= 213


def test_large_things_are_drawn_larger_than_small_ones():
    covered = {}
    for size in scenes.SIZES:
        scene = (None, None, None, None, (size, "red", "rectangle"), None, None, None, None)
        picture = np.asarray(scenes.render(scene, random.Random(0))).astype(int)
        covered[size] = (np.abs(picture - scenes.COLOURS["red"]).max(axis=2) < 30).mean()
    assert covered["large"] == pytest.approx(
        (2 * 0.36 / 3) ** 2, rel=0.1
    )  # of the picture; a cell is a ninth of it
    assert covered["small"] == pytest.approx((2 * 0.19 / 3) ** 2, rel=0.1)


def test_same_seed_same_bytes_and_the_folder_reads_back(tmp_path):
    sizes = scene_files.write_scenes(tmp_path / "a", seed=3, references=4, edits=5)
    scene_files.write_scenes(tmp_path / "b", seed=3, references=4, edits=5)
    fewer = scene_files.write_scenes(
        tmp_path / "d", seed=3, references=4, edits=5, test_references=2
    )
    assert fewer == {"train": 24, "iid": 12, "novel": 12}
    scene_files.write_scenes(tmp_path / "c", seed=4, references=4, edits=5)
    files = sorted(
        path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert len(files) == 3 * (4 * 6 + 2) + 1  # and the list of what it wrote
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in files
    )
    assert (tmp_path / "a/records.iid.jsonl").read_bytes() != (
        tmp_path / "c/records.iid.jsonl"
    ).read_bytes()
    gallery = (tmp_path / "a/gallery.iid.txt").read_text().split()
    assert sizes == {split: 24 for split in scene_files.SPLITS}
    assert len(gallery) == 24
    pictures = [path.read_bytes() for path in (tmp_path / "a/images").iterdir()]
    assert len(pictures) == len(set(pictures)) == 72
    corners = {Image.open(path).getpixel((0, 0)) for path in (tmp_path / "a/images").iterdir()}
    assert len(corners) > 60, "each has a background of its own"
    for record in read_records(tmp_path / "a/records.iid.jsonl"):
        assert {record.reference, *record.targets} <= set(gallery)


@pytest.mark.parametrize("bad", [{"references": 0}, {"edits": 41}, {"size": 85}, {"size": 12}])
def test_unusable_sizes_are_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(InputError, match=str(next(iter(bad.values())))):
        scene_files.write_scenes(tmp_path / "x", seed=0, **bad)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name", ["records.iid.jsonl", "gallery.train.txt", "images/novel-0001-02.png"]
)
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: not written by this command, or edited since"):
        scene_files.write_scenes(tmp_path, seed=1, references=2, edits=2)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [(tmp_path / name).name]
    assert (tmp_path / name).read_text() == "mine"
    scene_files.write_scenes(tmp_path, seed=1, references=2, edits=2, overwrite=True)
    scene_files.write_scenes(tmp_path, seed=2, references=2, edits=2)


@pytest.mark.parametrize("size", [100, 4000])
def test_a_full_disk_is_one_line(tmp_path, capsys, size):
    """At the first file, and among the pictures, which other processes draw."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        argv = [
            "--out",
            str(tmp_path / "x"),
            "--seed",
            "1",
            "--references",
            "2",
            "--edits",
            "2",
            "--size",
            "600",
        ]
        with pytest.raises(SystemExit) as exit:
            cli.run(write_scenes_command, argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exit.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "File too large" in line
    assert "make room" in line


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file.x: Not a directory; make room or give another folder"
    ):
        scene_files.write_scenes(tmp_path / "file" / "x", seed=1, references=2, edits=2)


def test_a_page_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    argv = [
        "--out",
        str(tmp_path / "x"),
        "--seed",
        "1",
        "--references",
        "2",
        "--edits",
        "8",
        "--page",
    ]
    with pytest.raises(
        InputError, match=r"mine\.png: not written by this command, or edited since"
    ):
        write_scenes_command([*argv, str(tmp_path / "mine.png")])
    assert (tmp_path / "mine.png").read_text() == "mine"
