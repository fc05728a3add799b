"""A column of numbers mixed into the order of a search."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from tests.parts import vectors
from tests.serve.conftest import Running

ROWS, WIDTH = 3000, 16
VECTORS = vectors(ROWS, WIDTH, 3, np.float32)
QUERY = vectors(1, WIDTH, 8, np.float32)[0].tolist()
TYPES = {
    "score": "Float32",
    "maybe": "Nullable(Float64)",
    "whole": "Int128",
    "price": "Decimal(9, 3)",
    "distance": "Float64",
}


def value(column: str, row: int) -> float | None:
    """What a column has in a row: some have no number, some the same as others."""
    if column == "maybe":
        return None if row % 7 == 0 else math.nan if row % 11 == 0 else row % 40 / 10
    return row % 50 / 10 if column != "whole" else row % 5


@pytest.fixture(scope="module")
def scored(server: Running) -> Running:
    """The server, with a table whose rows have scores of several types; every third is not safe."""
    columns = ", ".join(f"`{name}` {type}" for name, type in TYPES.items())
    made = f"CREATE TABLE scored (id UInt32, NSFW Bool, {columns}, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
    assert server.sql(made).status == 200
    lines = []
    for row in range(ROWS):
        told = [row, row % 3 == 0, *(value(c, row) for c in TYPES), VECTORS[row].tolist()]
        lines.append("\t".join("\\N" if v is None else str(v).lower() for v in told))
    reply = server.ask("/", "\n".join(lines), query="INSERT INTO scored FORMAT TSV")
    assert reply.status == 200, reply.text
    return server


def ranked(server: Running, column: str, weight: float, *, words: bool = True) -> list[int]:
    """The rows as they should come, by the distances that ClickHouse itself gives."""
    plain = f"SELECT cosineDistance(v, {QUERY}) FROM scored ORDER BY _row SETTINGS vector_plan = 0 FORMAT JSONCompact"
    distances = [row[0] if words else 0 for row in server.sql(plain).json["data"]]

    def place(row: int) -> tuple[int, float, int]:
        number = value(column, row)
        if number is None:
            return (2, 0, row)
        key = distances[row] - weight * number
        return (1, 0, row) if math.isnan(key) else (0, key, row)

    return sorted(range(ROWS), key=place)


def found(server: Running, **asked: Any) -> dict[str, Any]:
    """A search of the table by a vector."""
    whole = {"table": "scored", "terms": [{"vector": QUERY}], "safe": False, **asked}
    reply = server.post("/api/search", whole)
    assert reply.status == 200, reply.text
    answer: dict[str, Any] = reply.json
    return answer


def numbers(answer: dict[str, Any]) -> list[int]:
    """The numbers of rows."""
    return [int(row["id"]) for row in answer["rows"]]


def run_alone(server: Running, answer: dict[str, Any], first: str = "SELECT _row, ") -> list[int]:
    """The rows that the SQL of an answer gives, by itself."""
    sql = answer["sql"].replace("SELECT ", first, 1)
    given = {f"param_{name}": str(list(value)) for name, value in answer["params"].items()}
    reply = server.ask("/", method="POST", query=f"{sql} FORMAT JSONCompact", **given)
    assert reply.status == 200, reply.text
    return [int(row[0]) for row in reply.json["data"]]


@pytest.mark.parametrize("column", list(TYPES))
@pytest.mark.parametrize("weight", [0.05, -0.3, 0])
def test_the_order_is_by_the_distance_less_the_weighed_column(scored: Running, column: str, weight: float) -> None:
    answer = found(scored, k=60, score={"column": column, "weight": weight}, columns=["id"])
    wanted = ranked(scored, column, weight)[:60]
    assert numbers(answer) == wanted
    assert answer["exact"] is True
    assert run_alone(scored, answer) == wanted


def test_rows_without_a_number_come_last(scored: Running) -> None:
    answer = found(scored, k=1000, offset=2000, score={"column": "maybe", "weight": -5})
    ends = [row["values"]["maybe"] for row in answer["rows"]]
    with_number = sum(1 for row in range(2000, ROWS) if isinstance(v := value("maybe", row), float) and v == v)
    assert with_number  # some of the page have one, and they come first
    first_without = next(i for i, v in enumerate(ends) if v is None)
    assert all(v is None for v in ends[first_without:])
    assert numbers(answer) == ranked(scored, "maybe", -5)[2000:]


def test_pages_neither_overlap_nor_skip(scored: Running) -> None:
    score = {"column": "whole", "weight": 10}  # which leaves many rows almost level
    pages = [numbers(found(scored, k=37, offset=offset, score=score)) for offset in range(0, 370, 37)]
    assert [row for page in pages for row in page] == ranked(scored, "whole", 10)[:370]


def test_without_anything_searched_for_the_column_alone_ranks(scored: Running) -> None:
    answer = found(scored, k=80, terms=[], score={"column": "score", "weight": 0.2})
    assert numbers(answer) == ranked(scored, "score", 0.2, words=False)[:80]
    assert run_alone(scored, answer) == numbers(answer)
    low = found(scored, k=80, terms=[], where="id > 9", score={"column": "maybe", "weight": -1})
    assert numbers(low) == [row for row in ranked(scored, "maybe", -1, words=False) if row > 9][:80]


def test_filters_safe_fold_files_and_many_searches_keep_the_order(scored: Running) -> None:
    score = {"column": "score", "weight": 0.1}
    wanted = [row for row in ranked(scored, "score", 0.1) if row % 3 and row < 2000]
    asked = {"score": score, "safe": True, "where": "id < 2000"}
    assert numbers(found(scored, k=50, **asked)) == wanted[:50]
    assert numbers(found(scored, k=50, fold=0.99, **asked)) == wanted[:50]
    many = found(scored, k=20, terms=None, queries=[{"vector": QUERY}, {"vector": QUERY, "weight": -1}], **asked)
    assert numbers(many["answers"][0]) == wanted[:20]
    assert numbers(many["answers"][1]) != wanted[:20]
    whole = {"table": "scored", "terms": [{"vector": QUERY}], "k": 50, **asked}
    file = scored.post("/api/search", {**whole, "columns": ["id"], "format": "CSV"})
    assert [int(row["id"]) for row in csv.DictReader(io.StringIO(file.text))] == wanted[:50]


def test_what_is_wrong_with_a_score_is_said(scored: Running) -> None:
    for score, told in (
        ({"column": "id2", "weight": 1}, "'id2' is no column of numbers; id, score, maybe, whole, price, distance are"),
        ({"column": "v", "weight": 1}, "is no column of numbers"),
        ({"column": "NSFW", "weight": 1}, "is no column of numbers"),
        (
            {"column": "score"},
            'expected a column of numbers and what it weighs: {"column": "aesthetic", "weight": 0.1}',
        ),
        ({"column": "score", "weight": 1e10}, "weight: expected a number from -1e+09 to 1e+09"),
        ({"column": "score", "weight": 1, "by": 2}, "the key 'by' is not known"),
        ("score", "expected a JSON object"),
    ):
        reply = scored.post("/api/search", {"table": "scored", "terms": [{"vector": QUERY}], "score": score})
        assert (reply.status, told in reply.json["error"]) == (400, True), reply.text
    hybrid = {"terms": [{"text": "a"}], "hybrid": True, "score": {"column": "score", "weight": 1}}
    reply = scored.post("/api/search", {"table": "scored", **hybrid})
    assert (reply.status, "leave one of hybrid and score out" in reply.json["error"]) == (400, True)


def test_any_mixture_that_sql_orders_by_gives_the_rows_of_clickhouse_alone(scored: Running) -> None:
    query = f"{QUERY}"
    for order in (
        f"cosineDistance(v, {query}) - 0.1 * score",
        f"cosineDistance(v, {query}) - 0.1 * maybe",
        f"L2Distance(v, {query}) + toFloat64(price) / 7 DESC",
        f"dotProduct(v, {query}) * (1 + score) DESC",
        f"cosineDistance(v, {query}) - 0.1 * ifNull(maybe, 0), id",
        f"round(cosineDistance(v, {query}), 1), score DESC",
    ):
        for limit in ("LIMIT 30", "LIMIT 30 OFFSET 11", "LIMIT 30 WITH TIES", "LIMIT 2 BY NSFW LIMIT 3"):
            sql = f"SELECT id FROM scored WHERE whole < 4 ORDER BY {order}, id {limit}"
            fast, plain = (scored.sql(f"{sql} SETTINGS vector_plan = {on} FORMAT TSV") for on in (1, 0))
            assert (fast.status, plain.status) == (200, 200), fast.text + plain.text
            assert fast.text == plain.text, sql
            assert fast.text
