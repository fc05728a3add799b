"""Operations on a small database, for faults at each of their steps, and all that a user sees of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import clipql

TABLE = "CREATE TABLE t (id UInt64, c String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
ROWS = "SELECT number, toString(number), [number, 1, number / 2] FROM numbers({0}, {1})"


@dataclass(frozen=True)
class Operation:
    """Statements that come before, and the one that meets the fault."""

    before: tuple[str, ...]
    statement: str

    def prepare(self, db: clipql.Database) -> None:
        for statement in self.before:
            db.sql(statement)

    def run(self, db: clipql.Database) -> None:
        db.sql(self.statement)


class FileIngest(Operation):
    """Takes in a Parquet file whose rows hold their vectors; the statement is ignored."""

    def run(self, db: clipql.Database) -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = {"id": pa.array([6, 7], pa.uint64()), "c": ["6", "7"], "v": [[6.0, 1.0, 3.0], [7.0, 1.0, 3.5]]}
            pq.write_table(pa.table(rows), f"{folder}/rows.parquet")
            db.ingest(f"{folder}/rows.parquet", table="t")


class AddedColumn(Operation):
    """Fills a new vector column from a Parquet file; the statement is ignored."""

    def run(self, db: clipql.Database) -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = {"id": pa.array(range(5, -1, -1), pa.uint64()), "more": [[i, 0.5] for i in range(6)]}
            pq.write_table(pa.table(rows), f"{folder}/rows.parquet")
            db.ingest(f"{folder}/rows.parquet", table="t", add_column="more", by="id")


FILLED = (TABLE, "INSERT INTO t " + ROWS.format(0, 6))
INDEXED = (TABLE, "INSERT INTO t " + ROWS.format(0, 1200), "ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
OPERATIONS = {
    "insert": Operation(FILLED, "INSERT INTO t " + ROWS.format(6, 4)),
    "first insert": Operation((TABLE,), "INSERT INTO t " + ROWS.format(0, 4)),
    "file": FileIngest(FILLED, ""),
    "column": AddedColumn(FILLED, ""),
    "update": Operation(
        (*FILLED, "ALTER TABLE t ADD COLUMN w Array(Float32)", "ALTER TABLE t UPDATE w = [id] WHERE id < 4"),
        "ALTER TABLE t UPDATE w = [id + 7] WHERE id > 2",
    ),
    "delete": Operation(FILLED, "DELETE FROM t WHERE id % 3 = 1"),
    "optimise": Operation((*FILLED, "DELETE FROM t WHERE id % 3 = 1"), "OPTIMIZE TABLE t FINAL"),
    "index": Operation(INDEXED, "ALTER TABLE t MATERIALIZE INDEX near"),
    "create": Operation((), TABLE),
    "drop": Operation(FILLED, "DROP TABLE t"),
    "rename": Operation(FILLED, "RENAME TABLE t TO u"),
    "alter": Operation(FILLED, "ALTER TABLE t ADD COLUMN n UInt8 DEFAULT 3"),
    "truncate": Operation(FILLED, "TRUNCATE TABLE t"),
}


def content(db: clipql.Database) -> Any:
    """Every table that a user sees: its name, its columns, its rows, and its nearest rows as a search finds them."""
    found = []
    for (name,) in db.sql("SHOW TABLES").rows:
        columns = [row[:2] for row in db.sql(f"DESCRIBE TABLE {name}").rows]
        rows = [list(r) for r in db.sql(f"SELECT * FROM {name} ORDER BY id").rows]
        near = db.sql(f"SELECT id, c FROM {name} ORDER BY L2Distance(v, [3, 1, 1.5]), id LIMIT 3").rows
        found.append([name, [list(c) for c in columns], rows, [list(r) for r in near]])
    return found
