"""Export a retriever as one merged checkpoint for other engines, and prove that its embeddings are the same."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.fingerprint import least_cosine
from cir_cot.integrations.export import (
    TOLERANCE,
    compare,
    embeddings,
    probes,
    read_embeddings,
    report_lines,
    sentence_embeddings,
    stored_dtype,
    tolerance_of,
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
        metavar="X",
        help="largest absolute difference of any vector component (default: what rounding explains at this precision, "
        f"depth and width, at least {TOLERANCE})",
    )
    add_device(parser)
    add_dtype(parser)
    add_json(parser, "the content of parity.json")
    args = parser.parse_args(argv)
    if args.dtype is None and not args.parity:
        args.dtype = "float32"
    return args


def parity(
    args: argparse.Namespace,
    out: Path,
    pictures: Sequence[Image.Image],
    ours: dict[str, torch.Tensor],
    depth: int,
) -> dict:
    """Compare `ours`, of a model of `depth` blocks, with --embeddings, or with both forms of the export."""
    from cir_cot.heads import load_retriever

    # Bounds for the precision of the export.
    dtype = args.dtype or stored_dtype(out)
    dim = len(next(iter(ours.values())))
    bounds = (
        tolerance_of(dtype, depth, dim) if args.tolerance is None else args.tolerance,
        least_cosine(depth, dtype),
    )
    if args.embeddings:
        return compare(ours, read_embeddings(args.embeddings), *bounds)
    exported = load_retriever(out, device=args.device, dtype=dtype)
    report = compare(ours, embeddings(exported, pictures), *bounds) | {"dtype": dtype}
    found = sentence_embeddings(out, pictures, args.device)
    if isinstance(found, str):
        return report | {"sentence_transformers": found}
    form = compare(ours, found, *bounds)
    passed = report["passed"] and form["passed"]
    return report | {"passed": passed, "sentence_transformers": form["cases"]}


def main(argv: Sequence[str]) -> int:
    """Export, compare and report; exit code 1 if embeddings differ by more than the tolerance."""
    args = parse(argv)
    out = Path(args.out)
    # Check the arguments before anything is loaded.
    if args.embeddings and not args.parity:
        raise InputError("--embeddings compares with an existing export: add --parity")
    if not args.parity and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is there already; export into a new folder, or compare with --parity"
        )
    from cir_cot.heads import load_retriever
    from cir_cot.heads.cot import CotRetriever

    pictures = probes(args.images)
    retriever = load_retriever(args.model, device=args.device, dtype="float32")
    if not isinstance(retriever, CotRetriever) or retriever.target_encoder:
        raise InputError(
            f"{args.model}: a {retriever.kind!r} retriever; give a chain head that encodes both sides itself"
        )
    # The head's own embeddings, in float32, are what the export must reproduce.
    ours = embeddings(retriever, pictures)
    if not args.parity:
        if args.dtype != "float32":
            retriever = load_retriever(args.model, device=args.device, dtype=args.dtype)
        write_export(retriever, out, pictures)
    depth = retriever.depth
    del retriever  # one model in memory at a time
    # Compare and report.
    report = parity(args, out, pictures, ours, depth)
    report |= {"model": args.model}
    report |= {"git": git_state(), "versions": package_versions()}
    if not args.embeddings:
        write_text_atomic(out / "parity.json", json.dumps(report, indent=1) + "\n")
    for line in report_lines(report):
        print(line, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    if not report["passed"]:
        print(
            f"error: the embeddings differ by more than {report['tolerance']:.2g}, or their cosine is below "
            f"{report['least_cosine']:.4f}: do not serve this",
            file=sys.stderr,
        )
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    run(main)
