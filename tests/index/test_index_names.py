"""An index may have any name: it is no path."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipql


@pytest.mark.parametrize("name", ["`../../../out`", "`a/b`", "`..`", '"a b"', "`naïve %2F`"])
def test_an_index_may_have_any_name_and_lies_in_the_database(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "er" / "db"
    with clipql.connect(folder) as db:
        db.sql(f"CREATE TABLE t (id UInt64, v Array(Float32), INDEX {name} v TYPE ivf('L2Distance')) "
               "ENGINE = MergeTree ORDER BY id")  # fmt: skip
        db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), number % 7, number % 5] FROM numbers(1200)")
        db.sql(f"ALTER TABLE t MATERIALIZE INDEX {name}")
    with clipql.connect(folder) as db:
        assert db.sql("SELECT state, rows_covered FROM clipql.indexes").rows == [("in use", 1200)]
        assert db.check(deep=True).findings == ()
        db.sql(f"ALTER TABLE t DROP INDEX {name}")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name not in ("deep", "er", "db")) == sorted(
        p.name for p in folder.rglob("*")
    )
