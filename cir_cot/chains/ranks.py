"""The processes that share an annotation job, as `accelerate launch` starts them."""

import os
from typing import Any

from cir_cot.errors import InputError


class Ranks:
    """One process among those that share a job; the default is a job of a single process.

    Attributes:
        rank: this process's number, from 0.
        count: how many processes there are.
        device: where this process's model belongs.

    Example:
        ranks = Ranks.launched()
        share = tasks[ranks.rank :: ranks.count]
        ranks.wait()
    """

    def __init__(self) -> None:
        # A single process on the CPU: a server's teacher needs no device.
        self.rank = 0
        self.count = 1
        self.device: Any = "cpu"
        self.state: Any = None  # accelerate's PartialState

    @classmethod
    def launched(cls) -> "Ranks":
        """Join the processes that `accelerate launch` started."""
        from accelerate import PartialState  # takes seconds to import

        ranks = cls()
        ranks.state = PartialState()
        ranks.rank = ranks.state.process_index
        ranks.count = ranks.state.num_processes
        ranks.device = ranks.state.device
        return ranks

    @classmethod
    def single(cls) -> "Ranks":
        """Return the only process; InputError if several were launched."""
        # accelerate and torchrun set WORLD_SIZE.
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "--teacher openai runs as one process, since the servers make the batches; start "
                "it without accelerate and give it all servers as --base-url URL URL ..."
            )
        return cls()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.state:
            self.state.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, which warns otherwise."""
        # A single process has no group.
        if self.count > 1:
            self.state.destroy_process_group()
