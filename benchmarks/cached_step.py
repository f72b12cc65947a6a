"""Measure a contrastive step with gradient caching: operations and memory beside a plain step and a peer's.

All sides train one tiny Qwen2.5-VL with a frozen vision tower and LoRA on one batch of pairs, with InfoNCE alone, so
that they compute the same loss. The sides: everything at once (the least operations), our cached step, the same with a
warm cache of vision features, and sentence-transformers' CachedMultipleNegativesRankingLoss around the same head (extra
`bench`). Its mini batches are rows of one side, our chunks are rows of both: a chunk gets as many tokens as the peer's
largest mini batch, and no more. --batches also measures peak memory over batch sizes, and --plot draws it.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from cir_cot.cli import run
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.peak_bytes import peak_bytes
from cir_cot.profiling.counters import flops, seconds, write_ratios
from cir_cot.profiling.synthetic import SyntheticPairs
from cir_cot.training.arguments import CirArguments
from cir_cot.training.trainer import CirTrainer

TEMPERATURE = 0.05


def build(rows: SyntheticPairs, pixels: int) -> CotRetriever:
    """Build a tiny head whose vision tower takes about a third of a plain step, as that of a 2B model does."""
    tokenizer = tiny_tokenizer(rows.corpus())
    sizes = {
        "hidden": 128,
        "layers": 4,
        "vision_hidden": 128,
        "vision_depth": 6,
        "vision_intermediate": 384,
    }
    model = tiny_model("qwen2_5_vl", tokenizer, **sizes)
    # Eager attention's products are counted everywhere, those of a fused kernel are not.
    model.set_attn_implementation("eager")
    processor = tiny_processor("qwen2_5_vl", tokenizer, max_pixels=pixels**2)
    backbone = load_backbone((model, processor), lora={"r": 8, "dropout": 0.0})
    return CotRetriever(backbone, "tiny", temperature=TEMPERATURE)


def our_step(
    head: CotRetriever, rows: SyntheticPairs, folder: Path, **arguments
) -> Callable[[], torch.Tensor]:
    """Return one training step of CirTrainer on all rows, which leaves its gradients in the head."""
    args = CirArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        lm_weight=0.0,
        report_to="none",
        **arguments,
    )
    trainer = CirTrainer(head, args, rows)
    (batch,) = trainer.get_train_dataloader()
    totals = trainer._get_num_items_in_batch([batch], args.device)
    return lambda: trainer.training_step(head, batch, totals)


class Embedder(nn.Module):
    """Present a head as a module of sentence-transformers."""

    def __init__(self, head: CotRetriever):
        super().__init__()
        self.head = head

    def forward(self, features: dict) -> dict:
        """Embed model inputs."""
        return {"sentence_embedding": self.head(features).query}


def peer_step(head: CotRetriever, rows: SyntheticPairs, chunk: int) -> Callable[[], torch.Tensor]:
    """Return one step of CachedMultipleNegativesRankingLoss on the same rows."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(modules=[Embedder(head)], device="cpu")
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=chunk)
    batch = head.collator()([rows[index, 0] for index in range(len(rows))])

    def step() -> torch.Tensor:
        model.train()
        value = loss([dict(batch["query"]), dict(batch["target"])], None)
        value.backward()
        return value.detach()

    return step


def measured(head: CotRetriever, step: Callable[[], torch.Tensor]) -> dict:
    """Run one step -> its operations, peak bytes, loss, and the norm of its gradient."""
    head.zero_grad()
    found = {}

    def one_step() -> None:
        found["loss"] = step().item()

    def counted() -> None:
        found["flops"] = flops(one_step)

    found["peak_bytes"] = peak_bytes(counted)
    gradients = [value.grad.flatten() for value in head.parameters() if value.grad is not None]
    return found | {"gradient_norm": torch.cat(gradients).norm().item()}


def memory_over_batches(
    sizes: Sequence[int], pixels: int, tokens: int, plain_up_to: int
) -> dict[str, dict[int, int]]:
    """Measure the peak bytes of a step by batch size, with chunks, and for small batches without."""
    peaks: dict[str, dict[int, int]] = {"cached": {}, "plain": {}}
    for size in sizes:
        rows = SyntheticPairs(size, pixels, words=6)
        head = build(rows, pixels)
        with tempfile.TemporaryDirectory() as folder:
            peaks["cached"][size] = peak_bytes(
                our_step(head, rows, Path(folder), chunk_tokens=tokens)
            )
            if size <= plain_up_to:
                peaks["plain"][size] = peak_bytes(our_step(head, rows, Path(folder)))
    return peaks


def draw(peaks: dict[str, dict[int, int]], path: Path) -> None:
    """Draw peak memory against batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for name, values in peaks.items():
        mebibytes = [value / 2**20 for value in values.values()]
        axes.plot(list(values), mebibytes, marker="o", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="pairs in a batch",
        ylabel="peak MiB of a step",
        ylim=(1, None),
    )
    axes.set_xticks(list(peaks["cached"]), [str(size) for size in peaks["cached"]])
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="cached_step.py", description="A cached step over a plain one", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument(
        "--pixels", type=int, default=196, help="side of a picture; 196 is 49 visual tokens"
    )
    parser.add_argument(
        "--chunk-rows", type=int, default=8, help="rows of a mini batch of the peer"
    )
    parser.add_argument("--timed", type=int, default=0, help="interleaved timings of every side")
    parser.add_argument(
        "--batches", type=int, nargs="*", default=(), help="batch sizes for peak memory"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw peak memory against batch size"
    )
    return parser.parse_args(argv)


def check_agreement(found: dict[str, dict]) -> None:
    """Check that all sides have computed the same loss and gradient."""
    plain = found["plain"]
    for name, facts in found.items():
        torch.testing.assert_close(facts["loss"], plain["loss"], rtol=1e-5, atol=1e-6, msg=name)
        norm = facts["gradient_norm"]
        torch.testing.assert_close(norm, plain["gradient_norm"], rtol=1e-4, atol=0, msg=name)


def ratios(found: dict[str, dict]) -> dict[str, float]:
    """Return the operations over those of a plain step, and the peer's operations and memory over ours."""
    plain = found["plain"]["flops"]
    cached = found["cached"]["flops"]
    warm = found["warm"]["flops"]
    ratio = {"flops_over_plain": cached / plain, "flops_warm_over_plain": warm / plain}
    # A warm cache saves the vision tower's pass.
    ratio["vision_share_of_plain"] = (cached - warm) / plain
    if peer := found.get("sentence_transformers"):
        ours = found["cached"]
        ratio["flops_vs_sentence_transformers"] = peer["flops"] / ours["flops"]
        ratio["memory_vs_sentence_transformers"] = peer["peak_bytes"] / ours["peak_bytes"]
    return ratio


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    args = parse(argv)
    # A chunk has as many tokens as the peer's largest mini batch.
    torch.manual_seed(0)
    rows = SyntheticPairs(args.pairs, args.pixels, words=24)
    head = build(rows, args.pixels)
    batch = head.collator()([rows[index, 0] for index in range(args.pairs)])
    tokens = args.chunk_rows * max(
        batch[side]["input_ids"].shape[1] for side in ("query", "target")
    )
    # Measure each side on the same head.
    with tempfile.TemporaryDirectory() as folder:
        features = str(Path(folder) / "features")
        steps = {
            "plain": our_step(head, rows, Path(folder)),
            "cached": our_step(head, rows, Path(folder), chunk_tokens=tokens),
            "warm": our_step(head, rows, Path(folder), chunk_tokens=tokens, vision_cache=features),
        }
        steps["warm"]()  # fills the cache
        if importlib.util.find_spec("sentence_transformers") is not None:
            steps["sentence_transformers"] = peer_step(head, rows, args.chunk_rows)
        found = {name: measured(head, step) for name, step in steps.items()}
        times = seconds(steps, args.timed, head.zero_grad) if args.timed else {}
    check_agreement(found)
    # Report our sides, the peer's, and their ratios.
    ours = {
        f"{key}_{name}": found[name][key]
        for name in ("plain", "cached", "warm")
        for key in found[name]
    }
    peer = found.get(
        "sentence_transformers", {"missing": "sentence-transformers: pip install 'cir-cot[bench]'"}
    )
    settings = {
        "pairs": args.pairs,
        "pixels": args.pixels,
        "chunk_rows": args.chunk_rows,
        "chunk_tokens": tokens,
    }
    more = {"settings": settings, "seconds": times}
    if args.batches:
        peaks = memory_over_batches(args.batches, args.pixels, tokens, plain_up_to=128)
        more["peak_bytes_by_batch"] = peaks
        if args.plot:
            draw(peaks, args.plot)
    print(write_ratios(args.json, "cached_step", ours, peer, ratios(found), **more))


if __name__ == "__main__":
    run(main)
