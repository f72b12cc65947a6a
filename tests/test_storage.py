"""Locks and full disks; and the recorder of file system calls that other tests use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_os import recorded_os

from cir_cot.errors import InputError
from cir_cot.files import write_text_atomic
from cir_cot.storage import acquire, locked, written

HOLDER = """
import sys
from pathlib import Path
from cir_cot.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_that_another_process_writes_is_refused_with_its_process_id(tmp_path, holder):
    with (
        pytest.raises(InputError, match=rf"{tmp_path}: process {holder.pid} is writing it"),
        locked(tmp_path),
    ):
        raise AssertionError("two hold the lock")


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_let_go_when_the_work_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError


def test_a_second_lock_within_one_process_is_refused_too(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="is writing it"), locked(tmp_path):
        raise AssertionError("two hold the lock")


def test_a_lock_that_may_wait_gets_its_turn(tmp_path, holder):
    holder.stdin.close()
    with locked(tmp_path, wait=True):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_file_with_other_content_keeps_it_when_it_is_locked(tmp_path):
    (tmp_path / ".lock").write_text('{"teacher": "a"}')
    with locked(tmp_path), pytest.raises(InputError, match="another process is writing"):
        acquire(tmp_path / ".lock", tmp_path)
    assert (tmp_path / ".lock").read_text() == '{"teacher": "a"}'


def test_the_recorder_tells_order_and_final_names(tmp_path):
    with recorded_os(tmp_path) as events:
        write_text_atomic(tmp_path / "a", "text")
        (tmp_path / "a").unlink()
        os.rename(__file__, __file__)
    assert events == ["fsync a", "rename a", "fsync .", "unlink a"]


@pytest.mark.parametrize("number", [28, 30, 13, 122])
def test_what_the_disk_refuses_is_one_line_with_the_folder(tmp_path, number):
    with (
        pytest.raises(InputError, match=rf"{tmp_path}: {os.strerror(number)}; make room"),
        written(tmp_path),
    ):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))


def test_input_errors_pass_as_they_are(tmp_path):
    with pytest.raises(InputError, match="^as it is$"), written(tmp_path):
        raise InputError("as it is")
    assert Path(tmp_path).is_dir()
