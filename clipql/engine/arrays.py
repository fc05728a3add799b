"""Python values of array parameters, `{q:Array(Float32)}`: anything that holds numbers in a row, as numbers.

What must stay true: a statement means the same whether its vectors are read here, by the planner, or by ClickHouse from
their text; what is no row of numbers is refused by name, before anything runs.
"""

from __future__ import annotations

import array
import functools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from clipql.errors import VectorError

_NUMERIC = re.compile(
    r"\{\s*(\w+)\s*:\s*(Array\s*\(\s*((?:LowCardinality|Nullable)\s*\(\s*)*"
    r"(?:U?Int\d+|B?Float\d+|Decimal\d*\s*(?:\([^)]*\))?|Bool)[\s)]*)\}"
)

_LONG = 4_000  # letters of a statement that is not remembered


def with_numbers(sql: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters, with those of numeric array types as lists of numbers or one-dimensional numpy arrays.

    Text stays as it is, for ClickHouse to parse. Raises VectorError, saying what came instead of numbers.
    """
    if not params or "Array" not in sql:
        return params
    changed = {}
    for name, kind, wrapped in _declared(sql) if len(sql) < _LONG else _NUMERIC.findall(sql):
        if name in params and name not in changed:
            changed[name] = _numbers(params[name], f"{{{name}:{kind.strip()}}}", "Nullable" in wrapped)
    return {**params, **changed} if changed else params


@functools.lru_cache(512)
def _declared(sql: str) -> list[tuple[str, str, str]]:
    """The array parameters of a statement, as it most often comes again."""
    return _NUMERIC.findall(sql)


def _numbers(value: Any, what: str, nullable: bool) -> Any:
    if value is None or isinstance(value, str):
        return value
    if getattr(value, "null_count", 0) and not nullable:  # of Arrow
        raise _wrong(what, "NULL among its numbers")
    if isinstance(value, (array.array, memoryview)) or (hasattr(value, "__array__") and not isinstance(value, list)):
        value = _array(value, what)
        if isinstance(value, np.ndarray):
            return value
    if isinstance(value, (set, frozenset, dict, bytes, bytearray)) or not isinstance(value, Sequence):
        raise _wrong(what, _named(value))
    if all(type(v) is float or type(v) is int for v in value):
        return list(value)
    return [_number(v, at, what, nullable) for at, v in enumerate(value)]


def _array(value: Any, what: str) -> np.ndarray[Any, Any] | list[Any]:
    if np.ma.is_masked(value):
        raise _wrong(what, "a masked array, some of whose numbers are missing")
    found = np.asarray(value)
    if found.ndim != 1:
        raise _wrong(what, f"an array of shape {found.shape}")
    if found.dtype.kind == "O":
        return list(found)
    if found.dtype.kind not in "fiub":
        raise _wrong(what, f"an array of {found.dtype}")
    if found.dtype.kind == "b":
        return found.astype(np.uint8)
    return found.astype(np.float64) if found.dtype.itemsize > 8 else found


def _number(value: Any, at: int, what: str, nullable: bool) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.generic):
        value = float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, (float, Decimal)) or (value is None and nullable):
        return value
    raise _wrong(what, f"{_named(value)} at position {at}")


def _named(value: Any) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def _wrong(what: str, got: str) -> VectorError:
    return VectorError(f"the parameter {what} got {got}; expected numbers, as a list or an array of one dimension")
