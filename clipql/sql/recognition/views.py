"""Views: what ClickHouse knows of them and their columns, as `inline.py` asks for it, and which cannot be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import UnsupportedStatement
from clipql.sql.recognition.calls import FindTable, find_sources
from clipql.sql.recognition.inline import Finder
from clipql.storage.catalog import Table
from clipql.syntax.reading import read
from clipql.tables import shape
from clipql.tables.registry import Registry


def finder(registry: Registry, params: Mapping[str, Any]) -> Finder:
    """The questions of one statement."""
    engine = registry.engine

    def named(database: str, name: str) -> str:
        return f"database = {quote_string(database)} AND table = {quote_string(name)}"

    def view(database: str | None, name: str) -> tuple[str, tuple[str, ...]] | None:
        if database is None and name in registry.hidden:
            return None
        where = named(database or registry.database, name)
        found = engine.arrow(f"SELECT as_select FROM system.tables WHERE engine = 'View' AND {where}").to_pylist()
        if not found or "{" in found[0]["as_select"]:  # one with parameters is no table
            return None
        columns = engine.arrow(f"SELECT name FROM system.columns WHERE {where} ORDER BY position")
        return found[0]["as_select"], tuple(columns.column(0).to_pylist())

    def columns(table: Table) -> tuple[list[str], frozenset[str]]:
        every = engine.arrow(f"SELECT name FROM system.columns WHERE {named(table.database, table.name)}")
        return [n for n, _ in shape.insertable(engine, table)], frozenset(every.column(0).to_pylist())

    def describe(text: str) -> list[str]:
        found = engine.arrow(f"DESCRIBE TABLE ({text})", params=params, user=True)
        return [str(name) for name in found.column(0).to_pylist()]

    def plain(database: str | None, name: str) -> tuple[str, ...]:
        where = named(database or registry.database, name)
        return tuple(engine.arrow(f"SELECT name FROM system.columns WHERE {where}").column(0).to_pylist())

    def temporary(name: str) -> bool:
        return bool(engine.scalar(f"EXISTS TEMPORARY TABLE {quote_name(name)}", user=True))

    return Finder(registry.find, view, columns, describe, plain, temporary)


def check_view(sql: str, find: FindTable) -> None:
    """Refuse a materialized view that reads a table of ours: rows move into such a table past its views."""
    tokens = read(sql).words
    if not any(t.upper == "MATERIALIZED" for t in tokens[:4]):
        return
    for scope in read(sql).selects:
        for source in find_sources(scope, find)[0]:
            raise UnsupportedStatement(
                f"a materialized view on {source.table.full_name} would not see its inserts; use a plain view"
            )
