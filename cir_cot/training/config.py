"""Read a recipe's arguments from a YAML file: plain values only, each key once, no aliases."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from cir_cot.errors import InputError

MAX_BYTES = 2**16  # the longest config that ships has 2 KB
LARGEST = 2**63  # what a number in a tensor can be


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, merge keys, tags and dates, and with unique keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, which can expand from bytes to gigabytes, and tags."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not read; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _error(f"tags ({event.tag}) are not read; write the plain value", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping; refuse a key that occurs twice."""
        # Other keys, such as lists, are refused by the base class.
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in keys:
            if key.value in seen:
                raise _error(f"key {key.value!r} occurs twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """Return an error at the place of a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


# Dates stay text, `<<` and `=` are keys like any other (and then unknown).
_PLAIN = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"}


def _resolvers() -> dict:
    """Return the safe loader's resolvers by first letter, without those of _PLAIN."""
    kept = {}
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept[letter] = [pair for pair in pairs if pair[0] not in _PLAIN]
    return kept


_Loader.yaml_implicit_resolvers = _resolvers()


def read_config(cls: type, path: str | Path) -> dict[str, Any]:
    """Read the arguments of a YAML file and check them against a dataclass.

    Raises:
        InputError: the file, the key, what was expected and what the file holds.
    """
    content = load_yaml(path)
    if content is None:  # an empty file
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected lines of `key: value`, got a {type(content).__name__}")
    # Only known keys, each with a value of its field's type.
    hints = typing.get_type_hints(cls)
    known = names(cls)
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown key {short(key)}{nearest(str(key)[:100], cls)}")
    return {key: _checked(value, hints[key], f"{path}: {key}") for key, value in content.items()}


def load_yaml(path: str | Path) -> object:
    """Read a YAML file of at most MAX_BYTES; any error is an InputError of one line."""
    # Read no more than a config can have.
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as YAML ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise InputError(
            f"{path}: more than {MAX_BYTES} bytes, which no config has; "
            "give a file of `key: value` lines"
        )
    # ValueError: bad UTF-8, or a number of too many digits.
    try:
        return yaml.load(raw.decode("utf-8-sig"), _Loader)
    except RecursionError as error:
        raise InputError(f"{path}: cannot be read as YAML (nested too deeply)") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:500]
        raise InputError(f"{path}: cannot be read as YAML ({reason})") from error


def names(cls: type) -> list[str]:
    """Return the names of the arguments of a dataclass."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def nearest(key: str, cls: type) -> str:
    """Return the end of an error message: the known key that an unknown one resembles."""
    close = difflib.get_close_matches(key.replace("-", "_"), names(cls), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; --help lists all of them"


def short(value: object) -> str:
    """Return the `repr` of a value, truncated to 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return a value as its field's type.

    YAML reads 2e-4 as a string, and a bare no, off or yes as a boolean.

    Args:
        hint: type of the field, which may be a union.
        where: file and key, for the error.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{where}: a number beyond 2^63; give a smaller one")
    # Numbers in any notation for a float.
    if float in kinds and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            pass
    # Any other value must have the type already.
    if any(_is(value, kind) for kind in kinds):
        return value
    expected = " or ".join(_named(kind) for kind in kinds)
    quote = ""
    if isinstance(value, bool):
        quote = "; YAML reads a bare no, off, yes or on as a boolean: put it in quotes"
    raise InputError(f"{where}: expected {expected}, got {short(value)}{quote}")


def _named(kind: Any) -> str:
    """Return the name of a type for an error."""
    if typing.get_origin(kind) is Literal:
        *names, last = map(repr, typing.get_args(kind))
        return f"{', '.join(names)} or {last}"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value has a type exactly: True is no int."""
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is list:
        (item_kind,) = typing.get_args(kind)
        return isinstance(value, list) and all(_is(item, item_kind) for item in value)
    return type(value) is origin
