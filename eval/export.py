"""Export a retriever as one merged checkpoint for other engines, and prove that its embeddings are the same."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch
from PIL import Image

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.integrations.export import (
    TOLERANCE,
    compare,
    embeddings,
    probes,
    read_embeddings,
    sentence_embeddings,
    write_export,
)
from cir_cot.options import (
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_out,
    command_parser,
)
from cir_cot.provenance import git_state, package_versions


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot export`."""
    parser = command_parser("export", __doc__)
    add = parser.add_argument
    add_model(parser, "folder of a saved retriever that writes chains")
    add_out(parser, "new folder for the export; with --parity, the folder of an existing one")
    add(
        "--parity",
        action="store_true",
        help="export nothing: compare --out, or --embeddings, with --model",
    )
    add(
        "--embeddings",
        metavar="FILE",
        help="embeddings by another engine to compare: JSON, {case: vector}; see probes.json",
    )
    add(
        "--images",
        metavar="DIR",
        help="compare over the first 6 pictures of this folder (default: synthetic pictures)",
    )
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help=f"largest absolute difference of any vector component (default {TOLERANCE})",
    )
    add_device(parser)
    add_dtype(parser)
    add_json(parser, "the content of parity.json")
    return parser.parse_args(argv)


def parity(
    args: argparse.Namespace,
    out: Path,
    pictures: Sequence[Image.Image],
    ours: dict[str, torch.Tensor],
) -> dict:
    """Compare `ours` with the export, and with what sentence-transformers reads in it, or with given embeddings."""
    from cir_cot.heads import load_retriever

    if args.embeddings:
        return compare(ours, read_embeddings(args.embeddings), args.tolerance)
    theirs = embeddings(load_retriever(out, device=args.device, dtype=args.dtype), pictures)
    report, found = (
        compare(ours, theirs, args.tolerance),
        sentence_embeddings(out, pictures, args.device),
    )
    if isinstance(found, str):
        return report | {"sentence_transformers": found}
    form = compare(ours, found, args.tolerance)
    return report | {
        "passed": report["passed"] and form["passed"],
        "sentence_transformers": form["cases"],
    }


def show(report: dict, stream: TextIO) -> None:
    """Print a line for each case."""
    form = report.get("sentence_transformers", {})
    if isinstance(form, str):
        print(f"sentence-transformers {form}", file=stream)
    cases = (
        {}
        if isinstance(form, str)
        else {f"sentence-transformers {case}": row for case, row in form.items()}
    )
    for case, row in (report["cases"] | cases).items():
        words = (
            f"difference {row['difference']:.1e}, cosine {row['cosine']:.6f}"
            if row["passed"]
            else "NOT THE SAME"
        )
        print(f"{case:>10}  {words}", file=stream)


def main(argv: Sequence[str]) -> int:
    """Export, compare, report; exit code 1 when embeddings differ by more than the tolerance."""
    args = parse(argv)
    out = Path(args.out)
    if args.embeddings and not args.parity:
        raise InputError("--embeddings compares with an export that is there: add --parity")
    if not args.parity and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is there already; export into a new folder, or compare with --parity"
        )
    from cir_cot.heads import load_retriever
    from cir_cot.heads.cot import CotRetriever

    pictures = probes(args.images)
    retriever = load_retriever(args.model, device=args.device)
    if not isinstance(retriever, CotRetriever) or retriever.target_encoder:
        raise InputError(
            f"{args.model}: a {retriever.kind!r} retriever; export is for chain heads that read both sides"
        )
    ours = embeddings(retriever, pictures)
    if not args.parity:
        if args.dtype != "float32":
            retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
        write_export(retriever, out, pictures)
    del retriever  # one model in memory at a time
    report = parity(args, out, pictures, ours)
    report |= {
        "model": args.model,
        "dtype": args.dtype,
        "git": git_state(),
        "versions": package_versions(),
    }
    if not args.embeddings:
        write_text_atomic(out / "parity.json", json.dumps(report, indent=1) + "\n")
    show(report, sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    if not report["passed"]:
        print(
            f"error: the embeddings differ by more than {args.tolerance}: do not serve this",
            file=sys.stderr,
        )
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    run(main)
