"""Vectors that an index cannot be built over, or is of no use for: the answers are right, and the reason is told."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

import clipql
from clipql.errors import IndexWarning
from clipql.tables import index_entries


@pytest.fixture(autouse=True)
def fewer_rows_are_worth_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_entries, "UNCOVERED", 4_000)


def test_an_insert_succeeds_although_its_index_tells_no_row_from_another(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
    )

    def insert() -> None:
        db.sql("INSERT INTO t SELECT number, [number, 3.3e38, 1, 2] FROM numbers(5000)")
        db.wait_for_indexes()

    with pytest.warns(IndexWarning, match="index ix of default.t: exact scan: "):
        insert()
    nearest = "SELECT id FROM t ORDER BY L2Distance(v, [17, 3.3e38, 1, 2]::Array(Float32)) LIMIT 1"
    state = db.sql("SELECT state FROM clipql.indexes").rows[0][0]
    explained = "\n".join(row[0] for row in db.sql("EXPLAIN " + nearest).rows)
    assert db.sql("SELECT count() FROM t").rows == [(5_000,)]
    assert db.sql(nearest).rows == [(17,)]
    assert state.startswith("exact scan: image queries reach a recall of 0.0")
    assert "none, an exact scan on all cores; ix (ivf, L2Distance): image queries reach" in explained


def test_rows_are_in_although_there_is_no_room_for_their_index(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf) ENGINE = MergeTree ORDER BY id")
    taken = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number)] FROM numbers(5000)")
    db.wait_for_indexes()
    assert db.sql("SELECT count() FROM t").rows == [(5_000,)]
    ((state,),) = db.sql("SELECT state FROM clipql.indexes").rows
    assert state.startswith("not built: the index needs 0.0")
    monkeypatch.setattr(shutil, "disk_usage", taken)
    db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
    assert db.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
