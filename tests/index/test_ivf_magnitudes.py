"""An ivf index over vectors of any magnitude: the nearest rows are those that numpy's longdouble says."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import clipql
from clipql.errors import IndexWarning
from clipql.index.ivf import IvfIndex, build, calibrate, open_index
from clipql.index.rows import ArrayRows
from clipql.storage.vectors.metrics import Metric
from tests.cases import crossed

LONG = np.longdouble
METRICS = list(Metric)
ROWS = 2000


def keys(metric: Metric, rows: NDArray[Any], query: NDArray[Any]) -> NDArray[np.longdouble]:
    """What rows are sorted by, the nearest first, in 80 bits."""
    x, q = rows.astype(LONG), query.astype(LONG)
    if metric is Metric.DOT:
        return -(x * q).sum(1)
    if metric is Metric.COSINE:
        return 1 - (x * q).sum(1) / (np.sqrt((x * x).sum(1)) * np.sqrt((q * q).sum()))
    return ((x - q) ** 2).sum(1)


def clustered(seed: int, n: int = ROWS, d: int = 16) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).standard_normal((40, d))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, d))).astype(np.float32)


def recall(index: IvfIndex, rows: NDArray[Any], queries: NDArray[Any], **knobs: float) -> float:
    """Of ten rows, where a row no farther than the tenth, as float64 tells distances, counts as one of them."""
    hits = []
    for q in queries:
        key = keys(index.metric, rows, q)
        found = index.search(q, 10, knobs=knobs).rows.astype(int)
        assert len(set(found.tolist())) == 10
        near = np.sort(key)[:10]
        terms = (np.abs(rows.astype(LONG)) @ np.abs(q.astype(LONG)))[found] if index.metric is Metric.DOT else 1.0
        scale = {Metric.DOT: terms, Metric.COSINE: LONG(1)}.get(index.metric, np.abs(near[-1]))
        hits.append((key[found] <= near[-1] + 1e-12 * scale).mean())
    return float(np.mean(hits))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[Metric, IvfIndex]:
    folder = tmp_path_factory.mktemp("ordinary")
    return {m: build(ArrayRows(clustered(1)), m, folder / m.name) for m in METRICS}


@pytest.mark.parametrize(("metric", "power"), crossed(METRICS, [-140, 30, 100], every=5))
def test_an_index_of_vectors_at_any_scale_answers_as_that_of_the_same_vectors_about_one(
    tmp_path: Path, ordinary: dict[Metric, IvfIndex], metric: Metric, power: int
) -> None:
    rows, queries, factor = clustered(1), clustered(2, 30), LONG(2.0) ** power
    index = build(ArrayRows((rows * factor).astype(np.float32)), metric, tmp_path / "ivf")
    plain = ordinary[metric]
    scaled = (queries * factor).astype(np.float32)
    assert index.standing() == plain.standing() == "in use"
    if power > -120:  # below, float32 itself loses digits
        assert [index.search(q, 10).rows.tolist() for q in scaled] == [
            plain.search(q, 10).rows.tolist() for q in queries
        ]
    assert recall(index, (rows * factor).astype(np.float32), scaled) >= 0.93
    assert recall(index, (rows * factor).astype(np.float32), scaled, recall=1) == 1


@pytest.mark.parametrize(("metric", "size"), crossed(METRICS, [1e-30, 1e7, 1e30], every=5))
def test_one_row_of_another_magnitude_leaves_recall_as_it_is_and_is_found_itself(
    tmp_path: Path, metric: Metric, size: float
) -> None:
    rows = np.concatenate([clustered(1), np.full((1, 16), size, np.float32)])
    index = build(ArrayRows(rows), metric, tmp_path / "ivf")
    assert index.standing() == "in use"
    assert index.apart.tolist() == ([] if metric is Metric.COSINE else [ROWS])
    queries = clustered(2, 40)
    assert recall(index, rows, queries) >= 0.93
    assert recall(index, rows, queries, recall=1) == 1
    asked = np.full(16, size, np.float32)
    expected = int(np.argmin(keys(metric, rows, asked)))
    by_itself = {} if expected == ROWS else {"recall": 1.0}  # a row of the lists is found as surely as recall says
    assert expected in index.search(asked, 10, knobs=by_itself).rows
    assert (
        open_index(tmp_path / "ivf", ArrayRows(rows)).search(asked, 10).rows.tolist()
        == index.search(asked, 10).rows.tolist()
    )


@pytest.mark.parametrize(("metric", "powers"), crossed(METRICS, [(-30, -30), (7, 7), (-30, 30)], every=5))
def test_where_half_of_the_rows_are_of_another_magnitude_no_neighbour_is_lost(
    tmp_path: Path, metric: Metric, powers: tuple[float, float]
) -> None:
    rows = clustered(1)
    size = 10.0 ** np.random.default_rng(3).uniform(*powers, (ROWS // 2, 1))
    rows[::2] = (rows[::2] * size).astype(np.float32)
    index = build(ArrayRows(rows), metric, tmp_path / "ivf")
    usual, odd = rows[1::2][:50], rows[::2][:50]
    assert recall(index, rows, usual) >= 0.93
    assert recall(index, rows, odd) >= 0.93
    assert recall(index, rows, np.concatenate([usual, odd]), recall=1) == 1
    if metric is not Metric.COSINE:
        assert index.standing().startswith("exact scan: ")
        assert "orders of magnitude" in index.standing()
        assert "orders of magnitude" in index.doubt(usual[0], {})


@pytest.mark.parametrize(("metric", "size"), crossed(METRICS, [1e-40, 1e8, 3e37], every=5))
def test_a_query_from_far_away_or_close_to_nothing_finds_what_it_is_asked_for(
    ordinary: dict[Metric, IvfIndex], metric: Metric, size: float
) -> None:
    rows, index = clustered(1), ordinary[metric]
    queries = (clustered(4, 10) * size).astype(np.float32)
    assert recall(index, rows, queries) >= (1 if size >= 1e8 and metric is Metric.L2 else 0.7)
    assert recall(index, rows, queries, recall=1) == 1
    for q in queries[:3]:
        key = keys(metric, rows, q).astype(np.float64)
        value = float(np.sort(key)[20])
        inside = index.within(q, {Metric.L2: abs(value) ** 0.5, Metric.DOT: -value}.get(metric, value))
        if inside is not None:
            assert np.isin(np.flatnonzero(key < value), inside).all()


def test_a_filter_lets_rows_kept_apart_through_only_where_it_names_them(tmp_path: Path) -> None:
    rows = np.concatenate([clustered(1), np.full((2, 16), 1e9, np.float32)])
    index = build(ArrayRows(rows), Metric.DOT, tmp_path / "ivf")
    query, among = np.ones(16, np.float32), np.ones(ROWS + 2, np.bool_)
    assert index.search(query, 2).rows.tolist() == [ROWS, ROWS + 1]
    among[ROWS] = False
    assert index.search(query, 1, among=among).rows.tolist() == [ROWS + 1]
    inside = index.within(query, 1e9, among)
    assert inside is not None
    assert inside.tolist() == [ROWS + 1]


def test_an_index_is_never_used_for_more_recall_than_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_grid", lambda lists: [1])  # as where more lists find no more
    rows = clustered(1, 4000)
    index = build(ArrayRows(rows), Metric.L2, tmp_path / "ivf")
    reached = max(p.recall for p in index.curves.image)
    assert 0.4 < reached < 0.95
    assert index.standing().startswith(f"exact scan: image queries reach a recall of {reached:.3f} and 0.95 is asked")
    for asked in (0.4, reached, reached + 0.001, 0.95):
        assert bool(index.doubt(rows[0], {"recall": asked})) == (asked > reached)
        cost = index.search(rows[0], 10, knobs={"recall": asked}).cost
        assert (cost.rows_scanned == 4000) == (asked > reached)
    assert index.doubt(rows[0], {}) == index.doubt(rows[0], {"recall": 0.95})
    assert index.doubt(rows[0], {"nprobe": 3}) == ""


@pytest.fixture
def many(tmp_path: Path) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path / "db") as db:
        yield db


def insert(db: clipql.Database, table: str, first: int, rows: NDArray[np.float32]) -> None:
    for at in range(0, len(rows), 1000):
        part = rows[at : at + 1000]
        values = ", ".join(f"({first + at + i}, {v.tolist()})" for i, v in enumerate(part))
        db.sql(f"INSERT INTO {table} VALUES {values}")


def create(db: clipql.Database, metric: str) -> None:
    columns = f"id UInt32, v Array(Float32), INDEX near v TYPE ivf('{metric}')"
    db.sql(f"CREATE TABLE t ({columns}) ENGINE MergeTree ORDER BY id")


def nearest(db: clipql.Database, metric: str, query: NDArray[Any], settings: str = "") -> list[int]:
    way = "DESC" if metric == "dotProduct" else ""
    sql = f"SELECT id FROM t ORDER BY {metric}(v, {{q:Array(Float32)}}) {way} LIMIT 5 {settings}"
    return [i for (i,) in db.sql(sql, q=query).rows]


@pytest.mark.parametrize("metric", ["L2Distance", "dotProduct"])
def test_sql_finds_the_nearest_rows_beside_an_outlier_before_and_after_it_is_deleted(
    many: clipql.Database, metric: str
) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (ROWS, 16)).astype(np.float32)
    many.sql(
        f"CREATE TABLE t (id UInt32, v Array(Float32), INDEX near v TYPE ivf('{metric}')) ENGINE MergeTree ORDER BY id"
    )
    insert(many, "t", 0, np.concatenate([rows, np.full((1, 16), 1e7, np.float32)]))
    every = np.concatenate([rows, np.full((1, 16), 1e7, np.float32)])
    for change in ("SELECT 1", f"DELETE FROM t WHERE id = {ROWS}", "OPTIMIZE TABLE t FINAL"):
        many.sql(change)
        many.sql("ALTER TABLE t MATERIALIZE INDEX near")
        assert many.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
        there, hits = every if change == "SELECT 1" else rows, 0
        for q in rows[:20]:
            expected = np.argsort(keys(Metric(metric), there, q), kind="stable")[:5].tolist()
            hits += len(set(nearest(many, metric, q)) & set(expected))
            assert nearest(many, metric, q, "SETTINGS recall = 1") == expected
            assert nearest(many, metric, q, "SETTINGS vector_index = 0") == expected
        assert hits >= 0.93 * 20 * 5


def test_sql_tells_of_an_index_that_is_not_used_in_the_list_in_explain_and_by_a_warning(many: clipql.Database) -> None:
    rows = clustered(1)
    rows[::2] *= np.float32(1e20)
    many.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) ENGINE MergeTree ORDER BY id"
    )
    insert(many, "t", 0, rows)
    with pytest.warns(IndexWarning, match=r"index near of default\.t: exact scan: .* orders of magnitude"):
        many.sql("ALTER TABLE t MATERIALIZE INDEX near")
    state, recall = many.sql("SELECT state, recall FROM clipql.indexes").rows[0]
    assert state == "exact scan: 1,000 of 2,000 rows are of other orders of magnitude than the codes'"
    assert recall == ""
    asked = "EXPLAIN SELECT id FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 5"
    told = "\n".join(line for (line,) in many.sql(asked, q=rows[1]).rows)
    assert "index: none, an exact scan on all cores; near (ivf, L2Distance): 1,000 of 2,000 rows are" in told
    for q in itertools.chain(rows[:10:2], rows[1:10:2]):
        assert nearest(many, "L2Distance", q) == np.argsort(keys(Metric.L2, rows, q), kind="stable")[:5].tolist()


def test_sql_tells_that_recall_of_one_is_an_exact_scan(many: clipql.Database) -> None:
    many.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) ENGINE MergeTree ORDER BY id"
    )
    insert(many, "t", 0, clustered(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many.sql("ALTER TABLE t MATERIALIZE INDEX near")
    asked = "EXPLAIN SELECT id FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 5 SETTINGS recall = 1"
    told = "\n".join(line for (line,) in many.sql(asked, q=clustered(2, 1)[0]).rows)
    assert "near (ivf, L2Distance): recall = 1 is an exact scan" in told
