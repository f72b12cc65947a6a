"""Build a head of any size on fake tensors: shapes and types without memory, so that 7B fits into a laptop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.digests import digest_bytes
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.checkpoint import DTYPES, load_processor
from cir_cot.models.resizing import smart_size
from cir_cot.models.tiny_qwen import CORPUS, tiny_processor, tiny_tokenizer
from cir_cot.training.sft_arguments import SftArguments

from .qwen_sizes import SIZES, published_model
from .synthetic import SyntheticPairs

# Bounds of Qwen2.5-VL's own processor, in pixels.
LEAST_PIXELS = 4 * 28 * 28
MOST_PIXELS = 16384 * 28 * 28


class GridsAlone:
    """Stand in for an image processor: the same grids of patches, one number a patch in place of its pixels.

    The pixels of a step are hundreds of megabytes. No operation on fake tensors looks at them, but the trainer tells
    pictures apart by them, so each picture has a number of its own.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.seen: dict[str, int] = {}  # digest of a picture -> its number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, images: Sequence[Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        """Return `pixel_values` (P, C), which hold P numbers in memory, and `image_grid_thw` (B, 3)."""
        patch = self.processor.patch_size
        side = patch * self.processor.merge_size
        bounds = self.processor.size["shortest_edge"], self.processor.size["longest_edge"]
        grids = []
        numbers = []
        for image in images:
            height, width = smart_size(image.height, image.width, side, *bounds)
            grids.append([1, height // patch, width // patch])
            content = digest_bytes(image.tobytes())
            numbers.append(self.seen.setdefault(content, len(self.seen)))
        grid = torch.tensor(grids, device="cpu")  # (B, 3)
        patches = grid.prod(dim=1)  # (B,)
        # Numbers as bfloat16 holds them: rounded, neighbours would be the same picture.
        bits = torch.tensor(numbers, dtype=torch.int16, device="cpu")  # (B,)
        values = bits.view(torch.bfloat16).float().repeat_interleave(patches)[:, None]  # (P, 1)
        channels = 3 * self.processor.temporal_patch_size * patch**2
        return {"pixel_values": values.expand(-1, channels), "image_grid_thw": grid}


def fake_head(args: SftArguments, inference: bool = False) -> CotRetriever:
    """Build the head that `sft` would train with these arguments, on fake tensors of the CPU.

    `args.model` is 3B or 7B for the published sizes of Qwen2.5-VL, or a checkpoint's folder, of which only the
    configuration and the processor are read. Real integer tensors may be mixed with the fake weights.

    Args:
        args: of `sft`.
        inference: build the head as it is evaluated on a GPU: all weights bfloat16, no adapter (it is merged), in eval
            mode.
    """
    dtype = torch.bfloat16 if inference else DTYPES[args.dtype]
    # On the meta device everything can be built as usual, adapters too.
    with torch.device("meta"):
        model, processor = _model_and_processor(str(args.model), dtype)
        if (
            args.attn == "eager"
        ):  # flash attention needs as much as sdpa, and runs on no fake tensor
            model.set_attn_implementation("eager")
        lora = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
        backbone = load_backbone(
            (model, processor),
            lora=lora if args.lora_r and not inference else None,
            freeze_vision=not args.train_vision,
            attn=args.attn,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
        )
        images = backbone.processor.image_processor
        backbone.processor.image_processor = GridsAlone(images)
        names = ("readout", "projection", "temperature", "learn_temperature", "chain_dropout")
        given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        head = CotRetriever(backbone, str(args.model), **given)
    _make_fake(head, None if inference else torch.float32)
    if args.recompute and not inference:
        head.backbone.checkpoint_activations()
    return head.train(not inference)


def _model_and_processor(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a model on the current device, and its processor."""
    if name in SIZES:
        # The words of a small tokenizer are as long as Qwen's; the matrices keep all their rows.
        tokenizer = tiny_tokenizer([*SyntheticPairs(0, 28).corpus(), *CORPUS])
        model = published_model(name, tokenizer, torch.device("meta"), dtype)
        processor = tiny_processor("qwen2_5_vl", tokenizer)
        processor.image_processor.size = {
            "shortest_edge": LEAST_PIXELS,
            "longest_edge": MOST_PIXELS,
        }
        return model, processor
    config = transformers.AutoConfig.from_pretrained(name)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model, load_processor(name)


def _make_fake(head: nn.Module, trained: torch.dtype | None) -> None:
    """Replace weights and buffers by fake tensors of the CPU; trained ones of type `trained`, if it is given."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # tied weights stay tied
    for module in head.modules():
        for table in (module._parameters, module._buffers):
            for name, value in list(table.items()):
                if value is None:
                    continue
                if id(value) not in made:
                    made[id(value)] = (value, _fake(value, mode, trained))
                table[name] = made[id(value)][1]  # type: ignore[assignment]  # a parameter of a parameter


def _fake(value: torch.Tensor, mode: FakeTensorMode, trained: torch.dtype | None) -> torch.Tensor:
    """Return a fake tensor of the shape and type of `value`."""
    dtype = trained if trained and value.requires_grad else value.dtype
    with mode:
        fake = torch.empty(value.shape, dtype=dtype)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(fake, requires_grad=value.requires_grad)
    return fake
