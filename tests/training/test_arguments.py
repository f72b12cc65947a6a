"""Arguments from file and command line, their errors, and what run.json says."""

import dataclasses
import json
import logging
import subprocess
from importlib.metadata import version
from pathlib import Path

import hostile_text
import pytest
import torch

from cir_cot.errors import InputError
from cir_cot.training import arguments
from cir_cot.training.arguments import CirArguments
from cir_cot.training.config import load_yaml
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.run import write_metrics_json, write_run_json


@dataclasses.dataclass
class Recipe(CirArguments):
    """Arguments of a test."""

    model: str | None = None
    layers: list[int] | None = None
    kind: str = "a"


def config(tmp_path: Path, text: str | bytes) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config", str(path)]


def test_defaults_then_file_then_command_line(tmp_path):
    argv = config(
        tmp_path,
        "output_dir: here\nlearning_rate: 3e-5\nseed: 7\nmodel: base\nlayers: [1, 2]\nbf16: yes\n",
    )
    args = parse_arguments(Recipe, [*argv, "--seed", "8", "--kind=b"])
    assert (args.output_dir, args.learning_rate, args.seed) == ("here", 3e-5, 8)
    assert (args.model, args.layers, args.kind, args.bf16) == ("base", [1, 2], "b", True)
    assert (args.contrastive_weight, args.lm_weight, args.weight_decay) == (1.0, 1.0, 0.01)


def test_the_command_line_alone_is_enough_and_order_does_not_matter(tmp_path):
    assert parse_arguments(Recipe, ["--output_dir", "x"]).output_dir == "x"
    argv = config(tmp_path, "seed: 7\n")
    assert parse_arguments(Recipe, ["--seed", "9", "--output-dir", "x", *argv]).seed == 9


WRONG_FILES = {
    "learnign_rate: 1e-4": "unknown key 'learnign_rate'; did you mean 'learning_rate'?",
    "zzz: 1": "unknown key 'zzz'; --help lists all",
    "learning_rate: fast": "learning_rate: expected float, got 'fast'",
    "max_steps: 1.5": "max_steps: expected int, got 1.5",
    "seed: true": "seed: expected int, got True",
    "bf16: 1": "bf16: expected bool, got 1",
    "layers: [one]": r"layers: expected list\[int\] or NoneType, got \['one'\]",
    "save_strategy: no": "save_strategy: expected SaveStrategy or str, got False; YAML reads a bare no",
    "save_strategy: weekly": "weekly is not a valid SaveStrategy",
    "group_by: colour": "group_by: expected 'none', 'reference' or 'category', got 'colour'",
    "output_dir: null": "no output_dir: say where",
    "contrastive_weight: -1": "contrastive_weight -1.0 and lm_weight 1.0: neither may be negative",
    "{contrastive_weight: 0, lm_weight: 0}": "one must be above 0",
    "group_size: -1": "group_size must be at least 1, or 0 for a complete micro-batch, got -1",
    "- a": "expected lines of `key: value`, got a list",
    "a: [": "cannot be read as YAML",
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.items(), ids=WRONG_FILES)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, message):
    output = [] if "output_dir" in text else ["--output_dir", "x"]
    with pytest.raises(InputError, match=message) as error:
        parse_arguments(Recipe, [*config(tmp_path, text), *output])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", hostile_text.YAML_REFUSED)
def test_a_hostile_file_is_one_short_line(tmp_path, name):
    with pytest.raises(InputError) as error:
        parse_arguments(
            Recipe, [*config(tmp_path, hostile_text.YAML_REFUSED[name]), "--output_dir", "x"]
        )
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "values"), hostile_text.YAML_READ.values(), ids=hostile_text.YAML_READ
)
def test_an_unusual_file_is_read_rightly(tmp_path, text, values):
    args = parse_arguments(Recipe, [*config(tmp_path, text), "--output_dir", "x"])
    assert {name: getattr(args, name) for name in values} == values


def test_a_file_that_unfolds_to_gigabytes_takes_no_memory(tmp_path):
    """Nine levels of nine aliases are 9^9 strings: refused at the first alias, whatever would follow."""
    path = config(tmp_path, hostile_text.YAML_REFUSED["laughs"])[1]
    assert Path(path).stat().st_size < 450
    with pytest.raises(InputError, match=r"aliases \(\*name\) are not read"):
        load_yaml(path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999: numpy takes"),
        (["--learning_rate", "nan"], "learning_rate is nan: give a finite number"),
        (
            ["--per_device_train_batch_size", "0"],
            "per_device_train_batch_size is 0: give at least 1",
        ),
        (["--learning_rate", "fast"], "--learning_rate.*invalid float value: 'fast'"),
        (
            ["--learnin_rate", "1"],
            "unknown argument '--learnin_rate'; did you mean 'learning_rate'",
        ),
        (["--learning", "1"], "unknown argument '--learning'"),  # no abbreviations
        (["stray"], "unknown argument 'stray'"),
        (["--group_by", "colour"], "invalid choice: 'colour'"),
        (["--seed"], "--seed.*expected one argument"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ([], "no output_dir"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(argv, message):
    output = ["--output_dir", "x"] if argv else []
    with pytest.raises(InputError, match=message) as error:
        parse_arguments(Recipe, [*output, *argv])
    assert "\n" not in str(error.value)


def test_help_names_every_argument_with_its_default(capsys):
    said = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            parse_arguments(Recipe, [word])
        assert end.value.code == 0
        said[word] = " ".join(capsys.readouterr().out.split())
        assert "Weight of InfoNCE" in said[word]
    assert "--learning_rate X Peak learning rate (default 0.0002)" in said["--help"]
    assert "(default: 0.0002)" in said["--help-all"]
    # The trainer's own arguments are a hundred more.
    assert "--adam_beta1" not in said["--help"]
    assert "--adam_beta1" in said["--help-all"]


def test_every_argument_of_ours_has_a_help_text():
    for field in dataclasses.fields(CirArguments):
        assert field.metadata.get("help"), field.name


@pytest.mark.skipif(
    torch.accelerator.is_available(), reason="shows what happens without an accelerator"
)
def test_the_cpu_is_taken_where_there_is_nothing_else():
    args = CirArguments(output_dir="x")
    assert args.use_cpu
    assert args.device.type == "cpu"
    assert not args.dataloader_pin_memory


def test_several_gpus_in_one_process_are_not_used_by_data_parallel(monkeypatch, caplog):
    real = arguments.TrainingArguments.__post_init__

    def with_eight(self):
        real(self)
        self._n_gpu = 8

    monkeypatch.setattr(arguments.TrainingArguments, "__post_init__", with_eight)
    with caplog.at_level(logging.WARNING):
        args = CirArguments(output_dir="x")
    assert args.n_gpu == 1
    assert "one process uses one of 8 GPUs; start with accelerate launch" in caplog.text


def test_run_json_says_what_was_run(tmp_path):
    argv = ["--output_dir", "x", "--hub_token", "secret", "--hub-token=secret", "--seed", "5"]
    write_run_json(tmp_path / "deep" / "run", argv, parse_arguments(Recipe, argv))
    run = json.loads((tmp_path / "deep" / "run" / "run.json").read_text())
    assert run["argv"] == [
        "--output_dir",
        "x",
        "--hub_token",
        "...",
        "--hub-token=...",
        "--seed",
        "5",
    ]
    assert (run["seed"], run["arguments"]["seed"], run["arguments"]["learning_rate"]) == (
        5,
        5,
        2e-4,
    )
    assert run["versions"]["torch"] == version("torch")
    assert run["device"].split()[0] in ("cpu", "NVIDIA")
    assert run["processes"] == 1
    here = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run["git"]["commit"] == (here.stdout.strip() or None)
    assert "secret" not in json.dumps(run)


def test_metrics_json_holds_the_metrics(tmp_path):
    args = CirArguments(output_dir=str(tmp_path))
    write_metrics_json(tmp_path, {"train_loss": 1.5}, args)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"train_loss": 1.5}
