"""CREATE, ALTER, RENAME, TRUNCATE, DROP and OPTIMIZE do to a table with vectors what they do to any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import state, stored, vector_files

import clipql
from clipql.errors import ClipqlError, QueryError, UnknownColumn, UnknownTable, UnsupportedStatement, VectorError
from clipql.storage.vectors import joining
from clipql.tables import writer

CREATE = "CREATE TABLE t (id UInt64, caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"


def rows(db: clipql.Database, sql: str) -> list[tuple[Any, ...]]:
    return db.sql(sql).rows


@pytest.fixture
def t(db: clipql.Database) -> clipql.Database:
    """Three rows in table t."""
    db.sql(CREATE)
    db.sql("INSERT INTO t VALUES (1, 'one', [1, 2]), (2, 'two', [3, 4]), (3, 'three', [5, 0.1])")
    return db


THREE = [(1, "one", [1.0, 2.0]), (2, "two", [3.0, 4.0]), (3, "three", [5.0, float(np.float32(0.1))])]


def reopened(db: clipql.Database) -> clipql.Database:
    db.close()
    return clipql.connect(db.path)


# CREATE


def test_a_created_table_is_shown_as_the_user_wrote_it(db: clipql.Database) -> None:
    db.sql(
        "create table IF NOT EXISTS T2 (`a b` UInt8 COMMENT 'it''s', v Array(Float32), n Nullable(Int8) DEFAULT NULL, "
        "m String MATERIALIZED toString(`a b`), INDEX i n TYPE minmax GRANULARITY 2) ENGINE MergeTree "
        "PARTITION BY `a b` ORDER BY (`a b`, n) SETTINGS allow_nullable_key = 1, index_granularity = 100 COMMENT 'mine'"
    )
    shown = (
        "CREATE TABLE default.T2\n(\n    `a b` UInt8 COMMENT 'it\\'s',\n    `v` Array(Float32),\n"
        "    `n` Nullable(Int8) DEFAULT NULL,\n    `m` String MATERIALIZED toString(`a b`),\n"
        "    INDEX i n TYPE minmax GRANULARITY 2\n)\nENGINE = MergeTree\nPARTITION BY `a b`\nORDER BY (`a b`, n)\n"
        "SETTINGS allow_nullable_key = 1, index_granularity = 100\nCOMMENT 'mine'"
    )
    assert rows(db, "SHOW CREATE TABLE T2") == [(shown,)]
    assert rows(db, "SHOW TABLES") == [("T2",)]
    described = [r[:4] for r in rows(db, "DESCRIBE TABLE T2")]
    assert described == [
        ("a b", "UInt8", "", ""),
        ("v", "Array(Float32)", "", ""),
        ("n", "Nullable(Int8)", "DEFAULT", "NULL"),
        ("m", "String", "MATERIALIZED", "toString(`a b`)"),
    ]


def test_creating_twice_is_refused_and_if_not_exists_keeps_the_table(t: clipql.Database) -> None:
    before = state(t)
    with pytest.raises(QueryError) as caught:
        t.sql(CREATE)
    assert caught.value.name == "TABLE_ALREADY_EXISTS"
    t.sql(CREATE.replace("TABLE t", "TABLE IF NOT EXISTS t"))
    assert state(t) == before


def test_or_replace_makes_the_table_anew(t: clipql.Database) -> None:
    t.sql("CREATE OR REPLACE TABLE t (id UInt8, w Array(Float32)) ENGINE = MergeTree ORDER BY id")
    assert rows(t, "SELECT * FROM t") == []
    t.sql("INSERT INTO t VALUES (1, [1, 2, 3])")
    assert rows(t, "SELECT * FROM t") == [(1, [1.0, 2.0, 3.0])]
    assert len(vector_files(t.path)) == 1


@pytest.mark.parametrize(
    "definition",
    [
        "(id Nothing2, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
        "(id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY nothing",
    ],
)
def test_a_create_that_clickhouse_refuses_leaves_nothing(db: clipql.Database, definition: str) -> None:
    before = state(db)
    with pytest.raises(QueryError):
        db.sql(f"CREATE TABLE t {definition}")
    assert state(db) == before


def test_an_or_replace_that_clickhouse_refuses_keeps_the_table(t: clipql.Database) -> None:
    before = state(t)
    with pytest.raises(QueryError):
        t.sql("CREATE OR REPLACE TABLE t (id Nothing2, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    assert state(t) == before


def test_a_table_like_another_has_its_columns_and_no_rows(t: clipql.Database) -> None:
    t.sql("CREATE TABLE u AS t")
    t.sql("CREATE TABLE w AS t ENGINE = MergeTree ORDER BY caption")
    assert rows(t, "SELECT * FROM u") == []
    assert rows(t, "SHOW CREATE TABLE u")[0][0] == rows(t, "SHOW CREATE TABLE t")[0][0].replace(
        "default.t", "default.u"
    )
    for name in ("u", "w"):
        t.sql(f"INSERT INTO {name} SELECT * FROM t")
        assert sorted(rows(t, f"SELECT * FROM {name}")) == THREE


def test_a_table_from_a_query_has_its_rows(t: clipql.Database) -> None:
    t.sql("CREATE TABLE u ENGINE = MergeTree ORDER BY id AS SELECT id * 10 AS id, v FROM t WHERE caption > 'p'")
    assert rows(t, "SELECT * FROM u ORDER BY id") == [(20, THREE[1][2]), (30, THREE[2][2])]
    t.sql("CREATE TABLE w ENGINE = MergeTree ORDER BY tuple() AS SELECT id, caption FROM t")
    assert rows(t, "SELECT * FROM w ORDER BY id") == [r[:2] for r in THREE]


def test_a_table_from_a_query_that_fails_is_not_there(t: clipql.Database) -> None:
    before = state(t)
    with pytest.raises(ClipqlError):
        t.sql("CREATE TABLE u ENGINE = MergeTree ORDER BY id AS SELECT id, arrayResize(v, toUInt8(id)) AS v FROM t")
    assert state(t) == before


def test_vector_columns_stand_where_they_were_declared(db: clipql.Database) -> None:
    db.sql("CREATE TABLE f (v Array(Float32), id UInt8) ENGINE = MergeTree ORDER BY id")
    db.sql(
        "CREATE TABLE m (id UInt8, v Array(Float32), c String, w Array(Float32), d String) "
        "ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO f VALUES ([1, 2], 7)")
    db.sql("INSERT INTO m VALUES (7, [1, 2], 'c', [3, 4], 'd')")
    first, middle = db.sql("SELECT * FROM f"), db.sql("SELECT * FROM m")
    assert (first.columns, first.rows) == (("v", "id"), [([1.0, 2.0], 7)])
    assert (middle.columns, middle.rows) == (("id", "v", "c", "w", "d"), [(7, [1.0, 2.0], "c", [3.0, 4.0], "d")])
    db.sql("INSERT INTO m SELECT * FROM m")
    db.sql("INSERT INTO m SELECT id, w, c, v, d FROM m LIMIT 1")
    assert rows(db, "SELECT v, w FROM m ORDER BY _row") == [([1.0, 2.0], [3.0, 4.0])] * 2 + [([3.0, 4.0], [1.0, 2.0])]


def test_tables_without_vector_columns_and_other_engines_are_clickhouses_own(db: clipql.Database) -> None:
    db.sql("CREATE TABLE plain (id UInt8, name String) ENGINE = MergeTree ORDER BY id")
    db.sql("CREATE TABLE memory (id UInt8, v Array(Float32)) ENGINE = Memory")
    db.sql("CREATE TABLE replacing (id UInt8, v Array(Float32)) ENGINE = ReplacingMergeTree ORDER BY id")
    db.sql("CREATE TABLE doubles (id UInt8, v Array(Float64)) ENGINE = MergeTree ORDER BY id")
    db.sql("CREATE VIEW seen AS SELECT id FROM memory")
    assert db.registry.catalog.tables == ()
    assert vector_files(db.path) == []
    for name in ("memory", "replacing", "doubles"):
        db.sql(f"INSERT INTO {name} VALUES (1, [1, 2]), (2, [1, 2, 3])")
        assert rows(db, f"SELECT * FROM {name} ORDER BY id") == [(1, [1.0, 2.0]), (2, [1.0, 2.0, 3.0])]
    assert rows(db, "SELECT * FROM seen ORDER BY id") == [(1,), (2,)]
    for name in ("plain", "memory", "replacing", "doubles"):
        db.sql(f"TRUNCATE TABLE {name}")
        db.sql(f"RENAME TABLE {name} TO x")
        db.sql("DROP TABLE x")


def test_names_of_any_kind_work(db: clipql.Database) -> None:
    for name in ("a b", "a.b", "it's", "back\\`tick", "é", "a\\\\b", "x" * 80):
        db.sql(
            f"CREATE TABLE `{name}` (`{name}` UInt8, `v {name}` Array(Float32)) ENGINE = MergeTree ORDER BY `{name}`"
        )
        db.sql(f"INSERT INTO `{name}` VALUES (1, [1, 2])")
        db.sql(f"INSERT INTO `{name}` SELECT * FROM `{name}`")
        assert rows(db, f"SELECT * FROM `{name}`") == [(1, [1.0, 2.0])] * 2
        assert rows(db, f"SELECT `v {name}` FROM `{name}` ORDER BY L2Distance(`v {name}`, [1, 2]) LIMIT 1") == [
            ([1.0, 2.0],)
        ]
    names = sorted(rows(db, "SHOW TABLES"))
    db = reopened(db)
    assert sorted(rows(db, "SHOW TABLES")) == names
    db.sql("DROP TABLE `a b`")
    db.close()


def test_the_hidden_database_is_not_the_users(db: clipql.Database) -> None:
    with pytest.raises(UnsupportedStatement, match="clipql_internal is clipql's own"):
        db.sql("CREATE TABLE clipql_internal.t (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    assert ("clipql_internal",) not in rows(db, "SHOW DATABASES")


# ALTER


def test_a_plain_column_is_added_with_its_default_and_dropped(t: clipql.Database) -> None:
    t.sql("ALTER TABLE t ADD COLUMN n UInt8 DEFAULT id + 1 AFTER id, ADD COLUMN IF NOT EXISTS m String FIRST")
    result = t.sql("SELECT * FROM t ORDER BY id")
    assert result.columns == ("m", "id", "n", "caption", "v")
    assert result.rows == [("", i, i + 1, c, v) for i, c, v in THREE]
    t.sql("INSERT INTO t (id, v) VALUES (9, [7, 7])")
    assert rows(t, "SELECT * FROM t WHERE id = 9") == [("", 9, 10, "", [7.0, 7.0])]
    t.sql("ALTER TABLE t DROP COLUMN n, DROP COLUMN m, DROP COLUMN IF EXISTS nothing")
    assert rows(t, "SELECT * FROM t WHERE id < 9 ORDER BY id") == THREE
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM t WHERE id < 9 ORDER BY id") == THREE


def test_plain_columns_are_renamed_and_modified(t: clipql.Database) -> None:
    t.sql("ALTER TABLE t RENAME COLUMN caption TO title")
    t.sql("ALTER TABLE t MODIFY COLUMN title Nullable(String), COMMENT COLUMN title 'words'")
    t.sql("INSERT INTO t VALUES (4, NULL, [9, 9])")
    assert rows(t, "SELECT * FROM t ORDER BY id") == [*THREE, (4, None, [9.0, 9.0])]
    shown = rows(t, "SHOW CREATE TABLE t")[0][0]
    assert "`title` Nullable(String) COMMENT 'words'" in shown


def test_a_vector_column_is_renamed_and_dropped_with_its_files(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt8, v Array(Float32), w Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t VALUES (1, [1, 2], [3])")
    db.sql("ALTER TABLE t RENAME COLUMN w TO `w 2`")
    db.sql("INSERT INTO t (id, `w 2`, v) VALUES (2, [4], [5, 6])")
    assert rows(db, "SELECT * FROM t ORDER BY id") == [(1, [1.0, 2.0], [3.0]), (2, [5.0, 6.0], [4.0])]
    assert len(vector_files(db.path)) == 4
    db.sql("ALTER TABLE t DROP COLUMN v")
    assert rows(db, "SELECT * FROM t ORDER BY id") == [(1, [3.0]), (2, [4.0])]
    assert len(vector_files(db.path)) == 2
    with pytest.raises(UnsupportedStatement, match=r"w 2 is the last vector column of default\.t: drop the table"):
        db.sql("ALTER TABLE t DROP COLUMN `w 2`")
    with reopened(db) as again:
        assert rows(again, "SELECT * FROM t ORDER BY id") == [(1, [3.0]), (2, [4.0])]


def test_a_vector_column_is_added_to_a_table_without_rows(db: clipql.Database) -> None:
    db.sql(CREATE)
    db.sql("ALTER TABLE t ADD COLUMN w Array(Float32) AFTER id")
    assert [c.name for c in db.registry.catalog.tables[0].columns] == ["v", "w"]
    db.sql("INSERT INTO t VALUES (1, [1, 2, 3], 'one', [4])")
    result = db.sql("SELECT * FROM t")
    assert (result.columns, result.rows) == (("id", "w", "caption", "v"), [(1, [1.0, 2.0, 3.0], "one", [4.0])])


def test_an_array_column_added_to_a_table_with_rows_is_a_vector_column_that_they_lack(t: clipql.Database) -> None:
    t.sql("ALTER TABLE t ADD COLUMN w Array(Float32)")
    assert [c.name for c in t.registry.catalog.tables[0].columns] == ["v", "w"]
    t.sql("INSERT INTO t VALUES (4, 'four', [9, 9], [1, 2, 3])")
    assert rows(t, "SELECT w FROM t ORDER BY id") == [([],), ([],), ([],), ([1.0, 2.0, 3.0],)]
    t.sql("DELETE FROM t WHERE id = 1")
    t.sql("OPTIMIZE TABLE t FINAL")
    assert rows(t, "SELECT * FROM t ORDER BY id")[-1] == (4, "four", [9.0, 9.0], [1.0, 2.0, 3.0])


REFUSED = [
    (
        "ALTER TABLE t UPDATE v = [1, 2], caption = 'x' WHERE id = 1",
        "v of default.t lies outside ClickHouse: update vectors in one statement, and other columns in another",
    ),
    ("ALTER TABLE t CLEAR COLUMN v IN PARTITION tuple()", "v is a vector column: clear all of it, or set it to"),
    (
        "ALTER TABLE t MODIFY COLUMN v Array(Float64)",
        "v is a vector column; it can be renamed or dropped, not modified",
    ),
    (
        "ALTER TABLE t ATTACH PARTITION tuple() FROM u",
        "moves rows without their vectors, so it is refused on default.t",
    ),
    ("ALTER TABLE t MOVE PARTITION tuple() TO TABLE u", "moves rows without their vectors"),
    ("ALTER TABLE t FREEZE", "moves rows without their vectors"),
    ("EXCHANGE TABLES t AND u, t AND u", "exchange tables with vector columns two in a statement"),
    ("DETACH TABLE t", "DETACH is not carried out on default.t"),
]


@pytest.mark.parametrize("other", ["MergeTree ORDER BY id", "Log"])  # one of ours, and one that is ClickHouse's alone
@pytest.mark.parametrize("order", ["a.x AND a.y", "a.y AND a.x"])
def test_two_tables_get_each_others_names(db: clipql.Database, other: str, order: str) -> None:
    index = "INDEX near v TYPE ivf('L2Distance')"
    db.sql("CREATE DATABASE a")
    db.sql(f"CREATE TABLE a.x (id UInt32, v Array(Float32), {index}) ENGINE = MergeTree ORDER BY id")
    db.sql(f"CREATE TABLE a.y (id UInt32, v Array(Float32)) ENGINE = {other}")
    db.sql("INSERT INTO a.x SELECT number, [number, 0] FROM numbers(5)")
    db.sql("INSERT INTO a.y SELECT number, [0, 0, number] FROM numbers(3)")

    def held() -> list[list[tuple[object, ...]]]:
        return [db.sql(f"SELECT * FROM a.{name} ORDER BY id").rows for name in "xy"]

    x, y = held()
    for expected in ([y, x], [x, y], [y, x]):
        db.sql(f"EXCHANGE TABLES {order}")
        assert held() == expected
    db.sql("INSERT INTO a.y VALUES (9, [9, 9])")
    nearest = "SELECT id FROM a.y ORDER BY L2Distance(v, [8, 9]) LIMIT 1"
    assert db.sql(nearest).rows == [(9,)]
    assert db.sql("SHOW CREATE TABLE a.y").rows[0][0].startswith("CREATE TABLE a.y")
    assert db.check(deep=True).findings == ()
    db.close()
    with clipql.connect(db.path) as again:
        assert again.sql(nearest).rows == [(9,)]
        assert again.sql("SELECT count() FROM a.x").rows == [(3,)]


def test_what_vectors_cannot_take_part_in_is_refused_with_the_reason(t: clipql.Database) -> None:
    t.sql("CREATE TABLE u AS t")
    before = state(t)
    for sql, message in REFUSED:
        with pytest.raises(UnsupportedStatement) as caught:
            t.sql(sql)
        assert message in str(caught.value), sql
        assert state(t) == before, sql


WRONG = [
    "ALTER TABLE t DROP COLUMN nothing",
    "ALTER TABLE t RENAME COLUMN caption TO id",
    "ALTER TABLE t RENAME COLUMN v TO caption",
    "ALTER TABLE t ADD COLUMN id UInt8",
    "ALTER TABLE t ADD COLUMN n Nothing2",
    "ALTER TABLE t MODIFY COLUMN nothing UInt8",
    "ALTER TABLE t ADD COLUMN _row UInt64",
    "ALTER TABLE t ADD INDEX i nothing TYPE minmax",
    "ALTER TABLE t MODIFY TTL nothing + INTERVAL 1 DAY",
    "ALTER TABLE t UPDATE caption = nothing WHERE 1",
    "ALTER TABLE t DELETE WHERE nothing = 1",
    "ALTER TABLE t DROP COLUMN _row",
    "ALTER TABLE t UPDATE v = [] WHERE id = 1",
    "ALTER TABLE t UPDATE _row = 0 WHERE 1",
]


def test_an_alter_that_clickhouse_refuses_changes_nothing(t: clipql.Database) -> None:
    before = state(t), rows(t, "SHOW CREATE TABLE t")
    for sql in WRONG:
        with pytest.raises(ClipqlError):
            t.sql(sql)
        assert (state(t), rows(t, "SHOW CREATE TABLE t")) == before, sql
    t.sql("INSERT INTO t VALUES (4, 'four', [9, 9])")
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM t ORDER BY id") == [*THREE, (4, "four", [9.0, 9.0])]


def test_other_columns_are_updated_and_keep_their_vectors(t: clipql.Database) -> None:
    t.sql("ALTER TABLE t UPDATE caption = concat(caption, '!') WHERE L2Distance(v, [1, 2]) < 3")
    assert rows(t, "SELECT id, caption, v FROM t ORDER BY id") == [
        (1, "one!", [1.0, 2.0]),
        (2, "two!", [3.0, 4.0]),
        THREE[2],
    ]


def test_rows_are_deleted_by_every_statement_that_deletes(t: clipql.Database) -> None:
    t.sql("DELETE FROM t WHERE id = 1")
    assert rows(t, "SELECT id FROM t ORDER BY L2Distance(v, [1, 2]) LIMIT 5") == [(2,), (3,)]
    t.sql("ALTER TABLE t DELETE WHERE L2Distance(v, [5, 0]) < 1")
    assert rows(t, "SELECT id FROM t ORDER BY L2Distance(v, [1, 2]) LIMIT 5") == [(2,)]
    t.sql("INSERT INTO t VALUES (5, 'five', [1, 1])")
    assert rows(t, "SELECT id, _row FROM t ORDER BY id") == [(2, 1), (5, 3)]


@pytest.mark.parametrize("sql", ["DELETE FROM t WHERE id = {n:UInt8}", "ALTER TABLE t DELETE WHERE id = {n:UInt8}"])
def test_rows_are_deleted_by_parameter(t: clipql.Database, sql: str) -> None:
    t.sql(sql, n=2)
    assert rows(t, "SELECT * FROM t ORDER BY id") == [THREE[0], THREE[2]]


# DROP, TRUNCATE, RENAME


def test_a_dropped_table_takes_its_files_with_it(t: clipql.Database) -> None:
    t.sql("DROP TABLE t")
    assert vector_files(t.path) == []
    assert rows(t, "SHOW TABLES") == []
    with pytest.raises(UnknownTable):
        t.sql("SELECT * FROM t")
    t.sql("DROP TABLE IF EXISTS t")
    with pytest.raises(UnknownTable):
        t.sql("DROP TABLE t")
    t.sql(CREATE)
    assert rows(t, "SELECT * FROM t") == []


def test_drop_if_empty_leaves_the_catalog_right(db: clipql.Database) -> None:
    db.sql(CREATE)
    db.sql("DROP TABLE IF EMPTY t")
    assert db.registry.catalog.tables == ()


def test_a_dropped_database_takes_its_tables_with_it(db: clipql.Database) -> None:
    db.sql("CREATE DATABASE foo")
    db.sql(CREATE.replace("TABLE t", "TABLE foo.t"))
    db.sql("DROP DATABASE foo")
    assert db.registry.catalog.tables == ()


def test_a_renamed_database_keeps_its_tables(db: clipql.Database) -> None:
    db.sql("CREATE DATABASE foo")
    db.sql(CREATE.replace("TABLE t", "TABLE foo.t"))
    with pytest.raises(UnsupportedStatement):
        db.sql("RENAME DATABASE foo TO bar")


def test_replace_table_is_create_or_replace(t: clipql.Database) -> None:
    t.sql("REPLACE TABLE t (id UInt8, w Array(Float32)) ENGINE = MergeTree ORDER BY id")
    t.sql("INSERT INTO t VALUES (1, [1, 2, 3])")
    assert rows(t, "SELECT * FROM t") == [(1, [1.0, 2.0, 3.0])]


def test_clone_as_copies_the_rows_or_is_refused(t: clipql.Database) -> None:
    try:
        t.sql("CREATE TABLE u CLONE AS t")
    except UnsupportedStatement:
        return
    assert rows(t, "SELECT * FROM u ORDER BY id") == THREE


def test_a_truncated_table_begins_again_with_any_dimension(t: clipql.Database) -> None:
    t.sql("TRUNCATE TABLE t")
    assert rows(t, "SELECT * FROM t") == []
    assert vector_files(t.path) == []
    t.sql("INSERT INTO t VALUES (7, 'seven', [1, 2, 3])")
    assert rows(t, "SELECT *, _row FROM t") == [(7, "seven", [1.0, 2.0, 3.0], 0)]


def test_a_renamed_table_keeps_everything(t: clipql.Database) -> None:
    t.sql("CREATE DATABASE foo")
    t.sql("RENAME TABLE t TO foo.u")
    assert rows(t, "SHOW TABLES") == []
    assert rows(t, "SELECT * FROM foo.u ORDER BY id") == THREE
    t.sql("INSERT INTO foo.u VALUES (4, 'four', [9, 9])")
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM foo.u ORDER BY id") == [*THREE, (4, "four", [9.0, 9.0])]
        again.sql(CREATE)
        assert rows(again, "SELECT * FROM t") == []


@pytest.mark.parametrize(
    "other", ["CREATE TABLE u (x UInt8) ENGINE = MergeTree ORDER BY x", CREATE.replace("TABLE t", "TABLE u")]
)
def test_a_rename_onto_another_table_is_refused_and_changes_nothing(t: clipql.Database, other: str) -> None:
    t.sql(other)
    before = state(t)
    with pytest.raises(QueryError) as caught:
        t.sql("RENAME TABLE t TO u")
    assert caught.value.name == "TABLE_ALREADY_EXISTS"
    assert state(t) == before
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM t ORDER BY id") == THREE


def test_a_name_can_be_handed_on_to_another_table_in_one_statement(t: clipql.Database) -> None:
    t.sql("CREATE TABLE plain (x UInt8) ENGINE = MergeTree ORDER BY x")
    t.sql("RENAME TABLE t TO old, plain TO t")
    assert rows(t, "SELECT * FROM old ORDER BY id") == THREE
    assert rows(t, "SELECT * FROM t") == []
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM old ORDER BY id") == THREE


# OPTIMIZE


def test_optimize_final_takes_dead_vectors_away_and_keeps_the_answers(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE t (id UInt64, c String, v Array(Float32), w Array(Float32)) "
        "ENGINE = MergeTree PARTITION BY id % 3 ORDER BY c"
    )
    db.sql("INSERT INTO t SELECT number, toString(number), [number, 0.1, 2], [number] FROM numbers(3000)")
    db.sql("DELETE FROM t WHERE id % 4 != 0")
    nearest = "SELECT id, c, v, w, L2Distance(v, [1000, 0, 0]) FROM t ORDER BY L2Distance(v, [1000, 0, 0]), id LIMIT 7"
    before, everything = rows(db, nearest), rows(db, "SELECT * FROM t ORDER BY id")
    size = sum(p.stat().st_size for p in db.path.glob("vectors/*/*/*"))
    db.sql("OPTIMIZE TABLE t FINAL")
    assert rows(db, nearest) == before
    assert rows(db, "SELECT * FROM t ORDER BY id") == everything
    assert rows(db, "SELECT min(_row), max(_row), uniqExact(_row) FROM t") == [(0, 749, 750)]
    assert sum(p.stat().st_size for p in db.path.glob("vectors/*/*/*")) < size / 3
    db.sql("INSERT INTO t VALUES (5000, 'new', [1, 2, 3], [4])")
    with reopened(db) as again:
        assert rows(again, "SELECT * FROM t ORDER BY id") == [*everything, (5000, "new", [1.0, 2.0, 3.0], [4.0])]
        assert rows(again, nearest) == before


def test_optimize_final_of_a_table_with_all_rows_deleted_leaves_it_empty_and_usable(t: clipql.Database) -> None:
    t.sql("DELETE FROM t WHERE 1")
    t.sql("OPTIMIZE TABLE t FINAL")
    assert rows(t, "SELECT * FROM t") == []
    t.sql("INSERT INTO t VALUES (4, 'four', [9, 9])")
    assert rows(t, "SELECT * FROM t") == [(4, "four", [9.0, 9.0])]
    with reopened(t) as again:
        assert rows(again, "SELECT * FROM t") == [(4, "four", [9.0, 9.0])]


def test_optimize_final_without_deletes_rewrites_nothing(t: clipql.Database) -> None:
    files = vector_files(t.path)
    t.sql("OPTIMIZE TABLE t FINAL")
    t.sql("OPTIMIZE TABLE t")
    assert vector_files(t.path) == files
    assert rows(t, "SELECT * FROM t ORDER BY id") == THREE


@pytest.mark.parametrize(
    ("definition", "what"),
    [
        ("INDEX n L2Norm(v) TYPE minmax GRANULARITY 1", "index n"),
        ("PROJECTION n (SELECT id, v ORDER BY id)", "projection n"),
    ],
)
def test_what_clickhouse_would_compute_from_vectors_in_the_background_is_refused(
    t: clipql.Database, definition: str, what: str
) -> None:
    before = state(t)
    with pytest.raises(UnsupportedStatement) as caught:
        t.sql(f"CREATE TABLE u (id UInt64, v Array(Float32), {definition}) ENGINE = MergeTree ORDER BY id")
    assert str(caught.value).startswith(f"{what} is computed from the vector column v")
    with pytest.raises(UnsupportedStatement):
        t.sql(f"ALTER TABLE t ADD {definition}")
    assert state(t) == before


def test_columns_are_computed_from_vectors_as_rows_come_and_are_kept(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql(
        "CREATE TABLE t (id UInt64, v Array(Float32), w Array(Float32), near Float32 ALIAS cosineDistance(v, w), "
        "m Float64 MATERIALIZED 1 - near COMMENT 'of v', s UInt8) ENGINE = MergeTree ORDER BY id"
    )
    some = "number, [number, 1, 3], [2, number, -1], number % 3 FROM numbers"
    db.sql(f"INSERT INTO t SELECT {some}(3)")
    db.sql("ALTER TABLE t ADD COLUMN d Float32 DEFAULT s * L2Norm(v) + dotProduct(w, [1, 0, 2]) AFTER v")
    db.sql("ALTER TABLE t ADD INDEX i d TYPE minmax GRANULARITY 1")
    made = db.sql("SHOW CREATE TABLE t").rows[0][0]
    assert "`d` Float32 DEFAULT (s * L2Norm(v)) + dotProduct(w, [1, 0, 2])" in made
    assert "_row" not in made
    db.sql("INSERT INTO t (id, v, w, s) VALUES (3, [0, 0, 1], [1, 1, 1], 2)")
    db.sql("INSERT INTO t (id, v, w, s, d) VALUES (4, [0, 0, 1], [1, 1, 1], 2, 7)")
    monkeypatch.setattr(writer, "DIRECT_ROWS", 3)
    db.sql(f"INSERT INTO t (id, v, w, s) SELECT 5 + {some}(9)")
    db.sql("CREATE TABLE u AS t")
    db.sql("INSERT INTO u SELECT * FROM t")

    def wrong(table: str) -> list[tuple[Any, ...]]:
        d, m = "s * L2Norm(v) + dotProduct(w, [1, 0, 2])", "1 - cosineDistance(v, w)"
        off = f"groupArrayIf(id, abs(d - ({d})) > 1e-5) AS o, countIf(abs(m - ({m})) > 1e-6)"
        return rows(db, f"SELECT count(), {off} FROM {table} SETTINGS vector_plan = 0")

    assert wrong("t") == wrong("u") == [(14, [4], 0)]
    db.sql("DELETE FROM t WHERE id = 5")
    db.sql("OPTIMIZE TABLE t")
    assert wrong("t") == [(13, [4], 0)]
    db.sql("OPTIMIZE TABLE t FINAL")
    db.sql("ALTER TABLE t RENAME COLUMN w TO x")
    db.sql("ALTER TABLE t RENAME COLUMN x TO w")
    assert wrong("t") == [(13, [4], 0)]
    with pytest.raises(QueryError, match="column `d` depends on it"):
        db.sql("ALTER TABLE t DROP COLUMN w")
    with pytest.raises(QueryError, match="Cannot UPDATE materialized column"):
        db.sql("ALTER TABLE t UPDATE m = 1 WHERE 1")
    db.sql("ALTER TABLE t UPDATE d = 7 WHERE id = 1")
    db.sql("ALTER TABLE t MATERIALIZE COLUMN m, CLEAR COLUMN d")
    assert wrong("t") == [(13, [], 0)]
    with reopened(db) as again:
        assert again.sql("SELECT count(), count(d) FROM t").rows == [(13, 13)]


def test_an_alias_column_may_be_computed_from_vectors(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt64, v Array(Float32), n Float32 ALIAS L2Norm(v)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t (id, v) VALUES (0, [3, 4]), (1, [6, 8])")
    db.sql("DELETE FROM t WHERE id = 0")
    db.sql("OPTIMIZE TABLE t FINAL")
    assert rows(db, "SELECT id, n FROM t") == [(1, 10.0)]


def test_computed_columns_of_staged_rows_are_computed(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.sql(
        "CREATE TABLE t (id UInt64, v Array(Float32), n UInt64 MATERIALIZED id * 2, d UInt64 DEFAULT id + 1) "
        "ENGINE = MergeTree ORDER BY id"
    )
    monkeypatch.setattr(writer, "DIRECT_ROWS", 3)
    db.sql("INSERT INTO t (id, v) SELECT number, [3 * number, 4 * number] FROM numbers(9)")
    assert rows(db, "SELECT id, d, n FROM t ORDER BY id") == [(i, i + 1, 2 * i) for i in range(9)]
    db.sql("DELETE FROM t WHERE id > 0")
    assert rows(db, "SELECT id, d, n FROM t") == [(0, 1, 0)]


def test_rows_that_come_through_a_view_are_refused_not_given_another_rows_vector(t: clipql.Database) -> None:
    t.sql("CREATE TABLE source (id UInt64, caption String) ENGINE = Memory")
    with pytest.raises(UnsupportedStatement, match="rows come into a table with vectors by INSERT INTO it"):
        t.sql("CREATE MATERIALIZED VIEW mv TO t AS SELECT id, caption FROM source")
    with pytest.raises(QueryError, match="rows come into a table with vectors by INSERT INTO it"):
        t.sql("INSERT INTO FUNCTION remote('127.0.0.1', 'default', 't') (id, caption) VALUES (9, 'nine')")
    assert rows(t, "SELECT * FROM t ORDER BY id") == THREE


# databases, many inserts


def test_tables_of_several_databases_keep_apart(db: clipql.Database) -> None:
    db.sql("CREATE DATABASE foo; CREATE DATABASE bar")
    for n, database in enumerate(("default", "foo", "bar")):
        db.sql(CREATE.replace("TABLE t", f"TABLE {database}.t"))
        db.sql(f"INSERT INTO {database}.t VALUES ({n}, '{database}', [{n}, 1])")
    db.sql("USE foo")
    assert rows(db, "SELECT * FROM t") == [(1, "foo", [1.0, 1.0])]
    db.sql("INSERT INTO t SELECT id + 10, caption, v FROM bar.t")
    db.sql("CREATE TABLE u AS t")
    assert rows(db, "SHOW TABLES") == [("t",), ("u",)]
    assert rows(db, "SELECT * FROM t ORDER BY L2Distance(v, [9, 9]) LIMIT 2") == [
        (12, "bar", [2.0, 1.0]),
        (1, "foo", [1.0, 1.0]),
    ]
    assert rows(db, "SELECT * FROM default.t") == [(0, "default", [0.0, 1.0])]
    with reopened(db) as again:
        assert rows(again, "SELECT * FROM foo.t ORDER BY id") == [(1, "foo", [1.0, 1.0]), (12, "bar", [2.0, 1.0])]


def test_many_small_inserts_are_joined_into_few_files(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SMALL_SEGMENTS", 8)
    db.sql(CREATE)
    for i in range(20):
        db.sql("INSERT INTO t VALUES ({i:UInt64}, '', [{i:UInt64}, {x:Float32}])", i=i, x=0.1 if i == 11 else 0.5)
    assert len(vector_files(db.path)) < 8
    expected = [[float(i), float(np.float32(0.1)) if i == 11 else 0.5] for i in range(20)]
    assert rows(db, "SELECT v FROM t ORDER BY id") == [(v,) for v in expected]
    with reopened(db) as again:
        assert stored(again, "t", "v").tolist() == expected


# INSERT


BAD_INSERTS = [
    (
        "INSERT INTO t VALUES (4, 'x', [1, 2, 3])",
        VectorError,
        "v of default.t holds 2 numbers; row 0 of the insert has 3",
    ),
    (
        "INSERT INTO t VALUES (4, 'x', [1, 2]), (5, 'y', [])",
        VectorError,
        "v of default.t holds 2 numbers; row 1 of the insert has 0",
    ),
    ("INSERT INTO t VALUES (4, 'x', [1, nan])", VectorError, "row 0 holds nan at position 1; vectors must be finite"),
    (
        "INSERT INTO t SELECT number, '', [1, if(number = 70000, inf, 2)] FROM numbers(70001)",
        VectorError,
        "row 70,000 holds inf at position 1",
    ),
    (
        "INSERT INTO t (id, caption) VALUES (4, 'x')",
        VectorError,
        "needs a vector in v for each row; the INSERT names id, caption",
    ),
    (
        "INSERT INTO t (id, v, nothing) VALUES (4, [1, 2], 3)",
        QueryError,
        "default.t has no column nothing to insert into; it has id, caption, v",
    ),
    ("INSERT INTO t SELECT 1, [1, 2]", QueryError, "the SELECT gives 2 columns"),
    ("INSERT INTO t VALUES (4, 'x', 'y')", QueryError, "ClickHouse"),
    ("INSERT INTO t SELECT id, caption, missing FROM t", UnknownColumn, "missing"),
    ("INSERT INTO t VALUES (4, 'x', [1, 2]), (throwIf(1), 'y', [3, 4])", QueryError, "ClickHouse"),
]


def test_a_bad_insert_says_why_and_changes_nothing(t: clipql.Database) -> None:
    before = state(t)
    for sql, error, message in BAD_INSERTS:
        with pytest.raises(ClipqlError) as caught:
            t.sql(sql)
        assert isinstance(caught.value, error), sql
        assert message in str(caught.value), sql
        assert state(t) == before, sql


def test_vectors_are_float16_where_that_loses_nothing_and_float32_elsewhere(db: clipql.Database) -> None:
    db.sql(CREATE)
    db.sql("INSERT INTO t VALUES (1, '', [0.5, 2])")
    db.sql("INSERT INTO t VALUES (2, '', [0.1, 2])")
    kinds = [s.dtype for s in db.registry.catalog.tables[0].columns[0].segments]
    assert kinds == ["float16", "float32"]
    assert stored(db, "t", "v").tolist() == [[0.5, 2.0], [float(np.float32(0.1)), 2.0]]


def test_an_insert_of_no_rows_leaves_the_dimension_open(db: clipql.Database) -> None:
    db.sql(CREATE)
    db.sql("INSERT INTO t SELECT 1, '', [1, 2] WHERE 0")
    assert vector_files(db.path) == []
    db.sql("INSERT INTO t VALUES (1, '', [1, 2, 3])")
    assert rows(db, "SELECT v FROM t") == [([1.0, 2.0, 3.0],)]


def test_a_table_selected_into_itself_doubles(t: clipql.Database) -> None:
    t.sql("INSERT INTO t SELECT id + 3, caption, v FROM t")
    t.sql("INSERT INTO t SELECT id + 6, caption, v FROM t UNION ALL SELECT id + 12, caption, v FROM t WHERE id < 3")
    found = rows(t, "SELECT id, v FROM t ORDER BY id")
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert found == [(i, THREE[(i - 1) % 3][2]) for i in ids]


def test_a_damaged_segment_is_reported_by_name_when_the_database_is_opened(t: clipql.Database) -> None:
    (file,) = vector_files(t.path)
    t.close()
    path = Path(t.path) / "vectors" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(clipql.errors.DatabaseDamaged, match=f"{path} is cut short"):
        clipql.connect(t.path)
    path.write_bytes(whole)
    with clipql.connect(t.path) as db:
        assert rows(db, "SELECT * FROM t ORDER BY id") == THREE
