"""Run the `cir-cot` command: find a script by its name and call its `main(argv)`.

Imports no torch, so that `cir-cot score` and `cir-cot --help` answer at once.
"""

import ast
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import NoReturn, TextIO

from . import __version__
from .errors import InputError, shown
from .stored_help import check_options, stored_help

COMMANDS = {
    "score": "cir_cot.scripts.eval.score",
    "submit": "cir_cot.scripts.eval.submit",
    "check-submission": "cir_cot.scripts.eval.check_submission",
    "check": "cir_cot.scripts.data_gen.check",
    "export-chains": "cir_cot.scripts.data_gen.export_chains",
    "annotate": "cir_cot.scripts.data_gen.annotate",
    "review": "cir_cot.scripts.data_gen.review",
    "scenes": "cir_cot.scripts.data_gen.scenes",
    "triplets": "cir_cot.scripts.data_gen.triplets",
    "plan": "cir_cot.scripts.train.plan",
    "mine": "cir_cot.scripts.train.mine",
    "sft": "cir_cot.scripts.train.sft",
    "rerank": "cir_cot.scripts.train.rerank",
    "refine": "cir_cot.scripts.train.refine",
    "prompt-pool": "cir_cot.scripts.train.prompt_pool",
    "clip": "cir_cot.scripts.train.clip",
    "moe": "cir_cot.scripts.train.moe",
    "retrieval": "cir_cot.scripts.eval.retrieval",
    "reasoning": "cir_cot.scripts.eval.reasoning",
    "faithfulness": "cir_cot.scripts.eval.faithfulness",
    "calibrate": "cir_cot.scripts.eval.calibrate",
    "index": "cir_cot.scripts.eval.build_index",
    "search": "cir_cot.scripts.eval.search",
    "serve": "cir_cot.scripts.eval.serve",
    "demo": "cir_cot.scripts.eval.demo",
    "export": "cir_cot.scripts.eval.export",
    "push": "cir_cot.scripts.eval.push",
    "doctor": "cir_cot.scripts.eval.doctor",
    "quickstart": "cir_cot.scripts.train.quickstart",
    "tiny-base": "cir_cot.scripts.train.tiny_base",
}
# The commands by task, in the order of the help.
TASKS = {
    "Try it": ("quickstart", "demo", "doctor"),
    "Data and chains": ("triplets", "scenes", "annotate", "review", "check", "export-chains"),
    "Train": ("plan", "sft", "mine", "rerank", "refine", "prompt-pool", "clip", "moe", "tiny-base"),
    "Measure": (
        "retrieval",
        "reasoning",
        "faithfulness",
        "calibrate",
        "score",
        "submit",
        "check-submission",
    ),
    "Search and serve": ("index", "search", "serve", "export", "push"),
}
Main = Callable[[Sequence[str]], int | None]  # what every script offers

# Exit codes.
DONE = 0
PROBLEMS = 1  # the work found problems: a failed check, an invalid submission
UNUSABLE = 2  # arguments or input that cannot be used
INTERRUPTED = 130  # 128 + SIGINT, as in shells
BROKEN_PIPE = 141  # 128 + SIGPIPE, as in shells


def summary(module: str) -> str:
    """Return the first line of a script's docstring without importing the script and torch."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is not installed"
    assert spec.origin is not None, f"{module} is not a file"
    with open(spec.origin, encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read())) or ""
    return docstring.partition("\n")[0]


def usage() -> str:
    """Return the help text: every command with one line, by task."""
    width = max(map(len, COMMANDS))
    lines = []
    for task, names in TASKS.items():
        lines.append(f"{task}:")
        lines += [f"  {name:<{width}}  {summary(COMMANDS[name])}" for name in names]
    return "\n".join(
        [
            "usage: cir-cot <command> [options]",
            "",
            *lines,
            "",
            "cir-cot <command> --help lists its options; cir-cot --version",
        ]
    )


def main(argv: Sequence[str]) -> int | None:
    """Run one command.

    Args:
        argv: Name of the command and its arguments, without the program's name.

    Returns:
        The command's exit code; None counts as 0.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return DONE if argv else UNUSABLE
    name, *rest = argv
    if name == "--version":
        print(f"cir-cot {__version__}")
        return DONE
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"{shown(name)} is no command; {meant}The commands are {', '.join(COMMANDS)}"
        )
    # Help and mistyped options are answered before torch is loaded.
    text = stored_help(name, rest)
    if text is not None:
        print(text, end="")
        raise SystemExit(DONE)
    check_options(name, rest)
    return importlib.import_module(COMMANDS[name]).main(rest)


def run(main: Main, argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit with its code. Every script ends with `run(main)`.

    Bad input and errors of the operating system are reported in one line, with exit code 2. A
    reader that closed the pipe (`| head`) ends the command quietly. Any other exception is a defect
    of this library and keeps its traceback.
    """
    # A character that the terminal cannot show is written as its number.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code: int | str | None
    try:
        code = _completed(main, sys.argv[1:] if argv is None else argv)
    except InputError as error:
        code = _refuse(str(error))
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:  # a missing file, a full disk, a network that is down
        problem = error.strerror or str(error)
        code = _refuse(f"{problem}: {error.filename}" if error.filename else problem)
    except KeyboardInterrupt as interrupt:  # a command may say what is kept
        kept = f": {interrupt}" if str(interrupt) else ""
        code = _write_error(f"interrupted{kept}", INTERRUPTED)
    # Python flushes both streams once more when it ends.
    _release(sys.stdout)
    _release(sys.stderr)
    raise SystemExit(code)


def _completed(main: Main, argv: Sequence[str]) -> int | str | None:
    """Run `main` and flush its output -> its exit code, also where argparse exits."""
    code: int | str | None
    try:
        code = main(argv)
    except SystemExit as exit:
        code = exit.code
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
    return code


def _refuse(message: str) -> int:
    """Write an error as one line -> exit code of unusable input."""
    return _write_error("error: " + " ".join(message.split("\n")), UNUSABLE)


def _write_error(message: str, code: int) -> int:
    """Write a line to stderr -> `code`."""
    with suppress(OSError):  # stderr is closed
        print(message, file=sys.stderr, flush=True)
    return code


def _release(stream: TextIO | None) -> None:
    """Redirect a stream that cannot be written to os.devnull, so that flushing it at exit succeeds."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def entry() -> NoReturn:
    """Run the console script."""
    run(main)


if __name__ == "__main__":  # python -m cir_cot.cli
    entry()
