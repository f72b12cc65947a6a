"""Token and cost budget of an annotation job. A call that could exceed a limit is never started."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager


class BudgetSpent(Exception):  # noqa: N818 - reaching the limit is a planned end, not an error
    """The next call could exceed the budget."""


class Budget:
    """Count calls, tokens and dollars over all runs of a job, and keep them within limits.

    Args:
        max_tokens: limit on prompt and answer tokens together.
        max_cost: limit in dollars.
        prices: dollars per million tokens, of prompts and of answers.

    Example:
        budget = Budget(max_cost=20.0, prices=(0.5, 1.5))
    """

    def __init__(
        self,
        max_tokens: float = math.inf,
        max_cost: float = math.inf,
        prices: Sequence[float] = (0.0, 0.0),
    ):
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.prices = prices
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.open: list[tuple[int, int]] = []  # the most that each running call may still use
        self.ended: asyncio.Event | None = None  # set when a running call ends

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of these tokens in dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def fits(self, prompt: int, completion: int, others: Sequence[tuple[int, int]] = ()) -> bool:
        """Tell whether a call fits into what is left beside the running calls `others`."""
        # The worst case: every running call uses all that it may.
        prompt += self.prompt_tokens + sum(row[0] for row in others)
        completion += self.completion_tokens + sum(row[1] for row in others)
        return (
            prompt + completion <= self.max_tokens
            and self.cost(prompt, completion) <= self.max_cost
        )

    @asynccontextmanager
    async def call(self, prompt: int, completion: int) -> AsyncIterator[Callable[[int, int], None]]:
        """Reserve budget for one call of at most this many tokens.

        Returns:
            A context manager whose value is `pay`, to be called with the tokens actually used.

        Raises:
            BudgetSpent: the call does not fit, even if all running calls turn out to be free.
        """
        # Running calls mostly use less than they may: wait for them before giving up.
        while not self.fits(prompt, completion, self.open):
            if not self.fits(prompt, completion):
                raise BudgetSpent
            self.ended = self.ended or asyncio.Event()
            await self.ended.wait()
        # Reserve the most that the call may use while it runs.
        self.open.append((prompt, completion))
        self.calls += 1
        try:
            yield self.pay
        finally:
            # Release the reservation and wake the calls that wait for it.
            self.open.remove((prompt, completion))
            if self.ended:
                self.ended.set()
                self.ended = None

    def pay(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add the tokens that a call has used."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
