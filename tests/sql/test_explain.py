"""EXPLAIN of a statement that reads vectors always says what will be done with them, and why."""

from __future__ import annotations

import pytest
import test_oracle
from test_oracle import parameters

import clipql

table = test_oracle.table  # its fixture
AS_IT_IS = {
    "SELECT image_embedding FROM t": "it reads the vectors themselves, not a distance to a constant vector",
    "SELECT * FROM t LIMIT 3": "it reads the vectors themselves, not a distance to a constant vector",
    "SELECT t.id FROM t LEFT JOIN labels AS l ON l.id = t.id "
    "ORDER BY L2Distance(t.image_embedding, {q:Array(Float32)}) LIMIT 3": "it has an outer join, or ARRAY JOIN",
    "SELECT a.id, b.id FROM t a, t b ORDER BY L2Distance(a.image_embedding, b.image_embedding) LIMIT 3":
    "both arguments of a distance are columns, and it has no LIMIT n BY columns of one table, with n of at most 1,000",
    "SELECT a.id, count() FROM t a, t b GROUP BY a.id ORDER BY min(L2Distance(a.image_embedding, b.image_embedding))":
    "both arguments of a distance are columns, and it has GROUP",
}  # fmt: skip


def lines(db: clipql.Database, statement: str) -> list[str]:
    return [row[0] for row in db.sql("EXPLAIN " + statement, **parameters()).rows]


@pytest.mark.parametrize("statement", AS_IT_IS)
def test_what_is_left_as_it_is_is_explained(table: clipql.Database, statement: str) -> None:
    told = lines(table, statement)
    assert told[0].startswith("No vector plan: ClickHouse ")
    assert f"  as it is, because {AS_IT_IS[statement]}" in told
    assert told[-1] == "  speed: about 60,000 rows a second that it reads vectors of"


def test_a_planned_search_tells_of_its_speed(table: clipql.Database) -> None:
    told = lines(table, "SELECT id FROM t ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 3")
    assert told[0] == "Top-k search (k = 3)"
    assert any(line.startswith("  speed: memory speed") for line in told)


def test_a_statement_without_vectors_is_explained_by_clickhouse(table: clipql.Database) -> None:
    assert not [line for line in lines(table, "SELECT url FROM t WHERE id = 3") if "vector" in line]


def test_a_select_from_the_list_of_indexes_is_explained(table: clipql.Database) -> None:
    assert lines(table, "SELECT * FROM clipql.indexes")
    assert lines(table, "SELECT name FROM clipql.indexes WHERE rows > 3")


def test_writing_what_a_search_finds_is_explained(table: clipql.Database) -> None:
    top = "SELECT id, url FROM t ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 3"
    for head in ("INSERT INTO labels", "CREATE TABLE found ENGINE = Memory AS"):
        assert lines(table, f"{head} {top}")[0] == "Top-k search (k = 3)"
