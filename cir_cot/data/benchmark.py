"""TODO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cir_cot.errors import InputError, shown
from cir_cot.images import ImageStore
from cir_cot.records import Record


@dataclass(frozen=True)
class Benchmark:
    """One set of queries over one gallery, in official order, with its protocol.

    `candidates`: GeneCIS ranks a few images a query. `outside`: images that a ranking may name though this gallery
    leaves them out (they are skipped). `weights`: CIRR's graded labels. `aspects`: CIRCO's semantic aspects.
    `captions`: FashionIQ's two captions. All four are by query id. An empty gallery is an unknown one (CIRCO's
    annotations alone). `images()` opens the pictures; InputError lists what was looked for.
    """

    name: str
    split: str
    category: str | None
    records: list[Record]
    gallery: list[str]
    ks: tuple[int, ...]
    remove_reference: bool
    protocol: dict
    images: Callable[[], ImageStore]
    candidates: dict[str, list[str]] | None = None
    outside: frozenset[str] = frozenset()
    weights: dict[str, dict[str, float]] | None = None
    aspects: dict[str, tuple[str, ...]] | None = None
    captions: dict[str, tuple[str, str]] | None = None

    @cached_property
    def members(self) -> frozenset[str]:
        """The gallery as a set."""
        return frozenset(self.gallery)

    @cached_property
    def nameable(self) -> frozenset[str]:
        """What a ranking may name: the gallery and the images that are skipped."""
        return self.members | self.outside


def coco_id(image: object, where: str) -> str:
    """COCO image ids are numbers: 161275, "161275" and "000000161275" are one image -> "161275"."""
    if isinstance(image, str) and image.isascii() and image.isdigit() and len(image) <= 12:
        return str(int(image))
    if isinstance(image, int) and not isinstance(image, bool) and image >= 0:
        return str(image)
    raise InputError(f"{where}: {shown(image)} is no COCO image id (a whole number)")


def protocol_of(
    name: str,
    split: str,
    records: Sequence[Record],
    members: Sequence[str],
    reference: str | None,
    **options: object,
) -> dict:
    """What a number must be read with: gallery, queries, reference kept or removed, and the benchmark's own options."""
    kept = {"keep": "kept", "remove": "removed", None: "not a candidate"}[reference]
    counts = {"gallery_size": len(members) or "unknown", "queries": len(records)}
    return {"benchmark": name, "split": split, **options, **counts, "reference": kept}


def label(benchmark: Benchmark) -> str:
    """The benchmark's name in messages, e.g. "fashioniq dress val"."""
    return " ".join(filter(None, (benchmark.name, benchmark.category, benchmark.split)))
