"""The build of an index tells how far it is, and goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import clipql
from clipql.index.folder import NewFolder


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
