"""What a query's vector is made of: the share of picture, text and each part of the chain at the readout.

The gradient of the similarity to a target with respect to each input embedding, times the embedding (gradient x input,
Shrikumar et al. 2017, arXiv 1704.02685); a part's share is the sum of the absolute values over its tokens.
"""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from cir_cot.prompts import PARTS, cot_to_text
from cir_cot.records import Cot

from .cot import CotRetriever
from .grammar import Grammar


def shares(
    head: CotRetriever, image: Image, text: str, chain: Cot, target: Tensor
) -> dict[str, float]:
    """Return the shares of "picture", "text" (with the template), and each part of the chain; they sum to 1.

    Args:
        head: the retriever.
        image: the reference picture.
        text: the modification.
        chain: the chain that is read.
        target: unit vector (D,) whose similarity is explained.
    """
    encoder = head.encoder()
    answer = encoder.answer_token_ids([cot_to_text(chain)])[0]
    inputs, _ = encoder.query([image], [text], [answer])
    inputs = {name: value.to(head.backbone.device) for name, value in inputs.items()}
    leaves: list[Tensor] = []

    def leaf(embeddings: Tensor) -> Tensor:
        leaves.append(embeddings.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad():
        vector = head.read(inputs, edit=leaf)[0]
        similarity = vector @ target.to(vector.device)
        (gradient,) = torch.autograd.grad(similarity, leaves[0])
    weights = (gradient * leaves[0]).sum(dim=-1).abs()[0].float().cpu()  # (T,)
    # The answer comes last; before it the picture's tokens and the text.
    ids = inputs["input_ids"][0].cpu()
    start = len(ids) - len(answer)
    picture = ids == head.backbone.image_token_id
    found = {"picture": weights[picture].sum().item()}
    before = ~picture
    before[start:] = False
    found["text"] = weights[before].sum().item()
    found |= dict.fromkeys(PARTS, 0.0)
    for weight, part in zip(weights[start:].tolist(), _parts_of(head, answer), strict=True):
        found[part] += weight
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def _parts_of(head: CotRetriever, answer: Sequence[int]) -> list[str]:
    """Return the part that each token of a chain belongs to; tags to theirs, the retrieval token to the last."""
    grammar = Grammar(head.encoder(), PARTS, 1)
    names = []
    for stop in range(1, len(answer)):
        section = grammar.row(answer[:stop]).state.section
        names.append(PARTS[min(section, len(PARTS) - 1)])
    return [*names, PARTS[-1]]
