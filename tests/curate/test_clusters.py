"""Clusters by k-means: rows are with their nearest centroid, and the sum of squares is that of another k-means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.curate.clusters import cluster_rows
from clipql.index import kmeans

ROWS, TRUE, DIMENSION = 1_200, 12, 16


def points() -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(6)
    x = 3 * rng.standard_normal((TRUE, DIMENSION))[np.arange(ROWS) % TRUE] + rng.standard_normal((ROWS, DIMENSION))
    x[77] = 0
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("clusters") / "db") as opened:
        opened.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        opened.sql("INSERT INTO t VALUES " + ", ".join(f"({i}, {v.tolist()})" for i, v in enumerate(points())))
        opened.sql("DELETE FROM t WHERE id % 100 = 9")
        yield opened


@pytest.mark.parametrize("metric", ["cosineDistance", "L2Distance"])
def test_rows_are_with_their_nearest_centroid(db: clipql.Database, metric: str) -> None:
    made = cluster_rows(db, "t", column="v", k=20, metric=metric, into="clusters", centroids="centroids")
    try:
        assert made.rows == ROWS - 12 - (metric == "cosineDistance")  # a vector of zeros has no direction
        assert db.sql("SELECT count(), sum(rows) FROM centroids").rows == [(20, made.rows)]
        wrong = (
            "SELECT countIf(abs(own - least) > 1e-4), countIf(abs(own - distance) > 1e-4) FROM (SELECT r.id, "
            "any(r.distance) AS distance, min({0}(t.v, c.centroid)) AS least, "
            "minIf({0}(t.v, c.centroid), c.cluster = r.cluster) AS own FROM clusters AS r INNER JOIN t ON t.id = r.id "
            "CROSS JOIN centroids AS c GROUP BY r.id) SETTINGS vector_plan = 0"
        )
        if (
            metric == "L2Distance"
        ):  # by cosine, centroids are means of vectors of length 1, and compared by their squares
            assert db.sql(wrong.format(metric)).rows == [(0, 0)]
        shared = "SELECT max(n) FROM (SELECT cluster, uniqExact(id % 12) AS n FROM clusters GROUP BY cluster)"
        assert db.sql(shared).rows[0][0] <= 3
    finally:
        db.sql("DROP TABLE clusters")
        db.sql("DROP TABLE centroids")


def test_the_sum_of_squares_is_that_of_a_plain_k_means() -> None:
    x = points()
    rng = np.random.default_rng(0)
    plain = x[rng.choice(ROWS, 30, replace=False)].astype(np.float64)
    for _ in range(25):
        own = ((x[:, None] - plain[None]) ** 2).sum(2).argmin(1)
        plain = np.stack([x[own == c].mean(0) if (own == c).any() else plain[c] for c in range(30)])
    expected = ((x[:, None] - plain[None]) ** 2).sum(2).min(1).mean()
    centroids = kmeans.train(x, 30, iterations=25)
    lists, squares = kmeans.nearest(x, centroids, 3)
    assert squares[:, 0].mean() < 1.05 * expected
    every = ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(2)
    np.testing.assert_allclose(squares, np.sort(every, 1)[:, :3], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(every, lists.astype(np.int64), 1), squares, rtol=1e-3, atol=1e-3)


def test_lists_that_lose_their_rows_are_given_others() -> None:
    x = np.repeat(np.eye(3, 8, dtype=np.float32), 50, axis=0) + np.random.default_rng(0).normal(0, 1e-3, (150, 8))
    centroids = kmeans.train(x.astype(np.float32), 40, iterations=8)
    assert np.isfinite(centroids).all()
    assert kmeans.nearest(x.astype(np.float32), centroids, 1)[1].max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "0 clusters of"),
        ({"k": 5_000}, "5,000 clusters of"),
        ({"metric": "dotProduct"}, "clusters are by cosineDistance or L2Distance"),
        ({"into": "t"}, "t is there already"),
        ({"centroids": "t"}, "t is there already"),
        ({"id": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    db: clipql.Database, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(clipql.ClipqlError, match=message):
        cluster_rows(db, "t", **{"column": "v", "into": "made", "k": 3, **options})
    assert db.sql("SELECT count() FROM system.tables WHERE name = 'made'").rows == [(0,)]
