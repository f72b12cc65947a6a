"""Parse a recipe's command line and its YAML file into its dataclass of arguments."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar, cast

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers import HfArgumentParser

from cir_cot.errors import InputError

from .arguments import CirArguments
from .config import names, nearest, read_config
from .recipe_help import recipe_help

Arguments = TypeVar("Arguments", bound=CirArguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_arguments(
    cls: type[Arguments], argv: Sequence[str], command: str = "<recipe>"
) -> Arguments:
    """Read `--config file.yaml` and `--name value` arguments into a recipe's dataclass.

    The command line overrides the file. --help shows the recipe's own arguments, --help-all also all of the trainer's,
    under `cir-cot <command>`. InputError names an unknown key, a wrong type or a value
    that the dataclass refuses and, where there is one, the known key that an unknown one resembles.
    """
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(recipe_help(cls, command))
        raise SystemExit(0)
    parser = _Parser(
        cast(Any, cls),
        allow_abbrev=False,
        description=cls.__doc__,
        prog=f"cir-cot {command}",
        add_help=False,
    )
    parser.add_argument("--help-all", action="help", help="Show this text and exit.")
    parser.add_argument(
        "--config", metavar="FILE", help="A YAML file of these arguments; others override it."
    )
    # Find the file first: its values come before those of the command line.
    config = _Parser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    path = config.parse_known_args(list(argv))[0].config
    namespace = parser.parse_args([])
    if path:
        for key, value in read_config(cls, path).items():
            setattr(namespace, key, value)
    # Override them by the command line.
    namespace, unknown = parser.parse_known_args(list(argv), namespace)
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0]
        raise InputError(f"unknown argument {unknown[0]!r}{nearest(key, cls)}")
    try:
        return cls(**{name: getattr(namespace, name) for name in names(cls)})
    except InputError:
        raise
    except (ImportError, TypeError, ValueError) as error:  # of transformers
        raise InputError(" ".join(str(error).split())) from error
