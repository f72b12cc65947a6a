"""The chain-of-thought retriever: a Qwen-VL model writes caption -> reasoning -> conclusion, then one retrieval token.

CIR-CoT-style (arXiv 2510.08003): L = lm_weight * CE(chain) + contrastive_weight * InfoNCE. The query vector is the
last hidden state at the retrieval token (or at the token before it), the target vector that of the same model reading
a picture, a fixed prompt and the retrieval token. Template, projection and temperature are our choices (docs/cot.md).

Readings of a query: full writes its own chain first, short its conclusion alone, fast places the retrieval token at
once, adaptive decides for each query whether to write (full) or not (fast). A given chain is read by `embed_with`:
a person's, or the annotated one (oracle), an upper bound that is never a result.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.losses import token_loss
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.clip import load_clip
from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot
from cir_cot.retriever import QueryOutput, concatenate_outputs

from .base import HeadOutput, TrainingRow, image_hash
from .decoding import DecodingState, Grammar, decode
from .qwen import QwenHead


class ChainCollator:
    """list[TrainingRow] -> {"query": inputs, "target": inputs, "labels": (B, T), "ids": (B,)} for the chain retriever.

    With probability `chain_dropout`, decided by the row's own `draw`, a row has no chain: the retrieval token follows
    the prompt at once and nothing is supervised, because a token that the fast reading forces teaches no words.
    `targets` encodes target pictures, by default as prompts of the same model; targets that are vectors stay vectors.
    """

    def __init__(
        self, encoder: ChatEncoder, chain_dropout: float = 0.0, targets: Callable | None = None
    ):
        self.encoder, self.chain_dropout, self.targets = (
            encoder,
            chain_dropout,
            targets or encoder.target,
        )

    def __call__(self, rows: Sequence[TrainingRow]) -> dict:
        dropped = [random.Random(row.draw).random() < self.chain_dropout for row in rows]
        chains = [None if drop else row.record.cot for row, drop in zip(rows, dropped, strict=True)]
        written = iter(
            self.encoder.answer_token_ids([cot_to_text(chain) for chain in chains if chain])
        )
        answers = [next(written) if chain else [self.encoder.ret_id] for chain in chains]
        query, labels = self.encoder.query(
            [r.reference for r in rows], [r.record.text for r in rows], answers
        )
        labels[torch.tensor([chain is None for chain in chains])] = IGNORE
        targets = [row.target for row in rows]
        return {
            "query": query,
            "target": {"vectors": torch.stack(targets)}
            if torch.is_tensor(targets[0])
            else self.targets(targets),
            "labels": labels,
            "ids": torch.tensor([image_hash(row.record.targets[0]) for row in rows]),
        }


WRITTEN = {
    "full": PARTS,
    "short": ("conclusion",),
    "adaptive": PARTS,
}  # the parts that a reading writes
READINGS = (*WRITTEN, "fast")


class CotRetriever(QwenHead):
    """Chain-of-thought head around a backbone; `readout` are the settings of QwenHead.

    `max_new_tokens` bounds a chain, a quarter, a half and a quarter of it its three parts; a longer part is closed and
    the row flagged. `threshold` is that of the adaptive reading, see `stop_confidence`; `cir-cot calibrate` finds one.
    `target_encoder` names a CLIP or SigLIP checkpoint: targets are then its vectors, and the projection leads there.
    """

    kind = "cot"

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        chain_dropout: float = 0.0,
        max_new_tokens: int = 384,
        threshold: float = 0.5,
        target_encoder: str | None = None,
        **readout: object,
    ):
        foreign = load_clip(target_encoder) if target_encoder else None
        if foreign:
            readout["projection"] = readout.get("projection") or foreign.dim
            if readout["projection"] != foreign.dim:
                raise InputError(
                    f"projection {readout['projection']}: vectors of {target_encoder} have {foreign.dim}"
                )
        super().__init__(backbone, base, **readout)
        self.target_encoder, self.foreign = target_encoder, foreign
        if not 0 <= chain_dropout <= 1:
            raise InputError(f"chain_dropout {chain_dropout} is no probability, 0 .. 1")
        if max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens {max_new_tokens} leaves no room for a chain; the default is 384"
            )
        self.chain_dropout, self.max_new_tokens, self.reading = (
            chain_dropout,
            max_new_tokens,
            "full",
        )
        self.threshold = float(threshold)

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        names = ("chain_dropout", "max_new_tokens", "threshold", "target_encoder")
        return super().settings() | {name: getattr(self, name) for name in names}

    def encoder(self, side: str = "right") -> ChatEncoder:
        """Return the encoder of this backbone's prompts."""
        return ChatEncoder(self.backbone.processor, self.backbone.ret_id, side)

    def collator(self) -> ChainCollator:
        """Return what turns training rows into batches; it holds the processor, never the model."""
        return ChainCollator(self.encoder(), self.chain_dropout, self._target_inputs())

    def _target_inputs(self) -> Callable[[Sequence[Image]], dict[str, Tensor]]:
        return self.foreign.inputs.pictures if self.foreign else self.encoder().target

    def _target(self, inputs: dict[str, Tensor]) -> Tensor:
        """Read target pictures, or vectors of them, -> (B, D) unit."""
        if self.foreign is None:
            return self.read(inputs)
        vectors = inputs["vectors"] if "vectors" in inputs else self.foreign.images(inputs)
        return functional.normalize(vectors.float(), dim=-1)

    def forward(
        self, query: dict, target: dict | None = None, labels: Tensor | None = None
    ) -> HeadOutput:
        """Return query (B, D), target (B, D) unless no target is given, and the chain's cross-entropy as aux `lm`.

        The vocabulary is only ever multiplied with the supervised positions: (S, V) instead of (B, T, V).
        """
        hidden = self.backbone(query)  # (B, T, H)
        return HeadOutput(
            query=self._embed(hidden, query["input_ids"]),
            target=None if target is None else self._target(target),
            temperature=self.temperature(),
            aux={} if labels is None else {"lm": self._chain_loss(hidden, labels)},
            rows={},
            stats={},
        )

    def _chain_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:]
        at = wanted != IGNORE  # (B, T - 1)
        words = self.backbone.config.get_text_config().vocab_size
        return token_loss(self.backbone.logits, hidden[:, :-1][at], wanted[at], words)

    @torch.no_grad()
    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N pictures -> (N, D)."""
        inputs, parts = self._target_inputs(), [torch.zeros(0, self.dim)]
        for rows in self.batches(len(images)):
            parts.append(self._target(self._to_device(inputs(images[rows]))).cpu())
        return torch.cat(parts)

    def encode_query(
        self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None
    ) -> QueryOutput:
        """Encode B composed queries; explanations are chains as tagged text ("" where none is written).

        `reading` is one of READINGS, default `self.reading`. A row whose chain had to be forced or cut is flagged.
        """
        reading = self._checked_reading(reading)
        parts = []
        for rows in self.batches(len(images)):
            asked = images[rows], texts[rows]
            if reading == "fast":
                parts.append(self._read(*asked, [""] * len(asked[0])))
            else:
                *_, last = self.decode_chains(*asked, reading)
                parts.append(self._to_output(last))
        return concatenate_outputs(parts, self.dim)

    def stream(
        self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]:
        """Encode as `encode_query` does, and yield what is written after every token; vectors are whole at the end."""
        reading = self._checked_reading(reading)
        if reading == "fast":
            yield self.encode_query(images, texts, "fast")
        else:
            yield from (
                self._to_output(writing) for writing in self.decode_chains(images, texts, reading)
            )

    def _checked_reading(self, reading: str | None) -> str:
        reading = reading or self.reading
        if reading not in READINGS:
            raise InputError(
                f"reading {reading!r} is not one of {', '.join(READINGS)}; oracle needs chains: embed_with"
            )
        return reading

    def embed_with(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode B composed queries with given chains: an oracle's, or ones that a person has corrected."""
        written, parts = [cot_to_text(chain) for chain in chains], []
        for rows in self.batches(len(images)):
            parts.append(self._read(images[rows], texts[rows], written[rows]))
        return concatenate_outputs(parts, self.dim)

    @torch.no_grad()
    def _read(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[str]
    ) -> QueryOutput:
        encoder = self.encoder()
        inputs = self._to_device(encoder.query(images, texts, encoder.answer_token_ids(chains))[0])
        return QueryOutput(self.read(inputs).cpu(), list(chains), [""] * len(chains))

    def decode_chains(
        self, images: Sequence[Image], texts: Sequence[str], reading: str = "full"
    ) -> Iterator[DecodingState]:
        """Write the chains of one batch greedily, one pass in all; see `decoding.decode`."""
        encoder, adaptive = self.encoder("left"), reading == "adaptive"
        grammar = Grammar(encoder, WRITTEN[reading], self.max_new_tokens)
        rows = [grammar.row([] if adaptive else grammar.start) for _ in images]
        inputs = self._to_device(encoder.query(images, texts, [row.ids for row in rows])[0])
        skip = None
        if (
            adaptive
        ):  # the decision is made at the prompt's end, so that the chain's start comes behind it

            def skip(hidden: Tensor) -> Tensor:
                return self._stop_confidence(hidden, grammar.start[0]) >= self.threshold

            for row in rows:
                row.forced = list(grammar.start)
        return decode(
            self.backbone, grammar, inputs, rows, self._unit, self.readout == "before_ret", skip
        )

    def _to_output(self, writing: DecodingState) -> QueryOutput:
        words = self.backbone.processor.tokenizer.batch_decode([row.ids for row in writing.rows])
        return QueryOutput(writing.vectors, words, [row.flag for row in writing.rows])

    def _stop_confidence(self, hidden: Tensor, start: int) -> Tensor:
        logits = self.backbone.logits(hidden).float()
        return torch.sigmoid(logits[:, self.backbone.ret_id] - logits[:, start])  # (B,)

    @torch.no_grad()
    def stop_confidence(self, images: Sequence[Image], texts: Sequence[str]) -> Tensor:
        """Return (B,), in 0 .. 1, how much rather the model ends a query without a chain than starts one.

        The adaptive reading writes a chain where it is below `self.threshold`.
        """
        encoder, parts = self.encoder("left"), [torch.zeros(0)]
        start = Grammar(encoder, PARTS, self.max_new_tokens).start[0]
        for rows in self.batches(len(images)):
            inputs = encoder.query(images[rows], texts[rows], [[]] * len(images[rows]))[0]
            parts.append(
                self._stop_confidence(self.backbone(self._to_device(inputs))[:, -1], start).cpu()
            )
        return torch.cat(parts)
