"""Make a CUDA build of torchvision importable beside a CPU-only torch.

Import this module before transformers.

PyPI's torchvision wheel is a CUDA build. Beside a CPU torch its C++ extension does not load:
`import torchvision` fails with "operator torchvision::nms does not exist", and with it nearly all
of transformers, that is the Qwen processors, PreTrainedModel and Trainer. The Python half of
torchvision that transformers uses (resizing, normalising) needs none of those operators; their
schemas need only exist when torchvision registers fake kernels for them. Calling nms itself still
fails with an error, because it gets no kernel. A CPU torchvision or a CUDA torch is left alone.

Importing the module is all there is to do: `from cir_cot import compat  # noqa: F401` above `import
transformers`.
"""

import importlib.util
import re
from pathlib import Path

import torch

# Operators for which torchvision registers fake kernels at import.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def torchvision_build() -> str:
    """Return the version of the installed torchvision with its local part, e.g. "0.28.0+cu130".

    "" if torchvision is not installed. Its version.py is read without importing it, because the
    metadata of the wheel lacks the local part.
    """
    # find it without importing it
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ""
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '([^']*)'", text)
    return found.group(1) if found else ""


def declare_operators(build: str) -> torch.library.Library | None:
    """Declare the operators that torchvision lacks beside this torch.

    Args:
        build: version of torchvision with its local part.

    Returns:
        The library that holds the declarations as long as it is referenced; None where none were
        needed.
    """
    # a matching pair needs no help
    if torch.version.cuda is not None or "+cu" not in build:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


# At import, because it must happen before transformers imports torchvision.
_LIBRARY = declare_operators(torchvision_build())
