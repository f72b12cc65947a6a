"""Records: what is written is read back, and every bad line is named with its place."""

import gzip
import json
import tracemalloc

import pytest

from cir_cot import files
from cir_cot.errors import InputError
from cir_cot.files import parse_json, read_json
from cir_cot.records import (
    MAX_PART,
    MAX_TEXT,
    Cot,
    Record,
    read_records,
    write_records,
)

GOOD = {"id": "1", "reference": "a", "text": "t", "targets": ["b"]}
COT = {"caption": "c", "reasoning": "r", "conclusion": "d"}


def lines(path, *objects):
    path.write_text(
        "".join(
            json.dumps(obj) + "\n" if not isinstance(obj, str) else obj + "\n" for obj in objects
        )
    )
    return path


def test_what_is_written_is_read_back(tmp_path):
    full = Record(
        "2",
        "a/b",
        'é "quoted"\u2028 line',
        ("x", "y"),
        Cot("c", "r\n", ""),
        ("a", "x"),
        "s/val",
        {"model": "m", "n": 1},
    )
    plain = Record("1", "a", "", ())
    write_records(tmp_path / "r.jsonl", [full, plain])
    assert read_records(tmp_path / "r.jsonl") == [full, plain]
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[-1]) == {
        "id": "1",
        "reference": "a",
        "text": "",
        "targets": [],
        "cot": None,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [Record("old", "a", "t", ("b",))])

    def broken():
        yield Record("new", "a", "t", ("b",))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    with pytest.raises(UnicodeEncodeError):
        write_records(path, [Record("\ud800", "a", "t", ("b",))])
    assert [record.id for record in read_records(path)] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.jsonl"]


BAD = {
    "syntax": ('{"id": "2",', "not valid JSON"),
    "no object": (["2"], "a record is a JSON object, got list"),
    "missing key": ({"id": "2", "reference": "a", "text": "t"}, "key 'targets' is missing"),
    "unknown key": (GOOD | {"id": "2", "targts": []}, "unknown key 'targts'"),
    "key twice": ('{"id": "2", "id": "3"}', "key 'id' occurs twice"),
    "key twice, deep": (
        json.dumps(GOOD)[:-1] + ', "cot": {"caption": "", "caption": ""}}',
        "'caption' occurs twice",
    ),
    "NaN": ('{"id": "2", "teacher": {"score": NaN}}', "NaN is not JSON"),
    "infinity": ('{"id": "2", "teacher": {"score": -Infinity}}', "-Infinity is not JSON"),
    "half a surrogate pair": (GOOD | {"id": "2", "text": "\ud83d"}, "half a surrogate pair"),
    "nesting": ("[" * 100_000, "not valid JSON"),
    "blank id": (GOOD | {"id": " "}, "'id' is blank"),
    "number as text": (GOOD | {"id": "2", "text": 3}, "'text' must be a string, got 3"),
    "one target as text": (
        GOOD | {"id": "2", "targets": "b"},
        "'targets' must be a list of image ids",
    ),
    "target twice": (GOOD | {"id": "2", "targets": ["b", "b"]}, "holds an image twice"),
    "id twice": (GOOD, "id '1' is already used on line 1"),
    "chain without a part": (
        GOOD | {"id": "2", "cot": {"caption": "c", "reasoning": "r"}},
        "'conclusion' is missing",
    ),
    "chain with a part more": (
        GOOD | {"id": "2", "cot": COT | {"thought": ""}},
        "unknown key 'thought'",
    ),
    "chain as text": (GOOD | {"id": "2", "cot": "c r d"}, "'cot' must be an object or null"),
    "chain of null": (
        GOOD | {"id": "2", "cot": COT | {"reasoning": None}},
        "'reasoning' must be a string, got None",
    ),
    "teacher as text": (
        GOOD | {"id": "2", "teacher": "gpt"},
        "'teacher' must be an object or null",
    ),
    "nesting of a value": (
        json.dumps(GOOD)[:-1] + ', "teacher": {"a":' + "[" * 90 + "]" * 90 + "}}",
        "in each other",
    ),
    "nesting of objects": (
        '{"id":' * 900 + "1" + "}" * 900,
        "more than 64 arrays and objects in each other",
    ),
    "open objects": ('{"id":' * 100_000, "not valid JSON"),
    "5,000 digits": (
        '{"id": ' + "9" * 5000 + "}",
        "a number of 5000 digits, more than the 20 allowed",
    ),
    "a number out of range": ('{"teacher": {"score": 1e999}}', "the number '1e999' is too large"),
    "a negative one": ('{"teacher": {"score": -1e999}}', "the number '-1e999' is too large"),
    "half a pair as a key": ('{"\\ud83d": 1}', "half a surrogate pair"),
    "the halves the wrong way round": (
        GOOD | {"id": "2", "targets": ["\ude00\ud83d"]},
        "half a surrogate pair",
    ),
    "half a pair in a chain": (
        GOOD | {"id": "2", "cot": COT | {"caption": "\udfff"}},
        "half a surrogate pair",
    ),
    "NUL in the text": (GOOD | {"id": "2", "text": "a\0b"}, "'text' holds a NUL character"),
    "NUL in the id": (GOOD | {"id": "\0"}, "'id' holds a NUL character"),
    "NUL in a target": (GOOD | {"id": "2", "targets": ["a\0"]}, "'targets' holds a NUL character"),
    "NUL in a chain": (
        GOOD | {"id": "2", "cot": COT | {"reasoning": "\0"}},
        "'reasoning' holds a NUL character",
    ),
    "a bare NUL": (json.dumps(GOOD).replace('"t"', '"\0"'), "not valid JSON"),
    "only NULs": ("\0" * 50, "not valid JSON"),
    "a bare line feed": ('{"id": "2\t"}', "not valid JSON"),
    "90,000 letters": (
        GOOD | {"id": "2", "text": "x" * 90_000},
        "'text' has 90000 characters, more than the 4000",
    ),
    "an endless id": (
        GOOD | {"id": "x" * 90_000},
        "'id' has 90000 characters, more than the 4000 allowed",
    ),
    "an endless chain": (
        GOOD | {"id": "2", "cot": COT | {"reasoning": "x" * 400_000}},
        "more than the 10000 allowed",
    ),
    "an endless key": ('{"%s": 1}' % ("k" * 10**6), "key 'id' is missing"),  # noqa: UP031
    "single quotes": ("{'id': '2'}", "not valid JSON"),
    "a comma too many": ('{"id": "2",}', "not valid JSON"),
    "a comment": ('{"id": "2"} // two', "not valid JSON"),
    "two objects": (json.dumps(GOOD) * 2, "not valid JSON"),
    "half an object": (json.dumps(GOOD)[:-3], "not valid JSON"),
    "half an escape": ('{"id": "\\u12', "not valid JSON"),
    "an unknown escape": ('{"id": "\\x41"}', "not valid JSON"),
    "hexadecimal": ('{"id": 0x10}', "not valid JSON"),
    "a leading zero": ('{"id": 01}', "not valid JSON"),
    "undefined": ('{"id": undefined}', "not valid JSON"),
    "python": ('{"id": None}', "not valid JSON"),
    "a byte order mark within": ('\ufeff\ufeff{"id": "2"}', "not valid JSON"),
    "number": ("1", "a record is a JSON object, got int"),
    "string": ('"x"', "a record is a JSON object, got str"),
    "null": ("null", "a record is a JSON object, got NoneType"),
    "true": ("true", "a record is a JSON object, got bool"),
    "empty object": ("{}", "key 'id' is missing"),
    "id of null": (GOOD | {"id": None}, "'id' must be a string, got None"),
    "id of white space": (GOOD | {"id": "\u2003\t"}, "'id' is blank"),
    "reference as a list": (
        GOOD | {"id": "2", "reference": ["a"]},
        "'reference' must be a string, got ['a']",
    ),
    "targets of null": (
        GOOD | {"id": "2", "targets": None},
        "'targets' must be a list of image ids, got None",
    ),
    "a target of null": (
        GOOD | {"id": "2", "targets": ["b", None]},
        "'targets' must be a list of image ids",
    ),
    "a nameless target": (
        GOOD | {"id": "2", "targets": [""]},
        "'targets' must be a list of image ids",
    ),
    "targets as an object": (
        GOOD | {"id": "2", "targets": {"b": 1}},
        "'targets' must be a list of image ids",
    ),
    "a million targets": (
        GOOD | {"id": "2", "targets": ["b"] * 10**6},
        "'targets' holds an image twice",
    ),
    "subset as text": (
        GOOD | {"id": "2", "subset": "b"},
        "'subset' must be a list of image ids, got 'b'",
    ),
    "source of null": (GOOD | {"id": "2", "source": None}, "'source' must be a string, got None"),
    "chain as a list": (
        GOOD | {"id": "2", "cot": ["c", "r", "d"]},
        "'cot' must be an object or null, got list",
    ),
    "chain of nothing": (GOOD | {"id": "2", "cot": {}}, "key 'caption' is missing"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_the_first_bad_line_is_named(tmp_path, line, message):
    path = lines(tmp_path / "r.jsonl", GOOD, "", line)
    with pytest.raises(InputError, match="r.jsonl:3: ") as error:
        read_records(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_many_hostile_lines_are_tried():
    assert len(BAD) >= 60


def test_a_text_of_the_greatest_length_is_read(tmp_path):
    text, part = "é" * MAX_TEXT, "é" * MAX_PART
    record = Record("1", "a", text, ("b",), Cot(part, part, part))
    write_records(tmp_path / "r.jsonl", [record])
    assert read_records(tmp_path / "r.jsonl") == [record]


def test_a_file_that_is_absent_or_no_utf8_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(InputError, match="latin.jsonl:1: not valid JSON"):
        read_records(tmp_path / "latin.jsonl")


def test_a_byte_order_mark_is_no_error():
    assert parse_json(b"\xef\xbb\xbf[1]", "x") == [1]


def test_a_packed_file_is_read_up_to_a_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 998 + b"]"))
    assert read_json(path) == []
    path.write_bytes(gzip.compress(b"[" + b" " * 10_000_000 + b"]"))
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 1000 bytes once unpacked"):
        read_json(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "raw",
    [b"{}", gzip.compress(b"[1, 2, 3]" * 99)[:-9], gzip.compress(b"{}")[:12] + b"\xff" * 9],
    ids=["not packed", "cut", "overwritten"],
)
def test_a_broken_archive_is_named(tmp_path, raw):
    (tmp_path / "r.json.gz").write_bytes(raw)
    with pytest.raises(InputError, match="r.json.gz: not a complete gzip file"):
        read_json(tmp_path / "r.json.gz")
