"""The recipe from its command line to the saved folder: stages, what each one trains, and refusals before training."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file

from cir_cot.cli import UNUSABLE, run
from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.records import Record, write_records
from cir_cot.scripts.train import sft
from cir_cot.training.parsing import parse_arguments

CONFIGS = Path(sft.__file__).parent / "configs"
QUICK = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--lora_r",
    "4",
    "--logging_steps",
    "1",
]
QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder dataset of 22 queries with real files."""
    root = tmp_path_factory.mktemp("data")
    tiny_training.write_dataset(root, tiny_training.records(22))
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    corpus = [
        f"{r.text} {r.cot.caption} {r.cot.reasoning} {r.cot.conclusion}"
        for r in tiny_training.records(36)
        if r.cot
    ]
    return write_tiny(
        tmp_path_factory.mktemp("base"), corpus=corpus, vocab_size=400, **tiny_training.SIZES
    )


@pytest.fixture(scope="module")
def stage1(base, data, tmp_path_factory) -> Path:
    """The run folder of a first stage."""
    out = tmp_path_factory.mktemp("stage1")
    config = [
        "--config",
        str(CONFIGS / "stage1.yaml"),
        "--projection",
        "16",
        "--learning_rate",
        "1e-2",
    ]
    assert train(base, data, out, *config) == 0
    return out


def train(model, root, out, *more: str) -> int:
    return sft.main(
        [
            "--model",
            str(model),
            "--root",
            str(root),
            "--output_dir",
            str(out),
            *QUICK,
            *QUIET,
            *more,
        ]
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors") | load_file(folder / "head.safetensors")


def test_a_run_leaves_a_retriever_and_its_papers(base, data, tmp_path, capsys):
    assert train(base, data, tmp_path, "--chain_dropout", "0.1") == 0
    assert "trained 2 steps on 22 rows" in capsys.readouterr().out
    run_json = json.loads((tmp_path / "run.json").read_text())
    assert run_json["arguments"]["model"] == str(base)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train_loss"] == pytest.approx(
        sum(entry["loss"] for entry in metrics["history"][:2]) / 2
    )
    retriever = load_retriever(tmp_path, device="cpu")
    assert retriever.settings()["chain_dropout"] == 0.1
    picture = tiny_training.Pictures().load("red-blue")
    assert retriever.encode_target([picture]).shape == (1, 32)


def test_progress_is_one_line_with_stage_loss_and_recall(base, data, tmp_path, capsys):
    assert train(base, data, tmp_path / "joint", "--disable_tqdm", "false") == 0
    shown = capsys.readouterr()
    assert "joint:" in shown.err
    assert "in-batch R@1=" in shown.err
    assert "{'loss'" not in shown.out + shown.err


def test_stage_one_leaves_the_readout_alone(base, data, stage1, tmp_path):
    untrained = tmp_path / "untrained"
    config = [
        "--config",
        str(CONFIGS / "stage1.yaml"),
        "--projection",
        "16",
        "--learning_rate",
        "0",
    ]
    train(base, data, untrained, *config)
    before, after = weights(untrained), weights(stage1)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"project.weight", "log_temperature"}.isdisjoint(changed)
    assert any("lora_B" in name for name in changed)


def test_a_trained_retriever_is_replaced_only_when_asked(data, stage1, base, tmp_path):
    assert train(stage1, data, tmp_path, "--learning_rate", "0") == 0
    before = (tmp_path / "head.safetensors").read_bytes()
    with pytest.raises(
        InputError, match="holds a trained retriever; give another --output_dir, or --overwrite"
    ):
        train(stage1, data, tmp_path)
    assert (tmp_path / "head.safetensors").read_bytes() == before
    assert train(base, data, tmp_path, "--overwrite") == 0
    assert (tmp_path / "head.safetensors").read_bytes() != before


def test_the_decoupled_stage_cannot_change_a_chain(data, stage1, tmp_path):
    config = ["--config", str(CONFIGS / "decoupled.yaml"), "--learning_rate", "1e-1"]
    assert train(stage1, data, tmp_path, *config) == 0
    before, after = weights(stage1), weights(tmp_path)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        "project.weight",
        "log_temperature",
    }
    assert torch.exp(after["log_temperature"]).item() == pytest.approx(
        0.02
    )  # asked for, not trained
    pictures, texts = (
        [tiny_training.Pictures().load("red-green")] * 2,
        ["make the bar blue", "make the bar red"],
    )
    first, second = (load_retriever(folder, device="cpu") for folder in (stage1, tmp_path))
    first.max_new_tokens = second.max_new_tokens = 8
    ours, theirs = first.encode_query(pictures, texts), second.encode_query(pictures, texts)
    assert ours.explanations == theirs.explanations
    assert not torch.allclose(ours.embeddings, theirs.embeddings, atol=1e-3)


def test_the_joint_stage_goes_on_from_the_first(data, stage1, tmp_path):
    assert train(stage1, data, tmp_path, "--learning_rate", "0") == 0
    before, after = weights(stage1), weights(tmp_path)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    with pytest.raises(InputError, match="project.weight"):
        train(stage1, data, tmp_path / "narrower", "--projection", "8")


def test_the_decoupled_stage_trains_the_row_where_it_is_not_the_output_row(data, tmp_path):
    untied = write_tiny(tmp_path / "untied", tie=False, **tiny_training.SIZES)
    first, second = tmp_path / "first", tmp_path / "second"
    train(untied, data, first, "--projection", "16")
    train(
        first,
        data,
        second,
        "--train_only",
        "readout",
        "--lm_weight",
        "0",
        "--learning_rate",
        "1e-2",
    )
    before, after = weights(first), weights(second)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {
        "project.weight",
        next(n for n in after if "embed_tokens" in n and "token_adapter" in n),
    }


def test_full_fine_tuning_leaves_a_whole_checkpoint(base, data, tmp_path):
    assert train(base, data, tmp_path / "one", "--lora_r", "0") == 0
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "one" / "retriever.json").read_text())["backbone"] == "."
    assert (
        train(tmp_path / "one", data, tmp_path / "two", "--lora_r", "0", "--learning_rate", "0")
        == 0
    )
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    # An adapter that is asked for now would be left out.
    with pytest.raises(InputError, match="was trained with lora_r 0, and keeps it"):
        train(tmp_path / "one", data, tmp_path / "three", "--lora_r", "8")


def moved(folder, base, dtype=torch.float32):
    """The share of the language model's weights that training moved, from the base loaded in `dtype`."""
    before = load_file(base / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    names = [name for name in before if "layers" in name and "visual" not in name]
    counts = []
    for name in names:
        start = before[name].to(dtype).float()
        counts.append((after[name].float() != start).sum().item())
    return sum(counts) / sum(before[name].numel() for name in names)


def test_full_fine_tuning_in_bfloat16_moves_every_weight(base, data, tmp_path):
    more = ["--lora_r", "0", "--max_steps", "3", "--learning_rate", "1e-5"]
    assert train(base, data, tmp_path / "half", *more, "--dtype", "bfloat16") == 0
    assert train(base, data, tmp_path / "full", *more) == 0
    assert moved(tmp_path / "full", base) > 0.99
    assert moved(tmp_path / "half", base, torch.bfloat16) > 0.99
    arguments = json.loads((tmp_path / "half" / "run.json").read_text())["arguments"]
    assert arguments["bf16"] is True


def test_full_fine_tuning_in_float16_is_refused(base, data, tmp_path):
    with pytest.raises(InputError, match="dtype float16 trains no complete model"):
        train(base, data, tmp_path, "--lora_r", "0", "--dtype", "float16")


def test_recomputed_activations_change_no_loss(base, data, tmp_path):
    for name, more in {"plain": [], "recomputed": ["--recompute", "true"]}.items():
        assert (
            train(
                base, data, tmp_path / name, "--lora_dropout", "0", "--learning_rate", "1e-2", *more
            )
            == 0
        )
    plain, recomputed = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("plain", "recomputed")
    )
    assert recomputed["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)


def test_a_run_can_be_resumed_from_the_command_line(base, data, tmp_path):
    more = ["--save_strategy", "steps", "--save_steps", "1"]
    train(base, data, tmp_path, *more)
    whole = weights(tmp_path)
    (tmp_path / "checkpoint-2" / "complete.json").unlink()
    train(base, data, tmp_path, *more, "--resume_from_checkpoint", "last")
    resumed = weights(tmp_path)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_a_mixed_run_resumes_to_the_very_same_bits(base, data, tmp_path, capsys):
    other = tmp_path / "other"
    named = []
    for row in tiny_training.records(8):
        targets = tuple(name.upper() for name in row.targets)  # the same colours, other names
        named.append(
            replace(row, id=f"o-{row.id}", reference=row.reference.upper(), targets=targets)
        )
    tiny_training.write_dataset(other, named)
    more = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "9"]
    mix = ["--mix", f"folder:0.5:{other}"]
    run = tmp_path / "run"
    assert train(base, data, run, *more, *mix) == 0
    whole = weights(run)
    for step in range(4, 10):  # the seventh step begins the second epoch of 22 + 4 rows
        (run / f"checkpoint-{step}" / "complete.json").unlink(missing_ok=True)
    assert train(base, data, run, *more, *mix, "--resume_from_checkpoint", "last") == 0
    resumed = weights(run)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    again = ["--mix", f"folder:1:{other}", "--resume_from_checkpoint", "last"]
    with pytest.raises(InputError, match="shares"):
        train(base, data, run, *more, *again)


def test_rows_with_a_missing_picture_are_refused_or_counted(base, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    records = tiny_training.records(22)
    tiny_training.write_dataset(root, records)
    gone = records[0].reference
    (root / "images" / f"{gone}.png").unlink()
    with pytest.raises(InputError, match=f"image '{gone}' is missing"):
        train(base, root, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(base, root, tmp_path / "run", "--drop_missing") == 0
    hit = [record for record in records if gone in (record.reference, *record.targets)]
    assert f"{len(hit)} of 22 rows left out: 1 pictures are missing" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_corrupt_picture_ends_training_with_its_name_in_one_line(base, tmp_path, workers):
    root = tmp_path / "data"
    root.mkdir()
    rows = tiny_training.records(8)
    tiny_training.write_dataset(root, rows)
    file = root / "images" / f"{rows[0].reference}.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=file.name) as error:
        train(base, root, tmp_path / "run", "--dataloader_num_workers", workers)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_data_that_cannot_be_trained_on_is_refused_before_the_model_is_loaded(data, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    rows = tiny_training.records(6)
    tiny_training.write_dataset(root, [Record(r.id, r.reference, r.text, r.targets) for r in rows])
    with pytest.raises(InputError, match="no record has a chain; give --chains FILE"):
        train("nowhere", root, tmp_path / "run")
    write_records(
        root / "records.train.jsonl", [Record(r.id, r.reference, r.text, ()) for r in rows]
    )
    with pytest.raises(InputError, match="query '0' of train has no target"):
        train("nowhere", root, tmp_path / "run", "--lm_weight", "0")
    with pytest.raises(InputError, match="records.none.jsonl"):
        train("nowhere", data, tmp_path / "run", "--split", "none")
    with pytest.raises(InputError, match="nowhere: no checkpoint could be read"):
        train("nowhere", data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_with_nothing_to_train_is_refused(base, data, tmp_path):
    with pytest.raises(
        InputError, match="train_only readout has nothing to train here; give --projection"
    ):
        train(base, data, tmp_path, "--train_only", "readout")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--root", "x", "--output_dir", "y"], "no model: give it"),
        (["--model", "x", "--output_dir", "y"], "no root: give it"),
        (["--model", "x", "--root", "x"], "no output_dir"),
        (
            [
                "--model",
                "x",
                "--root",
                "x",
                "--output_dir",
                "y",
                "--gradient_checkpointing",
                "true",
            ],
            "--recompute",
        ),
        (
            ["--model", "x", "--root", "x", "--output_dir", "y", "--benchmark", "imagenet"],
            "invalid choice: 'imagenet'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_wrong_arguments_end_with_one_line_and_exit_code_two(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(sft.main, argv)
    assert end.value.code == UNUSABLE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


OTHERS = ("prompt_pool", "clip", "moe")  # other recipes' configs begin so


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(CONFIGS.glob("*.yaml")) if not p.stem.startswith(OTHERS)],
    ids=lambda path: path.stem,
)
def test_every_config_that_ships_is_accepted(path):
    argv = ["--config", str(path), "--root", "data", "--model", "x", "--output_dir", "y"]
    args = parse_arguments(sft.SftArguments, argv)
    assert args.contrastive_weight + args.lm_weight > 0


def test_the_deepspeed_config_leaves_sizes_to_the_arguments():
    config = json.loads((CONFIGS / "deepspeed" / "zero2.json").read_text())
    assert config["zero_optimization"]["stage"] == 2
    assert config["train_micro_batch_size_per_gpu"] == "auto"


def test_the_script_is_the_installed_module():
    assert importlib.util.find_spec("cir_cot.scripts.train.sft").origin == sft.__file__


def test_real_photographs_of_three_categories_train(base, shared_data, tmp_path, capsys):
    """FashionIQ's layout, a chain file a category; no accuracy is claimed, but the loss must fall."""
    root = shared_data / "wardrobe"
    chains = sorted(str(path) for path in (root / "chains").glob("*.train.jsonl"))
    more = [
        "--benchmark",
        "fashioniq",
        "--chains",
        *chains,
        "--group_by",
        "category",
        "--group_size",
        "4",
    ]
    # All weights: an adapter cannot teach a random base any words.
    more += ["--lora_r", "0", "--max_steps", "8", "--learning_rate", "5e-3"]
    assert train(base, root, tmp_path, *more) == 0
    losses = [
        entry["lm_loss"]
        for entry in json.loads((tmp_path / "metrics.json").read_text())["history"][:8]
    ]
    assert losses[-1] < losses[0] - 0.3
