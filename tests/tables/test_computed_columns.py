"""MATERIALIZED columns that are computed from vectors, where the vectors change.

The oracle is ClickHouse's own UPDATE of the same arrays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipql
from clipql.tables import recover


def rows(db: clipql.Database, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in db.sql(sql).rows]


COMPUTED = (
    "twice Float32 MATERIALIZED once * 2, once Float32 MATERIALIZED arraySum(w), long Float32 ALIAS L2Norm(w), "
    "far Float32 MATERIALIZED long + id, unit Array(Float32) MATERIALIZED L2Normalize(w), hash UInt64 MATERIALIZED "
    "cityHash64(w), mean Float64 MATERIALIZED arrayAvg(w), kept Float32 DEFAULT arraySum(w), "
    "INDEX i twice TYPE minmax GRANULARITY 1"
)
GIVEN = ("kept", "twice", "once", "far", "unit", "hash", "mean")


def test_materialized_columns_follow_the_vectors_as_clickhouse_has_them_follow_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = clipql.connect(tmp_path / "db")
    definition = f"(id UInt32, w Array(Float32), {COMPUTED}) ENGINE = {{}} ORDER BY {{}} SETTINGS index_granularity = 1"
    db.sql("CREATE TABLE m " + definition.format("MergeTree", "(once, id)"))
    # of another engine, so that ClickHouse has the arrays itself
    db.sql("CREATE TABLE own " + definition.format("ReplacingMergeTree", "id"))
    for name in ("m", "own"):
        db.sql(f"INSERT INTO {name} (id, w) SELECT number, [number, 1] FROM numbers(4)")
        db.sql(f"INSERT INTO {name} (id, w) SELECT number + 4, [number, 2] FROM numbers(2)")

    def same(opened: clipql.Database) -> bool:
        for text in (
            f"SELECT id, w, {', '.join(GIVEN)} FROM {{}} ORDER BY id",
            "SELECT id FROM {} WHERE twice > 50 ORDER BY id",
        ):
            np.testing.assert_equal(rows(opened, text.format("m")), rows(opened, text.format("own")))
        return True

    assert same(db)
    for change in ("CLEAR COLUMN w", "UPDATE w = [100, id] WHERE id IN (2, 5)", "UPDATE w = [7, 7] WHERE id = 5"):
        for name in ("m", "own"):
            db.sql(f"ALTER TABLE {name} {change} SETTINGS mutations_sync = 2")
        assert same(db)
    pq.write_table(pa.table({"id": pa.array([1], pa.uint32()), "e": [[3.0, 4.0]]}), tmp_path / "a.parquet")
    db.ingest(tmp_path / "a.parquet", table="m", add_column="w", by="id")
    db.sql("ALTER TABLE own UPDATE w = [3, 4] WHERE id = 1 SETTINGS mutations_sync = 2")
    assert same(db)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recover, "compute_anew", cut_off)
    with pytest.raises(KeyboardInterrupt):
        db.sql("ALTER TABLE m UPDATE w = [8, 9] WHERE id < 3")
    monkeypatch.undo()
    db.sql("ALTER TABLE own UPDATE w = [8, 9] WHERE id < 3 SETTINGS mutations_sync = 2")
    db.close()
    with clipql.connect(db.path, read_only=True) as reader:
        assert same(reader)
    with clipql.connect(db.path) as again:
        assert same(again)
        again.sql("OPTIMIZE TABLE m FINAL")
        assert same(again)
        again.backup(tmp_path / "backup")
    clipql.restore(tmp_path / "backup", tmp_path / "restored")
    with clipql.connect(tmp_path / "restored") as restored:
        assert same(restored)
        assert not restored.check(deep=True).damaged
