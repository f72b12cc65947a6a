"""Turn an engine's hidden states into embeddings, and refuse states that are not the retriever's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.fingerprint import least_cosine
from cir_cot.heads.cot import CotRetriever


def embed_states(local: CotRetriever, states: Sequence[Tensor], engine: str) -> Tensor:
    """Project and normalise an engine's hidden states -> (K, D) unit, float32, on the CPU.

    Raises:
        InputError: a state has another width than the model, or holds NaN.
    """
    width = local.backbone.hidden_size
    for state in states:
        if len(state) != width or not state.isfinite().all():
            raise InputError(
                f"{engine} returned a hidden state of {len(state)} numbers, finite ones expected, where the model has "
                f"{width}; serve the export of this retriever"
            )
    hidden = torch.stack(list(states)).to(local.backbone.device)  # (K, H)
    return local.embed_states(hidden).cpu()


def check_states(vectors: Tensor, local: Tensor, depth: int, engine: str) -> None:
    """Compare embeddings (K, D) from an engine's states with the local ones of a model of `depth` blocks.

    Raises:
        InputError: they differ, as states from before the final norm, of another token or another model do.
    """
    cosine = (vectors * local).sum(dim=1).min().item()
    least = least_cosine(depth)
    if not cosine >= least:
        raise InputError(
            f"{engine}'s hidden states are not those of the retriever (cosine {cosine:.3f}, at least {least:.3f} "
            "expected): they may come from before the final norm, from another layer or token, or from another "
            "model; serve the export of this retriever and have it return the last layer's states after the final norm"
        )
