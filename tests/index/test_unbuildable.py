"""Vectors and folders that make an index hard or impossible to build: the answers are right, and the reason is told."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

import clipql


def test_rows_that_differ_by_next_to_nothing_beside_their_length_are_told_apart(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO t SELECT number, [number, 3.3e38, 1, 2] FROM numbers(25000)")
    assert db.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
    for at in (0, 17, 9_999, 24_999):
        nearest = f"SELECT id FROM t ORDER BY L2Distance(v, [{at} - 0.2, 3.3e38, 1, 2]::Array(Float32)) LIMIT 1"
        assert db.sql(nearest).rows == db.sql(f"{nearest} SETTINGS vector_index = 0").rows == [(at,)]


def test_rows_are_in_although_there_is_no_room_for_their_index(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf) ENGINE = MergeTree ORDER BY id")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number)] FROM numbers(25000)")
    assert db.sql("SELECT count() FROM t").rows == [(25_000,)]
    ((state,),) = db.sql("SELECT state FROM clipql.indexes").rows
    assert state.startswith("not built: the index needs 0.0")
    monkeypatch.undo()
    db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
    assert db.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
