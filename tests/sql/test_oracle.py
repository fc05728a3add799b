"""Every planned form of query, run as planned and as passed through, gives the same rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.syntax.lexer import split_statements

ROWS, DIMENSION = 2_000, 8
FIXTURE = Path(__file__).parent / "fixtures" / "planned.sql"


def cases() -> list[tuple[str, str]]:
    """Pairs of expected plan and statement."""
    found: list[tuple[str, str]] = []
    expected = ""
    for block in re.split(
        r"^-- (?=top-k$|range$|distances$|numbers of rows$|as it is$)", FIXTURE.read_text(), flags=re.MULTILINE
    )[1:]:
        expected, _, text = block.partition("\n")
        found += [(expected, s) for s in split_statements(text)]
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    rng = np.random.default_rng(7)
    image = rng.standard_normal((ROWS, DIMENSION)).astype(np.float16).astype(np.float32)
    text = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    dup = image[rng.integers(0, 40, ROWS)]
    zero = image.copy()
    zero[::7] = 0
    with clipql.connect(tmp_path_factory.mktemp("oracle") / "db") as db:
        vectors = ", ".join(f"{n}_embedding Array(Float32)" for n in ("image", "text", "dup", "zero"))
        db.sql(f"CREATE TABLE t (id UInt32, url String, caption String, nsfw String, width Int32, {vectors}) "
               "ENGINE = MergeTree ORDER BY id")  # fmt: skip
        for half in (slice(0, 1_200), slice(1_200, ROWS)):  # two inserts, so that there are several segments
            values = [
                f"({i}, 'http://x/{i}', '{'a cat; ORDER BY' if i % 3 else 'dog'} {i}', "
                f"'{('UNLIKELY', 'UNSURE', 'NSFW')[i % 3]}', {200 + i * 37 % 1000}, "
                + ", ".join(str(v[i].tolist()) for v in (image, text, dup, zero))
                + ")"
                for i in range(ROWS)[half]
            ]
            db.sql("INSERT INTO t VALUES " + ", ".join(values))
        db.sql("DELETE FROM t WHERE id % 11 = 5")
        db.sql("CREATE TABLE labels (id UInt32, label String) ENGINE = Memory")
        db.sql("INSERT INTO labels SELECT number * 3, toString(number) FROM numbers(400)")
        db.sql("CREATE TABLE plain (id UInt32, v Array(Float32)) ENGINE = Memory")
        db.sql("INSERT INTO plain SELECT id, image_embedding FROM t WHERE id < 30")
        yield db


def parameters() -> dict[str, object]:
    rng = np.random.default_rng(8)
    q, p = rng.standard_normal((2, DIMENSION)).astype(np.float32)
    return {"q": q, "p": p.tolist(), "n": 7, "x": 512.5}


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=2e-5, abs_tol=2e-5)
    return a == b


@pytest.mark.parametrize(("expected", "statement"), cases(), ids=lambda v: " ".join(str(v).split())[:100])
def test_a_planned_query_gives_what_clickhouse_gives(table: clipql.Database, expected: str, statement: str) -> None:
    kinds = agree(table, statement)
    assert expected in kinds


def agree(table: clipql.Database, statement: str) -> list[str]:
    """Run a statement planned and passed through, which must give the same; return the kinds of its plans."""
    params = parameters()
    planned = table.sql(statement, **params)
    table.sql("SET vector_plan = 0")
    try:
        passed = table.sql(statement, **params)
    finally:
        table.sql("SET vector_plan = 1")

    assert planned.columns == passed.columns
    assert planned.arrow().schema.types == passed.arrow().schema.types
    assert len(planned) == len(passed)
    for ours, theirs in zip(planned.rows, passed.rows, strict=True):
        assert all(map(same, ours, theirs)), f"{ours} instead of {theirs}"
    assert not passed.stats.searches
    return [s.kind for s in planned.stats.searches] or ["as it is"]


@pytest.mark.parametrize(("expected", "statement"), cases()[::9], ids=lambda v: " ".join(str(v).split())[:100])
def test_explain_names_the_plan_that_is_then_carried_out(table: clipql.Database, expected: str, statement: str) -> None:
    titles = {"top-k": "Top-k search", "range": "Range search", "distances": "Distances of all rows"}
    lines = (
        [row[0] for row in table.sql("EXPLAIN " + statement.lstrip("("), **parameters()).rows]
        if statement[0] != "("
        else []
    )
    if expected in titles and lines:
        assert any(line.startswith(titles[expected]) for line in lines)
    elif lines:
        assert not any(line.startswith("Top-k") for line in lines)


def test_with_a_row_file_each_query_still_gives_what_clickhouse_gives(table: clipql.Database) -> None:
    table.sql("OPTIMIZE TABLE t")  # stands last, since all that follows finds the row file
    assert table.registry.catalog.table("default", "t").row_file.rows == ROWS  # type: ignore[union-attr]
    for expected, statement in cases():
        assert expected in agree(table, statement), statement


@pytest.mark.parametrize("metric", ["L2Distance", "dotProduct"])
@pytest.mark.parametrize("vector", ["[0.5, 1, 2, 3, 4, 5, 6, 7]", "[1, 2, 3, 4, 5, 6, 7, 8]", "{q:Array(Float32)}"])
@pytest.mark.parametrize("more", ["", ", id"])
def test_a_search_that_finds_nothing_has_the_types_of_one_that_finds_rows(
    table: clipql.Database, metric: str, vector: str, more: str
) -> None:
    agree(table, f"SELECT id, {metric}(image_embedding, {vector}) AS d FROM t WHERE id > 9999 ORDER BY d{more} LIMIT 3")
