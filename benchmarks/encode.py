"""Measure the processor's work of encoding a gallery: model inputs made in threads beside in the main thread.

Photographs of six sizes lie in a folder as JPEG. Both ways decode them in threads; they are resized, normalised and cut
into patches by Qwen2.5-VL's own processor. In place of a model the main thread waits as long as a GPU would compute,
by default what `cir-cot plan` says of a 7B on an H100.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from cir_cot.cli import run
from cir_cot.evaluation.encode import load_batches
from cir_cot.evaluation.encode_ahead import encode_ahead
from cir_cot.heads.targets import Prepared, TargetPreparer
from cir_cot.images import ImageStore
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.special_tokens import token_id
from cir_cot.models.tiny_qwen import tiny_processor, tiny_tokenizer
from cir_cot.profiling.counters import write_ratios
from cir_cot.profiling.synthetic import PHOTOGRAPHS
from cir_cot.prompts import RET

BATCH = 32


class InputsAlone:
    """Stands for a retriever on a GPU: it waits `seconds` a picture, and its vectors are the pictures' means."""

    def __init__(self, preparer: TargetPreparer, seconds: float):
        self.preparer = preparer
        self.seconds = seconds

    def target_preparer(self) -> TargetPreparer:
        """Return what makes model inputs."""
        return self.preparer

    def encode_prepared(self, prepared: Prepared) -> torch.Tensor:
        """Return a number for each picture (N, 1): the mean of its patches."""
        vectors = torch.zeros(sum(len(rows) for rows, _ in prepared), 1)
        for rows, inputs in prepared:
            time.sleep(self.seconds * len(rows))
            lengths = inputs["image_grid_thw"].prod(dim=1).tolist()
            for row, patches in zip(rows, inputs["pixel_values"].split(lengths), strict=True):
                vectors[row] = patches.mean()
        return vectors


def write_photographs(folder: Path, count: int, scale: float) -> ImageStore:
    """Write noise as JPEG in photographs' sizes, `scale` times as large."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        width, height = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
        small = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8, generator=generator)
        picture = Image.fromarray(small.numpy())
        picture.resize((int(width * scale), int(height * scale))).save(folder / f"{number}.jpg")
    return ImageStore(folder)


def measure(args: argparse.Namespace, images: ImageStore) -> dict:
    """Prepare all pictures both ways in turns -> pictures a second of each, by the median."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([RET], special_tokens=True)
    processor = tiny_processor("qwen2_5_vl", tokenizer, max_pixels=args.max_pixels)
    encoder = ChatEncoder(processor, token_id(tokenizer, RET))
    head = InputsAlone(TargetPreparer(encoder.target, processor, 16384, BATCH), args.device_seconds)
    names = [str(number) for number in range(args.pictures)]

    def in_threads() -> torch.Tensor:
        return torch.cat(list(encode_ahead(head, load_batches(names, images, BATCH))))  # type: ignore[arg-type]

    def in_main_thread() -> torch.Tensor:
        batches = load_batches(names, images, BATCH)
        return torch.cat([head.encode_prepared(head.preparer(batch)) for batch in batches])

    ways: dict[str, Callable[[], torch.Tensor]] = {"ours": in_threads, "peer": in_main_thread}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(args.repeats):
        for way, encode in ways.items():
            started = time.perf_counter()
            found[way] = encode()
            seconds[way].append(time.perf_counter() - started)
    assert torch.equal(found["ours"], found["peer"]), "the inputs differ"
    return {
        way: {"pictures_per_second": args.pictures / statistics.median(spent)}
        for way, spent in seconds.items()
    }


def main(argv: Sequence[str]) -> int:
    """Measure, print a table and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--pictures", type=int, default=512, help="pictures of the gallery (default 512)")
    add("--scale", type=float, default=2.0, help="of their width and height (default 2)")
    add("--max-pixels", type=int, default=147_456, help="of a resized picture (default 147456)")
    add(
        "--device-seconds",
        type=float,
        default=1 / 152,
        help="seconds that a GPU computes a picture (default 1/152)",
    )
    add("--repeats", type=int, default=3, help="interleaved timings (default 3)")
    add("--json", metavar="FILE", help="write the result here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, write_photographs(Path(folder), args.pictures, args.scale))
    key = "pictures_per_second"
    ratio = {key: found["ours"][key] / found["peer"][key]}
    setting = vars(args)
    path = setting.pop("json")
    print(write_ratios(path, "encode", found["ours"], found["peer"], ratio, setting=setting))
    return 0


if __name__ == "__main__":
    run(main)
