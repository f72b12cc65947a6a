"""Load, score, submit and generate datasets of composed image retrieval by their official protocols.

`load_benchmark` is the entrance. Annotation files alone are enough: images are looked for when
`benchmark.images()` is called. The source of every rule is the code of the dataset's official
repository.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cir_cot.errors import UnavailableError

from .benchmark import Benchmark, choose
from .circo import circo
from .cirr import cirr
from .fashioniq import fashioniq
from .folder import folder
from .genecis import genecis
from .shoes import shoes


class Dataset(NamedTuple):
    """Hold a dataset's loader, `load(root, split, category, **options)`, and its options."""

    load: Callable[..., list[Benchmark]]
    options: tuple[str, ...]  # besides root, split and category


# A new dataset is one line here and one file in this folder.
BENCHMARKS = {
    "fashioniq": Dataset(fashioniq, ("gallery", "reference", "caption_join")),
    "cirr": Dataset(cirr, ("reference", "labels")),
    "circo": Dataset(circo, ("reference", "text")),
    "shoes": Dataset(shoes, ("reference",)),
    "genecis": Dataset(genecis, ()),
    "folder": Dataset(folder, ("reference",)),
}


def load_benchmark(
    name: str, root: str | Path, split: str, category: str | None = None, **options: str
) -> list[Benchmark]:
    """Load a dataset's split as one benchmark, or as one for each category.

    Args:
        name: the dataset, a key of BENCHMARKS.
        root: the folder of the dataset, in any layout that `layouts` lists.
        split: the split, e.g. "val".
        category: one category of FashionIQ or GeneCIS; None for all of them.
        options: protocol options of the dataset, e.g. `reference="remove"`. The defaults are the
            protocol that most papers report.

    Raises:
        UnavailableError: an unknown dataset, split, category or option, or files that are not
            there.

    Example:
        >>> for benchmark in load_benchmark("fashioniq", "data/fashionIQ", "val"):
        ...     print(benchmark.category, len(benchmark.records))
    """
    dataset = BENCHMARKS[choose("benchmark", name, BENCHMARKS)]
    # an unknown option is a mistake of the user, not a TypeError
    for option in options:
        if option not in dataset.options:
            known = ", ".join(dataset.options) or "none"
            raise UnavailableError(f"{name} has no option {option!r}; it has {known}")
    return dataset.load(root, split, category, **options)
