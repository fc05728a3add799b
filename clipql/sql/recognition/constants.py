"""Values of expressions without columns: query vectors, radii, limits. Each is computed once a query.

A literal and a parameter are read here; anything else (a function, a scalar subquery, arithmetic) is evaluated by
ClickHouse, with the WITH clauses that are in force where it stands.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError, VectorError
from clipql.storage.vectors.metrics import Metric
from clipql.syntax.reading import read

_PARAMETER = re.compile(r"\{\s*(\w+)\s*:\s*(.+?)\s*\}\Z", re.DOTALL)
_LONGEST_NAMED = 200  # letters of an expression that is looked at as a parameter; what is longer is evaluated
_NARROW = {"Float32", "BFloat16", "UInt8", "Int8", "UInt16", "Int16", "Bool"}
_COMPUTED = _NARROW | {"Float64", "UInt32", "Int32", "UInt64", "Int64"}


@dataclass(frozen=True, repr=False)
class QueryVector(Brief):
    """float64 (d,) values, whether ClickHouse computes distances to it in Float32 rather than Float64, and whether they
    are integers or BFloat16. single: the values in float32, where they are at hand.
    """

    values: NDArray[np.float64]
    narrow: bool
    integral: bool = False
    single: NDArray[np.float32] | None = field(default=None, compare=False)

    def narrow_for(self, metric: Metric) -> bool:
        """Whether ClickHouse gives this distance as Float32: dotProduct with integers or BFloat16 is Float64."""
        return self.narrow and not (self.integral and metric is Metric.DOT)


def parameter_named(text: str) -> tuple[str, bool] | None:
    """The name of the vector parameter that an expression is, and whether its numbers are Float32."""
    return _named(text) if len(text) <= _LONGEST_NAMED else None


@functools.lru_cache(512)
def _named(text: str) -> tuple[str, bool] | None:
    match = _PARAMETER.fullmatch(text)
    kind = match[2].replace(" ", "") if match else ""
    return (match[1], kind == "Array(Float32)") if match and kind in ("Array(Float32)", "Array(Float64)") else None


def of_parameter(value: Any, *, narrow: bool) -> QueryVector | None:
    """The vector that the value of a parameter is; None where ClickHouse must read it."""
    try:
        if isinstance(value, str):
            from clipql.sql.recognition.vector_text import numbers_of  # loads the compiler

            text = value.strip()
            if text[:1] != "[" or text[-1:] != "]":
                return None
            value = numbers_of(text[1:-1])
        if isinstance(value, np.ndarray) and value.dtype == np.float32:  # nearly always
            single = np.array(value)
            values = single.astype(np.float64)
        else:
            with np.errstate(over="ignore"):
                values = np.asarray(value, np.float32 if narrow else np.float64).astype(np.float64)
            single = None
    except (ValueError, TypeError, OverflowError):
        return None
    return QueryVector(values, narrow, single=single) if values.ndim == 1 else None


def checked(found: QueryVector) -> QueryVector:
    """A query vector whose numbers are finite. Raises VectorError for any other."""
    with np.errstate(over="ignore", invalid="ignore"):  # a sum is finite, where it is, in a third of the time
        finite = math.isfinite(found.values.sum()) or bool(np.isfinite(found.values).all())
    if not finite:
        at = int(np.flatnonzero(~np.isfinite(found.values))[0])
        raise VectorError(f"the query vector holds {found.values[at]} at position {at}; it must be finite")
    return found


class Constants:
    """Evaluates the constants of one statement, with its parameters."""

    def __init__(self, engine: Engine, params: Mapping[str, Any]) -> None:
        self._engine, self._params = engine, params
        self._known: dict[tuple[str, str], QueryVector | None] = {}

    def vector(self, text: str, withs: tuple[str, ...], aliases: Mapping[str, str]) -> QueryVector | None:
        """The vector an expression gives, or None where it is not one that can be known beforehand.

        Raises VectorError for a vector with NaN or infinity.
        """
        prefix = with_clause(text, withs, aliases)
        if (text, prefix) not in self._known:
            self._known[text, prefix] = self._vector(text, prefix)
        return self._known[text, prefix]

    def _vector(self, text: str, prefix: str) -> QueryVector | None:
        found = self._literal(text) or self._parameter(text) or self._evaluated(text, prefix)
        return None if found is None else checked(found)

    def _literal(self, text: str) -> QueryVector | None:
        from clipql.sql.recognition.vector_text import numbers_of  # loads the compiler

        if not text.strip("[ ]\n"):
            return QueryVector(np.empty(0), True)
        tokens = read(text).tokens if text.startswith("[") else []
        if len(tokens) != 1 or tokens[0].kind != "vector":
            return None
        try:
            inner = text.strip()[1:-1]
            values = numbers_of(inner)
        except ValueError:
            return None
        small = "." not in inner and all(re.fullmatch(r"-?\d{1,4}", n.strip()) for n in inner.split(","))
        return QueryVector(values, small, small)

    def _parameter(self, text: str) -> QueryVector | None:
        named = parameter_named(text)
        return of_parameter(self._params[named[0]], narrow=named[1]) if named and named[0] in self._params else None

    def _evaluated(self, text: str, prefix: str) -> QueryVector | None:
        try:
            # as the user's, so that limits and cancelling hold; what a user SETs to cut results short must not cut this
            row = self._engine.arrow(
                f"{prefix}SELECT ({text}) AS clipql_value, toTypeName(clipql_value) AS clipql_type "
                "SETTINGS limit = 0, offset = 0",
                params=self._params,
                user=True,
            )
        except QueryError as error:
            if error.code in (456, 457):  # a parameter without a value, or with one that cannot be parsed
                raise
            return None
        kind = row.column(1)[0].as_py()
        of = re.fullmatch(r"Array\((?:LowCardinality\()?(.+?)\)+", kind)
        if of is None:
            return None
        if of[1] not in _COMPUTED:
            if not re.match(r"Array\((Nothing|Array|Tuple|Map)\b", kind):
                raise VectorError(
                    f"the query vector {_short(text)} is {kind}; expected an array of Float32, Float64, BFloat16 or "
                    f"integers of at most 64 bits: CAST({_short(text)}, 'Array(Float32)')"
                )
            return None
        values = row.column(0)[0].as_py()
        if of[1] == "BFloat16":  # the upper half of a Float32
            values = [int.from_bytes(v, "little") << 16 for v in values]
            values = np.array(values, np.uint32).view(np.float32)
        return QueryVector(np.array(values, np.float64), of[1] in _NARROW, of[1] not in ("Float32", "Float64"))

    def number(self, text: str, withs: tuple[str, ...] = (), aliases: Mapping[str, str] | None = None) -> float | None:
        """The number an expression gives, or None where it cannot be known beforehand."""
        if re.fullmatch(r"-?\d+(\.\d*)?([eE][-+]?\d+)?", text):
            value = float(text)
            return value if math.isfinite(value) else None
        try:
            prefix = with_clause(text, withs, aliases or {})
            value = self._engine.scalar(f"{prefix}SELECT toFloat64({text})", params=self._params, user=True)
        except QueryError as error:
            if error.code in (456, 457):
                raise
            return None
        return float(value) if value is not None and math.isfinite(value) else None


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "…"


def with_clause(text: str, withs: tuple[str, ...], aliases: Mapping[str, str]) -> str:
    """The WITH clause, ending in a space, that gives an expression the names it uses; empty where it needs none."""
    if not withs and not aliases:
        return ""
    needed: dict[str, str] = {}
    todo = [t.name for t in read(text).tokens]
    while todo:
        name = todo.pop()
        if name and name in aliases and name not in needed:
            needed[name] = aliases[name]
            todo += [t.name for t in read(aliases[name]).tokens]
    defined = " ".join(withs)
    parts = [*withs, *(f"({e}) AS {quote_name(n)}" for n, e in needed.items() if f" {n}" not in defined)]
    return f"WITH {', '.join(parts)} " if parts else ""
