"""Near duplicates that were planted are grouped, by all pairs and by lists, and the best of each group is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.curate.dedup import dedup, forecast
from clipql.index import near_duplicates

ROWS, COPIES, DIMENSION = 1_500, 500, 24


def planted() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows of which the last COPIES are the first ones again: alike, and with more or less noise."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((ROWS, DIMENSION)) + 0.5 * rng.standard_normal((9, DIMENSION))[rng.integers(0, 9, ROWS)]
    noise = np.array([0, 0.05, 0.12])[np.arange(COPIES) % 3, None]
    return np.concatenate([x, x[:COPIES] + noise * rng.standard_normal((COPIES, DIMENSION))]).astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("dedup") / "db") as opened:
        opened.sql("CREATE TABLE t (id UInt32, score Float32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        rows = (f"({i}, {i * 7919 % 1000}, {v.tolist()})" for i, v in enumerate(planted()))
        opened.sql("INSERT INTO t VALUES " + ", ".join(rows))
        opened.sql("DELETE FROM t WHERE id % 50 = 7")
        yield opened


def truth(within: float) -> dict[int, set[int]]:
    """The groups by numpy, by each of their members."""
    x = planted().astype(np.float64)
    x /= np.linalg.norm(x, axis=1)[:, None]
    there = np.arange(len(x)) % 50 != 7
    near = (1 - x @ x.T < within) & there[:, None] & there[None, :]
    groups: dict[int, set[int]] = {}
    for i in np.flatnonzero(there).tolist():
        if i in groups:
            continue
        group, todo = {i}, [i]
        while todo:
            more = set(np.flatnonzero(near[todo.pop()]).tolist()) - group
            group |= more
            todo += more
        if len(group) > 1:
            groups |= dict.fromkeys(group, group)
    return groups


@pytest.mark.parametrize("by_lists", [False, True])
def test_planted_duplicates_are_grouped(db: clipql.Database, monkeypatch: pytest.MonkeyPatch, by_lists: bool) -> None:
    if by_lists:
        monkeypatch.setattr(near_duplicates, "FEW_PAIRS", 500_000)
        monkeypatch.setattr(near_duplicates, "PER_LIST", 60)
    told = dedup(db, "t", column="v", within=0.05, keep="max(score)", into="dups", recall=0.99 if by_lists else 1)
    try:
        expected = truth(0.05)
        assert len(expected) > COPIES
        assert (told.checked > 0) == by_lists
        assert told.recall >= 0.99
        found: dict[int, set[int]] = {}
        for group, ids in db.sql("SELECT `group`, groupArray(id) FROM dups GROUP BY `group`").rows:
            assert group < told.groups
            found |= {one: set(ids) for one in ids}
        right = sum(found.get(i) == group for i, group in expected.items())
        assert right == len(expected) if not by_lists else right >= 0.98 * len(expected)
        assert found.keys() <= expected.keys()
        assert told.groups + told.duplicates == len(found)
        kept = (
            "SELECT count(), countIf(s = m) FROM (SELECT d.id, t.score AS s, max(s) OVER (PARTITION BY d.`group`) AS m "
        )
        kept += "FROM dups AS d INNER JOIN t ON t.id = d.id WHERE d.kept OR NOT d.kept QUALIFY d.kept)"
        assert db.sql(kept).rows == [(told.groups, told.groups)]
        far = "SELECT max(abs(d.distance - cosineDistance(x.v, y.v))), countIf(d.kept AND d.distance > 1e-6) "
        far += "FROM dups AS d "
        far += "INNER JOIN dups AS k ON k.`group` = d.`group` INNER JOIN t AS x ON x.id = d.id "
        far += "INNER JOIN t AS y ON y.id = k.id WHERE k.kept SETTINGS vector_plan = 0"
        assert db.sql(far).rows[0] == (pytest.approx(0, abs=1e-5), 0)
    finally:
        db.sql("DROP TABLE dups")


@pytest.mark.parametrize(
    ("keep", "best"),
    [("max(r)", 1), ("min(k + 1)", 1), ("max(t)", 2), ("min(`group`)", 0), ("max(row)", 2), ("max(m)", 0)],
)
def test_columns_of_any_name_and_type_choose_the_row_that_is_kept(db: clipql.Database, keep: str, best: int) -> None:
    columns = "id UInt8, r Int32, k Int32, t String, `group` Int32, row Int32, m Nullable(Float64)"
    db.sql(f"CREATE TABLE d ({columns}, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(
        "INSERT INTO d VALUES (0, 5, 5, 'a', 1, 1, 0.5, [1, 0]), (1, 9, 1, 'b', 2, 2, NULL, [1, 0]), "
        "(2, 1, 9, 'nan', 3, 3, nan, [1, 0])"
    )
    dedup(db, "d", column="v", within=0.05, keep=keep, into="o")
    assert db.sql("SELECT id FROM o WHERE kept").rows == [(best,)]
    db.sql("DROP TABLE d; DROP TABLE o")


def test_the_first_row_is_kept_where_nothing_chooses(db: clipql.Database) -> None:
    try:
        dedup(db, "t", column="v", within=1e-4, into="dups", where="id < 1900 AND score >= 0")
        assert db.sql("SELECT countIf(kept != (id < 1500)), count() > 100, max(id) < 1900 FROM dups").rows == [
            (0, 1, 1)
        ]
        dedup(db, "t", column="v", within=1e-4, into="others", id="toString(id)", keep="max(if(id < 1500, NULL, id))")
        assert db.sql("SELECT countIf(kept != (toUInt32(id) >= 1500)), toTypeName(any(id)) FROM others").rows == [
            (0, "String")
        ]
    finally:
        db.sql("DROP TABLE dups")
        db.sql("DROP TABLE IF EXISTS others")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "nowhere"}, "there is no table nowhere"),
        ({"column": "w"}, "has no vector column w"),
        ({"metric": "manhattan"}, "manhattan is no distance"),
        ({"keep": "score"}, "expected max\\(expression\\) or min"),
        ({"keep": "max(nothing)"}, "nothing"),
        ({"id": "nobody"}, "nobody"),
        ({"into": "t"}, "t is there already"),
        ({"where": "nothing > 3"}, "nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    db: clipql.Database, options: dict[str, str], message: str
) -> None:
    given = {"table": "t", "column": "v", "into": "dups", **options}
    with pytest.raises(clipql.ClipqlError, match=message):
        dedup(db, given.pop("table"), within=0.1, **given)  # type: ignore[arg-type]
    assert db.sql("SELECT count() FROM system.tables WHERE name = 'dups'").rows == [(0,)]


def test_a_table_without_duplicates_gives_an_empty_one(db: clipql.Database) -> None:
    try:
        told = dedup(db, "t", column="v", within=0.01, into="dups", where="id < 200")
        assert (told.groups, told.duplicates) == (0, 0)
        assert db.sql("SELECT count() FROM dups").rows == [(0,)]
    finally:
        db.sql("DROP TABLE dups")


def test_a_forecast_grows_with_the_rows_and_not_with_their_square(db: clipql.Database) -> None:
    some, more = (forecast(db, "t", "v", rows) for rows in (10_000_000, 100_000_000))
    assert 10 * some.seconds <= more.seconds <= 200 * some.seconds
    assert some.bytes < 4e9
