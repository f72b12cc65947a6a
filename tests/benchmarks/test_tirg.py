"""benchmarks/tirg.py: runs from scenes to numbers, and its pieces do what the bar rests on."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

from cir_cot.data import load_benchmark
from cir_cot.data.scene_files import write_scenes

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tirg.py"
spec = importlib.util.spec_from_file_location("tirg", SCRIPT)
tirg = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tirg)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, seed=5, references=12, edits=8)
    return folder


def test_it_goes_from_scenes_to_numbers(scenes, tmp_path, capsys):
    out = tmp_path / "tirg.json"
    tirg.main(["--root", str(scenes), "--json", str(out), "--epochs", "1", "--references", "4"])
    report = json.loads(out.read_text())
    assert 800_000 < report["parameters"] < 880_000
    for split in ("iid", "novel"):
        assert report[split]["protocol"]["gallery_size"] == 12 * 9
        assert report[split]["protocol"]["queries"] == 12 * 8
        assert report[split]["protocol"]["reference"] == "removed"
        assert set(report[split]["R@1 by edit"]) == {"add", "remove", "colour", "size"}
        assert 0 <= report[split]["R@1"] <= report[split]["R@50"] <= 100
    assert "novel  R@1" in capsys.readouterr().out


def test_an_epoch_holds_every_query_once_and_keeps_the_edits_of_a_reference_together(scenes):
    (benchmark,) = load_benchmark("folder", scenes, "train")
    epoch = list(tirg.batches(benchmark.records, 5, random.Random(0)))
    assert [len(batch) for batch in epoch] == [40, 40, 16]
    assert sorted(r.id for batch in epoch for r in batch) == sorted(r.id for r in benchmark.records)
    assert len({record.reference for record in epoch[0]}) == 5


def test_training_lowers_the_loss_and_words_matter(scenes):
    torch.manual_seed(0)
    (benchmark,) = load_benchmark("folder", scenes, "train")
    model = tirg.Tirg(
        sorted({word for record in benchmark.records for word in record.text.split()})
    )
    images = benchmark.images()
    pixels = tirg.stack([images.load(name) for name in benchmark.gallery])
    row_of = {name: row for row, name in enumerate(benchmark.gallery)}
    before = tirg.step_loss(model, benchmark.records, pixels, row_of).item()
    tirg.train(model, benchmark, epochs=8, references=4, rate=2e-3, seed=0)
    model.train()
    assert tirg.step_loss(model, benchmark.records, pixels, row_of).item() < before - 1
    model.eval()
    picture = images.load(benchmark.records[0].reference)
    out = model.encode_query(
        [picture] * 3, ["remove cyan object", "remove red object", "remove mauve object"]
    )
    assert out.embeddings.shape == (3, model.dim)
    torch.testing.assert_close(out.embeddings.norm(dim=1), torch.ones(3))
    assert out.embeddings[0] @ out.embeddings[1] < 0.999
