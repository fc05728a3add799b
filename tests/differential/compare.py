"""Whether two answers are the same: within rounding, and up to rows that tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from generator import Key

Rows = Sequence[tuple[Any, ...]]
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def alike(a: Any, b: Any) -> bool:
    """Equal, numbers within rounding."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def bags(got: Rows, expected: Rows) -> str | None:
    """What differs between rows in any order, or None."""
    if len(got) != len(expected):
        return f"{len(got)} rows instead of {len(expected)}"
    ours, theirs = sorted(got, key=_place), sorted(expected, key=_place)
    if all(map(alike, ours, theirs)):
        return None
    left = list(theirs)
    for row in ours:  # floats that rounding has put in another order
        at = next((i for i, other in enumerate(left) if alike(row, other)), None)
        if at is None:
            return f"{row} is not expected; {left[0]} is"
        del left[at]
    return None


def _place(row: tuple[Any, ...]) -> tuple[str, str]:
    rough = [f"{v:.3e}" if isinstance(v, float) else "" for v in row]
    return repr([None if isinstance(v, float) else v for v in row]), repr(rough)


def sequences(got: Rows, expected: Rows) -> str | None:
    """What differs between rows as they come, or None."""
    if len(got) != len(expected):
        return f"{len(got)} rows instead of {len(expected)}"
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if not alike(a, b):
            return f"row {i} is {a} instead of {b}"
    return None


def ranked(got: Rows, full: Rows, keys: tuple[Key, ...], offset: int, limit: int) -> str | None:
    """What is wrong with rows that shall be the first of all by some keys, which follow each row of `full`."""
    wanted = full[offset : offset + limit]
    if len(got) != len(wanted):
        return f"{len(got)} rows instead of {len(wanted)}"
    unused = list(full)
    for i, (row, due) in enumerate(zip(got, wanted, strict=True)):
        at = next(
            (j for j, other in enumerate(unused) if alike(row, other[: -len(keys)]) and _tie(other, due, keys)), None
        )
        if at is None:
            return f"row {i} is {row} instead of {due}"
        del unused[at]
    return None


def _tie(row: tuple[Any, ...], due: tuple[Any, ...], keys: tuple[Key, ...]) -> bool:
    for key, a, b in zip(keys, row[-len(keys) :], due[-len(keys) :], strict=True):
        if not alike(a, b):
            return False
        if not key.exact:
            return True
    return True


def promised(got: Rows, full: Rows, keys: tuple[Key, ...], offset: int, limit: int) -> str | None:
    """What breaks the promise of an approximate answer: rows of the table, with their distances, sorted, as many."""
    if len(got) != len(full[offset : offset + limit]):
        return f"{len(got)} rows instead of {len(full[offset : offset + limit])}"
    unused, last = list(full), None
    for i, row in enumerate(got):
        # among rows that look the same, the one that continues the order
        fits = [j for j, other in enumerate(unused) if alike(row, other[: -len(keys)])]
        at = next((j for j in fits if last is None or _follows(last, unused[j][-len(keys)], keys[0])), None)
        if at is None:
            return f"row {i} is {row}, which " + ("is out of order" if fits else "the table does not have")
        last = unused.pop(at)[-len(keys)]
    return None


def _follows(before: Any, after: Any, key: Key) -> bool:
    if alike(before, after) or (isinstance(after, float) and math.isnan(after)) or after is None:
        return True
    return bool(before >= after) if key.descending else bool(before <= after)
