"""Shared base of the heads on a Qwen-VL: an embedding from its hidden states, loading, and resuming."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.devices import pick_device
from cir_cot.errors import InputError
from cir_cot.losses import token_loss
from cir_cot.models.backbone import Backbone, load_backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.checkpoint import load_processor
from cir_cot.models.loading import loading
from cir_cot.retriever import SETTINGS_FILE

from .base import Head, load_head_weights
from .targets import group_by_size

READOUTS = ("ret", "before_ret")
# Qwen's image processors keep both areas under names of edges.
PIXEL_BOUNDS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
# Padded tokens in one forward pass of inference: a few hundred MB of activations at 7B.
TOKEN_BUDGET = 16384
# Bounds of a learned temperature; CLIP clamps at 0.01 (arXiv 2103.00020).
COLDEST = 0.01
WARMEST = 1.0


class Readout(TypedDict, total=False):
    """Keyword arguments of QwenHead, which heads on a Qwen-VL pass on."""

    readout: str
    projection: int | None
    temperature: float
    learn_temperature: bool


class QwenHead(Head):
    """Backbone with a readout: the hidden state at the retrieval token -> embeddings (B, D), float32 and unit.

    Args:
        backbone: the Qwen-VL.
        base: checkpoint that the backbone was loaded from.
        readout: "ret" reads the retrieval token, "before_ret" the token before it.
        projection: D of a linear map to the embedding; None takes the hidden state itself.
        temperature: where the temperature of InfoNCE starts, within 0.01 .. 1.
        learn_temperature: whether the temperature is trained.
    """

    backbone: Backbone
    token_budget: int = TOKEN_BUDGET

    def __init__(
        self,
        backbone: Backbone,
        base: str,
        readout: str = "ret",
        projection: int | None = None,
        temperature: float = 0.03,
        learn_temperature: bool = False,
    ):
        super().__init__()
        if readout not in READOUTS:
            raise InputError(f"readout {readout!r} is not one of {', '.join(READOUTS)}")
        if not COLDEST <= temperature <= WARMEST:
            raise InputError(f"temperature {temperature} is outside {COLDEST} .. {WARMEST}")
        # Settings.
        self.backbone = backbone
        self.base = base
        self.readout = readout
        self.projection = projection
        self.learn_temperature = learn_temperature
        # Trained parameters: the projection and the temperature.
        self.dim = projection or backbone.hidden_size
        self.depth = backbone.config.get_text_config().num_hidden_layers
        self.project = (
            nn.Linear(backbone.hidden_size, projection, bias=False) if projection else nn.Identity()
        )
        # (1,): DeepSpeed cannot broadcast a parameter without dimensions.
        self.log_temperature = nn.Parameter(
            torch.tensor([math.log(temperature)]), requires_grad=learn_temperature
        )

    def settings(self) -> dict:
        """Return the keyword arguments that build this readout again, and its pictures' pixel bounds."""
        return {
            "readout": self.readout,
            "projection": self.projection,
            "learn_temperature": self.learn_temperature,
            "temperature": round(self.temperature().item(), 6),
            **self.pixel_bounds(),
        }

    def conditions(self) -> dict:
        """Return what numbers depend on beside the weights: pixel bounds and precisions."""
        precision = str(self.backbone.plain.dtype).removeprefix("torch.")
        return {**self.pixel_bounds(), "dtype": precision, "trained_in": self.trained_in}

    def pixel_bounds(self) -> dict[str, int]:
        """Return the least and the largest area of a resized picture, in pixels."""
        size = self.backbone.processor.image_processor.size
        return {name: size[key] for name, key in PIXEL_BOUNDS.items()}

    def temperature(self) -> Tensor:
        """Return the temperature of InfoNCE, clamped to its bounds; a scalar."""
        # Training its logarithm keeps it positive.
        return self.log_temperature.squeeze().exp().clamp(COLDEST, WARMEST)

    def read(
        self, inputs: dict[str, Tensor], edit: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Embed model inputs in one forward pass -> (B, D) unit; `edit` as in `Backbone.forward`."""
        return self._embed(self.backbone(inputs, edit=edit), inputs["input_ids"])

    def _embed(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Embed hidden states (B, T, H) at each row's retrieval token, or before it -> (B, D) unit."""
        found = ids == self.backbone.ret_id  # (B, T)
        # Checked on the device: the host does not wait.
        single = (found.sum(dim=1) == 1).all()
        torch._assert_async(single, "every row holds exactly one retrieval token")
        at = found.int().argmax(dim=1) - int(self.readout == "before_ret")  # (B,)
        return self.embed_states(hidden[torch.arange(len(ids), device=ids.device), at])

    def embed_states(self, hidden: Tensor) -> Tensor:
        """Project states (B, H) in the dtype of the projection, normalise in float32 -> (B, D)."""
        if self.projection:
            weight = cast(nn.Linear, self.project).weight
            hidden = self.project(hidden.to(weight.dtype))  # (B, D)
        return functional.normalize(hidden.float(), dim=-1)

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.backbone.device) for name, value in inputs.items()}

    def batches_by_size(
        self, images: Sequence[Image.Image], *texts: Sequence[str]
    ) -> list[list[int]]:
        """Group rows of similar length, so that a long one does not pad many short ones.

        A batch has at most `token_budget` tokens, padding included, and `batch_size` rows. A single picture beyond the
        budget is a batch of its own. Tokens that are generated later do not count: they hold a cache and no
        activations.

        Args:
            images: one picture a row.
            texts: what stands beside each picture, such as all modifications and all chains; nothing for targets.

        Returns:
            Numbers of the rows of each batch, each number once.
        """
        return group_by_size(
            self.backbone.processor, images, texts, self.token_budget, self.batch_size
        )

    @classmethod
    def resume(
        cls, folder: str | Path, metadata: dict, trainable: bool, settings: dict, **options: Any
    ) -> Self:
        """Rebuild a saved head on the CPU, to train it further or to use it.

        Args:
            folder: the saved folder.
            metadata: its retriever.json, already checked.
            trainable: whether its adapter is trained.
            settings: settings that replace the stored ones. With another `target_encoder` among them, the projection
                leads to another space, so it starts anew.
            options: go to `load_backbone`.
        """
        folder = Path(folder)
        stored = dict(metadata["settings"])
        # Pictures keep the bounds of training, unless the caller gives others.
        bounds = stored_bounds(folder, stored)
        for name, value in bounds.items():
            if options.get(name) is None:
                options[name] = value
        # Load the backbone: the folder's own, or the named one with the folder's adapter.
        base = metadata["backbone"]
        frozen = metadata.get("frozen", False)  # older folders lack the entry
        backbone = load_backbone(folder if base == "." else base, frozen=frozen, **options)
        if base != "." and not frozen:
            backbone.load_adapter(folder, trainable)
        # Build the head around it. Settings of the caller win.
        anew = settings.get("target_encoder") not in (None, stored.get("target_encoder"))
        if anew:
            stored["projection"] = None
        # A gate was fitted to hidden states that training changes.
        if trainable:
            stored.pop("gate", None)
        with loading(f"{folder / SETTINGS_FILE}: no such head can be built"):
            head = cls(backbone, base, **(stored | settings))
        head.check(metadata, folder)
        left_out: tuple[str, ...] = ("project.",) if anew else ()
        # Calibration writes a gate's weights before the settings that name it.
        if getattr(head, "gate", None) is None:
            left_out += ("gate.",)
        load_head_weights(head, folder, without=left_out)
        return head

    def check(self, metadata: dict, folder: Path) -> None:
        """Encode the inputs of one image, so that damaged processor files show now and not at the first query."""
        encoder = ChatEncoder(self.backbone.processor, self.backbone.ret_id)
        with loading(f"{folder}: the image processor cannot be used"):
            encoder.target([Image.new("RGB", (56, 56))])
        # With another projection the width is meant to differ.
        same_space = self.projection == metadata["settings"].get("projection")
        if self.dim != metadata["dim"] and same_space:
            raise InputError(
                f"{folder / SETTINGS_FILE}: dim is {metadata['dim']}, the head's is {self.dim}"
            )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        metadata: dict,
        device: str | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> Self:
        """Load a saved folder for inference; `options` (attn, quantization, pixels) go to `load_backbone`."""
        place = pick_device(device)  # an unknown device is refused before weights are read
        head = cls.resume(folder, metadata, trainable=False, settings={}, dtype=dtype, **options)
        return head.to(place).eval()


def stored_bounds(folder: Path, settings: dict) -> dict[str, int]:
    """Take the bounds of a resized picture's area, in pixels, out of stored settings.

    Folders of 0.1 lack the entries; there the folder's own processor files have the bounds of training.
    """
    bounds = {name: settings.pop(name) for name in PIXEL_BOUNDS if name in settings}
    if len(bounds) == len(PIXEL_BOUNDS):
        return bounds
    size = load_processor(str(folder)).image_processor.size
    return {name: size[key] for name, key in PIXEL_BOUNDS.items()}


def chain_loss(backbone: Backbone, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of chains; logits exist at the S supervised positions only: (S, V).

    Args:
        backbone: computes the logits.
        hidden: states (B, T, H).
        labels: token ids (B, T), IGNORE where nothing is learned.
    """
    # The state at each position predicts the token after it.
    wanted = labels[:, 1:]  # (B, T - 1)
    at = wanted != IGNORE  # (B, T - 1)
    vocabulary = backbone.config.get_text_config().vocab_size
    return token_loss(backbone.logits, hidden[:, :-1][at], wanted[at], vocabulary)


def chosen(rows: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    """Return the given rows of each column."""
    return [[column[row] for row in rows] for column in columns]
