"""Measure indexes against the exact scan on one's own queries: recall, latency, and a plot of one over the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.errors import ClipqlError, UnknownTable, VectorError, VectorIndexError
from clipql.index.flat import FlatIndex
from clipql.storage.vectors.metrics import Metric

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import IndexEntry, Table

# what each kind of index is asked for, from quick to thorough
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "ivf": tuple({"recall": r} for r in (0.8, 0.9, 0.95, 0.98, 0.99)),
    "hnsw": tuple({"ef": float(e)} for e in (32, 64, 128, 256, 512, 1024)),
    "annoy": tuple({"search_k": float(n)} for n in (1_000, 4_000, 16_000, 64_000, 256_000)),
}


@dataclass(frozen=True)
class Point:
    """One setting of an index: recall of k on average, seconds a query (median and 95th percentile), rows rescored."""

    index: str
    setting: str
    recall: float
    median_seconds: float
    p95_seconds: float
    rescored: float


@dataclass(frozen=True, repr=False)
class Evaluation(Brief):
    """Points of every index on a column, the exact scan first; `queries` and `k` as they were."""

    table: str
    column: str
    queries: int
    k: int
    points: tuple[Point, ...]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw recall against latency. Raises ClipqlError where matplotlib is missing."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ClipqlError("a plot needs matplotlib: pip install 'clipql[plot]'") from error
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes: Any = figure.add_subplot()
        for name in dict.fromkeys(p.index for p in self.points):
            own = [p for p in self.points if p.index == name]
            axes.plot([p.recall for p in own], [p.median_seconds * 1e3 for p in own], marker="o", label=name)
        axes.set(
            xlabel=f"recall@{self.k}",
            ylabel="milliseconds a query, median",
            yscale="log",
            title=f"{self.table}.{self.column}, {self.queries} queries",
        )
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


def evaluate(
    db: Database,
    table: str,
    queries: NDArray[Any],
    *,
    column: str = "image_embedding",
    k: int = 10,
    index: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Compare the indexes of a column, or the one named, with the exact scan.

    queries: (n, d) vectors. Each query is searched one at a time, on the rows that are there.
    Raises UnknownTable, VectorError or VectorIndexError.
    """
    known, entries = _entries(db, table, column, index)
    store = db.registry.store(known, column)
    vectors = np.asarray(queries, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != store.dimension or not len(vectors):
        raise VectorError(f"queries have shape {vectors.shape}; {column} of {table} holds {store.dimension} numbers")
    alive = db.registry.present(known, [column])
    total = len(vectors) * (1 + sum(len(SETTINGS[e.kind]) for e in entries))
    done = 0
    truths: dict[Metric, list[set[int]]] = {}
    points: list[Point] = []
    for metric in dict.fromkeys([Metric(e.metric) for e in entries] or [Metric.COSINE]):
        flat = FlatIndex(store, metric)
        seconds: list[float] = []
        truths[metric] = []
        for q in vectors:
            began = time.perf_counter()
            truth = flat.search(q, k, among=alive)
            seconds.append(time.perf_counter() - began)
            truths[metric].append(set(truth.rows.tolist()))
        done += len(vectors)
        progress(done, total)
        points.append(_point(f"exact ({metric.value})", "", [1.0] * len(vectors), seconds, 0.0))
    for entry in entries:
        chosen = db.indexes.choose(known, column, Metric(entry.metric))
        if chosen.index is None or chosen.entry != entry:
            raise VectorIndexError(f"index {entry.name} cannot be used: {chosen.why or 'another is chosen before it'}")
        for knobs in SETTINGS[entry.kind]:
            recalls, seconds, rescored = [], [], 0
            for q, truth_rows in zip(vectors, truths[Metric(entry.metric)], strict=True):
                began = time.perf_counter()
                found = chosen.index.search(q, k, among=alive, knobs=knobs)
                seconds.append(time.perf_counter() - began)
                recalls.append(len(truth_rows & set(found.rows.tolist())) / max(1, len(truth_rows)))
                rescored += found.cost.rows_rescored
            done += len(vectors)
            progress(done, total)
            name = ", ".join(f"{n} = {v:g}" for n, v in knobs.items())
            points.append(_point(f"{entry.name} ({entry.kind})", name, recalls, seconds, rescored / len(vectors)))
    return Evaluation(known.full_name, column, len(vectors), k, tuple(points))


def _entries(db: Database, table: str, column: str, index: str | None) -> tuple[Table, list[IndexEntry]]:
    database, _, name = table.rpartition(".")
    known = db.registry.find(database or None, name)
    if known is None:
        raise UnknownTable(f"there is no table {table} with vector columns")
    if known.column(column) is None:
        raise VectorError(f"{table} has no vector column {column}; it has {', '.join(c.name for c in known.columns)}")
    entries = [i for i in known.indexes if i.column == column and i.kind != "flat" and i.folder]
    if index is not None:
        entries = [i for i in entries if i.name == index]
        if not entries:
            raise VectorIndexError(f"{table} has no built index {index} on {column}")
    return known, entries


def _point(index: str, setting: str, recalls: Sequence[float], seconds: Sequence[float], rescored: float) -> Point:
    return Point(
        index, setting, float(np.mean(recalls)), float(np.median(seconds)), float(np.quantile(seconds, 0.95)), rescored
    )
