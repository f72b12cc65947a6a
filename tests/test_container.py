"""The container recipe: what it copies and installs exists, and it installs all that a build of the package reads."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def copied() -> set[str]:
    """Files and folders of the checkout that the recipe copies."""
    found: set[str] = set()
    for line in re.findall(r"^COPY (.+) \S+$", RECIPE, re.MULTILINE):
        found.update(line.split())
    return found


def test_what_is_copied_exists_and_reaches_the_builder():
    assert all((ROOT / name).exists() for name in copied())
    kept = re.findall(
        r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(kept) == copied()


def test_all_folders_of_the_package_and_all_files_that_its_build_reads_are_copied():
    folders = re.findall(r"= (\S+)$", SETUP["options"]["package_dir"], re.MULTILINE)
    assert set(folders) <= copied()
    assert {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied()


def test_the_extras_exist():
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", RECIPE, re.MULTILINE)
    assert set(extras.split(",")) <= set(SETUP["options.extras_require"])


def test_it_runs_the_command_as_a_user_without_rights():
    assert re.search(r"^USER (?!root)\w+$", RECIPE, re.MULTILINE)
    assert 'ENTRYPOINT ["cir-cot"]' in RECIPE
    # A Python that the package admits.
    (minor,) = re.findall(r"^FROM python:3\.(\d+)-slim$", RECIPE, re.MULTILINE)
    assert int(minor) >= 11
