"""Files: strict JSON and JSONL, bounded reading of plain and packed files, atomic writing.

What is guaranteed: a reader sees the old file or the complete new one; no file unpacks to more than its size allows;
what `read_json` and `read_jsonl` return is finite, shallow and encodes as UTF-8. Errors name the file and the line.
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

from .errors import InputError, shown

MAX_BYTES = (
    2**29
)  # of one annotation or rankings file once unpacked: CIRR's full rankings of val are 190 MB
MAX_RATIO = 100  # unpacked to packed bytes; rankings and annotations have 3 to 30
ALWAYS = (
    2**25
)  # bytes that an archive may unpack to whatever its size: short rankings may be very regular
MAX_VALUES = 2**25  # of one file; CIRR's full rankings of val have 9.6 million
MAX_DEPTH = 64  # nested arrays and objects; annotations have five
MAX_DIGITS = 20  # of a whole number: 64 bits fit, and every such number is a finite float
NESTED = frozenset({list, dict})
SPLIT = re.compile(
    rb"\\u[dD][89a-fA-F]"
)  # an escape that is half a surrogate pair, alone or with its other half


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
    """Return the content of a file, unpacked where its name ends in `.gz`; bounded, so no archive fills the memory."""
    packed = str(path).endswith(".gz")
    opened = gzip.open if packed else open
    try:
        allowed = MAX_BYTES
        if packed:
            allowed = min(MAX_BYTES, max(ALWAYS, MAX_RATIO * os.stat(path).st_size))
        with opened(path, "rb") as file:
            raw = file.read(allowed + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a name with a NUL
        raise InputError(f"{str(path)!r}: cannot be read ({error})") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES} bytes once unpacked; split the file")
    if len(raw) > allowed:
        raise InputError(
            f"{path}: unpacks to more than {allowed} bytes, over {MAX_RATIO} times its size; unpack it yourself if you "
            "trust it"
        )
    return raw


def check_values(raw: bytes, where: str) -> None:
    """Refuse JSON or JSONL with more values than fit into memory; commas in texts count, so the bound is generous."""
    count = sum(raw.count(mark) for mark in (b",", b":", b"[", b"{", b"\n"))
    if count > MAX_VALUES:
        raise InputError(
            f"{where}: {count} values, more than the {MAX_VALUES} allowed; split the file"
        )


def parse_json(raw: bytes | str, where: str) -> object:
    """Return the value of strict JSON, in time linear in its length.

    Duplicate keys, NaN, infinities, half surrogate pairs, numbers of more than MAX_DIGITS digits, nesting deeper than
    MAX_DEPTH, bad UTF-8 and bad syntax raise InputError at `where`.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict:
        obj = dict(pairs)
        if len(obj) != len(pairs):
            twice = first_repeated(key for key, _ in pairs)
            raise InputError(f"{where}: key {shown(twice)} occurs twice in one object")
        return obj

    def refuse(constant: str) -> None:
        raise InputError(f"{where}: {constant} is not JSON")

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise InputError(
                f"{where}: a number of {len(digits)} digits, more than the {MAX_DIGITS} allowed"
            )
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise InputError(f"{where}: the number {shown(digits)} is too large")
        return value

    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        value = json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse, parse_int=whole, parse_float=real
        )
        check_depth(value, where)
        if not isinstance(raw, bytes) or SPLIT.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except InputError:
        raise
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: holds half a surrogate pair, which is not text") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    return value


def check_depth(value: object, where: str) -> None:
    """Refuse values nested deeper than MAX_DEPTH, level by level, without recursion."""
    level = [value] if type(value) in NESTED else []
    for _ in range(MAX_DEPTH):
        inner = []
        for parent in level:
            values = parent.values() if isinstance(parent, dict) else parent
            if not NESTED.isdisjoint(
                map(type, values)
            ):  # a list of a million ids is passed over at the speed of C
                inner += [child for child in values if type(child) in NESTED]
        level = inner
        if not level:
            return
    raise InputError(f"{where}: more than {MAX_DEPTH} arrays and objects in each other")


def first_repeated(items: Iterable[object]) -> object:
    """Return the first item that has occurred before; None where each is new."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


# ---- writing


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the complete new one, even after a crash."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write bytes so that a reader sees the old file or the complete new one, even after a crash."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write; at the end of the block it takes the place of `path`, durably.

    A file that is there keeps its mode, a new one gets the umask's; of a symbolic link the target is replaced. After
    any error the old file is as it was and nothing is left beside it. InputError where disk or folder refuses.

    Example: `with replacing("rows.parquet") as temporary: table.to_parquet(temporary)`
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
            # content before name, name before the end: the order that survives a power cut
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
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(
            os.fstat(handle).st_mode
        ):
            raise  # some network file systems cannot sync folders
    finally:
        os.close(handle)


def check_keys(obj: dict, where: str, required: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse a missing or an unknown key; the message names the first one and lists what is expected."""
    for key in required:
        if key not in obj:
            raise InputError(f"{where}: key {key!r} is missing; expected {', '.join(required)}")
    for key in obj:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {shown(key)}; allowed are {', '.join(allowed)}")


def write_json(path: Path, content: Mapping) -> None:
    """Write a mapping as indented JSON, atomically; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
