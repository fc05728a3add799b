"""Distance functions in every letter case: each statement gives what it gives in ClickHouse's own spelling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.syntax.spelling import FUNCTIONS, respelled
from tests.cases import some

Q = "[1, 1, 1, 1]"
# with {L2}, {COS} and {DOT} in their places
STATEMENTS = (
    f"SELECT id, {{L2}}(v, {Q}) AS d FROM t ORDER BY d, id LIMIT 5",
    f"SELECT id FROM t ORDER BY {{L2}} (v, {Q}), id LIMIT 5",
    f"SELECT id FROM t ORDER BY {{DOT}}({Q}, v) DESC, id LIMIT 5",
    f"SELECT count() FROM t WHERE {{L2}}(v, {Q}) < 5",
    f"SELECT round(avg({{COS}}(v, {Q})), 4), g FROM t GROUP BY g ORDER BY g",
    f"SELECT count() FROM (SELECT id FROM t WHERE {{COS}}(v, {Q}) < 0.2 ORDER BY {{L2}}(v, {Q}), id LIMIT 50)",
    f"WITH near AS (SELECT id, {{L2}}(v, {Q}) AS d FROM t ORDER BY d, id LIMIT 9) SELECT sum(id), max(d) FROM near",
    "SELECT id FROM t ORDER BY {L2}(v, (SELECT v FROM t WHERE id = 7)), id LIMIT 5",
    "SELECT a.id, b.id FROM t AS a CROSS JOIN t AS b WHERE a.id < 3 ORDER BY {L2}(a.v, b.v), b.id LIMIT 2 BY a.id",
    f"SELECT arrayMap(x -> {{L2}}(x, {Q}), [v]) AS d FROM t ORDER BY id LIMIT 3",
    f"SELECT {{L2}}([1, 2, 3, 4], {Q}), {{COS}}([1, 2, 3, 4], {Q}), {{DOT}}([1, 2, 3, 4], {Q})",
    f"SELECT 1 UNION ALL SELECT {{L2}}(v, {Q}) > 0 FROM t WHERE id = 3",
    "SELECT 'l2distance(' AS l2distance, `l2distance` || ')' FROM (SELECT 'cosinedistance(a, b)' AS l2distance)",
    f"SELECT id FROM view(SELECT id, v FROM t) ORDER BY {{L2}}(v, {Q}), id LIMIT 4",
)
CASES = (str.lower, str.upper, lambda name: name[0].lower() + name[1:], str.title)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("case") / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, g UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql(
            "INSERT INTO t SELECT number, number % 3, arrayMap(k -> intHash32(number * 4 + k) % 9 + 1, range(4)) "
            "FROM numbers(2000)"
        )
        yield db


def spelled(statement: str, case: object) -> str:
    """The statement with its functions in a letter case; case None is ClickHouse's."""
    names = {"{L2}": "L2Distance", "{COS}": "cosineDistance", "{DOT}": "dotProduct"}
    for place, name in names.items():
        statement = statement.replace(place, case(name) if callable(case) else name)
    return statement


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("settings", ["", " SETTINGS vector_plan = 0"])
def test_a_distance_is_known_in_every_letter_case(db: clipql.Database, statement: str, settings: str) -> None:
    expected = db.sql(spelled(statement, None) + " SETTINGS vector_plan = 0").arrow()
    for case in some(CASES, 2):
        assert db.sql(spelled(statement, case) + settings).arrow().to_pylist() == expected.to_pylist()


def test_every_distance_and_norm_is_known(db: clipql.Database) -> None:
    for name in FUNCTIONS:
        given = ["[3, 4]", "[1, 1]"] if name.endswith(("Distance", "Product")) else ["[3, 4]"]
        called = f"({', '.join(given + (['2'] if name.startswith('Lp') else []))})"
        if "Normalize" in name:
            called = called.replace("[", "(").replace("]", ")")  # of tuples
        assert db.sql(f"SELECT {name.lower()}{called}").rows == db.sql(f"SELECT {name}{called}").rows, name


def test_it_is_planned(db: clipql.Database) -> None:
    found = db.sql(f"SELECT id FROM t ORDER BY l2distance(v, {Q}) LIMIT 3")
    assert [step.kind for step in found.stats.searches] == ["top-k"]
    explained = db.sql(f"EXPLAIN SELECT id FROM t ORDER BY l2distance(v, {Q}) LIMIT 3").rows
    assert explained[0][0] == "Top-k search (k = 3)"


def test_statements_that_write_take_them_too(db: clipql.Database) -> None:
    db.sql(f"CREATE VIEW far AS SELECT id, v FROM t WHERE l2distance(v, {Q}) > 9")
    assert "L2Distance(v" in db.sql("SHOW CREATE VIEW far").rows[0][0]
    ids = db.sql(f"SELECT id FROM t WHERE L2Distance(v, {Q}) > 9 ORDER BY id SETTINGS vector_plan = 0").rows
    assert db.sql(f"SELECT id FROM far WHERE COSINEDISTANCE(v, {Q}) < 3 ORDER BY id").rows == ids

    db.sql("CREATE TABLE w (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO w SELECT id, v FROM t WHERE L2DISTANCE(v, {Q}) > 9")
    assert db.sql("SELECT id FROM w ORDER BY id").rows == ids
    db.sql("CREATE TABLE p (id UInt64, d Float64) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO p SELECT id, l2distance(v, {Q}) FROM t WHERE id < 10")
    db.sql("INSERT INTO p VALUES (100, l2distance([3, 4], [0, 0]))")
    expected = db.sql(f"SELECT id, L2Distance(v, {Q}) FROM t WHERE id < 10 ORDER BY id SETTINGS vector_plan = 0").rows
    assert db.sql("SELECT * FROM p ORDER BY id").rows == [*expected, (100, 5.0)]

    db.sql("ALTER TABLE w DELETE WHERE cosinedistance(v, [1, 1, 1, 1]) < 0.1")
    left = f"SELECT id FROM t WHERE L2Distance(v, {Q}) > 9 AND NOT cosineDistance(v, {Q}) < 0.1 ORDER BY id"
    assert db.sql("SELECT id FROM w ORDER BY id").rows == db.sql(f"{left} SETTINGS vector_plan = 0").rows
    db.sql(f"DELETE FROM w WHERE L2distance(v, {Q}) > 10")
    left = left.replace("ORDER BY", f"AND L2Distance(v, {Q}) <= 10 ORDER BY")
    assert db.sql("SELECT id FROM w ORDER BY id").rows == db.sql(f"{left} SETTINGS vector_plan = 0").rows
    db.sql("DROP VIEW far; DROP TABLE w; DROP TABLE p")


def test_indexes_and_search_take_a_distance_in_any_letter_case(db: clipql.Database) -> None:
    db.sql("ALTER TABLE t ADD INDEX near v TYPE flat('l2distance')")
    asked = np.ones(4, np.float32)
    found = db.search("t", vector=asked, column="v", distance="L2DISTANCE", columns=["id"], k=3).rows
    assert found == db.search("t", vector=asked, column="v", distance="L2Distance", columns=["id"], k=3).rows
    db.sql("ALTER TABLE t DROP INDEX near")


def test_a_table_or_a_column_of_such_a_name_keeps_it(db: clipql.Database) -> None:
    db.sql("CREATE TABLE l2distance (cosinedistance Float32, `L2DISTANCE` Float64) ENGINE = MergeTree ORDER BY tuple()")
    db.sql("INSERT INTO l2distance (cosinedistance, L2DISTANCE) VALUES (1, 2)")
    db.sql("INSERT INTO default.l2distance (cosinedistance, L2DISTANCE) SELECT 3, 4")
    found = db.sql("SELECT cosinedistance, L2DISTANCE FROM l2distance ORDER BY 1")
    assert (found.columns, found.rows) == (("cosinedistance", "L2DISTANCE"), [(1.0, 2.0), (3.0, 4.0)])
    db.sql("DROP TABLE l2distance")


def test_a_function_that_a_user_made_means_what_it_says(db: clipql.Database) -> None:
    db.sql("CREATE FUNCTION l2distance AS (a, b) -> 42")
    assert db.sql(f"SELECT l2distance(v, {Q}), L2DISTANCE([3, 4], [0, 0]) FROM t LIMIT 1").rows == [(42, 5.0)]
    db.sql("DROP FUNCTION l2distance")


def test_only_letters_of_calls_change() -> None:
    assert respelled("select L2DISTANCE /* l2distance( */ ('l2distance(a)', x)") == (
        "select L2Distance /* l2distance( */ ('l2distance(a)', x)"
    )
    for text in ("CREATE TABLE a.l2distance (x Int8)", "SELECT `l2distance`(1)", "INSERT INTO l2distance(a) VALUES (1)",
                 "ALTER TABLE t ADD INDEX l2distance (a) TYPE minmax", "SELECT l2distance -- (\n"):  # fmt: skip
        assert respelled(text) == text
