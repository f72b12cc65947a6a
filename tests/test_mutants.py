"""The mutation script's list still fits the code, and the script tells what tests notice from what they do not."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutants import edited, mutants_of, unusable
from mutants_list import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
LIST = mutants_of(MUTANTS)


def names(path: Path) -> set[str]:
    """Names of the functions and classes of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def test_every_edit_of_the_list_applies_to_the_code():
    assert list(unusable(ROOT, LIST)) == []


def test_no_edit_is_listed_twice_and_every_edited_module_can_be_parsed():
    places = Counter((mutant.file, mutant.old, mutant.new) for mutant in LIST)
    assert [place for place, count in places.items() if count > 1] == []
    for mutant in LIST:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        if mutant.file.endswith(".py"):
            ast.parse(edited(text, mutant), mutant.file)


def test_every_test_that_the_list_names_exists():
    for node in {test for mutant in LIST for test in mutant.tests}:
        file, *inside = node.partition("[")[0].split("::")
        assert set(inside) <= names(ROOT / file), node


def test_an_edit_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "code.py").write_text("one = 1\ntwo = 1\n")
    rows = [
        ("code.py", "= 1", "= 2", ["t.py"], "twice"),
        ("code.py", "three", "3", ["t.py"], "absent"),
        ("gone.py", "one", "1", ["t.py"], "no file"),
        ("code.py", "one", "one", ["t.py"], "nothing"),
        ("code.py", "two", "2", [], "no test"),
        ("code.py", "one = 1", "one = 2", ["t.py"], "good"),
    ]
    problems = list(unusable(tmp_path, mutants_of(rows)))
    words = ["2 times", "0 times", "0 times", "by itself", "names no test"]
    assert [word for word, problem in zip(words, problems, strict=True) if word in problem] == words


CODE = "def double(x):\n    return 2 * x\n\n\ndef count(n):\n    while n > 0:\n        n -= 1\n    return n\n"
TESTS = """
import subprocess
import sys
import pytest
from cir_cot.code import count, double

def test_double():
    assert double(3) == 6

def test_elsewhere():
    program = "import cir_cot.code; print(cir_cot.code.double(3))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "6\\n"

def test_count():
    assert count(2) == 0

def test_weak():
    double(3)

def test_red():
    assert double(3) == 7

@pytest.mark.skip
def test_skipped():
    pass
"""
ROWS = [
    ("cir_cot/code.py", "2 * x", "3 * x", ["tests/test_code.py::test_double"], "noticed"),
    (
        "cir_cot/code.py",
        "2 * x",
        "x",
        ["tests/test_code.py::test_elsewhere"],
        "noticed in a subprocess",
    ),
    ("cir_cot/code.py", "2 * x", "x + x", ["tests/test_code.py::test_double"], "the same"),
    ("cir_cot/code.py", "2 * x", "4 * x", ["tests/test_code.py::test_weak"], "not noticed"),
    ("cir_cot/code.py", "n -= 1", "n += 1", ["tests/test_code.py::test_count"], "hangs"),
    ("cir_cot/code.py", "2 * x", "2 *", ["tests/test_code.py::test_weak"], "cannot be loaded"),
    ("cir_cot/code.py", "2 * x", "5 * x", ["tests/test_code.py::test_red"], "red before"),
    ("cir_cot/code.py", "2 * x", "6 * x", ["tests/test_code.py::test_skipped"], "skipped"),
]
PROGRAM = """
import json, pathlib, sys
import mutants
root, rows = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps([outcome[1:3] for outcome in mutants.run(root, mutants.mutants_of(rows), 2, 10)]))
"""


@pytest.mark.slow
def test_the_script_tells_what_is_noticed_from_what_is_not(tmp_path):
    for folder in ("cir_cot", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cir_cot" / "__init__.py").touch()
    (tmp_path / "cir_cot" / "code.py").write_text(CODE)
    (tmp_path / "tests" / "test_code.py").write_text(TESTS)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["noticed", "a test failed"],
        ["noticed", "a test failed"],
        ["survived", ""],
        ["survived", ""],
        ["noticed", "hung: ended at the limit"],
        ["noticed", "the tests cannot be loaded"],
        ["void", "its tests fail on the unbroken tree"],
        ["void", "none of its tests runs here"],
    ]
    assert (tmp_path / "cir_cot" / "code.py").read_text() == CODE
