"""What the libraries raise for a damaged checkpoint, as InputError in one line."""

from pathlib import Path
from types import TracebackType

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cir_cot.errors import InputError

# Seen from transformers, tokenizers, peft, safetensors, jinja2 and torch for files that were cut, emptied or edited.
RAISED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError,
          StrictDataclassError, TemplateError, SafetensorError)  # fmt: skip


class loading:  # noqa: N801  # a context manager, used like a function
    """Turn what a library raises within the context into InputError: "`what` (the error's first line)".

    To be put around a library's call on a user's files, and nothing else: a defect of ours keeps its traceback.
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
        if kind is None or issubclass(kind, InputError):
            return
        # tokenizers raises Exception itself, peft the error of a bad regular expression, which has no better base.
        if (
            issubclass(kind, RAISED)
            or kind is Exception
            or kind.__module__ in ("re", "re._constants")
        ):
            lines = str(error).strip().splitlines() or [kind.__name__]
            raise InputError(f"{self.what} ({lines[0][:300]})") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of trained weights; InputError when it is damaged, or a number is no finite one."""
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
