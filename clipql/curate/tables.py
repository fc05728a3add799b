"""What work on a collection reads and writes: a column, the rows that are looked at, a table of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.errors import ClipqlError, UnknownTable, VectorError
from clipql.tables.registry import ROW

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table
    from clipql.storage.vectors.store import ColumnStore


def refuse_existing(db: Database, into: str) -> None:
    """Raise ClipqlError where a table of this name is there."""
    if db.registry.engine.scalar(f"EXISTS TABLE {into}", user=True):
        raise ClipqlError(f"{into} is there already: DROP it first, or name another table")


def write_rows(db: Database, physical: str, members: pa.Table, id: str, into: str) -> None:
    """Make a table of the answer, or leave nothing of it: `id` of each row, then the other columns, sorted by the first
    of them. members: `row`, the number of a row of the physical table, and those columns.
    """
    others = members.column_names[1:]
    columns = ", ".join(f"assumeNotNull(m.`{name}`) AS `{name}`" for name in others)
    ids = f"SELECT {id} AS id, {ROW} FROM {physical} WHERE {ROW} IN (SELECT row FROM Python(members))"
    sql = (
        f"CREATE TABLE {into} ENGINE = MergeTree ORDER BY (`{others[0]}`, id) SETTINGS allow_nullable_key = 1 AS "
        f"SELECT t.id AS id, {columns} FROM Python(members) AS m INNER JOIN ({ids}) AS t ON t.{ROW} = m.row"
    )
    try:
        db.registry.engine.query(sql, "Null", tables={"members": members}, user=True)
    except BaseException:
        db.registry.engine.run(f"DROP TABLE IF EXISTS {into} SYNC", user=True)
        raise


def known_column(db: Database, table: str, column: str) -> tuple[Table, ColumnStore]:
    """A table and the mapped vectors of its column. Raises UnknownTable or VectorError."""
    database, _, name = table.rpartition(".")
    known = db.registry.find(database or None, name)
    if known is None:
        raise UnknownTable(f"there is no table {table} with vector columns")
    if known.column(column) is None:
        raise VectorError(f"{table} has no vector column {column}; it has {', '.join(c.name for c in known.columns)}")
    return known, db.registry.store(known, column)


def chosen_rows(db: Database, table: Table, where: str | None, column: str | None = None) -> NDArray[np.int64] | None:
    """The rows that are looked at, ascending; None for all. column: the rows have a vector in it."""
    columns = [column] if column else []
    if where is None:
        there = db.registry.present(table, columns)
        return None if there is None else np.flatnonzero(there)
    rows = db.registry.row_numbers(f"SELECT {ROW} FROM {db.registry.physical(table)} WHERE ({where}\n)", {})
    found = np.zeros(table.rows, np.bool_)
    found[rows[rows < table.rows]] = True
    present = db.registry.present(table, columns, found)
    return np.flatnonzero(found if present is None else present)
