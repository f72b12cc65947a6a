"""The demo's dialogue over a small index."""

import io

from PIL import Image
from toy_retriever import Toy, write_shades

from cir_cot.images import list_pictures
from cir_cot.search.build import build, open_index
from cir_cot.search.dialogue import Dialogue, modes_of
from cir_cot.search.search import Search

SHADES = range(0, 250, 10)


def make_search(folder, retriever, names=(), payloads=None):
    write_shades(folder / "images", SHADES)
    for name in names:
        Image.new("RGB", (8, 6), "white").save(folder / "images" / f"{name}.png")
    images = list_pictures(folder / "images")
    build(retriever, images, list(images.files), folder / "index", payloads=payloads)
    return Search(retriever, open_index(folder / "index"))


def make_dialogue(folder, retriever=None, names=(), payloads=None):
    search = make_search(folder, retriever or Toy(), names, payloads)
    return Dialogue(modes_of(search), list_pictures(folder / "images"))


def png(shade=30, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()
