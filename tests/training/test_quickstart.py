"""The quickstart, cut short: every step runs, and summary.json has the form that users rely on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cir_cot.cli import main
from cir_cot.errors import InputError
from cir_cot.heads import load_retriever
from cir_cot.training import quickstart

READINGS = {"full", "fast", "oracle", "image_only", "text_only"}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--full"]], ids=["default", "full"])
def test_quickstart_ends_with_a_summary_a_model_and_a_report(tmp_path, more):
    readings = READINGS | {"no_chain"} if more else READINGS
    arguments = [
        "--references",
        "20",
        "--test-references",
        "20",
        "--queries",
        "30",
        "--max-steps",
        "2",
    ]
    assert main(["quickstart", "--out", str(tmp_path), *arguments, *more]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {
        *(
            "iid",
            "novel",
            "exact_conclusion",
            "repairs",
            "gallery",
            "queries",
            "minutes",
            "processor_seconds",
            "installation_seconds",
            "base",
            "peak_memory_mb",
            "device",
            *(["chain_minus_no_chain"] if more else []),
        )
    }
    for split in ("iid", "novel"):
        assert set(summary[split]) == readings
        assert all(set(metrics) == {"R@1", "R@5", "R@10"} for metrics in summary[split].values())
        result = json.loads((tmp_path / "results" / split / "full" / "results.json").read_text())
        assert result["protocol"]["reference"] == "removed"
        # Measured in the precision of the training.
        settings = result["protocol"]
        assert settings["dtype"] == settings["trained_in"] == quickstart.precision()
        assert result["metrics"]["R@1"] == pytest.approx(summary[split]["full"]["R@1"], abs=0.01)
    assert summary["gallery"] == 20 * 17
    assert summary["queries"] == 30
    assert load_retriever(tmp_path / "model").dim == 192
    assert "<img" in (tmp_path / "report.html").read_text()


def running(word: str) -> list[int]:
    """Processes whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has ended
    return found


def until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_trainers_with_the_quickstart(tmp_path, number, code):
    """Trainers wait for a named pipe in place of their records, so that they are there when the signal comes."""
    for split in ("train", "iid", "novel"):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "scenes" / f"records.{split}.jsonl")
    work = "import sys; from pathlib import Path\n"
    work += "from cir_cot.cli import run; from cir_cot.processes import unwinding\n"
    work += "from cir_cot.scripts.train.quickstart import CONFIGS\n"
    work += "from cir_cot.training.quickstart import train_models\n"
    work += "def main(argv):\n    with unwinding():\n        train_models(Path(argv[0]), CONFIGS, [], True)\nrun(main)"
    with subprocess.Popen(
        [sys.executable, "-c", work, str(tmp_path)], start_new_session=True
    ) as process:
        until(
            lambda: len(running(f"{tmp_path}/stage1")) + len(running(f"{tmp_path}/no_chain")) >= 2
        )
        process.send_signal(number)
        assert process.wait(60) == code
    assert running(str(tmp_path)) == []


def test_a_quickstart_replaces_only_what_a_quickstart_wrote(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="model: was there before any quickstart"):
        quickstart.prepare_folder(tmp_path, overwrite=False)
    (tmp_path / "model").rmdir()
    quickstart.prepare_folder(tmp_path, overwrite=False)
    (tmp_path / "model").mkdir()
    quickstart.prepare_folder(tmp_path, overwrite=False)  # goes on after an interruption
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished quickstart"):
        quickstart.prepare_folder(tmp_path, overwrite=False)
    assert (tmp_path / "summary.json").exists()
    quickstart.prepare_folder(tmp_path, overwrite=True)
    assert not (tmp_path / "summary.json").exists()
