"""Make model inputs of candidate pictures, in batches of like size, in any thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import transformers
from PIL import Image
from torch import Tensor

PROMPT_TOKENS = 64

Prepared = list[
    tuple[list[int], dict[str, Tensor]]
]  # numbers of the rows of a batch, its model inputs


@dataclass
class TargetPreparer:
    """Make the model inputs of candidate pictures; it holds the processor, never the model.

    A tokenizer cannot be used by two threads at once: each takes a copy of its own.
    """

    inputs: Callable[[Sequence[Image.Image]], dict[str, Tensor]]
    processor: transformers.ProcessorMixin
    token_budget: int
    batch_size: int

    def __call__(self, images: Sequence[Image.Image]) -> Prepared:
        """Return the batches of N pictures, each with the numbers of its rows."""
        prepared = []
        for rows in group_by_size(self.processor, images, (), self.token_budget, self.batch_size):
            prepared.append((rows, self.inputs([images[row] for row in rows])))
        return prepared


def group_by_size(
    processor: transformers.ProcessorMixin,
    images: Sequence[Image.Image],
    texts: Sequence[Sequence[str]],
    token_budget: int,
    batch_size: int,
) -> list[list[int]]:
    """Group rows of similar length; see `QwenHead.batches_by_size`."""
    image_processor = processor.image_processor
    tokens = []
    for image in images:
        patches = image_processor.get_number_of_image_patches(image.height, image.width)
        tokens.append(patches // image_processor.merge_size**2 + PROMPT_TOKENS)
    for part in texts:
        for row, text in enumerate(part):
            tokens[row] += len(processor.tokenizer.tokenize(text, split_special_tokens=True))
    # Longest first: the first row of a batch is as long as the batch is padded to.
    batches: list[list[int]] = []
    for row in sorted(range(len(images)), key=lambda row: -tokens[row]):
        if batches:
            batch = batches[-1]
            padded = tokens[batch[0]] * (len(batch) + 1)
            if padded <= token_budget and len(batch) < batch_size:
                batch.append(row)
                continue
        batches.append([row])
    return batches
