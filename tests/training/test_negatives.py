"""Hard negatives in training: further columns of InfoNCE, the same in chunks, from mining to the trained run."""

import json

import pytest
import tiny_training
import torch
from test_gradcache import assert_same, gradients
from tiny_training import awake_head, tiny_head
from torch.nn import functional

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.heads.base import image_hash
from cir_cot.heads.cot import CotRetriever
from cir_cot.losses import info_nce
from cir_cot.scripts.train import mine, sft
from cir_cot.training.dataset import CirDataset, Pictures, drawn_negatives
from cir_cot.training.negatives import with_negatives

ROWS = 6
NAMES = ("red-green", "blue-red", "cyan-blue", "green-red")


def negatives():
    """Two or more pictures for each row but the third, which has one."""
    return {str(row): NAMES[: 1 if row == 2 else 2 + row % 3] for row in range(ROWS)}


def run_of(folder, per_row=2, **arguments):
    run = tiny_training.trainer(folder, awake_head(), rows=ROWS, **arguments)
    data = run.train_dataset
    run.train_dataset = CirDataset(
        data.records, data.images, negatives=negatives() if per_row else None, per_row=per_row
    )
    return run


def step(run):
    batch = run.data_collator([run.train_dataset[index, index] for index in range(ROWS)])
    totals = run._get_num_items_in_batch([batch], run.args.device)
    torch.manual_seed(5)
    loss = run.training_step(run.model, batch, totals)
    return (loss.item(), gradients(run)), batch


def test_negatives_are_further_columns_of_infonce(tmp_path):
    run = run_of(tmp_path, lm_weight=0.0)
    (loss, _), batch = step(run)
    head = run.model.eval()
    rows = [run.train_dataset[index, index] for index in range(ROWS)]
    # By hand: every target and every negative, once each; what is correct for a query is left out.
    with torch.no_grad():
        query = head(query=batch["query"]).query
    columns = []
    for row in rows:
        columns.append((row.record.targets[0], row.target))
    for row in rows:
        columns += row.negatives
    vectors = head.encode_target([picture for _, picture in columns])
    scores = query @ vectors.T / head.temperature().item()
    losses = []
    for number, row in enumerate(rows):
        kept = [
            column
            for column, (name, _) in enumerate(columns)
            if column == number or name not in row.record.targets
        ]
        losses.append(
            functional.cross_entropy(scores[number, kept], torch.tensor(kept.index(number)))
        )
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    plain = info_nce(query, vectors[:ROWS], torch.arange(ROWS), head.temperature()).item()
    assert loss > plain


@pytest.mark.parametrize("chunk", [1, 500, 900])
def test_in_chunks_loss_and_gradients_are_those_of_the_plain_step(tmp_path, chunk):
    whole, _ = step(run_of(tmp_path))
    run = run_of(tmp_path, chunk_tokens=chunk)
    parts, _ = step(run)
    assert_same(parts, whole)


def test_each_row_draws_its_own_and_its_target_fills_up():
    names = list(NAMES)
    drawn = {tuple(drawn_negatives(names, 2, draw, "t")) for draw in range(50)}
    assert len(drawn) > 5
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert drawn_negatives(names[:1], 3, 0, "t") == ["red-green", "t", "t"]
    data = CirDataset(
        tiny_training.records(4), tiny_training.Pictures(), negatives=negatives(), per_row=2
    )
    assert [len(data[row, 3].negatives) for row in range(4)] == [2, 2, 2, 2]
    batch = tiny_head(lora=False).collator()([data[row, 3] for row in range(4)])
    assert len(batch["target"]["input_ids"]) == 12
    wanted = [[image_hash(name) for name, _ in data[row, 3].negatives] for row in range(4)]
    assert batch["negatives"].tolist() == wanted
    assert not CirDataset(tiny_training.records(4), tiny_training.Pictures())[0, 3].negatives


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A dataset, a retriever, and the negatives that it finds."""
    folder = tmp_path_factory.mktemp("mined")
    tiny_training.write_dataset(folder / "data", tiny_training.records(12))
    # One picture is in the gallery under a second id.
    target = tiny_training.records(1)[0].targets[0]
    images = folder / "data" / "images"
    (images / "twin.png").write_bytes((images / f"{target}.png").read_bytes())
    gallery = folder / "data" / "gallery.train.txt"
    gallery.write_text(gallery.read_text() + "twin\n")
    tiny_head(lora=False, max_new_tokens=4).save(folder / "model")
    return folder


def command(folder, out, *more):
    words = ["--model", folder / "model", "--benchmark", "folder", "--root", folder / "data",
             "--split", "train", "--reading", "fast", "--device", "cpu", "--margin", "2",
             "--out", out, *more]  # fmt: skip
    return [str(word) for word in words]


def test_from_mining_to_a_trained_run(mined, tmp_path, capsys):
    out = tmp_path / "negatives.jsonl"
    assert mine.main(command(mined, out, "--per-query", "3")) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12
    by_id = {row["id"]: row for row in rows}
    for record in tiny_training.records(12):
        found = by_id[record.id]["negatives"]
        assert len(found) == 3
        assert not {record.reference, *record.targets} & set(found)
    # The second id of the first query's target is none of its negatives.
    everything = tmp_path / "all.jsonl"
    assert mine.main(command(mined, everything, "--per-query", "99")) == 0
    first = json.loads(everything.read_text().splitlines()[0])
    assert "twin" not in first["negatives"]
    others = [json.loads(line)["negatives"] for line in everything.read_text().splitlines()[1:]]
    target = tiny_training.records(1)[0].targets[0]
    assert all({"twin", target} - set(found) for found in others), "one content, one negative"
    assert any({"twin", target} & set(found) for found in others)
    protocol = json.loads((tmp_path / "negatives.json").read_text())
    assert (protocol["per_query"], protocol["margin"], protocol["reading"]) == (3, 2.0, "fast")
    assert not (tmp_path / "negatives.jsonl.parts").exists()
    with pytest.raises(InputError, match="is there already"):
        mine.main(command(mined, out))
    # Train with them.
    argv = ["--model", mined / "model", "--root", mined / "data", "--benchmark", "folder",
            "--output_dir", tmp_path / "run", "--negatives", out, "--negatives_per_row", 2,
            "--lora_r", 0, "--max_steps", 2, "--per_device_train_batch_size", 4, "--dtype", "float32",
            "--report_to", "none", "--use_cpu", "true"]  # fmt: skip
    assert sft.main([str(word) for word in argv]) == 0
    assert (tmp_path / "run" / "retriever.json").is_file()


def test_an_interrupted_mining_goes_on_and_finds_the_same(mined, tmp_path, monkeypatch):
    whole = tmp_path / "whole.jsonl"
    mine.main(command(mined, whole))
    out = tmp_path / "cut.jsonl"

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mine, "mine", killed)
        with pytest.raises(KeyboardInterrupt):
            mine.main(command(mined, out))
    assert not out.exists()
    encoded = []
    encode = CotRetriever.encode_target

    def counted(head, images):
        encoded.append(len(images))
        return encode(head, images)

    with monkeypatch.context() as patch:
        patch.setattr(CotRetriever, "encode_target", counted)
        assert mine.main(command(mined, out)) == 0
    # The three probes of the retriever's identity are all that is encoded again.
    assert encoded == [3]
    assert out.read_text() == whole.read_text()


def test_files_of_other_queries_and_pictures_that_are_not_there_are_named(mined, tmp_path):
    rows = CirDataset(tiny_training.records(2), tiny_training.Pictures())
    with pytest.raises(InputError, match="negatives_per_row 0"):
        with_negatives(rows, "x", 0)
    path = tmp_path / "n.jsonl"
    base = ["--model", mined / "model", "--root", mined / "data", "--benchmark", "folder",
            "--output_dir", tmp_path / "run", "--negatives", path, "--lora_r", 0]  # fmt: skip
    for name, found, words in (("other", ["a"], "holds no negatives of these 12 queries"),
                               ("0", ["gone"], "gone")):  # fmt: skip
        path.write_text(json.dumps({"id": name, "negatives": found}) + "\n")
        with pytest.raises(InputError, match=words):
            sft.main([str(word) for word in base])


def test_a_file_cannot_make_a_right_answer_a_negative(mined, tmp_path):
    path = tmp_path / "n.jsonl"
    record = tiny_training.records(1)[0]
    names = [*record.targets, record.reference, "twin"]
    path.write_text(json.dumps({"id": record.id, "negatives": names}) + "\n")
    store = load_benchmark("folder", mined / "data", "train")[0].images()
    rows = CirDataset([record], Pictures(dict.fromkeys((record.reference, *record.targets), store)))
    assert with_negatives(rows, str(path), 1).negatives == {record.id: ["twin"]}
