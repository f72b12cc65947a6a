"""Options of the commands that measure, for the variants of a benchmark's protocol."""

import argparse

from .data.circo import CIRCO_TEXTS
from .data.fashioniq import CAPTION_JOINS, GALLERIES
from .errors import InputError
from .options import Parser

# Attribute of the parsed arguments -> option of the dataset's loader.
VARIANTS = {
    "gallery": "gallery",
    "reference": "reference",
    "caption_join": "caption_join",
    "labels": "labels",
    "prompt": "text",
}


def add_reference(parser: Parser) -> None:
    """Add --reference: whether a query's own reference picture may be an answer."""
    parser.add_argument(
        "--reference",
        choices=("keep", "remove"),
        help="whether the reference picture stays among the answers (default: as the benchmark's "
        "protocol says)",
    )


def add_variants(parser: Parser, asks: bool = True) -> None:
    """Add the options that choose a benchmark's variant; the default is the protocol that most papers report.

    Args:
        parser: Parser or argument group.
        asks: Whether the command asks queries itself, so that their texts matter.
    """
    parser.add_argument(
        "--gallery",
        choices=GALLERIES,
        help="FashionIQ only: original split, images in use (VAL), or all categories "
        "(default: original)",
    )
    add_reference(parser)
    parser.add_argument(
        "--caption-join",
        choices=list(CAPTION_JOINS),
        help="FashionIQ only: how the two captions become the text of a query, or of two queries "
        "(default: clip4cir)",
    )
    parser.add_argument(
        "--labels",
        choices=("hard", "soft"),
        help="CIRR only: the official target, or the graded labels of its authors (default: hard)",
    )
    if asks:
        parser.add_argument(
            "--prompt",
            choices=list(CIRCO_TEXTS),
            help="CIRCO only: the relative caption, or it with the shared concept as MagicLens or "
            "MegaPairs ask it, an advantage to be disclosed (default: plain)",
        )


def variants_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the options of `load_benchmark` that were given on the command line."""
    given = {}
    for name, option in VARIANTS.items():
        value = getattr(args, name, None)
        if value is not None:
            given[option] = value
    return given


def add_samples(parser: Parser) -> None:
    """Add --samples and --temperature: how many chains a query is read with."""
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="K",
        help="chains that a query is read with: the likeliest one and K - 1 drawn ones, the mean of their vectors; "
        "costs K times the tokens (default 1)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        metavar="T",
        help="temperature of the drawn chains, above 0 (default 0.7)",
    )


def add_rerank(parser: Parser) -> None:
    """Add --rerank and --reranker: look again at the first K."""
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="K",
        help="look again at the first K pictures: a reranker judges each together with the query and its chain "
        "(default: do not)",
    )
    parser.add_argument(
        "--reranker", metavar="DIR", help="folder that cir-cot rerank wrote, for --rerank"
    )


def check_rerank(args: argparse.Namespace) -> None:
    """Refuse one of --rerank and --reranker without the other, or a K below 1."""
    if (args.rerank is None) != (args.reranker is None):
        raise InputError("give --rerank K together with --reranker DIR, or neither")
    if args.rerank is not None and args.rerank < 1:
        raise InputError(f"--rerank {args.rerank}: look at one picture at least")
