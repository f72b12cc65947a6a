"""Find the columns of an index's payloads by which people can filter, and read the filter that they chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_COLUMNS = 8  # controls that fit on a page
MAX_VALUES = 50  # choices of a column; a column of more is a name or a text


@dataclass(frozen=True)
class Column:
    """A key of the payloads: one of a few values, or a number between bounds.

    Attributes:
        name: the key.
        values: its values in order; () for numbers.
        low: the least number; 0 for values.
        high: the greatest number; 0 for values.
    """

    name: str
    values: tuple[str | bool, ...] = ()
    low: float = 0
    high: float = 0


def columns_of(payloads: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """Return the columns that can be filtered by, in order of their first appearance.

    A column holds numbers only, or at most MAX_VALUES different strings or truth values. Others are left out, as is
    a column with the same value in all pictures.
    """
    # Collect the values of each key; a picture without it, or with null, has none.
    held: dict[str, list] = {}
    for payload in payloads.values():
        for key, value in payload.items():
            if value is not None:
                held.setdefault(key, []).append(value)
    # Keep those that a control can show.
    columns = []
    for key, values in held.items():
        if column := _column(key, values, len(payloads)):
            columns.append(column)
    return columns[:MAX_COLUMNS]


def _column(key: str, values: Sequence, pictures: int) -> Column | None:
    """Return the column of a key with its values, or None where there is nothing to choose."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        low, high = min(values), max(values)
        return Column(key, (), low, high) if low < high else None
    if kinds not in ({str}, {bool}):
        return None
    different = tuple(sorted(set(values)))
    # One value divides the pictures only where some lack it.
    divides = len(different) > 1 or len(values) < pictures
    return Column(key, different) if divides and len(different) <= MAX_VALUES else None


def where_of(columns: Sequence[Column], given: Sequence[Any]) -> dict[str, Any]:
    """Return the filter that the controls show.

    Args:
        columns: the columns.
        given: for each column of values the chosen ones, for one of numbers two: the least, then the greatest, or None.
    """
    where: dict[str, Any] = {}
    rest = iter(given)
    for column in columns:
        if column.values:
            # Only the column's own values are taken from a request.
            chosen = next(rest) or []
            wanted = [value for value in column.values if value in chosen]
            if wanted:
                where[column.name] = wanted
            continue
        bounds = {"gte": next(rest), "lte": next(rest)}
        bounds = {name: bound for name, bound in bounds.items() if bound is not None}
        if bounds:
            where[column.name] = bounds
    return where


def shown_in(columns: Sequence[Column], where: Mapping[str, Any]) -> list[Any]:
    """Return what the controls show for a filter, the inverse of `where_of`."""
    shown: list[Any] = []
    for column in columns:
        wanted = where.get(column.name)
        if column.values:
            chosen = wanted if isinstance(wanted, list) else [wanted]
            shown.append([value for value in column.values if value in chosen])
            continue
        bounds = wanted if isinstance(wanted, dict) else {}
        shown += [bounds.get("gte"), bounds.get("lte")]
    return shown
