"""The command line: what it lists, what it refuses and how, and that it answers without torch."""

import ast
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cir_cot import __version__, cli
from cir_cot.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def exit_of(main, argv=()):
    with pytest.raises(SystemExit) as exit:
        cli.run(main, argv)
    return exit.value.code


def raising(error):
    def main(argv):
        raise error

    return main


def opening(path):
    return lambda argv: open(path)


@pytest.mark.parametrize("module", cli.COMMANDS.values())
def test_every_command_names_a_script(module):
    assert importlib.util.find_spec(module) is not None


def test_help_lists_every_command_with_one_line(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split(maxsplit=1)[1]) > 10


def test_no_command_prints_the_help_and_is_refused(capsys):
    assert cli.main([]) == 2
    assert "scenes" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cir-cot {__version__}\n"


def test_unknown_command_is_refused_with_the_list(capsys):
    assert exit_of(cli.main, ["trian"]) == 2
    error = capsys.readouterr().err
    assert "'trian'" in error
    assert "sft" in error
    assert error.count("\n") == 1


def test_a_command_gets_the_rest_of_the_arguments(tmp_path, capsys):
    out = tmp_path / "scenes"
    page = tmp_path / "page.png"
    sizes = ["--seed", "3", "--references", "3", "--edits", "9", "--page", str(page)]
    assert not cli.main(["scenes", "--out", str(out), *sizes])
    assert "27 queries" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {
        "records.train.jsonl",
        "gallery.novel.txt",
        "images",
    }
    assert len(list((out / "images").iterdir())) == 3 * 3 * 10
    with Image.open(page) as picture:
        assert len(picture.getcolors(maxcolors=100_000)) > 30


@pytest.mark.parametrize(("returned", "code"), [(None, None), (0, 0), (1, 1)])
def test_the_code_of_main_is_the_exit_code(returned, code):
    assert exit_of(lambda argv: returned) == code


def test_bad_input_is_one_line_and_code_2(capsys):
    assert exit_of(raising(InputError("records.jsonl:3: no\nclosing brace"))) == 2
    assert capsys.readouterr().err == "error: records.jsonl:3: no closing brace\n"


def test_a_missing_file_is_one_line_and_code_2(tmp_path, capsys):
    assert exit_of(opening(tmp_path / "absent.json")) == 2
    assert (
        capsys.readouterr().err == f"error: No such file or directory: {tmp_path / 'absent.json'}\n"
    )


def test_a_folder_where_a_file_belongs_is_code_2(tmp_path, capsys):
    assert exit_of(opening(tmp_path)) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_an_argument_that_argparse_refuses_is_code_2(capsys):
    assert exit_of(cli.main, ["scenes", "--out", "x", "--seed", "many"]) == 2
    assert "--seed" in capsys.readouterr().err


def test_an_interruption_is_code_130(capsys):
    assert exit_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("shape"), ValueError("not an InputError"), KeyError("x")]
)
def test_our_own_defects_keep_their_traceback(error):
    with pytest.raises(type(error)):
        cli.run(raising(error), [])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "out.jsonl"), "No space left on device: out.jsonl"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (ConnectionError("no route"), "no route"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_code_2(error, message, capsys):
    assert exit_of(raising(error)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def in_a_shell(words, **environment):
    """Run a shell command whose `$cli` is ours -> exit code of the pipe's first part, stdout, stderr."""
    cli = f"{shlex.quote(sys.executable)} -m cir_cot.cli"
    done = subprocess.run(
        ["bash", "-c", f"{words.replace('$cli', cli)}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        | environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", ["--help", "score --help", "scenes --help"])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_quietly(words, buffered):
    # the pipe's reader is gone before a word is written
    code, out, errors = in_a_shell(f"(sleep 0.3; $cli {words}) | true", PYTHONUNBUFFERED=buffered)
    assert code in (0, 141)  # argparse itself lets an unbuffered one pass
    assert (out, errors) == ("", "")


def test_a_reader_of_both_streams_that_has_gone_hides_no_exit_code():
    assert in_a_shell("(sleep 0.3; $cli scre) 2>&1 | true") == (2, "", "")


def test_a_full_disk_under_the_output_is_one_line():
    assert in_a_shell("$cli --help > /dev/full") == (2, "", "error: No space left on device\n")
    assert in_a_shell("$cli scre 2> /dev/full") == (2, "", "")


def test_a_command_without_an_output_works():
    assert in_a_shell("$cli --version >&-") == (0, "", "")


def test_letters_that_the_terminal_lacks_are_written_as_numbers():
    program = "from cir_cot.cli import run; run(lambda argv: print('caf\\u00e9 \\udcff'))"
    command = [sys.executable, "-c", program]
    for encoding, word in (
        ("ascii", b"caf\\xe9 \\udcff\n"),
        ("utf-8", "caf\u00e9 \\udcff\n".encode()),
    ):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        assert (
            subprocess.run(command, capture_output=True, check=True, env=environment).stdout == word
        )


def test_ctrl_c_in_a_running_process_is_code_130_and_one_line():
    program = "import sys; from cir_cot.cli import run; run(lambda argv: print('on', flush=True) or sys.stdin.read())"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("typed", "meant"), [("scroe", "score"), ("serach", "search"), ("prompt_pool", "prompt-pool")]
)
def test_a_mistyped_command_names_the_nearest(typed, meant, capsys):
    assert exit_of(cli.main, [typed]) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_a_command_like_no_other_is_not_guessed(capsys):
    assert exit_of(cli.main, ["x" * 10_000]) == 2
    error = capsys.readouterr().err
    assert "mean" not in error
    assert len(error) < 600


def test_a_script_refuses_bad_input_in_a_process_of_its_own(tmp_path):
    command = [
        sys.executable,
        "-m",
        "cir_cot.scripts.data_gen.scenes",
        "--out",
        str(tmp_path),
        "--seed",
        "0",
        "--size",
        "85",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "85" in done.stderr
    assert "Traceback" not in done.stderr


HEAVY = {"torch", "peft", "transformers", "torchvision", "accelerate", "datasets", "faiss"}


@pytest.mark.parametrize(
    "argv", [["--help"], ["score", "--help"], ["check", "--help"], ["scenes", "--help"]]
)
def test_light_commands_import_nothing_heavy(argv):
    program = (
        "import sys, cir_cot.cli\n"
        "try:\n    cir_cot.cli.main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "cir_cot.errors" in loaded
    assert not HEAVY & loaded


# A new option is a promise to users: it is added here on purpose, or not at all.
BENCHMARK = {"--benchmark", "--root", "--split"}
PIXELS = {"--min-pixels", "--max-pixels"}
VARIANTS = {"--gallery", "--reference", "--caption-join", "--labels"}
ENGINE = {"--engine", "--engine-url", "--engine-model"}
MODEL = {
    "--model",
    "--category",
    "--chains",
    "--limit",
    "--batch-size",
    "--seed",
    "--device",
    "--dtype",
    "--out",
    "--json",
    "--overwrite",
}
OPTIONS = {
    "score": BENCHMARK | VARIANTS | {"--category", "--rankings", "--subset-rankings", "--json"},
    "submit": BENCHMARK
    | {"--rankings", "--subset-rankings", "--reference", "--out", "--json", "--overwrite"},
    "check-submission": {"--root", "--json"},
    "check": BENCHMARK | {"--chains", "--report", "--overwrite", "--json"},
    "export-chains": BENCHMARK | {"--chains", "--format", "--out", "--json"},
    "triplets": {
        "--root",
        "--labels",
        "--val",
        "--edits",
        "--seed",
        "--chains",
        "--overwrite",
        "--wording",
        "--texts",
        "--templates",
    },
    "scenes": {
        "--out",
        "--seed",
        "--references",
        "--test-references",
        "--edits",
        "--train-edits",
        "--size",
        "--page",
        "--overwrite",
    },
    "retrieval": BENCHMARK
    | MODEL
    | PIXELS
    | ENGINE
    | VARIANTS
    | {"--reading", "--index", "--prompt", "--samples", "--temperature", "--rerank", "--reranker"},
    "reasoning": BENCHMARK | MODEL | PIXELS | ENGINE | VARIANTS | {"--index", "--prompt"},
    "doctor": {"--json"},
    "push": {"--model", "--to", "--revision", "--private", "--results", "--dry-run", "--json"},
    "serve": PIXELS
    | ENGINE
    | {
        "--model",
        "--index",
        "--port",
        "--allowed-host",
        "--samples",
        "--temperature",
        "--device",
        "--dtype",
    },
    "faithfulness": BENCHMARK | MODEL | PIXELS | {"--index", "--attributed"},
    "review": BENCHMARK
    | {
        "--category",
        "--chains",
        "--second",
        "--quarantine",
        "--out",
        "--reviewer",
        "--port",
    },
    "mine": BENCHMARK
    | (MODEL - {"--json", "--limit", "--seed"})
    | PIXELS
    | {"--reading", "--index", "--per-query", "--margin", "--category"},
    "refine": {
        "--model",
        "--benchmark",
        "--root",
        "--split",
        "--category",
        "--reward",
        "--steps",
        "--queries",
        "--samples",
        "--passes",
        "--lora-r",
        "--save-every",
        "--learning-rate",
        "--temperature",
        "--kl",
        "--anchor",
        "--form",
        "--length",
        "--seed",
        "--device",
        "--dtype",
        "--out",
    },
    "calibrate": BENCHMARK
    | (MODEL - {"--chains"})
    | PIXELS
    | {"--metric", "--tolerance", "--write", "--learn", "--learn-limit"},
    "index": PIXELS
    | {
        "--model",
        "--images",
        "--out",
        "--gallery",
        "--payload",
        "--remove",
        "--kind",
        "--watch",
        "--tune",
        "--width",
        "--store-dtype",
        "--batch-size",
        "--device",
        "--dtype",
        "--json",
    },
    "search": PIXELS
    | ENGINE
    | {
        "--samples",
        "--temperature",
        "--rerank",
        "--reranker",
        "--model",
        "--index",
        "--image",
        "--text",
        "--queries",
        "--k",
        "--keep-reference",
        "--reading",
        "--where",
        "--batch-size",
        "--device",
        "--dtype",
        "--json",
    },
    "demo": PIXELS
    | ENGINE
    | {
        "--examples",
        "--samples",
        "--temperature",
        "--model",
        "--index",
        "--images",
        "--compare",
        "--port",
        "--allowed-host",
        "--device",
        "--dtype",
    },
    "export": {
        "--model",
        "--out",
        "--parity",
        "--embeddings",
        "--images",
        "--tolerance",
        "--device",
        "--dtype",
        "--json",
    },
    "annotate": BENCHMARK
    | {
        "--retry-quarantine",
        "--again",
        "--category",
        "--limit",
        "--out",
        "--teacher",
        "--model",
        "--base-url",
        "--proxy",
        "--samples",
        "--keep-better",
        "--temperature",
        "--dtype",
        "--batch-size",
        "--stages",
        "--see-target",
        "--repairs",
        "--verify",
        "--verifier",
        "--max-pixels",
        "--concurrency",
        "--retries",
        "--timeout",
        "--max-tokens",
        "--max-cost",
        "--price",
        "--estimate",
        "--json",
    },
    "quickstart": {
        "--out",
        "--overwrite",
        "--seed",
        "--references",
        "--test-references",
        "--queries",
        "--max-steps",
        "--full",
    },
    "plan": {
        "--model",
        "--config",
        "--gpus",
        "--card",
        "--sharding",
        "--training-only",
        "--json",
    },
    "tiny-base": {
        "--out",
        "--steps",
        "--batch-size",
        "--learning-rate",
        "--seed",
        "--workers",
        "--held-out",
        "--max-minutes",
    },
}
RECIPES = {
    "sft",
    "rerank",
    "prompt-pool",
    "clip",
    "moe",
}  # their options are the fields of dataclasses


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command_are_the_documented_ones(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    usage = capsys.readouterr().out.partition("options:")[2]
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", usage, re.MULTILINE)) == OPTIONS[command] | {
        "--help"
    }


def test_the_list_of_options_covers_every_command_but_the_recipes():
    assert set(OPTIONS) == set(cli.COMMANDS) - RECIPES


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_a_command_has_a_help_text(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    usage = capsys.readouterr().out.partition("options:")[2]
    # An option without help is followed by the next option or by a blank line.
    bare = re.findall(r"^  (?:-h, )?(--[a-z-]+)(?:[^\S\n]\S+)*\n(?=  -|\n)", usage, re.MULTILINE)
    assert [name for name in bare if f"{name}  " not in usage] == []


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_command_takes_an_abbreviated_option(command, capsys):
    """`--limi` would change its meaning when another option of that beginning is added."""
    assert exit_of(cli.main, [command, "--hel"]) == 2
    assert "usage: " not in capsys.readouterr().out


def test_every_parser_of_the_repository_refuses_abbreviated_options():
    problems = []
    for folder in ("cir_cot", "train", "eval", "data_gen", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                built = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Parser")
                if built and "allow_abbrev=False" not in ast.unparse(node):
                    problems.append(f"{path}:{node.lineno}")
    assert problems == []


@pytest.mark.parametrize("text", ["int8", "int4"])
def test_index_names_the_option_for_stored_vectors(text, capsys):
    where = ["--model", "m", "--images", "i", "--out", "o"]
    assert exit_of(cli.main, ["index", *where, "--dtype", text]) == 2
    assert ("--store-dtype int8" in capsys.readouterr().err) == (text == "int8")


@pytest.mark.parametrize("name", ["--dtype", "--model-dtype"])
def test_index_takes_the_precision_of_the_model_by_both_names(name):
    from cir_cot.scripts.eval.build_index import parse

    where = ["--model", "m", "--images", "i", "--out", "o"]
    args = parse([*where, name, "bfloat16", "--store-dtype", "float16"])
    assert (args.dtype, args.store_dtype) == ("bfloat16", "float16")
