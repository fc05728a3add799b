"""Answering a search from the row file, without ClickHouse: `SELECT url, caption … ORDER BY distance LIMIT k`.

Only SELECTs of the plainest kind are answered so, which is what people type and pages ask; the rest goes to
ClickHouse. What must stay true: the answer has the rows, names and types that ClickHouse would give.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
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
from clipql.sql.plan import Plan
from clipql.sql.recognise import VectorSelect
from clipql.syntax.reading import read
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

MOST_ROWS = 256
_CLAUSES = {"WITH", "SELECT", "FROM", "WHERE", "PREWHERE", "ORDER", "LIMIT", "OFFSET"}
# what ClickHouse writes as it reads it from Arrow
_SIMPLE = re.compile(r"(Nullable\()?(String|U?Int(8|16|32|64)|Float(32|64)|Bool)\)?\Z")
# settings of a user that change neither rows nor values, nor how Arrow shows them
_HARMLESS = re.compile(
    r"(output_format_(?!arrow|.*native)\w+|max_threads|max_block_size|max_execution_time|max_memory_usage|log_queries|http_\w+"
    r"|use_concurrency_control|wait_end_of_query|send_progress_in_http_headers|enable_http_compression|readonly)\Z"
)


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


def settings_allow(statements: Iterable[str], settings: Mapping[str, str]) -> bool:
    """Whether what a user has SET leaves such an answer what it is."""
    names = list(settings)
    for statement in statements:
        if re.match(r"\s*USE\b", statement, re.IGNORECASE):
            continue
        tokens = read(statement).tokens
        names += [a.name or a.text for a, b in itertools.pairwise(tokens) if b.text == "="]
    return all(_HARMLESS.match(name) for name in names)


def answer(
    registry: Registry, indexes: Indexes, plan: Plan, wanted: tuple[Item, ...], found: Candidates, offset: int
) -> pa.Table | None:
    """The answer, or None where the row file does not hold all of it. offset: rows left out before the first."""
    select = plan.select
    reader = indexes.rows.reader(select.table)
    rows = found.rows[offset : plan.k]
    if reader is None or len(rows) > MOST_ROWS or (len(rows) and int(rows.max()) >= reader.rows):
        return None
    if any(i.column is not None and i.column not in reader.types for i in wanted):
        return None
    try:
        taken = reader.take(rows.tolist(), [i.column for i in wanted if i.column is not None])
    except DatabaseDamaged as error:
        indexes.rows.distrust(select.table, error)
        return None
    columns, fields = [], []
    for item in wanted:
        if item.column is not None:
            columns.append(taken[item.column])
            fields.append(reader.schema.field(item.column).with_name(item.name))
        else:
            columns.append(_distance(registry, plan, item, rows, found.distances[offset : plan.k]))
            fields.append(pa.field(item.name, columns[-1].type, nullable=False))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _distance(registry: Registry, plan: Plan, item: Item, rows: NDArray[Any], keys: NDArray[np.float64]) -> pa.Array:
    call = plan.select.calls[item.call or 0]
    vector = plan.vectors[item.call or 0]
    term = plan.terms[0]
    if term.call.same == call.same and abs(term.weight) == 1.0:  # the search has computed it
        values = keys * term.weight
        return arrow_numbers(values.astype(np.float32) if vector.narrow_for(call.metric) else values)
    values = exact([Term(registry.store(plan.select.table, call.column), call.metric, vector.values)], rows)
    return arrow_numbers(values.astype(np.float32) if vector.narrow_for(call.metric) else values)


def as_select(indexes: Indexes, plan: Plan, wanted: tuple[Item, ...], name: str) -> str | None:
    """The SELECT by which ClickHouse writes the answer, the Arrow table `name`, in any format; None where types are not
    simple.
    """
    reader = indexes.rows.reader(plan.select.table)
    parts = []
    for item in wanted:
        call = item.call
        narrow = call is not None and plan.vectors[call].narrow_for(plan.select.calls[call].metric)
        kind = reader.types[item.column] if reader and item.column else "Float32" if narrow else "Float64"
        if not _SIMPLE.match(kind):
            return None
        parts.append(f"CAST({quote_name(item.name)}, {quote_string(kind)}) AS {quote_name(item.name)}")
    return f"SELECT {', '.join(parts)} FROM Python({name})"
