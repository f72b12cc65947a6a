"""The shape of the code: import levels, thin scripts, short files and functions, nothing unsafe, nothing local.

Each rule is a function of a parsed file that yields `line: what`; each is shown to catch an example of what it bans.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ("train", "eval", "data_gen")  # installed as cir_cot.scripts.train and so on
SCRIPT_FOLDERS = (*PACKAGED, "benchmarks")
TEXT = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".json", ".sh", ".txt", ""}

# A room, or a module beside the rooms, imports from lower levels only. Within a room modules import each other as they
# need, without a circle. CONTRIBUTING.md shows the rooms. `options` serves scripts only: no library module imports it.
ORDER = (
    {
        "cards",
        "compat",
        "digests",
        "errors",
        "losses",
        "peak_bytes",
        "processes",
        "provenance",
        "webpage",
    },
    {"picture_files"},
    {"devices", "files", "hub", "images", "ranks", "stored_help"},
    {"inputs", "ownership", "records", "storage"},
    {"data", "prompts"},
    {"retriever"},
    {"fingerprint"},
    {"evaluation", "models"},
    {"heads", "integrations"},
    {"chains"},
    {"engines", "search", "training"},
    {"profiling", "review"},
    {"cli", "installation", "options"},
    {"protocol_options"},
)
LEVELS = {module: level for level, modules in enumerate(ORDER) for module in modules}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def own_files(*suffixes: str) -> list[Path]:
    """Files of the checkout, without what is installed, built or run in it."""
    foreign = {
        ".venv",
        ".venv-newest",
        ".git",
        "runs",
        "build",
        "dist",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
    }
    files = (path for path in ROOT.rglob("*") if path.is_file() and path.suffix in suffixes)
    return [
        p
        for p in files
        if not any(q in foreign or q.endswith(".egg-info") for q in p.relative_to(ROOT).parts)
    ]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


LIBRARY = python_files("cir_cot")
SCRIPT_INIT = ROOT / "cir_cot" / "scripts" / "__init__.py"
ROOM_MODULES = [p for p in LIBRARY if p not in (ROOT / "cir_cot" / "__init__.py", SCRIPT_INIT)]
SCRIPTS = python_files(*SCRIPT_FOLDERS)
EVERYTHING = LIBRARY + SCRIPTS + python_files("tests")


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import anywhere in a file of `package`, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def upward_imports(tree: ast.AST, package: str, module: str) -> Iterator[str]:
    for line, target in imported(tree, package):
        parts = target.split(".")
        if parts[0] != "cir_cot" or len(parts) < 2 or parts[1] == "__version__":
            continue
        if parts[1] not in LEVELS:
            yield f"{line}: imports {target}, which is no module of the library with a level"
        elif parts[1] != module and LEVELS[parts[1]] >= LEVELS[module]:
            yield f"{line}: {module} (level {LEVELS[module]}) imports {parts[1]} (level {LEVELS[parts[1]]})"


def imports_beside_the_library(tree: ast.AST, folder: str) -> Iterator[str]:
    for line, target in imported(tree, f"cir_cot.scripts.{folder}"):
        parts = target.split(".")
        if parts[0] in SCRIPT_FOLDERS or parts[:2] == ["cir_cot", "scripts"]:
            yield f"{line}: a script imports the library only, not {target}"


TEST_MODULES = {"tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}


def leans_on_tests(tree: ast.AST) -> Iterator[str]:
    """Yield imports of test modules, and strings that name a file of tests/."""
    for line, target in imported(tree, "benchmarks"):
        if target.split(".")[0] in TEST_MODULES:
            yield f"{line}: imports {target} of the tests"
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and (text == "tests" or text.startswith("tests/")):
            yield f"{node.lineno}: names {text}"


def prints_or_parses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            yield f"{node.lineno}: the library logs, only scripts print"
    for line, target in imported(tree, "cir_cot"):
        if target.split(".")[0] == "argparse":
            yield f"{line}: only scripts parse arguments"


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if length > 60:
                yield f"{node.lineno}: {node.name} has {length} lines"


def swallowed_errors(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {getattr(kind, "id", None) for kind in caught} if node.type else {"everything"}
        raises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if names & {"Exception", "everything"} or ("BaseException" in names and not raises):
            yield f"{node.lineno}: catches everything"


def unsafe_loading(tree: ast.AST) -> Iterator[str]:
    for line, target in imported(tree, "cir_cot"):
        if target.split(".")[0] in {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}:
            yield f"{line}: imports {target}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if "trust_remote_code" in options or "allow_pickle" in options:
            yield f"{node.lineno}: trust_remote_code or allow_pickle"
        weights_only = getattr(options.get("weights_only"), "value", None)
        if ast.unparse(node.func) == "torch.load" and weights_only is not True:
            yield f"{node.lineno}: torch.load without weights_only=True"


FOLDERS = "|".join(("home", "root", "Users", "work", "mnt", "opt", "srv", "tmp", "var", "scratch"))
LOCAL_PATH = re.compile(rf"(?:^|[\s\"'`=(:\[,])(/(?:{FOLDERS})/[\w.-]+|[A-Z]:\\\\?\w+)")


def local_paths(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := LOCAL_PATH.search(line):
            yield f"{number}: {found[1]}"


def broken(rule, path: Path, *details) -> list[str]:
    return [
        f"{name(path)}:{problem}"
        for problem in rule(ast.parse(path.read_text(encoding="utf-8")), *details)
    ]


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "cir_cot").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", ROOM_MODULES, ids=name)
def test_a_module_imports_from_lower_levels_only(path):
    assert module_of(path) in LEVELS, f"give {name(path)} a level"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert broken(upward_imports, path, package, module_of(path)) == []


# The modules of the library that serve scripts: `cli` prints errors, the others declare shared options.
FOR_SCRIPTS = [ROOT / "cir_cot" / f"{name}.py" for name in ("cli", "options", "protocol_options")]


@pytest.mark.parametrize("path", [p for p in LIBRARY if p not in FOR_SCRIPTS], ids=name)
def test_the_library_neither_prints_nor_parses_arguments(path):
    assert broken(prints_or_parses, path) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_imports_the_library_only(path):
    assert broken(imports_beside_the_library, path, path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize("path", python_files("benchmarks"), ids=name)
def test_benchmarks_use_nothing_of_the_tests(path):
    assert broken(leans_on_tests, path) == []


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name != "__init__.py"], ids=name)
def test_no_script_is_named_like_a_module_that_anybody_imports(path):
    """`accelerate launch train/x.py` puts train/ first on sys.path."""
    assert path.stem not in sys.stdlib_module_names
    spec = importlib.util.find_spec(path.stem)
    assert (
        spec is None or spec.origin is None
    )  # a folder without code, such as one of tests, hides nothing


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_functions_are_short_and_errors_surface(path):
    assert broken(long_functions, path) + broken(swallowed_errors, path) == []


@pytest.mark.parametrize("path", LIBRARY + SCRIPTS, ids=name)
def test_loading_is_safe(path):
    assert broken(unsafe_loading, path) == []


@pytest.mark.parametrize("path", LIBRARY + SCRIPTS, ids=name)
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_nothing_names_a_path_of_one_machine():
    problems = [
        f"{name(p)}:{q}"
        for p in own_files(*TEXT)
        for q in local_paths(p.read_text(encoding="utf-8"))
    ]
    assert problems == []


BANNED = {
    "level": (
        upward_imports,
        "from cir_cot.training.trainer import CirTrainer",
        ("cir_cot.heads", "heads"),
    ),
    "level inside a function": (
        upward_imports,
        "def f():\n    import cir_cot.heads.cot",
        ("cir_cot.models", "models"),
    ),
    "level, one package up": (
        upward_imports,
        "from ..training import x",
        ("cir_cot.heads", "heads"),
    ),
    "level, package import": (upward_imports, "from cir_cot import records", ("cir_cot", "images")),
    "same level": (upward_imports, "from . import files", ("cir_cot", "images")),
    "script imported by the library": (
        upward_imports,
        "import cir_cot.scripts.train.sft",
        ("cir_cot.training", "training"),
    ),
    "script imports script": (
        imports_beside_the_library,
        "from cir_cot.scripts.train import sft",
        ("eval",),
    ),
    "script imports sibling": (imports_beside_the_library, "from . import sft", ("train",)),
    "benchmark imports tests": (leans_on_tests, "from tiny_training import rows", ()),
    "benchmark names tests": (leans_on_tests, 'path = root / "tests" / "fake_server.py"', ()),
    "script imports folder": (imports_beside_the_library, "import train.sft", ("eval",)),
    "print": (prints_or_parses, "print(1)", ()),
    "arguments": (prints_or_parses, "from argparse import ArgumentParser", ()),
    "61 lines": (long_functions, "def f():\n" + "    pass\n" * 60, ()),
    "bare except": (swallowed_errors, "try:\n    f()\nexcept:\n    raise", ()),
    "except Exception": (swallowed_errors, "try:\n    f()\nexcept Exception:\n    raise", ()),
    "except tuple": (
        swallowed_errors,
        "try:\n    f()\nexcept (KeyError, Exception):\n    raise",
        (),
    ),
    "BaseException kept": (swallowed_errors, "try:\n    f()\nexcept BaseException:\n    pass", ()),
    "pickle": (unsafe_loading, "import pickle", ()),
    "torch.load": (unsafe_loading, "torch.load(path)", ()),
    "weights_only off": (unsafe_loading, "torch.load(path, weights_only=False)", ()),
    "remote code": (unsafe_loading, "AutoModel.from_pretrained(path, trust_remote_code=True)", ()),
    "numpy objects": (unsafe_loading, "np.load(path, allow_pickle=True)", ()),
}


@pytest.mark.parametrize(("rule", "source", "details"), BANNED.values(), ids=BANNED)
def test_the_rules_catch_what_they_ban(rule, source, details):
    assert len(list(rule(ast.parse(source), *details))) == 1


ALLOWED = {
    "downward": (
        upward_imports,
        "from cir_cot.records import Record\nfrom cir_cot import prompts",
        ("cir_cot.heads", "heads"),
    ),
    "within heads": (
        upward_imports,
        "from .cot import CotHead\nfrom ..retriever import x",
        ("cir_cot.heads", "heads"),
    ),
    "script": (
        imports_beside_the_library,
        "from cir_cot.data import BENCHMARKS\nimport rich",
        ("train",),
    ),
    "60 lines": (long_functions, "def f():\n" + "    pass\n" * 59, ()),
    "clean up": (
        swallowed_errors,
        "try:\n    f()\nexcept BaseException:\n    clean()\n    raise",
        (),
    ),
    "weights only": (unsafe_loading, "torch.load(path, weights_only=True)", ()),
}


@pytest.mark.parametrize(("rule", "source", "details"), ALLOWED.values(), ids=ALLOWED)
def test_the_rules_let_good_code_pass(rule, source, details):
    assert list(rule(ast.parse(source), *details)) == []


def test_the_path_rule_tells_local_paths_from_addresses():
    slash = "/"
    assert list(local_paths(f'root = "{slash}home{slash}me/data"')) == [f"1: {slash}home{slash}me"]
    assert list(local_paths(f"see `{slash}tmp{slash}x.png`"))
    assert (
        list(
            local_paths(
                "images/train/x.png https://example.org/home/page {root}/tmp/x #!/usr/bin/env"
            )
        )
        == []
    )
