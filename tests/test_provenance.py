"""The commit that a result names is that of the code, and of nothing else."""

import importlib.util
import platform
import shutil
import subprocess

import torch

from cir_cot import provenance


def loaded(path):
    """The module in a file, as a module of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder, *command):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    call = ["git", "-C", str(folder), *who, *command]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_dirty_of_the_checkout_the_code_is_tracked_in(tmp_path):
    path = tmp_path / "code.py"
    shutil.copy(provenance.__file__, path)
    assert loaded(path).git_state() == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("theirs")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-q", "-m", "someone else's repository")
    assert loaded(path).git_state() == {"commit": None, "dirty": None}
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "ours")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("a run's output")
    assert loaded(path).git_state() == {"commit": head, "dirty": False}
    (tmp_path / "other").write_text("changed")
    assert loaded(path).git_state() == {"commit": head, "dirty": True}


def test_versions_name_what_is_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package-here"))
    assert provenance.package_versions() == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "no-such-package-here": None,
    }
