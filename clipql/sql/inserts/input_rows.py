"""The rows of input(): data in a format, read into a table in memory first, from which the SELECT then takes them.

chDB has no data for input() and inserts nothing without a word. What must stay true: a row that was not read is told
of, and nothing is inserted then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql.inserts import staging
from clipql.syntax.inputs import Input, calls_input
from clipql.syntax.statements import Insert


class Written:
    """Counts the rows that an INSERT of ClickHouse's own writes. rows: None where it tells of none."""

    def __init__(self, progress: Callable[[Mapping[str, Any]], None] | None) -> None:
        self._progress = progress
        self.rows: int | None = None

    def __call__(self, progress: Mapping[str, Any]) -> None:
        """From ClickHouse."""
        written = int(progress.get("written_rows", 0))
        self.rows = max(self.rows or 0, written)
        if self._progress is not None:
            self._progress(progress)


def check_has_data(sql: str) -> None:
    """Raise QueryError for an INSERT from input() without a format, in which data would come."""
    if calls_input(sql):
        raise QueryError(
            "input() reads the data of INSERT INTO … SELECT … FROM input('name Type, …') FORMAT name: name the format",
            code=477,
            name="INVALID_USAGE_OF_INPUT",
        )


def with_inline_data(sql: str, fed: Input) -> tuple[str, bytes]:
    """A statement and the data that stand behind its format: after one line end, as clickhouse-client takes them."""
    data = sql[fed.data :].lstrip(" \t\r\f").removeprefix("\n")
    return sql[: fed.data], data.encode("utf-8", "surrogateescape")


@contextmanager
def staged_input(
    engine: Engine, sql: str, statement: Insert, target: str, fed: Input, format: str, data: Iterable[bytes]
) -> Iterator[str]:
    """The INSERT … SELECT of the rows, without FORMAT, while they are there. Raises QueryError.

    target: a table with the columns of the one that the INSERT fills.
    """
    rest = sql[fed.end : fed.clause].rstrip()
    if calls_input(f"SELECT {rest}"):
        raise QueryError("input() is read once in a statement", code=477, name="INVALID_USAGE_OF_INPUT")
    with staging.stage(engine, "input", f"({_columns(engine, statement, target, fed)})") as name:
        staging.fill(engine, name, f"INSERT INTO {name} {statement.settings}", format, data)
        yield f"{sql[: fed.start]}{name}{rest}" if rest[:1] in ("", ")") else f"{sql[: fed.start]}{name} {rest}"


def _columns(engine: Engine, statement: Insert, target: str, fed: Input) -> str:
    """The columns of the input, as ClickHouse reads them; those that the INSERT fills where it names none."""
    if fed.structure.strip():
        found = engine.query(f"DESCRIBE TABLE null({fed.structure})", user=True).arrow().to_pylist()
    else:
        described = engine.query(f"DESCRIBE TABLE {target}", user=True).arrow().to_pylist()
        named = statement.columns
        found = [d for d in described if (d["name"] in named if named else d["default_type"] in ("", "DEFAULT"))]
    return ", ".join(f"{quote_name(each['name'])} {each['type']}" for each in found)
