"""DELETE and UPDATE of a table with vectors: which rows they concern is searched for as a SELECT would find them.

    DELETE FROM laion WHERE cosineDistance(image_embedding, text_embedding) > 0.9
    DELETE FROM laion WHERE _row IN (…)

A mutation would read each vector through its ALIAS column. What must stay true: the rows that are named are those that
the condition holds for, and none comes or goes in between, as whoever asks holds the write lock; where ClickHouse
refuses to find them so, the statement runs as it was written.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import QueryCancelled, QueryError
from clipql.sql.joins.near_any import written_out
from clipql.sql.numbers.heads import with_heads
from clipql.sql.numbers.rowwise import computed, in_statement
from clipql.sql.planning.planner import Explained, Planner
from clipql.sql.recognition.settings import SearchOptions
from clipql.storage.catalog import Table
from clipql.syntax import names as syntax_names
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL, ROW, Registry

# so many rows are named in the text
INLINE = 1_000
# what a user SETs to cut a result short must not cut these
_WHOLE = "SETTINGS limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
_serial = itertools.count()
Place = tuple[int, int]  # of tokens, [first, last)


@contextlib.contextmanager
def with_rows_found(
    registry: Registry, planner: Planner, sql: str, table: Table, params: Mapping[str, Any], options: SearchOptions
) -> Iterator[str]:
    """The statement to run instead, with what it reads, for as long as the context lasts."""
    rows_there = _row_by_row(read(sql).words)
    # its heads are held to the end
    headed = with_heads(sql, registry, params, table, rows_there, plan=options.plan, device=options.device)
    sql = written_out(headed.sql, registry, table)
    if not options.plan:
        yield sql
        return
    tokens = read(sql).words
    places = _conditions(sql, tokens)
    edits: list[Edit] = []
    condition = places[0] if len(places) == 1 and _is_about_vectors(tokens, places[0], table) else None
    rows = _rows(registry, planner, sql, table, condition, params, options) if condition else None
    with contextlib.ExitStack() as stack:
        if condition and rows is not None:
            text = stack.enter_context(naming(registry, table, rows))
            edits.append((tokens[condition[0]].start, tokens[condition[1] - 1].end, text))
        edits += _assigned(registry, sql, tokens, table, condition if edits else None)
        yield edited(sql, edits)


@contextlib.contextmanager
def naming(registry: Registry, table: Table, rows: NDArray[np.uint64]) -> Iterator[str]:
    """A condition that holds for rows by their numbers, for as long as the context lasts."""
    if len(rows) <= INLINE:
        yield f"{ROW} IN ({', '.join(map(str, rows.tolist()))})" if len(rows) else "0"
        return
    helper = f"{INTERNAL}.{quote_name(f'rows {next(_serial)} of {table.id}')}"
    try:
        _fill(registry, helper, rows)
        yield f"{ROW} IN (SELECT r FROM {helper})"
    finally:
        registry.engine.run(f"DROP TABLE IF EXISTS {helper} SYNC")


def plans(planner: Planner, registry: Registry, sql: str, table: Table, params: Mapping[str, Any]) -> list[Explained]:
    """How the rows of a DELETE or UPDATE would be found, and what is computed for them."""
    headed = with_heads(sql, registry, params, table, _row_by_row(read(sql).words))
    sql = written_out(headed.sql, registry, table)
    tokens = read(sql).words
    places = _conditions(sql, tokens)
    found = [p for place in places[:1] for p in planner.plans(_select(registry, sql, table, place), params)]
    whole = in_statement(tokens, table, _own_calls(sql, tokens, places[0] if places else None))
    return [*headed.plans, *found, *([whole] if whole else [])]


def _conditions(sql: str, tokens: Sequence[Token]) -> list[Place]:
    """The conditions that stand after WHERE, those in SELECTs aside."""
    inner, ranges = [s.whole for s in read(sql).selects], _row_by_row(tokens)
    found: list[Place] = []
    for at, token in enumerate(tokens):
        if token.upper != "WHERE" or not _inside(ranges, at) or any(s.first <= at < s.last for s in inner):
            continue
        end = at + 1
        while end < len(tokens) and tokens[end].upper not in (")", "SETTINGS"):
            end = matching(tokens, end) + 1 if tokens[end].text in ("(", "[", "{") else end + 1
        if end > at + 1:
            found.append((at + 1, end))
    return found


def _is_about_vectors(tokens: Sequence[Token], place: Place, table: Table) -> bool:
    names = {c.name for c in table.columns}
    return any(t.name in names or t.upper == "SELECT" for t in tokens[slice(*place)])


def _select(registry: Registry, sql: str, table: Table, place: Place) -> str:
    tokens = read(sql).words
    condition = sql[tokens[place[0]].start : tokens[place[1] - 1].end]
    return f"SELECT {ROW} FROM {registry.physical(table)} WHERE {condition} {_WHOLE}"


def _rows(
    registry: Registry,
    planner: Planner,
    sql: str,
    table: Table,
    place: Place,
    params: Mapping[str, Any],
    options: SearchOptions,
) -> NDArray[np.uint64] | None:
    """The numbers of the rows that a condition holds for; None where no search finds them sooner."""
    try:
        with registry.gate.reading():
            planned = planner.rewrite(_select(registry, sql, table, place), params, options)
            if all(step.kind == "as it is" for step in planned.steps):
                return None
            return registry.row_numbers(planned.sql, planned.params, planned.tables)
    except QueryCancelled:
        raise
    except QueryError:  # what is wrong, if anything is, the statement itself will say
        return None


def _fill(registry: Registry, helper: str, rows: NDArray[np.uint64]) -> None:
    registry.engine.run(f"CREATE TABLE {helper} (r UInt64) ENGINE = Memory")
    schema = pa.schema([("r", pa.uint64())])
    batches = (
        pa.record_batch([arrow_numbers(rows[at : at + 65_536])], schema=schema) for at in range(0, len(rows), 65_536)
    )
    registry.engine.insert(f"INSERT INTO {helper}", schema, batches)


def _own_calls(sql: str, tokens: Sequence[Token], without: Place | None) -> list[syntax_names.FunctionCall]:
    """The calls outside the SELECTs of a statement, and outside one place of it."""
    inner = [(s.whole.first, s.whole.last) for s in read(sql).selects] + ([without] if without else [])
    calls = [c for a, b in _row_by_row(tokens) for c in syntax_names.calls_in(tokens, a, b)]
    return [c for c in calls if not any(first <= c.at < last for first, last in inner)]


def _row_by_row(tokens: Sequence[Token]) -> list[Place]:
    """What of a statement is evaluated for rows that are there: all but definitions, as ALTER has them too."""
    if tokens[0].upper != "ALTER":
        return [(0, len(tokens))]
    found: list[Place] = []
    for at, token in enumerate(tokens):
        if token.upper in ("UPDATE", "DELETE") and tokens[at - 1].text in ("(", ",") and not _inside(found, at):
            found.append((at, matching(tokens, at - 1) if tokens[at - 1].text == "(" else len(tokens)))
        elif token.upper in ("UPDATE", "DELETE") and at in (3, 5):  # after the table's name
            found.append((at, len(tokens)))
    return found


def _inside(places: Sequence[Place], at: int) -> bool:
    return any(a <= at < b for a, b in places)


def _assigned(registry: Registry, sql: str, tokens: Sequence[Token], table: Table, without: Place | None) -> list[Edit]:
    """The edits that have distances of two columns of a row looked up."""
    found = in_statement(tokens, table, _own_calls(sql, tokens, without))
    return [(c.start, c.end, computed(c, registry, "")) for c in (found.calls if found else ())]
