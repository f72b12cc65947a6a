"""The columns by which a page can filter, and the filter that its controls show."""

import pytest

from cir_cot.search.filter_columns import (
    MAX_COLUMNS,
    MAX_VALUES,
    Column,
    columns_of,
    shown_in,
    where_of,
)


def test_columns_are_those_that_divide_the_pictures():
    payloads = {
        "a": {"kind": "dress", "price": 30, "new": True, "brand": "x", "id": 1, "tags": ["a"]},
        "b": {"kind": "shirt", "price": 9.5, "new": False, "brand": "x", "id": "2", "tags": []},
        "c": {"kind": "dress", "price": None, "new": True, "brand": "x", "year": 2020},
        "d": {"kind": "hat", "new": True, "brand": "x", "sale": "yes", "year": 2020},
    }
    assert columns_of(payloads) == [
        Column("kind", ("dress", "hat", "shirt")),
        Column("price", (), 9.5, 30),
        Column("new", (False, True)),
        Column("sale", ("yes",)),
    ]
    assert columns_of({}) == []


def test_names_and_texts_are_no_columns_and_a_page_has_room_for_some():
    few = {str(n): {"few": f"v{n % MAX_VALUES}"} for n in range(2 * MAX_VALUES)}
    many = {str(n): {"many": f"v{n}"} for n in range(MAX_VALUES + 1)}
    assert len(columns_of(few)[0].values) == MAX_VALUES
    assert columns_of(many) == []
    wide = {str(n): {f"c{k}": n for k in range(MAX_COLUMNS + 3)} for n in range(2)}
    assert [column.name for column in columns_of(wide)] == [f"c{k}" for k in range(MAX_COLUMNS)]


COLUMNS = [
    Column("kind", ("dress", "hat")),
    Column("price", (), 1, 9),
    Column("new", (False, True)),
]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ([None, None, None, None], {}),
        ([[], None, None, []], {}),
        ([["hat"], None, 5, [True]], {"kind": ["hat"], "price": {"lte": 5}, "new": [True]}),
        ([["hat", "dress"], 0, 5, None], {"kind": ["dress", "hat"], "price": {"gte": 0, "lte": 5}}),
    ],
)
def test_controls_show_the_filter_that_they_make(given, where):
    assert where_of(COLUMNS, given) == where
    assert where_of(COLUMNS, shown_in(COLUMNS, where)) == where


def test_values_that_no_picture_has_are_not_searched_for():
    assert where_of(COLUMNS, [["../etc", "hat"], None, None, None]) == {"kind": ["hat"]}
    assert shown_in(COLUMNS, {"kind": "hat", "other": 1}) == [["hat"], None, None, []]
