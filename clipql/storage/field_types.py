"""Whether the fields of a frozen dataclass, read from a stranger's file perhaps, are of the types that they say."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

# the types of a value, by what is written of its field
_ACCEPTED: dict[str, frozenset[type]] = {
    "str": frozenset({str}),
    "int": frozenset({int}),
    "float": frozenset({int, float}),
    "bool": frozenset({bool}),
    "str | None": frozenset({str, type(None)}),
    "int | None": frozenset({int, type(None)}),
    "tuple[int, ...]": frozenset({int}),
    "tuple[str, str] | None": frozenset({str, type(None)}),
    "Mapping[str, Any]": frozenset({dict}),
    "Mapping[str, float]": frozenset({dict}),
}


def check(value: Any) -> None:
    """Raise ValueError for the first field that is of another type, for text that is no Unicode, and for a number that
    is negative or not finite, or a whole one beyond 63 bits. Fields that are values themselves, or many, are left out.
    """
    of: Any = type(value)
    for name, kind, expected in _fields(of):
        found = getattr(value, name)
        if kind == "Mapping[str, float]" and isinstance(found, dict):
            items, expected = tuple(found.values()), _ACCEPTED["float"]
        else:
            items = found if isinstance(found, tuple) else (found,)
        for each in items:
            if type(each) not in expected:
                raise ValueError(f"{name} of a {type(value).__name__} is {type(each).__name__}, not {kind}")
            if isinstance(each, str) and not each.isascii():
                each.encode()
            if isinstance(each, (int, float)) and not 0 <= each < (math.inf if type(each) is float else 1 << 63):
                raise ValueError(f"{name} of a {type(value).__name__} is no number that it may be")


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, str, frozenset[type]], ...]:
    told = [(f.name, str(f.type)) for f in dataclasses.fields(kind)]
    return tuple((name, of, _ACCEPTED[of]) for name, of in told if of in _ACCEPTED)
