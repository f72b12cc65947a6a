"""What the heads on a Qwen-VL share: a vector read from its hidden states, and how a head is saved and loaded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cir_cot.devices import pick_device
from cir_cot.errors import InputError
from cir_cot.models.backbone import Backbone, load_backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.loading import loading
from cir_cot.retriever import SETTINGS_FILE

from .base import Head, load_head_weights

READOUTS = ("ret", "before_ret")
COLDEST, WARMEST = (
    0.01,
    1.0,
)  # bounds of a learned temperature; CLIP clamps at 0.01 (arXiv 2103.00020)


class QwenHead(Head):
    """A backbone and a readout: the hidden state at the retrieval token -> embeddings (B, D), float32 and unit.

    `base` names the checkpoint the backbone was loaded from. `projection` is D of a linear map, None = the hidden
    state itself. `temperature` is where InfoNCE's starts; it is trained with `learn_temperature`, within 0.01 .. 1.
    """

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
        self.backbone, self.base, self.readout, self.projection = (
            backbone,
            base,
            readout,
            projection,
        )
        self.learn_temperature = learn_temperature
        self.project = (
            nn.Linear(backbone.hidden_size, projection, bias=False) if projection else nn.Identity()
        )
        # (1,): DeepSpeed cannot broadcast a parameter without dimensions
        self.log_temperature = nn.Parameter(
            torch.tensor([math.log(temperature)]), requires_grad=learn_temperature
        )
        self.dim = projection or backbone.hidden_size

    def settings(self) -> dict:
        """Return the keyword arguments that build this readout again."""
        names = ("readout", "projection", "learn_temperature")
        return {name: getattr(self, name) for name in names} | {
            "temperature": round(self.temperature().item(), 6)
        }

    def temperature(self) -> Tensor:
        """Return InfoNCE's temperature, clamped to its bounds; a scalar."""
        return self.log_temperature.squeeze().exp().clamp(COLDEST, WARMEST)

    def read(
        self, inputs: dict[str, Tensor], edit: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Read model inputs in one forward pass -> (B, D) unit; `edit` as in `Backbone.forward`."""
        return self._embed(self.backbone(inputs, edit=edit), inputs["input_ids"])

    def _embed(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Read hidden states (B, T, H) at each row's one retrieval token, or before it -> (B, D) unit."""
        found = ids == self.backbone.ret_id
        assert (found.sum(dim=1) == 1).all(), "every row holds exactly one retrieval token"
        at = found.int().argmax(dim=1) - int(self.readout == "before_ret")
        return self._unit(hidden[torch.arange(len(ids), device=ids.device), at])

    def _unit(self, hidden: Tensor) -> Tensor:
        """Project states (B, H) in the type of the projection's own weights, the norm in float32 -> (B, D)."""
        if self.projection:
            hidden = self.project(hidden.to(self.project.weight.dtype))
        return functional.normalize(hidden.float(), dim=-1)

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.backbone.device) for name, value in inputs.items()}

    @classmethod
    def resume(
        cls, folder: str | Path, facts: dict, trainable: bool, settings: dict, **options
    ) -> Self:
        """Build a saved head again, on the CPU; `settings` replace its own, `options` go to `load_backbone`.

        With another `target_encoder` among the settings, the projection leads elsewhere, so it starts anew.
        """
        folder, base = Path(folder), facts["backbone"]
        frozen = facts.get("frozen", False)  # folders from before there were frozen ones lack it
        backbone = load_backbone(folder if base == "." else base, frozen=frozen, **options)
        if base != "." and not frozen:
            backbone.load_adapter(folder, trainable)
        own = facts["settings"]
        anew = settings.get("target_encoder") not in (None, own.get("target_encoder"))
        with loading(f"{folder / SETTINGS_FILE}: no such head can be built"):
            head = cls(backbone, base, **own | ({"projection": None} if anew else {}) | settings)
        head.check(facts, folder)
        load_head_weights(head, folder, without=("project.",) if anew else ())
        return head

    def check(self, facts: dict, folder: Path) -> None:
        """Encode a picture's inputs once, so that damaged processor files show now and not at the first query."""
        encoder = ChatEncoder(self.backbone.processor, self.backbone.ret_id)
        with loading(f"{folder}: the image processor cannot be used"):
            encoder.target([Image.new("RGB", (56, 56))])
        if self.dim != facts["dim"] and self.projection == facts["settings"].get("projection"):
            raise InputError(
                f"{folder / SETTINGS_FILE}: dim is {facts['dim']}, the head's is {self.dim}"
            )

    @classmethod
    def load(cls, folder: str | Path, facts: dict, device: str | None = None, **options) -> Self:
        """Load a saved folder to use it; `options` (dtype, attn, quantization, pixels) go to `load_backbone`."""
        place = pick_device(device)  # before weights are read
        head = cls.resume(folder, facts, trainable=False, settings={}, **options)
        return head.to(place).eval()
