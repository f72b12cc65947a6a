"""Build the demo's web page: choose a reference, write a change, correct the chain, continue from a result.

`layout` returns the page of a `Dialogue` as gradio blocks; `application` serves it behind checks of who asks. The page
loads nothing from elsewhere and records nothing.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr

from cir_cot.prompts import PARTS
from cir_cot.records import MAX_PART, MAX_TEXT, Record

from .demo_events import SCREEN, Buttons, note
from .dialogue import (
    MAX_BYTES,
    SHOWN,
    Dialogue,
    empty_state,
    explained,
    small,
)
from .filter_columns import Column
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


Parts = dict[str, Any]  # components by the names of demo_events.SCREEN, and others
# Where results lie below the query, show them after a search.
SHOW = """() => {
  if (window.innerWidth < 800) document.getElementById("results").scrollIntoView({block: "start"});
}"""
# The address of the search that is shown.
KEEP = "(query) => { if (query) window.history.replaceState(null, '', query); }"


def choose_controls(do: Buttons) -> Parts:
    """Add the controls that choose a reference: examples, pictures of the gallery, an id, an upload."""
    # gradio places components where they are made.
    with gr.Accordion("Choose a reference", open=True) as choose:
        examples = gr.Gallery(
            [
                (small(do.dialogue.images.load(row.reference), SHOWN), row.text)
                for row in do.examples
            ],
            label="Examples: click one to search",
            columns=8,
            fit_columns=False,
            visible=bool(do.examples),
            **GRID,
        )
        starters = gr.Gallery(label="Pictures of the gallery", columns=8, **GRID)
        with gr.Row():
            with gr.Column(min_width=280):
                shuffle = gr.Button("Show others", size="sm")
                named = gr.Textbox(label="Or an image id of the gallery", max_length=500)
            file = gr.File(
                label="Or upload a picture",
                type="binary",
                file_types=["image"],
                height=120,
                min_width=280,
            )
    return {
        "choose": choose,
        "examples": examples,
        "starters": starters,
        "shuffle": shuffle,
        "named": named,
        "file": file,
    }


def query_controls(dialogue: Dialogue) -> Parts:
    """Add the reference, the text, the modes and the filters."""
    modes = explained(dialogue.modes)
    reference = gr.Image(
        label="Reference",
        interactive=False,
        visible=False,
        height=300,
        alt_text="The reference picture",
        buttons=[],
        elem_id="reference",
    )
    # With one line Enter searches; the box grows with its text.
    text = gr.Textbox(label="What should be different?", lines=1, max_lines=4, max_length=MAX_TEXT)
    go = gr.Button("Search", variant="primary")
    with gr.Row():
        mode = gr.Dropdown(modes, value=modes[0][1], label="Search", min_width=130)
        nothing = ("nothing", "")
        other = gr.Dropdown([nothing, *modes], value="", label="Compare with", min_width=130)
    filters = filter_controls(dialogue.columns)
    return {
        "reference": reference,
        "text": text,
        "go": go,
        "mode": mode,
        "other": other,
        "filters": filters,
    }


def filter_controls(columns: Sequence[Column]) -> list[Any]:
    """Add a control for each column of the index: a choice of values, or two bounds of a number."""
    controls: list[Any] = []
    with gr.Accordion("Only pictures with …", open=False, visible=bool(columns)):
        for column in columns:
            if column.values:
                choices = [(str(value), value) for value in column.values]
                controls.append(gr.Dropdown(choices, label=column.name, multiselect=True))
                continue
            # The bounds that the index holds are shown, not filled in.
            with gr.Row():
                for word, bound in (("from", column.low), ("to", column.high)):
                    label = f"{column.name} {word}"
                    number = gr.Number(None, label=label, placeholder=f"{bound:g}", min_width=100)
                    controls.append(number)
    return controls


def chain_controls(dialogue: Dialogue) -> Parts:
    """Add the boxes of the chain, which are shown once a chain is there."""
    parts: Parts = {}
    with gr.Group(visible=False) as chain:
        for part in PARTS:
            label = f"{part.capitalize()} (edit it)"
            parts[part] = gr.Textbox(label=label, lines=1, max_lines=6, max_length=MAX_PART)
        editable = any(dialogue.chains(name) for name in dialogue.modes)
        parts["again"] = gr.Button("Search again with this chain", visible=editable)
    return parts | {"chain": chain}


def result_controls() -> Parts:
    """Add the status, the pictures found, what can be done with one, the comparison and the history."""
    status = gr.HTML(note("Choose a reference, then write what should change."))
    # Of a chosen result; above the pictures, so that it is in view.
    with gr.Group(visible=False, elem_id="judge") as judge:
        judged = gr.HTML()
        with gr.Row():
            onward = gr.Button("Search from it", size="sm", min_width=100)
            like = gr.Button("More like this", size="sm", min_width=100)
            dislike = gr.Button("Not this", size="sm", min_width=100)
    label = "Found: choose one to go on"
    found = gr.Gallery(label=label, columns=4, **GRID, visible=False, elem_id="found")
    second = gr.Gallery(label="Found by the other", columns=4, **GRID, visible=False)
    chains = gr.HTML()
    label = "So far: click to go back"
    history = gr.Gallery(label=label, columns=6, fit_columns=False, **GRID, visible=False)
    return {
        "status": status,
        "found": found,
        "judge": judge,
        "judged": judged,
        "onward": onward,
        "like": like,
        "dislike": dislike,
        "second": second,
        "difference": chains,
        "history": history,
    }


def layout(dialogue: Dialogue, examples: Sequence[Record] = ()) -> gr.Blocks:
    """Return the page of a dialogue.

    Args:
        dialogue: answers the questions.
        examples: records whose reference and text a visitor can click.
    """
    do = Buttons(dialogue, examples)
    with gr.Blocks(
        title="Composed image retrieval", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        # Place the components: the query on the left, on a phone above, the results beside it.
        parts: Parts = {"state": gr.State(empty_state()), "names": gr.State([])}
        gr.HTML("<h1>Find a picture from a picture and a sentence</h1>")
        parts |= choose_controls(do)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                parts |= query_controls(dialogue)
                parts |= chain_controls(dialogue)
            with gr.Column(scale=3, min_width=280, elem_id="results"):
                parts |= result_controls()
        parts["address"] = gr.Textbox(label="Address", visible="hidden")
        connect(blocks, do, parts)
    return blocks.queue(max_size=WAITING, api_open=False)


def connect(blocks: gr.Blocks, do: Buttons, parts: Parts) -> None:
    """Connect the components with the handlers of their events."""
    screen = [*(parts[name] for name in SCREEN), *parts["filters"]]
    # Searches wait for the model, one at a time; everything else is answered at once.
    direct: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    queued: dict[str, Any] = {
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "minimal",
        "show_progress_on": parts["status"],
    }
    # Searches.
    state = parts["state"]
    query = [state, parts["text"], parts["mode"]]
    boxes = [parts[part] for part in PARTS]
    go = [parts["go"].click, parts["text"].submit]
    asked = [*query, parts["other"], *parts["filters"]]
    corrected = [*query, *boxes, *parts["filters"]]
    searches = [
        gr.on(go, do.search, asked, screen, **queued),
        parts["again"].click(do.again, corrected, screen, **queued),
        parts["like"].click(do.like, [state], screen, **queued),
        parts["dislike"].click(do.dislike, [state], screen, **queued),
        parts["examples"].select(do.example, [parts["mode"]], screen, **queued),
        parts["history"].select(do.turn, [state], screen, **direct),
    ]
    for event in searches:
        event.then(None, None, None, js=SHOW, **direct)
    # The address is that of the last search, and a page opened at it searches again.
    parts["address"].change(None, [parts["address"]], None, js=KEEP, **direct)
    opening = "() => [window.location.search]"
    blocks.load(do.opened, [parts["address"]], screen, js=opening, **queued)
    # Choices.
    parts["found"].select(do.hit, [state], screen, **direct)
    parts["onward"].click(do.start_from_hit, [state], screen, **direct)
    parts["starters"].select(do.starter, [parts["names"]], screen, **direct)
    file = parts["file"]
    gr.on([file.upload, file.clear], do.upload, [file], screen, **direct)
    parts["named"].submit(do.named, [parts["named"]], screen, **direct)
    offered = [parts["starters"], parts["names"]]
    parts["shuffle"].click(do.dialogue.starters, None, offered, **direct)
    blocks.load(do.dialogue.starters, None, offered, **direct)


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
