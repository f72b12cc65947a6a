"""Publishing a retriever: what is sent to a stand-in for the hub, what is not, and the card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.heads.card import is_generated, model_card, read_runs
from cir_cot.heads.publish import push as publish
from cir_cot.retriever import read_settings
from cir_cot.scripts.eval import push

OLD = Path(__file__).parent.parent / "old_files"

# Of huggingface_hub's own upload.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SENT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "head.safetensors",
    "processor_config.json",
    "retriever.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def folder(adapter, hub, monkeypatch) -> Path:
    """A retriever's folder that was trained on FashionIQ, with foreign files in it; the hub has its base."""
    (adapter / "README.md").unlink()
    run = {"arguments": {"benchmark": "fashioniq", "split": "train", "root": "secret-root"}}
    (adapter / "run.json").write_text(json.dumps(run))
    for name in ("notes.txt", "private.json", "shirt.safetensors", "model-secret.safetensors"):
        (adapter / name).write_text("foreign")
    hub.add("them/base", OLD / "base", ref="v1")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    return adapter


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder that retrieval wrote."""
    place = tmp_path / "results"
    place.mkdir()
    protocol = {"benchmark": "fashioniq", "split": "val", "reading": "full", "gallery_size": 15415,
                "ties": "pessimistic", "model": "secret-model", "index": "secret-index"}  # fmt: skip
    content = {
        "metrics": {"dress": {"R@10": 41.234, "R@50": 67.0}, "mean": {"R@10": 41.0}},
        "protocol": protocol,
    }
    (place / "results.json").write_text(json.dumps(content))
    rows = [
        {"id": "0", "explanation": "<caption>cut", "flag": "no retrieval token"},
        {"id": "1", "explanation": "<caption>a red dress</caption>", "flag": ""},
    ]
    (place / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def header(card: bytes | str) -> dict:
    text = card.decode() if isinstance(card, bytes) else card
    return yaml.safe_load(text.split("---\n")[1])


def test_what_was_pushed_is_loaded_again_and_nothing_foreign_is_sent(hub, folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert push.main(["--model", str(folder), "--to", "me/mine"]) == 0
    assert capsys.readouterr().out.endswith(f"uploaded to {hub.url}/me/mine\n")
    assert set(hub.files("me/mine")) == SENT | {".gitattributes"}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    # The same retriever comes back.
    picture = [Image.new("RGB", (60, 40), (200, 30, 60))]
    here = load_retriever(folder, device="cpu").encode_target(picture)
    assert torch.equal(load_retriever("me/mine", device="cpu").encode_target(picture), here)


def test_a_dry_run_lists_the_files_and_asks_nothing(hub, folder, capsys):
    assert push.main(["--model", str(folder), "--to", "me/mine", "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed["files"]) == SENT
    assert listed["files"]["head.safetensors"] == (folder / "head.safetensors").stat().st_size
    assert hub.requests == []


def test_a_retriever_in_memory_is_pushed_to_a_private_branch(hub, folder):
    retriever = load_retriever(folder, device="cpu")
    address = retriever.push_to_hub("me/mine", private=True, token="hf_good", revision="v2")
    assert address == f"{hub.url}/me/mine/tree/v2"
    assert hub.repositories["me/mine"].private
    assert set(hub.files("me/mine")) == {".gitattributes"}
    assert set(hub.files("me/mine", "v2")) == SENT | {".gitattributes"}


def test_private_never_means_public(hub, folder):
    publish(folder, "me/mine")
    with pytest.raises(InputError, match="is there already and public"):
        publish(folder, "me/mine", private=True)


def test_the_card_says_what_is_recorded_and_no_path(hub, folder, results):
    publish(folder, "me/mine", results=[results])
    text = hub.files("me/mine")["README.md"].decode()
    top = header(text)
    assert top["library_name"] == "cir-cot"
    assert top["pipeline_tag"] == "image-text-to-text"
    assert (top["base_model"], top["base_model_relation"]) == ("them/base", "adapter")
    assert {"composed-image-retrieval", "chain-of-thought"} <= set(top["tags"])
    # The hub's own reader finds the measurements.
    found = ModelCard(text).data.eval_results
    assert [(one.metric_name, one.metric_value) for one in found] == [
        ("dress R@10, full", 41.23),
        ("dress R@50, full", 67.0),
        ("mean R@10, full", 41.0),
    ]
    assert found[0].dataset_type == "fashioniq"
    for words in (
        'load_retriever("me/mine")',
        "`them/base@v1`",
        "- `fashioniq`, split `train`: Community Data License Agreement",
        "    <caption>a red dress</caption>",
        "| dress R@10 | 41.23 |",
        '"gallery_size": 15415',
        '"ties": "pessimistic"',
    ):
        assert words in text
    for words in ("secret", "cut", str(folder), "None"):
        assert words not in text.replace("| `None` |", "")
    # Where the base lay on this machine is not told either.
    config = json.loads(hub.files("me/mine")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "them/base"


def test_results_of_another_model_are_refused(folder, results):
    command = ["--model", str(folder), "--to", "me/mine", "--dry-run", "--results", str(results)]
    with pytest.raises(InputError, match="measured 'secret-model', not "):
        push.main(command)
    content = json.loads((results / "results.json").read_text())
    content["protocol"]["model"] = f"elsewhere/{folder.name}"
    (results / "results.json").write_text(json.dumps(content))
    assert push.main(command) == 0


def test_earlier_stages_are_looked_up_for_data_and_base(folder, tmp_path):
    stage = tmp_path / "stage1"
    stage.mkdir()
    first = {"arguments": {"model": "them/first@v3", "mix": ["cirr:1:x", "fashioniq:2:y"]}}
    (stage / "run.json").write_text(json.dumps(first))
    last = {"arguments": {"model": str(stage), "benchmark": "fashioniq", "split": "train"}}
    (folder / "run.json").write_text(json.dumps(last))
    runs = read_runs(folder)
    card = model_card(read_settings(folder) | {"backbone": "."}, runs=runs)
    assert header(card)["base_model"] == "them/first"
    assert header(card)["base_model_relation"] == "finetune"
    assert "`cirr`" in card
    assert str(stage) not in card


def test_a_card_by_hand_is_never_replaced(hub, folder, capsys):
    # In the folder: it is sent as it is, and saving keeps it.
    (folder / "README.md").write_text("# mine\n")
    publish(folder, "me/mine")
    assert hub.files("me/mine")["README.md"] == b"# mine\n"
    load_retriever(folder, device="cpu").save(folder)
    assert (folder / "README.md").read_text() == "# mine\n"
    # On the hub: it stays.
    (folder / "README.md").unlink()
    assert push.main(["--model", str(folder), "--to", "me/mine"]) == 0
    assert "README.md there was written by hand" in capsys.readouterr().out
    assert hub.files("me/mine")["README.md"] == b"# mine\n"


def test_an_edited_card_counts_as_written_by_hand(folder):
    card = model_card(read_settings(folder))
    assert is_generated(card)
    assert not is_generated(card.replace("Limits", "No limits"))
    assert not is_generated(card + "more\n")
    # A card of ours is written anew.
    (folder / "README.md").write_text(card)
    retriever = load_retriever(folder, device="cpu")
    retriever.dim += 0
    retriever.max_new_tokens = 7
    retriever.save(folder)
    assert "| max_new_tokens | `7` |" in (folder / "README.md").read_text()


def local_base(folder):
    facts = json.loads((folder / "retriever.json").read_text())
    (folder / "retriever.json").write_text(json.dumps(facts | {"backbone": "./base"}))


def link(folder):
    secret = folder.parent / "secret"
    secret.write_text("secret")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(secret)


def by_hand(folder):
    (folder / "README.md").write_text("# mine")


def unfinished(folder):
    (folder / "retriever.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (local_base, "needs './base', a folder of this machine, which nobody else can load"),
        (link, "tokenizer.json: a link out of the folder; copy the file"),
        (unfinished, "no retriever.json here"),
        (by_hand, "README.md: written or edited by hand, so that no results can be added"),
    ],
)
def test_what_may_not_be_published_is_refused_before_anything_is_sent(
    hub, folder, results, spoil, said
):
    spoil(folder)
    with pytest.raises(InputError, match=said):
        publish(folder, "me/mine", results=[results])
    assert hub.requests == []


def test_without_a_token_the_cure_is_named(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="'me/mine': .*set HF_TOKEN"):
        publish(folder, "me/mine")
    assert "me/mine" not in hub.repositories


def test_shards_are_those_that_the_index_lists(folder):
    shard = "model-00001-of-00001.safetensors"
    shutil.copy(folder / "head.safetensors", folder / shard)
    shutil.copy(folder / "head.safetensors", folder / "model-00001-of-00009.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    sent = publish(folder, "me/mine", dry_run=True).files
    assert set(sent) == SENT | {shard, index.name}
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(InputError, match="no shard here"):
        publish(folder, "me/mine", dry_run=True)
