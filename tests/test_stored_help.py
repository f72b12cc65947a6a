"""Help texts as files: what the parsers say, told without loading torch, and mistyped options named by them."""

import json
import os
import re
import subprocess
import sys

import pytest
from help_texts import live_help, live_options

from cir_cot import cli
from cir_cot.errors import InputError
from cir_cot.stored_help import FOLDER, OPTIONS, RECIPES, check_options

WRITE = "write the files anew: python tests/help_texts.py"


def told(text: str) -> str:
    """What a help text says, without its usage and line breaks, which differ between versions of Python."""
    return " ".join(text.partition("options:")[2].split())


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in RECIPES])
def test_a_stored_text_is_what_the_parser_says(command):
    text = (FOLDER / f"{command}.txt").read_text(encoding="utf-8")
    assert told(text) == told(live_help(command)), WRITE
    assert json.loads(OPTIONS.read_text())[command] == live_options(command), WRITE


@pytest.mark.parametrize("command", RECIPES)
def test_a_recipe_tells_its_own_arguments_first(command):
    text = (FOLDER / f"{command}.txt").read_text(encoding="utf-8")
    own = text.partition("of the trainer, most used:")[0]
    assert told(own) == told(live_help(command).partition("of the trainer, most used:")[0]), WRITE
    assert 20 < len(re.findall(r"^  --", own, re.MULTILINE)) < 60
    assert "--adam_beta2" not in text
    # Another version of transformers may know other arguments; ours are all there.
    stored = set(json.loads(OPTIONS.read_text())[command])
    assert set(re.findall(r"^  (--[\w-]+)", own, re.MULTILINE)) <= stored
    assert "--adam_beta2" in stored
    assert "--adam_beta2" in live_help(command, "--help-all")


def test_every_command_has_a_text_and_a_task():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(cli.COMMANDS)
    named = [name for names in cli.TASKS.values() for name in names]
    assert sorted(named) == sorted(cli.COMMANDS)
    lines = cli.usage().splitlines()
    assert all(f"{task}:" in lines for task in cli.TASKS)


@pytest.mark.parametrize(
    ("command", "typo"),
    [("sft", "--sed"), ("retrieval", "--sed"), ("demo", "--modle"), ("quickstart", "--sed")],
)
def test_help_and_typos_need_no_torch(command, typo):
    code = (
        "import sys\nfrom cir_cot import cli\n"
        "try:\n    cli.main([sys.argv[1], sys.argv[2]])\n"
        "except (SystemExit, cli.InputError) as end:\n    print(end)\n"
        "assert 'torch' not in sys.modules"
    )
    for word, answer in (("--help", "usage: cir-cot"), (typo, "did you mean '--")):
        run = [sys.executable, "-c", code, command, word]
        done = subprocess.run(
            run, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
        )
        assert done.returncode == 0, done.stderr
        assert answer in done.stdout


def test_an_unknown_option_is_named_with_the_nearest():
    for command, word, nearest in (
        ("sft", "--learning_rat", "--learning_rate"),
        ("sft", "--learning-rat=3", "--learning_rate"),
        ("retrieval", "--modle", "--model"),
        ("plan", "--lora_rr", "--lora_r"),
    ):
        with pytest.raises(InputError, match=f"did you mean '{nearest}'"):
            check_options(command, ["x", word])
    with pytest.raises(InputError, match="--help lists all of them"):
        check_options("score", ["--zzzzzz"])
    with pytest.raises(InputError, match="cir-cot sft --help lists all of them"):
        check_options("sft", ["--qqqqqq", "3"])
    # Both spellings of a recipe; values.
    check_options("sft", ["--chunk-tokens", "3", "--chunk_tokens=3", "--seed", "-1"])
    check_options("plan", ["--gpus", "2", "--lora_r", "4"])
    check_options("nothing", ["--x"])


def test_a_field_that_only_the_installed_transformers_has_is_left_to_the_parser(
    tmp_path, monkeypatch
):
    stored = json.loads(OPTIONS.read_text())
    stored["sft"].remove("--adam_beta2")
    older = tmp_path / "options.json"
    older.write_text(json.dumps(stored))
    monkeypatch.setattr("cir_cot.stored_help.OPTIONS", older)
    check_options("sft", ["--adam-beta2", "0.9"])
    with pytest.raises(InputError, match="did you mean '--adam_beta1'"):
        check_options("sft", ["--adam_beta3", "0.9"])
