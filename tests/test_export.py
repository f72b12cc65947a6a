"""`cir-cot export`: what it writes, and that parity fails loudly."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_retriever_contract import train_a_step
from toy import write_shades

from cir_cot.cli import run
from cir_cot.eval import export
from cir_cot.heads import load_retriever
from cir_cot.heads.cot import CotRetriever
from cir_cot.records import InputError
from cir_cot.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained adapter, with a projection, on a saved tiny base."""
    from cir_cot.backbone import load_backbone

    folder = tmp_path_factory.mktemp("export")
    base = write_tiny(folder / "base", hidden=32, intermediate=64, layers=2, vision_depth=1, vision_hidden=32)
    backbone = load_backbone(base, lora={"r": 4, "alpha": 8, "dropout": 0.0})
    head = CotRetriever(backbone, str(base), projection=16).eval()
    train_a_step(head)
    head.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "merged"
    assert export.main(command(model, out)) == 0
    return out


def command(model, out, *more):
    return [str(word) for word in ("--model", model, "--out", out, "--device", "cpu", *more)]


def test_an_export_is_one_checkpoint_that_gives_the_same_embeddings(exported, model):
    merged = load_retriever(exported, device="cpu")
    assert not merged.backbone.adapted
    files = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json", "serving.json"} <= files
    assert not any(name.startswith("adapter") for name in files)
    report = json.loads((exported / "parity.json").read_text())
    assert report["passed"]
    assert set(report["cases"]) == {f"{case} {row}" for case in ("target", "fast", "chain") for row in range(6)}
    assert max(case["difference"] for case in report["cases"].values()) < 1e-5
    assert load_retriever(model, device="cpu").backbone.adapted, "the export leaves the model as it is"


def test_probes_hold_the_very_tokens_and_pictures_of_their_vectors(exported):
    """What another engine would do with them: feed the tokens, take the last state, project, divide by the norm."""
    from cir_cot.search import open_picture

    merged = load_retriever(exported, device="cpu")
    serving = json.loads((exported / "serving.json").read_text())
    weight = load_file(exported / "head.safetensors")["project.weight"]
    cases = json.loads((exported / "probes/probes.json").read_text())
    ours = export.embeddings(merged, export.probes(None))
    for name, case in cases.items():
        picture = open_picture(exported / "probes" / case["image"])
        pixels = merged.backbone.processor.image_processor(images=[picture], return_tensors="pt")
        ids = torch.tensor([case["input_ids"]])
        assert ids[0, -1] == serving["retrieval_token_id"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        with torch.no_grad():
            state = merged.backbone(inputs)[0, -1]
        vector = torch.nn.functional.normalize(weight @ state, dim=0)
        assert torch.allclose(vector, ours[name], atol=1e-5)


def test_another_engines_embeddings_are_compared(exported, model, tmp_path, capsys):
    vectors = {
        name: vector.tolist() for name, vector in export.embeddings(load_retriever(model), export.probes(None)).items()
    }
    good = {"target 0": vectors["target 0"], "fast 3": vectors["fast 3"]}
    for content, code in ((good, 0), (good | {"target 1": vectors["target 2"]}, 1), ({"target 0": [1.0, 2.0]}, 1)):
        (tmp_path / "got.json").write_text(json.dumps(content))
        argv = command(model, exported, "--parity", "--embeddings", tmp_path / "got.json")
        assert export.main(argv) == code
        assert ("do not serve this" in capsys.readouterr().err) == bool(code)
    for content, words in (({}, "no case"), ([], "is expected"), ({"target 0": "x"}, "is expected")):
        (tmp_path / "got.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            export.main(command(model, exported, "--parity", "--embeddings", tmp_path / "got.json"))


def test_a_changed_export_fails_loudly(exported, model, tmp_path, capsys):
    import shutil

    out = tmp_path / "changed"
    shutil.copytree(exported, out)
    weights = load_file(out / "head.safetensors")
    save_file({name: value * (1 + torch.rand_like(value)) for name, value in weights.items()}, out / "head.safetensors")
    assert export.main(command(model, out, "--parity", "--json")) == 1
    captured = capsys.readouterr()
    assert "NOT THE SAME" in captured.err
    assert "do not serve this" in captured.err
    assert not json.loads(captured.out)["passed"]


def test_pictures_of_ones_own_are_compared(exported, model, tmp_path):
    write_shades(tmp_path / "images", [0, 100, 200])
    assert export.main(command(model, exported, "--parity", "--images", tmp_path / "images")) == 0
    assert len(json.loads((exported / "parity.json").read_text())["cases"]) == 9


def test_what_cannot_be_exported_is_refused(model, exported, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(export.main, command(model, exported))
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(InputError, match="add --parity"):
        export.main(command(model, tmp_path / "x", "--embeddings", "got.json"))
