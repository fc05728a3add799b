"""Distances of two vector columns of a row: wherever they are written, they give what ClickHouse gives alone."""

from __future__ import annotations

import functools
import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.errors import QueryError
from clipql.index import flat
from clipql.sql.recognition import plan
from clipql.storage.vectors import metrics, rowwise
from clipql.storage.vectors.metrics import Metric
from clipql.tables import computed
from tests.cases import some

ROWS, DIMENSION = 3_000, 8


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    rng = np.random.default_rng(5)
    a = rng.standard_normal((ROWS, DIMENSION)).astype(np.float16).astype(np.float32)
    b = (a + rng.standard_normal((ROWS, DIMENSION))).astype(np.float32)  # of which float16 would lose digits
    c = (a + rng.standard_normal((ROWS, DIMENSION))).astype(np.float16).astype(np.float32)
    c[::9] = 0
    with clipql.connect(tmp_path_factory.mktemp("rowwise") / "db") as opened:
        opened.sql(
            "CREATE TABLE t (id UInt32, url String, k UInt8, score Float32, a Array(Float32), b Array(Float32), "
            "c Array(Float32)) ENGINE = MergeTree ORDER BY id"
        )
        for part in (slice(0, 1_000), slice(1_000, 1_001), slice(1_001, ROWS)):
            rows = (
                f"({i}, 'http://{'ab'[i % 2]}.org/{i}', {i % 5}, 0, {a[i].tolist()}, {b[i].tolist()}, {c[i].tolist()})"
                for i in range(ROWS)[part]
            )
            opened.sql("INSERT INTO t VALUES " + ", ".join(rows))
        opened.sql("DELETE FROM t WHERE id % 11 = 5")
        opened.sql("ALTER TABLE t ADD INDEX i a TYPE ivf('L2Distance')")
        opened.sql("ALTER TABLE t MATERIALIZE INDEX i")
        opened.sql("CREATE TABLE names (id UInt32, name String) ENGINE = Memory")
        opened.sql("INSERT INTO names SELECT number * 3, toString(number) FROM numbers(500)")
        yield opened


STATEMENTS = [
    "SELECT id, arraySum(a), arrayAvg(b), arrayMin(a) AS l, arrayMax(c), L2Norm(b), L1Norm(a) FROM t ORDER BY id",
    "SELECT k, avg(LinfNorm(a)), max(L2SquaredNorm(b)), min(normL2(c)) FROM t GROUP BY k ORDER BY k",
    "SELECT count() FROM t WHERE arraySum(a) > 0 AND L2Norm(b) < 3 AND arrayMax(a) >= 1.5",
    "SELECT id, cityHash64(a), cityHash64(b) AS h, cityHash64(t.c) % 7 FROM t ORDER BY id",
    "SELECT cityHash64(c) AS h, count() AS n, min(id) FROM t GROUP BY h HAVING n > 1 ORDER BY n DESC",
    "SELECT uniqExact(a), uniqExact(c), count(DISTINCT c), countDistinct(b) FROM t",
    "SELECT count(a), count(DISTINCT a) FROM t",
    "SELECT k, avgForEach(a) AS mean, sumForEach(b), length(minForEach(c)) FROM t GROUP BY k ORDER BY k",
    "SELECT avgForEach(a)[3], maxForEach(b), L2Norm(avgForEach(c)) FROM t WHERE id % 3 = 1",
    "SELECT avgForEach(a), sumForEach(a) FROM t WHERE id > 1000000",
    "WITH (SELECT avgForEach(a) FROM t) AS mean SELECT id FROM t ORDER BY L2Distance(a, mean) DESC LIMIT 5",
    "SELECT k, uniqExact(c) AS n FROM t GROUP BY k ORDER BY n, k",
    "SELECT avg(cosineDistance(a, b)), max(L2Distance(a, c)), min(dotProduct(b, c)) FROM t",
    "SELECT sum(L2SquaredDistance(c, a)) FROM t",
    "SELECT id, cosineDistance(a, b), L2Distance(t.a, default.t.c) AS l FROM t ORDER BY id",
    "SELECT id, cosineDistance(a, c) FROM t WHERE k = 1 ORDER BY id",  # NaN, of zero vectors
    "SELECT domain(url) AS d, count(), round(avg(cosineDistance(a, b)), 3) FROM t GROUP BY d ORDER BY d",
    "SELECT round(cosineDistance(a, b), 1) AS bin, count() FROM t GROUP BY bin ORDER BY bin",
    "SELECT cosineDistance(a, b) < 0.2 AS near, count() FROM t GROUP BY near HAVING count() > 3 ORDER BY near",
    "SELECT id FROM t ORDER BY cosineDistance(a, b) LIMIT 7",
    "SELECT id, dotProduct(a, b) AS d FROM t WHERE id > 40 ORDER BY d DESC, id LIMIT 7 OFFSET 2",
    "SELECT id FROM t WHERE distanceL2(a, b) < 2.5 AND k != 2 ORDER BY id",
    "SELECT id FROM t PREWHERE cosineDistance(a, b) < 0.2 WHERE k = 2 ORDER BY id",
    "SELECT id, 1 - cosineDistance(a, b) AS similarity FROM t WHERE similarity >= 0.8 ORDER BY id",
    "SELECT id FROM t WHERE NOT cosineDistance(a, b) > 0.2 OR id = 7 ORDER BY id",
    "SELECT id FROM t WHERE cosineDistance(a, b) BETWEEN 0.1 AND 0.3 ORDER BY id",
    "WITH cosineDistance(a, b) AS d SELECT count() FROM t WHERE d < 0.3",
    "WITH 0.3 AS limit SELECT countIf(cosineDistance(a, b) < limit), quantileExact(0.5)(cosineDistance(b, a)) FROM t",
    "SELECT count() FROM (SELECT id, cosineDistance(a, b) AS d FROM t) WHERE d < 0.3",
    "SELECT sum(s) FROM (SELECT sum(cosineDistance(a, b)) AS s FROM t GROUP BY k)",
    "SELECT * FROM (SELECT id, cosineDistance(a, b) FROM t ORDER BY id LIMIT 3)",
    "SELECT count() FROM names WHERE id IN (SELECT id FROM t WHERE cosineDistance(a, b) < 0.3)",
    "SELECT n.name, cosineDistance(t.a, t.b) AS d FROM t INNER JOIN names AS n ON n.id = t.id WHERE d < 0.4 "  # noqa: ISC004
    "ORDER BY n.name",
    "SELECT id FROM t WHERE cosineDistance(a, b) < 0.5 ORDER BY L2Distance(a, {q:Array(Float32)}) LIMIT 5",
    "SELECT id, cosineDistance(a, b) AS d FROM t ORDER BY L2Distance(a, {q:Array(Float32)}) LIMIT 5",
    "SELECT id FROM t WHERE cosineDistance(a, b) < 0.05 UNION DISTINCT "  # noqa: ISC004
    "(SELECT id FROM t WHERE cosineDistance(a, c) < 0.1 ORDER BY id)",
    "SELECT id, rank() OVER (PARTITION BY k ORDER BY cosineDistance(a, b)) AS r FROM t ORDER BY id",
    "SELECT DISTINCT cosineDistance(a, b) < 0.5 FROM t ORDER BY 1",
    "SELECT k, argMin(id, cosineDistance(a, b)) FROM t GROUP BY k ORDER BY k LIMIT 3 SETTINGS max_threads = 2",
]


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=2e-5, abs_tol=2e-5)
    return bool(one == other)


def agree(db: clipql.Database, statement: str) -> list[str]:
    """Compare with ClickHouse alone, and return the kinds of steps."""
    given = {"q": np.linspace(-1, 1, DIMENSION).astype(np.float32)}
    planned = db.sql(statement, **given)
    alone = " ".join(statement.split(" SETTINGS ")[0:1]) + " SETTINGS vector_plan = 0"
    passed = db.sql(alone, **given)
    assert not passed.stats.searches
    assert planned.arrow().schema == passed.arrow().schema
    order = sorted if " UNION " in statement else list
    rows = zip(order(planned.rows), order(passed.rows), strict=True)
    assert all(alike(x, y) for one, other in rows for x, y in zip(one, other, strict=True)), statement
    return [s.kind for s in planned.stats.searches]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_distances_of_rows_are_those_of_clickhouse(
    db: clipql.Database, statement: str, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:
        monkeypatch.setattr(plan, "SMALL_TABLE", ROWS + 1)
    assert "numbers of rows" in agree(db, statement)


AT_ONCE = [  # (statement, whether the numbers of all rows are needed)
    ("SELECT avg(cosineDistance(a, b)) FROM t", True),
    ("SELECT id, L2Distance(a, c) AS d FROM t WHERE d < 2 AND L2Norm(a) BETWEEN 1 AND 3 ORDER BY id", True),
    ("SELECT id FROM t WHERE cosineDistance(a, b) < 0.3 OR id = 7 ORDER BY id", True),
    ("SELECT id FROM t ORDER BY L2Distance(a, b), id LIMIT 3", True),
    ("SELECT d > 1 AS far, count() FROM (SELECT L2Distance(a, b) AS d FROM t) GROUP BY far ORDER BY far", True),
    ("SELECT k, max(L2Distance(a, b)) AS m FROM t GROUP BY k ORDER BY k LIMIT 2", True),
    ("SELECT cosineDistance(a, b) FROM t LIMIT 3", False),
    ("SELECT cosineDistance(a, b) FROM t ORDER BY id LIMIT 3", False),
    ("SELECT cosineDistance(a, b) FROM t WHERE id = 3", False),
    ("SELECT count() FROM t WHERE cosineDistance(a, b) < 0.3 AND id < 100", False),
    ("SELECT count() FROM t PREWHERE id < 100 WHERE cosineDistance(a, b) < 0.3", False),
    ("SELECT count() FROM t WHERE cosineDistance(a, b) < 0.3 AND id > 100 AND url LIKE 'http%'", False),  # not plain
    ("SELECT count() FROM t WHERE cosineDistance(a, b) < 0.3 AND id > 100 AND k IN (1, 2, 3)", True),
    ("SELECT count(), avg(L2Norm(a)) FROM t PREWHERE id >= 100 WHERE cosineDistance(a, b) < 0.3 AND k != 2", True),
    ("SELECT d FROM (SELECT id, cosineDistance(a, b) AS d FROM t) WHERE id = 3", False),
    ("SELECT cosineDistance(t.a, t.b) FROM t INNER JOIN names AS n ON n.id = t.id ORDER BY t.id", False),
]


@pytest.mark.parametrize(("statement", "whole"), AT_ONCE)
def test_numbers_of_all_rows_are_computed_at_once_where_all_are_needed(
    db: clipql.Database, statement: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = db.registry.computed
    asked, at_once = list[str](), ours.all
    monkeypatch.setattr(ours, "all", lambda name, *rest: (asked.append(name), at_once(name, *rest))[1])
    agree(db, statement)
    assert bool(asked) == whole


@pytest.fixture(scope="module")
def whole(db: clipql.Database) -> clipql.Database:
    """With a table of small whole numbers, so that many distances are the same and many bounds are met exactly."""
    rng = np.random.default_rng(1)
    a = rng.integers(-3, 4, (1_500, 6)).astype(float)
    b = a + rng.integers(-1, 2, a.shape)
    b[::13] = 0
    a[::17] *= 1e3
    db.sql("CREATE TABLE w (id UInt32, k UInt8, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    rows = (f"({i}, {i % 5}, {a[i].tolist()}, {b[i].tolist()})" for i in range(len(a)))
    db.sql("INSERT INTO w VALUES " + ", ".join(rows))
    db.sql("DELETE FROM w WHERE id % 11 = 3")
    return db


NUMBERS = (
    "cosineDistance(a, b)", "L2Distance(a, b)", "dotProduct(a, b)", "L2SquaredDistance(b, a)", "L1Distance(a, b)",
    "LinfDistance(a, b)", "L2Norm(a)", "L1Norm(b)", "arraySum(b)", "arrayAvg(a)", "arrayMax(a)",
)  # fmt: skip
SUMS: dict[str, Callable[[float], float]] = {
    "{}": lambda v: v, "1 - {}": lambda v: 1 - v, "2 * {}": lambda v: 2 * v, "-{}": lambda v: -v,
    "1000 - {}": lambda v: 1000 - v, "100.25 - {}": lambda v: 100.25 - v,
}  # fmt: skip
ASKED = (
    "SELECT id FROM w WHERE {} ORDER BY id",
    "SELECT id FROM w WHERE NOT ({}) OR id = 5 ORDER BY id",
    "SELECT countIf({0}), sum(({0}) * id) FROM w",
    "SELECT id, {} AS met FROM w ORDER BY id",
    "SELECT k, count() FROM w WHERE ({}) AND L2Norm(b) > 2 GROUP BY k ORDER BY k",
)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_bound_that_a_number_meets_exactly_decides_as_in_clickhouse(whole: clipql.Database, number: str) -> None:
    luck = random.Random(number)
    sql = f"SELECT {number} AS d FROM w WHERE id % 50 = 1 AND NOT isNaN(d) SETTINGS vector_plan = 0"
    there = [row[0] for row in whole.sql(sql).rows]
    for asked in ASKED:
        written, of = luck.choice([*SUMS.items()])
        bound = of(luck.choice(there))
        text = luck.choice([repr(bound), repr(round(bound, 3)), "{p:Float64}", "{p:Float32}"])
        left = written.format(number)
        signs = [f"{left} {sign} {text}" for sign in ("<", "<=", ">", ">=", "=", "!=")]
        condition = luck.choice([*signs, f"{text} <= {left}", f"{left} BETWEEN {text} AND {bound + 2!r}"])
        statement = asked.format(condition)
        planned = whole.sql(statement, p=bound)
        alone = whole.sql(f"{statement} SETTINGS vector_plan = 0", p=bound)
        assert planned.arrow().schema == alone.arrow().schema
        assert planned.rows == alone.rows, statement


def test_numbers_at_hand_are_those_of_their_rows_where_a_block_was_short(db: clipql.Database) -> None:
    block = computed.BLOCK
    db.sql("CREATE TABLE grown (id UInt32, a Array(Float32)) ENGINE = MergeTree ORDER BY id")
    try:
        insert = "INSERT INTO grown SELECT number, [number, 0] FROM numbers({}, {})"
        half = block + block // 2
        db.sql(insert.format(0, half))
        assert db.sql("SELECT sum(L2Norm(a)) FROM grown").rows == [(half * (half - 1) / 2,)]
        db.sql(insert.format(half, 3 * block - half))
        assert db.sql(f"SELECT L2Norm(a) FROM grown WHERE id = {2 * block + 1}").rows == [(2 * block + 1,)]
        [table] = [each for each in db.registry.catalog.tables if each.name == "grown"]
        name = computed.name_of("L2Norm", [db.registry.handle(table, table.columns[0])])
        for rows in (2 * block + 3, 3 * block - 1, 3 * block, block, 1):  # also of fewer than are stored
            found = db.registry.computed.all(name, rows, lambda: None)
            assert found.tolist() == list(range(rows))
    finally:
        db.sql("DROP TABLE grown")


HOLDS = "L2Norm(a) < 1e6"  # for every row of w
NO_PLACES = [  # where a number is taken for the place of a column, and a constant for a key that subtotals keep
    f"SELECT k, id FROM w ORDER BY {HOLDS} DESC, id LIMIT 3",
    f"SELECT groupArray(id) FROM (SELECT k, id FROM w ORDER BY NOT {HOLDS}, id)",
    f"SELECT DISTINCT ON ({HOLDS}) k FROM w ORDER BY id",
    f"SELECT k, count() FROM w GROUP BY GROUPING SETS ((k), ({HOLDS})) ORDER BY k, 2",
    f"SELECT k, count() FROM w GROUP BY k, {HOLDS} WITH ROLLUP ORDER BY ALL",
    f"SELECT {HOLDS} AS c, L2Norm(a) > 1e6 AS n, count() FROM w GROUP BY CUBE(c, n) ORDER BY ALL",
    f"SELECT isConstant({HOLDS}), isConstant(L2Norm(a)) FROM w LIMIT 1 BY 1",
]


@pytest.mark.parametrize("statement", NO_PLACES)
def test_what_holds_for_every_row_is_no_constant(whole: clipql.Database, statement: str) -> None:
    agree(whole, statement)


CUT = "set_overflow_mode = 'break', join_overflow_mode = 'break', max_rows_in_set = 5, max_rows_in_join = 5"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count() FROM w WHERE cosineDistance(a, b) < 0.3",
        "SELECT count() FROM w WHERE L2Distance(a, [1., 2., 3., 0., 0., 0.]) < 7",
        "SELECT count() FROM w AS x JOIN (SELECT * FROM w WHERE id < 5) AS y ON L2Distance(x.b, y.b) < 2",
    ],
)
def test_limits_that_cut_a_users_sets_cut_none_of_ours(whole: clipql.Database, statement: str) -> None:
    alone = whole.sql(f"{statement} SETTINGS vector_plan = 0").rows
    assert whole.sql(f"{statement} SETTINGS {CUT}").rows == alone
    try:
        whole.sql(f"SET {CUT}")
        assert whole.sql(statement).rows == alone
        assert whole.sql(f"EXPLAIN {statement}").arrow().column_names == ["explain"]
    finally:
        whole.sql(f"SET {CUT.replace('break', 'throw').replace('= 5', '= 0')}")
    assert whole.sql(statement).stats.searches


@pytest.mark.parametrize(
    ("statement", "given", "code"),
    [
        ("SELECT count() FROM w WHERE cosineDistance(a, b) < {p:Date}", "1970-03-10", 43),
        ("SELECT sum(id) FROM w WHERE L2Norm(a) AS q > 2", None, 62),
        ("SELECT count() FROM w WHERE L2Norm(a) < 1e6 SETTINGS force_primary_key = 1", None, 277),
    ],
)
def test_what_clickhouse_refuses_is_refused(
    whole: clipql.Database, statement: str, given: str | None, code: int
) -> None:
    with pytest.raises(QueryError) as refused:
        whole.sql(statement, **({"p": given} if given else {}))
    assert refused.value.code == code


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count() FROM w WHERE L2Norm(a) > 0b10",
        "SELECT count() FROM w WHERE L2Norm(a) > 0x10 OR L2Norm(b) > 1_0",
        "SELECT (1, 2)::Tuple(_row UInt8, b UInt8) AS w, round(sum(L2Norm(a)), 2) FROM w",
        "SELECT cosineDistance(a, c) < 0.5 FROM (SELECT arrayMap(x -> x * 1e30, a) AS a, b AS c FROM w) ORDER BY 1",
    ],
)
def test_odd_numbers_and_names_are_read_as_clickhouse_reads_them(whole: clipql.Database, statement: str) -> None:
    agree(whole, statement)


@pytest.mark.parametrize("number", ["L2Norm(a) > 1e38", "isNaN(cosineDistance(a, b))", "isInfinite(dotProduct(a, b))"])
def test_numbers_that_float32_does_not_hold_are_clickhouses_own(db: clipql.Database, number: str) -> None:
    db.sql("CREATE TABLE huge (id UInt32, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    try:
        db.sql("INSERT INTO huge SELECT number, [1e30, number * 1e28], [1, 1] FROM numbers(1200)")
        agree(db, f"SELECT {number}, count() FROM huge GROUP BY 1 ORDER BY 1")
    finally:
        db.sql("DROP TABLE huge")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT count(), min(L2Distance(a, b)) FROM grows", (2_000, 1.0)),
        ("SELECT count() FROM grows WHERE L2Distance(a, b) < 3", (1_000,)),
        ("SELECT countIf(L2Distance(a, b) >= 3), count() FROM grows AS g", (1_000, 2_000)),
        ("SELECT count(), min(L2Distance(a, [0., 0.])) FROM grows", (2_000, 1.0)),
        ("SELECT count(), max(L2Distance(a, [0., 0.])) FROM grows PREWHERE id % 2 = 0 WHERE id >= 0", (1_000, 1.0)),
    ],
)
def test_rows_that_come_while_a_statement_runs_have_no_numbers_of_others(
    db: clipql.Database, statement: str, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql("CREATE TABLE grows (id UInt32, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    more = "INSERT INTO grows SELECT number, [1 + number % 2, 0], [number % 2 * -2, 0] FROM numbers({}, 2000)"
    db.sql(more.format(0))
    come: list[str] = []

    def then_more(compute: Callable[..., Any]) -> Callable[..., Any]:
        def both(*given: Any) -> Any:
            found = compute(*given)
            if not come:
                come.append(more.format(2_000))
                writer = threading.Thread(target=db.sql, args=come)
                writer.start()
                writer.join()
            return found

        return both

    try:
        with monkeypatch.context() as patch:
            patch.setattr(db.registry.computed, "all", then_more(db.registry.computed.all))
            patch.setattr(flat.Scan, "all", then_more(flat.Scan.all))
            assert db.sql(statement).rows == [expected]
        assert come
        assert db.sql("SELECT count() FROM grows").rows == [(4_000,)]
    finally:
        db.sql("DROP TABLE grows")


@pytest.mark.parametrize("statement", [s for s in STATEMENTS if "ForEach" in s])
def test_a_group_that_cores_share_is_what_clickhouse_makes_of_it(
    db: clipql.Database, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computed, "GROUP", 10)
    monkeypatch.setattr(computed, "threads", lambda: 3)
    assert "numbers of rows" in agree(db, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id, arrayMap(a -> cosineDistance(a, b), [b]) AS d FROM t ORDER BY id LIMIT 3",
        "SELECT n.id, cosineDistance(t.a, t.b) AS d FROM names n LEFT JOIN t ON t.id = n.id ORDER BY n.id LIMIT 9",
        "SELECT b AS a, cosineDistance(a, b) AS d FROM t ORDER BY id LIMIT 3",
        "SELECT id, cosineDistance(any(a), any(b)) AS d FROM t GROUP BY id ORDER BY id LIMIT 3",
    ],
)  # fmt: skip
def test_what_may_mean_something_else_is_left_to_clickhouse(db: clipql.Database, statement: str) -> None:
    assert "numbers of rows" not in agree(db, statement)


def test_vectors_that_are_grouped_by_are_compared_by_clickhouse(db: clipql.Database) -> None:
    statement = "SELECT cosineDistance(a, b) AS d, count() FROM t GROUP BY a, b ORDER BY d LIMIT 5"
    agree(db, statement)


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "=", "!="])
@pytest.mark.parametrize("metric", ["cosineDistance", "L2Distance", "L2SquaredDistance", "dotProduct"])
def test_a_row_at_the_bound_is_decided_as_clickhouse_decides(db: clipql.Database, sign: str, metric: str) -> None:
    call = f"{metric}(a, b)"
    at = db.sql(f"SELECT groupArray(d) FROM (SELECT {call} AS d FROM t ORDER BY id LIMIT 20) SETTINGS vector_plan = 0")
    for value in some(at.rows[0][0][::5], 2):
        for condition in (f"{call} {sign} toFloat32({value!r})", f"toFloat32({value!r}) {sign} {call}"):
            agree(db, f"SELECT count() FROM t WHERE {condition}")
        agree(db, f"SELECT count() FROM t WHERE {call} BETWEEN toFloat32({value!r}) AND 3")
        agree(db, f"SELECT count() FROM (SELECT 2 * {call} AS d FROM t WHERE d {sign} 2 * toFloat32({value!r}))")


def test_distances_are_written_into_tables(db: clipql.Database) -> None:
    db.sql("CREATE TABLE copy AS t")
    try:
        db.sql(
            "INSERT INTO copy SELECT id, url, k, cosineDistance(a, b), a, b, c FROM t WHERE cosineDistance(a, b) < 0.5"
        )
        wrong = "countIf(abs(score - cosineDistance(a, b)) > 1e-5)"
        assert db.sql(f"SELECT count() > 100, {wrong} FROM copy SETTINGS vector_plan = 0").rows == [(1, 0)]
        db.sql("ALTER TABLE copy UPDATE score = 10 + L2Distance(a, b) WHERE cosineDistance(a, b) < 0.2")
        wrong = (
            "countIf(abs(score - (if(cosineDistance(a, b) < 0.2, 10 + L2Distance(a, b), cosineDistance(a, b)))) > 1e-4)"
        )
        assert db.sql(f"SELECT count() > 100, {wrong} FROM copy SETTINGS vector_plan = 0").rows == [(1, 0)]
        left = db.sql(
            "SELECT count() FROM copy WHERE NOT (cosineDistance(a, b) < 0.2 AND k = 3) SETTINGS vector_plan = 0"
        )
        db.sql("DELETE FROM copy WHERE cosineDistance(a, b) < 0.2 AND k = 3")
        assert db.sql("SELECT count() FROM copy").rows == left.rows
        q = {"q": np.linspace(-1, 1, DIMENSION).astype(np.float32)}
        left = db.sql(
            "SELECT count() FROM copy WHERE NOT L2Distance(a, {q:Array(Float32)}) < 4 SETTINGS vector_plan = 0", **q
        )
        db.sql("DELETE FROM copy WHERE L2Distance(a, {q:Array(Float32)}) < 4", **q)
        assert db.sql("SELECT count() FROM copy").rows == left.rows
        assert left.rows[0][0] > 10
    finally:
        db.sql("DROP TABLE copy")


def test_definitions_keep_their_words(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE kept (id UInt32, d DateTime, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id"
    )
    try:
        db.sql("INSERT INTO kept VALUES (1, now(), [1, 2], [2, 1])")
        for change in (
            "ADD INDEX n L2Norm(a) TYPE minmax",
            "MODIFY TTL d + INTERVAL 1 DAY DELETE WHERE L2Norm(a) > 0",
        ):
            with pytest.raises(clipql.ClipqlError):
                db.sql(f"ALTER TABLE kept {change}")
        assert "_clipql" not in db.sql("SHOW CREATE TABLE kept").rows[0][0]
        db.sql("ALTER TABLE kept ADD COLUMN n Float32, UPDATE id = 7 WHERE L2Norm(a) > L2Norm(b) - 1")
        assert db.sql("SELECT id FROM kept").rows == [(7,)]
    finally:
        db.sql("DROP TABLE kept")


def test_a_delete_is_left_to_clickhouse_where_nothing_is_to_be_planned(db: clipql.Database) -> None:
    left = []
    for planned in (0, 1):
        db.sql("CREATE TABLE copy AS SELECT * FROM t")
        try:
            db.sql(f"SET vector_plan = {planned}")
            db.sql("DELETE FROM copy WHERE cosineDistance(a, b) < 0.2 OR L2Norm(c) > 3")
            left.append(db.sql("SELECT id FROM copy ORDER BY id").rows)
        finally:
            db.sql("SET vector_plan = 1")
            db.sql("DROP TABLE copy")
    assert left[0] == left[1]
    assert 100 < len(left[0]) < ROWS - 300


def test_rows_that_are_named_in_a_table_of_ours_leave_nothing_behind(db: clipql.Database) -> None:
    db.sql("CREATE TABLE many AS SELECT id, a, b FROM t")
    try:
        db.sql("DELETE FROM many WHERE cosineDistance(a, b) >= 0")
        assert db.sql("SELECT count() FROM many").rows == [(0,)]
        helpers = db.sql("SELECT count() FROM system.tables WHERE database = 'clipql_internal' AND name LIKE 'rows %'")
        assert helpers.rows == [(0,)]
    finally:
        db.sql("DROP TABLE many")


@pytest.mark.parametrize(
    ("statement", "at_once"),
    [
        ("SELECT avg(cosineDistance(a, b)) FROM t", True),
        ("SELECT avg(cosineDistance(a, b)) FROM t WHERE id < 30", False),
        ("DELETE FROM t WHERE cosineDistance(a, b) < 0.1", True),
        ("ALTER TABLE t UPDATE score = cosineDistance(a, b) WHERE k = 1", False),
    ],
)
def test_explain_tells_how_distances_of_rows_are_computed(db: clipql.Database, statement: str, at_once: bool) -> None:
    told = [row[0] for row in db.sql("EXPLAIN " + statement).rows]
    assert told[0] == "Numbers of the vectors of each row"
    assert f"  cosineDistance(a, b) of default.t ({ROWS:,} rows)" in told
    assert ("  all at once" in told) == at_once
    speed = "5,000,000" if at_once else "2,000,000"
    assert told[-1] == f"  speed: about {speed} rows of two vectors of 512 numbers a second"


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("one", [np.float16, np.float32])
@pytest.mark.parametrize("other", [np.float16, np.float32])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_kernels_agree_with_the_formula(metric: Metric, one: type, other: type, scale: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 33)).astype(one)
    y = (rng.standard_normal((50, 33)) * (scale if other is np.float32 else 1)).astype(other)
    x[7] = 0
    for first, second in ((x, y), (y, x)):
        out = np.empty(50, np.float32)
        rowwise.distances_of_rows(metric, first, second, out)
        expected = [metrics.distances(metric, first[i : i + 1], second[i].astype(np.float64))[0] for i in range(50)]
        with np.errstate(over="ignore"):
            rounded = np.array(expected).astype(np.float32)
        np.testing.assert_allclose(out, rounded, rtol=1e-4, atol=2e-5 * min(1, scale) + 1e-22)


def test_memory_is_bounded_whatever_is_asked_for_in_whatever_order(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = db.registry.find(None, "t")
    assert table is not None
    columns = [db.registry.handle(table, c) for c in table.columns]
    name = computed.name_of("L2Distance", columns[:2])
    monkeypatch.setattr(computed, "HELD", 2 * computed.BLOCK)
    numbers = computed.Computed(db.registry._stores)
    x, y = db.registry.store(table, "a"), db.registry.store(table, "b")
    every = np.arange(ROWS)
    expected = np.sqrt(((x.take(every).astype(np.float64) - y.take(every)) ** 2).sum(1))
    for row in (*range(ROWS), *np.random.default_rng(0).permutation(ROWS).tolist()):
        assert math.isclose(numbers.number(name, row), expected[row], rel_tol=1e-5)
        assert sum(len(n.blocks) for n in numbers._known.values()) <= 2
    with pytest.raises(IndexError):
        numbers.number(name, ROWS)


def test_numbers_of_rows_that_were_replaced_are_computed_anew(db: clipql.Database) -> None:
    db.sql("CREATE TABLE again (id UInt32, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    try:
        for value in (1.0, 3.0):
            db.sql(f"INSERT INTO again VALUES (1, [0, 0], [0, {value}]), (2, [0, 0], [0, {2 * value}])")
            assert db.sql("SELECT sum(L2Distance(a, b)) FROM again").rows == [(3 * value,)]
            db.sql("TRUNCATE TABLE again")
        db.sql("INSERT INTO again VALUES (1, [0], [5])")
        db.sql("INSERT INTO again VALUES (2, [0], [6])")
        assert db.sql("SELECT sum(L2Distance(a, b)) FROM again").rows == [(11.0,)]
    finally:
        db.sql("DROP TABLE again")


HEADS = [
    "SELECT id, vectorLinear(a, {W:Array(Array(Float32))}, {b:Array(Float32)}) AS h FROM t ORDER BY id",
    "SELECT id, vectorLinear(t.b, {W:Array(Array(Float32))}, {b:Array(Float32)})[3] AS h FROM t WHERE h > 0 "  # noqa: ISC004
    "ORDER BY id",
    "SELECT k, avg(vectorLinear(vectorRelu(vectorLinear(c, {W:Array(Array(Float32))}, {b:Array(Float32)})), "  # noqa: ISC004
    "[[1, 2, 3], [0.5, 0, -1]], [0, 1])[2]) AS m FROM t GROUP BY k ORDER BY k",
    "SELECT id, vectorRelu(a) AS r, L2Normalize(b) FROM t ORDER BY id LIMIT 9",
    "SELECT id FROM t WHERE vectorLinear(L2Normalize(a), [[1, 2, 3, 4, 5, 6, 7, 8]], [0.5])[1] > 4 ORDER BY id",
    "SELECT id, a[3], b[-1] + 1, t.c[8] FROM t WHERE a[3] > 0.5 ORDER BY id",
    "WITH (SELECT groupArray(a) FROM (SELECT a FROM t ORDER BY id LIMIT 3)) AS w "  # noqa: ISC004
    "SELECT id, vectorLinear(b, w, [1, 2, 3]) AS h FROM t ORDER BY id LIMIT 5",
]


@pytest.mark.parametrize("statement", HEADS)
def test_heads_are_those_of_clickhouse(db: clipql.Database, statement: str) -> None:
    rng = np.random.default_rng(3)
    given = {"W": rng.standard_normal((3, DIMENSION)).astype(np.float32), "b": np.float32([0.5, 0, -1])}
    given = given if "{W:" in statement else {}
    planned = db.sql(statement, **given)
    passed = db.sql(statement + " SETTINGS vector_plan = 0", **given)
    assert "numbers of rows" in {s.kind for s in planned.stats.searches}
    assert not passed.stats.searches
    assert planned.arrow().schema.types == passed.arrow().schema.types
    assert all(alike(list(x), list(y)) for x, y in zip(planned.rows, passed.rows, strict=True))
    assert any(row[0].startswith("Numbers of") for row in db.sql("EXPLAIN " + statement, **given).rows)


def test_a_head_changes_rows_and_its_sizes_are_checked(db: clipql.Database) -> None:
    head = "vectorLinear(a, [[1, 1, 1, 1, 1, 1, 1, 1]], [0])[1]"
    db.sql(f"CREATE TABLE headed AS SELECT id, a, {head} AS s, vectorRelu(b) AS r FROM t WHERE id < 40")
    try:
        assert db.sql("SELECT count(), max(abs(s - arraySum(a))) < 1e-5, min(arrayMin(r)) FROM headed").rows == [
            (db.sql("SELECT count() FROM t WHERE id < 40").rows[0][0], 1, 0.0)
        ]
        db.sql(f"ALTER TABLE headed UPDATE s = {head} - 1 WHERE {head} < 0")
        db.sql(f"DELETE FROM headed WHERE {head} > 0 OR vectorRelu(a)[1] > 100")
        assert db.sql("SELECT count() > 0, max(abs(s + 1 - arraySum(a))) < 1e-5 FROM headed").rows == [(1, 1)]
    finally:
        db.sql("DROP TABLE headed")
    for wrong, message in (
        ("vectorLinear(a, [[1, 2]], [1])", "the weights are of 2 numbers, a holds 8"),
        ("vectorLinear(a, [[1, 2, 3, 4, 5, 6, 7, 8]], [1, 2])", "1 weights and 2 numbers of bias"),
        ("vectorLinear(a, [1, 2, 3, 4, 5, 6, 7, 8], [1])", "weights of shape \\(8,\\)"),
        ("vectorLinear(a, [[1]])", "has 2 arguments; expected vectorLinear"),
        ("vectorRelu(a, 1)", "has 2 arguments; expected vectorRelu"),
    ):
        with pytest.raises(QueryError, match=message):
            db.sql(f"SELECT {wrong} FROM t")


AT_THE_BOUND = [
    "SELECT id FROM t WHERE cosineDistance(a, b) <= {r:Float32} OR id = 90000 ORDER BY id",
    "SELECT id FROM t WHERE NOT cosineDistance(a, b) > {r:Float32} ORDER BY id",
    "SELECT id FROM t WHERE NOT (cosineDistance(a, b) > {r:Float32} AND k < 9) ORDER BY id",
    "SELECT id FROM t WHERE k = 9 OR (cosineDistance(a, b) BETWEEN 0 AND {r:Float32} AND k < 9) ORDER BY id",
    "SELECT id FROM t WHERE (cosineDistance(a, b) <= {r:Float32}) = 1 ORDER BY id",
    "SELECT countIf(cosineDistance(a, b) <= {r:Float32}), sum(cosineDistance(a, b) < {r:Float32}) FROM t",
    "SELECT cosineDistance(a, b) <= {r:Float32} AS near, count() FROM t GROUP BY near ORDER BY near",
    "SELECT id, CASE WHEN 1 - cosineDistance(a, b) >= 1 - {r:Float32} THEN 1 ELSE 0 END FROM t ORDER BY id",
    "SELECT id, multiIf(cosineDistance(a, b) < {r:Float32}, 1, cosineDistance(a, b) = {r:Float32}, 2, 0) FROM t "  # noqa: ISC004
    "ORDER BY id",
    "WITH cosineDistance(a, b) AS d SELECT id, d <= {r:Float32} ? 'y' : 'n' FROM t WHERE d <= {r:Float32} OR k = 9 "  # noqa: ISC004
    "ORDER BY id",
    "SELECT id FROM t GROUP BY id HAVING max(cosineDistance(a, b)) <= {r:Float32} ORDER BY id",
    "SELECT id, min(cosineDistance(a, b)) <= {r:Float32} AS m FROM t GROUP BY id HAVING m ORDER BY id",
    "SELECT count() FROM (SELECT 1 - cosineDistance(a, b) AS s FROM t LIMIT 9000) AS x WHERE x.s >= 1 - {r:Float32}",
    "SELECT count() FROM (SELECT id, cosineDistance(a, b) AS d FROM t LIMIT 9000) AS x WHERE {r:Float32} >= x.d",
    "SELECT count() FROM (SELECT min(cosineDistance(a, b)) AS d FROM t GROUP BY id) WHERE d <= {r:Float32} OR d > 99",
    "SELECT count() FROM (SELECT sqrt(cosineDistance(a, b)) AS d FROM t LIMIT 9000) WHERE d <= sqrt({r:Float32})",
    "SELECT count() FROM t WHERE id IN (SELECT id FROM t WHERE k = 9 OR cosineDistance(a, b) <= {r:Float32})",
]


@pytest.mark.parametrize("statement", AT_THE_BOUND)
def test_what_lies_at_the_bound_is_decided_as_clickhouse_does(db: clipql.Database, statement: str) -> None:
    bound = bounds(db)
    for r in bound:
        found = db.sql(statement, r=r).rows
        assert found == db.sql(statement + " SETTINGS vector_plan = 0", r=r).rows


@functools.cache
def bounds(db: clipql.Database) -> list[float]:
    """Distances that float32 rounds otherwise here than in ClickHouse, above and below."""
    wanted = "SELECT cosineDistance(a, b) FROM t ORDER BY id"
    ours, theirs = (np.float32(db.sql(wanted + s).rows).ravel() for s in ("", " SETTINGS vector_plan = 0"))
    assert (ours != theirs).sum() > 10
    return [float(theirs[np.flatnonzero(rounded)[0]]) for rounded in (ours < theirs, ours > theirs)]
