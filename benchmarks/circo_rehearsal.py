"""Rehearse CIRCO at full size, from pictures to a valid submission, with real annotations and a tiny model.

Draws one small synthetic picture for each of COCO's 123,403 unlabeled images, encodes them into an index, ranks the
queries of val and test, writes the submission and validates it. It measures the software: time, peak memory, bytes of
the index. The ranks mean nothing. The time that a 7B model would need on one H200 is computed (2 FLOPs a parameter and
token; 6.5e9 parameters of the language model, 140 tokens a picture; 0.67e9 of the vision tower, 480 patches; 40 % of
989 TFLOP/s).
"""

import argparse
import gzip
import json
import random
import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.submission import write_submission
from cir_cot.data.submission_check import check_submission
from cir_cot.files import read_json, write_text_atomic
from cir_cot.heads.cot import CotRetriever
from cir_cot.images import list_pictures
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.provenance import git_state, package_versions
from cir_cot.search.build import build, open_index
from cir_cot.search.search import Search

SIDE = 28  # of a synthetic picture, in pixels: one visual token
BATCH = 64
FLOPS_A_PICTURE = 2 * (6.5e9 * 140 + 0.67e9 * 480)
H200 = 0.4 * 989e12


def draw(path: Path, seed: object) -> None:
    """Write a small picture of four colours."""
    small = Image.frombytes("RGB", (2, 2), bytes(random.Random(seed).choices(range(256), k=12)))
    small.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)


def lay_out(circo: Path, root: Path, limit: int | None) -> list[str]:
    """Write annotations, ids and pictures in CIRCO's layout -> the names; existing pictures are kept."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    needed: set[int] = set()
    for split in ("val", "test"):
        shutil.copy(circo / f"annotations/{split}.json", root / f"annotations/{split}.json")
        for query in read_json(circo / f"annotations/{split}.json"):
            needed |= {query["reference_img_id"], *query.get("gt_img_ids", ())}
    # Draw the pictures, all of them or those that queries need.
    with gzip.open(circo / "coco2017_unlabeled_ids.txt.gz", "rt") as lines:
        ids = [int(line) for line in lines]
    if limit is not None:
        kept = needed | set(ids[:limit])
        ids = [image for image in ids if image in kept]
    write_text_atomic(root / "coco2017_unlabeled_ids.txt", "".join(f"{image}\n" for image in ids))
    folder = root / "unlabeled2017"
    folder.mkdir(exist_ok=True)
    for image in tqdm(ids, desc="pictures"):
        path = folder / f"{image:012d}.jpg"
        if not path.exists():
            draw(path, image)
    return [f"{image:012d}" for image in ids]


def tiny() -> CotRetriever:
    """Return an untrained chain head whose vectors differ."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden": 64, "intermediate": 128, "layers": 2, "vision_depth": 1, "init_std": 0.15}
    base = tiny_model("qwen2_5_vl", tokenizer, **sizes), tiny_processor("qwen2_5_vl", tokenizer)
    torch.manual_seed(0)
    return CotRetriever(load_backbone(base), "tiny", max_new_tokens=16).eval()


def rank(search: Search, root: Path, split: str) -> dict[str, list[str]]:
    """Return the 50 best ids of each query of a split."""
    (benchmark,) = load_benchmark("circo", root, split)
    images = benchmark.images()
    rankings = {}
    for at in range(0, len(benchmark.records), BATCH):
        records = benchmark.records[at : at + BATCH]
        pictures = [images.load(record.reference) for record in records]
        answers = search.many(pictures, [record.text for record in records], 50)
        for record, answer in zip(records, answers, strict=True):
            rankings[record.id] = [str(int(name)) for name, _ in answer.hits]  # without leading 0s
    return rankings


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the script's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--circo",
        required=True,
        metavar="DIR",
        help="CIRCO's annotations and coco2017_unlabeled_ids.txt.gz",
    )
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="for pictures (500 MB), index and submission; resumable",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help="the first N pictures and those that queries need (default: all)",
    )
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run every step, and write its time and memory."""
    args = parse(argv)
    root = Path(args.out)
    seconds = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.perf_counter() - started, 1)
        started = time.perf_counter()

    # Encode and index, then once more after a hundredth of the pictures has changed.
    names = lay_out(Path(args.circo), root, args.limit)
    lap("drawing")
    head = tiny()
    store = list_pictures(root / "unlabeled2017")
    count = build(head, store, names, root / "index", batch_size=BATCH, progress=True)
    lap("encoding and indexing")
    for name in names[::100]:
        draw(store.path(name), f"{name} changed in this run {time.time()}")
    updated = build(head, store, names, root / "index", batch_size=BATCH, progress=True)
    lap(f"updating {len(names[::100])} changed pictures")
    # Rank both splits, write the submission, validate it.
    search = Search(head, open_index(root / "index"))
    files = []
    problems = []
    for split in ("val", "test"):
        (benchmark,) = load_benchmark("circo", root, split)
        files += write_submission(root / "submission", benchmark, rank(search, root, split))
        lap(f"ranking {split}, {len(benchmark.records)} queries")
    for file in files:
        problems += check_submission(file, root).problems
    lap("validating")
    result = {
        "name": "circo_rehearsal",
        "pictures": len(names),
        "encoded": {"first": count, "update": updated},
        "seconds": seconds,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "index_bytes": sum(path.stat().st_size for path in (root / "index").iterdir()),
        "problems": [problem.what for problem in problems],
        "arithmetic_7b_h200": {
            "encoding_minutes": round(len(names) * FLOPS_A_PICTURE / H200 / 60, 1),
            "index_bytes_float32_3584": len(names) * 3584 * 4,
        },
        "git": git_state(),
        "versions": package_versions(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        write_text_atomic(args.json, json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    run(main)
