"""Retrievers by their names on the hub, from a stand-in for it, and what is said where the hub does not deliver."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from cir_cot.cli import UNUSABLE, run
from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.hub import TINY_BASE, holds, hub_address, located
from cir_cot.scripts.eval import search
from cir_cot.scripts.train import sft

OLD = Path(__file__).parent / "old_files"


def embedding(retriever) -> torch.Tensor:
    return retriever.encode_target([Image.new("RGB", (60, 40), (200, 30, 60))])


def test_an_adapter_and_its_base_are_loaded_by_name(hub, adapter, monkeypatch):
    (adapter / "pytorch_model.bin").write_bytes(b"code")
    (adapter / "modeling.py").write_text("raise SystemExit")
    (adapter / "checkpoint-2").mkdir()
    (adapter / "checkpoint-2" / "head.safetensors").write_bytes(b"another")
    hub.add("me/retriever", adapter)
    hub.add("them/base", OLD / "base", ref="v1")
    monkeypatch.chdir(OLD)
    expected = embedding(load_retriever("run", device="cpu"))
    found = load_retriever("me/retriever", device="cpu")
    assert torch.equal(embedding(found), expected)
    # What could be code, and what belongs to no retriever, was never asked for.
    asked = {path.rpartition("/")[2] for _, path in hub.requests}
    assert asked.isdisjoint({"pytorch_model.bin", "modeling.py"})
    assert not any("checkpoint-2" in path for _, path in hub.requests)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, adapter):
    first = hub.add("me/retriever", adapter)
    (adapter / "retriever.json").write_text('{"format": 99}')
    hub.add("me/retriever", adapter)
    hub.repositories["me/retriever"].refs["v1"] = first
    for revision in ("v1", first):
        folder = located(f"me/retriever@{revision}")
        assert json.loads((folder / "retriever.json").read_text())["format"] == 1
    assert json.loads((located("me/retriever") / "retriever.json").read_text())["format"] == 99


def test_the_token_comes_from_the_environment(hub, adapter, monkeypatch):
    hub.add("me/secret", adapter, private=True)
    with pytest.raises(InputError, match="set HF_TOKEN"):
        located("me/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert (located("me/secret") / "retriever.json").is_file()


def test_what_is_in_the_cache_is_found_without_a_network(hub, adapter, monkeypatch):
    hub.add("me/retriever", adapter)
    folder = located("me/retriever")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert located("me/retriever") == folder


def unknown(hub, adapter, monkeypatch):
    return "me/nothing"


def revision(hub, adapter, monkeypatch):
    hub.add("me/retriever", adapter)
    return "me/retriever@v7"


def gated(hub, adapter, monkeypatch):
    hub.add("me/gated", adapter, gated=True)
    return "me/gated"


def offline(hub, adapter, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "me/retriever"


def unreachable(hub, adapter, monkeypatch):
    hub.close()
    return "me/retriever"


def base(hub, adapter, monkeypatch):
    hub.add("me/retriever", adapter)
    return "me/retriever"


def gated_base(hub, adapter, monkeypatch):
    hub.add("me/retriever", adapter)
    hub.add("them/base", OLD / "base", ref="v1", gated=True)
    return "me/retriever"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (unknown, "'me/nothing': neither a folder here nor a repository that the hub shows you; "),
        (revision, "'me/retriever@v7': the repository has no revision 'v7'; give a branch"),
        (gated, "/me/gated, then set HF_TOKEN to a token of your account"),
        (offline, "HF_HUB_OFFLINE forbids to ask; unset it, or give a folder"),
        (unreachable, "cannot be reached; check the network and HF_ENDPOINT, or give a folder"),
        (base, "'them/base@v1': neither a folder here nor a repository that the hub shows you; "),
        (gated_base, "/them/base, then set HF_TOKEN to a token of your account"),
    ],
)
def test_what_the_hub_does_not_deliver_is_one_line_with_the_cure(
    hub, adapter, monkeypatch, case, said
):
    name = case(hub, adapter, monkeypatch)
    with pytest.raises(InputError) as caught:
        load_retriever(name, device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistyped_path_beside_a_folder_is_never_looked_up(hub):
    Path("runs").mkdir()
    assert hub_address("runs/modle") is None
    assert hub_address("runs/modle@main") == ("runs/modle", "main")
    for path in ("runs", "./me/x", "../me/x", "/me/x", "a/b/c", "me/x@", "me/", "me/..", "~/x"):
        assert hub_address(path) is None, path
    with pytest.raises(InputError, match=r"no retriever\.json here"):
        load_retriever("runs/modle")
    assert hub.requests == []


def test_the_shipped_base_is_never_looked_up(hub):
    assert hub_address(TINY_BASE) is None
    assert holds(TINY_BASE, "config.json")
    assert not holds(TINY_BASE, "retriever.json")
    assert (located(TINY_BASE) / "config.json").is_file()
    assert hub.requests == []


def test_a_command_takes_a_name(hub, capsys, tmp_path):
    Path("index").symlink_to(OLD / "index")
    with pytest.raises(SystemExit) as ended:
        run(search.main, ["--model", "me/nothing", "--index", "index", "--text", "red",
                          "--image", str(next((OLD / "data/images").iterdir()))])  # fmt: skip
    assert ended.value.code == UNUSABLE
    error = capsys.readouterr().err
    assert error.startswith("error: 'me/nothing': neither a folder here nor a repository")
    assert error.count("\n") == 1


def test_a_repository_is_asked_for_a_file(hub, adapter, monkeypatch):
    hub.add("me/retriever", adapter)
    hub.add("them/base", OLD / "base")
    assert holds("me/retriever", "retriever.json")
    assert not holds("them/base", "retriever.json")
    with pytest.raises(InputError, match="neither a folder here"):
        holds("me/nothing", "retriever.json")
    # What is in neither place leaves the question to whoever loads.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert holds("me/retriever", "retriever.json")
    assert not holds("me/other", "retriever.json")


@pytest.mark.parametrize("name", ["me/retriever", "them/base@v1"])
def test_training_begins_from_a_name(hub, adapter, name):
    hub.add("me/retriever", adapter)
    hub.add("them/base", OLD / "base", ref="v1")
    for folder in ("data", "base"):
        shutil.copytree(OLD / folder, folder)
    arguments = json.loads((OLD / "run/run.json").read_text())["argv"]
    assert sft.main([*arguments, "--model", name, "--output_dir", "again", "--max_steps", "1"]) == 0
    # The base is recorded by its name and revision, so that anybody can load the adapter.
    assert json.loads(Path("again/retriever.json").read_text())["backbone"] == "them/base@v1"
