"""Exact distances are right whatever the size of the numbers: numpy's longdouble and ClickHouse are the judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import clipql
from clipql.index.batch import nearest_each
from clipql.index.flat import FlatIndex
from clipql.storage import files
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import chosen, kernels, segments
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

LONG = np.longdouble
LARGEST = float(np.finfo(np.float32).max)


def judged(metric: Metric, rows: NDArray[Any], query: NDArray[Any]) -> NDArray[np.longdouble]:
    """Distances in 80 bits, whose exponents hold every square and product of float32 numbers."""
    x, q = rows.astype(LONG), query.astype(LONG)
    if metric is Metric.DOT:
        return (x * q).sum(1)
    if metric is Metric.COSINE:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (x * q).sum(1) / (np.sqrt((x * x).sum(1)) * np.sqrt((q * q).sum()))
    square = ((x - q) ** 2).sum(1)
    return np.sqrt(square) if metric is Metric.L2 else square


def vectors(seed: int, n: int, d: int, exponent: float, spread: float = 0.0) -> NDArray[np.float32]:
    """n vectors whose numbers are of the size 10^exponent, each row up to 10^±spread of that."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** np.clip(exponent + rng.uniform(-spread, spread, (n, 1)), -45, 38)
    return np.clip(rng.uniform(-1, 1, (n, d)) * size, -LARGEST, LARGEST).astype(np.float32)


def stored(folder: Path, rows: NDArray[np.float32]) -> ColumnStore:
    path = folder / "000000000000-1-0.npy"
    path.unlink(missing_ok=True)
    with files.new_file(path) as file:
        writer = segments.SegmentWriter(file, path, 0, rows.shape[1], "float32")
        writer.append(rows, "the test", 0)
        segment = writer.finish()
    return ColumnStore(folder, VectorColumn("v", folder.name, rows.shape[1], None, (segment,)))


exponents = st.floats(-45, 38)


@given(st.integers(0, 99), st.integers(1, 40), exponents, st.floats(0, 60), exponents)
def test_a_cosine_distance_is_that_of_80_bits_at_any_length_of_rows_and_query(
    seed: int, d: int, exponent: float, spread: float, asked: float
) -> None:
    rows, query = vectors(seed, 20, d, exponent, spread), vectors(seed + 100, 1, d, asked)[0]
    out = np.empty(len(rows), np.float32)
    kernels.distances(Metric.COSINE, rows, query, out)
    expected = judged(Metric.COSINE, rows, query)
    np.testing.assert_allclose(out, expected.astype(np.float64), rtol=0, atol=1e-5)
    known = chosen.distances(Metric.COSINE, rows, np.arange(20), query.astype(np.float64))
    np.testing.assert_allclose(known, np.maximum(expected, 0).astype(np.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", list(Metric))
@given(st.integers(0, 99), st.integers(1, 40), exponents, st.floats(0, 60), exponents)
def test_distances_that_answers_are_sorted_by_are_those_of_80_bits(
    metric: Metric, seed: int, d: int, exponent: float, spread: float, asked: float
) -> None:
    rows, query = vectors(seed, 20, d, exponent, spread), vectors(seed + 100, 1, d, asked)[0]
    found = chosen.distances(metric, rows, np.arange(20), query.astype(np.float64))
    expected = judged(metric, rows, query).astype(np.float64)
    terms = np.abs(rows.astype(np.float64)) @ np.abs(query.astype(np.float64)) if metric is Metric.DOT else 0
    scale = terms if metric is Metric.DOT else 1.0 if metric is Metric.COSINE else np.abs(expected)
    assert (np.isnan(found) == np.isnan(expected)).all()
    good = ~np.isnan(expected)
    assert (np.abs(found - expected)[good] <= (1e-13 * scale + 0 * expected)[good]).all()


@pytest.mark.parametrize("metric", list(Metric))
@example(37, -1.0, 30.0, True)
@given(st.integers(0, 99), exponents, st.sampled_from([0.0, 2.0, 30.0]), st.booleans())
def test_an_exact_scan_finds_the_nearest_rows_at_any_scale(
    tmp_path_factory: pytest.TempPathFactory, metric: Metric, seed: int, exponent: float, spread: float, own: bool
) -> None:
    rows = vectors(seed, 300, 6, exponent, spread)
    query = rows[seed] if own else vectors(seed + 100, 1, 6, exponent)[0]
    store = stored(tmp_path_factory.getbasetemp(), rows)
    expected = judged(metric, rows, query)
    keys = np.where(np.isnan(expected), np.inf, -expected if metric.larger_is_nearer else expected)
    kth = np.sort(keys)[9]
    margin = 1e-13 * (
        1 if metric is Metric.COSINE else np.abs(rows.astype(LONG)).max() * np.abs(query.astype(LONG)).max()
    )
    margin = margin * 6 if metric in (Metric.COSINE, Metric.DOT) else 1e-13 * abs(kth)
    found = FlatIndex(store, metric).search(query, 10)
    assert len(found.rows) == 10
    assert (keys[found.rows.astype(int)] <= kth + margin).all()
    batch, _ = nearest_each(store, metric, query[None], 10)
    assert (keys[batch[0]] <= kth + margin).all()


@pytest.mark.parametrize("exponent", [-40, -25, -22, -12, -11, -10, -9, 0, 9, 12, 19, 30])
def test_sql_gives_the_cosine_distances_of_80_bits_whatever_clickhouse_makes_of_them(
    db: clipql.Database, exponent: int
) -> None:
    rows = vectors(1, 1500, 8, exponent)
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    for at in range(0, 1500, 500):
        values = ", ".join(f"({i}, {rows[i].tolist()})" for i in range(at, at + 500))
        db.sql(f"INSERT INTO t VALUES {values}")
    expected = judged(Metric.COSINE, rows, rows[5]).astype(np.float64)
    order = np.argsort(expected, kind="stable")[:5]
    asked = "(SELECT v FROM t WHERE id = 5)"
    got = db.sql(f"SELECT id, cosineDistance(v, {asked}) AS d FROM t ORDER BY d LIMIT 5").rows
    assert [i for i, _ in got] == order.tolist()
    np.testing.assert_allclose([d for _, d in got], np.maximum(expected[order], 0), atol=1e-6)
    radius = float(np.sort(expected)[200:202].mean())
    count = f"SELECT count() FROM t WHERE cosineDistance(v, {asked}) < {radius!r}"
    assert db.sql(count).rows == [(201,)]
    if exponent in (-9, 0, 9):  # where ClickHouse's Float32 holds what it multiplies
        assert db.sql(f"{count} SETTINGS vector_plan = 0").rows == [(201,)]
    mean = db.sql(f"SELECT avg(cosineDistance(v, {asked})) FROM t").rows[0][0]
    assert abs(mean - float(expected.mean())) < 1e-5
