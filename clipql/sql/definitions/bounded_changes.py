"""ALTER, DELETE and UPDATE from a server, within the limits and the sight of whoever asks.

ClickHouse carries them out as mutations, in its background: with no limit of time or memory, with nothing of its own
tables hidden, and to the end, whoever has gone and also after a restart. So the SELECTs in such a statement are
answered first, as any query of whoever asks, and the statement reads their rows; and a mutation that the statement has
begun ends with it where that fails. What must stay true: the rows are held on disk, as a mutation that goes on after a
crash must find them; they go when the statement has ended, or when the database is opened again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableSet
from typing import Any

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.sql.planning.planner import Rewritten
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL

_serial = itertools.count()


@contextlib.contextmanager
def within_limits(
    engine: Engine, sql: str, plan: Callable[[str], Rewritten], held: MutableSet[str], most_rows: int
) -> Iterator[str]:
    """The statement to run instead of an ALTER, DELETE or UPDATE, for as long as the context lasts.

    plan: makes a SELECT ready to run. held: given the names of the tables in clipql's own database that it reads.
    Raises QueryError for a SELECT of more than `most_rows` rows, and what a SELECT raises.
    """
    before = _unfinished(engine)
    try:
        edits: list[Edit] = []
        for start, end in _selects(sql):
            held.add(name := f"held {next(_serial)}")
            helper = f"{INTERNAL}.{quote_name(name)}"
            _hold(engine, helper, plan(sql[start:end]), most_rows)
            edits.append((start, end, f"SELECT * FROM {helper}"))
        yield edited(sql, edits)
    except BaseException:
        with contextlib.suppress(Exception):
            _end(engine, sql, before)
        raise
    finally:
        for name in held:
            engine.run(f"DROP TABLE IF EXISTS {INTERNAL}.{quote_name(name)} SYNC")
        held.clear()


def _selects(sql: str) -> list[tuple[int, int]]:
    """The places of the SELECTs, with their UNIONs, that read tables: what is in brackets, brackets aside."""
    tokens = read(sql).words
    found: dict[int, int] = {}
    opened: list[int] = []
    around: dict[int, int] = {}  # of a token, the bracket that it stands in
    for at, token in enumerate(tokens):
        if opened:
            around[at] = opened[-1]
        if token.kind == "symbol" and token.text in "([{":
            opened.append(at)
        elif token.kind == "symbol" and token.text in ")]}" and opened:
            opened.pop()
    selects = read(sql).selects
    reading = [s.whole.first for s in selects if "FROM" in s.clauses]
    for select in selects:
        open = around.get(select.whole.first)
        if open is None or any(a < open < b for a, b in found.items()):
            continue
        end = matching(tokens, open)
        if any(open < first < end for first in reading):
            found[open] = end
    return [(tokens[a].end, tokens[b].start) for a, b in found.items()]


def _hold(engine: Engine, helper: str, planned: Rewritten, most_rows: int) -> None:
    """Have the rows of a SELECT in a table."""
    run: Mapping[str, Any] = {"params": planned.params, "tables": planned.tables, "user": True}
    engine.query(f"CREATE TABLE {helper} ENGINE = MergeTree ORDER BY tuple() AS {planned.sql}", "Null", **run)
    rows = int(engine.scalar(f"SELECT count() FROM {helper}"))
    if rows > most_rows:
        raise QueryError(
            f"Limit for result exceeded, max rows: {most_rows:,}, current rows: {rows:,}: a SELECT in an ALTER, DELETE "
            "or UPDATE",
            code=396,
            name="TOO_MANY_ROWS_OR_BYTES",
        )


def _unfinished(engine: Engine) -> set[tuple[str, str, str]]:
    """The mutations that are not done: database, table, id."""
    rows = engine.arrow("SELECT database, table, mutation_id AS id FROM system.mutations WHERE NOT is_done").to_pylist()
    return {(r["database"], r["table"], r["id"]) for r in rows}


def _end(engine: Engine, sql: str, before: set[tuple[str, str, str]]) -> None:
    """End what a statement has begun: mutations of tables that it names, which were not there before it."""
    names = {t.name for t in read(sql).words if t.name}
    for database, table, id in _unfinished(engine) - before:
        if table in names:
            engine.run(
                f"KILL MUTATION WHERE database = {quote_string(database)} AND table = {quote_string(table)} "
                f"AND mutation_id = {quote_string(id)} SYNC"
            )
