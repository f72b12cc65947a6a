"""The help of a recipe: its own arguments with their defaults; --help-all lists those of transformers' trainer too."""

import dataclasses
import textwrap
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import TrainingArguments

WIDTH = 100
# Arguments of the trainer that runs usually set, in the order in which they are listed.
COMMON = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "bf16",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "seed",
    "use_cpu",
    "deepspeed",
)


def recipe_help(cls: type[TrainingArguments], command: str) -> str:
    """Return the help text of `cir-cot <command>`, whose arguments are the fields of `cls`."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = get_type_hints(cls)
    trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [name for name in fields if name not in trainer]
    common = [name for name in COMMON if name in fields]
    lines = [
        f"usage: cir-cot {command} [--config FILE] [--name VALUE ...]",
        "",
        str(cls.__doc__),
        "",
        "options:",
        *_entry("config FILE", "A YAML file of these arguments; others override it."),
        *_entry("help", "Show this text and exit."),
        *_entry(
            "help-all",
            f"List all {len(fields)} arguments, those of transformers' trainer included.",
        ),
    ]
    for title, names in (
        ("arguments of this recipe:", own),
        ("of the trainer, most used:", common),
    ):
        lines += ["", title]
        for name in names:
            lines += _argument(fields[name], hints[name])
    return "\n".join(lines) + "\n"


def _argument(field: dataclasses.Field, hint: Any) -> list[str]:
    """Return the lines about an argument: its name and values, its help and its default."""
    text = " ".join(str(field.metadata.get("help", "")).split())
    # transformers' help texts are long: their first sentence.
    if len(text) > 300:
        text = text.partition(". ")[0] + "."
    default = field.default
    known = "default" in text.lower() or default in (None, dataclasses.MISSING)
    told = "" if known else f" (default {getattr(default, 'value', default)})"
    return _entry(f"{field.name} {_values(hint)}", text.removesuffix(".") + told)


def _values(hint: Any) -> str:
    """Return how the values of a type are written, e.g. N for int."""
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is list:
        return "VALUE ..."
    inner = [one for one in get_args(hint) if one is not type(None)]
    if inner and get_origin(hint) is not dict and (get_origin(hint) is Union or "|" in str(hint)):
        return _values(inner[0])
    return {int: "N", float: "X", bool: "true|false"}.get(hint, "VALUE")


def _entry(name: str, text: str) -> list[str]:
    """Return an option with its text, indented and wrapped."""
    return [
        f"  --{name}",
        *textwrap.wrap(text, WIDTH - 2, initial_indent=" " * 8, subsequent_indent=" " * 8),
    ]
