"""The Connector of the prompt-pool encoder: learned queries that summarise the visual tokens of an image."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Connector(nn.Module):
    """Cross-attention from N learned queries to a row's visual tokens -> (B, N, H).

    A block as in Q-Former (arXiv 2301.12597), narrower where H is large. Its output starts at the queries themselves,
    which start as large as word embeddings, so that an untrained Connector disturbs a trained model least.

    Args:
        count: N.
        width: H.
        scale: standard deviation of the initial queries.
        inner: bound of the width inside.
    """

    def __init__(self, count: int, width: int, scale: float, inner: int = 512):
        super().__init__()
        # The width inside is a multiple of the number of attention heads.
        inner = min(width, inner)
        self.heads = max(1, inner // 64)
        inner -= inner % self.heads
        self.queries = nn.Parameter(torch.randn(count, width) * scale)
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width) for name in ("asking", "seen", "found")}
        )
        # Attention: queries ask, visual tokens are looked at, the answer has the model's width again.
        self.ask = nn.Linear(width, inner)
        self.look = nn.Linear(width, 2 * inner)
        self.answer = nn.Linear(inner, width)
        # Feed-forward layers.
        expand = nn.Linear(width, 2 * inner)
        reduce = nn.Linear(2 * inner, width)
        self.think = nn.Sequential(expand, nn.GELU(), reduce)
        # Both residual branches start at zero.
        for last in (self.answer, reduce):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, embedded: Tensor, picture: Tensor) -> Tensor:
        """Attend to the visual tokens.

        Args:
            embedded: input embeddings (B, T, H).
            picture: bool (B, T), where the visual tokens are.
        """
        # Queries, keys and values.
        asked = self.ask(self.norms["asking"](self.queries)).expand(len(embedded), -1, -1)
        seen = self.norms["seen"](embedded.to(self.queries.dtype))  # (B, T, H)
        keys, values = self.look(seen).chunk(2, dim=-1)  # (B, T, inner) each
        # Attention with several heads, to the visual tokens only.
        attended = functional.scaled_dot_product_attention(
            self._split_heads(asked),
            self._split_heads(keys),
            self._split_heads(values),
            picture[:, None, None],
        )
        merged = attended.transpose(1, 2).flatten(2)  # (B, N, inner)
        # Residual connections, then the feed-forward layers.
        found = self.queries + self.answer(merged)  # (B, N, H)
        return found + self.think(self.norms["found"](found))

    def _split_heads(self, values: Tensor) -> Tensor:
        """Split (B, T, inner) into (B, heads, T, inner / heads)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
