"""A web page to search with: the chain as it is written, corrected by hand, searched again; on this machine alone."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from cir_cot.cli import run
from cir_cot.errors import InputError
from cir_cot.options import (
    add_device,
    add_dtype,
    add_index,
    add_model,
    command_parser,
)
from cir_cot.prompts import PARTS, written_parts
from cir_cot.search.dialogue import MAX_BYTES, MAX_WORDS, Dialogue, empty_state, kept, told, ways_of
from cir_cot.search.private_folder import ending_on_signals, private_folder
from cir_cot.search.search import open_search
from cir_cot.webpage import thumbnail

try:
    import fastapi
    import gradio as gr

    from cir_cot.search.local_server import LOCAL, address_of, checks, listen, make_server
except ImportError:
    raise InputError("the demo needs gradio: pip install 'cir-cot[demo]'") from None

WAITING = 16  # requests that may wait for the model
TICK = 0.1  # seconds between two pictures of a chain that grows
NOTHING = "nothing"
GRID = {
    "allow_preview": False,
    "interactive": False,
    "object_fit": "contain",
    "buttons": [],
    "height": "auto",
}
STYLE = """
.note { font-size: .9rem; } .turns { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .75rem; }
.turns li { max-width: 10rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
.turns img { width: 4.5rem; height: 4.5rem; object-fit: contain; }
.grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
.grid-wrap { padding-top: 2.2rem !important; max-height: none !important; overflow: visible !important; }
.thumbnail-lg { display: flex !important; flex-direction: column; height: auto !important;
  aspect-ratio: auto !important; }
.thumbnail-lg > img { height: auto !important; aspect-ratio: 1; }
.caption-label { position: static !important; max-width: none !important; width: 100%; border: 0 !important;
  white-space: normal !important; overflow-wrap: anywhere; text-align: center !important; }
@media (max-width: 40rem) { .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; } }
:is(textarea, button, input):focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
"""


def note(words: str, bad: bool = False) -> str:
    """Return a line for the status, escaped, that screen readers announce."""
    return f'<p class="note" role="{"alert" if bad else "status"}">{escape(words)}</p>'


def turns_of(state: dict) -> str:
    """Return the dialogue so far as HTML: of each turn the reference, the words and the first picture found."""
    if not state["turns"]:
        return ""
    items = "".join(
        f"<li>{thumbnail(turn['picture'], 'reference of this turn')}{number}. {escape(turn['text'])}"
        f"<br>→ {escape(turn['first'])}</li>"
        for number, turn in enumerate(state["turns"], 1)
    )
    return f'<h2>Dialogue</h2><ol class="turns">{items}</ol>'


class Buttons:
    """The functions behind the page's buttons; each answers bad input with a line in the status."""

    def __init__(self, page: Dialogue):
        self.page, self.count = page, len(page.ids)

    def search(self, state, text, way, other):
        """Yield state, three parts, found, found by the other way, status, dialogue."""
        same = gr.skip()
        try:
            shown, answer = 0.0, None
            for answer in self.page.ask(state, text, way):
                if isinstance(answer, str) and time.monotonic() - shown > TICK:
                    shown = time.monotonic()
                    yield same, *parts_of(answer), same, same, note("Writing the chain …"), same
            words, second = told(answer, way, self.count), []
            if other != NOTHING:
                *_, compared = self.page.ask(state, text, other)
                second, words = (
                    self.page.pictures(compared),
                    f"{words} {told(compared, other, self.count)}",
                )
            state = kept(state, text.strip(), answer)
            found = self.page.pictures(answer)
            yield state, *parts_of(answer.explanation), found, second, note(words), turns_of(state)
        except InputError as error:
            yield same, *[same] * 3, same, same, note(str(error), bad=True), same

    def again(self, state, text, way, *parts):
        """Return state, found, found by the other way, status, dialogue of a search with the chain in the boxes."""
        same = gr.skip()
        try:
            answer = self.page.ask_again(state, text, way, parts)
            state = kept(state, f"{text.strip()} (chain corrected)", answer)
            words = told(answer, f"{way}, with your chain", self.count)
            return state, self.page.pictures(answer), [], note(words), turns_of(state)
        except InputError as error:
            return same, same, same, note(str(error), bad=True), same

    def hit(self, state, event: gr.SelectData):
        """Go on from a picture that was found."""
        return taken(lambda: self.page.start_from(state["hits"][event.index], state["turns"]))

    def starter(self, names, event: gr.SelectData):
        """Begin with one of the pictures that are offered."""
        return taken(lambda: self.page.start_from(names[event.index], []))

    def named(self, name):
        """Begin with a picture of the gallery, by its id."""
        return taken(lambda: self.page.start_from((name or "").strip(), []))

    def upload(self, data):
        """Begin with a visitor's own picture."""
        return taken(lambda: self.page.upload(data))


def taken(make: Callable[[], dict]) -> tuple:
    """Return state, reference picture, status and dialogue of a new reference that `make` makes."""
    try:
        state = make()
        words = "Now write what should change." if state["picture"] else ""
        return state, state["picture"], note(words), turns_of(state)
    except InputError as error:
        return gr.skip(), gr.skip(), note(str(error), bad=True), gr.skip()


def parts_of(explanation: str) -> list[str]:
    """Return the three parts of a chain as far as they are written."""
    parts = written_parts(explanation)
    return [parts.get(part, "") for part in PARTS]


def layout(page: Dialogue) -> gr.Blocks:
    """Return the page."""
    do, ways = Buttons(page), list(page.ways)
    with gr.Blocks(
        title="Composed image retrieval", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        state, names = gr.State(empty_state()), gr.State([])
        gr.HTML("<h1>Find a picture from a picture and a sentence</h1>")
        with gr.Row():
            with gr.Column(min_width=280):
                reference = gr.Image(
                    label="Reference",
                    interactive=False,
                    height=240,
                    alt_text="The reference picture",
                    buttons=[],
                )
                with gr.Accordion("Choose a reference", open=True):
                    starters = gr.Gallery(label="Pictures of the gallery", columns=4, **GRID)
                    shuffle = gr.Button("Show others", size="sm")
                    named = gr.Textbox(label="Or an image id of the gallery", max_length=500)
                    file = gr.File(
                        label="Or upload a picture", type="binary", file_types=["image"], height=140
                    )
            with gr.Column(min_width=280):
                text = gr.Textbox(label="What should be different?", lines=2, max_length=MAX_WORDS)
                with gr.Row():
                    way = gr.Dropdown(ways, value=ways[0], label="Search", min_width=130)
                    other = gr.Dropdown(
                        [NOTHING, *ways], value=NOTHING, label="Compare with", min_width=130
                    )
                go = gr.Button("Search", variant="primary")
                status = gr.HTML(note("Choose a reference, then write what should change."))
                with gr.Group(visible=any(map(page.chains, ways))):
                    boxes = [
                        gr.Textbox(
                            label=f"{part.capitalize()} (edit it)", lines=2, max_length=MAX_WORDS
                        )
                        for part in PARTS
                    ]
                    again = gr.Button("Search again with this chain")
        with gr.Row():
            found = gr.Gallery(
                label="Found: choose one as the next reference", columns=6, **GRID, min_width=280
            )
            second = gr.Gallery(
                label="Found by the other", columns=6, **GRID, min_width=280, visible=False
            )
        history = gr.HTML()
        queued = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        open_ = {"api_visibility": "private"}
        answers = [state, *boxes, found, second, status, history]
        chosen = [state, reference, status, history]
        gr.on([go.click, text.submit], do.search, [state, text, way, other], answers, **queued)
        again.click(
            do.again, [state, text, way, *boxes], [state, found, second, status, history], **queued
        )
        other.change(lambda name: gr.update(visible=name != NOTHING), [other], [second], **open_)
        found.select(do.hit, [state], chosen, **open_)
        starters.select(do.starter, [names], chosen, **open_)
        file.change(do.upload, [file], chosen, **open_)
        named.submit(do.named, [named], chosen, **open_)
        shuffle.click(page.starters, None, [starters, names], **open_)
        blocks.load(page.starters, None, [starters, names], **open_)
    return blocks.queue(max_size=WAITING, api_open=False)


def application(blocks: gr.Blocks, hosts: Sequence[str] = ()) -> fastapi.FastAPI:
    """Put the page behind the checks of host and origin; no folder is served or shared.

    `hosts` are names that are answered beside this machine's own. Another site's name that leads here (DNS rebinding)
    is refused, and so is what another site's page asks.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks.state_session_capacity = 200
    # only then does gradio refuse, as an upload, a file that was not uploaded
    blocks.has_launched = True
    return gr.mount_gradio_app(
        fastapi.FastAPI(middleware=checks(hosts, data="/gradio_api/"), openapi_url=None),
        blocks,
        path="/",
        server_name=LOCAL,
        show_error=False,
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        css=STYLE,
        theme=gr.themes.Default(**fonts),
    )


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
    args = parser.parse_args(argv)
    if bad := [name for name in args.allowed_host if "*" in name or "/" in name or not name]:
        parser.error(f"--allowed-host {bad[0]!r}: give a host's name alone, e.g. demo.example.org")
    return args


def load(args: argparse.Namespace) -> Dialogue:
    """Load retrievers, indexes and the folder of pictures."""
    from cir_cot.images import list_pictures

    search = open_search(args.model, args.index, device=args.device, dtype=args.dtype)
    ways = ways_of(search)
    if args.compare:
        ways |= ways_of(
            open_search(*args.compare, device=args.device, dtype=args.dtype),
            Path(args.compare[0]).name,
        )
    return Dialogue(ways, list_pictures(args.images or search.index.metadata["images"]))


def keep_copies_in(folder: Path) -> None:
    """Make gradio, and whatever else makes temporary files, use a folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    tempfile.tempdir = str(folder)


def serve(load_page: Callable[[], Dialogue], port: int, hosts: Sequence[str] = ()) -> None:
    """Load the page and serve it until a signal ends it; the temporary copies of its pictures go with it."""
    with ending_on_signals(), listen(port) as listening, private_folder("cir-cot-demo-") as folder:
        keep_copies_in(folder)
        page = load_page()
        print(
            f"{address_of(listening)}  {len(page.ids)} pictures; stop with Ctrl-C", file=sys.stderr
        )
        make_server(application(layout(page), hosts)).run(sockets=[listening])


def main(argv: Sequence[str]) -> int:
    """Load what is asked for and serve the page until it is interrupted."""
    args = parse(argv)
    serve(lambda: load(args), args.port, args.allowed_host)
    return 0


if __name__ == "__main__":
    run(main)
