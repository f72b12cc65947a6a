"""What a piece of code asks of the file system, in order: fsync, rename, unlink, truncate; by wrapping `os`.

    with recorded_os(folder) as events:
        write(folder / "a")
    assert events == ["fsync a", "rename a", "fsync ."]

Names are relative to `folder`, which is "." itself; what happens elsewhere is left out. A file that is written under a
temporary name and renamed is listed under its last name, so random temporary names do not matter. `pathlib`, `shutil`
and `tempfile` call the functions of `os` by name and are seen; what libraries in C do is not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


@contextmanager
def recorded_os(folder: Path) -> Iterator[list[str]]:
    """Record what happens to the files of `folder` within the context -> "what name" of each call that succeeded."""
    root, events, real = os.path.realpath(folder), [], {name: getattr(os, name) for name in CALLS}

    def name_of(path) -> str:
        at = (
            os.readlink(f"/proc/self/fd/{path}")
            if isinstance(path, int)
            else os.path.join(os.getcwd(), path)
        )
        return os.path.relpath(at, root)

    def note(what: str, name: str) -> None:
        if not name.startswith(".."):
            events.append(f"{what} {name}")

    def wrapped(call: str):
        def run(path, *rest, **options):
            name = name_of(path)
            result = real[call](path, *rest, **options)
            if CALLS[call] == "rename":
                last = name_of(rest[0])
                events[:] = [
                    f"{what} {last}" if old == name else f"{what} {old}"
                    for what, old in map(split, events)
                ]
                name = last
            note(CALLS[call], name)
            return result

        return run

    with mock.patch.multiple(os, **{call: wrapped(call) for call in CALLS}):
        yield events


CALLS = {
    "fsync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "rmdir",
    "truncate": "truncate",
    "ftruncate": "truncate",
}


def split(event: str) -> tuple[str, str]:
    what, _, name = event.partition(" ")
    return what, name
