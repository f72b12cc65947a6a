"""Fixtures of the whole suite: one thread, no network, and the annotation files that only some machines have."""

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal

import pytest
import torch

# A shell's background job starts with Ctrl-C ignored, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # two spinning threads on a busy machine are many times slower than one

REPOSITORY = Path(__file__).resolve().parent.parent


def _shared(name: str) -> Path:
    folder = Path(os.environ.get("CIR_COT_SHARED", REPOSITORY.parent / "shared")) / name
    if not folder.is_dir():
        pytest.skip(
            f"needs the real annotation files at {folder} (set CIR_COT_SHARED to the folder holding {name}/)"
        )
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real annotation files: fashioniq/, cirr/, circo/, shoes/, wardrobe/."""
    return _shared("data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of rankings and of the numbers the official evaluators gave for them (expected.json)."""
    return _shared("golden")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, which huggingface_hub asks; its cache and the working directory are new."""
    import huggingface_hub.constants
    from fake_hub import Hub

    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    constants = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "no_token"),
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield server
    server.close()


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A retriever's folder with an adapter, whose base is named as one on the hub."""
    folder = tmp_path / "adapter"
    shutil.copytree(REPOSITORY / "tests/old_files/run", folder)
    settings = json.loads((folder / "retriever.json").read_text(encoding="utf-8"))
    settings["backbone"] = "them/base@v1"
    (folder / "retriever.json").write_text(json.dumps(settings))
    return folder
