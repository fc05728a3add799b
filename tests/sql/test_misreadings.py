"""Statements that look like a search and are not, or not quite: each gives what ClickHouse gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import clipql

Q = "L2Distance(v, [1, 1, 1, 1])"
STATEMENTS = (
    f"SELECT id g, s FROM t WHERE g < 50 ORDER BY {Q}, id LIMIT 5",
    f"SELECT id, (id + 1 AS g) * 2 AS z FROM t WHERE g < 50 ORDER BY {Q}, id LIMIT 5",
    f"SELECT id, w v FROM t ORDER BY {Q}, id LIMIT 5",
    f"SELECT id, length(w AS v) FROM t ORDER BY {Q}, id LIMIT 5",
    f"SELECT id FROM t ORDER BY {Q}, length(w AS v), id LIMIT 5",
    f"SELECT g AS id, id AS g FROM t WHERE g < 10 ORDER BY {Q}, g LIMIT 4",
    f"SELECT arrayMap(v -> {Q}, [[1, 1, 1, 1], [2, 2, 2, 2]]) AS a, id FROM t ORDER BY id LIMIT 3",
    f"SELECT count() FROM t WHERE {Q} < 2 = 0",
    f"SELECT count() FROM t WHERE {Q} < 2 = 1",
    f"SELECT count() FROM t WHERE {Q} < 5 < 1",
    f"SELECT count() FROM t WHERE {Q} < 2 IN (0)",
    f"SELECT count() FROM t WHERE {Q} < 2 IS NOT NULL",
    f"SELECT count() FROM t WHERE {Q} < 2 != 1 AND g = 3",
    f"SELECT id FROM t WHERE {Q} < 2 = 0 ORDER BY {Q}, id LIMIT 5",
    "SELECT count() FROM t JOIN o.t ON default.t.id + 100000 = o.t.id WHERE L2Distance(o.t.v, [1, 1, 1, 1]) < 1.3",
    f"SELECT id FROM t WHERE arrayJoin([1, 1]) = 1 ORDER BY {Q}, id LIMIT 6",
    f"SELECT id FROM t WHERE arrayJoin([1, 1]) = 1 AND {Q} < 3 ORDER BY id LIMIT 6",
    f"SELECT id FROM t ORDER BY 1e30 + {Q}, id LIMIT 5",
    f"SELECT count() FROM t WHERE 1e17 + {Q} <= 1e17",
    "SELECT min(L2SquaredDistance(v, [1e38, 0, 0, 0])) FROM t",
    f"SELECT id, {Q} d, d < 3 near FROM t WHERE near ORDER BY d, id LIMIT 6",
    f"SELECT id % 3 k, {Q} d FROM t WHERE k = 1 ORDER BY d, id LIMIT 10",
    "SELECT id FROM t PREWHERE v[1] = 3 ORDER BY id LIMIT 5",
    f"SELECT id FROM t PREWHERE length(v) = 4 WHERE g = 2 ORDER BY {Q}, id LIMIT 5",
    f"FROM t SELECT id ORDER BY {Q}, id LIMIT 3",
    "SELECT cosineDistance(v, [3, 3, 3, 3]) < 0 AS below, count() FROM t WHERE v != [0, 0, 0, 0] GROUP BY below",
    f"SELECT u.id FROM u LEFT JOIN t ON u.id = t.id WHERE t.id > 0 ORDER BY u.id, {Q.replace('v,', 't.v,')} LIMIT 3",
)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("misreadings") / "db") as db:
        columns = "id UInt64, s String, g UInt8, v Array(Float32), w Array(Float32)"
        db.sql(f"CREATE TABLE t ({columns}) ENGINE = MergeTree ORDER BY id")
        db.sql(
            "INSERT INTO t SELECT number, toString(number), number % 7, arrayMap(k -> intHash32(number * 4 + k) % 6, "
            "range(4)), arrayMap(k -> intHash32(number * 9 + k) % 5, range(4)) FROM numbers(3000)"
        )
        db.sql("CREATE DATABASE o; CREATE TABLE o.t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO o.t SELECT id + 100000, w FROM t")
        db.sql("CREATE TABLE u (id UInt64) ENGINE = Memory; INSERT INTO u SELECT number * 2 FROM numbers(100)")
        yield db


@pytest.mark.parametrize("statement", STATEMENTS)
def test_it_means_what_clickhouse_takes_it_to_mean(db: clipql.Database, statement: str) -> None:
    found = db.sql(statement)
    assert found.rows == db.sql(statement + " SETTINGS vector_plan = 0").rows
    assert len(found) > 0


def test_rows_without_a_partner_get_no_distance(db: clipql.Database) -> None:
    with pytest.raises(clipql.ClipqlError):
        db.sql("SELECT count() FROM (SELECT number * 3 AS id FROM numbers(2000)) AS x LEFT JOIN t ON x.id = t.id "
               "WHERE L2Distance(t.v, [1, 1, 1, 1]) < 7")  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE t WHERE id = 3",
        "DROP TABLE t garbage",
        "DROP TABLE t IF EXISTS",
        "TRUNCATE TABLE t x",
        "ALTER TABLE t",
    ],
)
def test_a_statement_with_something_behind_it_does_nothing(db: clipql.Database, statement: str) -> None:
    with pytest.raises(clipql.ClipqlError):
        db.sql(statement)
    assert db.sql("SELECT count() FROM t").rows == [(3000,)]


def test_a_temporary_table_hides_a_table(db: clipql.Database) -> None:
    db.sql("CREATE TEMPORARY TABLE t (id UInt64, v Array(Float32))")
    db.sql("INSERT INTO t VALUES (77, [9, 9])")
    assert db.sql("SELECT id, v FROM t").rows == [(77, [9.0, 9.0])]
    db.sql("DROP TEMPORARY TABLE t")
    assert db.sql("SELECT count() FROM t").rows == [(3000,)]


@pytest.mark.parametrize("where", ["id < 5; DROP TABLE t", "id < 9) OR (1", "id < (9", "s = 'x", "id <"])
def test_a_condition_of_search_is_one_condition(db: clipql.Database, where: str) -> None:
    with pytest.raises(clipql.ClipqlError):
        db.search("t", vector=[1, 1, 1, 1], k=2, column="v", where=where)
    assert db.sql("SELECT count() FROM t").rows == [(3000,)]


def test_a_comment_in_a_condition_of_search_ends_with_it(db: clipql.Database) -> None:
    assert len(db.search("t", vector=[1, 1, 1, 1], k=2, column="v", where="id < 9 -- mine")) == 2


def test_a_format_before_settings_is_a_format(db: clipql.Database) -> None:
    assert db.sql("SELECT 1 AS a FORMAT CSV SETTINGS max_threads = 1").text == "1\n"


def test_an_unfinished_statement_is_an_error_of_clickhouses(db: clipql.Database) -> None:
    with pytest.raises(clipql.errors.QueryError):
        db.sql("SELECT 1 EXCEPT (")
