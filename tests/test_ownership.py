"""A command replaces what it wrote itself, and nothing else."""

import json

import pytest

from cir_cot.errors import InputError
from cir_cot.ownership import MANIFEST, writing


def write(folder, text="made", command="make", names=("a", "b"), **options):
    with writing(folder, command, names, **options):
        for name in (*names, *options.get("unread", ())):
            (folder / name).write_text(text)


def test_what_the_command_wrote_is_replaced(tmp_path):
    write(tmp_path)
    write(tmp_path, "made again")
    write(tmp_path, "and again", names=("b", "c"))
    assert [(tmp_path / name).read_text() for name in "abc"] == [
        "made again",
        "and again",
        "and again",
    ]


def test_a_file_that_was_there_is_refused_and_stays(tmp_path):
    (tmp_path / "b").write_text("mine")
    with pytest.raises(
        InputError, match=r"b: not written by this command, or edited since; .* --overwrite"
    ):
        write(tmp_path)
    assert (tmp_path / "b").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    write(tmp_path, overwrite=True)
    assert (tmp_path / "b").read_text() == "made"
    write(tmp_path, "again")


def test_a_file_edited_since_is_refused_and_stays(tmp_path):
    write(tmp_path)
    (tmp_path / "a").write_text("corrected by hand")
    with pytest.raises(InputError, match="a: not written by"):
        write(tmp_path)
    assert (tmp_path / "a").read_text() == "corrected by hand"


def test_what_another_command_wrote_is_refused(tmp_path):
    write(tmp_path, names=("a",))
    with pytest.raises(InputError, match="a: not written by this command"):
        write(tmp_path, command="other")
    write(tmp_path, command="other", names=("c",))
    write(tmp_path, "again", names=("a",))


def test_a_link_that_leads_nowhere_is_the_users(tmp_path):
    (tmp_path / "a").symlink_to("elsewhere")
    with pytest.raises(InputError, match="a: not written by"):
        write(tmp_path)


def test_a_run_that_was_stopped_can_be_repeated(tmp_path):
    def stop():
        with writing(tmp_path, "make", ["a", "b"]):
            (tmp_path / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    write(tmp_path)
    assert (tmp_path / "a").read_text() == "made"


def test_files_known_by_their_names_are_replaced_whatever_is_in_them(tmp_path):
    write(tmp_path, unread=("c",))
    (tmp_path / "c").write_text("edited")
    write(tmp_path, "again", unread=("c",))
    assert (tmp_path / "c").read_text() == "again"
    (tmp_path / "d").write_text("mine")
    with pytest.raises(InputError, match="d: not written by"):
        write(tmp_path, unread=("c", "d"))


@pytest.mark.parametrize("content", ["", "[]", '{"make": []}', '{"make"', "\0"])
def test_a_damaged_list_is_refused_by_name(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=MANIFEST):
        write(tmp_path)


def test_the_list_is_plain(tmp_path):
    write(tmp_path, names=("a",), unread=("c",))
    (listed,) = json.loads((tmp_path / MANIFEST).read_text()).values()
    assert listed.keys() == {"a", "c"}
    assert listed["c"] is None
