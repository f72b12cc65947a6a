"""Writing where others may write, too: locks that die with their process, and a full disk in one line."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .files import sync as sync

LOCK = ".lock"


def acquire(path: Path, place: Path, wait: bool = False) -> int:
    """Lock the file `path`, made if needed -> its descriptor, whose closing frees it; so does the process's end.

    InputError names `place`, which the lock protects, and the process that holds it where its id stands in the file.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        held = os.pread(handle, 32, 0)
        os.close(handle)
        holder = f"process {held.decode()}" if held.isdigit() else "another process"
        raise InputError(
            f"{place}: {holder} is writing it; wait for its end, or write elsewhere"
        ) from None
    return handle


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes to a folder, which is made if needed; InputError while another one is."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = acquire(folder / LOCK, folder, wait)
    try:
        # Write down who holds it, unless the file is somebody else's.
        held = os.pread(handle, 32, 0)
        if held.isdigit() or not held:
            with written(folder):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses within the context into InputError: a full or read-only disk, missing rights."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror or error}; make room or give another folder and run again, what is done is kept"
        ) from error
