"""Compute the losses of the tiny base's lessons, and measure on held-out scenes what it has learned."""

import random

import torch
from torch import Tensor
from torch.nn import functional

from cir_cot.losses import batch_statistics, info_nce
from cir_cot.models.backbone import Backbone
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.tower import picture_features

from . import lessons
from .lesson_batches import ALIGN, Batch, Lesson, alignment_batch, language_batch
from .lessons import ATTRIBUTES, TASKS, Example

TEMPERATURE = 0.03  # of alignment


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Copy a batch's arrays to the device."""
    return {
        name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in batch.items()
    }


def lesson_loss(base: Backbone, lesson: Lesson, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a lesson's loss and the in-batch R@1 of alignment (else 0), scalars."""
    # Language: next-token prediction of the supervised tokens.
    if lesson.name != ALIGN:
        logits, wanted, _ = predict(base, batch)
        return functional.cross_entropy(logits.float(), wanted), torch.zeros(())
    # Alignment: InfoNCE in both directions.
    pictures = embed(base, batch, "")  # (B, H)
    texts = embed(base, batch, "text_")  # (B, H)
    rows = torch.arange(len(texts), device=texts.device)
    to_pictures = info_nce(texts, pictures, rows, TEMPERATURE)
    loss = to_pictures + info_nce(pictures, texts, rows, TEMPERATURE)
    return loss / 2, batch_statistics(texts, pictures, rows)["in_batch_r1"]


def hidden_states(base: Backbone, batch: dict[str, Tensor], side: str = "") -> Tensor:
    """Return the hidden states (B, T, H) of the last layer.

    Args:
        side: "" for the batch itself, "text_" for the descriptions of alignment.
    """
    # Embeddings of tokens, with the features of pictures in their places.
    model = base.plain.model
    ids = batch[f"{side}input_ids"]
    embedded = model.get_input_embeddings()(ids)  # (B, T, H)
    if not side and "pictures" in batch:
        features = picture_features(base, batch["pictures"]).to(embedded.dtype)  # (B * 9, H)
        embedded = embedded.masked_scatter((ids == base.image_token_id)[..., None], features)
    return model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch[f"{side}attention_mask"],
        position_ids=batch[f"{side}positions"],
        use_cache=False,
    ).last_hidden_state


def embed(base: Backbone, batch: dict[str, Tensor], side: str) -> Tensor:
    """Return the hidden state at each row's retrieval token as unit vectors (B, H)."""
    hidden = hidden_states(base, batch, side)
    at = (batch[f"{side}input_ids"] == base.ret_id).int().argmax(dim=1)
    rows = torch.arange(len(at), device=at.device)
    return functional.normalize(hidden[rows, at].float(), dim=-1)


def predict(base: Backbone, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the supervised tokens.

    Returns:
        Logits (S, V), the right ids (S,), and where in the rows they are (B, T - 1).
    """
    wanted = batch["labels"][:, 1:]
    at = wanted != IGNORE
    hidden = hidden_states(base, batch)[:, :-1]
    return base.logits(hidden[at]), wanted[at], at


@torch.no_grad()
def exact_rows(
    base: Backbone,
    drawn: list[Example],
    rng: random.Random,
    verdicts: bool = False,
    pictures: bool = True,
) -> float:
    """Return the share of examples whose every supervised token is predicted."""
    encoder = ChatEncoder(base.processor, base.ret_id)
    batch = language_batch(base, encoder, rng, drawn, verdicts, pictures)
    logits, wanted, at = predict(base, to_device(batch, base.device))
    # Places that are not supervised count as right.
    right = torch.ones_like(at)
    right[at] = logits.argmax(dim=-1) == wanted
    return right.all(dim=1).float().mean().item()


def exact_answers(base: Backbone, rows: int = 500) -> dict[str, float]:
    """Return for each task the percentage of held-out scenes whose every supervised token is predicted."""
    rates = {}
    for name, task in TASKS.items():
        rng = random.Random(name)
        drawn = [task(rng, True) for _ in range(rows)]
        rates[name] = round(100 * exact_rows(base, drawn, rng, name == "select"), 2)
    return rates


def exact_alone(
    base: Backbone,
    rng: random.Random,
    rows: int,
    most: int = 9,
    pictures: bool = True,
    test: bool = False,
) -> list[float]:
    """Return for selectors of a slot, size, colour or shape alone the share of scenes with all verdicts right."""
    rates = []
    for only in range(len(ATTRIBUTES)):
        weights = [float(at == only) for at in range(len(ATTRIBUTES))]
        drawn = [lessons.select(rng, test, weights, 0, most) for _ in range(rows)]
        rates.append(exact_rows(base, drawn, rng, True, pictures))
    return rates


@torch.no_grad()
def alignment_recall(base: Backbone, rows: int = 500, seed: int = 0) -> float:
    """Return R@1 (%) of held-out descriptions among as many pictures, many one edit apart."""
    # Draw and embed both sides.
    rng = random.Random(seed)
    drawn = lessons.draw_distinct_scenes(rng, rows, test=True)
    encoder = ChatEncoder(base.processor, base.ret_id)
    batch = to_device(alignment_batch(base, encoder, rng, drawn), base.device)
    texts = embed(base, batch, "text_")
    pictures = embed(base, batch, "")
    at = torch.arange(rows, device=texts.device)
    return round(100 * batch_statistics(texts, pictures, at)["in_batch_r1"].item(), 2)
