"""FashionIQ: at least six protocols share the name, so captions, galleries and the reference's place are options here.

A caption style maps the (first, second) caption to the texts of one or, where each order or caption is a query of its
own, more queries. Every result carries the names of all three options. Source: the official repositories' code.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.records import Record

from . import layouts
from .benchmark import Benchmark, protocol_of
from .layouts import around, choose, find, open_images, read_entries, read_names, strings

FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = ("original", "val-union", "all-categories")
# What papers call "FashionIQ": numbers of different rows do not belong in one table.
FASHIONIQ_PROTOCOLS = {
    "original": {
        "gallery": "original",
        "reference": "keep",
        "caption_join": "clip4cir",
    },  # CLIP4Cir, SPRC, CIReVL
    "rtic": {"gallery": "original", "reference": "remove", "caption_join": "sep"},
    "covr": {"gallery": "original", "reference": "remove", "caption_join": "covr"},
    "cosmo": {
        "gallery": "original",
        "reference": "remove",
        "caption_join": "both-orders",
    },  # and ARTEMIS
    "val": {"gallery": "val-union", "reference": "remove", "caption_join": "single"},
    "cosmo-val": {"gallery": "val-union", "reference": "remove", "caption_join": "both-orders"},
    "composeae": {
        "gallery": "all-categories",
        "reference": "keep",
        "caption_join": "raw",
    },  # texts: ours
}
STRIPPED = ".?, "


def clip4cir(first: str, second: str) -> str:
    """CLIP4Cir, SPRC and BLIP4CIR at evaluation. Quirks kept: `capitalize` lower-cases the rest of the first caption,
    and a blank first caption leaves a leading " and "."""
    return f"{first.strip(STRIPPED).capitalize()} and {second.strip(STRIPPED)}"


def covr(first: str, second: str) -> str:
    """CoVR's `pre_caption` of "first and second": lower case, punctuation to spaces, at most 30 words."""
    text = re.sub(r"([.!\"()*#:;~])", " ", f"{first} and {second}".lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")[:30])


CAPTION_JOINS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    "clip4cir": lambda first, second: (clip4cir(first, second),),
    "raw": lambda first, second: (f"{first} and {second}",),  # MagicLens
    "reversed": lambda first, second: (f"{second} and {first}",),  # Pic2Word
    "comma": lambda first, second: (f"{first}, and {second}",),  # MegaPairs
    "sep": lambda first, second: (f"{first} [SEP] {second}",),  # RTIC
    "covr": lambda first, second: (covr(first, second),),
    "both-orders": lambda first, second: (
        f"{first} and {second}",
        f"{second} and {first}",
    ),  # CoSMo, ARTEMIS
    "single": lambda first, second: tuple(text for text in (first, second) if text.strip()),  # VAL
}
SEVERAL_QUERIES = ("both-orders", "single")


def training_captions(captions: tuple[str, str]) -> tuple[str, str, str, str]:
    """CLIP4Cir's four texts of a training query: "c1 and c2", "c2 and c1", c1, c2.

    Where the caption that would stand alone is blank (13 of 36,000), the other one stands in.
    """
    first, second = captions
    alone = [caption.strip(STRIPPED).capitalize() for caption in captions]
    return (
        clip4cir(first, second),
        clip4cir(second, first),
        alone[0] or alone[1],
        alone[1] or alone[0],
    )


def training_caption(captions: tuple[str, str], draw: float) -> str:
    """CLIP4Cir's text of a training query for a random number in [0, 1): each of the four forms a quarter."""
    if not 0 <= draw < 1:
        raise ValueError(f"draw is a random number in [0, 1), got {draw}")
    return training_captions(captions)[int(draw * 4)]


def fashioniq(
    root: str | Path,
    split: str,
    category: str | None = None,
    gallery: str = "original",
    reference: str = "keep",
    caption_join: str = "clip4cir",
) -> list[Benchmark]:
    """FashionIQ, one benchmark a category; ids are indices in the caption file (".0", ".1" added where a caption pair
    makes several queries)."""
    choose("split", split, ("train", "val", "test"))
    choose("gallery", gallery, GALLERIES)
    choose("reference", reference, ("keep", "remove"))
    choose("caption_join", caption_join, CAPTION_JOINS)
    names = (
        FASHIONIQ_CATEGORIES
        if category is None
        else (choose("category", category, FASHIONIQ_CATEGORIES),)
    )
    return [_fashioniq(Path(root), split, name, gallery, reference, caption_join) for name in names]


def _fashioniq(
    root: Path, split: str, category: str, gallery: str, reference: str, join: str
) -> Benchmark:
    files = [
        f"{base}/{folder}/cap.{category}.{split}.json"
        for base in layouts.FASHIONIQ_BASES
        for folder in layouts.FASHIONIQ_CAPTIONS
    ]
    path = find(root, files, f"captions of FashionIQ {category} {split}")
    base = path.parent.parent
    records, captions = _fashioniq_records(path, join, split, f"fashioniq/{category}/{split}")
    names = {}
    for name in FASHIONIQ_CATEGORIES if gallery == "all-categories" else (category,):
        names[name] = read_names(
            find(base, [f"image_splits/split.{name}.{split}.json"], f"image split of {name}")
        )
    listed = list(dict.fromkeys(name for part in names.values() for name in part))
    members = listed
    if gallery == "val-union":
        if not all(record.targets for record in records):
            raise InputError(
                f"{path}: the val-union gallery is made of targets, which FashionIQ {split} does not have"
            )
        used = {image for record in records for image in (record.reference, *record.targets)}
        members = [name for name in listed if name in used]
    folders = around(root, base, [folder.format(c=category) for folder in layouts.FASHIONIQ_IMAGES])
    return Benchmark(
        name="fashioniq",
        split=split,
        category=category,
        records=records,
        gallery=members,
        ks=(10, 50),
        remove_reference=reference == "remove",
        protocol=protocol_of(
            "fashioniq",
            split,
            records,
            members,
            reference,
            category=category,
            gallery=gallery,
            caption_join=join,
        ),
        images=partial(open_images, root, folders, f"FashionIQ {category}"),
        outside=frozenset(listed).difference(members),
        captions=captions,
    )


def _fashioniq_records(path: Path, join: str, split: str, source: str) -> tuple[list[Record], dict]:
    keys = {"candidate": str, "captions": list} | ({} if split == "test" else {"target": str})
    records, captions = [], {}
    for index, entry in enumerate(read_entries(path, keys)):
        pair = strings(entry["captions"], f"{path}: entry {index}: 'captions'")
        if len(pair) != 2:
            raise InputError(f"{path}: entry {index}: two captions are expected, got {len(pair)}")
        targets = (entry["target"],) if "target" in keys else ()
        for number, text in enumerate(CAPTION_JOINS[join](*pair)):
            name = f"{index}.{number}" if join in SEVERAL_QUERIES else str(index)
            records.append(Record(name, entry["candidate"], text, targets, source=source))
            captions[name] = pair
    return records, captions
