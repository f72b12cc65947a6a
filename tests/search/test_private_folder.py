"""The temporary folder of a process: private, gone at its end, cleared by the next one after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cir_cot.search.private_folder import LOCK, private_folder

HOLD = """
import sys
from cir_cot.search.private_folder import ending_on_signals, private_folder
with ending_on_signals(), private_folder("held-") as folder:
    (folder / "copy").write_text("private")
    print(folder, flush=True)
    sys.stdin.read()
"""


HOLD_OUTRIGHT = HOLD.replace(
    'private_folder("held-") as folder:',
    'private_folder("held-") as folder, removed_after_kill(folder):',
).replace("private_folder\nwith", "private_folder, removed_after_kill\nwith")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def holding(script=HOLD):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], **pipes)


def test_nobody_else_can_look_into_it_and_it_is_gone_afterwards(temporary):
    with private_folder("held-") as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "sub").mkdir()
    assert not folder.exists()


def test_it_is_gone_after_an_error():
    with pytest.raises(RuntimeError), private_folder("held-") as folder:
        raise RuntimeError
    assert not folder.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_it_is_gone_after_a_signal(number, code):
    with holding() as process:
        folder = Path(process.stdout.readline().strip())
        assert (folder / "copy").is_file()
        process.send_signal(number)
        assert process.wait() == code
        assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_shell_removes_it_when_the_process_is_killed(number):
    with holding(HOLD_OUTRIGHT) as process:
        folder = Path(process.stdout.readline().strip())
        time.sleep(0.3)  # the shell has begun to wait
        assert (folder / "copy").is_file()
        process.send_signal(number)
        process.wait()
        # The shell outlives the process for a moment.
        for _ in range(200):
            if not folder.exists():
                break
            time.sleep(0.05)
        assert not folder.exists()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_is_kept():
    with holding() as killed, holding() as alive:
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive))
        killed.kill()
        killed.wait()
        assert (left / "copy").is_file()
        with private_folder("held-"):
            assert not left.exists()
            assert (used / "copy").is_file()
        alive.communicate()
        assert not used.exists()


def test_folders_that_are_not_known_to_be_its_own_are_kept(temporary):
    for name, lock in (
        ("held-photos", None),
        ("other", LOCK),
        ("held-begun", f"{LOCK}.new"),
        ("elsewhere", LOCK),
    ):
        (temporary / name).mkdir()
        (temporary / name / "picture.jpg").write_text("a user's")
        if lock:
            (temporary / name / lock).touch()
    (temporary / "held-link").symlink_to(temporary / "elsewhere")
    with private_folder("held-"):
        pass
    assert len(list(temporary.glob("*/picture.jpg"))) == 5  # one of them through the link


def test_another_users_folder_is_kept(temporary, monkeypatch):
    theirs = temporary / "held-theirs"
    theirs.mkdir()
    (theirs / LOCK).touch()
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    with private_folder("held-"):
        assert theirs.is_dir()
