"""Random tables, changes and queries: the planner, ClickHouse and a model in numpy agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clipql
from clipql.storage.vectors.metrics import Metric, distances
from tests.cases import examples

DIMENSION = 3
numbers = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 65504.0, 0.1])
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION)
rows = st.lists(st.tuples(st.integers(0, 9), vectors, vectors), max_size=12)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), rows),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.tuples(st.just("optimize"), st.just(0)),
        st.tuples(st.just("update"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=5,
)
conditions = st.sampled_from(["1", "k > 4", "k = 3 OR k = 7", "k < 0", "k IN (1, 2, 3) AND id % 2 = 0"])


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("properties") / "db") as db:
        yield db


def apply(db: clipql.Database, steps: list[tuple[str, object]]) -> list[tuple[int, int, list[float], list[float]]]:
    """Carry changes out in a fresh table and in a list of (id, k, a, b), which is returned."""
    db.sql("DROP TABLE IF EXISTS t")
    db.sql("CREATE TABLE t (id UInt32, k Int32, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY k")
    model: list[tuple[int, int, list[float], list[float]]] = []
    serial = 0
    for verb, what in steps:
        if verb == "insert" and what:
            new = [(serial + i, k, a, b) for i, (k, a, b) in enumerate(what)]  # type: ignore[arg-type, var-annotated]
            serial += len(new)
            model += new
            db.sql("INSERT INTO t VALUES " + ", ".join(f"({i}, {k}, {a}, {b})" for i, k, a, b in new))
        elif verb == "delete":
            model = [r for r in model if r[1] != what]
            db.sql(f"DELETE FROM t WHERE k = {what}")
        elif verb == "optimize":
            db.sql("OPTIMIZE TABLE t FINAL")
        elif verb == "update":
            model = [(i, 4 if k == what else k, a, b) for i, k, a, b in model]
            db.sql(f"ALTER TABLE t UPDATE k = 4 WHERE k = {what}")
    return model


def holds(condition: str, row: tuple[int, int, list[float], list[float]]) -> bool:
    text = condition.replace(" = ", " == ").replace("OR", "or").replace("AND", "and").replace("IN", "in")
    return bool(eval(text, {"k": row[1], "id": row[0]}))  # the conditions above, in Python


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(changes, vectors, st.sampled_from(list(Metric)), st.sampled_from("ab"), conditions,
       st.integers(1, 8), st.integers(0, 4), st.booleans())  # fmt: skip
def test_a_search_gives_the_nearest_rows_whatever_happened_to_the_table(
    db: clipql.Database, steps: list[tuple[str, object]], query: list[float], metric: Metric, column: str,
    condition: str, limit: int, offset: int, descending: bool,
) -> None:  # fmt: skip
    model = [r for r in apply(db, steps) if holds(condition, r)]
    way = "DESC" if descending else "ASC"
    statement = (
        f"SELECT id, {metric.value}({column}, {{q:Array(Float64)}}) AS d FROM t WHERE {condition} "
        f"ORDER BY d {way}, id LIMIT {limit} OFFSET {offset}"
    )
    found = db.sql(statement, q=query)
    passed = db.sql(statement + " SETTINGS vector_plan = 0", q=query)

    x = np.array([r[2 if column == "a" else 3] for r in model], np.float32).reshape(-1, DIMENSION)
    d = distances(metric, x, np.array(query))
    key = np.where(np.isnan(d), np.inf, -d if descending else d)
    best = np.sort(key)[offset : offset + limit]
    assert len(found) == len(best)
    got = np.array([np.nan if v is None else v for _, v in found.rows], np.float64)
    ours = np.where(np.isnan(got), np.inf, -got if descending else got)
    np.testing.assert_allclose(ours, best, rtol=1e-5, atol=1e-5)
    assert {i for i, _ in found.rows} <= {r[0] for r in model}
    assert len({i for i, _ in found.rows}) == len(found)
    theirs = np.array([v for _, v in passed.rows], np.float64)
    np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-5)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
@given(changes, vectors, st.sampled_from(list(Metric)), st.floats(-2, 8, width=32))
def test_a_range_gives_every_row_within_it(
    db: clipql.Database, steps: list[tuple[str, object]], query: list[float], metric: Metric, radius: float
) -> None:
    model = apply(db, steps)
    x = np.array([r[2] for r in model], np.float32).reshape(-1, DIMENSION)
    d = distances(metric, x, np.array(query))
    near = np.isclose(d, radius, rtol=1e-5, atol=1e-4)  # at the edge, rounding may decide either way
    expected = {r[0] for r, v, edge in zip(model, d, near, strict=True) if v < radius and not edge}
    allowed = expected | {r[0] for r, edge in zip(model, near, strict=True) if edge}
    statement = f"SELECT id FROM t WHERE {metric.value}(a, {{q:Array(Float64)}}) < {radius!r}"
    found = {i for (i,) in db.sql(statement, q=query).rows}
    assert expected <= found <= allowed


@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
@given(changes)
def test_every_row_keeps_its_own_vectors(db: clipql.Database, steps: list[tuple[str, object]]) -> None:
    model = apply(db, steps)
    found = {i: (k, a, b) for i, k, a, b in db.sql("SELECT id, k, a, b FROM t").rows}
    assert found == {i: (k, np.float32(a).tolist(), np.float32(b).tolist()) for i, k, a, b in model}
