"""Make a temporary folder that no other user can read and that does not outlive its process for long.

The folder is removed however the process ends, as far as Python notices: by return, exception or signal; within
`removed_after_kill` also after SIGKILL. What a machine without power leaves behind is removed by the next process: each
folder holds a file that its process keeps locked, and the operating system releases the lock when the process ends.
"""

import atexit
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "in-use.lock"


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Yield a new temporary folder (mode 0700) and remove it at the end of the block.

    Folders of the same prefix whose processes are gone are removed first: only this user's, and only those with a
    lock file that nobody holds.

    Example:
        with private_folder("cir-cot-demo-") as folder:
            (folder / "copy.png").write_bytes(data)
    """
    remove_stale(Path(tempfile.gettempdir()), prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # A thread that the block leaves running may write once more: remove the folder again at exit.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        # The lock gets its name once it is held; before that, another process would take the folder for stale.
        with (folder / f"{LOCK}.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, folder / LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def removed_after_kill(folder: Path) -> Iterator[None]:
    """Remove a folder after the block, or as soon as this process is killed within it.

    A shell waits for the end of its input, which comes with the end of this process, however it ends.
    """
    command = ["/bin/sh", "-c", 'cat; rm -rf -- "$0"', str(folder)]
    # In a session of its own the shell is not ended by Ctrl-C or a closed terminal.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove the folders of `prefix` that this user's ended processes left behind."""
    for folder in parent.glob(f"{prefix}*"):
        # FileNotFoundError: no lock yet, or removed meanwhile. BlockingIOError: in use.
        with suppress(FileNotFoundError, BlockingIOError):
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # rmtree removes nothing through a symbolic link.
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(128 + signal) within the block, so that clean-up runs."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    # Remember the handlers that are set, and restore them.
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
