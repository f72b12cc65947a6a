"""Measure the memory of the chain's cross-entropy at a vocabulary of 151,936, beside transformers and trl.

The sides run one batch through one tiny Qwen2.5-VL with Qwen's vocabulary, forward and backward: by the head's loss on
supervised tokens only, by transformers' own `labels=`, and, if trl is installed (extra `bench`), by the loss of its
SFTTrainer. Counted are the bytes alive at the peak that each side creates, gradients of parameters included.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cir_cot.cli import run
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.peak_bytes import peak_bytes
from cir_cot.profiling.counters import write_ratios
from cir_cot.profiling.synthetic import SyntheticPairs

VOCABULARY = 151_936


def build(rows: SyntheticPairs, pixels: int) -> CotRetriever:
    """Build a tiny head whose embedding matrix has Qwen's number of rows."""
    tokenizer = tiny_tokenizer(rows.corpus())
    model = tiny_model(
        "qwen2_5_vl", tokenizer, hidden=64, intermediate=128, layers=2, vision_depth=1
    )
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    processor = tiny_processor("qwen2_5_vl", tokenizer, max_pixels=pixels**2)
    # without the token's own row: trl reads a plain output matrix
    return CotRetriever(load_backbone((model, processor), lora={"r": 4}, train_token=False), "tiny")


def sides(head: CotRetriever, batch: dict) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the loss of each side: the mean cross-entropy of the supervised tokens, a scalar."""
    query = batch["query"]
    labels = batch["labels"]
    model = head.backbone.plain
    losses = {
        "ours": lambda: head(query, labels=labels).aux["lm"],
        "transformers": lambda: model(**query, labels=labels).loss,
    }
    if importlib.util.find_spec("trl") is not None:
        from trl.trainer.utils import add_fused_lm_head

        def fused() -> torch.Tensor:
            outputs = model(**query, labels=labels, fused_lm_head=True)
            # As in SFTTrainer.compute_loss.
            return -outputs.log_probs.sum() / outputs.label_mask.sum()

        add_fused_lm_head(model)
        losses["trl"] = fused
    return losses


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="loss_memory.py", description="Memory of the chain's loss", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--words", type=int, default=60, help="words of a chain")
    parser.add_argument(
        "--pixels", type=int, default=308, help="side of a picture; 308 is 121 visual tokens"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measure, print one table and write it as JSON."""
    args = parse(argv)
    # One batch for all sides.
    torch.manual_seed(0)
    rows = SyntheticPairs(args.rows, args.pixels, args.words)
    head = build(rows, args.pixels)
    batch = head.collator()([rows[index, 0] for index in range(args.rows)])
    peaks = {}
    losses = {}
    for name, loss in sides(head, batch).items():

        def step(name=name, loss=loss) -> None:
            value = loss()
            value.backward()
            losses[name] = value.item()

        peaks[name] = peak_bytes(step)
        head.zero_grad()
    # All sides compute the same loss.
    torch.testing.assert_close(
        torch.tensor(list(losses.values())), torch.full((len(losses),), losses["ours"])
    )
    tokens = {"tokens": batch["labels"].numel(), "supervised": int((batch["labels"] != -100).sum())}
    ratio = {"peak_memory": peaks["transformers"] / peaks["ours"]}
    if "trl" in peaks:
        ratio["peak_memory_trl"] = peaks["trl"] / peaks["ours"]
    ours = {"peak_bytes": peaks.pop("ours")}
    peer = {f"peak_bytes_{name}": value for name, value in peaks.items()}
    print(write_ratios(args.json, "loss_memory", ours, peer, ratio, loss=losses, settings=tokens))


if __name__ == "__main__":
    run(main)
