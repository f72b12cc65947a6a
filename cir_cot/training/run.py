"""Build a head from recipe arguments, train it, and write the run folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from cir_cot.devices import device_name
from cir_cot.errors import InputError
from cir_cot.files import read_json, write_json
from cir_cot.heads.qwen import QwenHead
from cir_cot.hub import holds, located
from cir_cot.models.adapter import CONFIG
from cir_cot.models.backbone import load_backbone
from cir_cot.models.resizing import token_side
from cir_cot.provenance import git_state, package_versions
from cir_cot.retriever import SETTINGS_FILE, read_settings

from .arguments import READOUT, CirArguments, QwenArguments
from .gradcache import random_state, set_random_state
from .memory import describe, estimate_run
from .trainer import CirTrainer

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # accelerate's names of autocast's types
BASE_OPTIONS = ("dtype", "attn", "quantization", "min_pixels", "max_pixels")


def load_head(
    kind: type[QwenHead], args: QwenArguments, settings: Sequence[str], frozen: bool = False
) -> QwenHead:
    """Build a head on a base checkpoint, or continue from a saved retriever.

    A saved retriever keeps its settings where the arguments give none. Random numbers come from
    `args.seed`.

    Args:
        settings: names of the arguments that are the head's own, beside those of its readout.
        frozen: train no weight of the base.
    """
    torch.manual_seed(args.seed)  # adapters and heads start at random
    # The settings of the head that the arguments give, and how its base is loaded.
    given = {}
    for name in (*READOUT, *settings):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    options = {name: getattr(args, name) for name in BASE_OPTIONS}
    options["freeze_vision"] = not args.train_vision
    assert args.model is not None, "DataArguments refuses an absent model"
    if not holds(args.model, SETTINGS_FILE):
        # A base checkpoint: a new adapter and a new head.
        lora = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
        adapter = lora if args.lora_r and not frozen else None
        base = load_backbone(args.model, lora=adapter, frozen=frozen, **options)
        head = kind(base, args.model, **given)
    else:
        # A saved retriever of the same kind: its weights, with what the arguments change.
        folder = located(args.model)
        facts = read_settings(folder)
        if facts["kind"] != kind.kind:
            raise InputError(
                f"{args.model}: a {facts['kind']!r} retriever; this recipe trains {kind.kind!r}"
            )
        if not frozen:
            check_rank(folder, args)
        head = kind.resume(folder, facts, trainable=True, settings=given, **options)
        if args.temperature is not None:
            nn.init.constant_(head.log_temperature, math.log(args.temperature))
    keep_trained_in_float32(head)
    if args.recompute:
        head.backbone.checkpoint_activations()
    return head


def check_rank(folder: Path, args: QwenArguments) -> None:
    """Refuse an `lora_r` that was asked for, where a saved retriever has another one and would keep it.

    Args:
        folder: of the retriever.
        args: their default counts as not asked for.
    """
    adapter = folder / CONFIG
    facts = read_json(adapter) if adapter.is_file() else {"r": 0}
    stored = facts.get("r") if isinstance(facts, dict) else None
    default = next(field.default for field in fields(args) if field.name == "lora_r")
    if args.lora_r not in (stored, default):
        raise InputError(
            f"lora_r {args.lora_r}: {args.model} was trained with lora_r {stored}, and keeps it; "
            f"give --lora_r {stored}, or start from the base"
        )


def keep_trained_in_float32(head: nn.Module) -> None:
    """Convert the trained weights of a head to float32; frozen ones keep the precision they were loaded in.

    In bfloat16 a step of AdamW is lost in rounding wherever it is below 1/256 of the weight: most weights of a
    fine-tuning would never move. Compute in bfloat16 comes from autocast (`--bf16`).
    """
    for parameter in head.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def announce_estimate(trainer: CirTrainer, announce: Callable[[str], object]) -> None:
    """Estimate the tokens and memory of a run, write estimate.json, and announce it in text.

    Every process must call this; the first one writes and announces. No random number of training
    is used up.
    """
    # Only a head on its device can be measured.
    head = trainer.model
    args = trainer.args
    if next(head.parameters()).device.type != args.device.type:
        if args.should_save:
            announce(
                "no estimate of memory: DeepSpeed and FSDP move the model to the device when "
                "training starts"
            )
        return
    assert isinstance(head, QwenHead), "recipes on CLIP announce no estimate"
    # The measured pass draws dropout: restore the random state after it.
    images = head.backbone.processor.image_processor
    state = random_state(args.device)
    facts = estimate_run(
        head,
        trainer.train_dataset,
        trainer.data_collator,
        args,
        token_side(images),
        images.size["longest_edge"],
    )
    set_random_state(state, args.device)
    if args.should_save:
        write_json(args.folder / "estimate.json", facts)
        announce(describe(facts))


def train_and_save(
    trainer: CirTrainer, argv: Sequence[str], announce: Callable[[str], object] | None = None
) -> str:
    """Train as `trainer.args` say and complete the run folder.

    Args:
        argv: the command line, for run.json.
        announce: called with the estimate of tokens and memory before the first step.

    Returns:
        What was done, in one line.
    """
    args = trainer.args
    # Say what runs before it runs: also for a run that ends early.
    write_run_json(args.folder, argv, args)
    if announce is not None:
        announce_estimate(trainer, announce)
    # Train and save.
    precision = str(trainer.accelerator.mixed_precision)
    trainer.model.trained_in = PRECISIONS.get(precision, "float32")
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    # Say what came out, with the history of all logs.
    metrics = result.metrics | {"history": trainer.state.log_history}
    write_metrics_json(args.folder, metrics, args)
    trainer.accelerator.end_training()
    rows = len(trainer.train_dataset)
    return (
        f"trained {result.global_step} steps on {rows} rows; the retriever is in {args.output_dir}"
    )


def write_run_json(folder: str | Path, argv: Sequence[str], args: CirArguments) -> None:
    """Write run.json: command line, resolved arguments, seed, commit, package versions, device.

    Only the first process writes. A resumed run replaces the file with its own.
    """
    if not args.should_save:
        return
    run = {
        "argv": _without_tokens(argv),
        "arguments": args.to_dict(),  # transformers leaves access tokens out
        "git": git_state(),
        "versions": package_versions(),
        "device": device_name(args.device),
        "processes": args.world_size,
        "seed": args.seed,
    }
    write_json(Path(folder) / "run.json", run)


def _without_tokens(argv: Sequence[str]) -> list[str]:
    """Return a command line with the values of access tokens replaced by "..."."""
    kept = []
    hide_next = False
    for word in argv:
        # Both forms: --hub_token=VALUE and --hub_token VALUE.
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and name.endswith("token")
        if hide_next:
            kept.append("...")
        elif secret and equals:
            kept.append(f"{name}=...")
        else:
            kept.append(word)
        hide_next = secret and not equals
    return kept


def write_metrics_json(folder: str | Path, metrics: Mapping, args: CirArguments) -> None:
    """Write metrics.json: what a finished training reports; only the first process writes."""
    if args.should_save:
        write_json(Path(folder) / "metrics.json", metrics)
