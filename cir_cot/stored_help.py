"""Help texts of the commands as files, so that --help and a mistyped option need no torch.

The parsers themselves are the source: `python tests/help_texts.py` writes the files anew, and a test compares them.
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from .errors import InputError, shown

FOLDER = Path(__file__).parent / "assets" / "help"
OPTIONS = FOLDER / "options.json"
# Recipes' arguments are the fields of dataclasses, which another version of transformers may extend.
RECIPES = ("sft", "rerank", "prompt-pool", "clip", "moe")
HELP = ("-h", "--help")


def stored_help(command: str, argv: Sequence[str]) -> str | None:
    """Return a command's help text if `argv` asks for it and it is stored."""
    path = FOLDER / f"{command}.txt"
    if not any(word in HELP for word in argv) or not path.is_file():
        return None
    return path.read_text(encoding="utf-8")


def check_options(command: str, argv: Sequence[str]) -> None:
    """Refuse an option that a command does not have, before the command is loaded; InputError names the nearest.

    A recipe's option that only the installed version of transformers knows is left to its parser.
    """
    if not OPTIONS.is_file():
        return
    stored = json.loads(OPTIONS.read_text(encoding="utf-8"))
    if command not in stored:
        return
    # A plan takes the arguments of the run that it plans.
    recipe = command in RECIPES or command == "plan"
    known = stored[command] + (stored["sft"] if command == "plan" else [])
    for word in argv:
        name = word.partition("=")[0]
        # Recipes take both spellings.
        spelled = "--" + name[2:].replace("-", "_") if recipe and name not in known else name
        if not name.startswith("--") or name == "--" or spelled in known:
            continue
        if recipe and _trainer_has(spelled[2:]):
            continue
        near = get_close_matches(spelled, known, 1)
        if near:
            raise InputError(f"unknown argument {shown(name)}; did you mean {near[0]!r}?")
        raise InputError(
            f"unknown argument {shown(name)}; cir-cot {command} --help lists all of them"
        )


def _trainer_has(name: str) -> bool:
    """Return whether the installed transformers' TrainingArguments have a field, by their source: no import."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).with_name("training_args.py")
    if not source.is_file():  # moved by another version: its parser decides
        return True
    text = source.read_text(encoding="utf-8")
    return re.search(rf"^    {re.escape(name)}\s*:", text, re.MULTILINE) is not None
