"""Check a dataset and its chains: schema, pictures, effective gallery, leaks, lengths, repetition; exit 1 on errors."""

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
    """Print what was found, as a list or as one JSON object; 1 if any of it is an error."""
    args = parse_arguments(argv)
    report, records, stores = check(args.benchmark, args.root, args.split, args.chains)
    if args.report:
        page = Path(args.report)
        with writing(page.parent, "check", [page.name], args.overwrite):
            write_text_atomic(page, chain_report.page(report, records, stores))
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
    """The report for a reader."""
    lines = [
        f"{part}: " + ", ".join(f"{key} {n}" for key, n in counts.items())
        for part, counts in report["parts"].items()
    ]
    if report["filters"]:
        counts = (
            f"{row['check'].removeprefix('chain_')} {row['count']}" for row in report["filters"]
        )
        lines.append("filters: " + ", ".join(counts))
    for kind in ("errors", "warnings"):
        for row in report[kind]:
            lines.append(f"{kind[:-1].upper():7} {row['check']}: {row['count']}")
            lines += [f"          {example}" for example in row["examples"]]
    lines += [f"note    {note}" for note in report["notes"]]
    return "\n".join(
        [*lines, f"{len(report['errors'])} errors, {len(report['warnings'])} warnings"]
    )


if __name__ == "__main__":
    run(main)
