"""Define Benchmark, which every dataset loads as: queries, a gallery and a protocol."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from cir_cot.errors import InputError, UnavailableError, shown
from cir_cot.images import ImageStore
from cir_cot.records import Record

MAX_COCO_DIGITS = 12  # of an image id as COCO's file names have it
# How a protocol words the option "reference".
REFERENCE_WORDING = {"keep": "kept", "remove": "removed", None: "not a candidate"}


@dataclass(frozen=True)
class Benchmark:
    """Hold one set of queries over one gallery, in official order, with its protocol.

    Example:
        >>> (benchmark,) = load_benchmark("cirr", "data/cirr", "val")
        >>> benchmark.records[0].text, len(benchmark.gallery)
    """

    name: str  # the dataset, a key of BENCHMARKS
    split: str  # by the official name
    category: str | None  # of FashionIQ and GeneCIS
    records: list[Record]  # the queries; a record's id is the query id of rankings files
    gallery: list[
        str
    ]  # N image ids; empty if their list is not available (CIRCO's annotations alone)
    ks: tuple[int, ...]  # values of k of recall, or of CIRCO's mAP
    remove_reference: bool  # whether each query's reference image is taken out of its ranking
    protocol: dict  # what a number must be read with; see `protocol_of`
    images: Callable[
        [], ImageStore
    ]  # opens the images; InputError lists the folders that were tried

    # by query id, the images that this query ranks instead of the gallery (GeneCIS)
    candidates: dict[str, list[str]] | None = None
    # images that a ranking may contain although this gallery leaves them out; they are skipped
    outside: frozenset[str] = frozenset()
    # by query id, graded labels {image id: weight} (CIRR)
    weights: dict[str, dict[str, float]] | None = None
    # by query id, the semantic aspects (CIRCO)
    aspects: dict[str, tuple[str, ...]] | None = None
    # by query id, the two captions (FashionIQ)
    captions: dict[str, tuple[str, str]] | None = None

    @cached_property
    def members(self) -> frozenset[str]:
        """Return the gallery as a set."""
        return frozenset(self.gallery)

    @cached_property
    def nameable(self) -> frozenset[str]:
        """Return the images that a ranking may contain: the gallery and those that are skipped."""
        return self.members | self.outside


def label(benchmark: Benchmark) -> str:
    """Return the name of a benchmark for messages, e.g. "fashioniq dress val"."""
    return " ".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))


def coco_id(image: object, where: str) -> str:
    """Return a COCO image id without leading zeros; InputError at `where` for anything else.

    COCO's ids are numbers: 161275, "161275" and "000000161275" all give "161275".
    """
    if (
        isinstance(image, str)
        and image.isascii()
        and image.isdigit()
        and len(image) <= MAX_COCO_DIGITS
    ):
        return str(int(image))
    # a bool is an int to Python
    if isinstance(image, int) and not isinstance(image, bool) and image >= 0:
        return str(image)
    raise InputError(f"{where}: {shown(image)} is not a COCO image id (a whole number)")


def protocol_of(
    name: str,
    split: str,
    records: Sequence[Record],
    members: Sequence[str],
    reference: str | None,
    **options: object,
) -> dict:
    """Return the protocol that is printed beside every number of a benchmark.

    Args:
        name: the dataset.
        split: its split.
        records: the queries.
        members: the gallery, empty where it is unknown.
        reference: "keep" or "remove" the reference image; None where it is never a candidate.
        options: the dataset's own options, e.g. `caption_join`.
    """
    protocol: dict[str, object] = {"benchmark": name, "split": split, **options}
    # counts show whether the files are those of the paper
    protocol["gallery_size"] = len(members) or "unknown"
    protocol["queries"] = len(records)
    protocol["reference"] = REFERENCE_WORDING[reference]
    return protocol


def merge_protocols(categories: Sequence[str | None], protocols: Sequence[dict]) -> dict:
    """Return one protocol for several categories.

    A value that all categories share stays as it is; one that differs becomes {category: value}.
    """
    merged: dict[str, object] = {}
    for key, first in protocols[0].items():
        values = [protocol[key] for protocol in protocols]
        # the same value for all, or one for each category
        same = values.count(first) == len(values)
        merged[key] = first if same else dict(zip(categories, values, strict=True))
    merged["category"] = list(categories)
    return merged


# ---- checks of what a loader was asked for


def choose(option: str, value: str, allowed: Collection[str]) -> str:
    """Return `value` if it is one of `allowed`; UnavailableError lists them."""
    if value not in allowed:
        raise UnavailableError(f"{option} {value!r} is unknown; choose from {', '.join(allowed)}")
    return value


def refuse_category(name: str, category: str | None) -> None:
    """Refuse a category for a dataset that has none."""
    if category is not None:
        raise UnavailableError(
            f"{name} has no categories, got {category!r}; leave the category out"
        )
