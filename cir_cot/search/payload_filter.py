"""Filter pictures by their payload while searching.

A filter maps keys of a payload to a value, a list of values, or bounds on a number. All keys must match:
`{"category": ["shirt", "dress"], "price": {"lt": 50}}`.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cir_cot.errors import InputError

# Bounds on a number, by name.
BOUNDS = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


def check_filter(where: object) -> dict:
    """Return a payload filter unchanged; InputError names what is wrong with it."""
    if not isinstance(where, dict):
        raise InputError(
            f'a filter is an object like {{"category": "dress", "price": {{"lt": 50}}}}, '
            f"not {where!r}"
        )
    # Values and lists of values may be anything; bounds must be numbers.
    for key, wanted in where.items():
        if isinstance(wanted, dict):
            _check_bounds(key, wanted)
    return where


def _check_bounds(key: str, bounds: Mapping) -> None:
    """Refuse a bound of another name, or one that is not a number."""
    # The first wrong one is named.
    for name, bound in bounds.items():
        if name not in BOUNDS or not isinstance(bound, (int, float)):
            raise InputError(
                f"filter {key!r}: {name!r}: {bound!r} is no bound; "
                f"use {', '.join(BOUNDS)} with a number"
            )


def matches_filter(payload: Mapping, where: Mapping) -> bool:
    """Tell whether a payload matches every key of a filter.

    Example:
        matches_filter({"category": "dress", "price": 30}, {"price": {"lt": 50}})  # True
    """
    # A picture without the key matches nothing but a wanted null.
    return all(_matches(payload.get(key), wanted) for key, wanted in where.items())


def matching_rows(
    ids: Sequence[str], payloads: Mapping[str, Mapping], where: Mapping
) -> np.ndarray:
    """Return the rows (n,) of `ids` whose payload matches a filter; a picture may have none."""
    # Every picture is looked at: payloads have no index.
    matching = []
    for row, name in enumerate(ids):
        if matches_filter(payloads.get(name, {}), where):
            matching.append(row)
    return np.array(matching, dtype=np.int64)


def _matches(value: object, wanted: object) -> bool:
    """Tell whether a value of a payload lies within bounds, is in a list, or equals what is wanted."""
    # Bounds hold for numbers only.
    if isinstance(wanted, Mapping):
        if not isinstance(value, (int, float)):
            return False
        return all(BOUNDS[name](value, bound) for name, bound in wanted.items())
    if isinstance(wanted, list):
        return value in wanted
    return value == wanted


def unknown_keys(where: Mapping, payloads: Iterable[Mapping]) -> str:
    """Say which keys of a filter no payload has, and which keys there are; "" if every key is known.

    Args:
        where: the filter.
        payloads: of all pictures.
    """
    known: set[str] = set()
    for payload in payloads:
        known.update(payload)
    strange = [key for key in where if key not in known]
    if not strange:
        return ""
    there = ", ".join(sorted(known)) or "none at all"
    return f"no picture has {' or '.join(map(repr, strange))} in its payload; there are: {there}"
