"""Running averages of training metrics between two log calls, reduced over all processes."""

import time

import torch
from torch import Tensor

from cir_cot.devices import peak_memory_mb

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate import Accelerator

from .chunks import Batch, collated_parts, row_lengths


class StepMetrics:
    """Weighted means since the last log: per-row metrics by rows, per-token metrics by tokens.

    Example:
        metrics.add("contrastive_loss", loss, len(ids))
        metrics.count_tokens(batch["query"], batch["target"])
        logs |= metrics.reduce_and_reset(accelerator)
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget all metrics and start the clock of the token rate."""
        self.sums: dict[str, Tensor] = {}  # (2,): weighted sum, sum of weights
        self.since = time.perf_counter()

    def add(self, name: str, value: Tensor | float, count: int) -> None:
        """Add a mean over `count` rows or tokens; a count of 0 adds nothing."""
        value = torch.as_tensor(value, device=self.device).detach().float()
        pair = torch.stack([value * count, value.new_tensor(float(count))])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def count_tokens(self, *inputs: dict | None) -> None:
        """Count the tokens of model inputs, without padding."""
        # On the device: the host does not wait for the number.
        lengths = [row_lengths(part).sum() for part in inputs if part is not None]
        self.add("tokens", torch.stack(lengths).sum(), 1)

    def reduce_and_reset(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes since the last call, and reset.

        Every process must call this. Also returns tokens per second, and the peak memory of the
        process that uses most.
        """
        # Sums over all processes, in an order that is the same everywhere.
        names = sorted(self.sums)
        sums = accelerator.reduce(torch.stack([self.sums[name] for name in names]), "sum").tolist()
        means = {}
        for name, (total, count) in zip(names, sums, strict=True):
            if count:
                means[name] = total / count
        # Tokens become a rate.
        del means["tokens"]
        tokens = sums[names.index("tokens")][0]
        means["tokens_per_second"] = tokens / (time.perf_counter() - self.since)
        peak = torch.tensor([peak_memory_mb(self.device)], device=self.device)
        means["peak_memory_mb"] = accelerator.gather(peak).max().item()
        self.reset()
        return means


def supervised_tokens(batch: Batch) -> int:
    """Count the tokens in the language-model loss; a row's first token is predicted from nothing."""
    count = 0
    for part in collated_parts(batch):
        if "labels" in part:
            count += int(part["labels"][:, 1:].ne(-100).sum())
    return count
