"""Load FashionIQ (Wu et al. 2021) by any of its protocols.

At least six protocols share the name, so each of their choices is an option here.

The options are how the two captions of a query are joined, which images are the gallery, and
whether the reference is one of them. Every result carries the names of all three. Sources: the
official repositories' code.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.records import Record

from . import layouts
from .annotation_files import read_entries, read_names, strings
from .benchmark import Benchmark, choose, protocol_of
from .layouts import around, find, open_images

FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = ("original", "val-union", "all-categories")

# What papers call "FashionIQ". Numbers of different rows do not belong in one table.
# fmt: off
FASHIONIQ_PROTOCOLS = {
    "original":  {"gallery": "original",       "reference": "keep",   "caption_join": "clip4cir"},
    "rtic":      {"gallery": "original",       "reference": "remove", "caption_join": "sep"},
    "covr":      {"gallery": "original",       "reference": "remove", "caption_join": "covr"},
    "cosmo":     {"gallery": "original",       "reference": "remove", "caption_join": "both-orders"},
    "val":       {"gallery": "val-union",      "reference": "remove", "caption_join": "single"},
    "cosmo-val": {"gallery": "val-union",      "reference": "remove", "caption_join": "both-orders"},
    "composeae": {"gallery": "all-categories", "reference": "keep",   "caption_join": "raw"},
}
# fmt: on
# "original" is that of CLIP4Cir, SPRC and CIReVL; "cosmo" that of ARTEMIS, too; the captions of
# "composeae" are joined in a form of our own.

STRIPPED = ".?, "  # what CLIP4Cir strips from both ends of a caption
MAX_COVR_WORDS = 30


# ---- from two captions to the text of a query


def clip4cir(first: str, second: str) -> str:
    """Join two captions as CLIP4Cir, SPRC and BLIP4CIR do at evaluation.

    Their quirks are kept: `capitalize` converts the rest of the first caption to lower case, and a
    blank first caption leaves a leading " and ".
    """
    return f"{first.strip(STRIPPED).capitalize()} and {second.strip(STRIPPED)}"


def covr(first: str, second: str) -> str:
    """Join two captions as CoVR's `pre_caption` does: lower case, no punctuation, 30 words."""
    text = f"{first} and {second}".lower()
    text = re.sub(r"([.!\"()*#:;~])", " ", text)
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_COVR_WORDS])


# A style maps the (first, second) caption to the texts of one query, or of several where each order
# or each caption is a query of its own.
CAPTION_JOINS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    "clip4cir": lambda first, second: (clip4cir(first, second),),
    "raw": lambda first, second: (f"{first} and {second}",),  # MagicLens
    "reversed": lambda first, second: (f"{second} and {first}",),  # Pic2Word
    "comma": lambda first, second: (f"{first}, and {second}",),  # MegaPairs
    "sep": lambda first, second: (f"{first} [SEP] {second}",),  # RTIC
    "covr": lambda first, second: (covr(first, second),),
    # CoSMo, ARTEMIS
    "both-orders": lambda first, second: (f"{first} and {second}", f"{second} and {first}"),
    "single": lambda first, second: tuple(text for text in (first, second) if text.strip()),  # VAL
}
SEVERAL_QUERIES = ("both-orders", "single")


def training_captions(captions: tuple[str, str]) -> tuple[str, str, str, str]:
    """Return CLIP4Cir's four texts of a training query: "c1 and c2", "c2 and c1", c1, c2.

    Where the caption that would stand alone is blank (13 of 36,000), the other one takes its place.
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
    """Return one of CLIP4Cir's four texts of a training query, each with probability 1/4.

    Args:
        captions: the two captions of the query.
        draw: a random number in [0, 1).
    """
    if not 0 <= draw < 1:
        raise ValueError(f"draw is a random number in [0, 1), got {draw}")
    return training_captions(captions)[int(draw * 4)]


# ---- loading


def fashioniq(
    root: str | Path,
    split: str,
    category: str | None = None,
    gallery: str = "original",
    reference: str = "keep",
    caption_join: str = "clip4cir",
) -> list[Benchmark]:
    """Load FashionIQ, one benchmark a category.

    Query ids are indices in the caption file; where a caption pair makes several queries, ".0" and
    ".1" are added.

    Args:
        root: a folder that holds FashionIQ in any layout of `layouts.FASHIONIQ_BASES`.
        split: "train", "val" or "test", which has no published targets.
        category: one of FASHIONIQ_CATEGORIES, or None for all three.
        gallery: "original" (the split's images), "val-union" (only references and targets of its
            queries, as VAL) or "all-categories".
        reference: "keep" or "remove" the reference image in the rankings.
        caption_join: how two captions become a query's text, a key of CAPTION_JOINS.
    """
    choose("split", split, ("train", "val", "test"))
    choose("gallery", gallery, GALLERIES)
    choose("reference", reference, ("keep", "remove"))
    choose("caption_join", caption_join, CAPTION_JOINS)
    # all categories, or the one that was asked for
    names: tuple[str, ...] = FASHIONIQ_CATEGORIES
    if category is not None:
        names = (choose("category", category, FASHIONIQ_CATEGORIES),)
    return [_load(Path(root), split, name, gallery, reference, caption_join) for name in names]


def _load(
    root: Path, split: str, category: str, gallery: str, reference: str, join: str
) -> Benchmark:
    """Load one category."""
    # the queries
    files = [
        f"{base}/{folder}/cap.{category}.{split}.json"
        for base in layouts.FASHIONIQ_BASES
        for folder in layouts.FASHIONIQ_CAPTIONS
    ]
    path = find(root, files, f"captions of FashionIQ {category} {split}")
    base = path.parent.parent
    records, captions = _read_queries(path, join, split, f"fashioniq/{category}/{split}")

    # the images that are ranked
    categories = FASHIONIQ_CATEGORIES if gallery == "all-categories" else (category,)
    listed = _read_gallery(base, categories, split)
    members = listed
    if gallery == "val-union":
        members = _used_images(listed, records, path, split)

    # everything a result must state
    folders = [folder.format(c=category) for folder in layouts.FASHIONIQ_IMAGES]
    protocol = protocol_of(
        "fashioniq",
        split,
        records,
        members,
        reference,
        category=category,
        gallery=gallery,
        caption_join=join,
    )
    return Benchmark(
        name="fashioniq",
        split=split,
        category=category,
        records=records,
        gallery=members,
        ks=(10, 50),
        remove_reference=reference == "remove",
        protocol=protocol,
        images=partial(open_images, root, around(root, base, folders), f"FashionIQ {category}"),
        outside=frozenset(listed).difference(members),
        captions=captions,
    )


def _read_queries(
    path: Path, join: str, split: str, source: str
) -> tuple[list[Record], dict[str, tuple[str, str]]]:
    """Return the queries and, by query id, their two captions."""
    labelled = split != "test"
    keys: dict[str, type] = {"candidate": str, "captions": list}
    if labelled:
        keys["target"] = str
    records = []
    captions: dict[str, tuple[str, str]] = {}
    for index, entry in enumerate(read_entries(path, keys)):
        pair = strings(entry["captions"], f"{path}: entry {index}: 'captions'")
        if len(pair) != 2:
            raise InputError(f"{path}: entry {index}: two captions are expected, got {len(pair)}")
        first, second = pair
        targets = (entry["target"],) if labelled else ()

        # one query, or one for each text that the style makes of the captions
        for number, text in enumerate(CAPTION_JOINS[join](first, second)):
            name = f"{index}.{number}" if join in SEVERAL_QUERIES else str(index)
            records.append(Record(name, entry["candidate"], text, targets, source=source))
            captions[name] = (first, second)
    return records, captions


def _read_gallery(base: Path, categories: tuple[str, ...], split: str) -> list[str]:
    """Return the images of a split over some categories, each once, in official order."""
    images: dict[str, None] = {}
    for name in categories:
        path = find(base, [f"image_splits/split.{name}.{split}.json"], f"image split of {name}")
        images |= dict.fromkeys(read_names(path))
    return list(images)


def _used_images(listed: list[str], records: list[Record], path: Path, split: str) -> list[str]:
    """Return the images that are a reference or a target of a query, in official order."""
    if not all(record.targets for record in records):
        raise InputError(
            f"{path}: the val-union gallery consists of targets, which FashionIQ {split} does not have"
        )
    # a query uses its reference and its target
    used: set[str] = set()
    for record in records:
        used.add(record.reference)
        used.update(record.targets)
    return [name for name in listed if name in used]
