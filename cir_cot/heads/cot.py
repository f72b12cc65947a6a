"""Chain-of-thought retriever: a Qwen-VL generates caption -> reasoning -> conclusion, then one retrieval token.

CIR-CoT-style (arXiv 2510.08003): L = lm_weight * CE(chain) + contrastive_weight * InfoNCE. The query embedding is the
last hidden state at the retrieval token (or at the token before it), the target embedding that of the same model on an
image, a fixed prompt and the retrieval token. Template, projection and temperature are our choices (docs/cot.md).

Readings of a query: `full` generates the chain first, `short` its conclusion only, `fast` places the retrieval token at
once, `adaptive` decides for each query whether to generate (full) or not (fast). `embed_with` encodes queries with
chains you supply: edited by a person, or annotated (the oracle reading, an upper bound that must never be reported as
a result).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Unpack

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.inputs import Picture, as_queries
from cir_cot.models.backbone import Backbone
from cir_cot.models.clip import load_clip
from cir_cot.prompts import cot_to_text
from cir_cot.records import Cot
from cir_cot.retriever import CHAIN_READINGS, READINGS, QueryOutput, in_order

from .adaptive import AdaptiveHead
from .base import HeadOutput
from .chain_collator import ChainCollator
from .decoding import DecodingState, Queue, decode
from .grammar import Grammar
from .parts import encode_queries, rows_at_once
from .qwen import Readout, chain_loss, chosen
from .sampling import Sampling


class CotRetriever(AdaptiveHead):
    """Chain-of-thought head around a Qwen-VL.

    Args:
        backbone: the Qwen-VL.
        base: the checkpoint that it was loaded from.
        chain_dropout: probability that a training row has no chain, see ChainCollator.
        max_new_tokens: bound of a chain. Its three sections get a quarter, a half and a quarter of it; a longer section
            is closed and the row flagged.
        target_encoder: a CLIP or SigLIP checkpoint. Targets are then its vectors, and the projection leads to them.
        threshold: of the adaptive reading, see AdaptiveHead; `cir-cot calibrate` finds one.
        gate: whether a learned gate decides there.
        readout: further arguments of PictureHead.

    Example:
        head = CotRetriever(load_backbone("Qwen/Qwen2.5-VL-3B-Instruct"), "Qwen/Qwen2.5-VL-3B-Instruct")
        output = head.encode_query([image], ["the same, but red"], "short")
    """

    kind = "cot"
    # Part of the ChainReader protocol, with `reading`, which a caller may change.
    readings = CHAIN_READINGS

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        chain_dropout: float = 0.0,
        max_new_tokens: int = 384,
        threshold: float = 0.5,
        gate: bool = False,
        target_encoder: str | None = None,
        **readout: Unpack[Readout],
    ):
        # A foreign target space fixes the width of the projection.
        foreign = load_clip(target_encoder) if target_encoder else None
        if foreign:
            readout["projection"] = readout.get("projection") or foreign.dim
            if readout["projection"] != foreign.dim:
                raise InputError(
                    f"projection {readout['projection']}: vectors of {target_encoder} have {foreign.dim}"
                )
        super().__init__(backbone, base, threshold, gate, **readout)
        # Settings.
        if not 0 <= chain_dropout <= 1:
            raise InputError(f"chain_dropout {chain_dropout} is no probability, 0 .. 1")
        if max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens {max_new_tokens} leaves no room for a chain; give 384"
            )
        self.target_encoder = target_encoder
        self.foreign = foreign
        self.chain_dropout = chain_dropout
        self.max_new_tokens = max_new_tokens
        # The reading of `encode_query` where none is asked for.
        self.reading = "full"

    def settings(self) -> dict:
        """Return the keyword arguments that build this head again."""
        return super().settings() | {
            "chain_dropout": self.chain_dropout,
            "max_new_tokens": self.max_new_tokens,
            "target_encoder": self.target_encoder,
        }

    def collator(self) -> ChainCollator:
        """Return the function that turns training rows into a batch; it holds the processor, never the model."""
        return ChainCollator(self.encoder(), self.chain_dropout, self.target_inputs())

    def target_inputs(self) -> Callable[[Sequence[Image]], dict[str, Tensor]]:
        """Return what makes model inputs of candidate pictures."""
        return self.foreign.inputs.pictures if self.foreign else self.encoder().target

    def embed_targets(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed target images, or their feature vectors -> (B, D) unit."""
        if self.foreign is None:
            return self.read(inputs)
        # Cached features of the foreign encoder, or images to encode with it.
        vectors = inputs["vectors"] if "vectors" in inputs else self.foreign.images(inputs)
        return functional.normalize(vectors.float(), dim=-1)

    def forward(
        self,
        query: dict[str, Tensor],
        target: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Encode a batch; with `labels` the cross-entropy of the chains comes as aux loss `lm`."""
        hidden = self.backbone(query)  # (B, T, H)
        return HeadOutput(
            query=self._embed(hidden, query["input_ids"]),
            target=None if target is None else self.embed_targets(target),
            temperature=self.temperature(),
            aux={} if labels is None else {"lm": chain_loss(self.backbone, hidden, labels)},
            rows={},
            stats={},
        )

    def encode_query(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        reading: str | None = None,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> QueryOutput:
        """Encode B composed queries, or one: pictures or their files, and texts; the arguments are `encode_target`'s.

        Returns:
            Embeddings, and the generated chains as tagged text ("" for none). A row whose chain had to be forced or
            cut is flagged. `reading` is one of `readings`, by default `self.reading`.
        """
        encode = partial(self._encode_part, self._checked_reading(reading))
        with rows_at_once(self, batch_size) as size:
            return encode_queries(encode, images, texts, size, self.dim, show_progress)

    def _encode_part(self, reading: str, images: list[Image], texts: list[str]) -> QueryOutput:
        if reading == "fast":  # nothing to decode: one forward pass
            return self._encode_all(images, texts, [""] * len(texts))
        return self._last(self.decode_chains(images, texts, reading))

    def sample_query(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        sampling: Sampling,
        reading: str = "full",
    ) -> QueryOutput:
        """Encode B composed queries with chains that are drawn, not the most likely ones; see `Sampling`."""
        steps = self.decode_chains(images, texts, self._checked_reading(reading), None, sampling)
        return self._last(steps)

    def _last(self, steps: Iterator[DecodingState]) -> QueryOutput:
        last = DecodingState([], torch.zeros(0, self.dim))
        for state in steps:
            last = state
        return self._to_output(last)

    def stream(
        self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]:
        """Encode as `encode_query` does, yielding after every token; embeddings are complete at the end."""
        reading = self._checked_reading(reading)
        if reading == "fast":
            yield self.encode_query(images, texts, "fast")
            return
        steps = self.decode_chains(*as_queries(images, texts), reading)
        yield from map(self._to_output, steps)

    def _checked_reading(self, reading: str | None) -> str:
        reading = reading or self.reading
        if reading not in self.readings:
            raise InputError(
                f"reading {reading!r} is not one of {', '.join(self.readings)}; oracle needs chains: embed_with"
            )
        return reading

    def embed_with(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode B composed queries with supplied chains: annotated ones, or ones that a person has edited."""
        return self._encode_all(
            *as_queries(images, texts), [cot_to_text(chain) for chain in chains]
        )

    def _encode_all(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[str]
    ) -> QueryOutput:
        """Encode B queries with chains as tagged text, "" for none, in batches of similar length."""
        outputs = []
        batches = self.batches_by_size(images, texts, chains)
        for rows in batches:
            outputs.append(self._encode(*chosen(rows, images, texts, chains)))
        return in_order(batches, outputs, self.dim)

    @torch.no_grad()
    def _encode(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[str]
    ) -> QueryOutput:
        """Encode one batch with chains as tagged text, "" for none."""
        encoder = self.encoder()
        inputs, _ = encoder.query(images, texts, encoder.answer_token_ids(chains))
        vectors = self.read(self._to_device(inputs)).cpu()  # (B, D)
        return QueryOutput(vectors, list(chains), [""] * len(chains))

    def write_on(
        self, images: Sequence[Image], texts: Sequence[str], begun: Sequence[str]
    ) -> QueryOutput:
        """Encode B queries with the first sections of their chains as tagged text, and generate the rest of them."""
        return self._last(self.decode_chains(images, texts, "full", begun))

    def decode_chains(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        reading: str = "full",
        begun: Sequence[str] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[DecodingState]:
        """Generate chains in a single pass, at most `batch_size` at a time; see `decoding.decode` and `write_on`."""
        encoder = self.encoder("left")
        grammar = Grammar(encoder, READINGS[reading].parts, self.max_new_tokens)
        # The adaptive reading decides at the end of the prompt, so the start of the chain comes after the decision.
        adaptive = reading == "adaptive"
        if begun is not None:
            rows = [grammar.row(grammar.tokens_of(text)) for text in begun]
        else:
            rows = [grammar.row([] if adaptive else grammar.start) for _ in images]
        if adaptive:
            for row in rows:
                row.forced = list(grammar.start)
        answers = [list(row.ids) for row in rows]

        def prompts(numbers: Sequence[int]) -> dict[str, Tensor]:
            pictures, words, begun_ids = chosen(numbers, images, texts, answers)
            inputs, _ = encoder.query(pictures, words, begun_ids)
            return self._to_device(inputs)

        return decode(
            self.backbone,
            grammar,
            Queue(prompts, self.batches_by_size(images, texts, begun or [])),
            rows,
            embed=self.embed_states,
            places=self.batch_size,
            before_ret=self.readout == "before_ret",
            skip=partial(self.is_sure, grammar.start[0]) if adaptive else None,
            sampling=sampling,
        )

    def _to_output(self, state: DecodingState) -> QueryOutput:
        texts = self.backbone.processor.tokenizer.batch_decode([row.ids for row in state.rows])
        return QueryOutput(state.vectors, texts, [row.flag for row in state.rows])
