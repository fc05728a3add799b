"""Clusters of a column by k-means: a table of which row is in which, and one of the centroids.

What must stay true: the tables of the answer are there whole or not at all; memory is that of the rows that centroids
are learnt from, and some bytes a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.tables import chosen_rows, known_column, refuse_existing, write_rows
from clipql.errors import ClipqlError, VectorError
from clipql.index import kmeans
from clipql.index.within import Side
from clipql.storage.vectors import devices
from clipql.storage.vectors.device import Device

if TYPE_CHECKING:
    from clipql.database import Database

# rows that centroids are learnt from: so many for each, as FAISS takes, and 1 GB of 512 numbers at most
PER_CENTROID, MOST_LEARNT = 256, 1 << 19
ROWS_AT_ONCE, ON_DEVICE = 16_384, 65_536
COSINE, L2 = "cosineDistance", "L2Distance"


@dataclass(frozen=True, repr=False)
class Clusters(Brief):
    """rows: in clusters. k: clusters. inertia: the mean of the squared distances to the centroids (of vectors scaled to
    length 1, by cosineDistance).
    """

    rows: int
    k: int
    inertia: float
    seconds: float


def cluster_rows(
    db: Database,
    table: str,
    *,
    into: str,
    k: int,
    column: str = "image_embedding",
    metric: str = COSINE,
    centroids: str | None = None,
    id: str = "id",
    where: str | None = None,
    iterations: int = 10,
    seed: int = 0,
    device: str = devices.CPU,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Clusters:
    """Make the table `into` of (id, cluster, distance), distance being that to the cluster's centroid.

    metric: cosineDistance, for which vectors are scaled to length 1 first, or L2Distance. centroids: a table to make of
    (cluster, rows, centroid). id: the column, or expression, that names a row. where: the rows that are looked at; rows
    of zeros are in no cluster by cosineDistance. device: cpu, a GPU as cuda:1, or auto; clusters are the same within
    rounding. Raises UnknownTable, VectorError, QueryError, DeviceError or ClipqlError.
    """
    began = time.perf_counter()
    known, store = known_column(db, table, column)
    if metric not in (COSINE, L2):
        raise VectorError(f"clusters are by {COSINE} or {L2}, and not by {metric}")
    for name in filter(None, (into, centroids)):
        refuse_existing(db, name)
    engine, physical = db.registry.engine, db.registry.physical(known)
    engine.query(f"DESCRIBE TABLE (SELECT {id} AS clipql_id FROM {physical})", user=True)  # tells what is wrong with it
    with db.registry.gate.reading():
        side = Side(store, known.rows, chosen_rows(db, known, where, column))
        if not 1 <= k <= len(side):
            raise ClipqlError(f"{k:,} clusters of {len(side):,} rows; expected 1 to as many as there are rows")
        products = float(len(side)) * k * store.dimension
        on = devices.chosen(devices.checked(device), products * (1 + iterations))
        trained = _trained(side, k, metric, iterations, seed, on, engine.check_cancelled, progress)
        rows, lists, squares = _assigned(side, trained, metric, on, engine.check_cancelled, progress)
        members = pa.table(
            {
                "row": pa.array(rows.astype(np.uint64)),
                "cluster": pa.array(lists.astype(np.uint32)),
                "distance": pa.array(_distances(trained, lists, squares, metric)),
            }
        )
        write_rows(db, physical, members, id, into)
    if centroids:
        try:
            _write_centroids(db, centroids, trained, np.bincount(lists, minlength=k))
        except BaseException:
            engine.run(f"DROP TABLE IF EXISTS {into} SYNC", user=True)
            raise
    db.registry.changes += 1
    db.registry.announce()
    return Clusters(len(rows), k, float(squares.mean()) if len(rows) else 0.0, time.perf_counter() - began)


def _vectors(side: Side, first: int, last: int, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Some rows by number, and their vectors; by cosine of length 1, without those of zeros."""
    numbers, x = side.numbers(first, last), side.vectors(first, last)
    if metric == L2:
        return numbers, x
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    there = lengths > 0
    return numbers[there], np.asarray(x[there] / lengths[there, None], np.float32)


def _trained(
    side: Side,
    k: int,
    metric: str,
    iterations: int,
    seed: int,
    device: Device | None,
    check: Callable[[], None],
    progress: Callable[[str, int, int], None],
) -> NDArray[np.float32]:
    n = min(len(side), max(k, min(PER_CENTROID * k, MOST_LEARNT)))
    places = np.sort(np.random.default_rng(seed).choice(len(side), n, replace=False))
    chosen = places if side.chosen is None else side.chosen[places]
    _, sample = _vectors(Side(side.store, side.rows, chosen), 0, n, metric)
    if len(sample) < k:
        raise ClipqlError(f"{k:,} clusters of {len(sample):,} rows that are not zeros; expected fewer clusters")
    done = iter(range(iterations))

    def step() -> None:
        check()
        progress("iterations", next(done, iterations), iterations)

    return kmeans.train(sample, k, iterations=iterations, seed=seed, check=step, device=device)


def _assigned(
    side: Side,
    centroids: NDArray[np.float32],
    metric: str,
    device: Device | None,
    check: Callable[[], None],
    progress: Callable[[str, int, int], None],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The rows, the cluster of each, and the squared distance to its centroid."""
    parts = []
    step = ROWS_AT_ONCE if device is None else ON_DEVICE
    for at in range(0, len(side), step):
        check()
        progress("rows", at, len(side))
        numbers, x = _vectors(side, at, at + step, metric)
        lists, squares = kmeans.nearest(x, centroids, 1, device)
        parts.append((numbers, lists[:, 0], squares[:, 0]))
    rows, lists, squares = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, lists, squares


def _distances(
    centroids: NDArray[np.float32], lists: NDArray[np.int32], squares: NDArray[np.float32], metric: str
) -> NDArray[np.float32]:
    if metric == L2:
        return np.asarray(np.sqrt(squares), np.float32)
    lengths = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64)[lists]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (1 + lengths - squares) / (2 * np.sqrt(lengths))
    return np.asarray(np.maximum(1 - cosines, 0), np.float32)


def _write_centroids(db: Database, name: str, centroids: NDArray[np.float32], sizes: NDArray[np.int64]) -> None:
    """As a table with a vector column, so that a nearest-neighbour join finds the centroids of other rows."""
    columns = "cluster UInt32, rows UInt64, centroid Array(Float32)"
    db.sql(f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree ORDER BY cluster")
    try:
        for at in range(0, len(centroids), 1_000):
            part = centroids[at : at + 1_000]
            values = ", ".join(f"({at + i}, {sizes[at + i]}, {v.tolist()})" for i, v in enumerate(part))
            db.sql(f"INSERT INTO {name} VALUES {values}")
    except BaseException:
        db.sql(f"DROP TABLE IF EXISTS {name}")
        raise
