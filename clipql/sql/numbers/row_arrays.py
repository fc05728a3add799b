"""Numbers of all rows at once, which the text of a SELECT has by the row's number: as one constant array, or, where
they are compared, as the set of rows for which that holds.

    SELECT avg(cosineDistance(image_embedding, text_embedding)) FROM laion
    SELECT avg(assumeNotNull((SELECT d FROM Python(clipql_numbers_0))[laion._row + 1])) FROM laion
    WHERE identity(laion._row) < 300000

    SELECT count() FROM laion WHERE cosineDistance(image_embedding, text_embedding) < 0.7
    SELECT count() FROM laion WHERE identity(laion._row) < 300000 AND (laion._row IN (SELECT a FROM Python(…)))

A function of Python is called once for each row, and takes longer than the numbers themselves; it is left to statements
that need few of them. A condition has no array, which ClickHouse would take apart several times. What must stay true:
rows that come after the numbers were computed are not read, as they have none.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import DatabaseDamaged
from clipql.sql.numbers.row_comparisons import Compared, RowCall, is_inside
from clipql.sql.recognition import plan
from clipql.sql.recognition.constants import Constants
from clipql.sql.search.conditions import plain_mask
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit
from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.computed import name_of
from clipql.tables.registry import ROW, Registry
from clipql.tables.rowfile import RowFiles

# numbers that are written out in a statement, and rows of a set from which a byte for each row of the table is faster
INLINE, MOST_IN_SET = 1_000, 1 << 17
MOST = 4  # of so many rows one at least is left, where the numbers of all are computed
AT_ONCE = 1 << 18  # rows whose numbers are compared at once
_PARAMETER = re.compile(r"[-+\s]*\{\s*\w+\s*:\s*(\w+)\s*\}")
_NUMBERS = {"Float32", "Float64", *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))}
_COMPARE: dict[str, Callable[..., Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "BETWEEN": lambda values, least, most: (values >= least) & (values <= most),
}
# clauses of a SELECT around another by which rows of that may be left out before they are computed
_LEAVE_OUT = frozenset({"PREWHERE", "WHERE", "HAVING", "QUALIFY", "LIMIT", "LIMIT 2", "FETCH"})


def one_array(values: NDArray[Any]) -> pa.Table:
    """A table of one row whose column d has all values as an array."""
    ends = arrow_numbers(np.array([0, len(values)], np.int32))
    return pa.table({"d": pa.ListArray.from_arrays(ends, arrow_numbers(values))})


def by_row(name: str, qualifier: str) -> str:
    """The number of a row. name: of a table of `one_array`; qualifier: of the row's number, with its dot."""
    return f"assumeNotNull((SELECT d FROM Python({name}))[{qualifier}{ROW} + 1])"


def known_rows(scope: Scope, qualifier: str, rows: int) -> list[Edit]:
    """The edits that have a SELECT read the first rows of a table alone: later ones came after the arrays were made."""
    # `identity` has it mean nothing to the primary key, of which a user may ask that it be used
    condition, span = f"identity({qualifier}{ROW}) < {rows}", scope.clauses.get("WHERE")
    if span:
        return [(span.start, span.start, f"{condition} AND ("), (span.end, span.end, ")")]
    end = scope.clauses.get("PREWHERE", scope.clauses["FROM"]).end
    return [(end, end, f" WHERE {condition}")]


def leaving(scope: Scope, calls: Sequence[RowCall]) -> tuple[str, ...] | None:
    """The conditions by which rows are left out before a SELECT computes its numbers; None where it may compute them
    for fewer rows than those leave.
    """
    rows = calls[0].source.table.rows
    if not plan.SMALL_TABLE <= rows <= plan.MOST_DISTANCES or not scope.sources.alone:
        return None
    around = [s for s in read(scope.text).selects if is_inside(scope, s)]
    if any(s.clauses.keys() & _LEAVE_OUT or not s.sources.alone for s in around):
        return None
    spans = [span for span in scope.aliases.values() if any(span[0] <= c.first < span[1] for c in calls)]
    names = {name for name, span in scope.aliases.items() if span in spans}

    def holds(first: int, last: int) -> bool:
        return any(first <= c.first < last for c in calls) or any(t.name in names for t in scope.tokens[first:last])

    order = scope.clauses.get("ORDER")
    first = scope.clauses.keys() & {"LIMIT", "LIMIT 2", "FETCH"} and "GROUP" not in scope.clauses
    if first and (order is None or not holds(order.first, order.last)):
        return None
    filters = [scope.clauses[clause] for clause in ("PREWHERE", "WHERE") if clause in scope.clauses]
    parts = [part for span in filters for part in _joined_by_and(scope.tokens, span.first, span.last)]
    if any(scope.tokens[i].upper == "AS" for part in parts for i in _own(scope.tokens, *part)):
        return None  # which `known_rows` puts in brackets
    return tuple(scope.text_of(*part) for part in parts if not holds(*part))


def leave_most(conditions: Sequence[str], table: Table, rows: RowFiles, params: Mapping[str, Any]) -> bool:
    """Whether plain conditions leave so many rows that the numbers of all are sooner computed than asked for.

    Columns are those beside the row file; False where that does not have them, and for other conditions.
    """
    if not conditions:
        return True
    reader = rows.reader(table)
    if reader is None or reader.rows < table.rows:
        return False
    try:
        mask = plain_mask(" AND ".join(f"({each})" for each in conditions), reader.columns.column, table.rows, params)
    except DatabaseDamaged:
        return False  # whoever reads it for an answer says so
    return mask is not None and int(np.count_nonzero(mask)) * MOST >= table.rows


def _own(tokens: Sequence[Token], first: int, last: int) -> Iterator[int]:
    """The places of tokens that stand in no brackets."""
    while first < last:
        yield first
        first = matching(tokens, first) + 1 if tokens[first].text in ("(", "[", "{") else first + 1


def _joined_by_and(tokens: Sequence[Token], first: int, last: int) -> list[tuple[int, int]]:
    """The conditions that a condition is made of; BETWEEN has an AND of its own."""
    parts, at, began, between = list[tuple[int, int]](), first, first, False
    while at < last:
        if tokens[at].text in ("(", "[", "{"):
            at = matching(tokens, at)
        elif tokens[at].upper == "BETWEEN":
            between = True
        elif tokens[at].upper == "AND" and between:
            between = False
        elif tokens[at].upper == "AND":
            parts.append((began, at))
            began = at + 1
        at += 1
    return [*parts, (began, last)]


class RowArrays:
    """Where the numbers of all rows of a SELECT's calls go: into tables that its text is to name."""

    def __init__(self, registry: Registry, table: Table, constants: Constants, keep: Callable[[pa.Table], str]) -> None:
        """keep: takes a table, and gives the name for it."""
        self._registry, self._table, self._constants, self._keep = registry, table, constants, keep
        self._values: dict[str, NDArray[Any]] = {}
        self._names: dict[str, str] = {}

    @property
    def used(self) -> bool:
        """Whether a text refers to numbers of the rows that are there now."""
        return bool(self._values)

    def looked_up(self, function: str, handles: Sequence[str], qualifier: str) -> str:
        """A number of the vectors of a row. qualifier: of the row's number, with its dot."""
        name = name_of(function, handles)
        if name not in self._names:
            self._names[name] = self._keep(one_array(self._of(name)))
        return by_row(self._names[name], qualifier)

    def decide(self, compared: Compared) -> str | None:
        """A comparison by the rows for which it holds; None where its constants cannot be known beforehand."""
        bounds = [self._bound(text) for text in compared.bounds]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds):
            return None
        numbers = [(weight, self._of(self._name(call))) for weight, call in compared.numbers]
        holds, near = np.zeros(self._table.rows, np.bool_), list[NDArray[np.int64]]()
        for first in range(0, self._table.rows, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            with np.errstate(invalid="ignore", over="ignore"):
                total = sum((weight * values[part].astype(np.float64) for weight, values in numbers), compared.constant)
                holds[part] = _COMPARE[compared.sign](total, *known)
                unsure = np.logical_or.reduce([np.abs(total - bound) <= compared.slack for bound in known])
            near.append(first + np.flatnonzero(unsure))
        row = f"{quote_name(compared.numbers[0][1].source.qualifier)}.{ROW}"
        text = self._among(row, holds)
        rows = np.concatenate(near)
        return f"if({row} IN {self._set(rows)}, {compared.own}, {text})" if len(rows) else text

    def _bound(self, text: str) -> float | None:
        """The number that a constant is; None for a parameter of a type that ClickHouse compares in another way."""
        declared = _PARAMETER.fullmatch(text)
        return self._constants.number(text) if declared is None or declared[1] in _NUMBERS else None

    def _of(self, name: str) -> NDArray[Any]:
        if name not in self._values:
            check = self._registry.engine.check_cancelled
            self._values[name] = self._registry.computed.all(name, self._table.rows, check)
        return self._values[name]

    def _name(self, call: RowCall) -> str:
        return name_of(call.function, [self._registry.handle(self._table, column) for column in call.columns])

    def _among(self, row: str, holds: NDArray[np.bool_]) -> str:
        """Whether a row is one of those that a mask has: as a set of them or of the others, if those are few."""
        there = int(np.count_nonzero(holds))
        few, without = (there, False) if 2 * there <= len(holds) else (len(holds) - there, True)
        if not few:  # of all rows that are read, or of none: a constant would be taken for the place of a column
            return f"identity({row}) {'<' if without else '>='} {len(holds)}"
        if few > MOST_IN_SET:
            ends = pa.py_buffer(np.array([0, len(holds)], np.int32))
            whole = pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(holds.view(np.uint8))])
            name = self._keep(pa.table({"d": whole}))
            return f"substring(assumeNotNull((SELECT d FROM Python({name}))), {row} + 1, 1) = '\\x01'"
        return f"{row} {'NOT ' if without else ''}IN {self._set(np.flatnonzero(~holds if without else holds))}"

    def _set(self, rows: NDArray[np.int64]) -> str:
        return in_set(rows.astype(np.uint64), self._keep)


def in_set(values: NDArray[Any], keep: Callable[[pa.Table], str]) -> str:
    """Numbers as IN takes them: written out when few, read from a table of ours when many."""
    if len(values) <= INLINE:
        return "[" + ",".join(map(repr, values.tolist())) + "]"
    return f"(SELECT a FROM Python({keep(pa.table({'a': arrow_numbers(values)}))}))"
