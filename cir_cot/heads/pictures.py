"""Base of the heads that encode candidate pictures with a Qwen-VL."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from cir_cot.inputs import Picture

from .parts import encode_pictures, rows_at_once
from .qwen import QwenHead
from .targets import Prepared, TargetPreparer


class PictureHead(QwenHead):
    """Encode candidate pictures with the backbone; their model inputs may be made in other threads."""

    def target_preparer(self) -> TargetPreparer:
        """Return what makes the inputs of `encode_prepared` from pictures; it can be copied for another thread."""
        return TargetPreparer(
            self.target_inputs(), self.backbone.processor, self.token_budget, self.batch_size
        )

    @torch.no_grad()
    def encode_prepared(self, prepared: Prepared) -> Tensor:
        """Encode the pictures that `target_preparer` has prepared -> (N, D), float32 and unit, on the CPU."""
        vectors = torch.zeros(sum(len(rows) for rows, _ in prepared), self.dim)
        for rows, inputs in prepared:
            vectors[rows] = self.embed_targets(self._to_device(inputs)).cpu()
        return vectors

    def encode_target(
        self,
        images: Picture | Sequence[Picture],
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Encode N candidate images, or one: pictures or their files -> (N, D).

        Args:
            images: only those of four batches are open at a time.
            batch_size: rows of a batch; default: the head's.
            show_progress: show a bar.
        """
        with rows_at_once(self, batch_size) as size:
            prepare = self.target_preparer()
            return encode_pictures(
                lambda part: self.encode_prepared(prepare(part)),
                images,
                size,
                self.dim,
                show_progress,
            )

    @abstractmethod
    def target_inputs(self) -> Callable[[Sequence[Image.Image]], dict[str, Tensor]]:
        """Return what makes model inputs of candidate pictures; it holds the processor, never the model."""

    @abstractmethod
    def embed_targets(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed the model inputs of candidate pictures -> (B, D) unit."""
