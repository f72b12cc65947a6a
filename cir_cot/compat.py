"""Makes a CUDA build of torchvision importable beside a CPU-only torch: import this module before transformers.

PyPI's torchvision wheel is a CUDA build. Beside a CPU torch its C++ extension does not load, `import torchvision`
then fails with "operator torchvision::nms does not exist", and with it nearly all of transformers: the Qwen
processors, PreTrainedModel, Trainer. The Python half that transformers uses (resizing, normalising) needs none of
those operators: it is enough that their schemas exist when torchvision registers fake kernels for them. A call of
nms itself still fails loudly, since no kernel is given. A CPU torchvision, or a CUDA torch, is left alone.

Importing it is the whole use: `from . import _torchvision  # noqa: F401  # isort: skip` above `import transformers`.
"""

import importlib.util
import re
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def torchvision_build() -> str:
    """Version of the installed torchvision with its local part ("0.28.0+cu130"), read without importing it.

    The wheel's metadata lacks the local part, its version.py has it. "" when torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ""
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '([^']*)'", text)
    return found.group(1) if found else ""


def declare_operators(build: str) -> torch.library.Library | None:
    """Declares the missing operators for `build` -> the Library to keep alive, or None when nothing was needed."""
    if torch.version.cuda is not None or "+cu" not in build:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


_LIBRARY = declare_operators(torchvision_build())
