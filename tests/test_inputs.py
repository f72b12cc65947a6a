"""Pictures and texts as people give them: paths, any mode, one or many; heads take the same."""

import pytest
import torch
from PIL import Image
from tiny_training import tiny_head

from cir_cot.errors import InputError
from cir_cot.inputs import as_pictures, as_queries
from cir_cot.records import Cot
from cir_cot.retriever import QueryOutput

RED = (200, 30, 30)


@pytest.fixture
def files(tmp_path):
    """The same picture in three files and as two in memory."""
    picture = Image.new("RGB", (84, 56), RED)
    picture.save(tmp_path / "red.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    paths = [tmp_path / name for name in ("red.png", "alpha.png", "palette.png")]
    return [*paths, str(paths[0]), picture, picture.convert("RGBA")]


def test_pictures_of_any_form_are_the_same(files):
    found = as_pictures(files)
    assert {picture.mode for picture in found} == {"RGB"}
    assert {picture.getpixel((40, 20)) for picture in found} == {RED}
    assert as_pictures(files[4])[0] is files[4]  # no copy of what is RGB already
    glass = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert as_pictures(glass)[0].getpixel((1, 1)) == (255, 255, 255)


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png: no such file"):
        as_pictures(tmp_path / "nothing.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        as_pictures([tmp_path / "bad.png"])
    with pytest.raises(InputError, match="2 pictures and 1 texts"):
        as_queries([Image.new("RGB", (56, 56))] * 2, "red")


def test_a_picture_in_memory_that_is_too_narrow_for_the_models_is_named():
    wide = Image.new("RGB", (400, 2))
    assert as_pictures([wide]) == [wide]
    with pytest.raises(InputError, match="picture 1: 401 x 2 pixels, one side more than 200 times"):
        as_pictures([wide, Image.new("RGB", (401, 2))])


def test_a_head_takes_paths_one_or_many_in_batches_of_any_size(files, capsys):
    head = tiny_head().eval()
    own = head.batch_size
    many = head.encode_target(files)
    assert many.shape == (len(files), head.dim)
    torch.testing.assert_close(many, many[:1].expand_as(many), atol=1e-5, rtol=0)
    torch.testing.assert_close(head.encode_target(files[0]), many[:1], atol=1e-5, rtol=0)
    assert capsys.readouterr().err == ""
    small = head.encode_target(files * 3, batch_size=1, show_progress=True)
    torch.testing.assert_close(small, many.repeat(3, 1), atol=1e-5, rtol=0)
    assert "18/18" in capsys.readouterr().err
    words = [f"make it {shade}" for shade in "abcdef"]
    queries = head.encode_query(files, words, "fast")
    apart = head.encode_query(files, words, "fast", batch_size=1)
    torch.testing.assert_close(queries.embeddings, apart.embeddings, atol=1e-5, rtol=0)
    one = head.encode_query(files[0], words[0], "fast")
    torch.testing.assert_close(one.embeddings, queries.embeddings[:1], atol=1e-5, rtol=0)
    assert head.batch_size == own
    assert head.encode_target([]).shape == (0, head.dim)


def test_chains_are_objects_where_they_are_complete():
    whole = "<caption>a</caption><reasoning>b</reasoning><conclusion>c</conclusion>"
    output = QueryOutput(torch.zeros(3, 2), [whole, "", "<caption>a"])
    assert output.chains == [Cot("a", "b", "c"), None, None]
