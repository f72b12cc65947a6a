"""Validate submission files of CIRR and CIRCO offline; exit 1 on problems."""

import argparse
import json
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.data.submission_check import submission_report
from cir_cot.options import add_json, add_root, command_parser


def main(argv: Sequence[str]) -> int:
    """Print what each file is and what is wrong with it; return 1 if anything is."""
    args = parse_arguments(argv)
    reports = [submission_report(file, args.root) for file in args.files]
    if args.json:
        print(json.dumps(reports, ensure_ascii=False))
    else:
        print("\n".join(map(text, reports)))
    return 1 if any(report["problems"] for report in reports) else 0


def text(report: dict) -> str:
    """Return the report of one file for a reader."""
    # only CIRR has two kinds of files
    kind = report["kind"] if report["benchmark"] == "cirr" else None
    what = " ".join(filter(None, (report["benchmark"], report["split"], kind)))
    state = "INVALID" if report["problems"] else "valid"
    lines = [f"{report['file']}: {what or 'unknown'}, {report['queries']} queries: {state}"]
    # problems by name, with a few examples of each
    for row in report["problems"]:
        lines.append(f"  {row['problem']}: {row['count']}")
        lines += [f"      {example}" for example in row["examples"]]
    lines += [f"  note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot check-submission`."""
    parser = command_parser("check-submission", __doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="submission file; the benchmark is recognised by its content",
    )
    add_root(parser, "folder of the annotations, or the folder above it")
    add_json(parser, "the reports as one JSON list")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
