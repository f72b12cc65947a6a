"""The prompt-pool encoder: a Qwen-VL reads picture, words and soft prompts chosen for them, in one forward pass.

CIR-LVLM-style (arXiv 2412.11087): a task prompt that differs between composed query and candidate picture; soft prompts
that each row chooses from a learned pool by its visual and text features; a Connector whose learned queries turn the
visual tokens into a sentence-level prompt. What the paper leaves open follows Learning to Prompt (arXiv 2112.08654):
the top K of M prompts by the cosine of a query feature with their keys (docs/prompt_pool.md says what is ours).

The chosen prompts take the places of reserved tokens between picture and words, where the language model reads its
input: the visual tokens are there already, no second vision pass is needed, and M-RoPE positions stay what they were.
"""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.losses import choice_share, even_use, load_balance, pool_pull
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.prompts import COMPOSE
from cir_cot.retriever import QueryOutput, concatenate_outputs

from .base import HeadOutput, image_hash
from .connector import Connector
from .qwen import QwenHead

SHARPNESS = 10.0  # ours: cosines become probabilities as softmax(10 cos), so that the best key can stand out


class PromptPoolRetriever(QwenHead):
    """Prompt-pool head around a backbone; `readout` are the settings of QwenHead.

    `pool` prompts (M) of `length` tokens each (L), of which a row takes `top` (K); `connector` learned queries (N). A
    pool or connector of 0 is left out; without both it is a plain one-pass encoder.
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
        **readout: object,
    ):
        super().__init__(backbone, base, **readout)
        if pool < 0 or connector < 0:
            raise InputError(
                f"pool {pool}, connector {connector}: give numbers of prompts, or 0 for none"
            )
        if pool and not (1 <= top <= pool and length >= 1):
            raise InputError(
                f"top {top} of a pool of {pool} prompts of length {length}: a row takes 1 to {pool}"
            )
        self.pool, self.length, self.top, self.connector = pool, length, top, connector
        if (
            not backbone.config.tie_word_embeddings
        ):  # nothing is written here: the output layer has nothing to learn
            backbone.plain.get_output_embeddings().requires_grad_(False)
        if (
            backbone.adapted and self.readout == "before_ret"
        ):  # nothing is read at the token, or after it
            backbone.plain.get_input_embeddings().requires_grad_(False)
        width, scale = backbone.hidden_size, _scale(backbone)
        if pool:
            self.prompts = nn.Parameter(torch.randn(pool, length, width) * scale)
            self.keys = nn.Parameter(torch.randn(pool, width) * width**-0.5)
            self.feature = nn.Sequential(
                nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)
            )
        if connector:
            self.connect = Connector(connector, width, scale)
        encoder = self.encoder()
        self.around = (
            len(encoder.plain_ids([COMPOSE.partition(" {text}")[0]])[0]),
            len(encoder.closing),
        )

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        return super().settings() | {
            name: getattr(self, name) for name in ("pool", "length", "top", "connector")
        }

    @property
    def slots(self) -> int:
        """Reserved tokens in a row: those of the Connector, then those of the chosen prompts."""
        return self.connector + (self.top * self.length if self.pool else 0)

    def encoder(self, side: str = "right") -> ChatEncoder:
        """Return the encoder of this backbone's prompts."""
        return ChatEncoder(self.backbone.processor, self.backbone.ret_id, side, self.slots)

    def collator(self) -> "PoolCollator":
        """Return what turns training rows into batches; it holds the processor, never the model."""
        return PoolCollator(self.encoder())

    def forward(
        self, query: dict, target: dict | None = None, labels: Tensor | None = None
    ) -> HeadOutput:
        """Return query (B, D), target (B, D) unless no target is given; aux `pull`, the mean of both sides.

        `rows` are what `batch_losses` needs, `stats` the loads of the pool by the queries. `labels` are for heads that
        write.
        """
        sides = {"query": query} if target is None else {"query": query, "target": target}
        read = {side: self.choose_and_read(inputs, side) for side, inputs in sides.items()}
        out = HeadOutput(
            query=read["query"][0],
            target=None if target is None else read["target"][0],
            temperature=self.temperature(),
            aux={},
            rows={},
            stats={},
        )
        if self.pool:
            pulls = [self._pull(choice) for _, choice in read.values()]
            out.aux["pull"] = torch.stack(pulls).mean()
            for side, (_, choice) in read.items():
                out.rows[f"{side}_scores"] = choice["scores"]
                out.rows[f"{side}_chosen"] = choice["chosen"]
            share = choice_share(read["query"][1]["chosen"], self.pool)
            for number, name in enumerate(self.names()):
                out.stats[name.replace(" ", "_")] = share[number]
        return out

    def _pull(self, choice: dict[str, Tensor]) -> Tensor:
        """Learning to Prompt's key loss and, ours, a push away from all keys: their sum is a cross-entropy -> scalar.

        Alone, the pull is least where the features of all rows are one and the same, and then the choice says nothing.
        """
        push = torch.logsumexp(SHARPNESS * choice["scores"], dim=1).mean() / SHARPNESS
        return pool_pull(choice["feature"], self.keys, choice["chosen"]) + push

    def batch_losses(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Balance of the choices of a whole batch, the mean of its sides."""
        balances = []
        for side in ("query", "target"):
            if f"{side}_scores" in rows:
                probabilities = (SHARPNESS * rows[f"{side}_scores"]).softmax(dim=1)  # (B, M)
                balances.append(
                    load_balance(probabilities, rows[f"{side}_chosen"]) + even_use(probabilities)
                )
        return {"balance": torch.stack(balances).mean()}

    def choose_and_read(
        self, inputs: dict[str, Tensor], side: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read the model inputs of a side -> (B, D) unit; of a pool: feature (B, H), scores (B, M), chosen (B, K)."""
        choice: dict[str, Tensor] = {}
        slots = (inputs["input_ids"] == self._slot_id) & inputs[
            "attention_mask"
        ].bool()  # padding has the same id
        picture = inputs["input_ids"] == self.backbone.image_token_id

        def fill(embedded: Tensor) -> Tensor:
            parts = [self.connect(embedded, picture)] if self.connector else []  # (B, N, H)
            if self.pool:
                choice.update(self.choose(embedded, picture, self._words(inputs, slots, side)))
                parts.append(self.prompts[choice["chosen"]].flatten(1, 2))  # (B, K * L, H)
            return embedded.masked_scatter(
                slots[..., None], torch.cat(parts, dim=1).to(embedded.dtype)
            )

        return self.read(inputs, fill if self.slots else None), choice

    def choose(self, embedded: Tensor, picture: Tensor, words: Tensor) -> dict[str, Tensor]:
        """Choose prompts by what stands at `picture` and at `words` (B, T) of the embedded input (B, T, H).

        Always in float32: whether a prompt is chosen must not depend on rounding. The chosen are in the pool's order.
        """
        with torch.autocast(embedded.device.type, enabled=False):
            means = [_mean(embedded.float(), at) for at in (picture, words)]
            # each by its own size: visual tokens are far larger than words
            feature = self.feature(
                torch.cat([functional.layer_norm(mean, mean.shape[1:]) for mean in means], dim=1)
            )
            scores = functional.normalize(feature, dim=1) @ functional.normalize(self.keys, dim=1).T
            chosen = scores.topk(self.top, dim=1).indices.sort(dim=1).values  # (B, K)
        return {"feature": feature, "scores": scores, "chosen": chosen}

    def _words(self, inputs: dict[str, Tensor], slots: Tensor, side: str) -> Tensor:
        """Where the user's words are (B, T), or in a target, which has none, those of its task prompt."""
        task, closing = self.around
        after = (slots.cumsum(dim=1) == self.slots) & ~slots & inputs["attention_mask"].bool()
        place, count = (
            after.cumsum(dim=1),
            after.sum(dim=1, keepdim=True) - closing - 1,
        )  # 1: the retrieval token
        return after & (place > (task if side == "query" else 0)) & (place <= count)

    @property
    def _slot_id(self) -> int:
        return self.backbone.processor.tokenizer.pad_token_id

    def names(self) -> list[str]:
        """Name the prompts of the pool."""
        return [f"prompt {number}" for number in range(self.pool)]

    @torch.no_grad()
    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N pictures -> (N, D)."""
        encoder, parts = self.encoder(), [torch.zeros(0, self.dim)]
        for rows in self.batches(len(images)):
            parts.append(
                self.choose_and_read(self._to_device(encoder.target(images[rows])), "target")[
                    0
                ].cpu()
            )
        return torch.cat(parts)

    @torch.no_grad()
    def encode_query(self, images: Sequence[Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries; explanations name the chosen prompts with their scores, best first."""
        encoder, parts = self.encoder(), []
        for rows in self.batches(len(images)):
            inputs = compose(encoder, images[rows], texts[rows])
            vectors, choice = self.choose_and_read(self._to_device(inputs), "query")
            words, shares = self._say(choice) if self.pool else ([""] * len(vectors), [])
            parts.append(QueryOutput(vectors.cpu(), words, [""] * len(vectors), shares))
        return concatenate_outputs(parts, self.dim)

    def _say(self, choice: dict[str, Tensor]) -> tuple[list[str], list[dict[str, float]]]:
        """Explanations, and each prompt's share of its row."""
        words, shares, names = [], [], self.names()
        for scores, chosen in zip(
            choice["scores"].tolist(), choice["chosen"].tolist(), strict=True
        ):
            best = sorted(chosen, key=lambda prompt: -scores[prompt])
            words.append(", ".join(f"{names[prompt]} ({scores[prompt]:.2f})" for prompt in best))
            shares.append(
                {name: (number in chosen) / self.top for number, name in enumerate(names)}
            )
        return words, shares


class PoolCollator:
    """list[TrainingRow] -> {"query": inputs, "target": inputs, "ids": (B,)} for the prompt-pool encoder."""

    def __init__(self, encoder: ChatEncoder):
        self.encoder = encoder

    def __call__(self, rows: Sequence) -> dict:
        return {
            "query": compose(
                self.encoder, [r.reference for r in rows], [r.record.text for r in rows]
            ),
            "target": self.encoder.target([row.target for row in rows]),
            "ids": torch.tensor([image_hash(row.record.targets[0]) for row in rows]),
        }


def compose(
    encoder: ChatEncoder, images: Sequence[Image], texts: Sequence[str]
) -> dict[str, Tensor]:
    """Encode references and modification texts with the task prompt of a composed query -> model inputs."""
    return encoder.query(images, texts, [[encoder.ret_id]] * len(texts), COMPOSE)[0]


def _mean(embedded: Tensor, at: Tensor) -> Tensor:
    """Mean over the tokens at (B, T) of (B, T, H) -> (B, H); 0 where there is none."""
    weight = at.to(embedded.dtype)
    return torch.einsum("bt,bth->bh", weight, embedded) / weight.sum(dim=1, keepdim=True).clamp(
        min=1
    )


def _scale(backbone: Backbone) -> float:
    """Spread of the entries of word embeddings: soft prompts that start as large as words are read as words."""
    return backbone.plain.get_input_embeddings().weight[:4096].detach().float().std().item()
