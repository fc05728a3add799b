"""A SELECT over 1 to 8 shards gives what it gives over one table, names, types and order included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clipql
from clipql.cluster import plan_cache, scatter_gather
from clipql.cluster.plan_cache import PlanCache
from clipql.errors import QueryError, UnsupportedStatement, VectorError
from tests.cluster.shardings import MOST, Shardings

QUERY = np.array([1.0, 0.5, 0.25], np.float32)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shardings]:
    with clipql.connect(tmp_path_factory.mktemp("shardings") / "db") as db:
        yield Shardings(db)


# those whose order ClickHouse leaves open have `_row` at the end of ORDER BY, which shards add by themselves
STATEMENTS = (Path(__file__).parent / "splits.sql").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_shards_give_what_one_table_gives(tables: Shardings, statement: str) -> None:
    expected = tables.one(statement, q=QUERY, n=3)

    assert tables.sharded(3, statement, q=QUERY, n=3) == expected


# two thirds of the rows have no vector in x, and all rows of some shards
LACKING = (
    "SELECT id, L2Distance(x, [2, 3]) AS d FROM {t} ORDER BY d, _row LIMIT 50",
    "SELECT id, x FROM {t} WHERE s < 6 ORDER BY cosineDistance(x, [1, 0.5]), _row LIMIT 4 OFFSET 2",
    "SELECT id FROM {t} ORDER BY dotProduct(x, [1, 1]) DESC, _row LIMIT 5",
    "SELECT id FROM {t} WHERE L2Distance(x, [2, 3]) < 4 ORDER BY id",
    "SELECT count() FROM {t} WHERE L2Distance(x, [2, 3]) < 1e9",
    "SELECT count(), countIf(empty(x)), countIf(notEmpty(x)), sum(length(x)) FROM {t}",
    "SELECT lang, round(avg(L2Distance(x, [2, 3])), 3) FROM {t} WHERE notEmpty(x) GROUP BY lang ORDER BY lang",
    "SELECT empty(x), max(x[1]), groupArray(id) FROM {t} GROUP BY empty(x) ORDER BY 1",
    "SELECT id, x FROM {t} WHERE empty(x) ORDER BY id LIMIT 3",
    "SELECT id FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 5",
)


@pytest.fixture(scope="module")
def lacking(tables: Shardings) -> Shardings:
    return Shardings(tables.db, 70, name="lacking_", most=3)


@pytest.mark.parametrize("statement", LACKING)
def test_shards_with_rows_without_a_vector_give_what_one_table_gives(lacking: Shardings, statement: str) -> None:
    expected = lacking.one(statement, q=QUERY)

    assert lacking.sharded(3, statement, q=QUERY) == lacking.sharded(1, statement, q=QUERY) == expected


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
    "SELECT id, _row, {1}(e, {{q:Array(Float32)}}) AS d FROM {{t}} WHERE {0} "
    "ORDER BY d, _row LIMIT {2[0]} OFFSET {2[1]}".format,
    filters, distances, rows,
)  # fmt: skip
within = st.builds("SELECT id, s FROM {{t}} WHERE {0} AND {1}(e, {{q:Array(Float32)}}) < {2}".format,
                   filters, distances, st.sampled_from([0.0, 0.1, 0.5, 1.0, 9.0]))  # fmt: skip
groups = st.builds(
    "SELECT {1}, {2} FROM {{t}} WHERE {0} GROUP BY {1} ORDER BY {1}".format,
    filters, keys, functions.map(", ".join),
)  # fmt: skip
different = st.builds("SELECT DISTINCT {1} FROM {{t}} WHERE {0} LIMIT {2[0]} OFFSET {2[1]}".format, filters, keys, rows)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
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


VECTORS = [np.array(v, np.float32) for v in ([1, 0.5, 0.25], [1, 1, 1], [0.5, 0.75, 1.5], [0, 2, 0])]


@pytest.mark.parametrize(
    ("statement", "cut"),
    [
        ("SELECT id, url FROM {t} ORDER BY {near}, _row LIMIT 5", 1),
        ("SELECT id, {near} AS d FROM {t} WHERE w > {n:UInt8} ORDER BY d, id LIMIT 5", 1),
        ("SELECT count() FROM {t} WHERE {near} < 1", 1),
        ("SELECT id FROM {t} AS x ORDER BY L2Distance({q:Array(Float32)}, x.e), _row LIMIT 4", 1),
        ("SELECT id FROM {t} WHERE w > { n :UInt8} ORDER BY 1 - dotProduct(`e`, {q:Array(Float32)}), _row LIMIT 3", 1),
        # what might be computed while it is looked at, or shows, is cut again each time
        ("SELECT id, arraySum({q:Array(Float32)}) AS s FROM {t} ORDER BY {near}, _row LIMIT 3", 4),
        ("WITH {q:Array(Float32)} AS q SELECT id FROM {t} ORDER BY L2Distance(e, q), _row LIMIT 4", 4),
        ("SELECT min(id * {q:Array(Float32)}[1]) FROM {t}", 4),
        ("SELECT min(id * dotProduct([1., 0., 0.], {q:Array(Float32)})) FROM {t}", 4),
        ("SELECT [1., 2., 3.] e, min(id * dotProduct(e, {q:Array(Float32)})) FROM {t}", 4),
        ("SELECT id, CASE WHEN {q:Array(Float32)}[1] > 0 THEN url ELSE lang END AS f FROM {t} ORDER BY id LIMIT 3", 4),
        ("SELECT id, {near} FROM {t} ORDER BY id LIMIT 2", 5),
        ("SELECT id, now() > ts AS past FROM {t} ORDER BY {near}, _row LIMIT 3", 4),
        ("SELECT id FROM {t} WHERE w = (SELECT max(w) FROM {t}) ORDER BY {near}, _row LIMIT 3", 8),
    ],
)  # fmt: skip
def test_a_statement_that_comes_again_is_cut_once_and_answers_each_vector(
    tables: Shardings, monkeypatch: pytest.MonkeyPatch, statement: str, cut: int
) -> None:
    statement = statement.replace("{near}", "L2Distance(e, {q:Array(Float32)})")
    cuts: list[str] = []
    real = scatter_gather.split
    monkeypatch.setattr(scatter_gather, "split", lambda *given: (cuts.append(given[-1]), real(*given))[1])
    monkeypatch.setattr(tables.scatter_gather, "_plan_cache", PlanCache())

    for vector in VECTORS:
        assert tables.sharded(3, statement, q=vector, n=1) == tables.one(statement, q=vector, n=1)

    assert len(cuts) == cut


@pytest.mark.parametrize(
    ("statement", "cut"),
    [
        ("SELECT id, url FROM {t} ORDER BY L2Distance(e, {v}), _row LIMIT 5", 1),
        ("SELECT id, L2Distance({v}, e) AS d FROM {t} WHERE w > 1 ORDER BY d, id LIMIT 5", 1),
        ("SELECT count() FROM {t} WHERE L2Distance(e, {v}) < 1 AND L2Distance(e, {q:Array(Float32)}) < 2", 1),
        # its name shows the vector; it is in a string; its numbers are no Float64
        ("SELECT id, L2Distance(e, {v}) FROM {t} ORDER BY id LIMIT 2", 5),
        ("SELECT id, '{v}' AS s FROM {t} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 3", 4),
        ("SELECT id FROM {t} ORDER BY L2Distance(e, {i}), _row LIMIT 3", 4),
    ],
)  # fmt: skip
def test_a_statement_that_comes_again_with_another_literal_vector_is_cut_once(
    tables: Shardings, monkeypatch: pytest.MonkeyPatch, statement: str, cut: int
) -> None:
    cuts: list[str] = []
    real = scatter_gather.split
    monkeypatch.setattr(scatter_gather, "split", lambda *given: (cuts.append(given[-1]), real(*given))[1])
    monkeypatch.setattr(tables.scatter_gather, "_plan_cache", PlanCache())

    for at, vector in enumerate(("[1, 0.5, 0.25]", "[1, 1., 1]", "[.5, 7.5e-1, 1.5]", "[ 0., -2, 0 ]")):
        text = statement.replace("{v}", vector).replace("{i}", f"[1, 2, {at}]")
        given = {"q": QUERY} if "{q:" in text else {}
        assert tables.sharded(3, text, **given) == tables.one(text, **given)

    assert len(cuts) == cut


def test_a_statement_with_another_parameter_or_of_another_length_is_not_the_one_known(tables: Shardings) -> None:
    top = "SELECT id, w FROM {t} WHERE w > {n:UInt8} ORDER BY L2Distance(e, {q:Array(Float32)}), _row LIMIT 5"
    for n in (1, 2, 3, 1):
        assert tables.sharded(2, top, q=QUERY, n=n) == tables.one(top, q=QUERY, n=n)

    with pytest.raises(VectorError, match="the query vector"):
        tables.sharded(2, top, q=np.ones(4, np.float32), n=1)
    wide = QUERY.astype(np.float64)
    assert tables.sharded(2, top, q=wide, n=1) == tables.one(top, q=wide, n=1)


@pytest.mark.parametrize("where", ["id < { x:UInt64}", "id < {x :UInt64} AND {x: UInt64} > 0", "id < {x:\nUInt64}"])
def test_a_parameter_is_seen_however_it_is_spaced(tables: Shardings, where: str) -> None:
    top = f"SELECT id FROM {{t}} WHERE {where} ORDER BY L2Distance(e, {{q:Array(Float32)}}), id LIMIT 4"
    for x in (10, 200, 3):
        assert tables.sharded(3, top, q=QUERY, x=x) == tables.one(top, q=QUERY, x=x)


@pytest.mark.parametrize(
    ("statement", "batch"),
    [
        ("SELECT id, L2Distance(e, {q:Array(Float32)}) AS d FROM n3 ORDER BY d, id LIMIT 2", True),
        (("SELECT id, CASE WHEN {q:Array(Float32)}[1] > 0 THEN url ELSE lang END AS f FROM n3 "
         "ORDER BY L2Distance(e, {q:Array(Float32)}), id LIMIT 2"), False),
        ("SELECT id, L2Distance(e, {q:Array(Float32)}) FROM n3 ORDER BY id LIMIT 2", False),
    ],
)  # fmt: skip
def test_a_batch_answers_each_vector_or_is_none(tables: Shardings, statement: str, batch: bool) -> None:
    found = tables.scatter_gather.many(statement, [{"q": v} for v in VECTORS], {}, ())

    assert (found is not None) == batch
    for table, vector in zip(found or [], VECTORS, strict=False):
        rows = tables.db.sql(statement.replace("n3", "one"), q=vector).rows
        assert [tuple(r.values()) for r in table.to_pylist()] == rows


def test_only_so_many_statements_are_kept(tables: Shardings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MOST", 3)
    kept = PlanCache()
    monkeypatch.setattr(tables.scatter_gather, "_plan_cache", kept)

    for k in (1, 2, 3, 4, 5):
        top = f"SELECT id FROM {{t}} ORDER BY L2Distance(e, {{q:Array(Float32)}}), _row LIMIT {k}"
        assert tables.sharded(2, top, q=QUERY) == tables.one(top, q=QUERY)

    assert len(kept._kept) == 3


@pytest.mark.parametrize(
    ("statement", "tables_made"),
    [
        ("SELECT count() FROM {t} WHERE url IN (SELECT url FROM {t} WHERE w = 1)", 0),
        ("SELECT count() FROM {t} WHERE w = (SELECT max(w) FROM {t})", 0),
        ("SELECT url FROM {t} ORDER BY id LIMIT 30", 1),
        ("SELECT count() FROM (SELECT url FROM {t} ORDER BY id LIMIT 30)", 1),
    ],
)
def test_rows_that_shards_are_sent_travel_with_the_statement(
    tables: Shardings, monkeypatch: pytest.MonkeyPatch, statement: str, tables_made: int
) -> None:
    monkeypatch.setattr(scatter_gather, "INLINE_BYTES", 60)

    with tables.scatter_gather.rewritten(statement.replace("{t}", "n3"), {}, {}) as found:
        made = len(found.tables)

    assert made == tables_made
    assert tables.sharded(3, statement) == tables.one(statement)


def test_more_rows_than_can_be_sent_are_refused(tables: Shardings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter_gather, "TRAVEL_BYTES", 100)

    with pytest.raises(UnsupportedStatement, match="which each shard would be sent"):
        tables.sharded(3, "SELECT count() FROM {t} WHERE url IN (SELECT url FROM {t})")


@pytest.mark.parametrize("used", ["url IN x", "url IN (SELECT url FROM x)", "url = (SELECT max(url) FROM x)"])
def test_a_named_select_within_one_over_shards_is_refused_by_its_name(tables: Shardings, used: str) -> None:
    with pytest.raises(UnsupportedStatement, match="the SELECT that WITH calls x cannot be used within"):
        tables.sharded(3, f"WITH x AS (SELECT url FROM {{t}} WHERE w = 1) SELECT count() FROM {{t}} WHERE {used}")


def test_a_select_whose_vector_is_a_row_of_the_shards_is_explained(tables: Shardings) -> None:
    top = "SELECT id FROM n3 ORDER BY cosineDistance(e, (SELECT e FROM n3 WHERE id = 7)) LIMIT 5"

    assert [p.kind for p in tables.scatter_gather.plans(top, {})] == ["rows", "rows"]


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
            "SELECT L2Distance(e, {q:Array(Float32)}) AS d FROM {t} WHERE w > 1 AND lang = 'en' ORDER BY d LIMIT 9",
            "Top-k",
        ),
        (
            "WITH {q:Array(Float32)} AS q SELECT id FROM {t} ORDER BY cosineDistance(e, q) + L2Distance(e, q) LIMIT 9",
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
