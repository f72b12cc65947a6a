"""`cir-cot check`: what it finds in a dataset, what of it is an error, and what the real files give."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cir_cot import cli
from cir_cot.chains.check import EXAMPLES
from cir_cot.chains.filters import FILTERS, salient
from cir_cot.data import load_benchmark
from cir_cot.data.chain_files import attach_chains
from cir_cot.errors import InputError
from cir_cot.prompts import PARTS
from cir_cot.records import Cot, Record, write_records
from cir_cot.scripts.data_gen import check

NAMES = [one.name for one in FILTERS]

REASONING = "The shape and the length are kept, the print is gone, the colour becomes plain red, with a belt added."


def cot(**parts):
    return Cot(
        **{
            "caption": "A blue dress.",
            "reasoning": REASONING,
            "conclusion": "A red dress with a belt.",
        }
        | parts
    )


def draw(folder, name, shade):
    Image.new("RGB", (6, 6), (shade, 0, 0)).save(folder / "images" / f"{name}.png")


@pytest.fixture
def own(tmp_path):
    """A clean folder dataset: train and val with two queries and four pictures each."""
    (tmp_path / "images").mkdir()
    for at, split in enumerate(("train", "val")):
        names = [f"{split}{number}" for number in range(4)]
        records = [
            Record(str(n), names[0], f"is red {n}", (names[n + 1],), cot(), (), "own/" + split)
            for n in range(2)
        ]
        write_records(tmp_path / f"records.{split}.jsonl", records)
        (tmp_path / f"gallery.{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            draw(tmp_path, name, 10 * number + 100 * at)
    return tmp_path


def checked(capsys, root, *argv, split="val", benchmark="folder"):
    """(exit code, {check: count} of errors, of warnings, the whole report)."""
    code = check.main(
        ["--benchmark", benchmark, "--root", str(root), "--split", split, "--json", *map(str, argv)]
    )
    report = json.loads(capsys.readouterr().out)
    errors, warnings = (
        {row["check"]: row["count"] for row in report[kind]} for kind in ("errors", "warnings")
    )
    return code, errors, warnings, report


def test_a_clean_dataset_passes(own, capsys):
    code, errors, warnings, report = checked(capsys, own)
    assert (code, errors, warnings, report["notes"]) == (0, {}, {}, [])
    assert report["parts"] == {
        "folder val": {"queries": 2, "gallery": 4, "effective_gallery": 4},
        "chains": {"chains": 2, "without": 0},
    }


def rewrite(own, *records):
    write_records(own / "records.val.jsonl", records)


QUERY = Record("0", "val0", "is red", ("val1",), None, (), "own/val")


def changed(**values):
    return Record(**{**QUERY.__dict__, **values})


RECORDS = {
    "blank text": ([changed(text=" .")], {"blank_text": 1}, {}),
    "no such target": (
        [changed(targets=("val1", "zz"))],
        {"target_not_in_gallery": 1, "missing_image": 1},
        {},
    ),
    "own target": ([changed(targets=("val0",))], {}, {"reference_is_target": 1}),
    "same query": ([QUERY, changed(id="1", targets=("val2",))], {}, {"duplicate_query": 1}),
    "target beside the subset": (
        [changed(subset=("val0", "val2"))],
        {"target_not_in_subset": 1},
        {},
    ),
    "query of train": (
        [changed(reference="train0", targets=("train2",))],
        {"query_in_train": 1},
        {},
    ),
    "target image": (
        [changed(cot=cot(reasoning=REASONING + " So is the target image."))],
        {"chain_target_image": 1},
        {},
    ),
    "loop": (
        [changed(cot=cot(caption="A dress and a dress and a dress and a"))],
        {"chain_repetition": 1},
        {},
    ),
    "short": ([changed(cot=cot(reasoning="Make it red."))], {"chain_length": 1}, {}),
    "blank chain": ([changed(cot=cot(caption=""))], {"chain_blank": 1}, {}),
    "copied": (
        [changed(cot=cot(caption="A red dress with a belt"))],
        {"chain_copied_caption": 1},
        {},
    ),
    "nothing salient": ([changed(cot=cot(conclusion="A dress."))], {"chain_salient_word": 1}, {}),
    "a doubtful verifier": (
        [changed(cot=cot(), teacher={"confidence": 0.2})],
        {"chain_verifier": 1},
        {},
    ),
    "a teacher that saw the target": (
        [changed(cot=cot(), teacher={"seen_target": True})],
        {"chain_seen_target": 1},
        {},
    ),
    "said twice": (
        [changed(cot=cot()), changed(id="1", text="is red!", cot=cot())],
        {},
        {"chain_duplicate": 1},
    ),
}


@pytest.mark.parametrize(("records", "errors", "warnings"), RECORDS.values(), ids=RECORDS)
def test_faults_of_records_and_chains(own, capsys, records, errors, warnings):
    rewrite(own, *records)
    code, found, warned, report = checked(capsys, own)
    gone = {"target_not_in_gallery"} if "query_in_train" in errors else set()
    assert {name: count for name, count in found.items() if name not in gone} == errors
    assert warned == warnings
    assert code == (1 if errors else 0)
    assert all(len(row["examples"]) == row["count"] for row in report["errors"])


def test_every_filter_is_reported_with_its_count(own, capsys):
    rewrite(
        own,
        changed(cot=cot(reasoning="Red.")),
        changed(id="1", targets=("val2",), text="a red dress", cot=cot()),
    )
    report = checked(capsys, own)[3]
    counts = {row["check"]: row["count"] for row in report["filters"]}
    assert counts == {
        f"chain_{name}": int(name == "length") for name in (*NAMES, "seen_target", "duplicate")
    }
    assert [row["examples"] for row in report["filters"] if row["count"]] == [
        ["own/val 0: the reasoning has 2 words and marks, not 16 to 256"]
    ]
    rewrite(own, QUERY)
    assert checked(capsys, own)[3]["filters"] == []


def test_a_teacher_may_see_the_target_of_a_training_query(own, capsys):
    record = Record("0", "train0", "is red", ("train1",), cot(), teacher={"seen_target": True})
    write_records(own / "records.train.jsonl", [record])
    assert checked(capsys, own, split="train")[:3] == (0, {}, {})


def test_chains_may_lie_in_several_files(own, capsys, tmp_path):
    first, second = (
        changed(cot=cot()),
        changed(id="1", text="a red dress", targets=("val2",), cot=cot()),
    )
    rewrite(own, QUERY, changed(id="1", text="a red dress", targets=("val2",)))
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, record in zip(files, (first, second), strict=True):
        write_records(file, [record])
    report = checked(capsys, own, "--chains", *files)[3]
    assert report["parts"]["chains"] == {"chains": 2, "without": 0}
    files[1].write_text("")
    assert checked(capsys, own, "--chains", files[1])[3]["parts"]["chains"] == {
        "chains": 0,
        "without": 2,
    }


def test_the_web_page_is_written_beside_the_list(own, capsys, tmp_path):
    assert checked(capsys, own, "--report", tmp_path / "page.html")[0] == 0
    assert "Passed every filter: 2 of 2" in (tmp_path / "page.html").read_text()


def test_a_page_of_somebody_else_is_not_replaced(own, capsys, tmp_path):
    (tmp_path / "records.mine.jsonl").write_text("mine")
    with pytest.raises(
        InputError, match="records.mine.jsonl: not written by this command, or edited since"
    ):
        checked(capsys, own, "--report", tmp_path / "records.mine.jsonl")
    assert (tmp_path / "records.mine.jsonl").read_text() == "mine"
    for more in ([], [], ["--overwrite"]):
        assert checked(capsys, own, "--report", tmp_path / "page.html", *more)[0] == 0
        (tmp_path / "page.html").touch()


def test_faults_of_pictures_and_the_effective_gallery(own, capsys):
    (own / "images" / "val1.png").unlink()
    raw = (own / "images" / "val2.png").read_bytes()
    (own / "images" / "val2.png").write_bytes(raw[: len(raw) // 2])
    (own / "images" / "val3.png").write_bytes((own / "images" / "val0.png").read_bytes())
    code, errors, warnings, report = checked(capsys, own)
    assert (code, errors, warnings) == (
        1,
        {"missing_image": 1, "corrupt_image": 1},
        {"duplicate_image": 1},
    )
    assert report["parts"]["folder val"]["effective_gallery"] == 2
    examples = {row["check"]: row["examples"][0] for row in report["errors"] + report["warnings"]}
    assert "'val1' is missing" in examples["missing_image"]
    assert "val2.png: no readable picture" in examples["corrupt_image"]
    assert examples["duplicate_image"] == "val0 = val3"


def test_a_picture_too_long_for_its_width_is_a_fault(own, capsys):
    Image.new("RGB", (4000, 3)).save(own / "images" / "val1.png")
    code, errors, _, report = checked(capsys, own)
    assert (code, errors) == (1, {"corrupt_image": 1})
    assert "val1.png: 4000 x 3 pixels" in report["errors"][0]["examples"][0]
    assert report["parts"]["folder val"]["effective_gallery"] == 3


def test_pictures_that_may_not_be_read_are_faults(own, capsys, monkeypatch):
    """As an owner sees them; whoever runs the tests may be allowed to read everything."""
    real = Path.open

    def opened(path, *rest, **options):
        if path.name == "val1.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(Path, "open", opened)
    code, errors, _, report = checked(capsys, own)
    assert (code, errors) == (1, {"corrupt_image": 1})
    assert report["errors"][0]["examples"][0].endswith(
        "val1.png: cannot be read (Permission denied)"
    )


def test_pictures_that_lead_out_of_the_folder_are_faults(own, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "images").mkdir()
    draw(elsewhere, "secret", 0)
    (own / "images" / "val1.png").unlink()
    (own / "images" / "val1.png").symlink_to(elsewhere / "images" / "secret.png")
    code, errors, _, report = checked(capsys, own)
    assert (code, errors) == (1, {"missing_image": 1})
    assert "is a link out of the folder" in report["errors"][0]["examples"][0]


def test_without_pictures_the_rest_is_checked(own, capsys):
    for picture in (own / "images").iterdir():
        picture.unlink()
    (own / "images").rmdir()
    rewrite(own, changed(text=""))
    code, errors, _, report = checked(capsys, own)
    assert (code, errors) == (1, {"blank_text": 1})
    assert report["notes"][0].startswith(
        "pictures not checked: no pictures of the folder dataset in "
    )
    assert "effective_gallery" not in report["parts"]["folder val"]


def test_shared_pictures_are_worth_a_warning(own, capsys):
    (own / "gallery.val.txt").write_text("val0\nval1\nval2\nval3\ntrain1\n")
    assert checked(capsys, own)[:3] == (0, {}, {"image_in_train": 1})


def test_without_a_train_split_leaks_are_noted_as_unchecked(own, capsys):
    (own / "records.train.jsonl").unlink()
    code, errors, warnings, report = checked(capsys, own)
    assert (code, errors, warnings) == (0, {}, {})
    assert [note.partition(":")[0] for note in report["notes"]] == ["leaks from train not checked"]
    assert checked(capsys, own.parent / own.name, split="val")[0] == 0


def test_a_broken_train_split_is_an_error(own, capsys):
    (own / "records.train.jsonl").write_text("{}\n")
    assert checked(capsys, own)[:2] == (1, {"schema": 1})


def test_the_first_bad_line_is_an_error_with_its_place(own, capsys):
    with (own / "records.val.jsonl").open("a") as file:
        file.write('{"id": "9", "reference": "val0", "txt": ""}\n')
    code, errors, _, report = checked(capsys, own)
    assert (code, errors) == (1, {"schema": 1})
    assert "records.val.jsonl:3: key 'text' is missing" in report["errors"][0]["examples"][0]


def chains(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chains_of_a_file_take_the_place_of_the_records_own(own, capsys, tmp_path):
    line = {
        "reference": "val0",
        "target": "val1",
        "caption": "A blue dress.",
        "reasoning": "Red.",
        "conclusion": "A red dress.",
    }
    file = chains(tmp_path / "chains.jsonl", line)
    assert checked(capsys, own, "--chains", file)[:2] == (1, {"chain_length": 1})
    chains(file, line | {"reasoning": REASONING})
    assert checked(capsys, own, "--chains", file)[0] == 0


def test_an_annotation_file_is_a_chains_file(own, capsys, tmp_path):
    rewrite(own, QUERY)
    annotated = changed(
        cot=cot(conclusion="The second image: a red dress."),
        teacher={"model": "m", "seen_target": False},
    )
    write_records(tmp_path / "chains.jsonl", [annotated])
    code, errors, _, report = checked(capsys, own, "--chains", tmp_path / "chains.jsonl")
    assert (code, errors) == (1, {"chain_target_image": 1})
    assert report["errors"][0]["examples"] == [
        "own/val 0: the conclusion mentions the 'second image'"
    ]
    assert report["parts"]["chains"] == {"chains": 1, "without": 0}


def test_chains_that_fit_no_record_are_an_error(own, capsys, tmp_path):
    row = {"reference": "val0", "target": "zz", "caption": "", "reasoning": "", "conclusion": ""}
    code, errors, _, report = checked(capsys, own, "--chains", chains(tmp_path / "c.jsonl", row))
    assert (code, errors) == (1, {"chain_schema": 1})
    assert "c.jsonl:1: no records have ('val0', 'zz')" in report["errors"][0]["examples"][0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--split", "mine"], "no records of split 'mine'"),
        (["--split", "val", "--chains", "absent.jsonl"], "absent.jsonl: no such file of chains"),
        (["--split", "val", "--root", "absent"], "absent: no such folder"),
    ],
)
def test_what_is_not_there_is_refused(own, capsys, argv, message):
    argv = ["--benchmark", "folder", "--root", str(own), *argv]
    with pytest.raises(InputError, match=message):
        check.main(argv)
    with pytest.raises(SystemExit) as exit:
        cli.run(check.main, argv)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_the_list_names_counts_and_examples(own, capsys):
    rewrite(own, *(changed(id=str(number), text="." * number) for number in range(8)))
    assert check.main(["--benchmark", "folder", "--root", str(own), "--split", "val"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "folder val: queries 8, gallery 4, effective_gallery 4" in out
    assert out.index("ERROR   blank_text: 8") + 1 == out.index("          folder val 0: no text")
    assert sum("no text" in line for line in out) == EXAMPLES
    assert out[-1] == "1 errors, 0 warnings"


# ---- the real files


def test_fashioniq_has_only_its_known_oddities(shared_data, capsys):
    code, errors, warnings, report = checked(
        capsys, shared_data / "fashioniq", benchmark="fashioniq"
    )
    assert (code, errors) == (0, {})
    assert warnings == {
        "duplicate_query": 11,
        "blank_caption": 3,
        "image_in_train": 811,
        "few_queries_in_train": 3,
    }
    assert len(report["notes"]) == 3
    assert all("no pictures of FashionIQ" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("name", "split", "known"),
    [
        ("cirr", "val", {"duplicate_query": 6}),
        ("circo", "val", {}),
        ("shoes", "eval", {"duplicate_query": 1, "reference_is_target": 1}),
    ],
)
def test_other_benchmarks_have_only_their_known_oddities(shared_data, capsys, name, split, known):
    assert checked(capsys, shared_data / name, split=split, benchmark=name)[:3] == (0, {}, known)


FAULTS = {  # one fault each, in several forms: what it makes of a record
    "blank": [
        lambda r, part: change(r, "caption", ""),
        lambda r, part: change(r, "caption", " \n "),
    ],
    "tags": [
        lambda r, part: change(r, part, getattr(r.cot, part) + "</caption>"),
        lambda r, part: change(r, part, "<|im_start|>" + getattr(r.cot, part)),
        lambda r, part: change(r, part, getattr(r.cot, part) + "<ret>"),
    ],
    "target_image": [
        lambda r, part: change(r, part, getattr(r.cot, part) + " The target image shows it."),
        lambda r, part: change(r, part, "As in the second photo: " + getattr(r.cot, part)),
    ],
    "refusal": [
        lambda r, part: change(
            r, part, "I'm sorry, there is little to see. " + getattr(r.cot, part)
        ),
        lambda r, part: change(r, part, getattr(r.cot, part) + " As an AI model, that is all."),
    ],
    "length": [
        lambda r, part: change(r, "reasoning", "It is changed."),
        lambda r, part: change(r, "reasoning", " ".join(f"word{n}" for n in range(257))),
        lambda r, part: change(r, "conclusion", salient(r.text)[0]),
        lambda r, part: change(
            r, "conclusion", f"{r.cot.conclusion} " + " ".join(f"w{n}" for n in range(64))
        ),
    ],
    "repetition": [
        lambda r, part: change(
            r, part, getattr(r.cot, part) + " again and again and again and again"
        ),
        lambda r, part: change(
            r,
            "reasoning",
            "; ".join(f"{n}, it is kept as it has been" for n in ("So", "But", "Now")),
        ),
    ],
    "copied_caption": [lambda r, part: change(r, "caption", r.cot.conclusion.upper())],
    "salient_word": [lambda r, part: change(r, "conclusion", "Zebras quietly wander elsewhere.")],
    "verifier": [lambda r, part: replace(r, teacher={"model": "m", "confidence": 0.69})],
    "seen_target": [lambda r, part: replace(r, teacher={"model": "m", "seen_target": True})],
    "duplicate": [lambda r, part: replace(r, id=r.id + " again", text=r.text.upper())],
}


def change(record, part, words):
    return replace(record, cot=replace(record.cot, **{part: words}))


def wardrobe(shared_data):
    """The 48 real queries with their chains, each under an id of its own."""
    root = shared_data / "wardrobe"
    for split in ("train", "val"):
        for benchmark in load_benchmark("fashioniq", root, split):
            chained = attach_chains(
                benchmark.records, root / "chains" / f"chains.{benchmark.category}.{split}.jsonl"
            )
            yield from (
                replace(r, id=f"{benchmark.category} {split} {r.id}", source="wardrobe")
                for r in chained
            )


def test_each_of_200_faults_is_caught_and_named(shared_data, tmp_path, capsys):
    """Copies of the real chains, each with one fault in one chain: the fault's filter finds it, and no other does."""
    records = list(wardrobe(shared_data))
    assert set(FAULTS) == {*NAMES, "seen_target", "duplicate"}
    names = sorted({image for record in records for image in (record.reference, *record.targets)})
    (tmp_path / "gallery.val.txt").write_text("\n".join(names) + "\n")
    file = tmp_path / "records.val.jsonl"
    write_records(file, records)
    assert checked(capsys, tmp_path)[:3] == (0, {}, {})
    for copy in range(200):
        name = list(FAULTS)[copy % len(FAULTS)]
        forms, at = FAULTS[name], 29 * copy % len(records)
        faulty = forms[copy // len(FAULTS) % len(forms)](records[at], PARTS[copy % len(PARTS)])
        write_records(
            file,
            [
                *records[:at],
                *([records[at]] if name == "duplicate" else []),
                faulty,
                *records[at + 1 :],
            ],
        )
        code, errors, warnings, report = checked(capsys, tmp_path)
        assert (code, errors | warnings) == (int(name != "duplicate"), {f"chain_{name}": 1}), (
            copy,
            faulty,
        )
        (found,) = (row for row in report["filters"] if row["count"])
        assert found["examples"][0].startswith(f"wardrobe {faulty.id}: ")


def test_real_photographs_and_their_chains_pass(shared_data, capsys):
    root = shared_data / "wardrobe"
    files = sorted((root / "chains").glob("chains.*.val.jsonl"))
    code, errors, warnings, report = checked(
        capsys, root, "--chains", *files, benchmark="fashioniq"
    )
    assert (code, errors, warnings) == (
        0,
        {},
        {"image_in_train": 660},
    )  # both splits list all photographs
    assert [part["effective_gallery"] for part in list(report["parts"].values())[:3]] == [
        220,
        220,
        220,
    ]
    assert report["parts"]["chains"] == {"chains": 24, "without": 0}
