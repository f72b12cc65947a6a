"""A search whose answers are known in closed form."""

import pytest
from toy_retriever import Toy, write_shades

from cir_cot.images import list_pictures
from cir_cot.search.build import build, open_index
from cir_cot.search.search import Search

SHADES = range(0, 200, 20)


@pytest.fixture
def toy(tmp_path):
    write_shades(tmp_path / "images", SHADES)
    images = list_pictures(tmp_path / "images")
    payloads = {name: {"shade": int(name[1:])} for name in images.files}
    build(Toy(), images, list(images.files), tmp_path / "index", payloads=payloads)
    return Search(Toy(), open_index(tmp_path / "index"))
