"""Answering a search from the row file, without ClickHouse: `SELECT url, caption … ORDER BY distance LIMIT k`.

Only SELECTs of the plainest kind are answered so, which is what people type and pages ask; the rest goes to
ClickHouse. What must stay true: the answer has the rows, names and types that ClickHouse would give.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import DatabaseDamaged
from clipql.index.base import Candidates
from clipql.index.flat import Term, exact
from clipql.sql.recognition.plan import Plan
from clipql.sql.recognition.recognise import VectorSelect
from clipql.sql.search.harmless import MOST_ROWS
from clipql.tables.indexes import Indexes
from clipql.tables.registry import ROW, Registry
from clipql.tables.rowfile import RowReader

_CLAUSES = {"WITH", "SELECT", "FROM", "WHERE", "PREWHERE", "ORDER", "LIMIT", "OFFSET"}
# what ClickHouse writes as it reads it from Arrow
_SIMPLE = re.compile(r"(Nullable\()?(String|U?Int(8|16|32|64)|Float(32|64)|Bool)\)?\Z")


@dataclass(frozen=True)
class Item:
    """An item of SELECT: its name in the answer, and the stored column or the distance call that it is."""

    name: str
    column: str | None
    call: int | None


def items(plan: Plan, whole: str) -> tuple[Item, ...] | None:
    """What a plan's SELECT gives, if it can be answered from a row file. whole: the statement it must be all of."""
    select, scope = plan.select, plan.select.scope
    if plan.kind != "top-k" or plan.kept or select.joined or scope.nested or set(scope.clauses) - _CLAUSES:
        return None
    if whole[: scope.whole.start].strip() or whole[scope.whole.end :].strip("; \n\t"):
        return None
    if not select.ordered_alone or len(plan.terms) != 1:
        return None
    found: list[Item] = []
    for first, last in scope.items("SELECT"):
        item = _item(select, first, last)
        if item is None:
            return None
        found.append(item)
    names = [i.name for i in found]
    return tuple(found) if len(set(names)) == len(names) else None


def _item(select: VectorSelect, first: int, last: int) -> Item | None:
    tokens = select.scope.tokens
    name = tokens[last - 1].name
    named = last - first > 1 and name is not None and name in select.aliases
    end = last - (2 if named and tokens[last - 2].upper == "AS" else 1 if named else 0)
    if end - first == 1 and tokens[first].name and tokens[first].kind in ("word", "quoted"):
        column = tokens[first].name or ""
        # a name that SELECT gives may stand for something else than the column
        if not named and column in select.aliases:
            return None
        return None if column in select.aliases and column != name else Item(name or column, column, None)
    call = next((i for i, c in enumerate(select.calls) if c.first == first and c.last == end), None)
    return Item(name or "", None, call) if named and call is not None else None


def answer(
    registry: Registry,
    indexes: Indexes,
    plan: Plan,
    wanted: tuple[Item, ...],
    found: Candidates,
    offset: int,
    most: int = MOST_ROWS,
    of_page: int | None = None,
) -> pa.Table | None:
    """The answer, or None where the row file does not hold all of it. offset: rows left out before the first.

    most: of so many rows at most. of_page: the rows of the answer, where they are not the plan's k.
    """
    select = plan.select
    reader = indexes.rows.reader(select.table)
    last = of_page or plan.k
    rows = found.rows[offset:last]
    if reader is None or len(rows) > most or (len(rows) and int(rows.max()) >= reader.rows):
        return None
    stored = [i.column for i in wanted if i.column not in (None, ROW)]
    if any(name not in reader.types for name in stored):
        return None
    try:
        taken = reader.take(rows, stored)
    except DatabaseDamaged as error:
        indexes.rows.distrust(select.table, error)
        return None
    columns = []
    for item in wanted:
        if item.column == ROW:
            columns.append(arrow_numbers(rows.astype(np.uint64, copy=False)))
        elif item.column is not None:
            columns.append(taken[item.column])
        else:
            columns.append(_distance(registry, plan, item, rows, found.distances[offset:last]))
    kinds = [None if item.column not in (None, ROW) else c.type for item, c in zip(wanted, columns, strict=True)]
    shape = reader.shape((wanted, *kinds), lambda: [_field(reader, i, k) for i, k in zip(wanted, kinds, strict=True)])
    return pa.Table.from_arrays(columns, schema=shape)


def _field(reader: RowReader, item: Item, kind: pa.DataType | None) -> pa.Field:
    """kind: of what is not stored."""
    if item.column is not None and item.column != ROW:
        return reader.schema.field(item.column).with_name(item.name)
    return pa.field(item.name, kind, nullable=False)


def _distance(registry: Registry, plan: Plan, item: Item, rows: NDArray[Any], keys: NDArray[np.float64]) -> pa.Array:
    call = plan.select.calls[item.call or 0]
    vector = plan.vectors[item.call or 0]
    term = plan.terms[0]
    if term.call.same == call.same and abs(term.weight) == 1.0:  # the search has computed it
        values = keys if term.weight == 1.0 else keys * term.weight
        return arrow_numbers(values.astype(np.float32) if vector.narrow_for(call.metric) else values)
    values = exact([Term(registry.store(plan.select.table, call.column), call.metric, vector.values)], rows)
    return arrow_numbers(values.astype(np.float32) if vector.narrow_for(call.metric) else values)


def types_of(indexes: Indexes, plan: Plan, wanted: tuple[Item, ...]) -> tuple[str, ...] | None:
    """ClickHouse's types of the answer's columns; None where they are not simple."""
    reader = indexes.rows.reader(plan.select.table)
    found = []
    for item in wanted:
        call = item.call
        narrow = call is not None and plan.vectors[call].narrow_for(plan.select.calls[call].metric)
        kind = "Float32" if narrow else "UInt64" if item.column == ROW else "Float64"
        if reader and item.column in reader.types:
            kind = reader.types[item.column]
        if not _SIMPLE.match(kind):
            return None
        found.append(kind)
    return tuple(found)


def as_select(found: pa.Table, types: Sequence[str], name: str) -> str:
    """The SELECT by which ClickHouse writes the answer, the Arrow table `name`, in any format."""
    casts = [
        f"CAST({quote_name(n)}, {quote_string(t)}) AS {quote_name(n)}"
        for n, t in zip(found.column_names, types, strict=True)
    ]
    return f"SELECT {', '.join(casts)} FROM Python({name})"
