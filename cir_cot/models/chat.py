"""From rows to batches: pictures and words become the tensors a Qwen-VL model takes.

The chat template is rendered once with a stand-in for the user's text and tokenised in pieces. Only the template's own
pieces may hold special tokens; text from users, captions and chains is always tokenised as plain text, so no user can
write an image, an end of turn or a retrieval token into a prompt.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.prompts import QUERY, TARGET, query_prompt

from .loading import loading

IGNORE = -100
_STAND_IN = (
    "\u2063TEXT\u2063"  # invisible separators: in no template, and dropped before tokenising
)


class ChatEncoder:
    """Encodes one picture and a prompt a row, followed by a given answer, as a padded batch of model inputs.

    `reserved_tokens` tokens are reserved between picture and prompt, for a head to fill; they have the padding's id, are attended
    to, and take text positions.
    """

    def __init__(self, processor, ret_id: int, side: str = "right", reserved_tokens: int = 0):
        self.processor, self.ret_id, self.side, self.reserved_tokens = (
            processor,
            ret_id,
            side,
            reserved_tokens,
        )
        self.tokenizer = processor.tokenizer
        self.image_token = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        content = [{"type": "image"}, {"type": "text", "text": _STAND_IN}]
        with loading("the checkpoint's chat template cannot be used"):
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        if text.count(_STAND_IN) != 1:
            raise InputError(
                "the checkpoint's chat template does not show the user's text exactly once; use another"
            )
        with loading("the checkpoint's tokenizer cannot be used"):
            self.opening, self.closing = (
                self._template_ids(part) for part in text.split(_STAND_IN)
            )
        if self.opening.count(self.image_token) != 1 or self.image_token in self.closing:
            raise InputError(
                "the checkpoint's chat template does not place one image token before the user's text"
            )
        if reserved_tokens and self.tokenizer.pad_token_id in (*self.opening, *self.closing):
            raise InputError(
                "the checkpoint's chat template writes the padding token, which marks reserved places here"
            )

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as plain text: whatever looks like a special token in them is split into ordinary ones."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def answer_token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise answers as plain text and close each with the retrieval token."""
        return [[*ids, self.ret_id] for ids in self.plain_ids(texts)] if texts else []

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], answers: Sequence[list[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return model inputs of B rows, padded to (B, T), and labels (B, T): -100 everywhere but at the answers."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")
        merge = self.processor.image_processor.merge_size**2
        visual = (pixels["image_grid_thw"].prod(dim=1) // merge).tolist()
        inputs, labels = self.tokenise(visual, prompts, answers)
        return inputs | {
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }, labels

    def tokenise(
        self, visual: Sequence[int], prompts: Sequence[str], answers: Sequence[list[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return ids, mask and token types (B, T) of rows with `visual` tokens a picture, and labels (B, T)."""
        rows = []
        supervised = []
        at = self.opening.index(self.image_token)
        for count, prompt, answer in zip(visual, self.plain_ids(prompts), answers, strict=True):
            opening = self.opening[:at] + [self.image_token] * count + self.opening[at + 1 :]
            reserved = [self.tokenizer.pad_token_id] * self.reserved_tokens
            row = [*opening, *reserved, *prompt, *self.closing, *answer]
            rows.append(row)
            supervised.append([IGNORE] * (len(row) - len(answer)) + list(answer))
        ids = self._pad(rows, self.tokenizer.pad_token_id)
        inputs = {
            "input_ids": ids,
            "attention_mask": self._pad([[1] * len(row) for row in rows], 0),
            "mm_token_type_ids": (ids == self.image_token).long(),
        }
        return inputs, self._pad(supervised, IGNORE)

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        longest = max(len(row) for row in rows)
        fill = [[value] * (longest - len(row)) for row in rows]
        pairs = zip(rows, fill, strict=True)
        return torch.tensor(
            [row + pad if self.side == "right" else pad + row for row, pad in pairs]
        )

    def query(
        self, images, texts: Sequence[str], answers: Sequence[list[int]], prompt: str = QUERY
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode references and modification texts with the query prompt; see `__call__`."""
        return self(images, [query_prompt(text, prompt) for text in texts], answers)

    def target(self, images) -> dict[str, Tensor]:
        """Encode candidate pictures with the fixed target prompt and the retrieval token, never a chain."""
        return self(images, [TARGET] * len(images), [[self.ret_id]] * len(images))[0]
