"""Declare the options that several commands share: one name, one help text and one default each.

A script builds its parser with `command_parser` and adds the shared options in the order in which
its help lists them:

    parser = command_parser("retrieval", __doc__)
    add_dataset(parser)
    add_dtype(parser)

Each function takes a parser or one of its argument groups. Options of a single command stay in its
script.
"""

import argparse
from collections.abc import Callable, Collection

from .data import BENCHMARKS
from .ranks import ALONE, Ranks

Parser = argparse._ActionsContainer  # what a parser and an argument group have in common
PRECISIONS = ("float32", "bfloat16", "float16")
SAVED = "folder of a saved retriever, or its name on the hub: USER/NAME or USER/NAME@REVISION"


def command_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `cir-cot <command>`; it accepts no abbreviated options.

    Args:
        command: Name of the command, as the user types it.
        description: Text at the top of `--help`; scripts pass their module docstring.
    """
    return argparse.ArgumentParser(
        prog=f"cir-cot {command}",
        description=description,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """Parse an integer of at least 1, as the `type` of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def natural(text: str) -> int:
    """Parse an integer of at least 0, as the `type` of an option."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


# ---- what is read


def add_dataset(
    parser: Parser,
    *,
    benchmarks: Collection[str] = BENCHMARKS,
    split: str = "val for most; eval for Shoes; for a folder dataset, as its files are named",
) -> None:
    """Add --benchmark, --root and --split, all required.

    Args:
        parser: Parser or argument group.
        benchmarks: Names that --benchmark accepts.
        split: Help text of --split.
    """
    parser.add_argument(
        "--benchmark",
        required=True,
        choices=list(benchmarks),
        help="kind of dataset; folder is the format for your own pictures",
    )
    add_root(parser)
    parser.add_argument("--split", required=True, metavar="NAME", help=split)


def add_root(parser: Parser, text: str = "folder of the dataset") -> None:
    """Add --root, required; `text` is its help."""
    parser.add_argument("--root", required=True, metavar="DIR", help=text)


def add_category(parser: Parser, default: str = "all categories, and their mean") -> None:
    """Add --category; `default` says in its help what happens without it."""
    parser.add_argument(
        "--category",
        metavar="NAME",
        help=f"one category of FashionIQ or one task of GeneCIS (default: {default})",
    )


def add_chains(parser: Parser) -> None:
    """Add --chains: the files with the chains of the split's queries."""
    parser.add_argument(
        "--chains",
        nargs="+",
        metavar="FILE",
        help="JSONL files with chains of the split's queries (default: the chains in its records)",
    )


def add_annotated_chains(parser: Parser) -> None:
    """Add --chains: one file, or a folder with a file for each category."""
    parser.add_argument(
        "--chains",
        metavar="PATH",
        help="annotated chains: a JSONL file, or a folder of chains.<category>.<split>.jsonl "
        "(default: the chains in the records)",
    )


def add_rankings(parser: Parser, text: str) -> None:
    """Add --rankings, required, and --subset-rankings; `text` is the help of the first."""
    parser.add_argument("--rankings", required=True, metavar="FILE", help=text)
    parser.add_argument(
        "--subset-rankings",
        metavar="FILE",
        help="CIRR only: rankings of the image sets (default: derived from --rankings where it "
        "ranks all pictures)",
    )


# ---- which model, and how it runs


def add_model(parser: Parser, text: str = SAVED) -> None:
    """Add --model, required; `text` is its help."""
    parser.add_argument("--model", required=True, metavar="DIR", help=text)


def add_index(parser: Parser) -> None:
    """Add --index, required."""
    parser.add_argument(
        "--index",
        required=True,
        metavar="DIR",
        help="folder of an index that cir-cot index built with this model",
    )


def add_gallery_index(parser: Parser) -> None:
    """Add --index: where the gallery's embeddings come from."""
    parser.add_argument(
        "--index",
        metavar="DIR",
        help="index by cir-cot index, with this model, that holds the gallery (default: encode the gallery)",
    )


def add_batch_size(
    parser: Parser,
    unit: str = "pictures",
    default: int = 32,
    type: Callable[[str], int] = int,
) -> None:
    """Add --batch-size; `unit` is what it counts."""
    parser.add_argument(
        "--batch-size",
        type=type,
        default=default,
        metavar="N",
        help=f"{unit} in one forward pass (default {default})",
    )


def add_device(parser: Parser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="device of the model, for example cuda:1 or cpu (default: a GPU if there is one)",
    )


def add_dtype(
    parser: Parser,
    *aliases: str,
    default: str | None = None,
    type: Callable[[str], str] = str,
) -> None:
    """Add --dtype, the precision of the model's weights and computation, the same in every command.

    Args:
        parser: Parser or argument group.
        *aliases: Older names of the option that still work.
        default: Value without the option; None leaves the choice to `load_retriever`.
        type: Function of the text given; it may refuse a value with its own message.
    """
    chosen = "bfloat16 for a Qwen-VL on a GPU, else float32"
    parser.add_argument(
        "--dtype",
        *aliases,
        dest="dtype",
        default=default,
        choices=PRECISIONS,
        type=type,
        help=f"precision of the model (default: {default or chosen})",
    )


def add_pixels(parser: Parser) -> None:
    """Add --min-pixels and --max-pixels: other picture sizes than those of training."""
    for name, which in (("min", "smallest"), ("max", "largest")):
        parser.add_argument(
            f"--{name}-pixels",
            f"--{name}_pixels",
            type=positive,
            metavar="N",
            help=f"{which} area of a resized picture, in pixels (default: that of training)",
        )


def loading_options(args: argparse.Namespace, ranks: Ranks = ALONE) -> dict[str, str | int]:
    """Return what `load_retriever` takes of the options of add_device, add_dtype and add_pixels.

    Of several processes each gets a device of its own. An adapter is merged: commands only read.
    """
    names = ("device", "dtype", "min_pixels", "max_pixels")
    found = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if ranks.count > 1:
        found["device"] = str(ranks.device)
    return found | {"merge": True}


def add_engine(parser: Parser) -> None:
    """Add --engine, --engine-url and --engine-model: what writes the chains."""
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm", "sglang"),
        default="transformers",
        help="what writes the chains: this process, or servers of the retriever's export (default: transformers)",
    )
    parser.add_argument(
        "--engine-url",
        nargs="+",
        metavar="URL",
        help="the engine's servers, such as http://localhost:8000/v1; a key is read from OPENAI_API_KEY",
    )
    parser.add_argument(
        "--engine-model", metavar="NAME", help="the name under which the servers serve the export"
    )


def add_seed(parser: Parser, of: str, default: int = 0) -> None:
    """Add --seed; `of` names what is drawn with it."""
    parser.add_argument(
        "--seed",
        type=int,
        default=default,
        metavar="N",
        help=f"random seed of {of} (default {default})",
    )


def add_query_sample(parser: Parser, each: str = "") -> None:
    """Add --limit, a sample of the queries; `each` may add " of each category" to its help."""
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"evaluate a random sample of N queries{each}; the gallery stays complete "
        "(default: all queries)",
    )


# ---- what is written


def add_out(parser: Parser, text: str, *, required: bool = True, metavar: str = "DIR") -> None:
    """Add --out; `text` says what is written there."""
    parser.add_argument("--out", required=required, metavar=metavar, help=text)


def add_overwrite(
    parser: Parser,
    text: str = "also replace files in the output folder that this command did not write",
) -> None:
    """Add --overwrite; `text` says what it may replace."""
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_json(parser: Parser, content: str = "the result as one JSON object") -> None:
    """Add --json; `content` names what is printed."""
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"print {content} to stdout, and everything else to stderr",
    )
