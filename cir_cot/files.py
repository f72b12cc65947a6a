"""Read strict JSON and JSONL within bounds of memory, and write files atomically.

What is guaranteed:

- a reader sees the old file or the complete new one, also after a crash;
- no gzipped file fills the memory: what it may unpack to is bounded by its size;
- all that `read_json` and `read_jsonl` return is finite, shallow and encodes as UTF-8.

Errors name the file and the line.
"""

import contextlib
import errno
import gzip
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, shown

# Bytes of an annotation or rankings file once unpacked. CIRR's full rankings of val have 190 MB.
MAX_BYTES = 2**29
# Unpacked to packed bytes of a gzipped file. Rankings and annotations have 3 to 30.
MAX_RATIO = 100
# Bytes that a gzipped file of any size may unpack to. Short rankings may be highly regular.
ALWAYS = 2**25
MAX_VALUES = 2**25  # of one file; CIRR's full rankings of val have 9.6 million
MAX_DEPTH = 64  # of arrays and objects in each other; annotations have five
MAX_DIGITS = 20  # of an integer: 64 bits fit, and every such number is a finite float

NESTED = frozenset({list, dict})
# An escape of a surrogate, with or without its other half.
SPLIT = re.compile(rb"\\u[dD][89a-fA-F]")


# ---- reading


def read_jsonl(path: str | Path) -> list[tuple[int, object]]:
    """Return (line number, value) of each non-empty line of a JSONL file."""
    raw = read_bytes(path)
    check_values(raw, str(path))
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            rows.append((number, parse_json(line, f"{path}:{number}")))
    return rows


def read_json(path: str | Path) -> object:
    """Return the value of a JSON file (`.gz` is unpacked), read strictly: see `parse_json`."""
    raw = read_bytes(path)
    check_values(raw, str(path))
    return parse_json(raw, str(path))


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file, unpacked if its name ends in `.gz`.

    Raises:
        InputError: the file cannot be read, or is larger than MAX_BYTES or MAX_RATIO allow.
    """
    packed = str(path).endswith(".gz")
    opened = gzip.open if packed else open
    try:
        # a small gzipped file may not become a large one
        allowed = MAX_BYTES
        if packed:
            allowed = min(MAX_BYTES, max(ALWAYS, MAX_RATIO * os.stat(path).st_size))
        # one byte more shows that there is more
        with opened(path, "rb") as file:
            raw = file.read(allowed + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a name with a NUL
        raise InputError(f"{str(path)!r}: cannot be read ({error})") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES} bytes once unpacked; split the file")
    if len(raw) > allowed:
        raise InputError(
            f"{path}: unpacks to more than {allowed} bytes, over {MAX_RATIO} times its size; "
            "unpack it yourself if you trust it"
        )
    return raw


def check_values(raw: bytes, where: str) -> None:
    """Refuse JSON or JSONL with more values than fit into memory, before it is parsed.

    Marks within strings are counted, too, so the limit is generous.
    """
    count = sum(raw.count(mark) for mark in (b",", b":", b"[", b"{", b"\n"))
    if count > MAX_VALUES:
        raise InputError(
            f"{where}: {count} values, more than the {MAX_VALUES} allowed; split the file"
        )


def parse_json(raw: bytes | str, where: str) -> object:
    """Return the value of strict JSON, in time linear in its length.

    Args:
        raw: UTF-8, with or without a byte order mark, or text.
        where: the place for messages.

    Raises:
        InputError: duplicate keys, NaN, infinities, half surrogate pairs, integers of more than
            MAX_DIGITS digits, nesting deeper than MAX_DEPTH, bad UTF-8 or bad syntax.
    """
    hooks = _Hooks(where)
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        value = json.loads(
            text,
            object_pairs_hook=hooks.unique,
            parse_constant=hooks.refuse,
            parse_int=hooks.integer,
            parse_float=hooks.real,
        )
        check_depth(value, where)
        # encoding finds half surrogate pairs; bytes without such an escape have none
        if not isinstance(raw, bytes) or SPLIT.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except InputError:
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: holds half a surrogate pair, which is not text") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    return value


class _Hooks:
    """Refuse what the `json` module accepts and the project does not; the hooks of `json.loads`."""

    def __init__(self, where: str):
        self.where = where

    def unique(self, pairs: list[tuple[str, object]]) -> dict:
        """Return an object whose keys are distinct."""
        obj = dict(pairs)
        if len(obj) != len(pairs):
            twice = first_repeated(key for key, _ in pairs)
            raise InputError(f"{self.where}: key {shown(twice)} occurs twice in one object")
        return obj

    def refuse(self, constant: str) -> None:
        """Refuse NaN and the infinities."""
        raise InputError(f"{self.where}: {constant} is not JSON")

    def integer(self, digits: str) -> int:
        """Return an integer of at most MAX_DIGITS digits; longer ones take quadratic time."""
        if len(digits) > MAX_DIGITS:
            raise InputError(
                f"{self.where}: a number of {len(digits)} digits, more than the {MAX_DIGITS} allowed"
            )
        return int(digits)

    def real(self, digits: str) -> float:
        """Return a float that is finite."""
        value = float(digits)
        if math.isinf(value):
            raise InputError(f"{self.where}: the number {shown(digits)} is too large")
        return value


def check_depth(value: object, where: str) -> None:
    """Refuse values nested deeper than MAX_DEPTH, level by level, without recursion."""
    level: list[Any] = [value] if type(value) in NESTED else []
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for parent in level:
            values = parent.values() if isinstance(parent, dict) else parent
            # a list of a million ids is skipped at the speed of C
            if not NESTED.isdisjoint(map(type, values)):
                inner += [child for child in values if type(child) in NESTED]
        level = inner
        if not level:
            return
    raise InputError(f"{where}: more than {MAX_DEPTH} arrays and objects in each other")


def first_repeated(items: Iterable[object]) -> object:
    """Return the first item that has occurred before, or None where all are distinct."""
    seen: set[object] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def check_keys(obj: dict, where: str, required: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse an object that lacks a required key or has one that is not allowed."""
    for key in required:
        if key not in obj:
            raise InputError(f"{where}: key {key!r} is missing; expected {', '.join(required)}")
    for key in obj:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {shown(key)}; allowed are {', '.join(allowed)}")


# ---- writing


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically: a reader sees the old file or the complete new one."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write bytes atomically: a reader sees the old file or the complete new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file to write; at the end of the block it replaces `path`, durably.

    An existing file keeps its mode, a new one gets that of the umask; of a symbolic link the target
    is replaced. After an error the old file is unchanged and no temporary file remains.

    Raises:
        InputError: the disk or the folder cannot be written.

    Example:
        >>> with replacing("rows.parquet") as temporary:
        ...     table.to_parquet(temporary)
    """
    try:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            # the old file's mode, before anything is written that others may not read
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            yield temporary
            # first the content, then the name: the order that survives a power cut
            sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(target.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or write elsewhere"
        ) from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems cannot sync folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(
            os.fstat(handle).st_mode
        ):
            raise
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping) -> None:
    """Write a mapping as indented JSON, atomically; the folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
