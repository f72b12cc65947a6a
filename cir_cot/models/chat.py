"""From rows to batches: pictures and words become the tensors a Qwen-VL model takes.

The chat template is rendered once with a stand-in for the user's text and tokenised in pieces. Only the template's own
pieces may hold special tokens; text from users, captions and chains is always tokenised as plain text, so no user can
write an image, an end of turn or a retrieval token into a prompt.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from .fashioniq import training_caption
from .features import Vectors
from .images import ImageStore
from .loading import loading
from .prompts import QUERY, TARGET, cot_to_text, query_prompt
from .records import InputError, Record

IGNORE = -100
_STAND_IN = "\u2063TEXT\u2063"  # invisible separators: in no template, and dropped before tokenising


@dataclass(frozen=True)
class Row:
    """One training row; `draw` is a random number drawn with it, the source of every random choice made about it.

    A picture that has been encoded before is its vector (D,).
    """

    record: Record
    reference: Image.Image | Tensor
    target: Image.Image | Tensor
    draw: int


class CirDataset(torch.utils.data.Dataset):
    """Rows of a benchmark's records; indexed by (index, draw) pairs, as CirTrainer's sampler yields them.

    `captions` are FashionIQ's two of each record (None where there are none): the text is then drawn from them anew
    for each row, as CLIP4Cir does in training. `images` loads references and, unless `targets` does, targets; either
    may be vectors of pictures in place of pictures.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: ImageStore | Vectors,
        captions: Sequence[tuple[str, str] | None] | None = None,
        targets: Vectors | None = None,
    ):
        self.records, self.images, self.captions = records, images, captions
        self.targets = images if targets is None else targets

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> Row:
        index, draw = item
        record = self.records[index]
        if not record.targets:
            raise InputError(f"record {record.id!r} has no target; training needs one, so leave test splits out")
        if self.captions and self.captions[index]:
            record = replace(record, text=training_caption(self.captions[index], random.Random(draw).random()))
        return Row(record, self.images.load(record.reference), self.targets.load(record.targets[0]), draw)


class ChatEncoder:
    """Encodes one picture and a prompt a row, followed by a given answer, as a padded batch of model inputs.

    `slots` tokens are reserved between picture and prompt, for a head to fill; they have the padding's id, are attended
    to, and take text positions.
    """

    def __init__(self, processor, ret_id: int, side: str = "right", slots: int = 0):
        self.processor, self.ret_id, self.side, self.slots = processor, ret_id, side, slots
        self.tokenizer = processor.tokenizer
        self.image_token = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        content = [{"type": "image"}, {"type": "text", "text": _STAND_IN}]
        with loading("the checkpoint's chat template cannot be used"):
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        if text.count(_STAND_IN) != 1:
            raise InputError("the checkpoint's chat template does not show the user's text exactly once; use another")
        with loading("the checkpoint's tokenizer cannot be used"):
            self.opening, self.closing = (self._template_ids(part) for part in text.split(_STAND_IN))
        if self.opening.count(self.image_token) != 1 or self.image_token in self.closing:
            raise InputError("the checkpoint's chat template does not place one image token before the user's text")
        if slots and self.tokenizer.pad_token_id in (*self.opening, *self.closing):
            raise InputError(
                "the checkpoint's chat template writes the padding token, which marks reserved places here"
            )

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as plain text: whatever looks like a special token in them is split into ordinary ones."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def answer_ids(self, texts: Sequence[str]) -> list[list[int]]:
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
        return inputs | {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}, labels

    def tokenise(
        self, visual: Sequence[int], prompts: Sequence[str], answers: Sequence[list[int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return ids, mask and token types (B, T) of rows with `visual` tokens a picture, and labels (B, T)."""
        rows = []
        supervised = []
        at = self.opening.index(self.image_token)
        for count, prompt, answer in zip(visual, self.plain_ids(prompts), answers, strict=True):
            opening = self.opening[:at] + [self.image_token] * count + self.opening[at + 1 :]
            reserved = [self.tokenizer.pad_token_id] * self.slots
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
        return torch.tensor([row + pad if self.side == "right" else pad + row for row, pad in pairs])

    def query(
        self, images, texts: Sequence[str], answers: Sequence[list[int]], prompt: str = QUERY
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode references and modification texts with the query prompt; see `__call__`."""
        return self(images, [query_prompt(text, prompt) for text in texts], answers)

    def target(self, images) -> dict[str, Tensor]:
        """Encode candidate pictures with the fixed target prompt and the retrieval token, never a chain."""
        return self(images, [TARGET] * len(images), [[self.ret_id]] * len(images))[0]


class ChainCollator:
    """list[Row] -> {"query": inputs, "target": inputs, "labels": (B, T), "ids": (B,)} for the chain retriever.

    With probability `chain_dropout`, decided by the row's own `draw`, a row has no chain: the retrieval token follows
    the prompt at once and nothing is supervised, because a token that the fast reading forces teaches no words.
    `targets` encodes target pictures, by default as prompts of the same model; targets that are vectors stay vectors.
    """

    def __init__(self, encoder: ChatEncoder, chain_dropout: float = 0.0, targets: Callable | None = None):
        self.encoder, self.chain_dropout, self.targets = encoder, chain_dropout, targets or encoder.target

    def __call__(self, rows: Sequence[Row]) -> dict:
        dropped = [random.Random(row.draw).random() < self.chain_dropout for row in rows]
        chains = [None if drop else row.record.cot for row, drop in zip(rows, dropped, strict=True)]
        written = iter(self.encoder.answer_ids([cot_to_text(chain) for chain in chains if chain]))
        answers = [next(written) if chain else [self.encoder.ret_id] for chain in chains]
        query, labels = self.encoder.query([r.reference for r in rows], [r.record.text for r in rows], answers)
        labels[torch.tensor([chain is None for chain in chains])] = IGNORE
        targets = [row.target for row in rows]
        return {
            "query": query,
            "target": {"vectors": torch.stack(targets)} if torch.is_tensor(targets[0]) else self.targets(targets),
            "labels": labels,
            "ids": torch.tensor([image_number(row.record.targets[0]) for row in rows]),
        }


def image_number(image: str) -> int:
    """Return a 63-bit number that stands for an image id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big") >> 1
