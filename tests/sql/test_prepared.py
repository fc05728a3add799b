"""A statement that comes again is bound to new values and searched: it gives what reading it anew gives."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from repeated import BY, DIMENSION, QUERIES, anew, fill

import clipql
from clipql import Database
from clipql.errors import VectorError
from clipql.sql.planning.prepared import Repeats

WAYS = {
    "parameter": f"SELECT id, s, {BY} AS d FROM t ORDER BY d LIMIT 7",
    "no name in ORDER BY": "SELECT id, s FROM t ORDER BY L2Distance(a, {q:Array(Float32)}) LIMIT 7",
    "nearest by dotProduct": "SELECT id FROM t ORDER BY dotProduct(a, {q:Array(Float32)}) DESC LIMIT 7",
    "the vector twice": f"SELECT id, {BY} AS d FROM t ORDER BY {BY} LIMIT 7",
    "Float64": "SELECT id, L2Distance(a, {q:Array(Float64)}) AS d FROM t ORDER BY d LIMIT 7",
    "a condition": f"SELECT id, s, {BY} AS d FROM t WHERE id % 3 = 1 AND s != 'x2' ORDER BY d LIMIT 7",
    "a condition on a parameter": f"SELECT id, {BY} AS d FROM t WHERE id > {{more:UInt32}} ORDER BY d LIMIT 7",
    "LIMIT and OFFSET": f"SELECT id, {BY} AS d FROM t ORDER BY d LIMIT {{n:UInt8}} OFFSET {{skip:UInt8}}",
    "settings": f"SELECT id, {BY} AS d FROM t ORDER BY d LIMIT 7 SETTINGS recall = 1",
    "the other column": "SELECT id, cosineDistance({q:Array(Float32)}, b) AS d FROM t ORDER BY d LIMIT 7",
}  # fmt: skip
# of Python functions, by one statement that is prepared: its time without the search, whatever the machine
MOST_CALLS = 260


@pytest.fixture(scope="module", params=["no index", "ivf"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with clipql.connect(tmp_path_factory.mktemp("prepared") / "db") as opened:
        fill(opened, index=request.param == "ivf")
        yield opened


def values(number: int, sql: str) -> dict[str, Any]:
    given = {"q": QUERIES[number], "more": 300 * number, "n": 3 + number, "skip": 2 * number}
    return {name: value for name, value in given.items() if f"{{{name}:" in sql}


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each statement that was found again could be answered, in order."""
    answered: list[bool] = []
    run = Repeats.run

    def counted(self: Repeats, *arguments: Any) -> Any:
        found = run(self, *arguments)
        answered.append(found is not None)
        return found

    monkeypatch.setattr(Repeats, "run", counted)
    return answered


@pytest.mark.parametrize("way", WAYS)
def test_other_values_give_what_a_first_reading_gives(db: Database, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = WAYS[way]
    db.sql(sql, **values(0, sql))
    answered = count_runs(monkeypatch)
    for number in range(1, len(QUERIES)):
        given = values(number, sql)
        again = db.sql(sql, **given)
        assert again.arrow() == anew(db, sql, **given).arrow()
    assert answered == [True] * (len(QUERIES) - 1)


def test_a_statement_that_comes_again_is_little_work_for_python(db: Database) -> None:
    sql = WAYS["parameter"]
    for number in (0, 1):
        db.sql(sql, **values(number, sql))
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        db.sql(sql, **values(2, sql))
    finally:
        sys.setprofile(None)
    assert calls <= MOST_CALLS, f"a search for another vector calls {calls} functions; it was {MOST_CALLS} at most"


def test_a_literal_vector_in_the_text_is_a_value(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "SELECT id, cosineDistance(a, {}) AS d FROM t ORDER BY d LIMIT 5"
    db.sql(template.format(QUERIES[0].tolist()))
    answered = count_runs(monkeypatch)
    for query in QUERIES[1:]:
        sql = template.format(query.tolist())
        assert db.sql(sql).arrow() == anew(db, sql).arrow()
    assert answered == [True] * (len(QUERIES) - 1)


def test_a_vector_of_whole_numbers_after_one_of_fractions_has_its_own_type(db: Database) -> None:
    template = "SELECT id, dotProduct(a, {}) AS d FROM t ORDER BY d DESC LIMIT 5"
    for query in ([0.5] * DIMENSION, [1] * DIMENSION, [300] * DIMENSION, [-1] * DIMENSION, [0.25] * DIMENSION):
        sql = template.format(query)
        assert db.sql(sql).arrow() == anew(db, sql).arrow()


def test_vectors_that_were_alike_once_may_differ_later(db: Database) -> None:
    template = "SELECT id, cosineDistance(a, {}) AS d FROM t ORDER BY cosineDistance(a, {}) LIMIT 5"
    first, second = QUERIES[0].tolist(), QUERIES[1].tolist()
    for shown, sorted_by in ((first, first), (second, second), (first, second), (second, first)):
        sql = template.format(shown, sorted_by)
        assert db.sql(sql).arrow() == anew(db, sql).arrow()


def test_a_vector_in_a_string_or_a_condition_is_no_value(db: Database) -> None:
    for shown in ("[1.0, 2.0]", "[3.0, 4.0]"):
        sql = f"SELECT id, '{shown}' AS s, cosineDistance(a, {QUERIES[0].tolist()}) AS d FROM t ORDER BY d LIMIT 2"
        assert db.sql(sql).arrow()["s"].to_pylist() == [shown, shown]
        condition = f"SELECT id, {BY} AS d FROM t WHERE has({shown}, id) ORDER BY d LIMIT 5"
        assert sorted(r[0] for r in db.sql(condition, q=QUERIES[0]).rows) == [round(n) for n in eval(shown)]


def test_wrong_vectors_are_refused_the_second_time_too(db: Database) -> None:
    sql = f"SELECT id, {BY} AS d FROM t ORDER BY d LIMIT 5"
    db.sql(sql, q=QUERIES[0])
    with pytest.raises(VectorError, match=f"a of default.t holds {DIMENSION} numbers; the query vector .*has 3"):
        db.sql(sql, q=np.ones(3, np.float32))
    with pytest.raises(VectorError, match="must be finite"):
        db.sql(sql, q=np.full(DIMENSION, np.nan, np.float32))
    assert len(db.sql(sql, q=QUERIES[1])) == 5
