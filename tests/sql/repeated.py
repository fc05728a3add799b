"""A small table for statements that come again, and the same statement read anew."""

from __future__ import annotations

from typing import Any

import numpy as np

import clipql
from clipql import Database

ROWS, DIMENSION = 1_500, 8
QUERIES = np.random.default_rng(5).standard_normal((6, DIMENSION)).astype(np.float32)
BY = "cosineDistance(a, {q:Array(Float32)})"


def fill(db: Database, *, index: bool) -> None:
    db.sql("CREATE TABLE t (id UInt32, a Array(Float32), s String, b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    if index:
        db.sql("ALTER TABLE t ADD INDEX near a TYPE ivf('cosineDistance')")
    insert(db, 0, ROWS)
    db.indexes.rows.build(db.registry.catalog.table("default", "t"))  # type: ignore[arg-type]


def insert(db: Database, first: int, last: int) -> None:
    vectors = np.random.default_rng(first).standard_normal((last - first, 2, DIMENSION)).round(3)
    rows = (
        f"({i}, {pair[0].tolist()}, 'x{i % 5}', {pair[1].tolist()})"
        for i, pair in zip(range(first, last), vectors, strict=True)
    )
    db.sql(f"INSERT INTO t VALUES {','.join(rows)}")


def anew(db: Database, sql: str, **params: Any) -> clipql.Result:
    """The same by another text, which is read anew."""
    return db.sql(f"{sql} -- {np.random.default_rng().integers(1 << 60)}", **params)
