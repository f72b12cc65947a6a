"""Attention by window length gives transformers' own features, for any mix of picture sizes, with fewer calls."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from cir_cot.models import vision_attention
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.models.vision_attention import BY_LENGTH, window_groups

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MIXED = [(112, 84), (84, 140), (56, 56), (196, 112), (84, 140)]
EQUAL = [(112, 112)] * 3


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    sizes = {"hidden": 32, "intermediate": 64, "layers": 2, "vision_depth": 3, "vision_hidden": 32}
    return write_tiny(folder, request.param, **sizes)


def pictures(sizes):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(256, size=(h, w, 3), dtype=np.uint8)) for w, h in sizes]


def features(backbone, sizes, attention, dtype=torch.float32):
    """Visual tokens of pictures, and their gradient at the patches."""
    tower = backbone.plain.model.visual.to(dtype)
    tower.config._attn_implementation = attention
    processor = backbone.processor.image_processor
    processor.size = dict(processor.size, longest_edge=10**6)
    found = processor(images=pictures(sizes), return_tensors="pt")
    patches = found["pixel_values"].to(dtype).requires_grad_()
    out = tower(patches, grid_thw=found["image_grid_thw"]).pooler_output
    out = torch.cat(tuple(out)) if isinstance(out, (tuple, list)) else out
    (gradient,) = torch.autograd.grad(out.float().square().sum(), patches)
    return out.detach().float(), gradient.float()


@pytest.mark.parametrize("sizes", [MIXED, EQUAL, MIXED[:1]])
def test_features_and_gradients_are_those_of_one_call_a_window(base, sizes):
    backbone = load_backbone(base)
    assert backbone.plain.model.visual.config._attn_implementation == BY_LENGTH
    ours = features(backbone, sizes, BY_LENGTH)
    theirs = features(backbone, sizes, "sdpa")
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max().clamp(min=1)


def test_features_in_bfloat16_differ_by_rounding(base):
    backbone = load_backbone(base)
    ours, _ = features(backbone, MIXED, BY_LENGTH, torch.bfloat16)
    theirs, _ = features(backbone, MIXED, "sdpa", torch.bfloat16)
    assert functional.cosine_similarity(ours, theirs, dim=1).min() > 1 - 1e-3


def test_windows_of_one_length_are_one_call(base, monkeypatch):
    calls = {}
    attend = functional.scaled_dot_product_attention
    backbone = load_backbone(base)
    for attention in (BY_LENGTH, "sdpa"):
        counted = []

        def count(*args, counted=counted, **options):
            counted.append(args[0].shape)
            return attend(*args, **options)

        monkeypatch.setattr(vision_attention.functional, "scaled_dot_product_attention", count)
        features(backbone, EQUAL, attention)
        calls[attention] = len(counted)
    assert calls[BY_LENGTH] == 3  # layers
    assert calls["sdpa"] >= 3 * len(EQUAL)


def test_groups_hold_every_patch_once():
    boundaries = torch.tensor([0, 4, 6, 10, 12, 15])
    groups, inverse = window_groups(boundaries)
    assert [tuple(rows.shape) for rows in groups] == [(2, 4), (2, 2), (1, 3)]
    order = torch.cat([rows.flatten() for rows in groups])
    assert order[inverse].tolist() == list(range(15))
    assert window_groups(boundaries)[0] is groups


def test_a_saved_model_names_no_attention(base, tmp_path):
    backbone = load_backbone(base)
    backbone.save(tmp_path)
    assert BY_LENGTH not in (tmp_path / "config.json").read_text()
    again = load_backbone(tmp_path, attn="eager")
    assert again.plain.model.visual.config._attn_implementation == "eager"
