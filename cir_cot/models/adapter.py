"""Put LoRA on a Qwen-VL's language model, train one row of its embedding matrix, save and load both.

The files are peft's own two, and peft reads them: adapter_config.json and adapter_model.safetensors. Importing peft
takes seconds: `backbone` imports this module only where there is an adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn, where

from cir_cot import compat  # noqa: F401  # isort: skip
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.trainable_tokens import TrainableTokensLayer

from cir_cot.errors import InputError
from cir_cot.files import parse_json

from .loading import load_tensors, loading

if TYPE_CHECKING:
    from .architectures import QwenVL

# r and dropout are those of ReCALL (2602.01639); alpha = 2 r is TRACE's (2603.02929).
DEFAULTS = {"r": 16, "alpha": 32, "dropout": 0.1}
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NAME = "default"  # peft's name of a model's only adapter


class TokenRow(TrainableTokensLayer):
    """Train one row of a frozen matrix as peft's layer does, without its copy of the matrix.

    peft writes the row into a copy of the full matrix in every forward pass, and its backward pass computes the
    gradient of the full matrix: for a 7B model 1.1 GB each, once for the embedding and once for the output head. Here
    the frozen layer's output is corrected at the token instead: same values, same gradients, same files.

    `_wrap` assigns this class to layers that peft has built (`module.__class__ = TokenRow`). That is safe because this
    class adds no attribute, only one method. The alternatives lose something:

    - Passing the class to peft: peft builds its layer by name in TrainableTokensWrapper.init_modules, and takes no
      other class.
    - A wrapper module around the layer: the parameter's name gets one more level, under which peft finds it neither to
      save, to load, to merge nor to tie it.
    - A new layer in place of peft's: the tied output head holds a reference to the embedding's layer, and would go on
      with the old one.
    - Replacing the class in peft's module: every other use of peft in the process would get it as well.
    """

    def forward_adapters(
        self, x: Tensor, active_adapters: Sequence[str], *args, **kwargs
    ) -> Tensor:
        """Compute embeddings (B, T, H) of ids (B, T), or logits (..., V) of hidden states (..., H)."""
        # Everything but the one active adapter is peft's business.
        if self.disable_adapters or self.merged or list(active_adapters) != [NAME]:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        (token,) = self.token_indices[NAME]
        (row,) = self.trainable_tokens_delta[NAME]  # (H,)
        layer = self.get_base_layer()
        out = layer(x)
        # Replace the token's embedding, or its logit.
        if isinstance(layer, nn.Embedding):
            return where((x == token)[..., None], row.to(out.dtype), out)
        out[..., token] = (x @ row.to(x.dtype)).to(out.dtype)
        return out


def add_lora(
    model: QwenVL, lora: Mapping[str, Any], layers: Sequence[str], token: int | None
) -> PeftModel:
    """Put LoRA on the language model's blocks, and train the row of one token -> PEFT model.

    Args:
        model: The plain model.
        lora: r, alpha, dropout and targets (some of `layers`); another key raises InputError.
        layers: Names of the linear layers in a block.
        token: Id of the token whose row is trained in the embedding and in the output head: one row where they are
            tied, a row each where they are not. None trains no row.
    """
    # Check the settings.
    if unknown := [key for key in lora if key not in (*DEFAULTS, "targets")]:
        raise InputError(
            f"lora has no key {unknown[0]!r}; it takes {', '.join(DEFAULTS)} and targets"
        )
    targets = lora.get("targets", layers)
    if not isinstance(targets, (list, tuple)) or not targets or set(targets) - set(layers):
        raise InputError(f"lora targets {targets!r} must be a list of some of {', '.join(layers)}")
    chosen: dict[str, Any] = DEFAULTS | dict(lora)
    # A tied output head shares the embedding's row.
    matrices = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=chosen["r"],
        lora_alpha=chosen["alpha"],
        lora_dropout=chosen["dropout"],
        # The vision towers have layers of the same names: the path must lead through the language model.
        target_modules=rf"model\.language_model\.layers\.\d+\.\w+\.({'|'.join(targets)})",
        trainable_token_indices=None if token is None else {name: [token] for name in matrices},
    )
    return _wrap(model, config)


def save_adapter(
    model: PeftModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the two files of an adapter; `state_dict` is that of `Backbone.save`."""
    # Without the full embedding matrix, of which one row alone is trained.
    weights = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(weights, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    model.peft_config[NAME].save_pretrained(str(folder))


def load_adapter(model: QwenVL, folder: str | Path, token: int, trainable: bool) -> PeftModel:
    """Load the adapter in `folder` onto `model` -> PEFT model; InputError if it is incomplete or of another base."""
    # Both files are there, and are LoRA's.
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is missing; an adapter is {CONFIG} and {WEIGHTS}")
    raw = parse_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if kind != "LORA":
        raise InputError(
            f"{folder / CONFIG}: peft_type is {kind!r}, only LORA adapters are supported"
        )
    # A row of another id belongs to another tokenizer.
    with loading(f"{folder / CONFIG}: cannot be read"):
        config = LoraConfig.from_pretrained(str(folder))
        rows = _trained_rows(config)
    if rows - {token}:
        raise InputError(
            f"{folder}: trains the rows {sorted(rows)}, but the retrieval token is {token} here: another base; "
            "load the base it was trained on"
        )
    # The base may have moved since: whether it fits is checked by names and shapes.
    config.inference_mode = not trainable
    config.base_model_name_or_path = None
    with loading(f"{folder / CONFIG}: does not fit this base"):
        adapted = _wrap(model, config)
    load_adapter_weights(adapted, folder)
    return adapted


def _trained_rows(config: LoraConfig) -> set[int]:
    """Return the ids of all tokens whose rows an adapter trains, in any matrix."""
    trained = config.trainable_token_indices or {}
    if isinstance(trained, list):  # of the embedding alone
        return set(trained)
    rows: set[int] = set()
    for ids in trained.values():
        rows.update(ids)
    return rows


def load_adapter_weights(model: PeftModel, folder: str | Path) -> None:
    """Load adapter_model.safetensors into an adapter, in place; InputError if names or shapes differ."""
    saved = load_tensors(Path(folder) / WEIGHTS)
    expected = _shapes(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(expected ^ _shapes(saved)):
        raise InputError(
            f"{folder}: does not fit this base, {odd[0][0]} differs; load the base it was trained on"
        )
    set_peft_model_state_dict(model, saved)


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    """Return the pairs of name and shape of weights."""
    return {(name, tuple(value.shape)) for name, value in weights.items()}


def _wrap(model: QwenVL, config: LoraConfig) -> PeftModel:
    """Build the PEFT model of `config`; what it trains is float32, so that small steps are not rounded away."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for an attribute that transformers 5.23 deprecates.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, TrainableTokensLayer):
            module.__class__ = TokenRow  # see TokenRow for why
            module.trainable_tokens_delta.float()
    return adapted
