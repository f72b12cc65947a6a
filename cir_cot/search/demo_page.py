"""Build the demo's web page: choose a reference, write a change, correct the chain, continue from a result.

`layout` returns the page of a `Dialogue` as gradio blocks; `application` serves it behind checks of who asks. The page
loads nothing from elsewhere and records nothing.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr

from cir_cot.prompts import PARTS

from .demo_events import NOTHING, Buttons, note
from .dialogue import MAX_BYTES, MAX_CHARACTERS, Dialogue, empty_state
from .local_server import LOCAL, checks

WAITING = 16  # requests that may wait for the model
STYLE = Path(__file__).with_name("demo.css")
# Options of every gallery of pictures.
GRID: dict[str, Any] = {
    "allow_preview": False,
    "interactive": False,
    "object_fit": "contain",
    "buttons": [],
    "height": "auto",
}


@dataclass
class ReferenceControls:
    """The components with which a visitor chooses a reference."""

    reference: gr.Image
    starters: gr.Gallery
    shuffle: gr.Button
    named: gr.Textbox
    file: gr.File


@dataclass
class QueryControls:
    """The components with which a visitor asks and corrects the chain."""

    text: gr.Textbox
    mode: gr.Dropdown
    other: gr.Dropdown
    go: gr.Button
    status: gr.HTML
    boxes: list[gr.Textbox]
    again: gr.Button


def reference_column() -> ReferenceControls:
    """Add the column with the reference and the controls that choose another."""
    # gradio places components where they are made.
    with gr.Column(min_width=280):
        reference = gr.Image(
            label="Reference",
            interactive=False,
            height=240,
            alt_text="The reference picture",
            buttons=[],
        )
        # A picture of the gallery, its id, or an upload.
        with gr.Accordion("Choose a reference", open=True):
            starters = gr.Gallery(label="Pictures of the gallery", columns=4, **GRID)
            shuffle = gr.Button("Show others", size="sm")
            named = gr.Textbox(label="Or an image id of the gallery", max_length=500)
            file = gr.File(
                label="Or upload a picture", type="binary", file_types=["image"], height=140
            )
    return ReferenceControls(reference, starters, shuffle, named, file)


def query_column(dialogue: Dialogue) -> QueryControls:
    """Add the column with the text, the modes, the status and the chain."""
    modes = list(dialogue.modes)
    with gr.Column(min_width=280):
        text = gr.Textbox(label="What should be different?", lines=2, max_length=MAX_CHARACTERS)
        with gr.Row():
            mode = gr.Dropdown(modes, value=modes[0], label="Search", min_width=130)
            other = gr.Dropdown(
                [NOTHING, *modes], value=NOTHING, label="Compare with", min_width=130
            )
        go = gr.Button("Search", variant="primary")
        status = gr.HTML(note("Choose a reference, then write what should change."))
        # The chain can be edited where any mode can encode it.
        with gr.Group(visible=any(dialogue.chains(name) for name in modes)):
            boxes = []
            for part in PARTS:
                label = f"{part.capitalize()} (edit it)"
                boxes.append(gr.Textbox(label=label, lines=2, max_length=MAX_CHARACTERS))
            again = gr.Button("Search again with this chain")
    return QueryControls(text, mode, other, go, status, boxes, again)


def layout(dialogue: Dialogue) -> gr.Blocks:
    """Return the page of a dialogue."""
    do = Buttons(dialogue)
    with gr.Blocks(
        title="Composed image retrieval", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        # Place the components.
        state = gr.State(empty_state())
        names = gr.State([])
        gr.HTML("<h1>Find a picture from a picture and a sentence</h1>")
        with gr.Row():
            ref = reference_column()
            ask = query_column(dialogue)
        with gr.Row():
            label = "Found: choose one as the next reference"
            found = gr.Gallery(label=label, columns=6, **GRID, min_width=280)
            second = gr.Gallery(
                label="Found by the other", columns=6, **GRID, min_width=280, visible=False
            )
        history = gr.HTML()
        # Searches wait for the model, one at a time; everything else is answered at once.
        queued: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        direct: dict[str, Any] = {"api_visibility": "private"}
        # Inputs and outputs of each event, in the order of the handlers' arguments and results.
        query = [state, ask.text, ask.mode]
        answers = [state, *ask.boxes, found, second, ask.status, history]
        corrected = [state, found, second, ask.status, history]
        gr.on([ask.go.click, ask.text.submit], do.search, [*query, ask.other], answers, **queued)
        ask.again.click(do.again, [*query, *ask.boxes], corrected, **queued)
        ask.other.change(
            lambda name: gr.update(visible=name != NOTHING), [ask.other], [second], **direct
        )
        # Every control that chooses a reference.
        chosen = [state, ref.reference, ask.status, history]
        found.select(do.hit, [state], chosen, **direct)
        ref.starters.select(do.starter, [names], chosen, **direct)
        ref.file.change(do.upload, [ref.file], chosen, **direct)
        ref.named.submit(do.named, [ref.named], chosen, **direct)
        ref.shuffle.click(dialogue.starters, None, [ref.starters, names], **direct)
        blocks.load(dialogue.starters, None, [ref.starters, names], **direct)
    return blocks.queue(max_size=WAITING, api_open=False)


# ---- serving it


def application(blocks: gr.Blocks, hosts: Sequence[str] = ()) -> fastapi.FastAPI:
    """Put the page behind checks of host and origin; no folder is served or shared.

    Requests under another site's host name (DNS rebinding), and requests from another site's page, are refused.

    Args:
        blocks: the page.
        hosts: host names to answer to, beside this machine's own.
    """
    # Bound what visitors who come and go leave in memory.
    blocks.state_session_capacity = 200
    # Only with this does gradio refuse, as an upload, a file that was not uploaded.
    blocks.has_launched = True
    # The reader's own fonts: nothing is loaded from elsewhere.
    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
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
        css=STYLE.read_text(encoding="utf-8"),
        theme=gr.themes.Default(**fonts),
    )


def keep_copies_in(folder: Path) -> None:
    """Make gradio, and everything else that makes temporary files, use a folder."""
    # gradio reads the variable; uploads in progress use Python's default.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    tempfile.tempdir = str(folder)
