"""Range joins: found by products of matrices, they give the pairs that ClickHouse gives by comparing every pair."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import clipql
from clipql.errors import QueryError
from clipql.index import cut, within
from clipql.index.within import PairsWithin, Side
from clipql.sql.joins import range_pairs
from clipql.storage.vectors import metrics
from clipql.storage.vectors.metrics import Metric

ROWS, DIMENSION = 320, 8


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    rng = np.random.default_rng(12)
    pictures = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    pictures[100:120] = pictures[:20]  # at distance 0
    pictures[200:220] = pictures[20:40] + 0.02 * rng.standard_normal((20, DIMENSION)).astype(np.float32)
    pictures[250] = 0
    evals = np.concatenate([pictures[:12], rng.standard_normal((12, DIMENSION)).astype(np.float32)])
    with clipql.connect(tmp_path_factory.mktemp("ranges") / "db") as opened:
        for name, vectors in (("pictures", pictures), ("evals", evals)):
            opened.sql(f"CREATE TABLE {name} (id UInt32, kind String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
            values = ", ".join(f"({i}, '{'ab'[i % 2]}', {v.tolist()})" for i, v in enumerate(vectors))
            opened.sql(f"INSERT INTO {name} VALUES {values}")
        opened.sql("DELETE FROM pictures WHERE id % 10 = 3")
        opened.sql("DELETE FROM evals WHERE id = 5")
        opened.sql("CREATE TABLE held (n UInt32, kind String, v Array(Float32)) ENGINE = Memory")
        opened.sql("INSERT INTO held SELECT id, kind, v FROM evals")
        opened.sql("ALTER TABLE pictures ADD INDEX i v TYPE ivf('cosineDistance')")
        opened.sql("ALTER TABLE pictures MATERIALIZE INDEX i")
        yield opened


JOINS = [
    "SELECT p.id AS x, e.id AS y FROM pictures AS p JOIN evals AS e ON cosineDistance(p.v, e.v) < 0.1",
    "SELECT p.id, e.id FROM pictures AS p INNER JOIN evals AS e ON L2Distance(e.v, p.v) <= 1.5 WHERE p.kind = 'a'",
    "SELECT pictures.id, evals.id, L2Distance(pictures.v, evals.v) FROM pictures, evals "  # noqa: ISC004
    "WHERE L2Distance(pictures.v, evals.v) < 1.5 AND evals.id > 7 AND pictures.kind != evals.kind",
    "SELECT p.id AS x, e.id AS y, cosineDistance(p.v, e.v) AS d FROM pictures p CROSS JOIN evals e WHERE d < 0.2",
    "SELECT a.id AS x, b.id AS y FROM pictures a, pictures b WHERE a.id < b.id AND cosineDistance(a.v, b.v) < 0.05",
    "SELECT a.id AS x, b.id AS y, a.kind AS k FROM pictures AS a JOIN pictures AS b "  # noqa: ISC004
    "ON L2SquaredDistance(a.v, b.v) < 1 AND a.id < b.id",
    "SELECT a.id AS x, b.id AS y FROM pictures a JOIN pictures b "  # noqa: ISC004
    "ON 1 - cosineDistance(a.v, b.v) > 0.9 WHERE a.id != b.id",
    "SELECT p.id AS x, e.id AS y FROM pictures p JOIN evals e ON dotProduct(p.v, e.v) >= 9",
    "SELECT e.id AS x, count() AS n, min(cosineDistance(e.v, p.v)) AS d FROM evals e JOIN pictures p "  # noqa: ISC004
    "ON cosineDistance(e.v, p.v) < {r:Float32} GROUP BY e.id HAVING n > 1",
    "SELECT DISTINCT p.id FROM pictures p JOIN evals e ON {r:Float32} > cosineDistance(p.v, e.v)",
    "SELECT count() FROM pictures WHERE id NOT IN "  # noqa: ISC004
    "(SELECT p.id FROM pictures p JOIN evals e ON cosineDistance(p.v, e.v) < 0.2)",
    "WITH 0.2 AS r SELECT p.id AS x, length(p.v) AS n, e.v[1] AS y FROM pictures p JOIN evals e "  # noqa: ISC004
    "ON L2Distance(p.v, e.v) < r * 5 AND cosineDistance(p.v, e.v) < 0.9",
    "SELECT p.id AS x, e.id AS y, row_number() OVER (PARTITION BY e.id ORDER BY p.id) AS n FROM pictures p, evals e "  # noqa: ISC004
    "WHERE cosineDistance(p.v, e.v) < 0.1",
    "SELECT p.id AS x, e.id AS y FROM pictures p JOIN evals e ON cosineDistance(p.v, e.v) < 0",
    "SELECT a.id AS x, b.id AS y FROM pictures a JOIN pictures b ON L2Distance(a.v, b.v) <= 0",
]


@pytest.mark.parametrize("statement", JOINS)
def test_a_range_join_gives_the_pairs_of_clickhouse(db: clipql.Database, statement: str) -> None:
    planned = db.sql(statement, r=0.15)
    passed = db.sql(statement + " SETTINGS vector_plan = 0", r=0.15)
    assert "range join" in [s.kind for s in planned.stats.searches]
    assert planned.columns == passed.columns
    assert planned.arrow().schema == passed.arrow().schema
    assert [round_all(r) for r in sorted(planned.rows)] == [round_all(r) for r in sorted(passed.rows)]


def round_all(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(pytest.approx(v, rel=2e-5, abs=2e-6) if isinstance(v, float) else v for v in row)


GIVEN = [
    "SELECT p.id AS x, q.n AS y FROM pictures AS p JOIN held AS q ON cosineDistance(p.v, q.v) < 0.1",
    "SELECT q.n, p.id, L2Distance(q.v, p.v) FROM held q, pictures p WHERE L2Distance(q.v, p.v) < 1.5 AND q.kind = 'a'",
    "SELECT p.id AS x, q.n AS y, q.kind AS k FROM held AS q CROSS JOIN pictures AS p "  # noqa: ISC004
    "WHERE cosineDistance(p.v, q.v) < {r:Float32} AND q.kind != p.kind AND p.id > 20",
    "SELECT p.id AS x, q.i AS y, q.d2 AS z FROM pictures p "  # noqa: ISC004
    "JOIN (SELECT id AS i, i * 2 AS d2, v FROM evals WHERE id < 9) AS q ON L2SquaredDistance(p.v, q.v) <= 1",
    "SELECT p.id AS x, q.id AS y FROM pictures p JOIN (SELECT * FROM evals ORDER BY id DESC LIMIT 20) AS q "  # noqa: ISC004
    "ON cosineDistance(p.v, q.v) < 0.2",
    "SELECT count() FROM pictures p, (SELECT arrayJoin({Q:Array(Array(Float32))}) AS w) q "  # noqa: ISC004
    "WHERE dotProduct(q.w, p.v) > 8",
    "WITH qs AS (SELECT n, v FROM held WHERE n > 3) SELECT p.kind AS k, count() AS c, min(q.n) AS m FROM qs AS q "  # noqa: ISC004
    "JOIN pictures AS p ON cosineDistance(q.v, p.v) < 0.3 GROUP BY k",
    "SELECT p.id AS x, q.w[1] AS y, length(p.v) AS z FROM pictures p "  # noqa: ISC004
    "JOIN VALUES('w Array(Float32)', ([1, 0, 0, 0, 0, 0, 0, 0]), ([1, 2, 1, 2, 1, 2, 1, 2])) AS q "
    "ON cosineDistance(p.v, q.w) < 0.7",
    "SELECT p.id AS x FROM pictures p WHERE p.id IN (SELECT l.id FROM pictures AS l JOIN held AS h "  # noqa: ISC004
    "ON cosineDistance(l.v, h.v) < 0.05)",
    "SELECT p.id AS x, q.n AS y FROM pictures p JOIN held q ON cosineDistance(p.v, q.v) < 0.1 AND q.n > 900",
    "SELECT p.id AS x, q.id AS y FROM pictures p "  # noqa: ISC004
    "JOIN (SELECT id, v FROM evals ORDER BY L2Distance(v, [1, 1, 1, 1, 1, 1, 1, 1]) LIMIT 7) q "
    "ON L2Distance(p.v, q.v) < 2",
]


@pytest.mark.parametrize("statement", GIVEN)
def test_a_range_join_with_vectors_that_come_with_the_statement_gives_the_pairs_of_clickhouse(
    db: clipql.Database, statement: str
) -> None:
    given = {"r": 0.15, "Q": next(db.vectors("evals", "v")).vectors[:9].tolist()}
    planned = db.sql(statement, **given)
    passed = db.sql(statement + " SETTINGS vector_plan = 0", **given)
    assert "range join" in [s.kind for s in planned.stats.searches]
    assert planned.columns == passed.columns
    assert planned.arrow().schema == passed.arrow().schema
    assert [round_all(r) for r in sorted(planned.rows)] == [round_all(r) for r in sorted(passed.rows)]


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ("if(n = 3, [1], v)", "not all its query vectors have 8 numbers"),
        ("arrayMap(x -> nan, v)", "one of its query vectors is not finite"),
    ],
)
def test_what_is_no_list_of_vectors_of_one_length_is_left_to_clickhouse(
    db: clipql.Database, vector: str, why: str
) -> None:
    source = f"(SELECT n, CAST({vector}, 'Array(Float32)') AS v FROM held)"
    statement = f"SELECT count() FROM pictures p JOIN {source} AS q ON cosineDistance(p.v, q.v) < 0.1"
    try:
        passed = db.sql(statement + " SETTINGS vector_plan = 0").rows
    except QueryError as error:
        with pytest.raises(QueryError, match=f"{error.code}"):
            db.sql(statement)
        return
    planned = db.sql(statement)
    assert [(s.kind, s.why) for s in planned.stats.searches] == [("as it is", why)]
    assert planned.rows == passed


def test_explain_tells_a_range_join_with_vectors_that_come_with_the_statement(db: clipql.Database) -> None:
    near = "SELECT p.id FROM pictures p JOIN held q ON cosineDistance(p.v, q.v) < 0.1"
    lines = [r[0] for r in db.sql(f"EXPLAIN {near}").rows]
    assert lines[0] == "Range join (cosineDistance at most 0.1)"
    assert "  rows of: q (vectors that FROM gives), v" in lines


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT p.id AS x, e.id AS y FROM pictures p JOIN evals e ON cosineDistance(p.v, e.v) > 0.1 WHERE p.id < 9",
        "SELECT e.id AS x, p.id AS y FROM evals e LEFT JOIN pictures p "  # noqa: ISC004
        "ON p.id = e.id AND cosineDistance(p.v, e.v) < 0.1",
        "SELECT p.id AS x, e.id AS y FROM pictures p JOIN evals e ON p.id = e.id OR cosineDistance(p.v, e.v) < 0.1",
    ],
)
def test_any_other_join_is_left_to_clickhouse(db: clipql.Database, statement: str) -> None:
    planned = db.sql(statement)
    assert "range join" not in [s.kind for s in planned.stats.searches]
    assert sorted(planned.rows) == sorted(db.sql(statement + " SETTINGS vector_plan = 0").rows)


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("metric", ["cosineDistance", "L2Distance", "L2SquaredDistance", "dotProduct"])
def test_a_pair_at_the_bound_is_decided_as_clickhouse_decides(db: clipql.Database, sign: str, metric: str) -> None:
    near = (sign[0] == ">") == (metric == "dotProduct")
    call = f"{'' if near else '-'}{metric}(p.v, e.v)"
    order = "DESC" if metric == "dotProduct" else ""
    found = db.sql(
        f"SELECT groupArray(d) FROM (SELECT {metric}(p.v, e.v) AS d FROM pictures p, evals e WHERE p.id > 120 "
        f"ORDER BY d {order} LIMIT 200) SETTINGS vector_plan = 0"
    ).rows[0][0]
    for value in found[::100]:
        condition = f"{call} {sign} toFloat32({value if near else -value!r})"
        statement = f"SELECT p.id AS x, e.id AS y FROM pictures p JOIN evals e ON {condition}"
        planned, passed = db.sql(statement), db.sql(statement + " SETTINGS vector_plan = 0")
        assert [s.kind for s in planned.stats.searches] == ["range join"]
        assert sorted(planned.rows) == sorted(passed.rows)


def test_a_bound_that_rules_nothing_out_is_left_to_clickhouse(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_pairs, "MOST_PAIRS", 3_000)
    statement = "SELECT count() FROM pictures p JOIN evals e ON cosineDistance(p.v, e.v) < {}"
    wide, narrow = db.sql(statement.format(1.9)), db.sql(statement.format(0.05))
    assert [s.kind for s in (*wide.stats.searches, *narrow.stats.searches)] == ["as it is", "range join"]
    assert "pairs are within the bound" in wide.stats.searches[0].why
    assert wide.rows == db.sql(statement.format(1.9) + " SETTINGS vector_plan = 0").rows


def test_a_range_join_is_inserted_and_deleted_by(db: clipql.Database) -> None:
    db.sql("CREATE TABLE copy AS SELECT * FROM pictures")
    near = "(SELECT c.id FROM copy c JOIN evals e ON cosineDistance(c.v, e.v) < 0.05)"
    try:
        left = db.sql(f"SELECT count() FROM copy WHERE id NOT IN {near} SETTINGS vector_plan = 0").rows
        db.sql(f"DELETE FROM copy WHERE id IN {near}")
        assert db.sql("SELECT count() FROM copy").rows == left
        assert 0 < left[0][0] < ROWS - 20
        db.sql("CREATE TABLE pairs (a UInt32, b UInt32, d Float32) ENGINE = MergeTree ORDER BY a")
        pairs = (
            "SELECT a.id, b.id, L2Distance(a.v, b.v) FROM copy a, copy b WHERE a.id < b.id AND L2Distance(a.v, b.v) < 1"
        )
        db.sql(f"INSERT INTO pairs {pairs}")
        assert db.sql("SELECT count() FROM pairs").rows == [(len(db.sql(f"{pairs} SETTINGS vector_plan = 0")),)]
    finally:
        db.sql("DROP TABLE copy")
        db.sql("DROP TABLE IF EXISTS pairs")


def test_a_range_join_tells_how_far_it_is_and_can_be_stopped(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(within, "LEFT", 50)
    told: list[tuple[int, int]] = []

    def progress(latest: Any) -> None:
        if latest.get("stage") == range_pairs.STAGE:
            told.append((latest["read_rows"], latest["total_rows_to_read"]))
            if len(told) > 9:
                raise KeyboardInterrupt

    db.session().execute(JOINS[0], progress=progress)
    assert told == sorted(told)
    assert 3 <= len(told) <= 9
    assert all(done < total == 288 * 23 for done, total in told)
    told *= 4
    with pytest.raises(KeyboardInterrupt):
        db.session().execute(JOINS[0], progress=progress)
    assert len(db.sql(JOINS[0])) > 0


def test_explain_tells_of_a_range_join(db: clipql.Database) -> None:
    told = [r[0] for r in db.sql("EXPLAIN " + JOINS[2]).rows]
    assert told[0] == "Range join (L2Distance at most 1.5)"
    assert f"  rows of: default.pictures ({ROWS} rows), v" in told
    assert "    filter first: (evals.id > 7)" in told
    assert "  pairs must meet: pictures.kind != evals.kind" in told
    assert any(f"{ROWS * 24:,} pairs" in line for line in told)


def test_the_vectors_of_near_any_are_chosen_first(db: clipql.Database) -> None:
    told = db.sql(
        "EXPLAIN SELECT id FROM pictures WHERE nearAny(v, (SELECT v FROM evals WHERE id < 3), 'L2Distance', 1)"
    )
    assert "    filter first: (clipql_any._row IN (SELECT _row FROM evals WHERE id < 3))" in [r[0] for r in told.rows]


def column(x: np.ndarray[Any, Any]) -> Any:
    """A column of vectors."""
    largest = float(np.sqrt((x.astype(np.float64) ** 2).sum(1).max()))
    take = lambda rows: x[rows].astype(np.float32)  # noqa: E731
    return SimpleNamespace(rows=len(x), dimension=x.shape[1], largest=largest, take=take, stored=take)


@pytest.mark.parametrize("kind", ["clustered", "random", "of lower dimension", "of all lengths"])
@pytest.mark.parametrize("metric", list(Metric))
def test_bounds_by_principal_components_miss_no_pair(
    metric: Metric, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 440, 96)).astype(np.float32)
    if kind == "clustered":
        x, y = (rng.standard_normal((9, 96))[rng.integers(0, 9, 440)] + 0.1 * z for z in (x, y))
    elif kind == "of lower dimension":
        x[:, 20:], y[:, 20:] = 0, 0
    elif kind == "of all lengths":
        x, y = (z * 10.0 ** rng.integers(-3, 3, (440, 1)) for z in (x, y))
    x, y = x.astype(np.float32), y.astype(np.float32)
    monkeypatch.setattr(within, "SAMPLE", 30)
    monkeypatch.setattr(within, "LEFT", 64)
    monkeypatch.setattr(within, "RIGHT", 100)
    monkeypatch.setattr(within, "PAIRS", 100)
    every = np.stack([metrics.distances(metric, y, row) for row in x])
    for share in (0.0005, 0.02):
        bound = float(np.quantile(every, 1 - share if metric is Metric.DOT else share))
        search = PairsWithin(metric, Side(column(x), 440), Side(column(y), 440), bound)
        found = list(search.find())
        pairs = {(int(i), int(j)) for f in found for i, j in zip(f.left, f.right, strict=True)}
        wanted = every >= bound if metric is Metric.DOT else every <= bound
        assert pairs >= set(zip(*(c.tolist() for c in np.nonzero(wanted)), strict=True))
        assert sum(len(f.left) for f in found) == len(pairs)
        assert len(pairs) - wanted.sum() <= sum(int(f.unsure.sum()) for f in found)
        if kind == "of lower dimension" and metric is Metric.COSINE:
            assert search.uses_components == (share == 0.0005)


@pytest.mark.parametrize("leading", [1, 5, 30])
@pytest.mark.parametrize("metric", list(Metric))
def test_rows_cut_twice_miss_no_pair_and_what_is_left_out_counts(
    metric: Metric, leading: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((9, 96))[rng.integers(0, 9, 500)] + 0.3 * rng.standard_normal((500, 96)) for _ in "xy")
    x, y = (z.astype(np.float32) * np.float32(3) for z in (x, y))
    x[7] = y[11] = 0
    basis = np.linalg.qr(rng.standard_normal((96, 30)))[0].astype(np.float32)  # any orthogonal one is right
    monkeypatch.setattr(within, "SAMPLE", 30)
    monkeypatch.setattr(cut, "chosen", lambda *args, **options: cut.Cut(basis, leading))
    every = np.stack([metrics.distances(metric, y, row) for row in x])
    bound = float(np.nanquantile(every, 0.9 if metric is Metric.DOT else 0.1))
    search = PairsWithin(metric, Side(column(x), 500), Side(column(y), 500), bound)
    found = list(search.find())
    assert search.uses_components
    pairs = {(int(i), int(j)) for f in found for i, j in zip(f.left, f.right, strict=True)}
    wanted = every >= bound if metric is Metric.DOT else every <= bound
    assert pairs >= set(zip(*(c.tolist() for c in np.nonzero(wanted)), strict=True))
    assert len(pairs) - wanted.sum() <= sum(int(f.unsure.sum()) for f in found)


def within_bound(
    x: NDArray[np.float32], y: NDArray[np.float32], metric: Metric, bound: float
) -> tuple[set[tuple[int, int]], NDArray[np.bool_]]:
    """The pairs that are found, and which there are by float64."""
    every = np.stack([metrics.distances(metric, y.astype(np.float64), row) for row in x.astype(np.float64)])
    search = PairsWithin(metric, Side(column(x), len(x)), Side(column(y), len(y)), bound)
    pairs = {(int(i), int(j)) for f in search.find() for i, j in zip(f.left, f.right, strict=True)}
    return pairs, every >= bound if metric is Metric.DOT else every <= bound


@pytest.mark.parametrize(("short", "long"), [(1e-24, 1e6), (1e-21, 1e7), (1e-17, 1e-3), (1.0, 1.0)])
def test_products_with_vectors_whose_squares_vanish_are_found(
    short: float, long: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    x, y = (rng.standard_normal((300, 96)) * size for size in (short, long))
    x, y = x.astype(np.float32), y.astype(np.float32)
    basis = np.linalg.qr(rng.standard_normal((96, 20)))[0].astype(np.float32)
    monkeypatch.setattr(within, "SAMPLE", 20)
    bound = float(np.quantile(x.astype(np.float64) @ y.T.astype(np.float64), 0.99))
    for leading in (5, 20):
        monkeypatch.setattr(cut, "chosen", lambda *args, m=leading, **options: cut.Cut(basis, m))
        pairs, wanted = within_bound(x, y, Metric.DOT, bound)
        assert pairs >= set(zip(*(c.tolist() for c in np.nonzero(wanted)), strict=True))


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_sums_of_thousands_of_like_numbers_lose_no_pair(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    d, n = 4_096, 60
    rng = np.random.default_rng(5)
    x = np.repeat(rng.uniform(0.5, 2, (n, 1)), d, axis=1).astype(np.float32)
    y = -np.repeat(rng.uniform(0.5, 2, (n, 1)), d, axis=1).astype(np.float32)
    basis = np.full((d, 1), d**-0.5, np.float32)
    monkeypatch.setattr(within, "SAMPLE", 4)
    monkeypatch.setattr(PairsWithin, "_cut", lambda self: cut.Cut(basis, 1))
    bound = 2.0 if metric is Metric.COSINE else float((x.astype(np.float64) @ y.T.astype(np.float64)).min())
    pairs, wanted = within_bound(x, y, metric, bound)
    assert pairs >= set(zip(*(c.tolist() for c in np.nonzero(wanted)), strict=True))
    assert len(pairs) == n * n


def test_a_pair_that_the_engine_may_let_in_is_found_with_a_cut_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    d, bound = 3_072, 0.1
    x = rng.standard_normal((1, d))
    x /= np.linalg.norm(x)
    away = rng.standard_normal((200, d))
    away -= (away @ x.T) * x
    away /= np.linalg.norm(away, axis=1)[:, None]
    cosines = 1 - bound + rng.uniform(-2.4e-5, 2.4e-5, 200)
    y = (cosines[:, None] * x + np.sqrt(1 - cosines**2)[:, None] * away).astype(np.float32)
    basis = np.linalg.qr(np.concatenate([x.T, rng.standard_normal((d, 7))], axis=1))[0].astype(np.float32)
    found = []
    for some in (None, cut.Cut(basis, 8)):
        monkeypatch.setattr(PairsWithin, "_cut", lambda self, some=some: some)
        found.append(within_bound(x.astype(np.float32), y, Metric.COSINE, bound)[0])
    assert found[0] == found[1]
    assert len(found[0]) == 200


def test_each_pair_of_a_column_with_itself_is_compared_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "LEFT", 96)
    monkeypatch.setattr(within, "RIGHT", 130)
    x = column(np.random.default_rng(7).standard_normal((400, 24)).astype(np.float32))
    search = PairsWithin(Metric.COSINE, Side(x, 400), Side(x, 400), 0.5)
    told: list[tuple[int, int]] = []
    found = list(search.find(lambda: told.append(search.progress)))
    pairs = [(int(i), int(j)) for f in found for i, j in zip(f.left, f.right, strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(j, i) for i, j in pairs}
    assert search.progress == (400 * 401 // 2, 400 * 401 // 2)
    assert told == sorted(told)
    assert search.cost.rows_scanned == 400 * 401 // 2


def test_rows_are_not_expected_to_be_near_because_each_is_near_itself() -> None:
    x = column(np.random.default_rng(1).standard_normal((900, 24)).astype(np.float32))
    search = PairsWithin(Metric.COSINE, Side(x, 900), Side(x, 900), 0.01)
    assert search.expected == 0
    assert sum(len(f.left) for f in search.find()) == 900
    wide = PairsWithin(Metric.COSINE, Side(x, 900), Side(x, 900), 1.0)
    assert 0.4 * 900**2 < wide.expected < 0.6 * 900**2


def test_pairs_of_a_column_with_itself_are_found_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "LEFT", 64)
    monkeypatch.setattr(within, "RIGHT", 150)
    x = column(np.random.default_rng(1).standard_normal((400, 6)).astype(np.float32))
    found = list(PairsWithin(Metric.COSINE, Side(x, 400), Side(x, 400), 0.2).find())
    pairs = [(int(i), int(j)) for f in found for i, j in zip(f.left, f.right, strict=True)]
    every = np.stack([metrics.distances(Metric.COSINE, x.take(np.arange(400)), row) for row in x.take(np.arange(400))])
    assert sorted(pairs) == sorted(zip(*(c.tolist() for c in np.nonzero(every <= 0.2)), strict=True))


NEAR_ANY = [
    ("nearAny(v, (SELECT v FROM evals), 'cosineDistance', 0.1)", "cosineDistance(v, x) < 0.1", "1"),
    (
        "nearAny(v, (SELECT e.v FROM evals AS e WHERE e.id > 6), 'L2Distance', {r:Float32} * 9)",
        "L2Distance(v, x) < 1.35",
        "id > 6",
    ),
    (
        "NOT nearAny(pictures.v, (SELECT v FROM evals WHERE kind = 'a'), 'dotProduct', 8)",
        "dotProduct(v, x) > 8",
        "kind = 'a'",
    ),
    (
        "nearAny(v, (SELECT arrayMap(y -> -y, v) FROM evals), 'L2Distance', 2)",
        "L2Distance(v, arrayMap(y -> -y, x)) < 2",
        "1",
    ),
]


@pytest.mark.parametrize(("condition", "plain", "where"), NEAR_ANY)
def test_rows_near_any_of_some_vectors_are_those_of_clickhouse(
    db: clipql.Database, condition: str, plain: str, where: str
) -> None:
    wanted = f"arrayExists(x -> {plain}, (SELECT groupArray(v) FROM evals WHERE {where}))"
    if condition.startswith("NOT"):
        wanted = f"NOT {wanted}"
    alone = db.sql(f"SELECT id FROM pictures WHERE {wanted} ORDER BY id SETTINGS vector_plan = 0").rows
    assert 0 < len(alone) < ROWS * 0.9
    statement = f"SELECT id FROM pictures WHERE {condition} AND id >= 0 ORDER BY id"
    found = db.sql(statement, r=0.15)
    assert found.rows == alone == db.sql(statement + " SETTINGS vector_plan = 0", r=0.15).rows
    assert "range join" in [s.kind for s in found.stats.searches]
    db.sql("CREATE TABLE copy AS SELECT * FROM pictures")
    try:
        db.sql(f"DELETE FROM copy WHERE {condition.replace('pictures.', 'copy.')}", r=0.15)
        kept = "SELECT id FROM pictures WHERE id NOT IN {ids:Array(UInt32)} ORDER BY id"
        assert db.sql("SELECT id FROM copy ORDER BY id").rows == db.sql(kept, ids=[row[0] for row in alone]).rows
    finally:
        db.sql("DROP TABLE copy")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("nearAny(v, (SELECT v FROM evals), 0.1)", "nearAny has 3 arguments"),
        ("nearAny(kind, (SELECT v FROM evals), 'L2Distance', 0.1)", "kind is not plainly a vector column"),
        ("nearAny(v, (SELECT v FROM evals), 'manhattan', 0.1)", "'manhattan' is no distance"),
        ("nearAny(v, [1, 2], 'L2Distance', 0.1)", "not a SELECT in brackets"),
        ("nearAny(v, (SELECT v FROM evals), 'L2Distance', 0.1) AND nothing > 3", "nothing"),
    ],
)
def test_near_any_says_how_it_is_used(db: clipql.Database, call: str, message: str) -> None:
    with pytest.raises(clipql.ClipqlError, match=message):
        db.sql(f"SELECT id FROM pictures WHERE {call}")
