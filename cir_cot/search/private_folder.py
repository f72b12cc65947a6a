"""A temporary folder that nobody else can read and that does not outlive its process for long.

It is removed at any end that Python sees, signals included. What a killed process leaves is removed by the next one:
each folder holds a file that its process has locked, and the system lets go of a lock with the process.
"""

import atexit
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "in-use.lock"


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Make a folder (mode 0700) among the temporary ones for the time of the block -> its path.

    Folders of `prefix` whose processes are gone are removed first: one's own, with a lock that nobody holds.
    """
    remove_stale(Path(tempfile.gettempdir()), prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(
        shutil.rmtree, folder, ignore_errors=True
    )  # a thread that the block left may write once more
    try:
        # The lock gets its name when it is held: until then no other process takes the folder for a stale one.
        with (folder / f"{LOCK}.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, folder / LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove the folders of `prefix` that this user's processes made and left behind."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(FileNotFoundError, BlockingIOError):  # no lock yet or gone meanwhile; in use
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)  # of a link it removes nothing


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(128 + signal) for the time of the block, so that cleaning up happens."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
