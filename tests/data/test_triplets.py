"""From a folder of pictures to a retriever: the triplets, and every command of its page on a tiny folder."""

import csv
import re
import resource
import shlex
from collections import Counter
from pathlib import Path

import fake_server
import pytest
import tiny_training
from PIL import Image

from cir_cot import cli
from cir_cot.chains.filters import FILTERS
from cir_cot.data.triplet_files import split as split_images
from cir_cot.data.triplets import edit_of_captions
from cir_cot.errors import InputError
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.records import read_records
from cir_cot.scripts.data_gen import triplets

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "own_pictures.md"
SHADES = ("red", "blue", "green")
FEW = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--lora_r",
    "4",
    "--lora_alpha",
    "8",
]
QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]


def write_labels(path, rows, header=("image", "ground", "bar")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def own(tmp_path):
    """36 pictures of a ground colour and a bar colour, some in a folder of their own, with labels."""
    root = tmp_path / "mydata"
    (root / "images" / "more").mkdir(parents=True)
    rows = []
    for number, ground in enumerate(tiny_training.COLOURS):
        for bar in tiny_training.COLOURS:
            name = f"{'more/' if number > 3 else ''}{ground}-{bar}"
            tiny_training.Pictures().load(f"{ground}-{bar}").save(root / "images" / f"{name}.png")
            rows.append((name, ground, bar))
    write_labels(root / "labels.csv", rows)
    return root


def labels_of(root):
    with (root / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def made(root, *more, labels="labels.csv"):
    """The records of train and val that the command writes."""
    assert triplets.main(["--root", str(root), "--labels", str(root / labels), *more]) == 0
    files = [root / f"records.{split}.jsonl" for split in ("train", "val")]
    return [read_records(file) if file.exists() else [] for file in files]


def test_edits_of_labels_lead_to_every_picture_that_has_them(own):
    train, val = made(own, "--edits", "3", "--chains", "--wording", "plain")
    galleries = [(own / f"gallery.{split}.txt").read_text().split() for split in ("train", "val")]
    assert sorted(galleries[0] + galleries[1]) == sorted(row[0] for row in labels_of(own))
    assert 3 <= len(galleries[1]) <= 12
    assert len(train) == 3 * len(
        galleries[0]
    )  # every picture has a neighbour, and three edits of more are drawn
    for records, gallery in zip((train, val), galleries, strict=True):
        asked = Counter(record.reference for record in records)
        assert set(asked) <= set(gallery)
        assert set(asked.values()) <= {1, 2, 3}
        for record in records:
            assert set(record.targets) < set(gallery)
            old, new = (
                dict(zip(("ground", "bar"), name.removeprefix("more/").split("-"), strict=True))
                for name in (record.reference, record.targets[0])
            )
            changes = [
                f"{key} {new[key]} instead of {old[key]}" for key in old if old[key] != new[key]
            ]
            assert record.text == " and ".join(changes)
            assert record.cot.caption == "ground {ground}, bar {bar}.".format(**old)
            assert record.cot.conclusion == "ground {ground}, bar {bar}.".format(**new)
    assert [one.name for record in train + val for one in FILTERS if one.problem(record)] == []


def test_pictures_with_the_same_labels_are_all_right(own):
    rows = [(f"red-{bar}", "red", "any") for bar in tiny_training.COLOURS] + [
        ("blue-red", "blue", "any")
    ]
    write_labels(own / "few.csv", rows)
    train, _ = made(own, "--val", "0", "--wording", "plain", labels="few.csv")
    (to_red,) = (record for record in train if record.reference == "blue-red")
    assert set(to_red.targets) == {f"red-{bar}" for bar in tiny_training.COLOURS}
    assert {record.text for record in train} == {
        "ground red instead of blue",
        "ground blue instead of red",
    }
    assert all(record.cot is None for record in train)


def test_the_same_seed_writes_the_same_and_later_pictures_stay_in_their_split(own):
    first = made(own, "--seed", "5")
    held = (own / "gallery.val.txt").read_text().split()
    assert made(own, "--seed", "5") == first
    assert made(own, "--seed", "6") != first
    rows = labels_of(own)
    write_labels(own / "fewer.csv", rows[:30])
    made(own, labels="fewer.csv")
    assert (own / "gallery.val.txt").read_text().split() == [
        name for name, *_ in rows[:30] if name in held
    ]


def test_about_the_asked_share_is_held_out():
    names = [f"picture-{number}" for number in range(2000)]
    for share in (0.1, 0.5):
        assert len(split_images(names, share)["val"]) == pytest.approx(2000 * share, rel=0.15)


CAPTIONS = {
    ("a blue shirt with long sleeves", "A red shirt with long sleeves."): "red instead of blue",
    ("a blue shirt", "a blue shirt with a belt"): "with a belt",
    ("a blue shirt and a wide belt", "a blue shirt"): "without a wide belt",
    ("a red shirt", "a red shirt"): None,
    ("a red shirt", "two dogs on grass"): None,
    ("a b c d e f g h i j", "a 1 c 2 e 3 g 4 i j"): None,  # four parts are too many
}


@pytest.mark.parametrize(("captions", "text"), CAPTIONS.items())
def test_edits_of_captions_say_what_differs(captions, text):
    edit = edit_of_captions(*captions)
    assert (edit and edit.text) == text


def test_captions_give_triplets_too(own):
    rows = [
        (f"{g}-{b}", f"A {b} bar on {g} paper, photographed from above.")
        for g in SHADES
        for b in SHADES
    ]
    write_labels(own / "captions.csv", rows, ("image", "caption"))
    train, _ = made(own, "--val", "0", "--edits", "8", "--chains", labels="captions.csv")
    assert len(train) == 9 * 8
    assert [one.name for record in train for one in FILTERS if one.problem(record)] == []
    (one,) = (r for r in train if r.reference == "red-blue" and r.targets == ("red-green",))
    assert len({(r.reference, r.targets) for r in train}) == len(train)
    assert one.text == "green instead of blue"
    assert one.cot.conclusion == "A green bar on red paper, photographed from above."


def test_what_is_not_known_is_not_compared(own):
    write_labels(
        own / "gaps.csv",
        [("red-red", "red", "red"), ("red-blue", "red", ""), ("blue-red", "blue", "red")],
    )
    train, _ = made(own, "--val", "0", labels="gaps.csv")
    assert {(record.reference, record.targets[0]) for record in train} == {
        ("red-red", "blue-red"),
        ("blue-red", "red-red"),
    }


BAD = {
    "no such picture": ([("red-pink", "red", "pink")], "row 2: no picture 'red-pink'"),
    "twice": ([("red-red", "red", "red")] * 2, "row 3: image 'red-red' has a line already"),
    "too few values": ([("red-red", "red")], "row 2: 2 values under 3 names"),
    "nothing in common": (
        [("red-red", "red", "red")],
        "no two of the 1 pictures of train are alike enough",
    ),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_named(own, rows, message):
    write_labels(own / "bad.csv", rows)
    with pytest.raises(InputError, match=re.escape(message)):
        made(own, "--val", "0", labels="bad.csv")
    assert not (own / "records.train.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header must be"),
        (b"id,colour\n", "the header must be"),
        (b"image,a,a\n", "the header must be"),
        (b"image,caption,colour\n", "'caption' stands alone"),
        (b"image,\xff\n", "not a CSV file in UTF-8"),
        (b'image,a\nx,"open\n', "not a CSV file in UTF-8"),
    ],
)
def test_files_that_are_no_labels_are_refused(own, capsys, content, message):
    (own / "bad.csv").write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        cli.run(triplets.main, ["--root", str(own), "--labels", str(own / "bad.csv")])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_pictures_is_named(own):
    (own / "images").rename(own / "elsewhere")
    (own / "images").mkdir()
    with pytest.raises(InputError, match="images: no pictures .* in it, or it cannot be read"):
        made(own)


def test_pictures_that_share_an_id_and_pictures_without_a_line(own, capsys):
    made(own, "--val", "0")
    assert "not used" not in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(own / "images" / "extra.png")
    made(own, "--val", "0")
    assert "1 pictures have no line in" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(own / "images" / "extra.jpg")
    with pytest.raises(InputError, match="have the same image id, 'extra'"):
        made(own)


@pytest.mark.parametrize(
    "name", ["records.train.jsonl", "records.val.jsonl", "gallery.train.txt", "gallery.val.txt"]
)
def test_what_somebody_wrote_by_hand_is_not_replaced(own, name):
    (own / name).write_text("mine\n")
    with pytest.raises(
        InputError,
        match=rf"{name}: not written by this command, or edited since; .* --overwrite",
    ):
        made(own)
    assert (own / name).read_text() == "mine\n"
    assert not [path for path in own.glob("*.*.*") if path.name != name]
    first = made(own, "--overwrite")
    assert made(own) == first
    with (own / "records.train.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="or edited since"):
        made(own)


def test_a_full_disk_is_one_line(own, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SystemExit) as exit:
            cli.run(triplets.main, ["--root", str(own), "--labels", str(own / "labels.csv")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "cannot be written (File too large); make room" in message
    assert not list(own.glob("records.*"))
    assert not list(own.glob(".*.tmp"))


# ---- the page


def commands() -> list[str]:
    """The commands of the page, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def test_every_command_of_the_page_runs(own, tmp_path, capsys, monkeypatch):
    corpus = [f"{r.text} {r.cot.caption} {r.cot.reasoning}" for r in made(own, "--chains")[0]]
    tiny = write_tiny(tmp_path / "tiny", corpus=corpus, vocab_size=400, **tiny_training.SIZES)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with fake_server.Server(fake_server.good) as server:
        places = {
            "mydata": str(own),
            "runs/": f"{tmp_path}/runs/",
            "train/configs": str(ROOT / "train" / "configs"),
            "shirt-017.jpg": "red-blue.png",
            "http://localhost:8000/v1": server.url,
            "Qwen/Qwen2.5-VL-3B-Instruct": str(tiny),
        }
        for command in commands():
            for name, place in places.items():
                command = command.replace(name, place)
            program, *argv = shlex.split(command)
            assert program == "cir-cot"
            more = [*FEW, *QUIET] if argv[0] == "sft" else []
            assert not cli.main([*argv, *more]), (command, capsys.readouterr())
        assert server.requests == 3 * len(read_records(own / "records.train.jsonl"))
    assert len(read_records(own / "chains.jsonl")) == len(read_records(own / "records.train.jsonl"))
    assert "Passed every filter" in (own / "train.html").read_text()
    assert (tmp_path / "runs" / "mine_val" / "report.html").is_file()
    assert re.search(
        r"\b(red|blue|green|yellow|cyan|magenta)-", capsys.readouterr().out
    )  # ids that were found
