"""How different two encodings by one retriever may be: bounds by precision, depth and width."""

import numpy as np
import pytest
import torch

from cir_cot.errors import InputError
from cir_cot.fingerprint import ALIKE, check_fingerprint, fingerprint, least_cosine, rounding_error
from cir_cot.heads.cot import CotRetriever
from cir_cot.integrations.export import compare, embeddings, probes, tolerance_of
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import write_tiny


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A checkpoint as deep as Qwen2.5-VL-7B's language model, and narrow."""
    folder = tmp_path_factory.mktemp("deep") / "base"
    sizes = {"hidden": 64, "intermediate": 128, "layers": 28, "vision_depth": 1}
    return write_tiny(folder, vision_hidden=32, init_std=0.1, **sizes)


def head(base, dtype, seed=0):
    torch.manual_seed(seed)
    return CotRetriever(load_backbone(base, dtype=dtype), str(base), max_new_tokens=12).eval()


def test_bounds_grow_with_depth_and_with_coarser_numbers():
    assert least_cosine(1) == least_cosine(2) == ALIKE
    assert least_cosine(28, "float32") == least_cosine(28, "float16") == ALIKE
    assert 0.98 < least_cosine(28) < 0.99 < 0.998  # 0.998 was measured at 28 layers
    assert least_cosine(36) < least_cosine(28)
    assert rounding_error("bfloat16", 2) == pytest.approx(4 * 2**-8 * 2)
    assert tolerance_of("float32", 28, 3584) == tolerance_of("bfloat16", 2, 3584) * 0 + 1e-3
    assert tolerance_of("bfloat16", 28, 3584) > tolerance_of("bfloat16", 28, 8 * 3584) > 1e-3


def test_a_deep_model_in_bfloat16_is_the_same_retriever(deep):
    exact = head(deep, "float32")
    half = head(deep, "bfloat16")
    stored = fingerprint(half)
    cosine = (stored * fingerprint(exact)).sum(axis=1).min()
    assert cosine < 1 - 1e-5  # it does round
    check_fingerprint(stored, exact, "index")
    pictures = probes(None)
    bounds = tolerance_of("bfloat16", 28, 64), least_cosine(28, "bfloat16")
    assert compare(embeddings(exact, pictures), embeddings(half, pictures), *bounds)["passed"]


def test_another_deep_model_is_refused(deep, tmp_path):
    exact = head(deep, "float32")
    changed = head(deep, "float32")
    generator = torch.Generator().manual_seed(0)
    for parameter in changed.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.2 * parameter.data.std() * noise if parameter.numel() > 1 else 0
    with pytest.raises(InputError, match="encoded by another retriever"):
        check_fingerprint(fingerprint(changed), exact, "index")
    with pytest.raises(InputError, match="encoded by another retriever"):
        check_fingerprint(np.full((3, 64), np.nan), exact, "index")
    report = compare(
        embeddings(exact, probes(None)),
        embeddings(changed, probes(None)),
        tolerance_of("bfloat16", 28, 64),
        least_cosine(28),
    )
    assert not report["passed"]
