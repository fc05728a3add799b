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
