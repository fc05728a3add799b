"""Tables of cases that take minutes as a whole: CI runs all of them (CLIPQL_CASES=all), by hand it is a part."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

ALL = os.environ.get("CLIPQL_CASES") == "all"


def some(cases: Iterable[Any], every: int) -> list[Any]:
    """All cases in CI, else the first and each that comes `every` after it, always the same ones."""
    found = list(cases)
    return found if ALL else found[::every]


def crossed(*tables: Sequence[Any], every: int) -> list[tuple[Any, ...]]:
    """Each case of a table with each of the others; by hand a part, in which each table's every case comes.

    every: no multiple or divisor of a table's length, so that the steps go through all of them.
    """
    return some(itertools.product(*tables), every)


def examples(number: int) -> int:
    """How many examples hypothesis makes: so many in CI, by hand a third of them."""
    return number if ALL else number // 3
