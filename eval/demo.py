"""Serve a web page to search with, on this machine only.

The page shows the chain while it is written, lets you edit it, and searches again with the edited chain.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cir_cot.cli import run
from cir_cot.engines import with_engine
from cir_cot.errors import InputError
from cir_cot.images import list_pictures
from cir_cot.options import (
    add_device,
    add_dtype,
    add_engine,
    add_index,
    add_model,
    add_pixels,
    command_parser,
    loading_options,
)
from cir_cot.protocol_options import add_samples
from cir_cot.records import Record, read_records
from cir_cot.search.dialogue import Dialogue, modes_of
from cir_cot.search.private_folder import ending_on_signals, private_folder, removed_after_kill
from cir_cot.search.search import open_search

try:
    from cir_cot.search.demo_page import application, keep_copies_in, layout
    from cir_cot.search.local_server import announcement, listen, make_server
except ImportError:
    raise InputError("the demo needs gradio: pip install 'cir-cot[demo]'") from None

EXAMPLES = 8  # two rows of pictures


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot demo`."""
    parser = command_parser("demo", __doc__)
    add = parser.add_argument
    add_model(parser)
    add_index(parser)
    add(
        "--images",
        metavar="DIR",
        help="where the gallery's pictures are now (default: where they were when indexed)",
    )
    add(
        "--compare",
        nargs=2,
        metavar=("DIR", "INDEX"),
        help="second retriever, and an index built with it, to show beside the first",
    )
    add(
        "--examples",
        metavar="FILE",
        help="records (JSONL) whose reference and text visitors can click; eight are shown",
    )
    add(
        "--port",
        type=int,
        default=7860,
        metavar="N",
        help="port on this machine, 0 for a free one (default 7860); other machines cannot reach it",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests for this host name, for example a proxy's; can be repeated. "
        "Everyone who can reach that name sees the gallery",
    )
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_engine(parser)
    add_samples(parser)
    args = parser.parse_args(argv)
    if bad := [name for name in args.allowed_host if "*" in name or "/" in name or not name]:
        parser.error(f"--allowed-host {bad[0]!r}: give a host's name alone, e.g. demo.example.org")
    return args


def load(args: argparse.Namespace) -> Dialogue:
    """Load the retrievers, the indexes and the folder of pictures."""
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.heads.samples import with_samples

    search = open_search(args.model, args.index, **loading_options(args))
    print(loaded_line(search.retriever, args.model), file=sys.stderr)
    search.retriever = with_engine(
        search.retriever, args.engine, args.engine_url, args.engine_model
    )
    search.retriever = with_samples(search.retriever, args.samples, args.temperature)
    modes = modes_of(search)
    if args.compare:
        model, index = args.compare
        second = open_search(model, index, **loading_options(args))
        modes |= modes_of(second, Path(model).name)
    return Dialogue(modes, list_pictures(args.images or search.index.metadata["images"]))


def load_examples(path: str, dialogue: Dialogue) -> list[Record]:
    """Return EXAMPLES records of a file, evenly spread over it, whose references the gallery holds."""
    rows = [row for row in read_records(path) if row.reference in dialogue.known]
    if not rows:
        raise InputError(f"--examples {path}: no record's reference is a picture of the index")
    step = max(1, len(rows) // EXAMPLES)
    return rows[::step][:EXAMPLES]


def serve(
    load_page: Callable[[], Dialogue],
    port: int,
    hosts: Sequence[str] = (),
    examples: str | None = None,
) -> None:
    """Load a dialogue and serve its page until a signal ends it; the temporary copies of its pictures go with it.

    The port is opened first, so that a busy one is reported before a model is loaded.
    """
    with (
        ending_on_signals(),
        listen(port) as listening,
        private_folder("cir-cot-demo-") as folder,
        removed_after_kill(folder),
    ):
        keep_copies_in(folder)
        page = load_page()
        rows = load_examples(examples, page) if examples else []
        held = f"{len(page.ids)} pictures"
        print(announcement(listening, held, os.environ), file=sys.stderr)
        make_server(application(layout(page, rows), hosts)).run(sockets=[listening])


def main(argv: Sequence[str]) -> int:
    """Load the retrievers and indexes and serve the page until it is interrupted."""
    args = parse(argv)
    serve(lambda: load(args), args.port, args.allowed_host, args.examples)
    return 0


if __name__ == "__main__":
    run(main)
