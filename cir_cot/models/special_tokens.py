"""Name the special tokens of a Qwen-VL's tokenizer, add the retrieval token, and look up ids.

Qwen pads its embedding matrix beyond its tokenizer. The retrieval token takes one of these spare rows: no matrix is
resized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.prompts import RET

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .architectures import QwenVL


def named_tokenizer(
    tokenizer: Tokenizer, chat_template: str
) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer whose special tokens have the names by which Qwen's processors look for them."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )


def token_id(tokenizer: transformers.PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of one token."""
    return cast(int, tokenizer.convert_tokens_to_ids(token))  # a list only for a list of tokens


@torch.no_grad()
def add_token(model: QwenVL, tokenizer: transformers.PreTrainedTokenizerFast) -> int:
    """Add the retrieval token as a special token on the next spare row -> its id.

    A token that is there already is kept. A new row starts as the mean of the tokenizer's rows, so that the token is
    neither likely nor unlikely before training. The matrices are resized, to a multiple of 64, only where no row is
    spare.
    """
    # A checkpoint that this library saved has the token.
    added = tokenizer.get_added_vocab()
    if RET in added:
        return added[RET]
    # The next id is that of the first row beyond the tokenizer.
    count = len(tokenizer)
    tokenizer.add_tokens([RET], special_tokens=True)
    ret_id = token_id(tokenizer, RET)
    if ret_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(ret_id + 1, pad_to_multiple_of=64, mean_resizing=False)
    # Tied matrices get the same row twice.
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        # A model on the meta device has shapes only.
        if not layer.weight.is_meta:
            layer.weight[ret_id] = layer.weight[:count].float().mean(dim=0).to(layer.weight.dtype)
    return ret_id
