"""A hook of mkdocs: add to the site the pages that no file in docs/ holds.

These are README.md, CONTRIBUTING.md and CHANGELOG.md, which lie at the root of the repository, and the
reference, which mkdocstrings generates from the docstrings: the public names, and one page for each room.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import cir_cot

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "cir_cot"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
ROOMS = tuple(
    sorted(
        path.parent.name for path in LIBRARY.glob("*/__init__.py") if path.parent.name != "scripts"
    )
)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!https?:|#)[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=for_the_site(text, "")))
    files.append(File.generated(config, "reference/index.md", content=public_names()))
    files.append(File.generated(config, "reference/modules.md", content=single_modules()))
    for room in ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content=room_page(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page in docs/ that lead out of it."""
    if page.file.generated_by is not None:
        return markdown
    return for_the_site(markdown, "docs")


def for_the_site(text: str, folder: str) -> str:
    """Rewrite links of a file in `folder` to the places of their targets on the site.

    A link to a file that is no page of the site, such as a test, keeps its text alone.
    """

    def rewritten(match: re.Match) -> str:
        label, address = match[1], match[2]
        target, mark, anchor = address.partition("#")
        path = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        if path in PAGES:
            place = PAGES[path]
        elif path.startswith("docs/"):
            place = path.removeprefix("docs/")
        else:
            return label
        return f"[{label}]({place}{mark}{anchor})"

    return LINK.sub(rewritten, text).replace("](docs/", "](")


def public_names() -> str:
    """Return the page of what `import cir_cot` offers: a table with links into the rooms."""
    lines = [
        "# Public names",
        "",
        "`import cir_cot` offers these; [Use from Python](../python.md) shows them at work.",
        "",
        "| name | what it is |",
        "|---|---|",
    ]
    for name, (module, member) in cir_cot.FACE.items():
        place = f"cir_cot.{module}.{member}"
        lines.append(f"| [`{name}`][{place}] | {first_sentence(module, member)} |")
    return "\n".join(lines) + "\n"


def first_sentence(module: str, member: str) -> str:
    """Return the first line of a member's docstring, read without importing its module."""
    path = LIBRARY / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) == member:
            return (ast.get_docstring(node) or "").partition("\n")[0].replace("|", "\\|")
    raise ValueError(f"{source}: no {member} in it")


def single_modules() -> str:
    """Return the page of the modules that stand beside the rooms."""
    names = [path.stem for path in sorted(LIBRARY.glob("*.py")) if path.stem != "__init__"]
    return reference("Modules beside the rooms", [f"cir_cot.{name}" for name in names])


def room_page(room: str) -> str:
    """Return the page of a room: the package itself, then each of its modules."""
    names = [f"cir_cot.{room}"]
    for path in sorted((LIBRARY / room).glob("*.py")):
        if path.stem != "__init__":
            names.append(f"cir_cot.{room}.{path.stem}")
    return reference(f"cir_cot.{room}", names)


def reference(title: str, names: list[str]) -> str:
    """Return a page that documents the named modules."""
    blocks = [f"# {title}"]
    for name in names:
        blocks.append(f"::: {name}\n    options:\n      show_submodules: false")
    return "\n\n".join(blocks) + "\n"
