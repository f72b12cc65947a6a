"""`cir-cot index` and `cir-cot search` from the command line, and the three lines of Python."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_training import tiny_head
from toy_retriever import Plain, write_shades

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.inputs import open_picture
from cir_cot.prompts import written_parts
from cir_cot.records import Cot
from cir_cot.scripts.eval import build_index, search
from cir_cot.search.build import open_index
from cir_cot.search.payload_filter import unknown_keys
from cir_cot.search.search import Search, open_search

SHADES = range(0, 200, 20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A chain retriever on a tiny Qwen2.5-VL, untrained, and the pictures that it indexed."""
    folder = tmp_path_factory.mktemp("search")
    write_shades(folder / "images", SHADES)
    tiny_head(lora=False, max_new_tokens=4).save(folder / "model")
    argv = [
        "--model",
        folder / "model",
        "--images",
        folder / "images",
        "--out",
        folder / "index",
        "--device",
        "cpu",
    ]
    assert build_index.main([str(word) for word in argv]) == 0
    return folder


def command(folder, *more, **given):
    argv = ["--model", folder / "model", "--index", folder / "index", "--device", "cpu", *more]
    return [str(word) for word in argv]


# ---- Python


def test_three_lines_from_a_checkpoint_to_results(checkpoint):
    found = open_search(checkpoint / "model", checkpoint / "index", device="cpu")
    answer = found.one(checkpoint / "images/s020.png", "make it lighter", k=3)
    assert len(answer.hits) == 3
    assert answer.hits == sorted(answer.hits, key=lambda hit: -hit[1])
    assert tuple(written_parts(answer.explanation)) == ("caption", "reasoning", "conclusion")


def test_a_chain_that_somebody_corrects_changes_what_is_found(toy):
    picture = Image.new("RGB", (8, 6), (20, 20, 20))
    assert toy.one(picture, "40").hits[0][0] == "s060"
    corrected = toy.one(picture, "40", chain=Cot("shade 20", "add 100", "shade 120"))
    assert corrected.hits[0][0] == "s120"
    assert "add 100" in corrected.explanation


def test_options_of_a_search(toy):
    picture = Image.new("RGB", (8, 6), (20, 20, 20))
    assert toy.one(picture, "40", reading="fast").hits[0][0] == "s020"
    assert [name for name, _ in toy.one(picture, "40", k=2, where={"shade": {"gt": 100}}).hits] == [
        "s120",
        "s140",
    ]
    answer = toy.one(picture, "0", k=3, without=["s020"])
    assert "s020" not in [name for name, _ in answer.hits]
    assert len(answer.hits) == 3
    assert [a.hits[0][0] for a in toy.many([picture] * 2, ["0", "60"], 1)] == ["s020", "s080"]
    assert toy.many([], []) == []
    far = toy.one(picture, "0", k=3, without=["s180"])  # not among the first: nothing to leave out
    assert len(far.hits) == 3


def test_what_a_retriever_lacks_is_said(toy):
    plain = Search(Plain(), toy.index)
    picture = Image.new("RGB", (8, 6), (20, 20, 20))
    assert plain.one(picture, "40").hits[0][0] == "s060"
    for options in ({"reading": "fast"}, {"chain": Cot("a", "b", "c")}, {"reading": "telepathy"}):
        with pytest.raises(InputError):
            plain.one(picture, "40", **options)


def test_a_stream_ends_with_the_answer(toy, checkpoint):
    picture = Image.new("RGB", (8, 6), (20, 20, 20))
    *_, answer = toy.stream(picture, "40", 3)
    assert answer.hits == toy.one(picture, "40", 3).hits
    found = open_search(checkpoint / "model", checkpoint / "index", device="cpu")
    found.retriever.max_new_tokens = 16
    *written, answer = found.stream(picture, "40", 3)
    assert len(written) > 10
    assert written[-1] == answer.explanation
    assert all(
        after.startswith(before) for before, after in zip(written, written[1:], strict=False)
    )


def test_a_picture_file_is_opened_safely(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no readable picture"):
        open_picture(tmp_path / "bad.png")
    with pytest.raises(InputError, match="no such file"):
        open_picture(tmp_path / "nothing.png")


# ---- the commands


def test_one_query_from_the_command_line(checkpoint, capsys):
    argv = command(
        checkpoint, "--image", checkpoint / "images/s040.png", "--text", "darker", "--k", 4
    )
    assert search.main([*argv, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["hits"]) == 4
    assert set(answer["hits"][0]) == {"id", "score"}
    assert search.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(hit["id"] in shown for hit in answer["hits"])
    assert "conclusion" in shown


def test_a_file_of_queries_is_answered_line_by_line(checkpoint, tmp_path, capsys):
    image = str(checkpoint / "images/s040.png")
    cot = {"caption": "a", "reasoning": "b", "conclusion": "c <|im_end|>"}
    rows = [{"id": str(n), "image": image, "text": f"text {n}"} for n in range(3)]
    rows += [{"id": "edited", "image": image, "text": "x", "cot": cot}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        search.main(
            command(
                checkpoint, "--queries", tmp_path / "queries.jsonl", "--batch-size", 2, "--k", 2
            )
        )
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "edited"]
    assert "c <|im_end|>" in lines[3]["explanation"]
    one = open_search(checkpoint / "model", checkpoint / "index", device="cpu").one(
        image, "text 1", 2
    )
    assert [hit["id"] for hit in lines[1]["hits"]] == [name for name, _ in one.hits]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "1", "image": "x.png"}', ":1: key 'text' is missing"),
        ('{"id": "1", "image": "x.png", "text": 3}', "'text' must be a string"),
        ('{"id": "1", "image": "x.png", "text": "x", "color": 1}', "unknown key 'color'"),
        ('{"id": "1", "image": "nowhere.png", "text": "x"}', "no such file"),
        ("[]", "a query is a JSON object"),
        ('{"id": "1", "image": "a\\u0000b", "text": "x"}', ":1: 'image' holds a NUL character"),
        ('{"id": "1", "image": "x.png", "text": "a\\u0000b"}', ":1: 'text' holds a NUL character"),
        ('{"id": "1", "image": "x.png", "text": "\\ud83d"}', ":1: holds half a surrogate pair"),
        ('{"id": "\\ude00", "image": "x.png", "text": "x"}', ":1: holds half a surrogate pair"),
        (
            '{"id": "1", "image": "x.png", "text": "%s"}' % ("x" * 90_000),
            ":1: 'text' has 90000 characters, more than",
        ),
        (
            '{"id": "1", "image": "%s.png", "text": "x"}' % ("x" * 3_000),
            "cannot be opened (File name too long)",
        ),
        ('{"id": "1", "image": null, "text": "x"}', ":1: 'image' must be a string, got None"),
        (
            '{"id": "1", "image": "x.png", "text": "x", "cot": []}',
            ":1: 'cot' must be an object or null, got list",
        ),
        ('{"id": "1", "image": "x.png", "text": "x", "where": 3}', "no such file"),
    ],
)
def test_bad_queries_end_in_one_line(checkpoint, tmp_path, line, words, capsys):
    (tmp_path / "queries.jsonl").write_text(line)
    with pytest.raises(SystemExit, match="2"):
        run(search.main, command(checkpoint, "--queries", tmp_path / "queries.jsonl"))
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_query_that_cannot_be_asked_has_its_error_and_the_others_go_on(
    checkpoint, tmp_path, capsys
):
    image = str(checkpoint / "images/s040.png")
    rows = [
        {"id": "1", "image": image, "text": "x"},
        {"id": "gone", "image": "nowhere.png", "text": "x"},
        {"id": "2", "image": image, "text": "x"},
        {"id": "filter", "image": image, "text": "x", "where": 3},
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert search.main(command(checkpoint, "--queries", tmp_path / "queries.jsonl")) == 1
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert lines[0]["hits"] == lines[2]["hits"]
    assert "no such file" in lines[1]["error"]
    assert "hits" not in lines[3]
    assert "2 of 4 queries have an error" in said.err


def test_pictures_of_any_folders_are_searched_without_an_index_folder(checkpoint, tmp_path):
    retriever = load_retriever(checkpoint / "model", device="cpu")
    copy = tmp_path / "elsewhere" / "s080.png"
    copy.parent.mkdir()
    shutil.copy(checkpoint / "images/s080.png", copy)
    paths = [checkpoint / f"images/s0{n}.png" for n in (40, 60)]
    search = Search.from_images(retriever, [*paths, str(copy)])
    hits = search.one(paths[0], "x", k=9, keep_reference=True).hits
    assert {name for name, _ in hits} == {str(path) for path in (*paths, copy)}
    assert search.path(str(copy)) == copy.resolve()
    # The same ranking as that of an index in a folder.
    folder = open_search(checkpoint / "model", checkpoint / "index", device="cpu")
    scores = dict(folder.one(paths[0], "x", k=200, keep_reference=True).hits)
    for name, score in hits:
        assert score == pytest.approx(scores[Path(name).stem], abs=1e-5)
    assert folder.path("s080") == (checkpoint / "images/s080.png").resolve()
    with pytest.raises(InputError, match=r"gone\.png': no such file"):
        Search.from_images(retriever, [tmp_path / "gone.png"])
    with pytest.raises(InputError, match="at least one path"):
        Search.from_images(retriever, [])


def test_a_filter_s_unknown_key_is_named(checkpoint, capsys):
    image = checkpoint / "images/s040.png"
    asked = command(checkpoint, "--image", image, "--text", "x", "--where", '{"colour": "red"}')
    assert search.main(asked) == 0
    assert (
        "no picture has 'colour' in its payload; there are: none at all" in capsys.readouterr().err
    )
    payloads = [{"kind": "dress"}, {"price": 3, "kind": "shirt"}]
    assert unknown_keys({"kind": "coat", "price": {"lt": 2}}, payloads) == ""
    assert unknown_keys({"kin": "coat"}, payloads).endswith("there are: kind, price")


def test_a_chain_of_null_is_no_chain(checkpoint, tmp_path, capsys):
    image = str(checkpoint / "images/s040.png")
    rows = [
        {"id": "1", "image": image, "text": "x"},
        {"id": "2", "image": image, "text": "x", "cot": None},
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert search.main(command(checkpoint, "--queries", tmp_path / "queries.jsonl")) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["hits"], one["explanation"]) == (two["hits"], two["explanation"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 4001, "has 4001 characters, more than the 4000 allowed"),
        ("a\udcff", "half a surrogate"),
        ("\0", "NUL"),
    ],
)
def test_texts_that_are_too_long_or_none_are_refused_before_they_are_encoded(
    checkpoint, toy, capsys, text, words
):
    picture = Image.new("RGB", (8, 6), (20, 20, 20))
    for refused in (lambda: toy.one(picture, text), lambda: next(toy.stream(picture, text))):
        with pytest.raises(InputError, match=f"the text of the query .*{words}"):
            refused()
    with pytest.raises(InputError, match=f"the chain of the query: 'caption' .*{words.split()[0]}"):
        toy.one(picture, "40", chain=Cot(text * 3, "b", "c"))
    with pytest.raises(SystemExit, match="2"):
        run(
            search.main,
            command(checkpoint, "--image", checkpoint / "images/s040.png", "--text", text),
        )
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--image", "a.png"],
        [],
        ["--text", "x"],
        ["--image", "a.png", "--text", "x", "--queries", "q"],
    ],
)
def test_half_a_query_is_refused(checkpoint, more, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(search.main, command(checkpoint, *more))
    assert "--queries FILE" in capsys.readouterr().err


def test_an_index_is_updated_reduced_and_reported(checkpoint, tmp_path, capsys):
    images = tmp_path / "images"
    write_shades(images, [1, 2, 3])
    (tmp_path / "goods.jsonl").write_text('{"id": "s001", "kind": "dress"}\n')
    base = [
        "--model",
        checkpoint / "model",
        "--images",
        images,
        "--out",
        tmp_path / "index",
        "--device",
        "cpu",
    ]
    base = [str(word) for word in base]
    assert build_index.main([*base, "--payload", str(tmp_path / "goods.jsonl"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["count"], facts["kind"], facts["unreadable"]) == (3, "exact", {})
    assert open_index(tmp_path / "index").payloads == {"s001": {"kind": "dress"}}
    (images / "bad.png").write_bytes(b"no picture")
    assert build_index.main(base) == 1, "a picture was left out"
    captured = capsys.readouterr()
    assert "0 pictures encoded" in captured.err
    assert "left out: bad" in captured.err
    assert build_index.main([*base, "--remove", "s002"]) == 1
    assert open_index(tmp_path / "index").ids == ["s001", "s003"]
    (tmp_path / "gallery.txt").write_text("s003\ns009\n")
    with pytest.raises(InputError, match="1 of 2 images have no picture, the first 's009'"):
        build_index.main([*base, "--gallery", str(tmp_path / "gallery.txt")])
    for line, words in (("[]", "an object"), ('{"id": "a"}\n{"id": "a"}', "occurs twice")):
        (tmp_path / "goods.jsonl").write_text(line)
        with pytest.raises(InputError, match=words):
            build_index.main([*base, "--payload", str(tmp_path / "goods.jsonl")])
