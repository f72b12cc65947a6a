"""The chain-of-thought retriever: a Qwen-VL model writes caption -> reasoning -> conclusion, then one retrieval token.

CIR-CoT-style (arXiv 2510.08003): L = lm_weight * CE(chain) + contrastive_weight * InfoNCE. The query vector is the
last hidden state at the retrieval token (or at the token before it), the target vector that of the same model reading
a picture, a fixed prompt and the retrieval token. Template, projection and temperature are our choices (docs/cot.md).

Three readings of a query: full writes its own chain first, fast places the retrieval token at once, oracle reads a
given chain (`embed_with`), an upper bound that is never a result.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.backbone import Backbone, load_backbone
from cir_cot.collate import IGNORE, ChainCollator, ChatEncoder
from cir_cot.prompts import CHAIN_START, cot_to_text, text_to_cot
from cir_cot.records import Cot, InputError
from cir_cot.retriever import QueryOutput, load_head_weights, save_retriever

READINGS = ("full", "fast")
READOUTS = ("ret", "before_ret")
NO_TOKEN, NO_CHAIN = "no retrieval token: forced at the length limit", "chain is not valid"
COLDEST, WARMEST = 0.01, 1.0  # bounds of a learned temperature; CLIP clamps at 0.01 (arXiv 2103.00020)


class CotRetriever(nn.Module):
    """Chain-of-thought head around a backbone; embeddings are (B, D), float32 and unit.

    `base` names the checkpoint the backbone was loaded from. `projection` is D of a linear map, None = the hidden
    state itself. `temperature` is where InfoNCE's starts; it is trained with `learn_temperature`, within 0.01 .. 1.
    `max_new_tokens` bounds a chain; a longer one is cut, its retrieval token forced, and the row flagged.
    """

    kind = "cot"

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        readout: str = "ret",
        projection: int | None = None,
        temperature: float = 0.03,
        learn_temperature: bool = False,
        chain_dropout: float = 0.0,
        max_new_tokens: int = 384,
    ):
        super().__init__()
        if readout not in READOUTS:
            raise InputError(f"readout {readout!r} is not one of {', '.join(READOUTS)}")
        if not COLDEST <= temperature <= WARMEST:
            raise InputError(f"temperature {temperature} is outside {COLDEST} .. {WARMEST}")
        if not 0 <= chain_dropout <= 1:
            raise InputError(f"chain_dropout {chain_dropout} is no probability, 0 .. 1")
        self.backbone, self.base, self.readout, self.projection = backbone, base, readout, projection
        self.chain_dropout, self.max_new_tokens = chain_dropout, max_new_tokens
        self.learn_temperature, self.reading, self.batch_size = learn_temperature, "full", 64
        self.project = nn.Linear(backbone.hidden_size, projection, bias=False) if projection else nn.Identity()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)
        self.dim = projection or backbone.hidden_size

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        names = ("readout", "projection", "learn_temperature", "chain_dropout", "max_new_tokens")
        return {name: getattr(self, name) for name in names} | {"temperature": round(self.temperature().item(), 6)}

    def temperature(self) -> Tensor:
        """Return InfoNCE's temperature, clamped to its bounds; a scalar."""
        return self.log_temperature.exp().clamp(COLDEST, WARMEST)

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
            out["target"] = self._embed(self.backbone(target), target["input_ids"])
        return out

    def _chain_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:]
        at = wanted != IGNORE  # (B, T - 1)
        if not at.any():
            return hidden.sum() * 0.0
        return functional.cross_entropy(self.backbone.logits(hidden[:, :-1][at]).float(), wanted[at])

    def _embed(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Read hidden states (B, T, H) at each row's one retrieval token, or before it -> (B, D) unit."""
        found = ids == self.backbone.ret_id
        assert (found.sum(dim=1) == 1).all(), "every row holds exactly one retrieval token"
        at = found.int().argmax(dim=1) - int(self.readout == "before_ret")
        return self._unit(hidden[torch.arange(len(ids), device=ids.device), at])

    def _unit(self, hidden: Tensor) -> Tensor:
        # (B, H) -> (B, D); a projection in the dtype of its own weights, the norm in float32
        if self.projection:
            hidden = self.project(hidden.to(self.project.weight.dtype))
        return functional.normalize(hidden.float(), dim=-1)

    @torch.no_grad()
    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N pictures -> (N, D)."""
        encoder, parts = self.encoder(), [torch.zeros(0, self.dim)]
        for at in range(0, len(images), self.batch_size):
            inputs = self._to_device(encoder.target(images[at : at + self.batch_size]))
            parts.append(self._embed(self.backbone(inputs), inputs["input_ids"]).cpu())
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
        for at in range(0, len(images), self.batch_size):
            rows = images[at : at + self.batch_size], texts[at : at + self.batch_size]
            parts.append(self._write(*rows) if reading == "full" else self._read(*rows, [""] * len(rows[0])))
        return _concatenate(parts, self.dim)

    def embed_with(self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[Cot]) -> QueryOutput:
        """Encode B composed queries with given chains: an oracle's, or ones that a person has corrected."""
        written, parts = [cot_to_text(chain) for chain in chains], []
        for at in range(0, len(images), self.batch_size):
            rows = slice(at, at + self.batch_size)
            parts.append(self._read(images[rows], texts[rows], written[rows]))
        return _concatenate(parts, self.dim)

    @torch.no_grad()
    def _read(self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[str]) -> QueryOutput:
        encoder = self.encoder()
        inputs = self._to_device(encoder.query(images, texts, encoder.answer_ids(chains))[0])
        vectors = self._embed(self.backbone(inputs), inputs["input_ids"]).cpu()
        return QueryOutput(vectors, list(chains), [""] * len(chains))

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

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.backbone.device) for name, value in inputs.items()}

    def save(self, folder: str | Path) -> None:
        """Save as a retriever folder; `load` and `cir_cot.heads.load_retriever` read it."""
        save_retriever(self, folder)

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights of a saved folder of the same settings, e.g. to resume."""
        self.backbone.load_weights(folder)
        load_head_weights(self, folder)

    @classmethod
    def load(cls, folder: str | Path, facts: dict, device: str | None = None, **options) -> "CotRetriever":
        """Load a saved folder; `options` (dtype, attn, quantization, pixels) go to `load_backbone`."""
        folder, base = Path(folder), facts["backbone"]
        backbone = load_backbone(folder if base == "." else base, **options)
        if base != ".":
            backbone.load_adapter(folder)
        head = cls(backbone, base, **facts["settings"])
        load_head_weights(head, folder)
        return head.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _concatenate(parts: list[QueryOutput], dim: int) -> QueryOutput:
    vectors = torch.cat([torch.zeros(0, dim), *(part.embeddings for part in parts)])
    return QueryOutput(vectors, sum((p.explanations for p in parts), []), sum((p.flags for p in parts), []))
