"""Turn what libraries raise for a damaged checkpoint into InputError of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from cir_cot import compat  # noqa: F401  # isort: skip
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

from cir_cot.errors import InputError

# Raised by transformers, tokenizers, peft, safetensors, jinja2 and torch for files that were truncated, emptied or
# edited.
RAISED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError,
          StrictDataclassError, TemplateError, SafetensorError)  # fmt: skip
# A bad regular expression in a configuration, as peft raises it; this class has no better base, and its module has two
# names in Python's history.
REGULAR_EXPRESSION_MODULES = ("re", "re._constants")


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from showing a bar for each shard of a folder on this machine; downloads keep theirs."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


class loading:  # noqa: N801  # a context manager, used like a function
    """Turn an error of a library within the context into InputError: "`what` (the error's first line)".

    Put it around a library's call on a user's files, and around nothing else: a defect of this library keeps its
    traceback.

    Example:
        with loading(f"{path}: cannot be read; save it again"):
            tensors = load_file(path)
    """

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An InputError says already what to do.
        if kind is None or issubclass(kind, InputError):
            return
        # tokenizers raises Exception itself.
        if (
            issubclass(kind, RAISED)
            or kind is Exception
            or kind.__module__ in REGULAR_EXPRESSION_MODULES
        ):
            # Libraries explain at length; the first line names the cause.
            lines = str(error).strip().splitlines() or [kind.__name__]
            raise InputError(f"{self.what} ({lines[0][:300]})") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a file of trained weights -> {name: tensor}; InputError where it is damaged or a number is not finite."""
    with loading(f"{path}: cannot be read; save it again"):
        tensors = load_file(path)
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise InputError(
                f"{path}: {name} is of type {value.dtype}; trained weights are floating-point numbers"
            )
        if not value.isfinite().all():
            raise InputError(
                f"{path}: {name} holds NaN or infinity; the checkpoint has diverged or is damaged"
            )
    return tensors
