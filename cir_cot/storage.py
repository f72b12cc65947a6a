"""Lock folders that several processes may write to, and turn disk errors into one-line messages."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

LOCK = ".lock"  # the file in a folder that is locked
MAX_ID = 32  # bytes that are read of it: more than the digits of a process id


def acquire(path: Path, place: Path, wait: bool = False) -> int:
    """Lock a file and return its descriptor; closing it, or the end of the process, releases it.

    Args:
        path: the file, which is created if needed.
        place: what the lock protects, for the message.
        wait: wait until the lock is free.

    Raises:
        InputError: another process holds the lock; its id is named where the file contains it.
    """
    # the kernel releases the lock when its process ends, however it ends
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        content = os.pread(handle, MAX_ID, 0)
        os.close(handle)
        # another process may have written something else
        holder = f"process {content.decode()}" if content.isdigit() else "another process"
        raise InputError(
            f"{place}: {holder} is writing it; wait for its end, or write elsewhere"
        ) from None
    return handle


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a folder, which is created if needed.

    Args:
        folder: the folder.
        wait: wait for a process that writes to it, instead of raising InputError.

    Example:
        >>> with locked(Path("runs/first")):
        ...     save(model)
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = acquire(folder / LOCK, folder, wait)
    try:
        # write the process id for the messages of others, unless a user has put something else
        # there
        content = os.pread(handle, MAX_ID, 0)
        if content.isdigit() or not content:
            with written(folder):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Convert an OSError of the block to InputError: a full or read-only disk, missing rights."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror or error}; make room or give another folder and run again, what is done is kept"
        ) from error
