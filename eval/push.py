"""Publish a saved retriever on the Hugging Face Hub, with a model card; --dry-run lists what would be sent.

The retriever's own files alone are sent, never another file of the folder. A token is read from
HF_TOKEN or from `hf auth login`.
"""

import argparse
import json
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.options import add_json, add_model, command_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot push`."""
    parser = command_parser("push", __doc__)
    add_model(parser, "folder of a saved retriever")
    parser.add_argument(
        "--to", required=True, metavar="USER/NAME", help="repository, created where there is none"
    )
    parser.add_argument("--revision", metavar="NAME", help="branch to write (default: main)")
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders that retrieval wrote: metrics and an example of a chain for the model card",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files that would be sent, and send none"
    )
    add_json(parser, "the address and the files as one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Upload, and print the address."""
    args = parse(argv)
    from cir_cot.heads.card import check_measured  # loads torch: after the arguments' checks
    from cir_cot.heads.publish import push

    check_measured(args.model, args.results)
    upload = push(
        args.model,
        args.to,
        private=args.private,
        revision=args.revision,
        results=args.results,
        dry_run=args.dry_run,
    )
    if args.json:
        print(json.dumps({"address": upload.address, "files": upload.files, "kept": upload.kept}))
        return 0
    for name, size in upload.files.items():
        print(f"{size:>14,}  {name}")
    if upload.kept:
        print("the README.md there was written by hand, and stays as it is")
    print(f"{'would go to' if args.dry_run else 'uploaded to'} {upload.address}")
    return 0


if __name__ == "__main__":
    run(main)
