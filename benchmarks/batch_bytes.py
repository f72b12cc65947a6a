"""Count the bytes of a batch that are on the device at one time: chunks moved one by one, or everything at once.

Both sides put the same rows through the same collator. Counted are the bytes of the model's inputs, with padding.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch.utils._pytree import tree_leaves

from cir_cot.cli import run
from cir_cot.heads.chain_collator import ChainCollator
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.tiny_qwen import tiny_processor, tiny_tokenizer
from cir_cot.profiling.counters import write_ratios
from cir_cot.profiling.synthetic import SyntheticPairs
from cir_cot.prompts import RET
from cir_cot.training.chunks import split_into_chunks
from cir_cot.training.loading import LazyCollator, rows_per_part


def batch_bytes(batch: dict) -> int:
    """Return the bytes of all tensors of a batch."""
    return sum(leaf.nbytes for leaf in tree_leaves(batch))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(
        prog="batch_bytes.py", description="Bytes of a batch on the device", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=112, help="side of a picture")
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Count, print one table and write it as JSON."""
    args = parse(argv)
    # Encode the same rows at once and chunk by chunk.
    rows = SyntheticPairs(args.pairs, args.pixels)
    tokenizer = tiny_tokenizer(rows.corpus())
    processor = tiny_processor("qwen2_5_vl", tokenizer, max_pixels=args.pixels**2)
    tokenizer.add_tokens([RET], special_tokens=True)
    collator = ChainCollator(ChatEncoder(processor, tokenizer.convert_tokens_to_ids(RET)))
    items = [(index, 0) for index in range(args.pairs)]
    whole = batch_bytes(collator([rows[item] for item in items]))
    parts = LazyCollator(rows, collator, rows_per_part(args.chunk_tokens))(items)["parts"]
    chunks = [chunk for part in parts for chunk in split_into_chunks(part, args.chunk_tokens)]
    assert sum(len(chunk) for chunk in chunks) == args.pairs
    most = max(batch_bytes(chunk.batch) for chunk in chunks)
    ours = {"bytes": most, "chunks": len(chunks)}
    peer = {"bytes": whole}
    settings = {"pairs": args.pairs, "pixels": args.pixels, "chunk_tokens": args.chunk_tokens}
    print(
        write_ratios(
            args.json, "batch_bytes", ours, peer, {"bytes": whole / most}, settings=settings
        )
    )


if __name__ == "__main__":
    run(main)
