"""Train, generate and encode with transformers and peft alone, as peers to measure this library beside.

Each function follows the documentation of its library: `labels=` for the chain's loss, `output_hidden_states=True` for
the embedding.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot import compat  # noqa: F401  # isort: skip
import peft

from cir_cot.losses import info_nce
from cir_cot.models.architectures import linear_layers
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import POSITIONS


def put_lora(backbone: Backbone, lora: Mapping[str, float], recompute: bool) -> None:
    """Put peft's own adapter on the layers that this library adapts, unless the model has an adapter already.

    `lora` holds r, alpha and dropout; `recompute` recomputes activations in the backward pass.
    """
    if backbone.adapted:
        return
    # Name the linear layers of the language model, and not those of the vision tower.
    linear = "|".join(linear_layers(backbone.config.model_type))
    target = rf"model\.language_model\.layers\.\d+\.\w+\.({linear})"
    config = peft.LoraConfig(
        r=int(lora["r"]),
        lora_alpha=int(lora["alpha"]),
        lora_dropout=lora["dropout"],
        target_modules=target,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for an attribute that transformers 5.23 deprecates.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        backbone.model = cast(peft.PeftModel, peft.get_peft_model(backbone.plain, config))
    if recompute:
        backbone.checkpoint_activations()


def training_step(backbone: Backbone, batch: Mapping, temperature: float) -> Callable[[], None]:
    """Return a function that takes one optimizer step on all rows of a batch at once.

    The loss is the chain's cross-entropy plus InfoNCE at `temperature`.
    """
    device = backbone.device
    model = backbone.model.train()
    trained = (value for value in model.parameters() if value.requires_grad)
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    # Every row's target is its own, and other rows with the same image are no negatives.
    ids = batch["ids"].to(device)
    positives = torch.arange(len(ids), device=device)

    def step() -> None:
        query = _moved(batch["query"], device)
        target = _moved(batch["target"], device)
        labels = batch["labels"].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            # The chain's loss comes with the query's forward pass.
            out = model(**query, labels=labels, output_hidden_states=True)
            seen = model(**target, output_hidden_states=True)
            contrastive = info_nce(
                _vector(out, query, backbone.ret_id),  # (B, H)
                _vector(seen, target, backbone.ret_id),  # (B, H)
                positives,
                torch.tensor(temperature, device=device),
                ids,
                ids[:, 0],
            )
        (out.loss + contrastive).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generate(backbone: Backbone, inputs: Mapping[str, Tensor], count: int) -> Tensor:
    """Generate `count` tokens a row, keeping all hidden states -> embeddings (B, H) at the last token."""
    # torch types a method of a submodule as `Tensor | Module`.
    model: Any = backbone.plain
    model.generation_config.eos_token_id = None  # no row ends sooner
    out = model.generate(
        **_moved(inputs, backbone.device),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return functional.normalize(out.hidden_states[-1][-1][:, -1].float(), dim=-1).cpu()


@torch.no_grad()
def encode(backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
    """Encode one batch -> embeddings (B, H) at the retrieval token."""
    moved = _moved(inputs, backbone.device)
    out = backbone.plain(**moved, output_hidden_states=True)
    return _vector(out, moved, backbone.ret_id).cpu()


def _moved(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to a device, without the positions, which transformers counts itself."""
    return {name: value.to(device) for name, value in inputs.items() if name != POSITIONS}


def _vector(out: Any, inputs: Mapping[str, Tensor], token: int) -> Tensor:
    """Return unit vectors (B, H): the last hidden states at `token`."""
    states = out.hidden_states[-1][inputs["input_ids"] == token]  # (B, H)
    return functional.normalize(states.float(), dim=-1)
