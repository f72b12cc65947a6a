"""LoRA on a Qwen-VL's language model and one trained row of its embedding matrix: put on, save, load.

Files are peft's own, two of them, readable by peft: adapter_config.json and adapter_model.safetensors. Imports peft,
which takes seconds: `backbone` imports this module only when there is an adapter.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

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

DEFAULTS = {
    "r": 16,
    "alpha": 32,
    "dropout": 0.1,
}  # r, dropout: ReCALL (2602.01639); alpha = 2 r: TRACE (2603.02929)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = "default"  # peft's name of a model's only adapter


class TokenRow(TrainableTokensLayer):
    """peft's layer with one trained row, without its copy of the matrix.

    peft writes the row into a copy of the whole matrix in every forward pass, and its backward pass forms the
    gradient of the whole matrix: for a 7B model 1.1 GB each, once for the embedding and once for the head. Here the
    frozen layer's output is corrected where the token is. Same values, same files.
    """

    def forward_adapters(
        self, x: Tensor, active_adapters: Sequence[str], *args, **kwargs
    ) -> Tensor:
        """Embeddings (B, T, H) of ids (B, T), or logits (..., V) of hidden states (..., H)."""
        if self.disable_adapters or self.merged or list(active_adapters) != [NAME]:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        (token,) = self.token_indices[NAME]
        (row,) = self.trainable_tokens_delta[NAME]  # (H,)
        layer = self.get_base_layer()
        out = layer(x)
        if isinstance(layer, nn.Embedding):
            return where((x == token)[..., None], row.to(out.dtype), out)
        out[..., token] = (x @ row.to(x.dtype)).to(out.dtype)
        return out


def add_lora(
    model: nn.Module, lora: Mapping[str, object], layers: Sequence[str], token: int | None
) -> PeftModel:
    """Put LoRA on `layers` of the language model's blocks and train the row of `token` -> PEFT model.

    `lora` takes r, alpha, dropout and targets (some of `layers`); anything else raises InputError. The row is
    trained in the embedding and in the head: one row when they are tied, a row each when they are not.
    """
    if unknown := [key for key in lora if key not in (*DEFAULTS, "targets")]:
        raise InputError(
            f"lora has no key {unknown[0]!r}; it takes {', '.join(DEFAULTS)} and targets"
        )
    targets = lora.get("targets", layers)
    if not isinstance(targets, (list, tuple)) or not targets or set(targets) - set(layers):
        raise InputError(f"lora targets {targets!r} must be a list of some of {', '.join(layers)}")
    chosen = DEFAULTS | dict(lora)
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
    """Write the two files of an adapter; `state_dict` as in `Backbone.save`."""
    weights = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(weights, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    model.peft_config[NAME].save_pretrained(folder)


def load_adapter(model: nn.Module, folder: str | Path, token: int, trainable: bool) -> PeftModel:
    """PEFT model of the adapter in `folder` around `model`; InputError when it is incomplete or of another base."""
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
    with loading(f"{folder / CONFIG}: cannot be read"):
        config = LoraConfig.from_pretrained(folder)
        rows = {row for rows in (config.trainable_token_indices or {}).values() for row in rows}
    config.inference_mode = not trainable
    config.base_model_name_or_path = (
        None  # the base may have moved; whether it fits is checked below
    )
    if rows - {token}:
        raise InputError(
            f"{folder}: trains the rows {sorted(rows)}, here the retrieval token is {token}: another base"
        )
    with loading(f"{folder / CONFIG}: does not fit this base"):
        model = _wrap(model, config)
    load_adapter_weights(model, folder)
    return model


def load_adapter_weights(model: PeftModel, folder: str | Path) -> None:
    """Load adapter_model.safetensors into an adapter in place; InputError when names or shapes differ."""
    saved = load_tensors(Path(folder) / WEIGHTS)
    ours = {
        name: value.shape
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    if odd := sorted(ours.items() ^ {name: value.shape for name, value in saved.items()}.items()):
        raise InputError(
            f"{folder}: does not fit this base, {odd[0][0]} differs; load the base it was trained on"
        )
    set_peft_model_state_dict(model, saved)


def _wrap(model: nn.Module, config: LoraConfig) -> PeftModel:
    """PEFT model of `config`; what it trains is float32, so that small steps are not rounded away."""
    with (
        warnings.catch_warnings()
    ):  # peft 0.21 asks transformers 5.23 by a name that is on its way out
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        model = get_peft_model(model, config)
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            module.__class__ = TokenRow
            module.trainable_tokens_delta.float()
    return model
