"""The chain-of-thought retriever: a Qwen-VL model writes caption -> reasoning -> conclusion, then one retrieval token.

CIR-CoT-style (arXiv 2510.08003): L = lm_weight * CE(chain) + contrastive_weight * InfoNCE. The query vector is the
last hidden state at the retrieval token (or at the token before it), the target vector that of the same model reading
a picture, a fixed prompt and the retrieval token. Template, projection and temperature are our choices (docs/cot.md).

Three readings of a query: full writes its own chain first, fast places the retrieval token at once, oracle reads a
given chain (`embed_with`), an upper bound that is never a result.
"""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.backbone import Backbone
from cir_cot.collate import IGNORE, ChainCollator, ChatEncoder
from cir_cot.prompts import CHAIN_START, cot_to_text, text_to_cot
from cir_cot.records import Cot, InputError
from cir_cot.retriever import QueryOutput, concatenate

from .qwen import QwenHead

READINGS = ("full", "fast")
NO_TOKEN, NO_CHAIN = "no retrieval token: forced at the length limit", "chain is not valid"


class CotRetriever(QwenHead):
    """Chain-of-thought head around a backbone; `readout` are the settings of QwenHead.

    `max_new_tokens` bounds a chain; a longer one is cut, its retrieval token forced, and the row flagged.
    """

    kind = "cot"

    def __init__(
        self, backbone: Backbone, base: str, chain_dropout: float = 0.0, max_new_tokens: int = 384, **readout: object
    ):
        super().__init__(backbone, base, **readout)
        if not 0 <= chain_dropout <= 1:
            raise InputError(f"chain_dropout {chain_dropout} is no probability, 0 .. 1")
        self.chain_dropout, self.max_new_tokens, self.reading = chain_dropout, max_new_tokens, "full"

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        own = {"chain_dropout": self.chain_dropout, "max_new_tokens": self.max_new_tokens}
        return super().settings() | own

    def encoder(self, side: str = "right") -> ChatEncoder:
        """Return the encoder of this backbone's prompts."""
        return ChatEncoder(self.backbone.processor, self.backbone.ret_id, side)

    def collator(self) -> ChainCollator:
        """Return what turns training rows into batches; it holds the processor, never the model."""
        return ChainCollator(self.encoder(), self.chain_dropout)

    def forward(self, query: dict, target: dict | None = None, labels: Tensor | None = None) -> dict:
        """Return query (B, D), target (B, D) unless no target is given, and the chain's cross-entropy as aux `lm`.

        The vocabulary is only ever multiplied with the supervised positions: (S, V) instead of (B, T, V).
        """
        hidden = self.backbone(query)  # (B, T, H)
        out = {"query": self._embed(hidden, query["input_ids"]), "aux": {}, "temperature": self.temperature()}
        if labels is not None:
            out["aux"]["lm"] = self._chain_loss(hidden, labels)
        if target is not None:
            out["target"] = self.read(target)
        return out

    def _chain_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:]
        at = wanted != IGNORE  # (B, T - 1)
        if not at.any():
            return hidden.sum() * 0.0
        return functional.cross_entropy(self.backbone.logits(hidden[:, :-1][at]).float(), wanted[at])

    @torch.no_grad()
    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N pictures -> (N, D)."""
        encoder, parts = self.encoder(), [torch.zeros(0, self.dim)]
        for rows in self._batches(len(images)):
            parts.append(self.read(self._to_device(encoder.target(images[rows]))).cpu())
        return torch.cat(parts)

    def encode_query(self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None) -> QueryOutput:
        """Encode B composed queries; explanations are chains as tagged text ("" in the fast reading).

        `reading` full or fast, default `self.reading`. A row whose chain is malformed or cut off is flagged.
        """
        reading = reading or self.reading
        if reading not in READINGS:
            raise InputError(
                f"reading {reading!r} is not one of {', '.join(READINGS)}; oracle needs chains: embed_with"
            )
        parts = []
        for rows in self._batches(len(images)):
            asked = images[rows], texts[rows]
            parts.append(self._write(*asked) if reading == "full" else self._read(*asked, [""] * len(asked[0])))
        return concatenate(parts, self.dim)

    def embed_with(self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[Cot]) -> QueryOutput:
        """Encode B composed queries with given chains: an oracle's, or ones that a person has corrected."""
        written, parts = [cot_to_text(chain) for chain in chains], []
        for rows in self._batches(len(images)):
            parts.append(self._read(images[rows], texts[rows], written[rows]))
        return concatenate(parts, self.dim)

    @torch.no_grad()
    def _read(self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[str]) -> QueryOutput:
        encoder = self.encoder()
        inputs = self._to_device(encoder.query(images, texts, encoder.answer_ids(chains))[0])
        return QueryOutput(self.read(inputs).cpu(), list(chains), [""] * len(chains))

    def _write(self, images: Sequence[Image], texts: Sequence[str]) -> QueryOutput:
        chains, vectors, flags = self.decode(images, texts)
        words = [self.backbone.processor.tokenizer.decode(ids) for ids in chains]
        flags = [flag or ("" if text_to_cot(text) else NO_CHAIN) for flag, text in zip(flags, words, strict=True)]
        return QueryOutput(vectors, words, flags)

    @torch.no_grad()
    def decode(self, images: Sequence[Image], texts: Sequence[str]) -> tuple[list[list[int]], Tensor, list[str]]:
        """Write chains greedily -> (token ids of each, without the retrieval token; vectors (B, D); flags).

        Each vector is read from the decoding itself, no second pass; finished rows leave the batch and its cache.
        """
        encoder, ret = self.encoder("left"), self.backbone.ret_id
        start = encoder.plain_ids([CHAIN_START])[0]
        inputs = self._to_device(encoder.query(images, texts, [start] * len(images))[0])
        positions, mask, cache = self.backbone.positions(inputs), inputs["attention_mask"], self.backbone.new_cache()
        hidden = self.backbone(inputs, positions, cache)[:, -1]  # (B, H)
        positions, banned = self.backbone.next_positions(positions), self._banned()
        chains, flags = [list(start) for _ in images], [""] * len(images)
        vectors, alive = torch.zeros(len(images), self.dim), torch.arange(len(images))
        for step in range(self.max_new_tokens + 1):
            token = self.backbone.logits(hidden).float().masked_fill(banned, -torch.inf).argmax(dim=-1)  # (A,)
            if step == self.max_new_tokens:
                token = torch.full_like(token, ret)
                flags = [NO_TOKEN if row in alive else flag for row, flag in enumerate(flags)]
            mask, before = functional.pad(mask, (0, 1), value=1), hidden
            hidden = self.backbone({"input_ids": token[:, None], "attention_mask": mask}, positions, cache)[:, -1]
            ended, positions = token == ret, positions + 1
            for row, value in zip(alive[~ended.cpu()].tolist(), token[~ended].tolist(), strict=True):
                chains[row].append(value)
            if ended.any():
                read, going = before if self.readout == "before_ret" else hidden, ~ended
                vectors[alive[ended.cpu()]] = self._unit(read[ended]).cpu()
                alive, hidden, mask, positions = alive[going.cpu()], hidden[going], mask[going], positions[:, going]
                if not len(alive):
                    break
                self.backbone.keep_rows(cache, going.nonzero()[:, 0])
        return chains, vectors, flags

    def _banned(self) -> Tensor:
        """Return (V,) bool: tokens no chain may hold, i.e. special tokens and spare rows, but the retrieval token."""
        tokenizer = self.backbone.processor.tokenizer
        banned = torch.zeros(self.backbone.config.get_text_config().vocab_size, dtype=torch.bool)
        banned[len(tokenizer) :] = True
        banned[list(tokenizer.all_special_ids)] = True
        banned[self.backbone.ret_id] = False
        return banned.to(self.backbone.device)
