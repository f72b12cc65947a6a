"""Measure a vision tower's attention by window length beside transformers' loop over windows under sdpa.

A tower of random weights with Qwen2.5-VL's windows, its widths and depth as given, encodes pictures of eight
photographs' sizes both ways. Counted are the calls of scaled_dot_product_attention; times are taken in turns. The
features must agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch.nn import functional

from cir_cot import compat  # noqa: F401  # isort: skip
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from cir_cot.cli import run
from cir_cot.models.resizing import smart_size
from cir_cot.models.vision_attention import BY_LENGTH, use_attention_by_length
from cir_cot.profiling.counters import write_ratios
from cir_cot.profiling.synthetic import PHOTOGRAPHS

TOLERANCE = 1e-5  # of float32 features, relative to the largest
PATCH = 14
MERGE = 2


def make_tower(hidden: int, depth: int) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Return a tower with Qwen2.5-VL's windows, in eval mode; every fourth layer attends to whole pictures."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=depth,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_heads=4,
        out_hidden_size=hidden,
        fullatt_block_indexes=list(range(3, depth, 4)),
    )
    config._attn_implementation = "sdpa"
    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def make_pictures(count: int, max_pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches (P, C) of noise and the grids (N, 3) of photographs' sizes within `max_pixels`."""
    grids = []
    for number in range(count):
        width, height = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
        height, width = smart_size(height, width, PATCH * MERGE, 56 * 56, max_pixels)
        grids.append([1, height // PATCH, width // PATCH])
    grid = torch.tensor(grids)
    channels = 3 * 2 * PATCH**2
    generator = torch.Generator().manual_seed(1)
    return torch.randn(int(grid.prod(dim=1).sum()), channels, generator=generator), grid


def counted(encode: Callable[[], torch.Tensor]) -> tuple[int, float, torch.Tensor]:
    """Return the calls of attention, the seconds and the features of one encoding."""
    attend = functional.scaled_dot_product_attention
    calls = 0

    def count(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return attend(*args, **options)

    with mock.patch.object(functional, "scaled_dot_product_attention", count), torch.no_grad():
        started = time.perf_counter()
        features = encode()
        return calls, time.perf_counter() - started, features


def measure(args: argparse.Namespace) -> dict:
    """Encode both ways in turns -> calls and median seconds of each."""
    tower = make_tower(args.hidden, args.depth)
    patches, grid = make_pictures(args.pictures, args.max_pixels)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    calls = {}
    features = {}
    # A stand-in for the model that a tower belongs to.
    owner = mock.Mock()
    owner.model.visual = tower
    for _ in range(args.repeats):
        for way in seconds:
            if way == "ours":
                use_attention_by_length(owner)
                assert tower.config._attn_implementation == BY_LENGTH
            else:
                tower.config._attn_implementation = "sdpa"
            calls[way], spent, features[way] = counted(
                lambda: tower(patches, grid_thw=grid).pooler_output
            )
            seconds[way].append(spent)
    difference = (features["ours"] - features["peer"]).abs().max() / features["peer"].abs().max()
    assert difference < TOLERANCE, f"the features differ by {difference}"
    return {
        way: {"calls": calls[way], "seconds": statistics.median(seconds[way])} for way in seconds
    }


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--pictures", type=int, default=8, help="pictures of a batch (default 8)")
    add("--max-pixels", type=int, default=147_456, help="of a picture (default 147456)")
    add("--hidden", type=int, default=64, help="width of the tower (default 64; Qwen's is 1280)")
    add("--depth", type=int, default=8, help="layers of the tower (default 8; Qwen's is 32)")
    add("--repeats", type=int, default=3, help="interleaved timings (default 3)")
    add("--json", metavar="FILE", help="write the result here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measure(args)
    names = {"calls": "calls", "time": "seconds"}
    ratio = {key: found["peer"][name] / found["ours"][name] for key, name in names.items()}
    setting = vars(args)
    path = setting.pop("json")
    print(write_ratios(path, "tower", found["ours"], found["peer"], ratio, setting=setting))
    return 0


if __name__ == "__main__":
    run(main)
