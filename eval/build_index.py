"""Encode a gallery into an index: once for each picture, resumable, in one process or under accelerate launch."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.files import read_bytes, read_jsonl


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(prog="cir-cot index", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a saved retriever")
    add(
        "--images",
        required=True,
        metavar="DIR",
        help="folder of pictures; ids are paths without their extension",
    )
    add(
        "--out",
        required=True,
        metavar="INDEX",
        help="folder of the index; one that is there is updated",
    )
    add(
        "--gallery",
        metavar="FILE",
        help="image ids, one a line: these only, in this order; default: every picture",
    )
    add(
        "--payload",
        metavar="FILE",
        help='JSONL of {"id": …, "category": …, …}: what searches may filter by',
    )
    add(
        "--remove",
        nargs="+",
        metavar="ID",
        help="take pictures out of the index; nothing is encoded",
    )
    add(
        "--kind",
        default="exact",
        help="exact (default; up to a million pictures), a FAISS factory string like IVF4096,Flat or HNSW32, or "
        "qdrant:<server or folder>#<collection>",
    )
    add(
        "--tune",
        metavar="SETTINGS",
        help="how hard an approximate kind searches, e.g. nprobe=16 or efSearch=128",
    )
    add(
        "--width",
        type=int,
        metavar="N",
        help="keep the first N numbers of each vector (default: all)",
    )
    add(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "int8"),
        help="of stored vectors (default float32)",
    )
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="pictures encoded at a time (default 32)",
    )
    add("--device", help="e.g. cuda:1 or cpu; default: a GPU where there is one")
    add(
        "--model-dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="default float32",
    )
    add(
        "--json",
        action="store_true",
        help="print index.json's facts, and everything else to stderr",
    )
    return parser.parse_args(argv)


def read_payloads(path: str) -> dict[str, dict]:
    """Return {image id: payload} of a JSONL file; InputError names a line without an id or with one used before."""
    payloads: dict[str, dict] = {}
    for number, row in read_jsonl(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise InputError(f'{path}:{number}: an object with the image\'s "id" is expected')
        if row["id"] in payloads:
            raise InputError(f"{path}:{number}: image {row['id']!r} occurs twice")
        payloads[row["id"]] = {key: value for key, value in row.items() if key != "id"}
    return payloads


def wanted_names(gallery: str | None, files: dict[str, str]) -> list[str]:
    """Return the ids to index; InputError names a listed one that has no picture."""
    if gallery is None:
        return list(files)
    try:
        names = [
            line.strip()
            for line in read_bytes(gallery).decode("utf-8-sig").splitlines()
            if line.strip()
        ]
    except UnicodeDecodeError as error:
        raise InputError(f"{gallery}: not UTF-8 text ({error})") from error
    if missing := [name for name in names if name not in files]:
        raise InputError(
            f"{gallery}: {len(missing)} of {len(names)} images have no picture, the first {missing[0]!r}"
        )
    return list(dict.fromkeys(names))


def remove(args: argparse.Namespace) -> None:
    """Take pictures out of an index."""
    from cir_cot.search.build import change

    with change(args.out) as index:
        index.remove(args.remove).save(args.out)


def encode(args: argparse.Namespace) -> bool:
    """Build or update the index, together with the other processes -> whether this is the first of them."""
    from accelerate import PartialState

    from cir_cot.heads import load_retriever
    from cir_cot.images import list_pictures
    from cir_cot.search.build import build, change

    images = list_pictures(args.images)
    names = wanted_names(args.gallery, images.files)
    payloads = read_payloads(args.payload) if args.payload else None
    state = PartialState(cpu=args.device == "cpu")
    device = args.device if state.num_processes == 1 else str(state.device)
    retriever = load_retriever(args.model, device=device, dtype=args.model_dtype)
    count = build(
        retriever,
        images,
        names,
        args.out,
        kind=args.kind,
        width=args.width,
        dtype=args.dtype,
        payloads=payloads,
        batch_size=args.batch_size,
        rank=state.process_index,
        world=state.num_processes,
        wait=state.wait_for_everyone,
        progress=state.is_main_process,
    )
    print(
        f"process {state.process_index}: {count} pictures encoded, of {len(names)}", file=sys.stderr
    )
    if args.tune and state.is_main_process:
        with change(args.out) as index:
            index.tune(args.tune)
            index.save(args.out)
    return state.is_main_process


def main(argv: Sequence[str]) -> int:
    """Build, update or reduce an index; exit code 1 when pictures had to be left out."""
    args = parse(argv)
    if args.remove:
        remove(args)
    elif not encode(args):
        return 0
    from cir_cot.search.index_files import read_facts

    facts = {key: value for key, value in read_facts(Path(args.out)).items() if key != "probe"}
    folder = args.out.encode("utf-8", "backslashreplace").decode()
    for name, why in facts["unreadable"].items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    words = f"{facts['count']} pictures in {folder}, {facts['kind']}, {facts['dtype']}, {facts['width']} numbers each"
    print(json.dumps(facts, ensure_ascii=False) if args.json else words)
    return 1 if facts["unreadable"] else 0


if __name__ == "__main__":
    run(main)
