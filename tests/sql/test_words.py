"""bm25(…) in statements and hybrid search: scores as the formula says, with and without text indexes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_encoder
import numpy as np
import pyarrow.parquet as pq
import pytest

import clipql
from clipql.errors import QueryError

CAPTIONS = Path(__file__).parents[1] / "data" / "captions" / "web_10000.parquet"
ROWS = 600
INDEXES = {
    "none": "",
    "plain": ", INDEX words caption TYPE text(tokenizer = 'splitByNonAlpha')",
    "of lower": ", INDEX words lower(caption) TYPE text(tokenizer = 'splitByNonAlpha')",
    "that lowers": ", INDEX words caption TYPE text(tokenizer = 'splitByNonAlpha', preprocessor = lower(caption))",
}
QUERIES = ("red", "The Black and white", "black BLACK cat", "vintage, poster!", "nowhereword", "", "2017 for")
_names = itertools.count()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real captions, without letters that only one of the ways to fold them makes alike."""
    found = [t or "" for t in pq.read_table(CAPTIONS).column(1).to_pylist()]
    return [t for t in found if t.isascii()][:ROWS]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("words") / "db") as db:
        db.encoders.use(fake_encoder.FakeEncoder())
        yield db


def fill(db: clipql.Database, texts: list[str], index: str = "", more: str = "") -> str:
    name = f"t{next(_names)}"
    columns = f"id UInt32, caption String, image_embedding Array(Float32){more}{INDEXES.get(index, '')}"
    db.sql(f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree ORDER BY id")
    vectors = np.stack([fake_encoder.letters(t[:40] or "x") for t in texts])
    for first in range(0, len(texts), 400):
        part = slice(first, first + 400)
        rows = "arrayZip(arrayEnumerate({c:Array(String)}), {c:Array(String)}, {v:Array(Array(Float32))})"
        db.sql(
            f"INSERT INTO {name} (id, caption, image_embedding) SELECT {first} + a.1 - 1, a.2, a.3 "
            f"FROM (SELECT arrayJoin({rows}) AS a)",
            c=texts[part],
            v=vectors[part].tolist(),
        )
    return name


@pytest.fixture(scope="module", params=list(INDEXES))
def table(shared: clipql.Database, texts: list[str], request: pytest.FixtureRequest) -> str:
    return fill(shared, texts, request.param)


def expected(texts: list[str], query: str) -> Any:
    """The scores by the formula, in Python's own words."""
    split = [[w for w in re.split(r"[^A-Za-z0-9]+", t.lower()) if w] for t in texts]
    mean = sum(map(len, split)) / len(split)
    scores = np.zeros(len(texts))
    for word in (w for w in re.split(r"[^A-Za-z0-9]+", query.lower()) if w):
        having = sum(word in s for s in split)
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for i, words in enumerate(split):
            f = words.count(word)
            scores[i] += weight * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(words) / mean))
    return scores


def scored(db: clipql.Database, table: str, query: str, rest: str = "") -> dict[int, float]:
    return dict(db.sql(f"SELECT id, bm25(caption, {{w:String}}) AS s FROM {table} {rest}", w=query).rows)


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_the_formula(shared: clipql.Database, table: str, texts: list[str], query: str) -> None:
    wanted = expected(texts, query)
    found = scored(shared, table, query)
    assert np.allclose([found[i] for i in range(ROWS)], wanted, rtol=1e-9, atol=1e-12)
    positive = scored(shared, table, query, "WHERE bm25(caption, {w:String}) > 0")
    assert set(positive) == set(np.flatnonzero(wanted > 0).tolist())


def test_the_score_stands_wherever_an_expression_may(shared: clipql.Database, table: str, texts: list[str]) -> None:
    wanted = expected(texts, "black cat")
    best = sorted(range(ROWS), key=lambda i: (-wanted[i], i))[:5]
    spelled = f"SELECT id FROM {table} ORDER BY bm25(caption, 'black cat') DESC, id LIMIT 5"
    assert [r[0] for r in shared.sql(spelled).rows] == best
    mean = shared.sql(f"SELECT avg(bm25(c.caption, concat('black', ' cat'))) FROM {table} AS c WHERE id < 300").rows
    assert mean[0][0] == pytest.approx(wanted[:300].mean())
    found = shared.sql(f"SELECT bm25(caption, 'cat'), 1 - bm25(caption, 'cat') > 0 FROM {table} ORDER BY id LIMIT 1")
    assert found.columns[0] == "bm25(caption, 'cat')"
    assert found.rows[0][1] == (1 - expected(texts, "cat")[0] > 0)


def test_words_are_looked_for_before_the_nearest_rows_are(shared: clipql.Database, table: str) -> None:
    near = "ORDER BY L2Distance(image_embedding, encode_text('white')) LIMIT 7"
    for condition in ("bm25(caption, 'black white') > 0", "hasAllTokens(lower(caption), 'black white')"):
        search = f"SELECT id FROM {table} WHERE {condition} AND id > 20 {near}"
        assert shared.sql(search).stats.searches[0].kind == "top-k"
        assert shared.sql(search).rows == shared.sql(f"{search} SETTINGS vector_plan = 0").rows
        assert any("filter first" in line and "Tokens" in line for (line,) in shared.sql(f"EXPLAIN {search}").rows)


def test_weights_follow_the_rows(shared: clipql.Database, texts: list[str]) -> None:
    table, now = fill(shared, texts[:50], "that lowers"), texts[:50]
    scored(shared, table, "red cat")
    shared.sql(f"INSERT INTO {table} VALUES (50, 'a red red cat', [1, 2])".replace("[1, 2]", str([0.5] * 16)))
    now = [*now, "a red red cat"]
    assert list(scored(shared, table, "red cat", "ORDER BY id").values()) == pytest.approx(expected(now, "red cat"))
    shared.sql(f"DELETE FROM {table} WHERE id < 10")
    assert list(scored(shared, table, "red cat", "ORDER BY id").values()) == pytest.approx(
        expected(now[10:], "red cat")
    )
    shared.sql(f"ALTER TABLE {table} UPDATE caption = 'cat' WHERE id = 20")
    now[20] = "cat"
    assert list(scored(shared, table, "red cat", "ORDER BY id").values()) == pytest.approx(
        expected(now[10:], "red cat")
    )


def test_a_plain_table_of_clickhouse_is_scored_too(shared: clipql.Database, texts: list[str]) -> None:
    shared.sql("CREATE OR REPLACE TABLE plain (id UInt32, caption String) ENGINE = MergeTree ORDER BY id")
    shared.sql("INSERT INTO plain SELECT 0, 'red cat' UNION ALL SELECT 1, 'blue dog, a large one'")
    found = scored(shared, "plain", "dog", "ORDER BY id")
    assert list(found.values()) == pytest.approx(expected(["red cat", "blue dog, a large one"], "dog"))


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT bm25(caption) FROM {t}", r"bm25 got 1 arguments; expected bm25\(column, 'words'\)"),
        ("SELECT bm25(caption, caption) FROM {t}", "expected words as a constant text"),
        ("SELECT bm25('a', 'a')", "expected it in a SELECT from one table"),
        ("SELECT bm25(caption, 'a') FROM (SELECT * FROM {t})", "expected it in a SELECT from one table"),
        ("SELECT bm25(nothing, 'a') FROM {t}", "nothing"),
    ],
)
def test_what_cannot_be_scored_is_refused(shared: clipql.Database, table: str, sql: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        shared.sql(sql.format(t=table))


def test_a_text_that_is_null_has_no_words_wherever_the_condition_stands(shared: clipql.Database) -> None:
    index = "INDEX words caption TYPE text(tokenizer = 'splitByNonAlpha')"
    shared.sql(
        f"CREATE OR REPLACE TABLE nulls (id UInt8, caption Nullable(String), {index}) ENGINE = MergeTree ORDER BY id"
    )
    shared.sql("INSERT INTO nulls VALUES (0, 'red'), (1, 'blue'), (2, NULL)")
    for condition, ids in (
        ("bm25(caption, 'red') > 0", [0]),
        ("NOT bm25(caption, 'red') > 0", [1, 2]),
        ("NOT (id < 9 AND bm25(caption, 'red') > 0)", [1, 2]),
        ("(bm25(caption, 'red') > 0) = 0", [1, 2]),
    ):
        assert [r[0] for r in shared.sql(f"SELECT id FROM nulls WHERE {condition} ORDER BY id").rows] == ids
    shown = "EXPLAIN indexes = 1 SELECT id FROM nulls WHERE ifNull(hasAnyTokens(caption, ['green']), 0)"
    assert any("Granules: 0" in line for (line,) in shared.sql(shown).rows)
    shared.sql("DROP TABLE nulls")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM {t} WHERE bm25(caption, 'red') > 0",
        "ALTER TABLE {t} UPDATE caption = '' WHERE id IN (SELECT id FROM {t} WHERE bm25(caption, 'red') > 0)",
        "CREATE VIEW red AS SELECT id, bm25(caption, 'red') AS score FROM {t}",
        "CREATE TABLE red ENGINE = MergeTree ORDER BY id AS SELECT id, bm25(caption, 'red') AS score FROM {t}",
    ],
)
def test_statements_in_which_it_cannot_stand_say_where_it_can(
    shared: clipql.Database, texts: list[str], sql: str
) -> None:
    table = fill(shared, texts[:20])
    with pytest.raises(QueryError, match="is computed in SELECT and INSERT"):
        shared.sql(sql.format(t=table))
    assert shared.sql(f"SELECT count() FROM {table}").rows == [(20,)]


# hybrid search


def fused(*lists: list[int]) -> dict[int, float]:
    """Reciprocal rank fusion of lists of ids."""
    scores: dict[int, float] = {}
    for found in lists:
        for place, id in enumerate(found, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (60 + place)
    return scores


@pytest.mark.parametrize("where", [None, "id % 3 = 1"])
def test_a_hybrid_search_fuses_the_places_in_both_lists(
    shared: clipql.Database, table: str, texts: list[str], where: str | None
) -> None:
    query, only = "black white", f"WHERE {where}" if where else ""
    meaning = (
        f"SELECT id FROM {table} {only} ORDER BY cosineDistance(image_embedding, encode_text('{query}')) LIMIT 100"
    )
    allowed = [i for i in range(ROWS) if where is None or i % 3 == 1]
    scores = expected(texts, query)
    words = [i for i in sorted(allowed, key=lambda i: (-scores[i], i)) if scores[i] > 0][:100]
    wanted = fused([r[0] for r in shared.sql(meaning).rows], words)
    order = sorted(wanted, key=lambda i: (-wanted[i], i))[:10]
    found = shared.search(table, text=query, hybrid=True, k=10, where=where, columns=["id"])
    assert list(found.columns) == ["id", "distance", "hybrid_score"]
    assert [r[0] for r in found.rows] == order
    assert [r[2] for r in found.rows] == pytest.approx([wanted[i] for i in order])
    assert "top-k" in [s.kind for s in found.stats.searches]


def test_words_that_no_row_has_leave_the_search_by_meaning(shared: clipql.Database, table: str) -> None:
    found = shared.search(table, text="qqqqq", hybrid=True, k=5, columns=["id"])
    alone = shared.search(table, text="qqqqq", k=5, columns=["id"])
    assert [r[0] for r in found.rows] == [r[0] for r in alone.rows]
    assert [r[1] for r in found.rows] == pytest.approx([r[1] for r in alone.rows], abs=1e-6)


def test_the_column_of_words_is_named_or_known(shared: clipql.Database, texts: list[str]) -> None:
    table = fill(shared, texts[:20], more=", title String DEFAULT 'a zebra', at DateTime DEFAULT '2024-05-06 07:08:09'")
    found = shared.search(table, text="zebra", words="title", k=3, columns=["at", "title"])
    assert len(found.rows) == 3
    assert str(found.rows[0][0]).startswith("2024-05-06 07:08:09")
    with pytest.raises(QueryError, match=r"words = 'other': there is no such column; there are id, caption, title, at"):
        shared.search(table, text="zebra", words="other")
    shared.sql(f"ALTER TABLE {table} RENAME COLUMN caption TO said")
    with pytest.raises(QueryError, match=r"needs a column of words: say which \(words=…, --words\) of id, said, title"):
        shared.search(table, text="zebra", hybrid=True)
    with pytest.raises(QueryError, match="this one is by vector: give text"):
        shared.search(table, vector=[0.5] * 16, words="said")
