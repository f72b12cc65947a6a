"""README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: links lead somewhere, pages are on the site, commands exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from cir_cot import __version__, cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(((?!https?:)[^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bcir-cot ([a-z][a-z-]*)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in kept}


def dead_links(path: Path) -> list[str]:
    """Return the links of a page whose file or heading does not exist."""
    dead = []
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        there = file.exists()
        if there and anchor:
            there = anchor in anchors(file.read_text(encoding="utf-8"))
        if not there:
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [c](none.md) [d](page.md#a-title)\n")
    assert dead_links(page) == ["#b", "none.md"]


def test_every_page_of_docs_is_on_the_site():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["strict"] is True


def test_every_room_has_a_page_of_reference():
    text = (ROOT / "mkdocs.yml").read_text()
    rooms = {path.parent.name for path in (ROOT / "cir_cot").glob("*/__init__.py")} - {"scripts"}
    assert {room for room in rooms if f"reference/{room}.md" not in text} == set()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_command_of_a_code_block_exists(path):
    blocks = "\n".join(FENCE.findall(path.read_text(encoding="utf-8")))
    assert set(COMMAND.findall(blocks)) <= set(cli.COMMANDS)


PATH = re.compile(r"`((?:cir_cot|train|eval|data_gen|tests|docs)/[\w./-]*|\.ci/run|[\w/]+\.py)`")


TODAY = [path for path in PAGES if path.name not in ("CHANGELOG.md", "log.md")]  # not the past


@pytest.mark.parametrize("path", TODAY, ids=name)
def test_every_path_that_a_page_names_exists(path):
    named = set(PATH.findall(FENCE.sub("", path.read_text(encoding="utf-8")))) - {"utils.py"}
    places = (ROOT, ROOT / "cir_cot", ROOT / "benchmarks", ROOT / "docs")
    assert [p for p in named if not any((place / p).exists() for place in places)] == []
    assert path.name != "CONTRIBUTING.md" or len(named) > 40


def test_the_map_names_every_room_and_every_module_beside_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "cir_cot").glob("*/__init__.py")]
    modules = [path.name for path in (ROOT / "cir_cot").glob("*.py")]
    entries = [f"`{room}/`" for room in rooms if room != "scripts"]
    entries += [f"`{module}`" for module in modules]
    assert [entry for entry in entries if entry not in text] == []


def test_changelog_and_citation_name_this_version():
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__
    assert versions == sorted(versions, reverse=True)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


ARGUMENT = re.compile(r"^    (\S[^:]*?)(?: \(.*\))?:", re.MULTILINE)


def documented_arguments(docstring: str) -> list[str]:
    """Return the names that the `Args:` section of a docstring describes."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    return ARGUMENT.findall(section[1]) if section else []


def unknown_arguments(tree: ast.AST) -> list[str]:
    """Return `line: name` of each described argument that does not exist in the code, or has no type there.

    A class describes the arguments of its `__init__`; a dataclass, which has none, its fields.
    """
    unknown = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        function = node
        if isinstance(node, ast.ClassDef):
            inits = [part for part in node.body if getattr(part, "name", None) == "__init__"]
            if not inits:
                continue
            function = inits[0]
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        arguments += [one for one in (given.vararg, given.kwarg) if one]
        typed = [one.arg for one in arguments if one.annotation]
        for name in documented_arguments(ast.get_docstring(node) or ""):
            if name.lstrip("*") not in typed:
                unknown.append(f"{node.lineno}: {name}")
    return unknown


@pytest.mark.parametrize("path", sorted((ROOT / "cir_cot").rglob("*.py")), ids=name)
def test_docstrings_describe_arguments_that_exist(path):
    assert unknown_arguments(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_described_argument_that_does_not_exist_is_noticed():
    lines = [
        '"""Do.',
        "",
        "    Args:",
        "        a: one.",
        "        b: two.",
        "        c: three.",
        '    """',
    ]
    source = "def f(a: int, *, b):\n    " + "\n".join(lines)
    assert unknown_arguments(ast.parse(source)) == ["1: b", "1: c"]
