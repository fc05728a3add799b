"""A SELECT over 1 to 8 shards gives what it gives over one table, names, types and order included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shardings import MOST, Shardings

import clipql
from clipql.errors import QueryError, UnsupportedStatement, VectorError

QUERY = np.array([1.0, 0.5, 0.25], np.float32)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shardings]:
    with clipql.connect(tmp_path_factory.mktemp("shardings") / "db") as db:
        yield Shardings(db)


# those whose order ClickHouse leaves open have `_row` at the end of ORDER BY, which shards add by themselves
STATEMENTS = """
SELECT id, url, _row FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 10
SELECT id, L2Distance(e, {q:Array(Float32)}) AS d FROM {t} WHERE w > 1 AND lang = 'en' ORDER BY d, _row LIMIT 5 OFFSET 3
SELECT 1 - cosineDistance(e, {q:Array(Float32)}) AS similar, id FROM {t} ORDER BY similar DESC, _row LIMIT 5
SELECT id FROM {t} WHERE L2Distance(e, {q:Array(Float32)}) < 0.8
SELECT id FROM {t} WHERE dotProduct(e, {q:Array(Float32)}) >= 2 ORDER BY dotProduct(e, {q:Array(Float32)}) DESC, id
SELECT * FROM {t} ORDER BY id DESC LIMIT 3
SELECT * FROM {t} LIMIT 5
SELECT * EXCEPT (e, ts) FROM {t} ORDER BY s DESC, id LIMIT 2
SELECT id FROM {t} LIMIT 2, 3
SELECT id FROM {t} LIMIT 0
SELECT id, w FROM {t} ORDER BY w DESC NULLS FIRST, id LIMIT 7
SELECT url AS id FROM {t} ORDER BY id, _row LIMIT 3
SELECT t.id, default.{t}.w FROM default.{t} AS t WHERE t.id < 4 ORDER BY t.id
SELECT _row, id FROM {t} WHERE _row IN (3, 77, 150)
SELECT id FROM {t} PREWHERE w = 2 WHERE id > 100 ORDER BY id LIMIT {n:UInt8}
SELECT id FROM {t} WHERE w IS NULL
SELECT w FROM {t} ORDER BY w LIMIT 3 WITH TIES
SELECT lang, id FROM {t} ORDER BY id DESC LIMIT 2 BY lang
SELECT lang, id FROM {t} ORDER BY id DESC LIMIT 1, 2 BY lang LIMIT 3
SELECT id, w FROM {t} WHERE id < 10 ORDER BY id WITH FILL STEP 2
SELECT arrayJoin(tags) AS tag, id FROM {t} ORDER BY id, tag LIMIT 5
SELECT id, row_number() OVER (PARTITION BY lang ORDER BY s DESC, id) AS r FROM {t} WHERE id < 50 ORDER BY lang, r
SELECT id FROM {t} QUALIFY row_number() OVER (PARTITION BY lang ORDER BY L2Distance(e, {q:Array(Float32)}), id) = 1 ORDER BY id
SELECT count() FROM {t}
SELECT count(), sum(w), avg(w), min(url), max(s), uniq(lang), uniqExact(url), median(s) FROM {t} WHERE w > 2
SELECT count(), sum(w), avg(w), max(url) FROM {t} WHERE 0
SELECT max(_row), min(_row) FROM {t}
SELECT sum(w * 2), sum(w + 1), max(w) + min(w), count(w), sum(1) FROM {t}
SELECT lang, count() AS c, sum(w) FROM {t} GROUP BY lang ORDER BY c DESC, lang
SELECT lang, w, count() FROM {t} GROUP BY 1, 2 HAVING count() > 10 ORDER BY lang, w LIMIT 5
SELECT lower(lang) AS lang, any(url), anyLast(url), groupArray(id), argMin(url, w) FROM {t} GROUP BY lang ORDER BY lang
SELECT groupArrayIf(id, w = 2), groupUniqArray(lang), groupArray(3)(url) FROM {t}
SELECT toDate(ts) AS day, count(DISTINCT w), max(L2Distance(e, {q:Array(Float32)})) AS d FROM {t} GROUP BY day ORDER BY d, day
SELECT lang, w % 2 AS odd, count() FROM {t} GROUP BY ALL ORDER BY ALL
SELECT lang, count() FROM {t} GROUP BY lang WITH ROLLUP ORDER BY lang
SELECT lang, w, count() FROM {t} GROUP BY GROUPING SETS ((lang), (w), ()) ORDER BY ALL
SELECT arrayJoin(tags) AS tag, count() FROM {t} GROUP BY tag ORDER BY tag
SELECT if(w > 2, 'a', 'b') AS k, avg(s) FROM {t} GROUP BY k ORDER BY k SETTINGS max_threads = 2
SELECT multiIf(w = 1, 'x', w = 2, 'y', NULL) AS m, countIf(s > 3), sumIf(s, id > 9) FROM {t} GROUP BY m ORDER BY m
SELECT quantiles(0.1, 0.9)(s), sum(DISTINCT w), count(DISTINCT w, lang), sumMap(map(lang, 1)) FROM {t}
SELECT finalizeAggregation(sumState(w)), sumOrNull(w), minArray(e) FROM {t}
SELECT lang, sum(count()) OVER (), rank() OVER (ORDER BY count() DESC, lang) FROM {t} GROUP BY lang ORDER BY lang
SELECT count() FROM {t} HAVING count() > 1000
SELECT w, count() FROM {t} GROUP BY w ORDER BY w WITH FILL
SELECT DISTINCT lang FROM {t}
SELECT DISTINCT lang, w FROM {t} ORDER BY w, lang LIMIT 3
SELECT DISTINCT w + 1 AS x FROM {t} WHERE id < 60 ORDER BY x DESC
SELECT DISTINCT 1, lang FROM {t} ORDER BY lang
SELECT count() FROM (SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 10) WHERE id > 20
SELECT id FROM {t} WHERE id IN (SELECT id FROM {t} WHERE w = 3) ORDER BY id LIMIT 6
SELECT id FROM {t} WHERE w = (SELECT max(w) FROM {t}) ORDER BY id LIMIT 6
SELECT id, L2Distance(e, (SELECT e FROM {t} WHERE id = 7)) AS d FROM {t} ORDER BY d, id LIMIT 4
WITH {q:Array(Float32)} AS q, best AS (SELECT id, L2Distance(e, q) AS d FROM {t} ORDER BY d, id LIMIT 5) SELECT count(), sum(d) FROM best
SELECT a.id, b.n FROM (SELECT id, w FROM {t} WHERE id < 9) AS a JOIN (SELECT w, count() AS n FROM {t} GROUP BY w) AS b USING (w) ORDER BY id
SELECT id FROM {t} WHERE id < 5 UNION ALL SELECT id FROM {t} WHERE id > 235 ORDER BY id
SELECT number, (SELECT count() FROM {t} WHERE w = 1) FROM numbers(2)
SELECT id FROM {t} WHERE url LIKE '%7' AND lang IN ('de', 'en') AND NOT (w = 3 OR id BETWEEN 10 AND 20)
""".strip().split("\n")


@pytest.mark.parametrize("statement", STATEMENTS)
def test_shards_give_what_one_table_gives(tables: Shardings, statement: str) -> None:
    expected = tables.one(statement, q=QUERY, n=3)

    assert tables.sharded(3, statement, q=QUERY, n=3) == expected


filters = st.sampled_from(["1", "w > 1", "lang = 'en'", "s < 4 OR w IS NULL", "id % 7 = 0", "0", "has(tags, 'b')"])
distances = st.sampled_from(["L2Distance", "cosineDistance", "L2SquaredDistance"])
keys = st.sampled_from(["lang", "w", "lang, w", "id % 3", "toHour(ts)", "tags"])
functions = st.lists(
    st.sampled_from(["count()", "sum(w)", "avg(s)", "min(url)", "max(id)", "uniqExact(url)", "any(url)",
                     "groupArray(id)", "sumIf(s, w = 2)", "argMax(id, s)", "quantileExact(0.3)(s)", "min(_row)"]),
    min_size=1, max_size=3, unique=True,
)  # fmt: skip
rows = st.tuples(st.integers(0, 30), st.integers(0, 12))
top = st.builds(
    "SELECT id, _row, {1}(e, {{q:Array(Float32)}}) AS d FROM {{t}} WHERE {0} ORDER BY d, _row LIMIT {2[0]} OFFSET {2[1]}".format,
    filters, distances, rows,
)  # fmt: skip
within = st.builds("SELECT id, s FROM {{t}} WHERE {0} AND {1}(e, {{q:Array(Float32)}}) < {2}".format,
                   filters, distances, st.sampled_from([0.0, 0.1, 0.5, 1.0, 9.0]))  # fmt: skip
groups = st.builds(
    lambda where, key, calls: f"SELECT {key}, {', '.join(calls)} FROM {{t}} WHERE {where} GROUP BY {key} ORDER BY {key}",
    filters, keys, functions,
)  # fmt: skip
different = st.builds("SELECT DISTINCT {1} FROM {{t}} WHERE {0} LIMIT {2[0]} OFFSET {2[1]}".format, filters, keys, rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards=st.integers(1, MOST), statement=st.one_of(top, within, groups, different))
def test_any_number_of_shards_gives_what_one_table_gives(tables: Shardings, shards: int, statement: str) -> None:
    assert tables.sharded(shards, statement, q=QUERY) == tables.one(statement, q=QUERY)


def test_ties_are_decided_by_the_row(tables: Shardings) -> None:
    by_row = tables.one("SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 20", q=QUERY)

    found = tables.sharded(5, "SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}) LIMIT 20", q=QUERY)

    assert found == by_row


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("SELECT a.id FROM {t} AS a JOIN {t} AS b ON a.id = b.id", "a join of default.n4"),
        ("SELECT a.id FROM {t} AS a, (SELECT 1 AS one) AS b", "a join of default.n4"),
        ("SELECT id FROM {t} FINAL", "FINAL or SAMPLE on default.n4"),
        ("SELECT w, count() FROM {t} GROUP BY w ORDER BY w WITH FILL FROM 0 TO 9", "WITH FILL FROM"),
        ("SELECT DISTINCT count() OVER () FROM {t}", "DISTINCT of aggregates or window functions"),
        ("SELECT sumSimpleState(w) FROM {t}", "sumSimpleState"),
    ],
)
def test_what_cannot_be_split_is_named(tables: Shardings, statement: str, named: str) -> None:
    with pytest.raises(UnsupportedStatement) as raised:
        tables.sharded(4, statement)

    assert named in str(raised.value)
    assert "split over" in str(raised.value)


def test_a_statement_that_was_not_split_fails_instead_of_finding_nothing(tables: Shardings) -> None:
    with pytest.raises(QueryError) as raised:
        tables.db.sql("SELECT count() FROM n3")

    assert "default.n3 lies in shards" in str(raised.value)


@pytest.mark.parametrize("vector", [[1.0, float("nan"), 0.0], [1.0, 2.0], [float("inf")] * 3])
def test_a_bad_query_vector_is_refused_as_by_one_table(tables: Shardings, vector: list[float]) -> None:
    statement = "SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}) LIMIT 3"
    with pytest.raises(VectorError) as one:
        tables.one(statement, q=np.array(vector, np.float32))

    with pytest.raises(VectorError) as sharded:
        tables.sharded(2, statement, q=np.array(vector, np.float32))

    assert (
        str(sharded.value).split("the query vector")[0].replace("n2s0", "one")
        == str(one.value).split("the query vector")[0]
    )


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (
            "SELECT url, L2Distance(e, {q:Array(Float32)}) AS d FROM {t} WHERE w > 1 AND lang = 'en' ORDER BY d LIMIT 9",
            "Top-k",
        ),
        (
            "SELECT id FROM {t} ORDER BY cosineDistance(e, {q:Array(Float32)}) + 0.5 * L2Distance(e, {q:Array(Float32)}) LIMIT 9",
            "Top-k",
        ),
        ("SELECT id FROM {t} ORDER BY 1 - cosineDistance(e, [1., 2., 3.]) DESC LIMIT 9", "Top-k"),
        ("SELECT id FROM {t} ORDER BY L2Distance(e, (SELECT e FROM {t} WHERE id = 3)) LIMIT 9", "Top-k"),
        ("SELECT id FROM {t} WHERE w = 2 AND L2Distance(e, {q:Array(Float32)}) < 0.5", "Range"),
    ],
)
def test_each_shard_searches_as_one_table_does(tables: Shardings, statement: str, kind: str) -> None:
    assert tables.shard_plans(3, statement, q=QUERY)[0].startswith(kind)


@pytest.mark.parametrize(
    "statement", ["SELECT nothing FROM {t}", "SELECT count() FROM {t} WHERE", "SELECT id, count() FROM {t}"]
)
def test_a_wrong_statement_gives_clickhouses_error(tables: Shardings, statement: str) -> None:
    with pytest.raises(QueryError) as one:
        tables.one(statement)

    with pytest.raises(QueryError) as sharded:
        tables.sharded(2, statement)

    assert (sharded.value.code, sharded.value.name) == (one.value.code, one.value.name)
