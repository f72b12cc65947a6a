"""Processes that a command starts: none of them outlives it, whatever ends it but SIGKILL."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGINT raises KeyboardInterrupt by itself


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, as SIGINT raises KeyboardInterrupt, so that `finally` clauses run."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    call: Sequence[str], environment: Mapping[str, str], log: Path | None = None
) -> subprocess.Popen:
    """Start a command as the leader of a process group of its own; its output goes to `log` if given."""
    out = None if log is None else log.open("w")
    try:
        return subprocess.Popen(call, env=environment, stdout=out, stderr=out and subprocess.STDOUT,
                                start_new_session=True)  # fmt: skip
    finally:
        if out is not None:
            out.close()  # the child has its own


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Kill commands that still run, with all that they started, and wait for their end."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
