"""kill -9 at any moment, of training and of saving: the resumed run ends at the very bits of the uninterrupted one."""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
import tiny_training
import torch
from recorded_os import recorded_os
from safetensors.torch import load_file, save_file

from cir_cot.errors import InputError
from cir_cot.training.checkpoints import (  # fmt: skip
    COMPLETE,
    SAVING,
    check_resumable,
    check_same_run,
    checkpoints,
    commit_checkpoint,
    latest_checkpoint,
    rotate,
)

# Dropout in the adapters, chain dropout in the collator, a learned temperature, chunks: all that has a state.
NOISY = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
         "chunk_tokens": 400}  # fmt: skip
TOUCHES = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.scandir",
    "os.listdir",
    "shutil.rmtree",
}


def train(folder: Path) -> None:
    """Train to the end, from the newest complete checkpoint if there is one, and leave the weights."""
    head = tiny_training.tiny_head(
        dropout=0.2, chain_dropout=0.3, projection=16, learn_temperature=True
    )
    run = tiny_training.trainer(folder / "run", head, rows=20, **NOISY)
    run.train(resume_from_checkpoint="last")
    trained = {
        name: value.detach() for name, value in run.model.named_parameters() if value.requires_grad
    }
    save_file(trained, folder / "weights.safetensors")


def in_child(work, kill_after: float | None = None) -> int:
    """Exit code of a process of its own that does `work`; minus the signal's number when a signal ended it."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 warns of threads, which do not matter here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def touching(folder: Path, number: int | None = None) -> None:
    """From now on kill this very process when it touches the place of unfinished checkpoints for the n-th time.

    Without a number the touches are counted, into a file.
    """
    count, place = 0, str(folder / "run" / SAVING)

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        if event in TOUCHES and any(
            str(arg).startswith(place) for arg in args if isinstance(arg, (str, os.PathLike))
        ):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            if number is None:
                os.write(tally, b".")

    tally = os.open(folder / "touches", os.O_CREAT | os.O_WRONLY) if number is None else None
    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict, int]:
    """Weights after an uninterrupted run, and how often it touched the place of unfinished checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_child(lambda: (touching(folder), train(folder))) == 0
    return load_file(folder / "weights.safetensors"), (folder / "touches").stat().st_size


def assert_same(folder: Path, weights: dict) -> None:
    ours = load_file(folder / "weights.safetensors")
    assert [name for name, value in weights.items() if not torch.equal(ours[name], value)] == []


@pytest.mark.parametrize("moment", [0.45, 0.62, 0.999])
def test_killed_while_saving(uninterrupted, tmp_path, moment):
    weights, touches = uninterrupted
    assert touches > 30
    assert (
        in_child(lambda: (touching(tmp_path, int(moment * touches)), train(tmp_path)))
        == -signal.SIGKILL
    )
    assert not (tmp_path / "weights.safetensors").exists()
    assert in_child(lambda: train(tmp_path)) == 0
    assert_same(tmp_path, weights)
    assert not (tmp_path / "run" / SAVING).exists()


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(uninterrupted, tmp_path):
    started = time.monotonic()
    assert in_child(lambda: train(tmp_path / "measured")) == 0
    duration, chance, saving = time.monotonic() - started, random.Random(0), 0
    for killed in range(10):
        folder = tmp_path / str(killed)
        while (
            in_child(lambda folder=folder: train(folder), kill_after=chance.uniform(0, duration))
            == 0
        ):
            pass  # it was done before the kill: nothing was interrupted, once more from its last checkpoint
        saving += (folder / "run" / SAVING).exists()
        assert in_child(lambda folder=folder: train(folder)) == 0
        assert_same(folder, uninterrupted[0])
    print(f"{saving} of 10 kills fell in a save")


@pytest.mark.slow
def test_killed_at_ten_moments_of_saving(uninterrupted, tmp_path):
    weights, touches = uninterrupted
    for number in random.Random(1).sample(range(1, touches + 1), 10):
        folder = tmp_path / str(number)
        assert in_child(lambda f=folder, n=number: (touching(f, n), train(f))) == -signal.SIGKILL
        assert in_child(lambda f=folder: train(f)) == 0
        assert_same(folder, weights)


def saved(run: Path, name: str, content: str) -> None:
    (run / SAVING / name).mkdir(parents=True)
    (run / SAVING / name / "weights").write_text(content)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path):
    saved(tmp_path, "checkpoint-3", "new")
    assert latest_checkpoint(tmp_path) is None
    commit_checkpoint(tmp_path, "checkpoint-3", {"rows": 4})
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert json.loads((tmp_path / "checkpoint-3" / COMPLETE).read_text()) == {
        "rows": 4,
        "files": {"weights": 3},
    }
    assert not (tmp_path / SAVING).exists()


def test_the_same_step_saved_again_replaces_the_old_one(tmp_path):
    for content in ("old", "new"):
        saved(tmp_path, "checkpoint-3", content)
        commit_checkpoint(tmp_path, "checkpoint-3", {})
    assert (tmp_path / "checkpoint-3" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_the_newest_complete_one_by_number(tmp_path, caplog):
    for step in (9, 10, 11):
        saved(tmp_path, f"checkpoint-{step}", "")
        commit_checkpoint(tmp_path, f"checkpoint-{step}", {})
    (tmp_path / "checkpoint-11" / COMPLETE).unlink()
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-11 is not complete" in caplog.text


def test_what_a_run_is_not_resumed_from(tmp_path):
    saved(tmp_path, "checkpoint-1", "")
    commit_checkpoint(tmp_path, "checkpoint-1", {"seed": 1})
    check_resumable(tmp_path / "checkpoint-1", {"seed": 1})
    with pytest.raises(InputError, match="used seed=1, this run uses seed=2"):
        check_resumable(tmp_path / "checkpoint-1", {"seed": 2})
    with pytest.raises(InputError, match="no complete checkpoint"):
        check_resumable(tmp_path / "checkpoint-2", {})


def steps(run: Path) -> list[int]:
    return list(checkpoints(run))


def published(run: Path, *numbers: int) -> None:
    for step in numbers:
        saved(run, f"checkpoint-{step}", "weights")
        commit_checkpoint(run, f"checkpoint-{step}", {"rows": 4})


def test_a_clock_set_back_does_not_delete_the_newest_save(tmp_path):
    published(tmp_path, 8, 16, 24)
    os.utime(tmp_path / "checkpoint-24", (0, 0))
    rotate(tmp_path, 2, 24)
    assert steps(tmp_path) == [16, 24]


def test_rotation_keeps_what_was_saved_just_now_and_leaves_the_abandoned_course_first(tmp_path):
    published(tmp_path, 4, 6, 8, 16)  # resumed from 4, saved 6: 8 and 16 were left behind
    rotate(tmp_path, 2, 6)
    assert steps(tmp_path) == [4, 6]
    for limit in (None, 0, -1, 5):
        rotate(tmp_path, limit, 6)
    assert steps(tmp_path) == [4, 6]
    rotate(tmp_path, 1, 4)
    assert steps(tmp_path) == [4]


def test_folders_of_other_names_are_neither_resumed_from_nor_deleted(tmp_path):
    published(tmp_path, 8, 16)
    for name in ("checkpoint-16-backup", "checkpoint-best", "checkpoint-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / COMPLETE).write_text("{}")
    (tmp_path / "checkpoint-99").write_text("a file")
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")
    rotate(tmp_path, 1, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-", "checkpoint-16", "checkpoint-16-backup", "checkpoint-99", "checkpoint-best",
    ]  # fmt: skip


def test_a_kill_at_any_moment_of_rotation_leaves_no_hollow_checkpoint_under_its_name(tmp_path):
    def rotated(folder: Path, number: int | None) -> None:
        touching(folder, number)
        rotate(folder / "run", 1, 16)

    whole = tmp_path / "whole"
    published(whole / "run", 8, 16)
    assert in_child(lambda: rotated(whole, None)) == 0
    touches = (whole / "touches").stat().st_size
    assert touches >= 4
    for number in range(1, touches + 1):
        folder = tmp_path / str(number)
        published(folder / "run", 8, 16)
        assert in_child(lambda f=folder, n=number: rotated(f, n)) == -signal.SIGKILL
        left = checkpoints(folder / "run")
        assert 16 in left
        assert all(
            (path / "weights").exists() and (path / COMPLETE).exists() for path in left.values()
        )


@pytest.mark.parametrize("damaged", ["missing", "shorter", "longer"])
def test_a_checkpoint_that_lost_a_file_is_passed_over_by_last_and_refused_by_name(
    tmp_path, caplog, damaged
):
    published(tmp_path, 8, 16)
    weights = tmp_path / "checkpoint-16" / "weights"
    weights.unlink() if damaged == "missing" else weights.write_text(
        {"shorter": "w", "longer": "weights!"}[damaged]
    )
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert "weights" in caplog.text
    with pytest.raises(InputError, match="checkpoint-16: no complete checkpoint: weights"):
        check_resumable(tmp_path / "checkpoint-16", {"rows": 4})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"files": []}', '{"rows": 4, "rows": 4}', "NaN", "\x00"]
)
def test_a_damaged_marker_is_one_line_by_name_and_passed_over_by_last(tmp_path, content):
    published(tmp_path, 8, 16)
    (tmp_path / "checkpoint-16" / COMPLETE).write_text(content)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    with pytest.raises(InputError, match=r"complete\.json"):
        check_resumable(tmp_path / "checkpoint-16", {})


def test_last_continues_the_same_run_only(tmp_path):
    saved(tmp_path, "checkpoint-8", "")
    commit_checkpoint(tmp_path, "checkpoint-8", {"run": {"learning_rate": 1e-4, "data": "abc"}})
    check_same_run(tmp_path / "checkpoint-8", {"learning_rate": 1e-4, "data": "abc"})
    with pytest.raises(InputError, match=r"of a run with learning_rate 0\.0001, this one has 0\.1"):
        check_same_run(tmp_path / "checkpoint-8", {"learning_rate": 0.1, "data": "abc"})


def test_a_checkpoint_written_before_runs_had_an_identity_is_still_continued(tmp_path):
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / COMPLETE).write_text('{"rows": 4}')
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    check_same_run(tmp_path / "checkpoint-8", {"learning_rate": 0.1})
    check_resumable(tmp_path / "checkpoint-8", {"rows": 4})


def test_a_checkpoint_reaches_the_disk_before_its_marker_and_the_marker_before_its_name(tmp_path):
    saved(tmp_path, "checkpoint-3", "new")
    with recorded_os(tmp_path) as events:
        commit_checkpoint(tmp_path, "checkpoint-3", {})
    named = [event.replace(f"{SAVING}/", "") for event in events]
    order = [
        "fsync checkpoint-3/weights", "fsync checkpoint-3/complete.json", "rename checkpoint-3/complete.json",
        "rename checkpoint-3", "fsync .", f"rmdir {SAVING}",
    ]  # fmt: skip
    assert [event for event in named if event in order] == order
    marked, placed = (
        named.index("rename checkpoint-3/complete.json"),
        named.index("rename checkpoint-3"),
    )
    assert "fsync checkpoint-3" in named[marked:placed]


def test_a_checkpoint_loses_its_name_on_the_disk_before_its_first_file(tmp_path):
    published(tmp_path, 8, 16)
    with recorded_os(tmp_path) as events:
        rotate(tmp_path, 1, 16)
    assert events[:2] == [f"rename {SAVING}/checkpoint-8", "fsync ."]
    assert events[-1] == f"rmdir {SAVING}"
