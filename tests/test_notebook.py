"""The notebook of the documentation: all of its cells run, and what it shows is what they show.

    CIR_COT_WRITE_NOTEBOOK=1 pytest tests/test_notebook.py

runs it with its own number of steps, in minutes, and stores the outputs in docs/notebook.ipynb.
"""

import json
import os
from pathlib import Path

import pytest
from notebook_cells import TEXT, run_cells

# Of huggingface_hub's own upload.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
WRITE = "CIR_COT_WRITE_NOTEBOOK"
CELLS = 26  # of code, at least: what a user of the notebook interface tries


def read() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def session(hub, monkeypatch, capsys):
    """Names and outputs after all cells ran, with a stand-in for the hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    notebook = read()
    if os.environ.get(WRITE) != "1":
        monkeypatch.setenv("STEPS", "4")
    names = run_cells(notebook)
    if os.environ.get(WRITE) == "1":
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        NOTEBOOK.write_text(text, encoding="utf-8")
    return names, notebook, hub


def test_every_cell_runs(session):
    names, notebook, hub = session
    assert len(code(notebook)) >= CELLS
    assert names["again"].dim == names["retriever"].dim
    assert "me/scenes" in hub.repositories
    assert names["full"].protocol["reading"] == "full"
    assert len(names["answer"].hits) == 4
    assert names["further"].dim == names["retriever"].dim
    # The cells show what the stored notebook shows, in the same forms.
    for now, stored in zip(code(notebook), code(read()), strict=True):
        assert forms(now) == forms(stored), "".join(stored["source"])


def forms(cell: dict) -> list:
    """Kinds of a cell's outputs."""
    found = []
    for output in cell["outputs"]:
        found.append(sorted(output["data"]) if "data" in output else output["output_type"])
    return found


def test_the_stored_notebook_is_small_complete_and_of_no_machine():
    notebook = read()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert "/tmp/" not in text
    assert "127.0.0.1" not in text
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for number, cell in enumerate(code(notebook), 1):
        assert cell["execution_count"] == number
        for output in cell["outputs"]:
            if "data" in output:
                assert TEXT in output["data"]
