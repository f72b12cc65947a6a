"""What a job of annotation has used and may use: calls, tokens, money; no call begins that could exceed a limit."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager


class BudgetSpent(Exception):  # noqa: N818 - the end that was asked for
    """The next call could exceed the budget."""


class Budget:
    """Counts, carried on from earlier runs of the job, and limits; `prices`: dollars a million tokens, in and out."""

    def __init__(
        self,
        max_tokens: float = math.inf,
        max_cost: float = math.inf,
        prices: Sequence[float] = (0.0, 0.0),
    ):
        self.max_tokens, self.max_cost, self.prices = max_tokens, max_cost, prices
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self.open: list[tuple[int, int]] = []  # what the calls under way may still use
        self.ended: asyncio.Event | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens, in dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def fits(self, prompt: int, completion: int, others: Sequence[tuple[int, int]] = ()) -> bool:
        """Whether a call fits into what is left beside the `others`."""
        prompt += self.prompt_tokens + sum(row[0] for row in others)
        completion += self.completion_tokens + sum(row[1] for row in others)
        return (
            prompt + completion <= self.max_tokens
            and self.cost(prompt, completion) <= self.max_cost
        )

    @asynccontextmanager
    async def call(self, prompt: int, completion: int) -> AsyncIterator[Callable[[int, int], None]]:
        """A call of at most so many tokens -> the function that takes its bill; BudgetSpent if it cannot be paid.

        Where it fits but for the calls under way, it waits for them: they mostly cost less than they may.
        """
        while not self.fits(prompt, completion, self.open):
            if not self.fits(prompt, completion):
                raise BudgetSpent
            self.ended = self.ended or asyncio.Event()
            await self.ended.wait()
        self.open.append((prompt, completion))
        self.calls += 1
        try:
            yield self.pay
        finally:
            self.open.remove((prompt, completion))
            if self.ended:
                self.ended.set()
                self.ended = None

    def pay(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add what a call has used."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
