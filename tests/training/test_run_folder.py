"""A training run's folder: what another run left is not replaced, and two runs do not write one folder."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_training

from cir_cot.errors import InputError
from cir_cot.training.arguments import DataArguments
from cir_cot.training.checkpoints import COMPLETE
from cir_cot.training.run_folder import WRITTEN, check_run_folder, identity, run_folder


def arguments(folder: Path, **more) -> DataArguments:
    return DataArguments(
        output_dir=str(folder), model="base", root="data", report_to="none", **more
    )


def start(folder: Path, **more) -> None:
    check_run_folder(arguments(folder, **more))
    with run_folder(arguments(folder, **more)):
        pass


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}))


def test_two_runs_do_not_write_one_folder(tmp_path):
    with run_folder(arguments(tmp_path)):
        with pytest.raises(InputError, match="is writing it; wait for its end"):
            start(tmp_path)
        with pytest.raises(InputError, match="is writing it; wait for its end"):
            start(tmp_path, overwrite=True)
    start(tmp_path)


def test_a_trained_retriever_is_not_replaced(tmp_path):
    fill(tmp_path, "run.json", "retriever.json", "head.safetensors")
    for more in ({}, {"resume_from_checkpoint": "last"}, {"resume_from_checkpoint": "elsewhere"}):
        with pytest.raises(
            InputError, match="holds a trained retriever; give another --output_dir, or --overwrite"
        ):
            start(tmp_path, **more)
    start(tmp_path, overwrite=True)
    assert (tmp_path / "retriever.json").exists()  # it goes when the new one is saved


def test_a_new_run_does_not_start_among_the_checkpoints_of_another(tmp_path):
    fill(tmp_path, "run.json", f"checkpoint-8/{COMPLETE}")
    with pytest.raises(
        InputError,
        match="checkpoints of an earlier run; .* or --resume_from_checkpoint last to continue",
    ):
        start(tmp_path)
    start(tmp_path, resume_from_checkpoint="last")
    assert (tmp_path / "checkpoint-8" / COMPLETE).exists()


def test_overwrite_removes_checkpoints_and_nothing_else(tmp_path):
    fill(tmp_path, "retriever.json", f"checkpoint-8/{COMPLETE}", "checkpoint-9/trainer_state.json")
    kept = [
        "checkpoint-16-backup/notes.txt",
        "checkpoint-7/mine.txt",
        "chains.jsonl",
        "features/x.safetensors",
    ]
    fill(tmp_path, *kept)
    start(tmp_path, overwrite=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "retriever.json", ".lock"}


def test_overwrite_keeps_the_checkpoints_that_it_resumes_from(tmp_path):
    fill(tmp_path, f"checkpoint-8/{COMPLETE}")
    start(tmp_path, overwrite=True, resume_from_checkpoint="last")
    assert (tmp_path / "checkpoint-8" / COMPLETE).exists()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_no_run_wrote_is_not_replaced(tmp_path, name):
    fill(tmp_path, name)
    with pytest.raises(InputError, match=f"holds {name}"):
        start(tmp_path)


def test_a_run_that_ended_before_it_had_anything_is_started_again_without_a_flag(tmp_path):
    fill(tmp_path, "run.json", "estimate.json", "no_chain.log", "features/x.safetensors")
    start(tmp_path)


def test_the_base_is_not_trained_over(tmp_path):
    fill(tmp_path, "checkpoint-3/retriever.json")
    for model in (tmp_path, tmp_path / "checkpoint-3"):
        args = dataclasses.replace(arguments(tmp_path, overwrite=True), model=str(model))
        with pytest.raises(InputError, match="lies in the output_dir"):
            check_run_folder(args)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    fill(tmp_path, "here")
    with pytest.raises(InputError, match="is a file"):
        start(tmp_path / "here")


def test_what_decides_the_weights_makes_another_run_and_nothing_else_does(tmp_path):
    rows = tiny_training.records(6)
    ours = identity(arguments(tmp_path), rows)
    assert ours == json.loads(json.dumps(ours))
    same = {
        "logging_steps": 3,
        "chunk_tokens": 100,
        "save_steps": 7,
        "dataloader_num_workers": 1,
        "overwrite": True,
    }
    assert identity(arguments(tmp_path / "elsewhere", **same), rows) == ours
    changes = {
        "learning_rate": 1.0,
        "num_train_epochs": 9.0,
        "lm_weight": 0.5,
        "category": "dress",
        "warmup_steps": 3,
    }
    for name, value in changes.items():
        assert identity(arguments(tmp_path, **{name: value}), rows) != ours
    assert identity(arguments(tmp_path), rows[::-1]) != ours
    changed = [dataclasses.replace(rows[0], text="another text"), *rows[1:]]
    assert identity(arguments(tmp_path), changed) != ours
