"""Edit the input embeddings of a language model during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def edited_input_embeddings(
    language_model: nn.Module, edit: Callable[[Tensor], Tensor] | None
) -> Iterator[None]:
    """Within it, `language_model` reads edit(embeddings) in place of its input embeddings (B, T, H).

    The edit happens where the visual tokens are in place already, so that pictures are encoded once. None leaves them.
    """
    if edit is None:
        yield
        return

    def replace(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {"inputs_embeds": edit(kwargs["inputs_embeds"])}

    # The hook runs in this context only, also if the forward pass fails.
    handle = language_model.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
