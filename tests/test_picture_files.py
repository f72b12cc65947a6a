"""One lookup of pictures: the same files for every command, whatever else lies in the folder."""

import sys

import pytest
from PIL import Image

from cir_cot.data.check import same_ids
from cir_cot.errors import InputError
from cir_cot.images import ImageStore, list_pictures
from cir_cot.picture_files import find_pictures, unique_pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)
NAMES = ["a.jpg", "b.JPG", "c.Png", "d.tiff", "e.TIF", "f.bmp", "g.gif", "h.webp", "sub.x/i.JpEg"]


@pytest.fixture
def folder(tmp_path):
    """A picture of every kind, each in the lookup's formats."""
    (tmp_path / "sub.x").mkdir()
    for name in NAMES:
        Image.new("RGB", (8, 4), RED).save(tmp_path / name)
    return tmp_path


def test_both_lookups_find_the_same_pictures(folder):
    listed, by_id = list_pictures(folder), ImageStore(folder)
    assert sorted(listed.files.values()) == sorted(NAMES)
    for name in listed.files:
        assert by_id.path(name) == listed.path(name)
        assert by_id.fingerprint(name) == listed.fingerprint(name)
        pixel = by_id.load(name).getpixel((4, 2))
        assert pixel[0] > 245
        assert max(pixel[1:]) < 10


def test_an_id_is_not_the_beginning_of_another_name(folder):
    Image.new("RGB", (8, 4)).save(folder / "k.1.JPG")
    store = ImageStore(folder)
    assert store.path("k.1").name == "k.1.JPG"
    assert "k" not in store


def test_the_first_frame_of_a_gif_is_read(folder):
    first, second = Image.new("RGB", (8, 4), RED), Image.new("RGB", (8, 4), BLUE)
    first.save(folder / "moving.gif", save_all=True, append_images=[second])
    assert ImageStore(folder).load("moving").getpixel((4, 2)) == RED


def test_hidden_files_are_left_out_and_the_rest_counted_by_kind(folder):
    (folder / ".cache").mkdir()
    for name in ("._a.jpg", ".cache/a.jpg", "notes.TXT", "more.txt", "README"):
        (folder / name).write_bytes(b"x")
    found = find_pictures(folder)
    assert sorted(found.files.values()) == sorted(NAMES)
    assert found.skipped_line() == "skipped: 2 .txt, 2 hidden, 1 without extension"
    assert not found.clashes


def test_two_pictures_of_one_id_are_refused_and_found_by_check(folder):
    Image.new("RGB", (8, 4)).save(folder / "a.PNG")
    with pytest.raises(InputError, match=r"a\.PNG and a\.jpg have the same image id, 'a'"):
        unique_pictures(folder)
    assert same_ids(ImageStore(folder)) == ["a.PNG = a.jpg"]
    # a benchmark that names its files has no such ids
    assert same_ids(ImageStore(folder, {"a": "a.jpg"})) == []


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no pictures \(\.jpg, .*\) in it, skipped: 1 \.txt"):
        unique_pictures(tmp_path)


def test_heic_without_its_extra_is_one_line_with_the_cure(folder, monkeypatch):
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"phone\.HEIC: a HEIC .* pip install 'cir-cot\[heic\]'"):
        ImageStore(folder).load("phone")


def test_heic_is_read_with_its_extra(folder):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 32), RED).save(folder / "phone.heic")
    loaded = ImageStore(folder).load("phone")
    assert loaded.size == (64, 32)
    assert loaded.getpixel((32, 16))[0] > 240
