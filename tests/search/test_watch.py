"""An index that follows its folder, and a search that notices."""

import json

import pytest
from tiny_training import Pictures, tiny_head

from cir_cot.cli import DONE
from cir_cot.errors import InputError
from cir_cot.scripts.eval import build_index
from cir_cot.search import watch as watching
from cir_cot.search.build import open_index
from cir_cot.search.search import open_search
from cir_cot.search.watch import state_of, watch


def paint(folder, name, colours=None):
    Pictures().load(colours or name).save(folder / f"{name}.png")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("red-blue", "green-red"):
        paint(tmp_path / "photos", name)
    return tmp_path / "photos"


@pytest.fixture
def looks(monkeypatch):
    """Give what happens before each look; after the last one Ctrl-C is pressed."""

    def plan(*steps):
        left = list(steps)

        def sleep(seconds):
            if not left:
                raise KeyboardInterrupt
            step = left.pop(0)
            if step:
                step()

        monkeypatch.setattr(watching.time, "sleep", sleep)

    return plan


def follow(photos, update, say=print):
    with pytest.raises(KeyboardInterrupt):
        watch(photos, update, 1, say, state_of(photos))


def test_a_change_is_taken_in_once_when_it_has_settled(photos, looks):
    raw = (photos / "red-blue.png").read_bytes()
    late = photos / "late.png"
    seen = []
    looks(
        None,
        lambda: late.write_bytes(raw[:40]),
        lambda: late.write_bytes(raw[:80]),  # still being written
        lambda: late.write_bytes(raw),
        None,  # settled
        None,
        lambda: (photos / "green-red.png").unlink(),
        None,  # settled
        lambda: (photos / ".hidden.png").write_bytes(raw),
        lambda: (photos / "notes.txt").write_text("x"),
        None,
    )
    follow(photos, lambda: seen.append(sorted(state_of(photos))))
    assert seen == [["green-red.png", "late.png", "red-blue.png"], ["late.png", "red-blue.png"]]


def test_a_picture_that_was_replaced_is_a_change(photos, looks):
    seen = []
    looks(lambda: paint(photos, "red-blue", "cyan-magenta"), None, None)
    follow(photos, lambda: seen.append(1))
    assert seen == [1]


def test_an_update_that_fails_is_said_once_and_tried_again_at_each_look(photos, looks):
    said = []
    tries = []

    def update():
        tries.append(1)
        if len(tries) in (1, 2, 4):
            raise InputError("the folder is written by another process")

    # Nothing changes while the update fails twice; the third one takes the change in.
    looks(lambda: paint(photos, "blue-red"), None, None, None, None)
    follow(photos, update, said.append)
    assert said == ["the folder is written by another process"]
    assert len(tries) == 3
    # After a success the same reason is news.
    looks(lambda: paint(photos, "red-green"), None, None)
    follow(photos, update, said.append)
    assert said == ["the folder is written by another process"] * 2
    assert len(tries) == 5


def test_a_folder_that_is_gone_for_a_while_is_waited_for(photos, looks):
    seen = []
    away = photos.with_name("away")
    looks(lambda: photos.rename(away), lambda: away.rename(photos), None, None)
    follow(photos, lambda: seen.append(1))
    assert seen == []


def command(tmp_path, *more):
    words = [
        "--model",
        tmp_path / "model",
        "--images",
        tmp_path / "photos",
        "--out",
        tmp_path / "index",
    ]
    return [str(word) for word in (*words, "--device", "cpu", *more)]


def test_the_command_follows_the_folder_and_a_search_notices(photos, looks, tmp_path, capsys):
    tiny_head(lora=False, max_new_tokens=4).save(tmp_path / "model")
    assert build_index.main(command(tmp_path)) == DONE
    search = open_search(tmp_path / "model", tmp_path / "index", device="cpu")
    assert search.refresh() is False
    before = search.index

    looks(
        lambda: paint(photos, "blue-red"),
        None,
        lambda: (photos / "red-blue.png").unlink(),
        None,
        None,
    )
    capsys.readouterr()
    assert build_index.main(command(tmp_path, "--watch", "0.5", "--json")) == DONE
    out, err = capsys.readouterr()
    assert json.loads(out)["count"] == 2
    assert "1 pictures encoded, of 3" in err
    assert "0 pictures encoded, of 2" in err
    assert "watching ended" in err
    assert set(open_index(tmp_path / "index").ids) == {"blue-red", "green-red"}
    # A search that was open all the time.
    assert search.index is before
    assert search.refresh() is True
    hits = search.one(photos / "green-red.png", "in blue", keep_reference=True).hits
    assert {name for name, _ in hits} == {"blue-red", "green-red"}
    assert search.refresh() is False


def test_an_index_of_another_retriever_is_not_taken_in(photos, tmp_path):
    for name, width in (("model", 16), ("other", 8)):
        tiny_head(lora=False, projection=width).save(tmp_path / name)
    assert build_index.main(command(tmp_path)) == DONE
    search = open_search(tmp_path / "model", tmp_path / "index", device="cpu")
    before = search.index
    for file in (tmp_path / "index").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no index.json here"):
        search.refresh()
    assert build_index.main([*command(tmp_path), "--model", str(tmp_path / "other")]) == DONE
    with pytest.raises(InputError):
        search.refresh()
    assert search.index is before


@pytest.mark.parametrize("more", [["--gallery", "x"], ["--remove", "x"]])
def test_what_does_not_go_with_following_is_refused(photos, tmp_path, more):
    with pytest.raises(InputError, match="--watch follows the whole folder"):
        build_index.main(command(tmp_path, "--watch", "1", *more))


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon"])
def test_seconds_that_are_none_are_refused(photos, tmp_path, value, capsys):
    with pytest.raises((SystemExit, InputError)):
        build_index.parse(command(tmp_path, "--watch", value))
