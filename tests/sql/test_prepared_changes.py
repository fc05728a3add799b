"""A statement that comes again after something has changed gives what reading it anew gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from repeated import BY, DIMENSION, QUERIES, anew, fill

import clipql
from clipql.engine.users import Acting, EngineUser

MINE = [0.5] * DIMENSION


def test_words_are_values(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db", model="clipql/emoji") as db:
        db.sql("CREATE TABLE t (id UInt32, a Array(Float32)) ENGINE = MergeTree ORDER BY id")
        vectors = np.random.default_rng(1).standard_normal((1_200, 128)).round(3).tolist()
        db.sql(f"INSERT INTO t VALUES {','.join(f'({i}, {v})' for i, v in enumerate(vectors))}")
        sql = "SELECT id, cosineDistance(a, encode_text({words:String})) AS distance FROM t ORDER BY distance LIMIT 3"
        for words in ("cat", "a red heart", "dog", "cat"):
            fresh = anew(db, sql, words=words)
            assert db.sql(sql, words=words).arrow() == fresh.arrow()
            assert db.search("t", text=words, column="a", k=3).rows == fresh.rows


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO t SELECT id + 10000, b, s, a FROM t WHERE id < 100",
        "DELETE FROM t WHERE id % 2 = 0",
        "ALTER TABLE t UPDATE s = 'other' WHERE 1",
        "ALTER TABLE t DROP COLUMN s; ALTER TABLE t ADD COLUMN s UInt8 DEFAULT 7",
        "ALTER TABLE t ADD INDEX near a TYPE ivf('cosineDistance'); ALTER TABLE t MATERIALIZE INDEX near",
        "ALTER TABLE t RENAME COLUMN a TO c; ALTER TABLE t RENAME COLUMN b TO a",
        "OPTIMIZE TABLE t FINAL",
        "RENAME TABLE t TO u; CREATE TABLE t AS u; INSERT INTO t SELECT id, b, s, a FROM u",
        "TRUNCATE TABLE t",
        f"CREATE TEMPORARY TABLE t (id UInt32, a Array(Float32), s String); INSERT INTO t VALUES (1, {MINE}, 'mine')",
        "CREATE DATABASE other; CREATE TABLE other.t AS t; INSERT INTO other.t SELECT * FROM t WHERE id < 9; USE other",
        "SET vector_plan = 0",
        "SET max_result_rows = 1, result_overflow_mode = 'break'",
        "SET limit = 2",
    ],
)
def test_what_has_changed_in_between_is_seen(change: str, tmp_path: Path) -> None:
    sql = f"SELECT id, s, {BY} AS d FROM t ORDER BY d LIMIT 5"
    with clipql.connect(tmp_path / "db") as db:
        fill(db, index=False)
        for query in QUERIES[:2]:
            db.sql(sql, q=query)
        db.sql(change)
        for query in QUERIES[:3]:
            again, fresh = db.sql(sql, q=query).arrow(), anew(db, sql, q=query).arrow()
            assert again.to_pylist() == fresh.to_pylist()
            assert again.schema == fresh.schema


def test_what_one_user_has_asked_is_known_to_all_but_not_what_it_meant_to_them(tmp_path: Path) -> None:
    sql = f"SELECT id, s, {BY} AS d FROM t ORDER BY d LIMIT 3"
    with clipql.connect(tmp_path / "db") as db:
        fill(db, index=False)
        engine, ours = db.registry.engine, db.session()
        mine, theirs = Acting(EngineUser([])), Acting(EngineUser([]))
        with engine.act(mine):
            ours.execute("CREATE TEMPORARY TABLE t (id UInt32, a Array(Float32), s String)")
            ours.execute(f"INSERT INTO t VALUES (1, {MINE}, 'mine')")
        given = {"q": QUERIES[0]}
        everybody = [row[:2] for row in anew(db, sql, **given).rows]
        for _ in range(3):
            for acting, expected in ((theirs, everybody), (mine, [(1, "mine")])):
                with engine.act(acting):
                    found = db.session().execute(sql, given, as_table=True).output.arrow()
                assert [(r["id"], r["s"]) for r in found.to_pylist()] == expected
        engine.forget(mine.user)
