"""Data of an INSERT read by ClickHouse into a table in memory, before they become rows of the table that is meant.

chDB ends a streamed INSERT without a word where a block of it could not be written: a constraint, an expression of a
column, a full disk. What must stay true: a row that is told of is there. So the rows in memory are counted, and go on
by INSERT … SELECT, which says what is wrong.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from clipql.engine import silent_errors
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.syntax.statements import Insert
from clipql.tables.registry import INTERNAL

_serial = itertools.count()
# definitions of tables that keep rows, and those that may refuse some; temporary tables are no others
_KEEPS = re.compile(r"\ACREATE TABLE .*^ENGINE = (\w*MergeTree|Memory|\w*Log)\b", re.DOTALL | re.MULTILINE)
_REFUSING = re.compile(r"\b(CONSTRAINT|DEFAULT|MATERIALIZED)\b")
# errors of rows that could not be stored, though they were read; others, such as CANNOT_OPEN_FILE, ClickHouse notes
# of its own work all the time
_FAILURES = (
    "NOT_ENOUGH_SPACE", "MEMORY_LIMIT_EXCEEDED", "TOO_MANY_PARTS", "CANNOT_WRITE_TO_FILE_DESCRIPTOR", "CANNOT_FSYNC",
)  # fmt: skip


@contextmanager
def stage(engine: Engine, into: str, definition: str) -> Iterator[str]:
    """A table in memory, by its quoted name, which is dropped at the end. definition: what stands between CREATE TABLE
    and ENGINE."""
    name = f"{INTERNAL}.{quote_name(f'insert {next(_serial)} into {into}')}"
    engine.run(f"CREATE TABLE {name} {definition} ENGINE = Memory")
    try:
        yield name
    finally:
        engine.run(f"DROP TABLE IF EXISTS {name} SYNC")


def fill(engine: Engine, name: str, head: str, format: str, data: Iterable[bytes]) -> int:
    """Have data read into a new table in memory; their rows. Raises QueryError where not all came to be there."""
    before = silent_errors.counts(engine)
    told = engine.insert_bytes(head, format, data, user=True)
    there = int(engine.scalar(f"SELECT count() FROM {name}"))
    if there != told:
        code, error, why = silent_errors.since(engine, before)
        raise QueryError(f"{there:,} of {told:,} rows were taken: {why}; nothing was changed", code=code, name=error)
    return there


def columns(
    engine: Engine, database: str, table: str, *, computed: Collection[str] = (), retyped: dict[str, str] | None = None
) -> str:
    """The columns of a table in brackets, with what fills them, but without constraints, indexes and TTL.

    computed: those that are not filled. retyped: the types of those that hold something else, and are given.
    """
    found = engine.arrow(
        "SELECT name, type, default_kind AS kind, default_expression AS text FROM system.columns "
        f"WHERE database = {quote_string(database)} AND table = {quote_string(table)} ORDER BY position"
    )
    kinds = dict.fromkeys(computed, "ALIAS")
    other = retyped or {}
    listed = (
        f"{quote_name(row['name'])} {other[row['name']]}"
        if row["name"] in other
        else f"{quote_name(row['name'])} {row['type']} {kinds.get(row['name'], row['kind'])} {row['text']}"
        for row in found.to_pylist()
    )
    return f"({', '.join(listed)})"


def load_plain(engine: Engine, head: str, statement: Insert, format: str, data: Iterable[bytes]) -> int:
    """Carry out `INSERT … FORMAT name` into a table without vectors, with its data apart; its rows.

    Raises QueryError. head: the statement up to FORMAT.
    """
    given = statement.table
    target = ".".join(quote_name(each) for each in (given.database, given.name) if each)
    try:
        definition = str(engine.query(f"SHOW CREATE TABLE {target}", "TSVRaw", user=True).data, "utf-8", "replace")
    except QueryError:
        definition = ""  # the INSERT says what is wrong
    if not _REFUSING.search(definition) or not _KEEPS.search(definition):
        return _direct(engine, head, format, data)
    database = given.database or str(engine.scalar("SELECT currentDatabase()", user=True))
    columns_of = engine.arrow(
        f"SELECT name, default_kind AS kind FROM system.columns WHERE database = {quote_string(database)} "
        f"AND table = {quote_string(given.name)} ORDER BY position"
    ).to_pylist()
    kinds = {row["name"]: row["kind"] for row in columns_of}
    if not set(statement.columns or ()) <= kinds.keys():
        return _direct(engine, head, format, data)
    with stage(engine, given.name, columns(engine, database, given.name)) as name:
        listed = f"({', '.join(map(quote_name, statement.columns))}) " if statement.columns else ""
        rows = fill(engine, name, f"INSERT INTO {name} {listed}{statement.settings}", format, data)
        every = ", ".join(quote_name(each) for each, kind in kinds.items() if kind in ("", "DEFAULT"))
        engine.run(f"INSERT INTO {target} ({every}) SELECT {every} FROM {name}", user=True)
    return rows


def _direct(engine: Engine, head: str, format: str, data: Iterable[bytes]) -> int:
    """Rows of which none is refused, straight into their table. Raises QueryError where something else went wrong."""
    began = int(time.time())
    rows = engine.insert_bytes(head, format, data, user=True)
    names = ", ".join(map(quote_string, _FAILURES))
    noted = f"SELECT count() FROM system.errors WHERE name IN ({names}) AND toUnixTimestamp(last_error_time) >= {began}"
    if engine.scalar(noted):
        raise QueryError(
            "while the rows came, ClickHouse had no room, memory or time: whether they were stored is not known",
            code=243,
            name="NOT_ENOUGH_SPACE",
        )
    return rows
