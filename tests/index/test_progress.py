"""The build of an index tells how far it is, and goes on where it was cut off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clipql
from clipql.engine import memory
from clipql.errors import DiskFull, QueryError, VectorIndexError
from clipql.index import ivf
from clipql.index.folder import NewFolder
from clipql.storage.vectors.metrics import Metric


def test_building_reports_its_stages(db: clipql.Database) -> None:
    told: list[Mapping[str, Any]] = []
    db.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=told.append)
    stages = [t["stage"] for t in told if "stage" in t]
    assert {"sample", "train", "encode"} <= set(stages)
    last = [t for t in told if t.get("stage") == "encode"][-1]
    assert last["read_rows"] == last["total_rows_to_read"] == 3000


class Killed(BaseException):
    """What a build dies of, so that nothing after it runs."""


def test_a_build_that_was_cut_off_goes_on_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NewFolder, "__exit__", lambda *_: None)  # as in a process that was killed
    told: list[Any] = []

    def dies(told: Mapping[str, Any]) -> None:
        if told.get("stage") == "calibrate":
            raise Killed

    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
        db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
        with pytest.raises(Killed):
            db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=dies)
    (left,) = (tmp_path / "db" / "index").glob("*/.ix.building")
    with clipql.connect(tmp_path / "db") as db:
        assert db.sql("SELECT rows_covered FROM clipql.indexes").rows == [(0,)]
        db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=told.append)
        assert db.sql("SELECT rows_covered FROM clipql.indexes").rows == [(3000,)]
    assert "train" not in {t.get("stage") for t in told}
    assert not left.exists()


def test_what_a_build_left_goes_with_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
        db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
        left = tmp_path / "db" / "index" / db.registry.catalog.tables[0].id / ".ix.building"
        for statement in ("ALTER TABLE t CLEAR INDEX ix", "ALTER TABLE t DROP INDEX ix"):
            left.mkdir(parents=True)
            db.sql(statement)
            assert not left.exists()
        left.mkdir(parents=True)
    with clipql.connect(tmp_path / "db"):
        assert not left.exists()


def test_explain_tells_what_a_build_will_take(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance'), ADD INDEX f v TYPE flat")
    lines = [r[0] for r in db.sql("EXPLAIN ALTER TABLE t MATERIALIZE INDEX ix").rows]
    assert lines[0] == "Build of the index ix of default.t (ivf, 3,000 rows)"
    assert re.fullmatch(
        r"  takes: about \d+ s, [\d.]+ GB of disk meanwhile and [\d.]+ GB afterwards, [\d.]+ GB of memory", lines[1]
    )
    flat = [r[0] for r in db.sql("EXPLAIN ALTER TABLE t MATERIALIZE INDEX f").rows]
    assert flat[1] == "  nothing is built: the rows are scanned"
    with pytest.raises(VectorIndexError, match="no vector index nothing"):
        db.sql("EXPLAIN ALTER TABLE t MATERIALIZE INDEX nothing")
    with pytest.raises(QueryError, match="SYNTAX_ERROR"):
        db.sql("EXPLAIN ALTER TABLE t DELETE WHERE id = 1")
    assert db.sql("SELECT rows_covered FROM clipql.indexes ORDER BY name").rows == [(0,), (0,)]


def test_a_build_that_cannot_fit_is_refused_before_it_begins(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
    monkeypatch.setattr(memory, "limit", lambda: 100 << 20)
    with pytest.raises(VectorIndexError, match=r"takes [\d.]+ GB of memory; this process may use 0.10 GB"):
        db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
    monkeypatch.setattr(memory, "limit", lambda: 24 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(DiskFull, match=r"needs [\d.]+ GB of disk while it is built.* has 0.00 GB free"):
        db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
    monkeypatch.undo()
    db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
    assert db.sql("SELECT rows_covered FROM clipql.indexes").rows == [(3000,)]


def test_a_forecast_counts_what_the_process_has_already(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    store = db.registry.store(db.registry.catalog.tables[0], "v")

    def told(in_use: int) -> int:
        monkeypatch.setattr(memory, "in_use", lambda: in_use)
        return ivf.forecast(store, Metric.L2, 40).memory

    assert told(0) == told(500 << 20)  # a process that has just begun grows to that much
    assert told(3 << 30) - told(2 << 30) == 1 << 30
    monkeypatch.setattr(memory, "limit", lambda: 4 << 30)
    monkeypatch.setattr(memory, "in_use", lambda: 4 << 30)
    db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
    with pytest.raises(VectorIndexError, match=r"takes 4\.\d+ GB of memory; this process may use 4.29 GB"):
        db.sql("ALTER TABLE t MATERIALIZE INDEX ix")


def test_a_forecast_counts_the_bytes_that_a_build_writes(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql(
            "INSERT INTO t SELECT number, arrayMap(i -> toFloat32(cityHash64(number, i) % 2000 / 1000 - 1), range(96)) "
            "FROM numbers(6000)"
        )
        db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
        table = db.registry.catalog.tables[0]
        store = db.registry.store(table, "v")
        told = ivf.forecast(store, Metric.L2, ivf.lists_for(6_000))
        db.sql("ALTER TABLE t MATERIALIZE INDEX ix")
        (size,) = db.sql("SELECT bytes FROM clipql.indexes").rows[0]
    assert 0.9 < told.kept / size < 1.3
    assert told.disk > told.kept
