"""Files: what is written is complete or absent, and what is read is bounded, finite and linear in its size."""

import errno
import gzip
import json
import os
import resource
import stat
import tracemalloc

import pytest
from recorded_os import recorded_os

from cir_cot import files
from cir_cot.errors import InputError, shown
from cir_cot.files import (
    parse_json,
    read_bytes,
    read_json,
    read_jsonl,
    replacing,
    write_bytes_atomic,
)

MANY = 400_000  # ids; a search that is quadratic in them takes an hour


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


# ---- writing


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path):
    with recorded_os(tmp_path) as events:
        write_bytes_atomic(tmp_path / "a", b"new")
    assert events == ["fsync a", "rename a", "fsync ."]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_there_keeps_its_mode(tmp_path, mode):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write_bytes_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_owners_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes_atomic(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_private_file_is_private_while_it_is_written(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    with replacing(tmp_path / "a") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, exists):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "a"
    if exists:
        target.write_text("old")
    (tmp_path / "one").symlink_to("elsewhere/a")
    (tmp_path / "two").symlink_to("one")
    write_bytes_atomic(tmp_path / "two", b"new")
    assert target.read_bytes() == b"new"
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "two").is_symlink()
    assert names_in(tmp_path / "elsewhere") == ["a"]
    assert names_in(tmp_path) == ["elsewhere", "one", "two"]


def test_a_circle_of_links_is_refused_and_stays(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(
        InputError, match=r"a: cannot be written \(Too many levels of symbolic links\)"
    ):
        write_bytes_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").is_symlink()
    assert names_in(tmp_path) == ["a", "b"]


def test_the_longest_name_can_be_written(tmp_path):
    write_bytes_atomic(tmp_path / ("x" * 255), b"new")
    assert names_in(tmp_path) == ["x" * 255]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["io", "stop"]
)
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_any_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    (tmp_path / "a").write_text("old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
        write_bytes_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "old"
    assert names_in(tmp_path) == ["a"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a: cannot be written \(File too large\); make room"):
            write_bytes_atomic(tmp_path / "a", b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a").read_text() == "old"
    assert names_in(tmp_path) == ["a"]


def test_a_folder_that_is_absent_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"absent/a: cannot be written \(No such file or directory\)"
    ):
        write_bytes_atomic(tmp_path / "absent" / "a", b"new")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch, number):
    real = os.fsync

    def refuse_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if number == errno.EIO:  # that is a broken disk
        with pytest.raises(InputError, match=r"cannot be written \(Input/output error\)"):
            write_bytes_atomic(tmp_path / "a", b"new")
    else:
        write_bytes_atomic(tmp_path / "a", b"new")
    assert names_in(tmp_path) == ["a"]


# ---- reading


def test_a_small_archive_unpacks_to_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS", 2**20)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(
        gzip.compress(b"[" + b'{"a":1},' * 10_000_000 + b"1]", 1)
    )  # 80 MB, parsed 2 GB
    tracemalloc.start()
    with pytest.raises(
        InputError, match=r"bomb\.json\.gz: unpacks to more than \d+ bytes, over 100 times its size"
    ):
        read_bytes(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * max(2**20, 100 * path.stat().st_size)
    tracemalloc.stop()


def test_regular_but_short_archives_are_read(tmp_path):
    path = tmp_path / "same.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({str(n): ["x"] * 100 for n in range(20_000)}).encode())
    )
    assert path.stat().st_size * files.MAX_RATIO < 10_000_000
    assert len(read_json(path)) == 20_000


@pytest.mark.parametrize(
    "text", ["[" + "0," * 20 + "0]", "[" + "{}," * 20 + "0]", "[]\n" * 21, '{"a":1}\n' * 21]
)
def test_the_number_of_values_is_bounded(tmp_path, monkeypatch, text):
    monkeypatch.setattr(files, "MAX_VALUES", 20)
    (tmp_path / "many").write_text(text)
    for read in (read_json, read_jsonl):
        with pytest.raises(
            InputError, match=r"many: \d+ values, more than the 20 allowed; split the file"
        ):
            read(tmp_path / "many")


def test_the_exact_number_of_bytes_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"12345"))
    monkeypatch.setattr(files, "MAX_BYTES", 5)
    assert read_bytes(tmp_path / "a") == read_bytes(tmp_path / "a.gz") == b"12345"
    monkeypatch.setattr(files, "MAX_BYTES", 4)
    for name in ("a", "a.gz"):
        with pytest.raises(InputError, match="more than 4 bytes once unpacked"):
            read_bytes(tmp_path / name)


def test_the_exact_depth_is_allowed():
    assert parse_json("[" * files.MAX_DEPTH + "]" * files.MAX_DEPTH, "x")
    assert parse_json('{"a":' * files.MAX_DEPTH + "1" + "}" * files.MAX_DEPTH, "x")
    for deeper in (
        "[" * 65 + "]" * 65,
        '{"a":' * 65 + "1" + "}" * 65,
        '[{"a":' * 33 + "1" + "}]" * 33,
    ):
        with pytest.raises(InputError, match="x: more than 64 arrays and objects in each other"):
            parse_json(deeper, "x")


def test_whole_numbers_up_to_64_bits_are_read_and_no_larger_ones():
    assert parse_json("[18446744073709551615, -9223372036854775808]", "x") == [2**64 - 1, -(2**63)]
    with pytest.raises(InputError, match="x: a number of 5000 digits, more than the 20 allowed"):
        parse_json("9" * 5000, "x")


def test_escaped_pairs_of_surrogates_are_text():
    assert parse_json(rb'"\ud83d\ude00"', "x") == "😀"
    for half in (rb'"\ud83d"', rb'{"\uDE00": 1}', rb'[[["a\ud83d b"]]]'):
        with pytest.raises(InputError, match="x: holds half a surrogate pair"):
            parse_json(half, "x")


def test_a_repeated_key_is_found_in_linear_time():
    names = [f'"{number}":0' for number in range(MANY)]
    with pytest.raises(InputError, match=f"key '{MANY - 1}' occurs twice"):
        parse_json("{" + ",".join([*names, names[-1]]) + "}", "x")


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(InputError, match=r"'a\\x00b': cannot be read"):
        read_bytes("a\0b")


def test_a_value_in_a_message_is_cut():
    assert shown("x") == "'x'"
    assert len(shown("x" * 10**6)) < 300
    with pytest.raises(InputError) as error:
        parse_json('{"%s":1,"%s":1}' % ("k" * 10**6, "k" * 10**6), "x")  # noqa: UP031
    assert len(str(error.value)) < 400
