"""What a built wheel holds: the library and its scripts under cir_cot/, data files included, nothing else on top."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cir_cot import cli

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "cir_cot",
    "train",
    "eval",
    "data_gen",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names in a wheel built from a copy, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for source in map(ROOT.joinpath, SOURCES):
        if source.is_dir():
            shutil.copytree(
                source,
                folder / "source" / source.name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        folder / "source",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def source_files(*patterns: str) -> set[str]:
    """Files of the checkout below cir_cot/ and the script folders, by their names in the wheel."""
    files = {
        path.relative_to(ROOT)
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    return {
        str(path) if path.parts[0] == "cir_cot" else f"cir_cot/scripts/{path}" for path in files
    }


def test_only_cir_cot_is_on_top(wheel):
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {"cir_cot"}


def test_every_module_and_every_data_file_is_inside(wheel):
    code = source_files("cir_cot/**/*.py", "train/*.py", "eval/*.py", "data_gen/*.py")
    everything = source_files("cir_cot/**/*", "train/**/*", "eval/**/*", "data_gen/**/*")
    data = {name for name in everything if not name.endswith((".py", ".pyc"))}
    assert data
    assert sorted((code | data) - wheel) == []


def test_the_wheel_declares_its_types(wheel):
    assert "cir_cot/py.typed" in wheel


def test_every_command_is_inside(wheel):
    assert {module.replace(".", "/") + ".py" for module in cli.COMMANDS.values()} <= wheel
