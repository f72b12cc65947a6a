"""Help texts of the commands from their parsers; run it to write the stored ones anew."""

import json
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO

from cir_cot.cli import COMMANDS
from cir_cot.stored_help import FOLDER, OPTIONS, RECIPES

# Columns of the stored texts.
WIDTH = "100"


def live_help(command: str, word: str = "--help") -> str:
    """Return a command's help text from its parser."""
    os.environ["COLUMNS"] = WIDTH
    said = StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        import_module(COMMANDS[command]).main([word])
    return said.getvalue()


def live_options(command: str) -> list[str]:
    """Return the names of a command's options from its parser."""
    text = live_help(command, "--help-all" if command in RECIPES else "--help")
    listed = re.findall(r"^  (?:-\w(?: \S+)?, )?(--[\w-]+)(?:, (--[\w-]+))?", text, re.MULTILINE)
    names = {name for pair in listed for name in pair if name}
    return sorted(names | ({"--help-all", "--help"} if command in RECIPES else set()))


def main() -> None:
    """Write the files of all commands."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = {}
    for command in COMMANDS:
        (FOLDER / f"{command}.txt").write_text(live_help(command), encoding="utf-8")
        options[command] = live_options(command)
        print(command, len(options[command]), file=sys.stderr)
    OPTIONS.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
