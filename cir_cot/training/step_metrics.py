"""What training measures between two logs, over all processes."""

import time

import torch
from torch import Tensor

from cir_cot.devices import peak_memory_mb

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate import Accelerator

from .gradcache import parts_of, row_tokens


class Meter:
    """Means between two logs: rows weigh what counts rows, tokens what counts tokens, over all processes."""

    def __init__(self, device: torch.device):
        self.device, self.sums, self.since = device, {}, time.perf_counter()

    def add(self, name: str, value: Tensor | float, count: int) -> None:
        """Add a mean over `count` things; no count is lost when there are none of them."""
        value = torch.as_tensor(value, device=self.device).detach().float()
        pair = torch.stack([value * count, value.new_tensor(float(count))])
        self.sums[name] = self.sums.get(name, 0) + pair

    def count(self, *inputs: dict | None) -> None:
        """Count the tokens that the model read, padding left out."""
        read = sum(sum(row_tokens(part)) for part in inputs if part is not None)
        self.add("tokens", read, 1)

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last time, and start anew; a collective call."""
        names = sorted(self.sums)
        sums = accelerator.reduce(torch.stack([self.sums[name] for name in names]), "sum").tolist()
        means = {
            name: total / count for name, (total, count) in zip(names, sums, strict=True) if count
        }
        del means["tokens"]
        now = time.perf_counter()
        means["tokens_per_second"] = sums[names.index("tokens")][0] / (now - self.since)
        peak = torch.tensor([peak_memory_mb(self.device)], device=self.device)
        means["peak_memory_mb"] = accelerator.gather(peak).max().item()
        self.sums, self.since = {}, now
        return means


def supervised_tokens(batch: dict) -> int:
    """Tokens of a batch that the language-model loss sees; the first position has nothing to be predicted from."""
    return sum(
        int(part["labels"][:, 1:].ne(-100).sum()) for part in parts_of(batch) if "labels" in part
    )
