"""Heads on tiny models and what the contract asks of them, shared by several test files."""

import random
from functools import cache

import torch

from cir_cot.data import scene_files, scenes
from cir_cot.heads.base import TrainingRow
from cir_cot.heads.prompt_pool import PromptPoolRetriever
from cir_cot.models.backbone import load_backbone

LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


@cache
def scene_rows(count: int = 6) -> tuple[TrainingRow, ...]:
    records, gallery = scene_files.make_split(0, "train", references=3, edits=4)
    pictures = {
        image: scenes.render(scene, random.Random(image)) for image, scene in gallery.items()
    }
    return tuple(
        TrainingRow(r, pictures[r.reference], pictures[r.targets[0]], n)
        for n, r in enumerate(records[:count])
    )


def references():
    return [row.reference for row in scene_rows()], [row.record.text for row in scene_rows()]


def make_prompt_pool(tiny, lora=True, **settings):
    torch.manual_seed(0)
    backbone = load_backbone(tiny, lora=LORA if lora else None)
    sizes = {"pool": 6, "length": 2, "top": 2, "connector": 3}
    return PromptPoolRetriever(backbone, str(tiny), **(sizes | settings)).eval()


def difference(a, b):
    return (a - b).abs().max().item()


def train_a_step(head, rate=0.02):
    batch = head.collator()(scene_rows())
    head.train()
    out = head(batch["query"], batch["target"], batch.get("labels"))
    loss = (out.query * out.target.roll(1, 0)).sum() / out.temperature + sum(out.aux.values())
    trained = [p for p in head.parameters() if p.requires_grad]
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.data -= rate * gradient.sign()
    head.eval()
