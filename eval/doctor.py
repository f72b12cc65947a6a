"""Check this installation: versions, accelerator, disk, caches; exit 1 where something will not work."""

import argparse
import json
from collections.abc import Sequence

from cir_cot.cli import DONE, PROBLEMS, run
from cir_cot.installation import examine
from cir_cot.options import add_json, command_parser

SIGNS = {"ok": "ok", "note": "--", "problem": "!!"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot doctor`."""
    parser = command_parser("doctor", __doc__)
    add_json(parser, "the findings as one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Print what was found, problems with their cure."""
    args = parse(argv)
    findings = examine()
    if args.json:
        print(json.dumps({"findings": [finding._asdict() for finding in findings]}))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{SIGNS[finding.state]}  {finding.what:<{width}}  {finding.text}")
    return PROBLEMS if any(finding.state == "problem" for finding in findings) else DONE


if __name__ == "__main__":
    run(main)
