"""Turn pictures and prompts into padded batches of a Qwen-VL's inputs.

The chat template is rendered once, with a placeholder for the user's text, and tokenised in two pieces. Only these
pieces may hold special tokens. Text from users, captions and chains is always tokenised as plain text, so that nobody
can write an image, an end of turn or a retrieval token into a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.prompts import QUERY, TARGET, query_prompt

from .loading import loading
from .special_tokens import token_id

if TYPE_CHECKING:
    from .architectures import QwenProcessor

IGNORE = -100  # the label of a token without a loss, as torch's cross-entropy expects it
POSITIONS = "rope_positions"  # the input that holds M-RoPE positions (B, T, 3)
_STAND_IN = "\u2063TEXT\u2063"  # invisible separators occur in no template


class ChatEncoder:
    """Encode one picture, a prompt and a given answer a row as model inputs.

    Args:
        processor: Of the checkpoint: tokenizer, image processor and chat template.
        ret_id: Id of the retrieval token.
        side: Where rows are padded: "right" to encode, "left" to generate.
        reserved_tokens: Number of tokens between picture and prompt whose embeddings a head fills in. They have the
            padding token's id, are attended to, and take text positions.

    Example:
        encoder = ChatEncoder(backbone.processor, backbone.ret_id)
        inputs = encoder.target([picture])  # ends at the retrieval token
    """

    def __init__(
        self,
        processor: QwenProcessor,
        ret_id: int,
        side: str = "right",
        reserved_tokens: int = 0,
    ):
        self.processor = processor
        self.ret_id = ret_id
        self.side = side
        self.reserved_tokens = reserved_tokens
        self.tokenizer = processor.tokenizer
        self.image_token = token_id(self.tokenizer, processor.image_token)
        # Render the template around a placeholder and cut it there.
        text = self._rendered_template()
        with loading("the checkpoint's tokenizer cannot be used"):
            self.opening, self.closing = map(self._template_ids, text.split(_STAND_IN))
        # The picture comes before the user's text, once.
        if self.opening.count(self.image_token) != 1 or self.image_token in self.closing:
            raise InputError(
                "the checkpoint's chat template does not place one image token before the user's text; "
                "use a checkpoint whose template does"
            )
        # A reserved token is found by the padding's id, which must mean nothing else.
        if reserved_tokens and self.tokenizer.pad_token_id in (*self.opening, *self.closing):
            raise InputError(
                "the checkpoint's chat template contains the padding token, which marks reserved tokens here; "
                "use a checkpoint whose template does not"
            )

    def _rendered_template(self) -> str:
        """Return a user's turn with a picture and the placeholder, and the start of the answer."""
        content = [{"type": "image"}, {"type": "text", "text": _STAND_IN}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        with loading("the checkpoint's chat template cannot be used"):
            text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        if text.count(_STAND_IN) != 1:
            raise InputError(
                "the checkpoint's chat template does not show the user's text exactly once; use another"
            )
        return text

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as plain text: what looks like a special token is split into ordinary ones."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return encoded["input_ids"]

    def answer_token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise answers as plain text and end each with the retrieval token."""
        return [[*ids, self.ret_id] for ids in self.plain_ids(texts)] if texts else []

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], answers: Sequence[list[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode B rows of a picture, a prompt and the token ids of an answer.

        Returns:
            Model inputs, padded to (B, T), and labels (B, T): -100 everywhere but at the answers. Among the inputs are
            M-RoPE positions (B, T, 3), as the model would count them.
        """
        images_of = self.processor.image_processor
        pixels = images_of(images=list(images), return_tensors="pt")
        # Every merge x merge patches become one visual token.
        visual = (pixels["image_grid_thw"].prod(dim=1) // images_of.merge_size**2).tolist()  # (B,)
        inputs, labels = self.tokenise(visual, prompts, answers)
        # Positions are counted here, in a data loader's worker: on the device they take ten waits a row.
        sides = (pixels["image_grid_thw"][:, 1:] // images_of.merge_size).tolist()  # B pairs
        inputs[POSITIONS] = self._positions(inputs["attention_mask"], sides)  # (B, T, 3)
        inputs["pixel_values"] = pixels["pixel_values"]
        inputs["image_grid_thw"] = pixels["image_grid_thw"]
        return inputs, labels

    def tokenise(
        self, visual: Sequence[int], prompts: Sequence[str], answers: Sequence[list[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Tokenise B rows whose pictures take `visual` tokens each, without the pictures themselves.

        Returns:
            Ids, attention mask and token types (B, T), and labels (B, T).
        """
        rows = []
        supervised = []
        at = self.opening.index(self.image_token)
        reserved = [self.tokenizer.pad_token_id] * self.reserved_tokens
        for count, prompt, answer in zip(visual, self.plain_ids(prompts), answers, strict=True):
            # The template's one image token becomes one for each visual token.
            opening = self.opening[:at] + [self.image_token] * count + self.opening[at + 1 :]
            row = [*opening, *reserved, *prompt, *self.closing, *answer]
            rows.append(row)
            # Only the answer is learned.
            supervised.append([IGNORE] * (len(row) - len(answer)) + list(answer))
        ids = self._pad(rows, self.tokenizer.pad_token_id)  # (B, T)
        inputs = {
            "input_ids": ids,
            # The mask comes from the rows' lengths: reserved tokens have the padding's id.
            "attention_mask": self._pad([[1] * len(row) for row in rows], 0),
            "mm_token_type_ids": torch.eq(ids, self.image_token).long(),
        }
        return inputs, self._pad(supervised, IGNORE)

    def _positions(self, mask: Tensor, sides: Sequence[Sequence[int]]) -> Tensor:
        """Count the M-RoPE positions of rows with one picture of (height, width) visual tokens each.

        Text counts on in all three; a picture's tokens have its start plus 0, row and column; what follows starts after
        the largest of them (Qwen2-VL, arXiv 2409.12191).

        Returns:
            Positions (B, T, 3), 0 at padding.
        """
        before = self.opening.index(self.image_token)
        positions = torch.zeros(*mask.shape, 3, dtype=torch.long)
        for row, (height, width) in enumerate(sides):
            length = int(mask[row].sum())
            places = torch.arange(length)[:, None].repeat(1, 3)  # (t, 3)
            after = before + height * width
            # The picture: its rows and columns.
            grid = torch.cartesian_prod(torch.arange(height), torch.arange(width))  # (h * w, 2)
            places[before:after, 0] = before
            places[before:after, 1:] = before + grid
            # The text after it.
            places[after:] += max(height, width) - height * width
            start = 0 if self.side == "right" else mask.shape[1] - length
            positions[row, start : start + length] = places
        return positions

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        """Pad rows to the longest -> (B, T)."""
        longest = max(len(row) for row in rows)
        padded = []
        for row in rows:
            pad = [value] * (longest - len(row))
            padded.append(row + pad if self.side == "right" else pad + row)
        return torch.tensor(padded)

    def query(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        answers: Sequence[list[int]],
        prompt: str = QUERY,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode reference pictures and modification texts with the query prompt; see `__call__`."""
        return self(images, [query_prompt(text, prompt) for text in texts], answers)

    def target(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode candidate pictures with the target prompt and the retrieval token, never a chain."""
        return self(images, [TARGET] * len(images), [[self.ret_id]] * len(images))[0]
