"""Nearest-neighbour joins: planned as one batch, they give what ClickHouse gives by comparing every pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.index.batch import nearest_each
from clipql.storage.vectors import metrics
from clipql.storage.vectors.metrics import Metric

ROWS, DIMENSION = 700, 8


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    rng = np.random.default_rng(11)
    with clipql.connect(tmp_path_factory.mktemp("joins") / "db") as opened:
        for name, rows in (("pictures", ROWS), ("words", 40)):
            opened.sql(f"CREATE TABLE {name} (id UInt32, kind String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
            vectors = rng.standard_normal((rows, DIMENSION)).astype(np.float32)
            values = ", ".join(f"({i}, '{'ab'[i % 2]}', {v.tolist()})" for i, v in enumerate(vectors))
            opened.sql(f"INSERT INTO {name} VALUES {values}")
        opened.sql("DELETE FROM pictures WHERE id % 10 = 3")
        opened.sql("DELETE FROM words WHERE id = 5")
        yield opened


BOTH = "FROM words AS w, pictures AS p"
JOINS = [
    "SELECT w.id, p.id AS found FROM words AS w CROSS JOIN pictures AS p ORDER BY L2Distance(p.v, w.v) LIMIT 1 BY w.id",
    "SELECT words.id, pictures.id AS found, L2Distance(words.v, pictures.v) AS d "  # noqa: ISC004
    "FROM words, pictures ORDER BY d LIMIT 3 BY words.id",
    "SELECT w.id, p.id AS found FROM pictures p CROSS JOIN words w ORDER BY cosineDistance(p.v, w.v) LIMIT 2 BY w.id",
    f"SELECT w.id, p.id AS found {BOTH} ORDER BY dotProduct(w.v, p.v) DESC LIMIT 2 BY w.id",
    f"SELECT w.id, p.id AS found {BOTH} WHERE w.kind = 'a' AND p.id > 100 "  # noqa: ISC004
    "ORDER BY L2SquaredDistance(p.v, w.v) LIMIT 2 BY w.id",
    "SELECT a.id, b.id AS found FROM pictures a, pictures b WHERE a.id != b.id AND a.id < 50 "  # noqa: ISC004
    "ORDER BY L2Distance(a.v, b.v) LIMIT 1 BY a.id",
    f"SELECT w.id, p.id AS found {BOTH} WHERE w.kind != p.kind ORDER BY L2Distance(p.v, w.v) LIMIT 4 BY w.id",
    f"SELECT count() AS id, sum(found) AS found FROM (SELECT p.id AS found {BOTH} "  # noqa: ISC004
    "WHERE p.kind = {kind:String} ORDER BY L2Distance(p.v, w.v) LIMIT 1 BY w.id)",
    f"SELECT w.id, p.id AS found {BOTH} WHERE p.id > 9999 ORDER BY L2Distance(p.v, w.v) LIMIT 2 BY w.id",  # to none
    f"SELECT w.id, p.id AS found {BOTH} WHERE w.id > 9999 ORDER BY L2Distance(p.v, w.v) LIMIT 2 BY w.id",  # of none
    f"SELECT w.id, argMin(p.id, L2Distance(p.v, w.v)) AS found {BOTH} WHERE p.id > 9999 GROUP BY w.id",
]


def as_sets(found: Any) -> list[tuple[Any, ...]]:
    """The pairs, which stand in the first two columns."""
    return sorted(row[:2] for row in found.rows)


@pytest.mark.parametrize("statement", JOINS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_planned_join_gives_the_pairs_of_clickhouse(db: clipql.Database, statement: str, indexed: bool) -> None:
    if indexed and db.registry.catalog.table("default", "pictures").index("ix") is None:  # type: ignore[union-attr]
        db.sql("ALTER TABLE pictures ADD INDEX ix v TYPE ivf('L2Distance')")
        db.sql("ALTER TABLE pictures MATERIALIZE INDEX ix")
    planned = db.sql(statement + " SETTINGS recall = 1" * indexed, kind="a")
    passed = db.sql(statement + " SETTINGS vector_plan = 0", kind="a")
    assert [s.kind for s in planned.stats.searches] == ["nearest join"]
    assert not passed.stats.searches
    assert as_sets(planned) == as_sets(passed)
    assert planned.columns == passed.columns
    assert planned.arrow().schema.types == passed.arrow().schema.types


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT w.id, p.id AS found FROM words w, pictures p ORDER BY L2Distance(p.v, w.v) DESC LIMIT 1 BY w.id",
        "SELECT w.id, p.id AS found FROM words w JOIN pictures p ON w.id = p.id ORDER BY L2Distance(p.v, w.v) "  # noqa: ISC004
        "LIMIT 1 BY w.id",
        "SELECT w.id, p.id AS found FROM words w, pictures p ORDER BY L2Distance(p.v, w.v) LIMIT 9",
        "SELECT w.id, any(p.id) AS found FROM words w, pictures p GROUP BY w.id ORDER BY w.id",
    ],
)
def test_any_other_join_is_left_to_clickhouse(db: clipql.Database, statement: str) -> None:
    planned = db.sql(statement)
    assert "nearest join" not in [s.kind for s in planned.stats.searches]
    assert as_sets(planned) == as_sets(db.sql(statement + " SETTINGS vector_plan = 0"))


GROUPS = [
    "SELECT p.id, argMin(w.id, cosineDistance(p.v, w.v)) AS found FROM pictures AS p, words AS w GROUP BY p.id",
    "SELECT p.id AS i, argMin(w.kind, L2Distance(p.v, w.v)), min(L2Distance(p.v, w.v)) AS d, any(p.kind) "  # noqa: ISC004
    "FROM pictures p CROSS JOIN words w WHERE w.id > 3 GROUP BY p.id ORDER BY p.id LIMIT 50",
    "SELECT p.id, p.kind, argMax(w.id, dotProduct(w.v, p.v)) AS found FROM words w JOIN pictures p ON 1 = 1 "  # noqa: ISC004
    "GROUP BY p.id, p.kind",
    "SELECT p.kind, argMin(w.id, L2Distance(p.v, w.v)) AS found, 1 - min(L2Distance(p.v, w.v)) AS d "  # noqa: ISC004
    "FROM pictures p INNER JOIN words w ON true WHERE p.id != w.id GROUP BY p.kind",
    "SELECT found, count() FROM (SELECT p.id, argMin(w.id, cosineDistance(p.v, w.v)) AS found "  # noqa: ISC004
    "FROM pictures p, words w GROUP BY p.id) GROUP BY found",
]
OTHER_GROUPS = [
    "SELECT p.id, argMin(w.id, cosineDistance(p.v, w.v)) AS found, count() FROM pictures p, words w GROUP BY p.id",
    "SELECT p.id, argMax(w.id, cosineDistance(p.v, w.v)) AS found FROM pictures p, words w GROUP BY p.id",
    "SELECT w.id, any(p.id) > 0, min(cosineDistance(p.v, w.v)) AS d FROM pictures p, words w GROUP BY w.id",
    "SELECT p.kind, w.kind, min(cosineDistance(p.v, w.v)) AS d FROM pictures p, words w GROUP BY p.kind, w.kind",
    "SELECT p.id, argMin(w.id, cosineDistance(p.v, w.v)) AS found FROM pictures p, words w GROUP BY p.id "  # noqa: ISC004
    "HAVING count() > 3",
]


@pytest.mark.parametrize("statement", [*GROUPS, *OTHER_GROUPS])
def test_the_nearest_of_each_group_is_that_of_clickhouse(db: clipql.Database, statement: str) -> None:
    planned, passed = db.sql(statement + " SETTINGS recall = 1"), db.sql(statement + " SETTINGS vector_plan = 0")
    assert ([s.kind for s in planned.stats.searches] == ["nearest join"]) == (statement in GROUPS)
    assert planned.arrow().schema == passed.arrow().schema
    rows = zip(sorted(planned.rows), sorted(passed.rows), strict=True)
    assert all(
        a == (pytest.approx(b, rel=1e-5) if isinstance(b, float) else b)
        for x, y in rows
        for a, b in zip(x, y, strict=True)
    )


UNLIKE_A_JOIN = "FROM words AS w CROSS JOIN pictures AS p WHERE w.id < 3 ORDER BY L2Distance(p.v, w.v) LIMIT 2 BY w.id"


@pytest.mark.parametrize(
    "items",
    [
        "w.id, p.id, count() OVER (PARTITION BY w.id) AS c",
        "w.id, p.id, sum(p.id) OVER () AS s",
        "w.id, p.id, arrayJoin(if(p.id % 2 = 0, [1, 2], [])) AS g",
    ],
)
def test_what_sees_more_than_the_found_pairs_is_left_to_clickhouse(db: clipql.Database, items: str) -> None:
    statement = f"SELECT {items} {UNLIKE_A_JOIN}"
    assert sorted(db.sql(statement).rows) == sorted(db.sql(statement + " SETTINGS vector_plan = 0").rows)


def test_two_joins_in_one_statement_keep_their_pairs_apart(db: clipql.Database) -> None:
    one = "SELECT w.id AS x, p.id AS y FROM words w, pictures p WHERE {} ORDER BY L2Distance(p.v, w.v) LIMIT {} BY w.id"
    parts = one.format("w.id < 2", 2), one.format("w.id > 37 AND p.id > 200", 3)
    both = f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY x, y"
    found = db.sql(both)
    assert [s.kind for s in found.stats.searches] == ["nearest join"] * 2
    assert found.rows == db.sql(both + " SETTINGS vector_plan = 0").rows
    assert len(found) == 10


def test_settings_hold_for_the_conditions_of_a_join(db: clipql.Database) -> None:
    statement = (
        "SELECT w.id, p.id FROM words w, pictures p WHERE nullIf(p.id, 7) IN (NULL, 4, 5) AND w.id < 2 "
        "ORDER BY L2Distance(p.v, w.v) LIMIT 3 BY w.id SETTINGS transform_null_in = 1"
    )
    assert sorted(db.sql(statement).rows) == sorted(db.sql(statement + ", vector_plan = 0").rows)
    assert len(db.sql(statement)) == 6


def test_explain_tells_of_a_nearest_join(db: clipql.Database) -> None:
    lines = [row[0] for row in db.sql("EXPLAIN " + JOINS[4]).rows]
    assert lines[0] == "Nearest-neighbour join (n = 2)"
    assert "    filter first: (p.id > 100)" in lines


@pytest.mark.parametrize("metric", list(Metric))
def test_many_queries_at_once_give_what_each_would(db: clipql.Database, metric: Metric) -> None:
    table = db.registry.catalog.table("default", "pictures")
    assert table is not None
    store = db.registry.store(table, "v")
    queries = np.random.default_rng(2).standard_normal((30, DIMENSION)).astype(np.float32)
    queries[3] = 0
    among = np.random.default_rng(3).random(ROWS) < 0.4
    rows, distances = nearest_each(store, metric, queries, 6, among)
    everything = store.take(np.arange(ROWS))
    for i in [*range(3), *range(4, 30)]:
        exact = metrics.distances(metric, everything, queries[i])
        keys = np.where(among, -exact if metric.larger_is_nearer else exact, np.inf)
        expected = np.argsort(keys, kind="stable")[:6]
        assert rows[i].tolist() == expected.tolist()
        assert np.allclose(distances[i], exact[expected], rtol=1e-12)


def test_fewer_rows_than_asked_for_are_marked(db: clipql.Database) -> None:
    table = db.registry.catalog.table("default", "words")
    assert table is not None
    among = np.zeros(40, np.bool_)
    among[[7, 9]] = True
    rows, distances = nearest_each(
        db.registry.store(table, "v"), Metric.L2, np.ones((1, DIMENSION), np.float32), 4, among
    )
    assert sorted(rows[0].tolist()) == [-1, -1, 7, 9]
    assert np.isinf(distances[0, 2:]).all()


Q = "{Q:Array(Array(Float32))}"
GIVEN = [
    f"(SELECT arrayJoin(arrayEnumerate({Q})) AS n, {Q}[n] AS v) AS q",
    f"(SELECT number AS n, {Q}[number + 1] AS v FROM numbers(length({Q}))) q",
    f"(SELECT n, v, toString(n) AS kind FROM (SELECT {Q} AS all) ARRAY JOIN all AS v, arrayEnumerate(all) AS n) AS q",
    f"(SELECT t.1 AS n, t.2 AS v, nullIf(n, 2) AS o FROM (SELECT arrayJoin(arrayZip(range(length({Q})), {Q})) AS t)) q",
    "(SELECT id AS n, v FROM words WHERE id < 7) AS q",
    f"(SELECT rowNumberInAllBlocks() AS n, v FROM (SELECT v FROM words ORDER BY L2Distance(v, {Q}[1]) LIMIT 5)) AS q",
    "given AS q",
]
ASKED = [
    "SELECT q.n AS n, p.id AS found {} CROSS JOIN pictures AS p ORDER BY L2Distance(p.v, q.v) LIMIT 3 BY q.n",
    "SELECT q.n, p.id, cosineDistance(q.v, p.v) d {}, pictures p WHERE p.kind = 'a' ORDER BY q.n, d LIMIT 2 BY q.n",
    "SELECT q.n, p.id, length(q.v) {}, pictures p WHERE q.n != 2 ORDER BY dotProduct(p.v, q.v) DESC LIMIT 2 BY q.n",
    "SELECT q.n, p.id {}, pictures p WHERE p.id > q.n * 100 ORDER BY q.n, L2SquaredDistance(p.v, q.v) LIMIT 2 BY q.n",
]


@pytest.mark.parametrize("asked", ASKED)
def test_query_vectors_in_the_statement_are_joined_as_clickhouse_joins_them(db: clipql.Database, asked: str) -> None:
    vectors = np.random.default_rng(5).standard_normal((9, DIMENSION)).astype(np.float32)
    db.sql("CREATE TABLE IF NOT EXISTS given (n UInt8, name String, v Array(Float32)) ENGINE = Memory")
    db.sql(f"INSERT INTO given SELECT n, 'a', v {GIVEN[0].join(['FROM ', ''])}", Q=vectors)
    for given in GIVEN:
        statement = asked.format(f"FROM {given}")
        planned = db.sql(statement + " SETTINGS recall = 1", Q=vectors)
        passed = db.sql(statement + " SETTINGS vector_plan = 0", Q=vectors)
        assert "nearest join" in [s.kind for s in planned.stats.searches], statement
        assert as_sets(planned) == as_sets(passed), statement
        assert len(planned) > 0
        assert planned.arrow().schema == passed.arrow().schema
        assert "Nearest-neighbour join (n = " in str(db.sql(f"EXPLAIN {statement}", Q=vectors).rows)
    db.sql("DROP TABLE given")
    cte = f"WITH q AS {GIVEN[0].removesuffix(' AS q')} " + asked.format("FROM q")
    assert as_sets(db.sql(cte, Q=vectors)) == as_sets(db.sql(f"{cte} SETTINGS vector_plan = 0", Q=vectors))
    statement = asked.format(f"FROM {GIVEN[1]}")
    assert db.sql(statement, Q=vectors).rows == db.sql(statement, Q=vectors.tolist()).rows
    assert db.sql(statement, Q=vectors).rows == db.sql(statement, Q=str(vectors.tolist())).rows
    assert db.sql(asked.format(f"FROM {GIVEN[0]}"), Q=np.empty((0, DIMENSION), np.float32)).rows == []


def test_query_vectors_that_are_odd_are_left_to_clickhouse(db: clipql.Database) -> None:
    asked = f"{ASKED[0]} SETTINGS recall = 1"
    for vectors in ([[1.0] * DIMENSION, [1.0]], [[float("nan")] * DIMENSION], [[1e39] * DIMENSION]):
        for given in GIVEN[:2]:
            said = []
            for more in ("", ", vector_plan = 0"):
                try:
                    said.append(repr(as_sets(db.sql(asked.format(f"FROM {given}") + more, Q=vectors))))
                except clipql.errors.QueryError as error:
                    said.append(str(error.code))
            assert said[0] == said[1], (vectors, given)
    dated = "FROM (SELECT 1 AS n, now() AS at, range(8)::Array(Float32) AS v) AS q"
    assert "Nearest" not in str(db.sql(f"EXPLAIN {asked.format(dated)}").rows)
