"""Start and stop processes so that none outlives its command, other than after SIGKILL."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGINT raises KeyboardInterrupt by itself


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit in the block, so that `finally` clauses run."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # the exit code of a shell for a signal

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        # handlers of the caller
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    call: Sequence[str], environment: Mapping[str, str], log: Path | None = None
) -> subprocess.Popen:
    """Start a command as the leader of its own process group.

    Args:
        call: the command and its arguments.
        environment: its environment variables.
        log: a file for its output; without it, the output goes where this process's goes.
    """
    if log is None:
        return subprocess.Popen(call, env=environment, start_new_session=True)
    with log.open("w") as out:  # the child has a descriptor of its own
        return subprocess.Popen(
            call, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Kill the commands that still run, with every process they started, and wait for their end."""
    for process in processes:
        if process.poll() is None:
            # the group holds what the command itself has started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
