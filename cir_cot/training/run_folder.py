"""Guard the folder of a training run: one writer at a time, and no run replaces another's work.

A run may continue from its own checkpoints (`--resume_from_checkpoint`). Anything else that would
replace a trained retriever, checkpoints of another run, or a file that no run wrote, needs
`--overwrite`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import TrainingArguments

from cir_cot.errors import InputError
from cir_cot.records import Record, record_to_dict
from cir_cot.retriever import HEAD_FILE, SETTINGS_FILE
from cir_cot.storage import locked

from .arguments import LAST, CirArguments, DataArguments
from .checkpoints import COMPLETE, checkpoints, discard, latest_checkpoint
from .dataset import TrainingDataset

RUN_FILE = "run.json"
SAVED = (COMPLETE, SETTINGS_FILE, "trainer_state.json")  # any of them marks a checkpoint of ours
# What a finished run leaves in its folder beside shards of large models. None of these files is
# replaced in a folder that no run wrote.
WRITTEN = ("README.md", HEAD_FILE, "config.json", "generation_config.json", "model.safetensors",
           "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
           "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json",
           "tokenizer_config.json", "metrics.json", "estimate.json")  # fmt: skip
# Our arguments that do not change the trained weights, and transformers' arguments that do.
HARMLESS = {
    "root",
    "mix",
    "chains",
    "features",
    "vision_cache",
    "chunk_tokens",
    "recompute",
    "overwrite",
}
DECISIVE = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim",
            "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "bf16", "fp16"}  # fmt: skip
# Arguments that decide the order of rows.
ORDER = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps",
         "group_by", "group_size", "train_sampling_strategy")  # fmt: skip


def identity(args: CirArguments, records: Sequence[Record]) -> dict:
    """Return what two runs share if they are the same: decisive arguments, and a digest of rows."""
    # Our own arguments decide unless listed otherwise, transformers' only if listed.
    general = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {field.name for field in dataclasses.fields(args)} - general - HARMLESS
    values = args.to_dict()  # enumerations as text
    # The rows, with their chains.
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record_to_dict(record), sort_keys=True).encode())
    chosen = {name: values[name] for name in sorted(own | DECISIVE)}
    return json.loads(json.dumps(chosen, default=str)) | {"data": digest.hexdigest()}


def resume_facts(
    args: CirArguments, dataset: TrainingDataset, features: dict[str, str] | None
) -> dict:
    """Return what decides which rows come when, and which features of pictures they have.

    Args:
        dataset: the rows.
        features: identity of the vision cache, None without one.
    """
    facts = {name: getattr(args, name) for name in ORDER}
    facts["processes"] = args.world_size
    facts["rows"] = len(dataset)
    # Hard negatives by content: the file may have been mined anew.
    negatives = getattr(dataset, "negatives", None)
    facts["negatives"] = None
    if negatives:
        facts["negatives"] = hashlib.sha256(json.dumps(negatives).encode()).hexdigest()
    # Of a mixture: rows of each dataset, and how many of them an epoch has.
    shares = getattr(dataset, "shares", ())
    facts["shares"] = [[len(share.rows), share.taken] for share in shares] or None
    if features is not None:
        facts["vision_cache"] = features
    return facts


def check_run_folder(args: DataArguments) -> None:
    """Raise InputError where training would replace another run's work; call it before loading."""
    folder = args.folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --output_dir names a folder")
    assert args.model is not None, "DataArguments refuses an absent model"
    if Path(args.model).exists() and Path(args.model).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{args.model}: lies in the output_dir {folder}, which training rewrites; "
            "give another --output_dir"
        )
    if args.overwrite or (args.resume_from_checkpoint == LAST and latest_checkpoint(folder)):
        return  # the trainer refuses a checkpoint of another run
    ours = _own_checkpoints(folder)
    if found := _occupied(folder, bool(ours) and args.resume_from_checkpoint is None):
        resume = f", or --resume_from_checkpoint {LAST} to continue" if ours else ""
        raise InputError(
            f"{folder}: holds {found}; give another --output_dir, or --overwrite to replace it"
            f"{resume}"
        )


@contextmanager
def run_folder(args: DataArguments) -> Iterator[None]:
    """Lock `args.output_dir` while a recipe writes it; InputError while another run does.

    Of several processes the first one does this for all. With `overwrite`, checkpoints of an
    earlier run are deleted first.
    """
    if not args.should_save:
        yield
        return
    folder = args.folder
    with locked(folder):
        check_run_folder(args)  # another run may have ended since
        if args.overwrite and args.resume_from_checkpoint is None:
            discard(folder, _own_checkpoints(folder))
        yield


def _own_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders that training wrote, not one that a user only named so."""
    own = []
    for path in checkpoints(folder).values():
        if any((path / name).exists() for name in SAVED):
            own.append(path)
    return own


def _occupied(folder: Path, by_checkpoints: bool) -> str:
    """Say what a new run would replace in a folder, "" for nothing."""
    if (folder / SETTINGS_FILE).exists():
        return "a trained retriever"
    if by_checkpoints:
        return "checkpoints of an earlier run"
    if (folder / RUN_FILE).exists():
        return ""  # of a run that ended before it had trained anything
    return next((name for name in WRITTEN if (folder / name).exists()), "")
