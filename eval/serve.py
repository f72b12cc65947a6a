"""Serve a search as a small JSON server, for programs: health, one query or a batch, OpenAPI."""

import argparse
import os
import sys
from collections.abc import Sequence

from cir_cot.cli import run
from cir_cot.engines import with_engine
from cir_cot.errors import InputError
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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `cir-cot serve`."""
    parser = command_parser("serve", __doc__)
    add_model(parser)
    add_index(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=7862,
        metavar="N",
        help="port on this machine, 0 for a free one (default 7862); others reach it through a proxy",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests for this host name, a proxy's; can be repeated",
    )
    add_samples(parser)
    add_device(parser)
    add_dtype(parser)
    add_pixels(parser)
    add_engine(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Open the port, load the model, and answer until a signal ends it."""
    args = parse(argv)
    try:
        from cir_cot.search.api import api
        from cir_cot.search.local_server import announcement, listen, make_server
    except ImportError:
        raise InputError("the server needs starlette: pip install 'cir-cot[demo]'") from None
    from cir_cot.heads.loaded import loaded_line
    from cir_cot.heads.samples import with_samples
    from cir_cot.search.search import open_search

    with listen(args.port) as listening:
        search = open_search(args.model, args.index, **loading_options(args))
        print(loaded_line(search.retriever, args.model), file=sys.stderr)
        search.retriever = with_engine(
            search.retriever, args.engine, args.engine_url, args.engine_model
        )
        search.retriever = with_samples(search.retriever, args.samples, args.temperature)
        held = f"{len(search.index)} pictures"
        print(announcement(listening, held, os.environ), file=sys.stderr)
        make_server(api(search, args.allowed_host)).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    run(main)
