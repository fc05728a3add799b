"""Statements that ClickHouse alone would carry out without the vectors are refused, or carried out with them."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipql
from clipql.errors import UnsupportedStatement


@pytest.fixture
def laion(db: clipql.Database) -> clipql.Database:
    db.sql("CREATE TABLE laion (id UInt32, v Array(Float32), w Int32) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO laion VALUES (1, [1, 2], 5), (2, [3, 4], 6)")
    return db


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE MATERIALIZED VIEW m ENGINE = Memory AS SELECT id, v FROM laion", "would not see its inserts"),
        ("CREATE TABLE copy CLONE AS laion", "would leave out the vectors"),
        ("BACKUP TABLE laion TO Disk('default', 'x')", "would leave out the vectors"),
        ("DETACH TABLE laion", "vectors lie outside ClickHouse"),
        ("DETACH DATABASE default", "holds default.laion"),
        ("ALTER TABLE laion MODIFY COLUMN v Array(Float64)", "v is a vector column"),
        ("ALTER TABLE laion UPDATE v = [0, 0], w = 1 WHERE id = 1", "update vectors in one statement"),
        ("ALTER TABLE laion FREEZE", "moves rows without their vectors"),
        ("CREATE TABLE clipql_internal.t (v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()", "is clipql's own"),
        ("DROP DATABASE clipql_internal", "is clipql's own"),
    ],
)
def test_what_would_part_rows_from_vectors_is_refused(laion: clipql.Database, statement: str, message: str) -> None:
    with pytest.raises(UnsupportedStatement) as caught:
        laion.sql(statement)
    assert message in str(caught.value)
    assert laion.sql("SELECT id, v, w FROM laion ORDER BY id").rows == [(1, [1.0, 2.0], 5), (2, [3.0, 4.0], 6)]


def test_a_copy_of_a_shape_in_another_engine_has_plain_columns_of_its_own(laion: clipql.Database) -> None:
    laion.sql("CREATE TABLE copy AS laion ENGINE = Memory")
    laion.sql("INSERT INTO copy VALUES (7, [9], 1)")
    assert laion.sql("SELECT id, v FROM copy").rows == [(7, [9.0])]


def test_a_plain_view_reads_vectors(laion: clipql.Database) -> None:
    laion.sql("CREATE VIEW near AS SELECT id, v, L2Distance(v, [1, 2]) AS d FROM laion")
    found = laion.sql("SELECT id, v, d FROM near ORDER BY d").rows
    assert found == [(1, [1.0, 2.0], 0.0), (2, [3.0, 4.0], pytest.approx(8**0.5))]


def test_a_database_goes_with_its_vectors(laion: clipql.Database, tmp_path: Path) -> None:
    laion.sql("CREATE DATABASE other")
    laion.sql("CREATE TABLE other.t AS laion; INSERT INTO other.t SELECT * FROM laion")
    assert laion.sql("SELECT sum(v[1]) FROM other.t").rows == [(4.0,)]
    laion.sql("DROP DATABASE other")
    assert [t.full_name for t in laion.registry.catalog.tables] == ["default.laion"]
    assert len(list((laion.path / "vectors").iterdir())) == 1


def test_use_and_set_hold_for_the_statements_after_them(laion: clipql.Database) -> None:
    laion.sql("CREATE DATABASE other; USE other; CREATE TABLE t AS default.laion; INSERT INTO t VALUES (3, [1, 1], 1)")
    laion.sql("SET param_target = [1, 1]")
    found = laion.sql("SELECT id FROM t ORDER BY L2Distance(v, {target:Array(Float32)}) LIMIT 1")
    assert found.rows == [(3,)]
    assert found.stats.searches[0].kind == "top-k"
    assert laion.sql("SELECT currentDatabase()").rows == [("other",)]


def test_a_select_that_searches_can_fill_a_table_of_clickhouse(laion: clipql.Database) -> None:
    laion.sql("CREATE TABLE near ENGINE = Memory AS SELECT id FROM laion ORDER BY L2Distance(v, [3, 4]) LIMIT 1")
    laion.sql("INSERT INTO near SELECT id FROM laion ORDER BY L2Distance(v, [1, 2]) LIMIT 1")
    assert sorted(laion.sql("SELECT id FROM near").rows) == [(1,), (2,)]


def test_a_statement_with_a_format_of_its_own_gives_its_text(laion: clipql.Database) -> None:
    found = laion.sql("SELECT id FROM laion ORDER BY id FORMAT CSV")
    assert found.text == "1\n2\n"
    assert found.data == b"1\n2\n"


def test_a_closed_database_says_so(laion: clipql.Database) -> None:
    laion.close()
    with pytest.raises(clipql.ClipqlError) as caught:
        laion.sql("SELECT 1")
    assert "is closed" in str(caught.value)


def test_what_a_user_sets_does_not_bend_what_clipql_asks_for_itself(laion: clipql.Database) -> None:
    laion.sql("SET limit = 1; SET max_result_rows = 1; SET offset = 0")
    statement = "SELECT id FROM laion WHERE w > 0 ORDER BY L2Distance(v, [3, 4]) LIMIT 2"
    assert laion.sql(statement).rows == [(2,)]
    assert laion.sql(statement).stats.searches[0].filtered == 2
    laion.sql("SET limit = 0; SET max_result_rows = 0")
    laion.sql("DELETE FROM laion WHERE id = {n:UInt32}", n=2)
    assert laion.sql("SELECT id FROM laion").rows == [(1,)]
    with pytest.raises(clipql.ClipqlError) as caught:
        laion.sql("SET mutations_sync = 0")
    assert "clipql keeps it at 1" in str(caught.value)


@pytest.mark.parametrize("target", ["[]", "{q:Array(Float32)}", "[1, 2, 3]"])
def test_a_target_of_another_length_is_refused_with_both(laion: clipql.Database, target: str) -> None:
    with pytest.raises(clipql.errors.VectorError) as caught:
        laion.sql(f"SELECT id FROM laion ORDER BY L2Distance(v, {target}) LIMIT 1", q=[])
    assert "v of default.laion holds 2 numbers; the query vector" in str(caught.value)


def test_a_vector_of_numbers_of_several_types_is_refused_or_cast(laion: clipql.Database) -> None:
    insert = "INSERT INTO laion (id, w, v) SELECT number, number, {v} FROM numbers(7, 1)"
    with pytest.raises(clipql.errors.VectorError, match="numbers of several types"):
        laion.sql(insert.replace("{v}", "[number, 1.5]"))
    laion.sql(insert.replace("{v}", "CAST([number, 1.5], 'Array(Float32)')"))
    assert laion.sql("SELECT v FROM laion WHERE id = 7").rows == [([7, 1.5],)]


def test_a_search_without_its_parameter_says_which_is_missing(laion: clipql.Database) -> None:
    with pytest.raises(clipql.errors.QueryError) as caught:
        laion.sql("SELECT id FROM laion ORDER BY L2Distance(v, {target:Array(Float32)}) LIMIT 1")
    assert caught.value.code == 456
    assert "target" in str(caught.value)


def test_a_table_with_vectors_may_be_replaced_by_one_without(laion: clipql.Database) -> None:
    laion.sql("CREATE OR REPLACE TABLE laion (id UInt32) ENGINE = MergeTree ORDER BY id")
    laion.sql("INSERT INTO laion VALUES (9)")
    assert laion.sql("SELECT * FROM laion").rows == [(9,)]
    assert laion.registry.catalog.tables == ()
    laion.close()
    with clipql.connect(laion.path) as again:
        assert again.sql("SELECT * FROM laion").rows == [(9,)]
