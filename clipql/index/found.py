"""From the rows that a library's index names to exact candidates: what `hnsw` and `annoy` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Candidates, Cost, Vectors
from clipql.storage.vectors import metrics
from clipql.storage.vectors.metrics import Metric

# a filter that leaves fewer rows is answered exactly: the graph or the trees would mostly name rows that it forbids
EXACT_ROWS = 20_000

Nearest = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def search(
    vectors: Vectors,
    metric: Metric,
    covered: int,
    query: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None,
    nearest: Nearest,
) -> Candidates:
    """The k nearest rows, exactly rescored, k whenever k qualify.

    nearest(query, n) names about n rows; it is asked for more and more until k of them are allowed, and in the end
    every allowed row is compared.
    """
    began = time.perf_counter()
    allowed = covered if among is None else int(np.count_nonzero(among[:covered]))
    wanted, n, rescored = min(k, allowed), max(2 * k, 32), 0
    rows = np.empty(0, np.int64)
    if among is not None and allowed > EXACT_ROWS:
        n = int(n * covered / allowed)
    while allowed > EXACT_ROWS or among is None:
        rows = nearest(query, min(n, covered))
        rows = rows if among is None else rows[among[rows]]
        if len(rows) >= wanted or n >= covered // 4:
            break
        n *= 4
    if len(rows) < wanted:
        rows = np.arange(covered) if among is None else np.flatnonzero(among[:covered])
    rescored = len(rows)
    distances = exact(vectors, metric, rows, query)
    key = np.where(np.isnan(distances), np.inf, -distances if metric.larger_is_nearer else distances)
    order = np.lexsort((rows, key))[:k]
    cost = Cost(rows_rescored=rescored, seconds={"search": time.perf_counter() - began})
    return Candidates(rows[order].astype(np.uint64), distances[order], cost)


def exact(
    vectors: Vectors, metric: Metric, rows: NDArray[Any], query: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """float64 distances of these rows to a query, in bounded memory."""
    out = np.empty(len(rows))
    for at in range(0, len(rows), 4096):
        out[at : at + 4096] = metrics.distances(metric, vectors.take(rows[at : at + 4096]), query)
    return out


def number(knobs: Mapping[str, float] | None, name: str, default: int, kind: str, known: tuple[str, ...]) -> int:
    """A knob of a search. Raises VectorIndexError for a knob that the kind does not have, or a value below 1."""
    given = dict(knobs or {})
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise VectorIndexError(f"an {kind} index has no knob {unknown[0]!r}; it has {', '.join(known)}")
    recall = float(given.get("recall", 0.95))
    if not 0 < recall <= 1:
        raise VectorIndexError(f"recall = {recall:g}: expected more than 0 and at most 1")
    value = given.get(name, default)
    if value < 1:
        raise VectorIndexError(f"{name} = {value:g}: expected at least 1")
    return int(value)
