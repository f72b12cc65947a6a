"""Wrap Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 alike: hidden states, logits, M-RoPE positions, LoRA.

A checkpoint gets one added token, the retrieval token (`special_tokens`). With LoRA, the linear layers of the language
model get adapters, and of the embedding matrix only that token's row is trained: in the embedding, and in the output
head too, whether the two are tied (one row) or not (a row each). What differs between the generations is in
`architectures`.

Letters: B batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError

from .architectures import cache_argument, linear_layers
from .chat import POSITIONS
from .checkpoint import (
    DTYPES,
    bound_pixels,
    check_training_options,
    load_model,
    load_processor,
    model_options,
    read_model_type,
)
from .input_embeddings import edited_input_embeddings
from .loading import without_bars
from .special_tokens import add_token
from .vision_attention import tower_options, use_attention_by_length

if TYPE_CHECKING:
    from peft import PeftModel  # takes seconds to import, and only adapters need it

    from .architectures import QwenProcessor, QwenVL

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


class Backbone(nn.Module):
    """Run a Qwen-VL model with its processor and the retrieval token; build it with `load_backbone`.

    Args:
        model: The transformers model, or the PEFT model around it.
        processor: The checkpoint's, with the retrieval token in its tokenizer.
        ret_id: Id of the retrieval token.
        frozen: Train and save no weight.

    `image_token_id` is the id of a visual token, `merge_size` the number of patches along its side.

    Example:
        hidden = load_backbone("Qwen/Qwen2.5-VL-7B-Instruct", lora={"r": 16})(inputs)  # (B, T, H)
    """

    def __init__(
        self, model: QwenVL | PeftModel, processor: QwenProcessor, ret_id: int, frozen: bool = False
    ):
        super().__init__()
        self.model = model
        self.processor = processor
        self.ret_id = ret_id
        self.frozen = frozen
        self.hidden_size = self.config.get_text_config().hidden_size
        self.image_token_id = self.config.image_token_id
        self.merge_size = self.config.vision_config.spatial_merge_size
        self.cache_argument = cache_argument(self.plain.model.forward)

    @property
    def config(self) -> transformers.PretrainedConfig:
        """Return the configuration of the transformers model."""
        return self.plain.config

    @property
    def device(self) -> torch.device:
        """Return where the embedding matrix is."""
        return self.plain.get_input_embeddings().weight.device

    @property
    def adapted(self) -> bool:
        """Tell whether there is an adapter."""
        return self.plain is not self.model

    @property
    def plain(self) -> QwenVL:
        """Return the transformers model; an adapter's layers are in place inside it."""
        if isinstance(self.model, transformers.PreTrainedModel):
            return self.model
        return cast("QwenVL", self.model.get_base_model())

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor | None = None,
        cache: transformers.Cache | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute hidden states of the last layer after the final norm, without logits.

        Args:
            inputs: What ChatEncoder returns. With a filled cache, the new tokens only, except attention_mask
                (B, cached + T).
            positions: M-RoPE positions (3, B, T), by default `positions(inputs)`; a filled cache needs them, see
                `next_positions`.
            cache: Key-value cache, extended in place.
            edit: Replaces the input embeddings (B, T, H) of text and visual tokens by others of the same shape.

        Returns:
            Hidden states (B, T, H).
        """
        if positions is None:  # those of new tokens depend on cached ones
            if cache is not None and cache.get_seq_length():
                raise ValueError(
                    "a filled cache needs explicit positions: pass next_positions(previous positions)"
                )
            positions = self.positions(inputs)
        inner = self.plain.model  # computes no logits
        options = tower_options(self.plain) if "pixel_values" in inputs else {}
        with edited_input_embeddings(inner.language_model, edit):
            outputs = inner(
                **{name: value for name, value in inputs.items() if name != POSITIONS},
                **{self.cache_argument: cache, **options},
                position_ids=positions,
                use_cache=cache is not None,
                return_dict=True,
            )
        return outputs.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute next-token logits (..., V) of hidden states (..., H)."""
        return self.plain.get_output_embeddings()(hidden)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return M-RoPE positions (3, B, T), 0 at padding: counted by ChatEncoder (B, T, 3), else by the model."""
        if POSITIONS in inputs:
            return inputs[POSITIONS].permute(2, 0, 1)
        ids = inputs["input_ids"]
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None:
            kinds = (ids == self.image_token_id).int()  # 1 at visual tokens, (B, T)
        return self.plain.model.get_rope_index(
            ids,
            mm_token_type_ids=kinds,
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs.get("attention_mask"),
        )[0]

    @staticmethod
    def next_positions(positions: Tensor) -> Tensor:
        """Compute the positions (3, B, 1) of the text token that follows tokens at `positions` (3, B, T)."""
        return (positions.amax(dim=(0, 2)) + 1)[None, :, None].expand(3, -1, 1)

    def new_cache(self) -> transformers.Cache:
        """Return an empty key-value cache for `forward`."""
        return transformers.DynamicCache(config=self.config.get_text_config())

    @staticmethod
    def keep_rows(cache: transformers.Cache, rows: Tensor) -> None:
        """Keep the batch rows `rows` (K,) of a cache, in place."""
        # batch_select_indices, meant for this, leaves out Qwen3.5's recurrent layers.
        cache.reorder_cache(cast("torch.LongTensor", rows))

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each block's activations in the backward pass, or keep them; takes effect in train mode."""
        with warnings.catch_warnings():
            # transformers 5.23 renamed both methods, and 5.17 has the old names only.
            warnings.filterwarnings(
                "ignore", message="`gradient_checkpointing", category=FutureWarning
            )
            if on:
                # The reentrant form would lose the gradients of all but the last block.
                self.plain.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self.plain.gradient_checkpointing_disable()

    def merge(self) -> Backbone:
        """Merge the adapter and the retrieval token's row into the base's weights, in place -> self.

        InputError for a quantised base: its 4- or 8-bit weights cannot hold the adapter.
        """
        if getattr(self.config, "quantization_config", None) is not None:
            raise InputError(
                "an adapter cannot be merged into a quantised base: load it with quantization=None"
            )
        if self.adapted:
            self.model = cast("QwenVL", self._peft_model.merge_and_unload(safe_merge=True))
        return self

    @property
    def _peft_model(self) -> PeftModel:
        return cast("PeftModel", self.model)  # asked for only where `adapted`

    def save(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the weights and the processor: the adapter's two files, or the checkpoint; nothing of a frozen base.

        Args:
            folder: Created where it does not exist.
            state_dict: Gathered weights under the names of `model.state_dict()`, where a launcher shards them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapted:
            from .adapter import save_adapter

            save_adapter(self._peft_model, folder, state_dict)
        elif not self.frozen:
            for stale in ADAPTER_FILES:  # they would be applied to these weights on loading
                (folder / stale).unlink(missing_ok=True)
            with without_bars():
                self.plain.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Load weights that `save` wrote from this same model, in place, e.g. to resume training."""
        if self.adapted:
            from .adapter import load_adapter_weights

            load_adapter_weights(self._peft_model, folder)
        elif not self.frozen:
            self.plain.load_state_dict(load_model(str(folder), dtype=self.plain.dtype).state_dict())

    def load_adapter(self, folder: str | Path, trainable: bool = False) -> Backbone:
        """Put an adapter saved by `save` on this plain model -> self; InputError if it belongs to another base."""
        from .adapter import load_adapter

        if self.adapted:
            raise InputError(
                f"{folder}: this model already has an adapter; merge it first, or load the base again"
            )
        self.model = load_adapter(self.plain, folder, self.ret_id, trainable)
        return self


def load_backbone(
    base: str | Path | tuple[transformers.PreTrainedModel, transformers.ProcessorMixin],
    lora: Mapping[str, object] | None = None,
    quantization: str | None = None,
    freeze_vision: bool = True,
    dtype: str = "float32",
    attn: str = "sdpa",
    train_token: bool = True,
    frozen: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Backbone:
    """Load a Qwen-VL checkpoint for training or inference -> Backbone, in eval mode; InputError for bad values.

    Args:
        base: A folder, a hub name, or a built model and its processor.
        lora: {r, alpha, dropout, targets} of adapters on the language model. None means full fine-tuning.
        quantization: "nf4" or "int8"; needs bitsandbytes, and `lora` for training.
        freeze_vision: Keep the vision tower as it is in full fine-tuning; with `lora` it always is.
        dtype: Precision of the weights: float32, bfloat16 or float16. Adapters are float32.
        attn: Attention of transformers: sdpa, eager or flash_attention_2.
        train_token: With `lora`, train the retrieval token's row as well.
        frozen: Train nothing of the base, only a head on it.
        min_pixels: Least area of a picture after resizing, in pixels.
        max_pixels: Largest area of a picture after resizing, in pixels.
    """
    check_training_options(lora, freeze_vision, dtype, frozen)
    # Refuse an unsupported architecture before its weights are read.
    if isinstance(base, (str, Path)):
        linear_layers(read_model_type(str(base)))
        options = model_options(DTYPES[dtype], attn, quantization)
        model = cast("QwenVL", load_model(str(base), **options))
        processor = cast("QwenProcessor", load_processor(str(base)))
    elif quantization is not None:
        raise InputError(
            f"quantization={quantization!r} needs a saved checkpoint, not a model in memory"
        )
    else:
        model = cast("QwenVL", base[0])
        processor = cast("QwenProcessor", base[1])
        linear_layers(model.config.model_type)
    if attn == "sdpa" and quantization is None:
        use_attention_by_length(model)
    # Prepare the processor and the vocabulary.
    bound_pixels(processor.image_processor, min_pixels, max_pixels)
    ret_id = add_token(model, processor.tokenizer)
    # Choose the weights that are trained.
    if lora is not None:
        from .adapter import add_lora

        layers = linear_layers(model.config.model_type)
        adapted = add_lora(model, lora, layers, ret_id if train_token else None)
        return Backbone(adapted, processor, ret_id, frozen).eval()
    trained = not frozen and quantization is None
    model.requires_grad_(trained)
    if trained:
        model.model.visual.requires_grad_(not freeze_vision)
    return Backbone(model, processor, ret_id, frozen).eval()
