"""What recipes share: arguments and loading of a head on a Qwen-VL, and the run from first step to saved folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from cir_cot.devices import device_name
from cir_cot.errors import InputError
from cir_cot.files import write_json
from cir_cot.heads.qwen import QwenHead
from cir_cot.models.backbone import load_backbone
from cir_cot.models.resizing import token_side
from cir_cot.provenance import git_state, package_versions
from cir_cot.retriever import SETTINGS_FILE, read_settings

from .arguments import READOUT, CirArguments, QwenArguments
from .gradcache import random_state, set_random_state
from .memory import describe, estimate
from .trainer import CirTrainer


def load_head(
    kind: type[QwenHead], args: QwenArguments, settings: Sequence[str], frozen: bool = False
) -> QwenHead:
    """Build a head on a base checkpoint, or go on from a saved one with its settings where none are given.

    `settings` name the arguments that are the head's own, beside those of its readout; `frozen` trains nothing else.
    The random numbers are those of `args.seed`.
    """
    torch.manual_seed(args.seed)  # adapters and heads start at random
    given = {
        name: value for name in (*READOUT, *settings) if (value := getattr(args, name)) is not None
    }
    options = {
        name: getattr(args, name)
        for name in ("dtype", "attn", "quantization", "min_pixels", "max_pixels")
    }
    options["freeze_vision"] = not args.train_vision
    if not (Path(args.model) / SETTINGS_FILE).is_file():
        lora = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
        adapter = lora if args.lora_r and not frozen else None
        head = kind(
            load_backbone(args.model, lora=adapter, frozen=frozen, **options), args.model, **given
        )
    else:
        facts = read_settings(args.model)
        if facts["kind"] != kind.kind:
            raise InputError(
                f"{args.model}: a {facts['kind']!r} retriever; this recipe trains {kind.kind!r}"
            )
        head = kind.resume(args.model, facts, trainable=True, settings=given, **options)
        if "temperature" in given:
            nn.init.constant_(head.log_temperature, math.log(args.temperature))
    if args.recompute:
        head.backbone.checkpoint_activations()
    return head


def plan(trainer: CirTrainer) -> str:
    """Estimate the run's tokens and memory, keep it as estimate.json -> in words; every process must call it."""
    head, args = trainer.model, trainer.args
    if next(head.parameters()).device.type != args.device.type:
        return "no estimate of memory: DeepSpeed and FSDP move the model to the device when training starts"
    images = head.backbone.processor.image_processor
    side, pixels = token_side(images), images.size["longest_edge"]
    state = random_state(args.device)
    facts = estimate(head, trainer.train_dataset, trainer.data_collator, args, side, pixels)
    set_random_state(state, args.device)
    if args.should_save:
        write_json(Path(args.output_dir) / "estimate.json", facts)
    return describe(facts)


def fit(
    trainer: CirTrainer, argv: Sequence[str], announce: Callable[[str], object] | None = None
) -> str:
    """Train as `trainer.args` say and complete the run folder -> what was done, in a line.

    `announce` is given the estimate of tokens and memory before the first step.
    """
    args = trainer.args
    write_run_json(args.output_dir, argv, args)
    if announce is not None:
        words = plan(trainer)
        if args.should_save:
            announce(words)
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    write_metrics_json(
        args.output_dir, result.metrics | {"history": trainer.state.log_history}, args
    )
    trainer.accelerator.end_training()
    rows = len(trainer.train_dataset)
    return (
        f"trained {result.global_step} steps on {rows} rows; the retriever is in {args.output_dir}"
    )


def write_run_json(folder: str | Path, argv: Sequence[str], args: CirArguments) -> None:
    """Write `run.json`: what was asked (argv, resolved arguments, seed), of which code (commit, versions), on what.

    Only the first process writes. A resumed run overwrites the file with its own.
    """
    if not args.should_save:
        return
    run = {
        "argv": _without_tokens(argv),
        "arguments": args.to_dict(),  # transformers leaves tokens out
        "git": git_state(),
        "versions": package_versions(),
        "device": device_name(args.device),
        "processes": args.world_size,
        "seed": args.seed,
    }
    write_json(Path(folder) / "run.json", run)


def _without_tokens(argv: Sequence[str]) -> list[str]:
    """The command line with values of access tokens replaced by "..."."""
    kept, hide = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and name.endswith("token")
        kept.append("..." if hide else name + "=..." if secret and equals else word)
        hide = secret and not equals
    return kept


def write_metrics_json(folder: str | Path, metrics: Mapping, args: CirArguments) -> None:
    """Write `metrics.json`, what a finished training reports; only the first process writes."""
    if args.should_save:
        write_json(Path(folder) / "metrics.json", metrics)
