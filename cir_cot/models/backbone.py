"""One wrapper around Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: hidden states, logits, M-RoPE positions, LoRA.

The only module that looks at `config.model_type`. A checkpoint gets one added token, the retrieval token: its row is
a spare row of the embedding matrix (Qwen pads its vocabulary beyond its tokenizer), so nothing is resized. With LoRA
the language model's linear layers get adapters, and of the embedding matrix only that one row is trained: in the
embedding, and in the output head too, whether the two are tied (one row) or not (a row each).

Letters: B batch, T tokens, H hidden, V vocabulary.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.errors import InputError
from cir_cot.prompts import RET

from .checkpoint import (
    DTYPES,
    bound_pixels,
    load_model,
    load_processor,
    model_options,
    read_model_type,
)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_RECURRENT = (
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_b",
    "in_proj_a",
    "out_proj",
)  # Qwen3.5's gated delta nets
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
LINEAR = {  # model_type -> linear layers of a block of the language model
    "qwen2_vl": _ATTENTION + _MLP,
    "qwen2_5_vl": _ATTENTION + _MLP,
    "qwen3_vl": _ATTENTION + _MLP,
    "qwen3_5": _ATTENTION + _RECURRENT + _MLP,
}


class Backbone(nn.Module):
    """A Qwen-VL model with its processor and the retrieval token; build it with `load_backbone`.

    `model` is the transformers model, or the PEFT model around it. `ret_id` is the retrieval token's id,
    `image_token_id` the placeholder of one visual token, `merge_size` the patches along a side of a visual token. Of a
    `frozen` one no weight is trained or saved.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: transformers.ProcessorMixin,
        ret_id: int,
        frozen: bool = False,
    ):
        super().__init__()
        self.model, self.processor, self.ret_id, self.frozen = model, processor, ret_id, frozen
        self.hidden_size = self.config.get_text_config().hidden_size
        self.image_token_id = self.config.image_token_id
        self.merge_size = self.config.vision_config.spatial_merge_size
        self.cache_argument = cache_argument(self.plain.model.forward)

    @property
    def config(self) -> transformers.PretrainedConfig:
        """Configuration of the transformers model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the embedding matrix is."""
        return self.model.get_input_embeddings().weight.device

    @property
    def adapted(self) -> bool:
        """Whether there is a LoRA adapter."""
        return self.plain is not self.model

    @property
    def plain(self) -> transformers.PreTrainedModel:
        """The transformers model; with an adapter its layers are in place inside it."""
        return (
            self.model
            if isinstance(self.model, transformers.PreTrainedModel)
            else self.model.get_base_model()
        )

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor | None = None,
        cache: transformers.Cache | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Hidden states of the last layer after the final norm (B, T, H), without logits.

        `inputs` is what the processor returns (input_ids, attention_mask, mm_token_type_ids, pixel_values,
        image_grid_thw). With a filled `cache`, `inputs` holds the new tokens only, except attention_mask
        (B, cached + T), and `positions` (3, B, T) must be given: `next_positions` has them. `edit` maps what the
        language model reads, words and visual tokens (B, T, H), to what it shall read instead, of the same shape.
        """
        if positions is None:
            if cache is not None and cache.get_seq_length():
                raise ValueError(
                    "a filled cache needs explicit positions: pass next_positions(previous positions)"
                )
            positions = self.positions(inputs)
        with self._edited(edit):
            outputs = self.plain.model(
                **inputs,
                **{self.cache_argument: cache},
                position_ids=positions,
                use_cache=cache is not None,
                return_dict=True,
            )
        return outputs.last_hidden_state

    @contextmanager
    def _edited(self, edit: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
        """Edit what the language model reads, where the visual tokens are in place already: no second vision pass."""
        if edit is None:
            yield
            return
        handle = self.plain.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: (
                args,
                kwargs | {"inputs_embeds": edit(kwargs["inputs_embeds"])},
            ),
            with_kwargs=True,
        )
        try:
            yield
        finally:
            handle.remove()

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of final hidden states (..., H)."""
        return self.plain.get_output_embeddings()(hidden)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """M-RoPE positions (3, B, T), those of the unpadded row on either padding side, 0 at padding."""
        ids = inputs["input_ids"]
        kinds = inputs.get("mm_token_type_ids")
        return self.plain.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.image_token_id).int() if kinds is None else kinds,
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs.get("attention_mask"),
        )[0]

    @staticmethod
    def next_positions(positions: Tensor) -> Tensor:
        """Positions (3, B, 1) of the text token that follows tokens at `positions` (3, B, T)."""
        return (positions.amax(dim=(0, 2)) + 1)[None, :, None].expand(3, -1, 1)

    def new_cache(self) -> transformers.Cache:
        """An empty key-value cache for `forward`."""
        return transformers.DynamicCache(config=self.config.get_text_config())

    @staticmethod
    def keep_rows(cache: transformers.Cache, rows: Tensor) -> None:
        """Keep the batch rows `rows` (K,) of a cache, in place, e.g. when the others have finished."""
        cache.reorder_cache(
            rows
        )  # batch_select_indices, made for this, lacks Qwen3.5's recurrent layers

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each block's activations in the backward pass, or keep them; takes effect in train mode."""
        with warnings.catch_warnings():  # transformers 5.23 renamed both, 5.17 has no other names
            warnings.filterwarnings(
                "ignore", message="`gradient_checkpointing", category=FutureWarning
            )
            if on:  # non-reentrant: the reentrant form would lose the gradients of all but the last block
                self.plain.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self.plain.gradient_checkpointing_disable()

    def merge(self) -> "Backbone":
        """Fold the adapter and the retrieval token's row into plain weights, in place -> self.

        InputError for a quantised base, whose 4- or 8-bit weights cannot hold the adapter.
        """
        if getattr(self.config, "quantization_config", None) is not None:
            raise InputError(
                "an adapter cannot be merged into a quantised base: load it with quantization=None"
            )
        if self.adapted:
            self.model = self.model.merge_and_unload(safe_merge=True)
        return self

    def save(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the adapter (its two files), or without one the whole checkpoint unless it is frozen; and the processor.

        `state_dict` are gathered weights under the names of `model.state_dict()`, where a launcher shards them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapted:
            from .adapter import save_adapter

            save_adapter(self.model, folder, state_dict)
        elif not self.frozen:
            for stale in ADAPTER_FILES:  # transformers would put it on the saved weights
                (folder / stale).unlink(missing_ok=True)
            self.model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights that `save` wrote from this very model into place, e.g. to resume training."""
        if self.adapted:
            from .adapter import load_adapter_weights

            load_adapter_weights(self.model, folder)
        elif not self.frozen:
            self.model.load_state_dict(load_model(str(folder), dtype=self.model.dtype).state_dict())

    def load_adapter(self, folder: str | Path, trainable: bool = False) -> "Backbone":
        """Put an adapter saved by `save` on this plain model -> self; InputError when it belongs to another one."""
        from .adapter import load_adapter

        if self.adapted:
            raise InputError(
                f"{folder}: this model already has an adapter; merge it first, or load the base again"
            )
        self.model = load_adapter(self.model, folder, self.ret_id, trainable)
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
    """Load a Qwen-VL checkpoint (a folder, a hub name, or a built model and processor) -> Backbone, in eval mode.

    `lora` {r, alpha, dropout, targets} puts adapters on the language model and, with `train_token`, trains the
    retrieval token's row; None means full fine-tuning, of the vision tower too unless `freeze_vision`, or with
    `frozen` none at all: a head alone is trained then.
    `quantization` "nf4" or "int8" needs bitsandbytes and `lora` for training. `min_pixels`, `max_pixels` bound a
    picture's area after resizing. Bad values raise InputError.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if frozen and (lora is not None or not freeze_vision):
        raise InputError(
            "a frozen base has neither an adapter nor a vision tower to train: leave one of them out"
        )
    if lora is not None and not freeze_vision:
        raise InputError(
            "freeze_vision=False needs full fine-tuning: an adapter does not hold the vision tower"
        )
    if isinstance(base, (str, Path)):
        linear_layers(read_model_type(str(base)))
        model = load_model(str(base), **model_options(DTYPES[dtype], attn, quantization))
        processor = load_processor(str(base))
    elif quantization is not None:
        raise InputError(
            f"quantization={quantization!r} needs a saved checkpoint, not a model in memory"
        )
    else:
        model, processor = base
        linear_layers(model.config.model_type)
    bound_pixels(processor.image_processor, min_pixels, max_pixels)
    ret_id = add_token(model, processor.tokenizer)
    if lora is not None:
        from .adapter import add_lora

        model = add_lora(
            model, lora, linear_layers(model.config.model_type), ret_id if train_token else None
        )
    elif frozen or quantization is not None:
        model.requires_grad_(False)
    else:
        model.requires_grad_(True)
        model.model.visual.requires_grad_(not freeze_vision)
    return Backbone(model, processor, ret_id, frozen).eval()


def linear_layers(model_type: str) -> tuple[str, ...]:
    """Names of the linear layers of a language-model block; InputError for a model_type that is not supported."""
    known = [name for name in LINEAR if name in transformers.CONFIG_MAPPING]
    if model_type not in known:
        raise InputError(
            f"model_type {model_type!r} is not supported; with transformers {transformers.__version__} "
            f"supported are {', '.join(known)}"
        )
    return LINEAR[model_type]


def cache_argument(forward: Callable) -> str:
    """Name the argument that takes the key-value cache: transformers renamed it in 5.24 and warns at the old name."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@torch.no_grad()
def add_token(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> int:
    """Add the retrieval token as a special token on the next spare row -> its id; one already there is kept.

    The row starts as the mean of the tokenizer's rows, so that it is neither likely nor special before training.
    The matrices are resized (to a multiple of 64) only when no row is spare.
    """
    added = tokenizer.get_added_vocab()
    if RET in added:
        return added[RET]
    count = len(tokenizer)
    tokenizer.add_tokens([RET], special_tokens=True)
    ret_id = tokenizer.convert_tokens_to_ids(RET)
    if ret_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(ret_id + 1, pad_to_multiple_of=64, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if not layer.weight.is_meta:
            layer.weight[ret_id] = layer.weight[:count].float().mean(dim=0).to(layer.weight.dtype)
    return ret_id
