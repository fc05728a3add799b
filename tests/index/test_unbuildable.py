"""Vectors that an index cannot be built over: the rows are there, the answers right, and the reason is told."""

from __future__ import annotations

import clipql


def test_an_insert_succeeds_although_its_index_cannot_be_built(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO t SELECT number, [number, 3.3e38, 1, 2] FROM numbers(25000)")
    nearest = "SELECT id FROM t ORDER BY L2Distance(v, [17, 3.3e38, 1, 2]::Array(Float32)) LIMIT 1"
    state = db.sql("SELECT state FROM clipql.indexes").rows[0][0]
    explained = "\n".join(row[0] for row in db.sql("EXPLAIN " + nearest).rows)
    assert db.sql("SELECT count() FROM t").rows == [(25_000,)]
    assert db.sql(nearest).rows == [(17,)]
    assert state.startswith("not built: ")
    assert "ix could not be built" in explained
