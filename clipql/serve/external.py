"""External tables: data that come with a statement, as tables which only that statement sees.

https://clickhouse.com/docs/engines/table-engines/special/external-data. What must stay true: they are temporary tables
of whoever asks, made by statements that the guard has passed, and are gone when the statement has run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, QueryError
from clipql.serve import allowed
from clipql.serve.service import Request, Service
from clipql.sql.inserts.native_types import split_type
from clipql.sql.session import Session

_ENDINGS = ("_format", "_structure", "_types")


@dataclass(frozen=True)
class External:
    """structure: its columns as CREATE TABLE has them. data: its rows, in a format."""

    name: str
    structure: str
    format: str
    data: bytes


def of(files: Mapping[str, bytes], params: Mapping[str, str]) -> tuple[External, ...]:
    """The tables of a request, by their names. Raises QueryError for one that does not say what it is."""
    return tuple(_one(name, data, params) for name, data in files.items())


def _one(name: str, data: bytes, params: Mapping[str, str]) -> External:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise QueryError(f"{name[:60]!r} is no name for an external table", code=36, name="BAD_ARGUMENTS")
    types = split_type(f"Tuple({params.get(f'{name}_types', '')})")[1]
    structure = params.get(f"{name}_structure") or ", ".join(f"_{i} {t}" for i, t in enumerate(types, 1))
    if not structure:
        raise QueryError(
            f"the external table {name} has no columns: give {name}_structure or {name}_types",
            code=36,
            name="BAD_ARGUMENTS",
        )
    format = params.get(f"{name}_format") or "TabSeparated"
    if format not in allowed.FORMATS:
        raise QueryError(f"Unknown format {format[:60]}", code=73, name="UNKNOWN_FORMAT")
    return External(name, structure, format, data)


def described(tables: tuple[External, ...]) -> set[str]:
    """The parameters that say what the tables are, which are no settings."""
    return {table.name + ending for table in tables for ending in _ENDINGS}


@contextlib.contextmanager
def given(service: Service, tables: tuple[External, ...], session: Session) -> Iterator[None]:
    """Have the tables for a while, for whoever acts in this thread. Raises ClipqlError."""
    made: list[str] = []
    try:
        for table in tables:
            name = quote_name(table.name)
            sql = f"CREATE TEMPORARY TABLE {name} ({table.structure}\n) ENGINE = Memory"
            service.run_checked(service.guard.check(sql, write=True), Request(sql), session)
            made.append(name)
            sql = f"INSERT INTO {name} FORMAT {table.format}"
            session.load(service.guard.check(sql, write=True).sql, table.format, [table.data])
        yield
    finally:
        for name in made:
            with contextlib.suppress(ClipqlError):
                session.execute(f"DROP TEMPORARY TABLE IF EXISTS {name}")
