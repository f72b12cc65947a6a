"""The adaptive reading's curve and its threshold."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import records, tiny_head, write_dataset
from toy_retriever import Plain, query, shade_of, write_folder

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.calibration import chains_needless, stop_confidences
from cir_cot.evaluation.chain_quality import adaptive_curve, calibrated
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.results import Result
from cir_cot.heads import load_retriever
from cir_cot.heads.adaptive import fit_gate, new_gate
from cir_cot.heads.cot import CotRetriever
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


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory):
    """The same 22 queries as two splits; a head with random weights needs chains for some of them."""
    root = tmp_path_factory.mktemp("learn") / "data"
    write_dataset(root, records(22))
    for name in ("gallery.{}.txt", "records.{}.jsonl"):
        (root / name.format("val")).write_bytes((root / name.format("train")).read_bytes())
    return root


def test_the_decision_is_learned_from_what_chains_were_worth(two_splits, tmp_path, capsys):
    model = tmp_path / "model"
    tiny_head(lora=False, max_new_tokens=4, projection=16).save(model)
    before = load_file(model / "head.safetensors")
    argv = command(model, two_splits, "--learn", "train", "--write", "--json")
    assert calibrate.main(argv) == 0
    # Nothing but the gate has changed.
    after = load_file(model / "head.safetensors")
    assert set(after) - set(before) == {"gate.weight", "gate.bias"}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    answer = json.loads(capsys.readouterr().out)
    assert answer["learned"]["split"] == "train"
    # The labels are what both readings say of the split.
    plain = tiny_head(lora=False, max_new_tokens=4, projection=16)
    taught = load_benchmark("folder", two_splits, "train")[0]
    full, fast = (
        evaluate(plain, taught, taught.images(), reading=reading) for reading in ("full", "fast")
    )
    labels = chains_needless(full, fast)
    assert answer["learned"]["needless"] == sum(labels) not in (0, 22)
    # The gate is stored, decides, and is the fit to the states.
    head = load_retriever(model, device="cpu")
    pictures = [taught.images().load(record.reference) for record in taught.records]
    texts = [record.text for record in taught.records]
    gate = fit_gate(head.prompt_states(pictures, texts), torch.tensor(labels))
    torch.testing.assert_close(head.gate.weight, gate.weight, rtol=1e-3, atol=1e-4)
    sure = torch.sigmoid(gate(head.prompt_states(pictures, texts)))[:, 0]
    torch.testing.assert_close(head.stop_confidence(pictures, texts), sure, rtol=1e-3, atol=1e-4)
    assert head.threshold == answer["chosen"]["threshold"]
    written = [bool(text) for text in head.encode_query(pictures, texts, "adaptive").explanations]
    assert written == (sure < head.threshold).tolist()


def test_weights_of_a_gate_without_its_settings_are_left_out(tmp_path):
    head = tiny_head(lora=False, max_new_tokens=4)
    head.gate = new_gate(head.backbone.hidden_size)
    head.save(tmp_path)
    assert load_retriever(tmp_path, device="cpu").gate is not None
    # As an interruption between both files leaves it.
    settings = json.loads((tmp_path / "retriever.json").read_text())
    del settings["settings"]["gate"]
    (tmp_path / "retriever.json").write_text(json.dumps(settings))
    assert load_retriever(tmp_path, device="cpu").gate is None


def test_a_gate_is_dropped_where_training_continues(tmp_path):
    head = tiny_head(lora=False, max_new_tokens=4)
    head.gate = new_gate(head.backbone.hidden_size)
    head.save(tmp_path)
    facts = json.loads((tmp_path / "retriever.json").read_text())
    assert CotRetriever.resume(tmp_path, facts, trainable=True, settings={}).gate is None


def test_what_cannot_be_learned_is_refused(benchmark, tmp_path):
    root, _ = benchmark
    with pytest.raises(InputError, match="--learn val: the threshold is chosen on this split"):
        calibrate.main(command(tmp_path / "model", root, "--learn", "val"))
    with pytest.raises(InputError, match="--learn-limit needs --learn"):
        calibrate.main(command(tmp_path / "model", root, "--learn-limit", "9"))
    with pytest.raises(InputError, match="6 queries, 6 of them need no chain"):
        fit_gate(torch.randn(6, 3), torch.ones(6, dtype=torch.bool))


def test_a_gate_finds_the_direction_and_the_rate():
    torch.manual_seed(0)
    states = torch.randn(2000, 6) * torch.tensor([1.0, 5, 1, 1, 1, 0.01]) + 3
    direction = torch.tensor([2.0, 0.2, -1.0, 0, 0, 0])
    chance = torch.sigmoid((states - 3) @ direction + 0.5)
    needless = torch.rand(2000) < chance
    gate = fit_gate(states, needless)
    guessed = torch.sigmoid(gate(states))[:, 0]
    # A bias without a penalty makes the mean probability the observed rate, exactly.
    assert guessed.mean().item() == pytest.approx(needless.float().mean().item(), abs=1e-4)
    assert (guessed - chance).abs().mean() < 0.03
    assert not gate.weight.requires_grad


def test_a_feature_of_noise_is_held_back_by_the_penalty():
    torch.manual_seed(0)
    states = torch.randn(60, 100)  # more features than queries: without a penalty all is certain
    needless = torch.rand(60) < 0.5
    guessed = torch.sigmoid(fit_gate(states, needless)(torch.randn(500, 100)))
    assert guessed.std() < 0.2


def test_a_chain_that_brings_the_target_no_further_forward_is_needless(benchmark):
    _, folder = benchmark
    found = {}
    for name, places in (("full", [0, 3, 2, None, None, 0]), ("fast", [0, 1, 4, 2, None, None])):
        rankings = {}
        for record, place in zip(folder.records, places, strict=True):
            ranking = others(folder, record)
            if place is not None:
                ranking.insert(place, record.targets[0])
            rankings[record.id] = ranking
        found[name] = Result(folder, folder.images(), {}, {}, {}, rankings, {}, {}, {})
    assert chains_needless(found["full"], found["fast"]) == [True, True, False, True, True, False]


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
