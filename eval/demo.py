"""A web page to search with: the chain as it is written, corrected by hand, searched again; on this machine alone."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from cir_cot.cli import run
from cir_cot.dialogue import MAX_BYTES, MAX_WORDS, Dialogue, empty_state, kept, told, ways_of
from cir_cot.prompts import PARTS, written_parts
from cir_cot.records import InputError
from cir_cot.search import open_search
from cir_cot.webpage import thumbnail

try:
    import gradio as gr
except ImportError:
    raise InputError("the demo needs gradio: pip install 'cir-cot[demo]'") from None

WAITING = 16  # requests that may wait for the model
TICK = 0.1  # seconds between two pictures of a chain that grows
NOTHING = "nothing"
GRID = {"columns": 4, "allow_preview": False, "interactive": False, "object_fit": "contain", "buttons": []}
STYLE = """
.note { font-size: .9rem; } .turns { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .75rem; }
.turns li { max-width: 10rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
.turns img { width: 4.5rem; height: 4.5rem; object-fit: contain; }
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


def handlers(page: Dialogue) -> dict[str, Callable]:
    """Return the functions behind the page's buttons; each answers bad input with a line in the status."""
    same = gr.skip()

    def search(state, text, way, other):
        """Yield state, three parts, found, found by the other way, status, dialogue."""
        try:
            shown, answer = 0.0, None
            for answer in page.ask(state, text, way):
                if isinstance(answer, str) and time.monotonic() - shown > TICK:
                    shown = time.monotonic()
                    yield same, *parts_of(answer), same, same, note("Writing the chain …"), same
            words, second = told(answer, way, len(page.ids)), []
            if other != NOTHING:
                *_, compared = page.ask(state, text, other)
                second, words = page.pictures(compared), f"{words} {told(compared, other, len(page.ids))}"
            state = kept(state, text.strip(), answer)
            yield state, *parts_of(answer.explanation), page.pictures(answer), second, note(words), turns_of(state)
        except InputError as error:
            yield same, *[same] * 3, same, same, note(str(error), bad=True), same

    def again(state, text, way, *parts):
        """Return state, found, found by the other way, status, dialogue of a search with the chain in the boxes."""
        try:
            answer = page.ask_again(state, text, way, parts)
            state = kept(state, f"{text.strip()} (chain corrected)", answer)
            words = told(answer, f"{way}, with your chain", len(page.ids))
            return state, page.pictures(answer), [], note(words), turns_of(state)
        except InputError as error:
            return same, same, same, note(str(error), bad=True), same

    def take(make):
        """Return state, reference picture, status, dialogue of a new reference."""
        try:
            state = make()
            return (
                state,
                state["picture"],
                note("Now write what should change." if state["picture"] else ""),
                turns_of(state),
            )
        except InputError as error:
            return same, same, note(str(error), bad=True), same

    def take_hit(state, event: gr.SelectData):
        return take(lambda: page.start_from(state["hits"][event.index], state["turns"]))

    def take_starter(names, event: gr.SelectData):
        return take(lambda: page.start_from(names[event.index], []))

    return {
        "search": search,
        "again": again,
        "hit": take_hit,
        "starter": take_starter,
        "upload": lambda data: take(lambda: page.upload(data)),
        "named": lambda name: take(lambda: page.start_from((name or "").strip(), [])),
        "shuffle": page.starters,
    }


def parts_of(explanation: str) -> list[str]:
    """Return the three parts of a chain as far as they are written."""
    parts = written_parts(explanation)
    return [parts.get(part, "") for part in PARTS]


def layout(page: Dialogue) -> gr.Blocks:
    """Return the page."""
    do, ways = handlers(page), list(page.ways)
    with gr.Blocks(title="Composed image retrieval", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        state, names = gr.State(empty_state()), gr.State([])
        gr.HTML("<h1>Find a picture from a picture and a sentence</h1>")
        with gr.Row():
            with gr.Column(min_width=280):
                reference = gr.Image(label="Reference", interactive=False, height=240, alt_text="The reference picture")
                file = gr.File(label="Upload a picture", type="binary", file_types=["image"], height=110)
                named = gr.Textbox(label="Or an image id of the gallery", max_length=500)
            with gr.Column(min_width=280):
                text = gr.Textbox(label="What should be different?", lines=2, max_length=MAX_WORDS)
                with gr.Row():
                    way = gr.Dropdown(ways, value=ways[0], label="Search", min_width=130)
                    other = gr.Dropdown([NOTHING, *ways], value=NOTHING, label="Compare with", min_width=130)
                go = gr.Button("Search", variant="primary")
                status = gr.HTML(note("Choose a reference, then write what should change."))
        with gr.Accordion("Or start from one of these", open=True):
            starters = gr.Gallery(label="Pictures of the gallery", **GRID, height="auto")
            shuffle = gr.Button("Show others", size="sm")
        with gr.Group(visible=any(map(page.chains, ways))):
            boxes = [
                gr.Textbox(label=f"{part.capitalize()} (edit it)", lines=2, max_length=MAX_WORDS) for part in PARTS
            ]
            again = gr.Button("Search again with this chain")
        with gr.Row():
            found = gr.Gallery(label="Found: choose one as the next reference", **GRID, height="auto", min_width=280)
            second = gr.Gallery(label="Found by the other", **GRID, height="auto", min_width=280)
        history = gr.HTML()
        queued = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        open_ = {"api_visibility": "private"}
        answers = [state, *boxes, found, second, status, history]
        taken = [state, reference, status, history]
        gr.on([go.click, text.submit], do["search"], [state, text, way, other], answers, **queued)
        again.click(do["again"], [state, text, way, *boxes], [state, found, second, status, history], **queued)
        found.select(do["hit"], [state], taken, **open_)
        starters.select(do["starter"], [names], taken, **open_)
        file.change(do["upload"], [file], taken, **open_)
        named.submit(do["named"], [named], taken, **open_)
        shuffle.click(do["shuffle"], None, [starters, names], **open_)
        blocks.load(do["shuffle"], None, [starters, names], **open_)
    return blocks.queue(max_size=WAITING, api_open=False)


def serve(blocks: gr.Blocks, port: int | None, wait: bool = True) -> str:
    """Serve the page on this machine, at a free port if none is named -> its address; no folder is served or shared."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=not wait,
        quiet=True,
        show_error=False,
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        state_session_capacity=200,
        css=STYLE,
        theme=gr.themes.Default(**fonts),
    )
    return address


def main(argv: Sequence[str]) -> int:
    """Load what is asked for and serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(prog="cir-cot demo", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a saved retriever")
    add("--index", required=True, metavar="INDEX", help="what cir-cot index made with it")
    add("--images", metavar="DIR", help="where the gallery's pictures are now; default: where they were indexed")
    add("--compare", nargs=2, metavar=("DIR", "INDEX"), help="another retriever and an index made with it")
    add("--port", type=int, default=7860, help="on this machine alone (default 7860)")
    add("--device", help="e.g. cuda:1 or cpu; default: a GPU where there is one")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (default float32)")
    args = parser.parse_args(argv)
    from cir_cot.encoding import list_pictures

    search = open_search(args.model, args.index, device=args.device, dtype=args.dtype)
    ways = ways_of(search)
    if args.compare:
        ways |= ways_of(open_search(*args.compare, device=args.device, dtype=args.dtype), Path(args.compare[0]).name)
    page = Dialogue(ways, list_pictures(args.images or search.index.facts["images"]))
    print(f"http://127.0.0.1:{args.port}  {len(page.ids)} pictures; stop with Ctrl-C", file=sys.stderr)
    serve(layout(page), args.port)
    return 0


if __name__ == "__main__":
    run(main)
