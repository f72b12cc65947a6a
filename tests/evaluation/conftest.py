"""Fixtures of the tests of evaluation."""

import pytest
from number_benchmarks import SHADES
from toy_retriever import query, write_folder


@pytest.fixture
def folder(tmp_path):
    """40 queries that the toy answers first when it reads in full; half go up, half down."""
    rows = []
    for index in range(40):
        reference, add = SHADES[12 + index], 4 * (index % 7 + 1) * (1 if index % 2 else -1)
        rows.append(query(index, reference, add, reference + add))
    return write_folder(tmp_path / "data", rows, SHADES)
