"""Versions: what constraints.txt pins, what setup.cfg admits, and that the developer's tools name the same ones."""

import re
import tomllib
from configparser import ConfigParser
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("test", "demo", "qdrant", "quant", "docs")  # those whose versions are pinned


def read_pins() -> dict[str, Version]:
    """Name -> version of each line of constraints.txt."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pairs = [line.split("==") for line in lines]
    assert [name for name, _ in pairs] == sorted(name for name, _ in pairs)
    return {canonicalize_name(name): Version(pin) for name, pin in pairs}


def read_requirements() -> list[Requirement]:
    """Requirements that setup.cfg names: those of every installation, and those of EXTRAS."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [
        config["options"]["install_requires"],
        *(config["options.extras_require"][extra] for extra in EXTRAS),
    ]
    lines = [
        line
        for text in texts
        for line in text.splitlines()
        if line and not line.startswith("cir-cot")
    ]
    return [Requirement(line) for line in lines]


def needed_packages(name: str, extras: set[str], found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Names (-> extras) of all packages that `name` with `extras` needs here, read from what is installed."""
    for requirement in map(Requirement, requires(name) or []):
        marker = requirement.marker
        if marker is not None and not any(
            marker.evaluate({"extra": extra}) for extra in {"", *extras}
        ):
            continue
        key = canonicalize_name(requirement.name)
        if key not in found or requirement.extras - found[key]:
            found.setdefault(key, set()).update(requirement.extras)
            needed_packages(key, requirement.extras, found)
    return found


@pytest.mark.parametrize(
    "requirement", read_requirements(), ids=lambda requirement: requirement.name
)
def test_every_requirement_is_pinned_within_its_bounds(requirement):
    assert read_pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_everything_that_the_requirements_bring_is_pinned_too():
    pins = read_pins()
    if Version(version("transformers")) != pins["transformers"]:
        pytest.skip("the installed versions are not those of constraints.txt")
    needed = needed_packages("cir-cot", {"test"}, {})
    machine = re.compile(
        r"nvidia-|cuda-|triton|cir-cot"
    )  # what torch brings for its kind of machine is not pinned
    assert sorted(name for name in needed if not machine.match(name) and name not in pins) == []


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("pillow", "10.2.0"),
        ("pyyaml", "5.3.1"),
        ("tqdm", "4.66.2"),
        ("torch", "2.5.1"),
        ("datasets", "3.6.0"),
    ],
)
def test_a_version_with_a_known_hole_is_not_admitted(name, bad):
    (requirement,) = [one for one in read_requirements() if one.name == name]
    assert bad not in requirement.specifier


def test_make_installs_the_pinned_versions_and_again_when_they_change():
    text = (ROOT / "Makefile").read_text()
    (rule,) = re.findall(r"^\$\(STAMP\): (.*)\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert set(rule[0].split()) == {"setup.cfg", "pyproject.toml", "constraints.txt"}
    assert "pip install -c constraints.txt -e " in rule[1]


def test_the_hook_runs_the_pinned_ruff():
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert Version(hooks["rev"]) == read_pins()["ruff"]


def test_workflows_may_only_read_and_try_every_python_that_is_supported():
    workflows = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / ".github/workflows").glob("*.yml")
    }
    assert sorted(workflows) == ["docs", "newest", "test"]
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
    pythons = workflows["test"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"]
    assert pythons[0].replace(".", "") == oldest.removeprefix("py")


def test_check_runs_ruff_and_mypy_and_the_workflow_runs_check():
    text = (ROOT / "Makefile").read_text()
    (rule,) = re.findall(r"^check: (?:.*)\n((?:\t.*\n)+)", text, re.MULTILINE)
    for tool in ("ruff check .", "ruff format --check .", "python -m mypy"):
        assert f"/{tool}\n" in rule
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert {"run": "make check PYTHON=python"} in jobs["check"]["steps"]
