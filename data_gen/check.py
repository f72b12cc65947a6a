"""Check a dataset and its chains: schema, pictures, gallery, leaks, filters; exit 1 on errors."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cir_cot.chains import report as chain_report
from cir_cot.chains.check import check
from cir_cot.cli import run
from cir_cot.files import write_text_atomic
from cir_cot.options import (
    add_chains,
    add_dataset,
    add_json,
    add_overwrite,
    command_parser,
)
from cir_cot.ownership import writing


def main(argv: Sequence[str]) -> int:
    """Print the findings as a list or as one JSON object; return 1 if any is an error."""
    args = parse_arguments(argv)
    report, records, stores = check(args.benchmark, args.root, args.split, args.chains)
    if args.report:
        page = Path(args.report)
        # A page that somebody else wrote is not replaced without --overwrite.
        with writing(page.parent, "check", [page.name], args.overwrite):
            write_text_atomic(page, chain_report.page(report, records, stores))
    # Warnings alone are no failure: official data has them, too.
    print(json.dumps(report, ensure_ascii=False) if args.json else text(report))
    return 1 if report["errors"] else 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot check`."""
    parser = command_parser("check", __doc__)
    add_dataset(parser)
    add_chains(parser)
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="also write a web page with distributions and with chains beside their pictures",
    )
    add_overwrite(parser, "also replace a --report file that this command did not write")
    add_json(parser)
    return parser.parse_args(argv)


def text(report: dict) -> str:
    """Format the report as lines of text."""
    # Counts of queries, pictures and chains, then of every filter.
    lines = []
    for part, counts in report["parts"].items():
        lines.append(f"{part}: " + ", ".join(f"{key} {n}" for key, n in counts.items()))
    if report["filters"]:
        filters = []
        for row in report["filters"]:
            filters.append(f"{row['check'].removeprefix('chain_')} {row['count']}")
        lines.append("filters: " + ", ".join(filters))

    # Findings with their first examples.
    for kind, title in (("errors", "ERROR"), ("warnings", "WARNING")):
        for row in report[kind]:
            lines.append(f"{title:7} {row['check']}: {row['count']}")
            lines += [f"          {example}" for example in row["examples"]]

    # What could not be checked, and the totals.
    lines += [f"note    {note}" for note in report["notes"]]
    lines.append(f"{len(report['errors'])} errors, {len(report['warnings'])} warnings")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
