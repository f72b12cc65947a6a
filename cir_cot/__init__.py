"""Chain-of-thought composed image retrieval with Qwen-VL models: data, training, evaluation, search.

The names in `__all__` are the public face. Each is imported at its first use, so that `import cir_cot`
loads neither torch nor transformers.

Example:
    >>> from cir_cot import load_retriever, open_search
    >>> search = open_search("runs/model", "runs/index")
    >>> search.one("reference.jpg", "the same in red").hits
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; FACE imports the same names at run time
    from .chains.annotate import annotate as annotate
    from .data import load_benchmark as load_benchmark
    from .errors import InputError as InputError
    from .evaluation.evaluate import evaluate as evaluate
    from .heads import load_retriever as load_retriever
    from .images import list_pictures as list_pictures
    from .records import Cot as Cot
    from .records import Record as Record
    from .retriever import QueryOutput as QueryOutput
    from .retriever import Retriever as Retriever
    from .search.build import build as build_index
    from .search.faiss_index import Index as Index
    from .search.search import Search as Search
    from .search.search import open_search as open_search
    from .training.arguments import CirArguments as CirArguments
    from .training.dataset import CirDataset as CirDataset
    from .training.from_python import train as train
    from .training.trainer import CirTrainer as CirTrainer

__version__ = "0.2.0"

# Public name -> module of the library and name in it.
FACE = {
    "CirArguments": ("training.arguments", "CirArguments"),
    "CirDataset": ("training.dataset", "CirDataset"),
    "CirTrainer": ("training.trainer", "CirTrainer"),
    "Cot": ("records", "Cot"),
    "Index": ("search.faiss_index", "Index"),
    "InputError": ("errors", "InputError"),
    "QueryOutput": ("retriever", "QueryOutput"),
    "Record": ("records", "Record"),
    "Retriever": ("retriever", "Retriever"),
    "Search": ("search.search", "Search"),
    "annotate": ("chains.annotate", "annotate"),
    "build_index": ("search.build", "build"),
    "evaluate": ("evaluation.evaluate", "evaluate"),
    "list_pictures": ("images", "list_pictures"),
    "load_benchmark": ("data", "load_benchmark"),
    "load_retriever": ("heads", "load_retriever"),
    "open_search": ("search.search", "open_search"),
    "train": ("training.from_python", "train"),
}

__all__ = [
    "CirArguments",
    "CirDataset",
    "CirTrainer",
    "Cot",
    "Index",
    "InputError",
    "QueryOutput",
    "Record",
    "Retriever",
    "Search",
    "annotate",
    "build_index",
    "evaluate",
    "list_pictures",
    "load_benchmark",
    "load_retriever",
    "open_search",
    "train",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> object:
        """Import a name of the public face when it is first used."""
        if name not in FACE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, member = FACE[name]
        value = getattr(import_module(f"{__name__}.{module}"), member)
        globals()[name] = value  # the next use finds it without this function
        return value


def __dir__() -> list[str]:
    """List the public face beside what is already imported."""
    return sorted({*globals(), *FACE})
