"""Prompt-pool encoder: a Qwen-VL reads image, text and soft prompts chosen for them in one forward pass.

CIR-LVLM-style (arXiv 2412.11087): a task prompt that differs between composed query and candidate image; soft prompts
that each row chooses from a learned pool by its visual and text features; a Connector whose learned queries turn the
visual tokens into a sentence-level prompt. What the paper leaves open follows Learning to Prompt (arXiv 2112.08654):
the top K of M prompts by the cosine of a query feature with their keys (docs/prompt_pool.md says what is ours).

The chosen prompts replace the embeddings of reserved tokens between image and text, at the input of the language model:
the visual tokens are in place by then, no second vision pass is needed, and M-RoPE positions are unchanged.
"""

from collections.abc import Callable, Sequence
from typing import Unpack, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.inputs import Picture
from cir_cot.losses import choice_share
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import COMPOSE
from cir_cot.retriever import QueryOutput, in_order

from .base import HeadOutput, TrainingRow, target_ids
from .connector import Connector
from .parts import encode_queries, rows_at_once
from .pictures import PictureHead
from .prompt_choice import Choice, masked_mean, pool_balance
from .qwen import Readout


class PromptPoolRetriever(PictureHead):
    """Prompt-pool head around a Qwen-VL; without pool and Connector it is a plain one-pass encoder.

    Args:
        backbone: the Qwen-VL.
        base: the checkpoint that it was loaded from.
        pool: number of prompts (M), 0 for no pool.
        length: tokens of a prompt (L).
        top: prompts that a row takes (K).
        connector: learned queries of the Connector (N), 0 for none.
        readout: further arguments of QwenHead.
    """

    kind = "prompt_pool"

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        pool: int = 10,
        length: int = 5,
        top: int = 5,
        connector: int = 32,
        **readout: Unpack[Readout],
    ):
        super().__init__(backbone, base, **readout)
        _check_sizes(pool, length, top, connector)
        self.pool = pool
        self.length = length
        self.top = top
        self.connector = connector
        # Nothing is generated, so the output layer has nothing to learn.
        if not backbone.config.tie_word_embeddings:
            backbone.plain.get_output_embeddings().requires_grad_(False)
        # Nothing is read at the retrieval token or after it, so its row has nothing to learn.
        if backbone.adapted and self.readout == "before_ret":
            backbone.plain.get_input_embeddings().requires_grad_(False)
        # Prompts and queries start as large as word embeddings.
        width = backbone.hidden_size
        scale = _embedding_scale(backbone)
        if pool:
            self.prompts = nn.Parameter(torch.randn(pool, length, width) * scale)
            self.keys = nn.Parameter(torch.randn(pool, width) * width**-0.5)
            self.feature = nn.Sequential(
                nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)
            )
        if connector:
            self.connect = Connector(connector, width, scale)
        # Tokens of a query around the user's text: of the task prompt before it, of the template after it.
        encoder = self.encoder()
        self.task_tokens = len(encoder.plain_ids([COMPOSE.partition(" {text}")[0]])[0])
        self.closing_tokens = len(encoder.closing)

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        return super().settings() | {
            "pool": self.pool,
            "length": self.length,
            "top": self.top,
            "connector": self.connector,
        }

    @property
    def reserved_tokens(self) -> int:
        """Reserved tokens in a row: those of the Connector, then those of the chosen prompts."""
        return self.connector + (self.top * self.length if self.pool else 0)

    def encoder(self, side: str = "right") -> ChatEncoder:
        """Return the encoder of prompts; rows are padded on `side`."""
        return ChatEncoder(
            self.backbone.processor, self.backbone.ret_id, side, self.reserved_tokens
        )

    def collator(self) -> "PoolCollator":
        """Return the function that turns training rows into a batch; it holds the processor, never the model."""
        return PoolCollator(self.encoder())

    def forward(
        self,
        query: dict[str, Tensor],
        target: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Encode a batch; aux `pull` is the mean of both sides, stats are the loads of the prompts by the queries."""
        # Both sides go through the same weights.
        encoded = {"query": self.choose_and_read(query, "query")}
        if target is not None:
            encoded["target"] = self.choose_and_read(target, "target")
        out = HeadOutput(
            query=encoded["query"][0],
            target=None if target is None else encoded["target"][0],
            temperature=self.temperature(),
            aux={},
            rows={},
            stats={},
        )
        # Losses and statistics of the choices, by side.
        pulls = []
        for side, (_, choice) in encoded.items():
            if choice is not None:
                pulls.append(choice.pull(self.keys))
                out.rows[f"{side}_scores"] = choice.scores
                out.rows[f"{side}_chosen"] = choice.chosen
        if pulls:
            out.aux["pull"] = torch.stack(pulls).mean()
            share = choice_share(out.rows["query_chosen"], self.pool)  # (M,)
            for number, name in enumerate(self.names()):
                out.stats[name.replace(" ", "_")] = share[number]
        return out

    def batch_losses(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the balance of the choices over the batch of all processes, the mean of its sides."""
        balances = []
        for side in ("query", "target"):
            if f"{side}_scores" in rows:
                balances.append(pool_balance(rows[f"{side}_scores"], rows[f"{side}_chosen"]))
        return {"balance": torch.stack(balances).mean()}

    def choose_and_read(self, inputs: dict[str, Tensor], side: str) -> tuple[Tensor, Choice | None]:
        """Embed the model inputs of a side ("query" or "target") -> (B, D) unit, and the choice of prompts."""
        # Padding has the id of the reserved tokens, too.
        at_padding_id = inputs["input_ids"] == self._reserved_id
        reserved = at_padding_id & inputs["attention_mask"].bool()  # (B, T)
        picture = inputs["input_ids"] == self.backbone.image_token_id  # (B, T)
        choice: Choice | None = None

        def fill(embedded: Tensor) -> Tensor:
            """Replace the reserved tokens of input embeddings (B, T, H) by prompts."""
            nonlocal choice
            prompts = []
            if self.connector:
                prompts.append(self.connect(embedded, picture))  # (B, N, H)
            if self.pool:
                choice = self.choose(embedded, picture, self._text_at(inputs, reserved, side))
                prompts.append(self.prompts[choice.chosen].flatten(1, 2))  # (B, K * L, H)
            filling = torch.cat(prompts, dim=1).to(embedded.dtype)
            return embedded.masked_scatter(reserved[..., None], filling)

        vectors = self.read(inputs, fill if self.reserved_tokens else None)
        return vectors, choice

    def choose(self, embedded: Tensor, picture: Tensor, text: Tensor) -> Choice:
        """Choose prompts by the input embeddings (B, T, H) at the positions `picture` and `text` (B, T).

        Always in float32: whether a prompt is chosen must not depend on rounding. Only where all weights are bfloat16,
        as DeepSpeed makes them, the feature is as exact as those weights are.
        """
        with torch.autocast(embedded.device.type, enabled=False):
            # Each mean is normalised by itself: visual tokens are far larger than word embeddings.
            means = [masked_mean(embedded.float(), at) for at in (picture, text)]
            normalised = [functional.layer_norm(mean, mean.shape[1:]) for mean in means]
            both = torch.cat(normalised, dim=1).to(self.keys.dtype)  # (B, 2 H)
            feature = self.feature(both).float()  # (B, H)
            keys = functional.normalize(self.keys.float(), dim=1)  # (M, H)
            scores = functional.normalize(feature, dim=1) @ keys.T  # (B, M)
            chosen = scores.topk(self.top, dim=1).indices.sort(dim=1).values  # (B, K)
        return Choice(feature, scores, chosen)

    def _text_at(self, inputs: dict[str, Tensor], reserved: Tensor, side: str) -> Tensor:
        """Return where the user's text is (B, T); a target has none, there it is the task prompt."""
        # All tokens after the reserved ones: task prompt, user's text, end of the template, retrieval token.
        after = reserved.cumsum(dim=1) == self.reserved_tokens
        after = after & ~reserved & inputs["attention_mask"].bool()
        place = after.cumsum(dim=1)  # 1, 2, ... from the first of them
        last = after.sum(dim=1, keepdim=True) - self.closing_tokens - 1  # 1: the retrieval token
        return after & (place > (self.task_tokens if side == "query" else 0)) & (place <= last)

    @property
    def _reserved_id(self) -> int:
        return self.backbone.processor.tokenizer.pad_token_id

    def names(self) -> list[str]:
        """Return the names of the prompts."""
        return [f"prompt {number}" for number in range(self.pool)]

    def target_inputs(self) -> Callable[[Sequence[Image]], dict[str, Tensor]]:
        """Return what makes model inputs of candidate pictures."""
        return self.encoder().target

    def embed_targets(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed the model inputs of candidate pictures -> (B, D) unit."""
        return self.choose_and_read(inputs, "target")[0]

    @torch.no_grad()
    def encode_query(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> QueryOutput:
        """Encode B composed queries; explanations name the chosen prompts with their scores, best first."""
        with rows_at_once(self, batch_size) as size:
            return encode_queries(self._encode_part, images, texts, size, self.dim, show_progress)

    def _encode_part(self, images: list[Image], texts: list[str]) -> QueryOutput:
        encoder = self.encoder()
        outputs = []
        batches = self.batches_by_size(images, texts)
        for rows in batches:
            pictures = [images[row] for row in rows]
            inputs = compose(encoder, pictures, [texts[row] for row in rows])
            vectors, choice = self.choose_and_read(self._to_device(inputs), "query")
            nothing = [""] * len(vectors)
            explanations = nothing if choice is None else choice.explain(self.names())
            shares = [] if choice is None else choice.routing(self.names())
            outputs.append(QueryOutput(vectors.cpu(), explanations, nothing, shares))
        return in_order(batches, outputs, self.dim)


def _check_sizes(pool: int, length: int, top: int, connector: int) -> None:
    """Raise InputError if the pool or the Connector cannot have these sizes."""
    if pool < 0 or connector < 0:
        raise InputError(
            f"pool {pool}, connector {connector}: give numbers of prompts, or 0 for none"
        )
    if pool and length < 1:
        raise InputError(f"length must be at least 1, got {length}")
    if pool and not 1 <= top <= pool:
        raise InputError(f"top must be between 1 and pool ({pool}), got {top}")


class PoolCollator:
    """Collate rows for the prompt-pool encoder: query and target inputs, ids (B,)."""

    def __init__(self, encoder: ChatEncoder):
        self.encoder = encoder

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        references = cast(list[Image], [row.reference for row in rows])
        targets = cast(list[Image], [row.target for row in rows])
        return {
            "query": compose(self.encoder, references, [row.record.text for row in rows]),
            "target": self.encoder.target(targets),
            "ids": target_ids(rows),
        }


def compose(
    encoder: ChatEncoder, images: Sequence[Image], texts: Sequence[str]
) -> dict[str, Tensor]:
    """Encode reference images and modification texts with the task prompt of a composed query -> model inputs."""
    inputs, _ = encoder.query(images, texts, [[encoder.ret_id]] * len(texts), COMPOSE)
    return inputs


def _embedding_scale(backbone: Backbone) -> float:
    """Return the standard deviation of word embeddings: soft prompts that start as large are read like words."""
    weight = backbone.plain.get_input_embeddings().weight
    return weight[:4096].detach().float().std().item()
