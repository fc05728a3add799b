"""connectedComponents: what hangs together by pairs, told by union-find as a plain search of the graph tells it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import clipql


def searched(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The components by a search of the graph."""
    beside: dict[Any, set[Any]] = {}
    for a, b in pairs:
        beside.setdefault(a, set()).add(b)
        beside.setdefault(b, set()).add(a)
    found: dict[Any, Any] = {}
    for first in sorted(beside):
        todo = [] if first in found else [first]
        while todo:
            one = todo.pop()
            if one not in found:
                found[one] = first
                todo += beside[one]
    return sorted(found.items())


@pytest.mark.parametrize("kind", ["UInt64", "Int32", "String"])
@pytest.mark.parametrize("edges", [1, 30, 400])
def test_components_are_those_of_the_graph(db: clipql.Database, kind: str, edges: int) -> None:
    ends = np.random.default_rng(edges).integers(0, 200, (edges, 2)).tolist()
    pairs = [(f"n{a}", f"n{b}") if kind == "String" else (a, b) for a, b in ends]
    db.sql(f"CREATE TABLE pairs (a {kind}, b {kind}) ENGINE = Memory")
    db.sql("INSERT INTO pairs VALUES " + ", ".join(map(str, pairs)))
    for plan in (0, 1):
        found = db.sql(f"SELECT id, component FROM connectedComponents((SELECT a, b FROM pairs)) AS c "
                       f"ORDER BY c.id SETTINGS vector_plan = {plan}")  # fmt: skip
        assert found.rows == searched(pairs)
    assert [s.kind for s in found.stats.searches] == ["components"]
    counts = db.sql(
        "SELECT n, count() FROM (SELECT count() AS n FROM connectedComponents((SELECT a, b FROM pairs)) "
        "GROUP BY component) GROUP BY n ORDER BY n"
    )
    assert sum(n * groups for n, groups in counts.rows) == len(searched(pairs))


def test_no_pairs_have_no_components(db: clipql.Database) -> None:
    found = db.sql(
        "SELECT * FROM connectedComponents((SELECT number, number + 1 AS b FROM numbers(5) WHERE number > 9))"
    )
    assert found.rows == []
    assert found.columns == ("id", "component")


def test_near_duplicates_are_grouped_in_one_statement(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, [number % 7, intDiv(number, 7) * 0.01] FROM numbers(35)")
    statement = (
        "SELECT component, arraySort(groupArray(id)) FROM connectedComponents((SELECT a.id, b.id FROM t AS a, t AS b "
        "WHERE a.id < b.id AND L2Distance(a.v, b.v) < 0.015)) GROUP BY component ORDER BY component"
    )
    found = db.sql(statement)
    assert found.rows == [(i, [i + 7 * j for j in range(5)]) for i in range(7)]
    assert [s.kind for s in found.stats.searches] == ["components", "range join"]
    told = [row[0] for row in db.sql("EXPLAIN " + statement).rows]
    assert told[0].startswith("Connected components of SELECT a.id, b.id FROM t AS a, t AS b")
    assert "Range join (L2Distance at most 0.015)" in told


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("connectedComponents((SELECT number FROM numbers(3)))", "gives 1 columns"),
        ("connectedComponents((SELECT number, 'a' FROM numbers(3)))", "expected two of one type"),
        ("connectedComponents((SELECT 1, NULL UNION ALL SELECT 1, 2))", "expected two of one type|holds NULL"),
        ("connectedComponents(numbers(3))", "a SELECT of pairs in brackets"),
        ("connectedComponents((SELECT number, number FROM numbers(3))) WHERE nothing = 1", "nothing"),
    ],
)
def test_what_is_no_pairs_is_refused_by_name(db: clipql.Database, call: str, message: str) -> None:
    with pytest.raises(clipql.ClipqlError, match=message):
        db.sql(f"SELECT * FROM {call}")


@pytest.mark.parametrize("name", ["nearAny", "connectedComponents", "_clipql_vector_number"])
def test_a_function_of_our_names_is_not_made(db: clipql.Database, name: str) -> None:
    with pytest.raises(clipql.ClipqlError, match="is clipql's own: take another name"):
        db.sql(f"CREATE FUNCTION {name} AS (a, b) -> a + b")
