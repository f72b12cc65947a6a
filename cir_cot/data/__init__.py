"""The benchmarks: functions (root, split, category, protocol options) -> list[Benchmark], primary options as defaults.

Annotation files alone are enough: pictures are looked for when `benchmark.images()` is called. Record ids are the
query ids of rankings files. Sources of every rule: the official repositories' code.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from cir_cot.errors import UnavailableError

from .benchmark import Benchmark
from .circo import circo
from .cirr import cirr
from .fashioniq import fashioniq
from .folder import folder
from .genecis import genecis
from .layouts import choose
from .shoes import shoes

BENCHMARKS: dict[str, Callable[..., list[Benchmark]]] = {
    "fashioniq": fashioniq,
    "cirr": cirr,
    "circo": circo,
    "shoes": shoes,
    "genecis": genecis,
    "folder": folder,
}


def load_benchmark(
    name: str, root: str | Path, split: str, category: str | None = None, **options
) -> list[Benchmark]:
    """`BENCHMARKS[name](root, split, category, **options)`; an option that the benchmark does not have is refused."""
    load = BENCHMARKS[choose("benchmark", name, BENCHMARKS)]
    known = list(inspect.signature(load).parameters)[3:]
    for option in options:
        if option not in known:
            raise UnavailableError(
                f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    return load(root, split, category, **options)
