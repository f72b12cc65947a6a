"""Training steps of Qwen2.5-VL-3B and -7B at full size on a GPU: tokens a second, share of the peak, memory by batch.

The models are built from the published configurations with random weights: speed and memory do not depend on what a
model knows. bfloat16, LoRA, chain and retrieval together, gradient caching. The peak is that of a large bfloat16
matrix product measured in the same run; operations are counted as 2 N a token forward, 4 N forward and backward of a
frozen base with adapters, 6 N with recomputed activations. Without a GPU, --layers makes a model that a CPU can run:
that shows that the script works, and nothing about speed.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cir_cot import _torchvision  # noqa: F401  # isort: skip
import transformers

from cir_cot.backbone import Backbone, load_backbone
from cir_cot.cli import run
from cir_cot.gradcache import parts_of, row_tokens
from cir_cot.heads.cot import CotRetriever
from cir_cot.measure import write_ratios
from cir_cot.meter import peak_memory_mb
from cir_cot.noise import NoisePairs
from cir_cot.published import SIZES, published_config, published_entries
from cir_cot.recipe import CirArguments, device_name
from cir_cot.tiny import CHAT_TEMPLATE, tiny_processor
from cir_cot.trainer import CirTrainer


def build(size: str, layers: int | None, pixels: int, recompute: bool, device: torch.device) -> CotRetriever:
    """A head on a model of the published size, random weights made on the device."""
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = transformers.Qwen2_5_VLForConditionalGeneration(published_config(size, layers))
    torch.set_default_dtype(torch.float32)
    processor = tiny_processor("qwen2_5_vl", published_entries(CHAT_TEMPLATE), max_pixels=pixels**2)
    processor.tokenizer.pad_token = "<|0|>"
    backbone = load_backbone((model, processor), lora={"r": 16, "dropout": 0.1})
    backbone.checkpoint_activations(recompute)
    return CotRetriever(backbone, size)


def matmul_peak(device: torch.device, side: int) -> float:
    """Operations a second of a square bfloat16 matrix product, the best of ten."""
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def wait(device: torch.device) -> None:
    """Wait for the device to have done all its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def language_parameters(backbone: Backbone) -> int:
    """Weights that every token is multiplied with in the language model."""
    return sum(value.numel() for value in backbone.plain.model.language_model.layers.parameters())


def step(head: CotRetriever, rows: NoisePairs, tokens: int, steps: int, device: torch.device) -> dict:
    """Seconds and tokens of a training step, and the peak memory, for a batch of all rows."""
    with tempfile.TemporaryDirectory() as folder:
        args = CirArguments(output_dir=folder, per_device_train_batch_size=len(rows), chunk_tokens=tokens,
                            report_to="none", bf16=True, dataloader_pin_memory=False)  # fmt: skip
        trainer = CirTrainer(head, args, rows)
        (batch,) = trainer.get_train_dataloader()
        totals = trainer._get_num_items_in_batch([batch], args.device)
        read = sum(sum(row_tokens(part[side])) for part in parts_of(batch) for side in ("query", "target"))
        trainer.training_step(head, batch, totals)  # warm-up
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            head.zero_grad()
            trainer.training_step(head, batch, totals)
        wait(device)
        return {
            "seconds": (time.perf_counter() - started) / steps,
            "tokens": read,
            "peak_mib": peak_memory_mb(args.device),
            "chunked": read > tokens,
        }


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="fullsize.py", description="Training steps at full size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--chunk-tokens", type=int, default=16384)
    parser.add_argument("--pixels", type=int, default=308, help="side of a picture; 308 is 121 visual tokens")
    parser.add_argument("--words", type=int, default=150, help="words of a chain")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--layers", type=int, help="of both towers, to run at reduced depth")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.layers is None:
        parser.error("no GPU here; --layers 1 shows that the script works")
    peak = matmul_peak(device, 8192 if device.type == "cuda" else 512)
    head = build(args.size, args.layers, args.pixels, args.recompute, device)
    weights, ours = language_parameters(head.backbone), {"matmul_tflops": peak / 1e12}
    for pairs in args.batches:
        found = step(head, NoisePairs(pairs, args.pixels, args.words), args.chunk_tokens, args.steps, device)
        each = (6 if args.recompute else 4) + (2 if found["chunked"] else 0)  # operations by weight and token
        speed = found["tokens"] / found["seconds"]
        ours |= {f"tokens_per_second_{pairs}": speed, f"peak_mib_{pairs}": found["peak_mib"]}
        ours |= {f"fraction_of_peak_{pairs}": each * weights * speed / peak}
    settings = {key: value for key, value in vars(args).items() if key != "json"} | {"device": device_name(device)}
    print(write_ratios(args.json, "fullsize", ours, {}, {}, settings=settings))


if __name__ == "__main__":
    run(main)
