"""The `cir-cot` command: finds a script by name, calls its `main(argv)`, turns bad input into one line and exit code 2.

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

COMMANDS = {
    "score": "cir_cot.scripts.eval.score",
    "submit": "cir_cot.scripts.eval.submit",
    "check-submission": "cir_cot.scripts.eval.check_submission",
    "check": "cir_cot.scripts.data_gen.check",
    "export-chains": "cir_cot.scripts.data_gen.export_chains",
    "annotate": "cir_cot.scripts.data_gen.annotate",
    "scenes": "cir_cot.scripts.data_gen.scenes",
    "triplets": "cir_cot.scripts.data_gen.triplets",
    "sft": "cir_cot.scripts.train.sft",
    "prompt-pool": "cir_cot.scripts.train.prompt_pool",
    "clip": "cir_cot.scripts.train.clip",
    "moe": "cir_cot.scripts.train.moe",
    "retrieval": "cir_cot.scripts.eval.retrieval",
    "reasoning": "cir_cot.scripts.eval.reasoning",
    "calibrate": "cir_cot.scripts.eval.calibrate",
    "index": "cir_cot.scripts.eval.build_index",
    "search": "cir_cot.scripts.eval.search",
    "demo": "cir_cot.scripts.eval.demo",
    "export": "cir_cot.scripts.eval.export",
    "quickstart": "cir_cot.scripts.train.quickstart",
    "tiny-base": "cir_cot.scripts.train.tiny_base",
}
DONE, PROBLEMS, UNUSABLE = 0, 1, 2  # exit codes
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells have it


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
        [
            "usage: cir-cot <command> [options]",
            "",
            *lines,
            "",
            "cir-cot <command> --help lists its options",
        ]
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
        near = get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"{shown(name)} is no command; {meant}The commands are {', '.join(COMMANDS)}"
        )
    return importlib.import_module(COMMANDS[name]).main(rest)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and exit with its code; bad input and what the system refuses are one line and code 2.

    Every script ends with `run(main)`. A reader of the output that has gone (`| head`) ends it quietly. Anything else
    that goes wrong is a defect of ours and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without some letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _completed(main, sys.argv[1:] if argv is None else argv)
    except InputError as error:
        code = _refuse(str(error))
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:  # a missing file, a full disk, a network that is down
        code = _refuse(
            f"{error.strerror}: {error.filename}"
            if error.filename
            else error.strerror or str(error)
        )
    except KeyboardInterrupt:
        code = _say("interrupted", INTERRUPTED)
    _let_go(sys.stdout)
    _let_go(sys.stderr)
    raise SystemExit(code)


def _completed(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str]
) -> int | str | None:
    """Run `main` and write out what it has printed -> its exit code, that of argparse's own exits included."""
    try:
        code = main(argv)
    except SystemExit as exit:
        code = exit.code
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    return code


def _refuse(message: str) -> int:
    return _say("error: " + " ".join(message.split("\n")), UNUSABLE)


def _say(message: str, code: int) -> int:
    with suppress(OSError):  # nobody reads stderr
        print(message, file=sys.stderr, flush=True)
    return code


def _let_go(stream: TextIO | None) -> None:
    """Lead a stream that cannot be written to nowhere, so that Python's own flush at the end does not fail on it."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def entry() -> NoReturn:
    """The console script."""
    run(main)


if __name__ == "__main__":  # python -m cir_cot.cli
    entry()
