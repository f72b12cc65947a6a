"""The adaptive reading's curve and its threshold."""

import json

import pytest
import torch
from tiny_training import tiny_head
from toy_retriever import Plain, query, shade_of, write_folder

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.calibration import stop_confidences
from cir_cot.evaluation.chain_quality import adaptive_curve, calibrated
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.heads import load_retriever
from cir_cot.scripts.eval import calibrate


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    rows = [query(index, 10 * index, 10, 10 * index + 10) for index in range(6)]
    root = write_folder(tmp_path_factory.mktemp("calibrate"), rows, range(0, 80, 10))
    return root, load_benchmark("folder", root, "val")[0]


def others(folder, record):
    return [name for name in folder.gallery if name not in (record.reference, *record.targets)]


def test_the_curve_runs_from_no_chain_to_a_chain_for_each_and_mixes_query_by_query(benchmark):
    """Queries 0 to 2 are found with a chain only, 3 to 5 without one only; the model is sure of the latter."""
    _, folder = benchmark
    right = {record.id: [record.targets[0], *others(folder, record)] for record in folder.records}
    wrong = {record.id: [*others(folder, record), record.targets[0]] for record in folder.records}
    easy = {record.id for record in folder.records[3:]}
    full = {name: (wrong if name in easy else right)[name] for name in right}
    fast = {name: (right if name in easy else wrong)[name] for name in right}
    stop_confidence = {name: 0.9 if name in easy else 0.1 for name in right}
    curve = adaptive_curve(
        folder, stop_confidence, (full, None), (fast, None), dict.fromkeys(right, 40)
    )
    assert [point["chains"] for point in curve] == [0, 50, 100]
    assert [point["tokens"] for point in curve] == [0, 20, 40]
    assert [point["threshold"] for point in curve] == [0, 0.9, pytest.approx(0.9 + 1e-6)], (
        "a chain below it"
    )
    assert [point["metrics"]["R@1"] for point in curve] == [50, 100, 50]
    assert calibrated(curve, "R@1")["chains"] == 50
    assert calibrated(curve, "R@10")["chains"] == 0, "of equal points the cheapest"
    assert calibrated(curve, "R@1", tolerance=50)["chains"] == 0


def command(model, root, *more):
    argv = [
        "--model",
        model,
        "--benchmark",
        "folder",
        "--root",
        root,
        "--split",
        "val",
        "--device",
        "cpu",
        *more,
    ]
    return [str(word) for word in argv]


def test_a_checkpoint_is_calibrated(benchmark, tmp_path, capsys):
    root, folder = benchmark
    tiny_head(lora=False, max_new_tokens=4).save(tmp_path / "model")
    argv = command(tmp_path / "model", root, "--write", "--out", tmp_path / "curve.json", "--json")
    assert calibrate.main(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "curve.json").read_text()) == answer
    assert answer["chosen"] in answer["curve"]
    assert answer["protocol"]["reading"] == "adaptive"
    retriever = load_retriever(tmp_path / "model", device="cpu")
    assert retriever.threshold == answer["chosen"]["threshold"]
    for point, reading in ((answer["curve"][0], "fast"), (answer["curve"][-1], "full")):
        assert (
            point["metrics"]
            == evaluate(retriever, folder, folder.images(), reading=reading).metrics
        )
    assert answer["curve"][0]["tokens"] == 0
    assert answer["curve"][-1]["tokens"] > 10
    adaptive = evaluate(retriever, folder, folder.images(), reading="adaptive")
    assert adaptive.metrics == answer["chosen"]["metrics"]
    with pytest.raises(InputError, match="'R@3' is not one of R@1"):
        calibrate.main(command(tmp_path / "model", root, "--metric", "R@3"))


def test_a_file_that_is_there_is_replaced_with_overwrite_alone(benchmark, tmp_path):
    root, _ = benchmark
    curve = tmp_path / "curve.json"
    curve.write_text("a user's")
    with pytest.raises(InputError, match="curve.json is there already; .*--overwrite"):
        calibrate.main(
            command(tmp_path / "model", root, "--out", curve)
        )  # before it looks for the model
    assert curve.read_text() == "a user's"
    tiny_head(lora=False, max_new_tokens=4).save(tmp_path / "model")
    assert calibrate.main(command(tmp_path / "model", root, "--out", curve, "--overwrite")) == 0
    assert json.loads(curve.read_text())["curve"]


class Hesitant(Plain):
    """Prefers no chain by the number in the query's text, and shows which picture it was asked about."""

    def stop_confidence(self, images, texts):
        pairs = zip(images, texts, strict=True)
        return torch.tensor([shade_of(image) + int(text) / 100 for image, text in pairs])


def test_each_query_has_its_own_confidence_whatever_the_batch(tmp_path):
    rows = [query(index, 10 * index, index + 1, 10 * index + 10) for index in range(5)]
    (benchmark,) = load_benchmark("folder", write_folder(tmp_path, rows, range(0, 80, 10)), "val")
    found = stop_confidences(Hesitant(), benchmark, batch_size=2)
    assert found == pytest.approx({str(n): 10 * n + (n + 1) / 100 for n in range(5)})
