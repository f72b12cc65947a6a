"""What transformers and peft do without this library, to measure beside it: a training step, generation, encoding.

Written as their documentation has it: `labels=` for the chain's loss, `output_hidden_states=True` for the vector.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot import compat  # noqa: F401  # isort: skip
import peft

from cir_cot.losses import info_nce
from cir_cot.models.backbone import Backbone, linear_layers


def put_lora(backbone: Backbone, lora: Mapping[str, float], recompute: bool) -> None:
    """Put peft's own adapter on the same layers as ours, unless the model has one already."""
    if backbone.adapted:
        return
    linear = "|".join(linear_layers(backbone.config.model_type))
    target = rf"model\.language_model\.layers\.\d+\.\w+\.({linear})"
    options = {
        "r": lora["r"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "target_modules": target,
    }
    with warnings.catch_warnings():  # peft 0.21 asks transformers by a name that is on its way out
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        backbone.model = peft.get_peft_model(backbone.model, peft.LoraConfig(**options))
    if recompute:
        backbone.checkpoint_activations()


def training_step(backbone: Backbone, batch: Mapping, temperature: float) -> Callable[[], None]:
    """Return one optimizer step on all rows of a batch at once: the chain's cross-entropy and InfoNCE."""
    device = backbone.device
    model = backbone.model.train()
    optimizer = torch.optim.AdamW(
        (value for value in model.parameters() if value.requires_grad), lr=2e-4
    )
    ids = batch["ids"].to(device)
    positives = torch.arange(len(ids), device=device)

    def step() -> None:
        query, target = (_moved(batch[side], device) for side in ("query", "target"))
        with torch.autocast(device.type, torch.bfloat16):
            read = model(**query, labels=batch["labels"].to(device), output_hidden_states=True)
            seen = model(**target, output_hidden_states=True)
            vectors = [
                _vector(out, side, backbone.ret_id) for out, side in ((read, query), (seen, target))
            ]
            contrast = info_nce(
                *vectors, positives, torch.tensor(temperature, device=device), ids, ids
            )
        (read.loss + contrast).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def write(backbone: Backbone, inputs: Mapping[str, Tensor], count: int) -> Tensor:
    """Generate `count` tokens a row, all hidden states kept -> vectors (B, H) at the last token."""
    model = backbone.plain
    model.generation_config.eos_token_id = None  # no row ends sooner
    options = {
        "do_sample": False,
        "output_hidden_states": True,
        "return_dict_in_generate": True,
        "pad_token_id": 0,
    }
    out = model.generate(
        **_moved(inputs, backbone.device), max_new_tokens=count, min_new_tokens=count, **options
    )
    return functional.normalize(out.hidden_states[-1][-1][:, -1].float(), dim=-1).cpu()


@torch.no_grad()
def encode(backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
    """Encode one batch -> vectors (B, H) at the retrieval token."""
    inputs = _moved(inputs, backbone.device)
    return _vector(
        backbone.plain(**inputs, output_hidden_states=True), inputs, backbone.ret_id
    ).cpu()


def _moved(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def _vector(out, inputs: Mapping[str, Tensor], token: int) -> Tensor:
    return functional.normalize(out.hidden_states[-1][inputs["input_ids"] == token].float(), dim=-1)
