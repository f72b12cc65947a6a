"""A retriever whose answers are known in closed form, and data for it; shared by the tests of evaluation and report.

A picture is one shade of grey, 0..255, and its embedding a point of the quarter circle at that angle. A query's text is
a number to add. Read in full the toy goes to reference + number, read fast to the reference itself.
"""

import json
import math
import re

import torch
from PIL import Image

from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot, Record, write_records
from cir_cot.retriever import CHAIN_READINGS, Flag, QueryOutput


def point(shade: float) -> list[float]:
    angle = max(0.0, min(255.0, shade)) / 255 * math.pi / 2
    return [math.cos(angle), math.sin(angle)]


def shade_of(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def chain(reference: int, text: str) -> Cot:
    return Cot(f"shade {reference}", f"add {text}", f"shade {reference + int(text)}")


class Plain:
    """The Retriever protocol and nothing more."""

    dim = 2

    def encode_target(self, images):
        return torch.tensor([point(shade_of(image)) for image in images])

    def encode_query(self, images, texts):
        points = [
            point(shade_of(image) + int(text)) for image, text in zip(images, texts, strict=True)
        ]
        return QueryOutput(torch.tensor(points), [""] * len(texts))


class Toy(Plain):
    """A retriever that writes chains; it forgets the last part of every chain whose number is in `forgets`."""

    readings = CHAIN_READINGS

    def __init__(self, forgets=()):
        self.reading, self.forgets = "full", forgets

    def stream(self, images, texts, reading=None):
        yield self.encode_query(images, texts, reading)

    def encode_query(self, images, texts, reading=None):
        if (reading or self.reading) == "fast":
            return QueryOutput(self.encode_target(images), [""] * len(texts), [""] * len(texts))
        words = [
            cot_to_text(chain(shade_of(image), text))
            for image, text in zip(images, texts, strict=True)
        ]
        cut = [
            word.partition("<conclusion>")[0] if t in self.forgets else word
            for word, t in zip(words, texts, strict=True)
        ]
        flags = [
            Flag("missing_token", "no retrieval token: forced at the length limit")
            if t in self.forgets
            else ""
            for t in texts
        ]
        return QueryOutput(super().encode_query(images, texts).embeddings, cut, flags)

    def embed_with(self, images, texts, chains):
        points = [point(int(re.sub(r"\D", "", cot.conclusion))) for cot in chains]
        return QueryOutput(
            torch.tensor(points), [cot_to_text(cot) for cot in chains], [""] * len(chains)
        )


class Constant(Plain):
    """Every picture and every query is the same to it."""

    def encode_target(self, images):
        return torch.full((len(images), 8), 8**-0.5)

    def encode_query(self, images, texts):
        return QueryOutput(self.encode_target(images), [""] * len(texts))


def write_shades(folder, shades) -> None:
    """Pictures named after their shade: s000.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        Image.new("RGB", (8, 6), (shade,) * 3).save(folder / f"s{shade:03}.png")


def query(index: int, reference: int, add: int, target: int, annotated: bool = True) -> Record:
    cot = chain(reference, str(add)) if annotated else None
    return Record(
        str(index),
        f"s{reference:03}",
        str(add),
        (f"s{target:03}",),
        cot,
        source="toy/up" if add > 0 else "toy/down",
    )


def write_folder(root, records, shades, split="val"):
    """A folder dataset with a gallery of all shades -> its root."""
    write_shades(root / "images", shades)
    write_records(root / f"records.{split}.jsonl", records)
    (root / f"gallery.{split}.txt").write_text("\n".join(f"s{shade:03}" for shade in shades) + "\n")
    return root


def write_json(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
