"""Encode the pictures of a gallery and save them as a searchable index; run it again to update the index.

Each picture is encoded once, an interrupted run is continued, and accelerate launch shares the work among processes.
With --watch it goes on and follows the folder; `cir-cot serve` answers from the newest state.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.files import read_bytes, read_jsonl
from cir_cot.options import (
    Parser,
    add_batch_size,
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_out,
    add_pixels,
    command_parser,
    loading_options,
)
from cir_cot.ranks import Ranks

if TYPE_CHECKING:  # they import torch and faiss, which are loaded after the arguments are checked
    from cir_cot.retriever import Retriever
    from cir_cot.search.watch import State


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot index`."""
    parser = command_parser("index", __doc__)
    add = parser.add_argument
    add_model(parser)
    add(
        "--images",
        required=True,
        metavar="DIR",
        help="folder of pictures; an id is a path in it, without the extension",
    )
    add_out(parser, "folder of the index; an existing index is updated")
    add(
        "--gallery",
        metavar="FILE",
        help="text file of image ids, one a line, to index only these, in this order "
        "(default: every picture)",
    )
    add(
        "--payload",
        metavar="FILE",
        help='JSONL of {"id": …, "category": …, …}: fields that searches can filter by',
    )
    add(
        "--remove",
        nargs="+",
        metavar="ID",
        help="remove these pictures from the index; nothing is encoded",
    )
    add_storage(parser)
    add(
        "--watch",
        type=seconds,
        metavar="S",
        help="then look at the folder every S seconds, and take in what was added, changed or "
        "removed, until Ctrl-C",
    )
    add_batch_size(parser)
    add_device(parser)
    add_dtype(parser, "--model-dtype", type=model_precision)
    add_pixels(parser)
    add_json(parser, "the content of index.json")
    args = parser.parse_args(argv)
    if args.watch and (args.gallery or args.remove):
        raise InputError("--watch follows the whole folder; leave --gallery and --remove out")
    return args


def add_storage(parser: Parser) -> None:
    """Add the options that say how vectors are stored and searched."""
    add = parser.add_argument
    add(
        "--kind",
        default="exact",
        help="exact (default; for up to a million pictures), a FAISS factory string such as "
        "IVF4096,Flat or HNSW32, or qdrant:<server or folder>#<collection>",
    )
    add(
        "--tune",
        metavar="SETTINGS",
        help="search effort of an approximate kind, for example nprobe=16 or efSearch=128",
    )
    add(
        "--width",
        type=int,
        metavar="N",
        help="keep the first N dimensions of each vector (default: all)",
    )
    add(
        "--store-dtype",
        default="float32",
        choices=("float32", "float16", "int8"),
        help="type of the stored vectors (default float32)",
    )


def seconds(text: str) -> float:
    """Return the value of --watch."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("give a number of seconds above 0")
    return value


def model_precision(text: str) -> str:
    """Return the value of --dtype; refuse int8, which the option took when it meant stored vectors."""
    if text == "int8":
        raise argparse.ArgumentTypeError(
            "--dtype is the precision of the model; for stored vectors: --store-dtype int8"
        )
    return text


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
        lines = read_bytes(gallery).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{gallery}: not UTF-8 text ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if missing := [name for name in names if name not in files]:
        raise InputError(
            f"{gallery}: {len(missing)} of {len(names)} images have no picture, the first {missing[0]!r}"
        )
    return list(dict.fromkeys(names))


def remove(args: argparse.Namespace) -> None:
    """Remove pictures from an index."""
    from cir_cot.search.build import change

    with change(args.out) as index:
        index.remove(args.remove).save(args.out)


def encode(args: argparse.Namespace) -> bool:
    """Build or update the index, together with the other processes; return whether this is the first of them."""
    from cir_cot.heads import load_retriever
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.picture_files import unique_pictures
    from cir_cot.search.watch import state_of

    # Read what the arguments name, before a model is loaded.
    found = unique_pictures(args.images)
    wanted_names(args.gallery, found.files)
    if args.payload:
        read_payloads(args.payload)
    if args.dtype == "float16" and args.store_dtype == "float32":
        # Until 0.2, --dtype float16 meant the stored vectors.
        print("note: --dtype is the model's precision; vectors: --store-dtype", file=sys.stderr)
    # Load the retriever, in each process on a device of its own.
    ranks = Ranks.launched(cpu=args.device == "cpu")
    if args.watch and ranks.count > 1:
        raise InputError("--watch is for one process; start it without accelerate launch")
    retriever = load_retriever(args.model, **loading_options(args, ranks))
    if ranks.first:
        print(loaded_line(retriever, args.model), file=sys.stderr)
        if found.skipped:
            print(found.skipped_line(), file=sys.stderr)
    # Encode and save.
    seen = state_of(args.images)
    update(args, retriever, ranks)
    if args.tune and ranks.first:
        tune(args)
    if args.watch:
        follow(args, retriever, ranks, seen)
    ranks.close()
    return ranks.first


def update(args: argparse.Namespace, retriever: "Retriever", ranks: Ranks) -> None:
    """Make the pictures that the folder has now the content of the index."""
    from cir_cot.images import ImageStore
    from cir_cot.picture_files import unique_pictures
    from cir_cot.search.build import IndexSettings, build

    files = unique_pictures(args.images).files
    names = wanted_names(args.gallery, files)
    count = build(
        retriever,
        ImageStore(args.images, files),
        names,
        args.out,
        IndexSettings(args.kind, args.width, args.store_dtype),
        payloads=read_payloads(args.payload) if args.payload else None,
        batch_size=args.batch_size,
        ranks=ranks,
        progress=ranks.first,
    )
    print(f"process {ranks.rank}: {count} pictures encoded, of {len(names)}", file=sys.stderr)


def tune(args: argparse.Namespace) -> None:
    """Set the search effort of an approximate index."""
    from cir_cot.search.build import change

    with change(args.out) as index:
        index.tune(args.tune)
        index.save(args.out)


def follow(args: argparse.Namespace, retriever: "Retriever", ranks: Ranks, seen: "State") -> None:
    """Update the index whenever the pictures have changed, until Ctrl-C.

    Args:
        args: of the command.
        retriever: encodes pictures.
        ranks: this process alone.
        seen: the pictures before the first update.
    """
    from cir_cot.search.watch import watch

    def tell(text: str) -> None:
        print(f"not updated: {text}", file=sys.stderr)

    print(f"watching {args.images} every {args.watch:g} s; Ctrl-C ends", file=sys.stderr)
    try:
        watch(args.images, lambda: update(args, retriever, ranks), args.watch, tell, seen)
    except KeyboardInterrupt:
        print("watching ended", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    """Build, update or reduce an index; exit code 1 when pictures had to be left out."""
    args = parse(argv)
    if args.remove:
        remove(args)
    elif not encode(args):
        return 0
    # Report what the index holds now.
    from cir_cot.search.index_files import read_metadata

    metadata = read_metadata(Path(args.out))
    del metadata["probe"]
    folder = args.out.encode("utf-8", "backslashreplace").decode()
    for name, why in metadata["unreadable"].items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    if args.json:
        print(json.dumps(metadata, ensure_ascii=False))
    else:
        print(
            f"{metadata['count']} pictures in {folder}, {metadata['kind']}, {metadata['dtype']}, "
            f"{metadata['width']} numbers each"
        )
    return 1 if metadata["unreadable"] else 0


if __name__ == "__main__":
    run(main)
