"""One statement for many query vectors gives for each what it gives for that vector alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.encode.models import BUNDLED
from clipql.errors import ClipqlError, QueryError, VectorError
from clipql.index.cores import threads
from clipql.index.ivf import many
from clipql.tables import index_entries

ROWS, DIMENSION, QUERIES = 6_000, 16, 40
SELECT = "SELECT id, name, L2Distance(v, {q:Array(Float32)}) AS d FROM t"


def vectors(seed: int, n: int) -> np.ndarray:
    """Clustered vectors, every tenth of them doubled, so that distances tie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIMENSION))
    x = (centres[rng.integers(0, 40, n)] + 0.6 * rng.standard_normal((n, DIMENSION))).astype(np.float32)
    x[1::10] = x[::10][: len(x[1::10])]
    return x


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    place = tmp_path_factory.mktemp("batches") / "db"
    with pytest.MonkeyPatch.context() as patch, clipql.connect(place, model=BUNDLED) as made:
        patch.setattr(index_entries, "UNCOVERED", 4_000)  # from so many rows on, an INSERT builds an index
        made.sql(
            "CREATE TABLE t (id UInt32, name String, k UInt8, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) "
            "ENGINE = MergeTree ORDER BY id"
        )
        rows = ",".join(f"({i},'row {i}',{i % 100},{x.tolist()})" for i, x in enumerate(vectors(1, ROWS)))
        made.sql(f"INSERT INTO t VALUES {rows}")
        made.wait_for_indexes()
        made.sql("DELETE FROM t WHERE id % 7 = 3")
        assert made.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
        yield made


@pytest.fixture(scope="module")
def asked() -> np.ndarray:
    return vectors(2, QUERIES)


def alone(db: clipql.Database, sql: str, given: list[dict[str, Any]]) -> list[list[tuple[Any, ...]]]:
    """The rows for each set of parameters, asked one by one."""
    return [db.sql(sql, **one).rows for one in given]


@pytest.mark.parametrize(
    "tail",
    [
        "ORDER BY d LIMIT 10",
        "ORDER BY d LIMIT 11",
        "ORDER BY d LIMIT 4 OFFSET 6",
        "ORDER BY d LIMIT 60",
        "WHERE k > 20 ORDER BY d LIMIT 10",
        "WHERE k = 5 ORDER BY d LIMIT 10",
        "WHERE id < 12 ORDER BY d LIMIT 10",
        "ORDER BY d LIMIT 10 SETTINGS recall = 0.8",
        "ORDER BY d LIMIT 10 SETTINGS recall = 1",
        "ORDER BY d LIMIT 10 SETTINGS vector_index = 0",
        "WHERE d < 2 ORDER BY id LIMIT 5",
    ],
)
def test_each_answer_is_that_of_its_vector_alone(db: clipql.Database, asked: np.ndarray, tail: str) -> None:
    given = [{"q": q} for q in asked]
    found = db.sql_many(f"{SELECT} {tail}", given)
    assert [r.rows for r in found] == alone(db, f"{SELECT} {tail}", given)
    assert {tuple(r.columns) for r in found} == {("id", "name", "d")}


def test_a_batch_by_an_index_is_searched_by_it(db: clipql.Database, asked: np.ndarray) -> None:
    found = db.sql_many(f"{SELECT} ORDER BY d LIMIT 10", [{"q": q} for q in asked])
    assert {(s.kind, s.cost.codes_scanned > 0) for r in found for s in r.stats.searches} == {("top-k", True)}


def test_an_index_is_asked_for_many_in_one_call(
    db: clipql.Database, asked: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, search_each = list[int](), many.search_each

    def counted(*given: Any) -> None:
        calls.extend(len(each.query) for each in given if isinstance(each, many.Asked))
        search_each(*given)

    monkeypatch.setattr(many, "search_each", counted)
    found = db.sql_many(f"{SELECT} ORDER BY d LIMIT 10", [{"q": q} for q in asked])
    assert len(found) == QUERIES
    assert len(calls) <= threads()
    assert sum(calls) == QUERIES - 1  # the first is asked alone, as any statement


def test_rows_that_came_after_the_index_are_found(db: clipql.Database, asked: np.ndarray) -> None:
    new = asked[2:10]
    values = ",".join(f"({ROWS + i},'new {i}',1,{q.tolist()})" for i, q in enumerate(new))
    db.sql(f"INSERT INTO t VALUES {values}")
    found = db.sql_many(f"{SELECT} ORDER BY d LIMIT 3", [{"q": q} for q in new])
    db.sql(f"DELETE FROM t WHERE id >= {ROWS}")
    assert [r.rows[0][1] for r in found] == [f"new {i}" for i in range(len(new))]


@pytest.mark.parametrize("distance", ["cosineDistance(v, {q:Array(Float32)})", "-dotProduct(v, {q:Array(Float32)})"])
def test_without_an_index_all_are_compared_in_one_pass(db: clipql.Database, asked: np.ndarray, distance: str) -> None:
    given = [{"q": q} for q in (*asked[:30], np.zeros(DIMENSION, np.float32), *(asked[:2] * 1e30))]
    for where in ("", "WHERE k > 20"):
        sql = f"SELECT id, {distance} AS d FROM t {where} ORDER BY d LIMIT 10 SETTINGS vector_index = 0"
        found = db.sql_many(sql, given)
        assert repr([r.rows for r in found]) == repr(alone(db, sql, given))  # NaN is itself
        assert {s.cost.rows_rescored < 100 for r in found[1:30] for s in r.stats.searches} == {True}


def test_values_of_other_kinds_give_what_they_give_alone(db: clipql.Database, asked: np.ndarray) -> None:
    sql = f"{SELECT} WHERE k > {{least:UInt8}} ORDER BY d LIMIT {{most:UInt8}}"
    given = [{"q": asked[i].tolist(), "least": 3 * i, "most": 1 + i} for i in range(8)]
    assert [r.rows for r in db.sql_many(sql, given)] == alone(db, sql, given)
    wide = SELECT.replace("Float32", "Float64") + " ORDER BY d LIMIT 5"
    given = [{"q": q.astype(np.float64) / 3} for q in asked[:20]]
    assert [r.rows for r in db.sql_many(wide, given)] == alone(db, wide, given)


def test_a_statement_that_searches_nothing_is_run_for_each(db: clipql.Database) -> None:
    found = db.sql_many("SELECT {a:UInt8} + 1 AS b", [{"a": 1}, {"a": 4}])
    assert [r.rows for r in found] == [[(2,)], [(5,)]]
    assert db.sql_many("SELECT 1", []) == []


@pytest.mark.parametrize(
    ("odd", "error"),
    [([1.0] * (DIMENSION + 1), VectorError), ([float("nan")] * DIMENSION, VectorError), ("x", QueryError)],
)
def test_one_vector_that_cannot_be_is_an_error(
    db: clipql.Database, asked: np.ndarray, odd: Any, error: type[ClipqlError]
) -> None:
    given: list[dict[str, Any]] = [{"q": q} for q in asked[:5]]
    given[3] = {"q": odd}
    with pytest.raises(error):
        db.sql_many(f"{SELECT} ORDER BY d LIMIT 10", given)


def test_a_search_for_many_vectors_is_many_searches(db: clipql.Database, asked: np.ndarray) -> None:
    options: dict[str, Any] = {"column": "v", "distance": "L2Distance", "k": 5, "where": "k < 50", "columns": ["name"]}
    found = db.search_many("t", vectors=asked[:50], **options)
    assert [r.rows for r in found] == [db.search("t", vector=q, **options).rows for q in asked[:50]]
    with pytest.raises(QueryError, match="give vectors, texts or images"):
        db.search_many("t", column="v")
    with pytest.raises(QueryError, match="vectors and texts"):
        db.search_many("t", vectors=asked, texts=["a"], column="v")


def test_texts_are_encoded_together_and_searched(db: clipql.Database) -> None:
    dimension = len(db.encoders.texts(["a dog"])[0])
    db.sql("CREATE TABLE words (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    words = ["a dog", "a cat", "the sea", "red fruit"]
    rows = ",".join(f"({i},{v.tolist()})" for i, v in enumerate(db.encoders.texts(words)))
    db.sql(f"INSERT INTO words VALUES {rows}")
    found = db.search_many("words", texts=words[::-1], column="v", k=1)
    assert dimension > 0
    assert [r.rows[0][0] for r in found] == [3, 2, 1, 0]
