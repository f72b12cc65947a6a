"""The Connector of the prompt-pool encoder: learned queries that summarize the visual tokens of an image."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Connector(nn.Module):
    """Learned queries that attend to a row's visual tokens: (B, T, H), where they are (B, T) -> (B, N, H).

    A block as in Q-Former (arXiv 2301.12597), narrower where H is large. Its outputs start at the queries themselves,
    which start as large as words, so that an untrained Connector disturbs a trained model least.
    """

    def __init__(self, count: int, width: int, scale: float, inner: int = 512):
        super().__init__()
        inner = min(width, inner)
        self.heads = max(1, inner // 64)
        inner -= inner % self.heads
        self.queries = nn.Parameter(torch.randn(count, width) * scale)
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width) for name in ("asking", "seen", "found")}
        )
        self.ask, self.look = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        self.answer = nn.Linear(inner, width)
        self.think = nn.Sequential(
            nn.Linear(width, 2 * inner), nn.GELU(), nn.Linear(2 * inner, width)
        )
        for last in (self.answer, self.think[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, embedded: Tensor, picture: Tensor) -> Tensor:
        """Attend to the visual tokens."""
        asked = self.ask(self.norms["asking"](self.queries)).expand(len(embedded), -1, -1)
        keys, values = self.look(self.norms["seen"](embedded.to(self.queries.dtype))).chunk(
            2, dim=-1
        )
        asked, keys, values = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (asked, keys, values)
        )
        seen = functional.scaled_dot_product_attention(asked, keys, values, picture[:, None, None])
        found = self.queries + self.answer(seen.transpose(1, 2).flatten(2))
        return found + self.think(self.norms["found"](found))
