"""The processes that share a job, as `accelerate launch` or torchrun start them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

from .errors import InputError

# How long a process waits for the others. Some have hours more work; when one dies, its launcher ends all the others.
PATIENCE = timedelta(days=7)
T = TypeVar("T")


def _return_at_once() -> None:
    """Wait for nobody: the barrier of a process that works alone."""


@dataclass(frozen=True)
class Ranks:
    """One process among those that share a job; the default is a job of a single process.

    Attributes:
        rank: this process's number, from 0; process 0 writes what the job results in.
        count: how many processes there are.
        wait: a barrier, which returns once every process has called it.
        device: where this process's model belongs.
        close: leaves the process group, which warns otherwise.

    Example:
        ranks = Ranks.launched()
        share = ranks.share(tasks)
        ranks.wait()
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _return_at_once
    device: Any = "cpu"
    close: Callable[[], None] = _return_at_once

    @classmethod
    def launched(cls, cpu: bool = False) -> Self:
        """Join the processes that a launcher started; `cpu` keeps them off the GPUs."""
        from accelerate import PartialState  # takes seconds to import

        state = PartialState(cpu=cpu, timeout=PATIENCE)
        alone = state.num_processes == 1
        return cls(
            state.process_index,
            state.num_processes,
            state.wait_for_everyone,
            state.device,
            _return_at_once if alone else state.destroy_process_group,
        )

    @classmethod
    def single(cls) -> Self:
        """Return the only process; InputError if several were launched."""
        # accelerate and torchrun set WORLD_SIZE.
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "--teacher openai runs as one process, since the servers make the batches; start "
                "it without accelerate and give it all servers as --base-url URL URL ..."
            )
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process writes what the job results in."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's items: every one of `count`, so that long and short ones are spread evenly."""
        return items[self.rank :: self.count]


ALONE = Ranks()  # one process
