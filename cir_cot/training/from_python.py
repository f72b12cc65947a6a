"""Train a chain retriever from Python, in a call."""

from pathlib import Path
from typing import Any

from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.images import ImageStore

from .chain_training import require_chains, train_chains
from .config import names, nearest
from .dataset import CirDataset, with_common_targets
from .given_rows import Rows, given_rows
from .run_folder import check_run_folder
from .sft_arguments import SftArguments
from .validation import load_validation

ROWS = "the given rows"  # in place of a dataset's folder
# Arguments that name a dataset on the disk.
OF_FILES = ("root", "benchmark", "split", "category", "mix", "chains", "negatives", "drop_missing")


def train(
    rows: Rows,
    model: str,
    output_dir: str | Path,
    images: ImageStore | str | Path | None = None,
    **options: Any,
) -> CotRetriever:
    """Train a chain retriever on rows in memory, as `cir-cot sft` does on files.

    Args:
        rows: records, or mappings with `text`, `reference`, `target` and, for some, a chain as `cot`; or a
            `datasets.Dataset` with these columns. References and targets are pictures or files' paths.
        model: checkpoint folder or hub name, or a retriever of an earlier stage.
        output_dir: the run folder, complete when this returns; `overwrite=True` replaces a trained retriever there.
        images: folder or store of pictures; references and targets are then ids in it. Records need it.
        options: arguments of `cir-cot sft --help-all`, such as `max_steps=200`, `lora_r=16`, `bf16=True`.

    Returns:
        The trained retriever, ready for inference; `load_retriever(output_dir)` loads it again.

    Raises:
        InputError: names the row, the argument or the file that cannot be used.

    Example:
        rows = [{"reference": "a.jpg", "text": "make it red", "target": "b.jpg"}, ...]
        retriever = train(rows, "Qwen/Qwen2.5-VL-3B-Instruct", "runs/mine", lm_weight=0, max_steps=100)
    """
    # Check everything that needs no model.
    args = _arguments(options | {"model": str(model), "output_dir": str(output_dir)})
    check_run_folder(args)
    records, pictures = given_rows(rows, images)
    dataset = CirDataset(with_common_targets(records), pictures)
    require_chains(dataset, args, "give rows a cot, or lm_weight=0")
    validation = load_validation(args)
    # Train; the estimate of memory is in the run folder.
    call = [f"{name}={value}" for name, value in sorted(options.items())]
    head, _ = train_chains(
        args, dataset, validation, ["cir_cot.train", f"model={model}", *call], announce=_nothing
    )
    return head.eval()


def _arguments(options: dict[str, Any]) -> SftArguments:
    """Check options as a recipe's command line is checked."""
    known = names(SftArguments)
    for name in options:
        if name not in known:
            raise InputError(f"unknown argument {name!r}{nearest(name, SftArguments)}")
        if name in OF_FILES:
            raise InputError(f"{name}: is for datasets in files; leave it out")
    try:
        return SftArguments(**options, root=ROWS)
    except InputError:
        raise
    except (ImportError, TypeError, ValueError) as error:  # of transformers
        raise InputError(" ".join(str(error).split())) from error


def _nothing(text: str) -> None:
    """Announce nothing."""
