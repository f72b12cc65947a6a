"""Validate submission files of CIRR and CIRCO offline; exit 1 on problems."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.data.submission import check_submission
from cir_cot.options import (
    add_json,
    add_root,
    command_parser,
)

EXAMPLES = 3  # of each problem; the count is always of all


def main(argv: Sequence[str]) -> int:
    """Print what each file is and what is wrong with it; 1 if anything is."""
    args = parse_arguments(argv)
    reports = [report(file, args.root) for file in args.files]
    print(json.dumps(reports, ensure_ascii=False) if args.json else "\n".join(map(text, reports)))
    return 1 if any(one["problems"] for one in reports) else 0


def report(file: str, root: str) -> dict:
    """{"file", "benchmark", "split", "kind", "queries", "notes", "problems": [{"problem", "count", "examples"}]}."""
    facts, problems = check_submission(file, root)
    counts = Counter(problem.name for problem in problems)
    rows = [
        {
            "problem": name,
            "count": count,
            "examples": [p.what for p in problems if p.name == name][:EXAMPLES],
        }
        for name, count in counts.items()
    ]
    return {"file": file, **facts, "problems": rows}


def text(one: dict) -> str:
    """The report of one file for a reader."""
    what = " ".join(
        filter(
            None,
            (one["benchmark"], one["split"], one["kind"] if one["benchmark"] == "cirr" else None),
        )
    )
    lines = [
        f"{one['file']}: {what or 'unknown'}, {one['queries']} queries: {'INVALID' if one['problems'] else 'valid'}"
    ]
    for row in one["problems"]:
        lines.append(f"  {row['problem']}: {row['count']}")
        lines += [f"      {example}" for example in row["examples"]]
    return "\n".join([*lines, *(f"  note: {note}" for note in one["notes"])])


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot check-submission`."""
    parser = command_parser("check-submission", __doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="submission file; its content says of which benchmark it is",
    )
    add_root(parser, "folder of the annotations, or the folder above it")
    add_json(parser, "the reports as one JSON list")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
