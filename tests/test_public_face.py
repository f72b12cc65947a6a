"""What `import cir_cot` offers: exactly these names, each imported at its first use."""

import subprocess
import sys

import pytest

import cir_cot

# A name more is a promise to users, a name less breaks their code: both are decided here.
MEMBERS = [
    "CirArguments",
    "CirDataset",
    "CirTrainer",
    "Cot",
    "Index",
    "InputError",
    "QueryOutput",
    "Record",
    "Retriever",
    "Search",
    "annotate",
    "build_index",
    "evaluate",
    "list_pictures",
    "load_benchmark",
    "load_retriever",
    "open_search",
    "train",
]


def loaded_after(statement: str) -> set[str]:
    """Modules that a fresh interpreter holds after the statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_exported_members_are_these():
    assert cir_cot.__all__ == MEMBERS
    assert sorted(cir_cot.FACE) == MEMBERS


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_can_be_imported_and_documents_itself(name):
    member = getattr(cir_cot, name)
    assert name in dir(cir_cot)
    assert member.__doc__
    assert getattr(cir_cot, name) is member


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import cir_cot; dir(cir_cot)")
    assert "cir_cot" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "PIL", "faiss", "cir_cot.errors"}


def test_a_record_and_a_benchmark_need_no_torch():
    loaded = loaded_after("from cir_cot import Cot, InputError, Record, load_benchmark")
    assert "cir_cot.records" in loaded
    assert not loaded & {"torch", "transformers", "faiss"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'cir_cot' has no attribute 'load_retreiver'"):
        _ = cir_cot.load_retreiver


def test_modules_are_still_imported_by_their_names():
    loaded = loaded_after("from cir_cot import prompts, records")
    assert {"cir_cot.prompts", "cir_cot.records"} <= loaded
