"""The `cir-cot` command: finds a script by name, calls its `main(argv)`, turns bad input into one line and exit code 2.

Imports no torch, so that `cir-cot score` and `cir-cot --help` answer at once.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cir_cot import __version__
from cir_cot.records import InputError

COMMANDS = {
    "score": "cir_cot.eval.score",
    "submit": "cir_cot.eval.submit",
    "check-submission": "cir_cot.eval.check_submission",
    "check": "cir_cot.data_gen.check",
    "export-chains": "cir_cot.data_gen.export_chains",
    "annotate": "cir_cot.data_gen.annotate",
    "scenes": "cir_cot.data_gen.scenes",
    "triplets": "cir_cot.data_gen.triplets",
    "sft": "cir_cot.train.sft",
    "prompt-pool": "cir_cot.train.prompt_pool",
    "clip": "cir_cot.train.clip",
    "moe": "cir_cot.train.moe",
    "retrieval": "cir_cot.eval.retrieval",
    "reasoning": "cir_cot.eval.reasoning",
    "calibrate": "cir_cot.eval.calibrate",
    "index": "cir_cot.eval.build_index",
    "search": "cir_cot.eval.search",
    "demo": "cir_cot.eval.demo",
    "export": "cir_cot.eval.export",
    "quickstart": "cir_cot.train.quickstart",
    "tiny-base": "cir_cot.train.tiny_base",
}
DONE, PROBLEMS, UNUSABLE, INTERRUPTED = 0, 1, 2, 130  # exit codes; 130 = 128 + SIGINT, as shells have it
MISSING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def summary(module: str) -> str:
    """First line of a script's docstring, read without importing the script (it may import torch)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is not installed"
    with open(spec.origin, encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read())) or ""
    return docstring.partition("\n")[0]


def usage() -> str:
    """The help text: every command with one line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        ["usage: cir-cot <command> [options]", "", *lines, "", "cir-cot <command> --help lists its options"]
    )


def main(argv: Sequence[str]) -> int | None:
    """Run one command, argv without the program's name -> its exit code (None counts as 0)."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return DONE if argv else UNUSABLE
    name, *rest = argv
    if name == "--version":
        print(f"cir-cot {__version__}")
        return DONE
    if name not in COMMANDS:
        raise InputError(f"{name!r} is no command; the commands are {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[name]).main(rest)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit with its code; bad input and missing files end in one line on stderr and code 2.

    Every script ends with `run(main)`. Anything else that goes wrong is a defect of ours and keeps its traceback.
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        code = _refuse(str(error))
    except MISSING as error:
        code = _refuse(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    raise SystemExit(code)


def _refuse(message: str) -> int:
    print("error: " + " ".join(message.split("\n")), file=sys.stderr)
    return UNUSABLE


def entry() -> NoReturn:
    """The console script."""
    run(main)


if __name__ == "__main__":  # python -m cir_cot.cli
    entry()
