"""A condition on a distance decides which rows there are: an index never leaves one out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.storage.vectors import metrics
from tests.cases import some

ROWS, DIMENSION = 5_000, 24
DISTANCES = ("cosineDistance", "L2Distance", "L2SquaredDistance", "dotProduct")
COVERED, DELETED = 4_000, "id % 17 = 3"


def made(seed: int, n: int) -> np.ndarray:
    """Clusters of unlike sizes and lengths, with duplicates and zero vectors among them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, DIMENSION)) * rng.uniform(0.5, 2, (30, 1))
    x = centres[rng.integers(0, 30, n)] + rng.uniform(0.05, 0.7, (n, 1)) * rng.standard_normal((n, DIMENSION))
    x[:: n // 40] = x[7]
    x[5 :: n // 10] = 0
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """A table for each distance, with an ivf index, rows newer than that, and deleted ones."""
    x = made(1, ROWS)
    with clipql.connect(tmp_path_factory.mktemp("conditions") / "db") as db:
        db.sql("CREATE TABLE source (id UInt32, k UInt8, v Array(Float32)) ENGINE = Memory")
        db.sql("INSERT INTO source VALUES " + ",".join(f"({i},{i % 7},{x[i].tolist()})" for i in range(ROWS)))
        for distance in DISTANCES:
            db.sql(
                f"CREATE TABLE {distance} (id UInt32, k UInt8, v Array(Float32), INDEX near v TYPE ivf('{distance}')) "
                "ENGINE = MergeTree ORDER BY id"
            )
            for first, last in ((0, COVERED), (COVERED, ROWS)):
                db.sql(f"INSERT INTO {distance} SELECT * FROM source WHERE id >= {first} AND id < {last}")
                if first == 0:
                    db.sql(f"ALTER TABLE {distance} MATERIALIZE INDEX near")
            db.sql(f"DELETE FROM {distance} WHERE {DELETED}")
        yield db


def radii(distance: str, x: np.ndarray, q: np.ndarray) -> list[float]:
    """Radii that 3, 40, 500 and half of the rows lie within, halfway between two of them."""
    values = metrics.distances(metrics.Metric(distance), x, q)
    values = np.unique(np.round(values[~np.isnan(values)], 6))
    values = values[::-1] if distance == "dotProduct" else values
    return [float(values[n] + values[n + 1]) / 2 for n in (3, 40, 500, len(values) // 2)]


@pytest.mark.parametrize("distance", some(DISTANCES, 3))
def test_a_condition_counts_the_rows_that_clickhouse_counts(db: clipql.Database, distance: str) -> None:
    x = made(1, ROWS)
    op = ">" if distance == "dotProduct" else "<"
    for q in some((x[7], x[100], made(2, 100)[50], np.ones(DIMENSION, np.float32)), 2):
        for radius in radii(distance, x, q):
            condition = f"{distance}(v, {{q:Array(Float32)}}) {op} {radius!r}"
            for statement in (
                f"SELECT count(), sum(id) FROM {distance} WHERE {condition}",
                f"SELECT k, count() FROM {distance} WHERE {condition} AND k != 3 GROUP BY k ORDER BY k",
                f"SELECT count() FROM (SELECT id FROM {distance} WHERE id > 900 AND {condition})",
            ):
                found, plain = db.sql(statement, q=q), db.sql(statement + " SETTINGS vector_plan = 0", q=q)
                assert found.rows == plain.rows
                assert [s.kind for s in found.stats.searches] in (["range"], ["distances"])


def test_explain_says_that_a_condition_is_exact_and_that_recall_lets_the_index_answer(db: clipql.Database) -> None:
    statement = "EXPLAIN SELECT count() FROM L2Distance WHERE L2Distance(v, {q:Array(Float32)}) < 1 SETTINGS "

    def explained(settings: str) -> str:
        lines = [line for (line,) in db.sql(statement + settings, q=np.ones(DIMENSION)).rows]
        return next(line for line in lines if line.startswith("  index"))

    compared = "exact: rows that its codes do not rule out are compared; 1,000 newer rows are scanned"
    assert [explained(s) for s in ("max_threads = 2", "recall = 1", "recall = 0.9", "vector_index = 0")] == [
        f"  index: near (ivf, L2Distance); {compared}",
        f"  index: near (ivf, L2Distance, recall = 1); {compared}",
        "  index: near (ivf, L2Distance, recall = 0.9); 1,000 newer rows are scanned",
        "  index: none, an exact scan on all cores; vector_index = 0",
    ]


def test_what_a_condition_counts_is_what_a_delete_by_it_removes(db: clipql.Database, tmp_path: Path) -> None:
    q = made(1, ROWS)[7]
    db.sql(
        "CREATE TABLE gone (id UInt32, k UInt8, v Array(Float32), INDEX near v TYPE ivf('cosineDistance')) "
        "ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO gone SELECT id, k, v FROM cosineDistance")
    condition = f"cosineDistance(v, {q.tolist()}) < 0.2"
    before = db.sql("SELECT count() FROM gone").rows[0][0]
    counted = db.sql(f"SELECT count() FROM gone WHERE {condition}").rows[0][0]
    db.sql(f"DELETE FROM gone WHERE {condition}")
    assert db.sql("SELECT count() FROM gone").rows == [(before - counted,)]
    assert counted > 40
