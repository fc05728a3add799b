"""From the rows that a library's index names to exact candidates: what `hnsw` and `annoy` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index import base
from clipql.index.base import Candidates, Cost, Vectors
from clipql.storage.vectors import kernels, metrics
from clipql.storage.vectors.metrics import Metric

# a filter that leaves fewer rows is answered exactly: the graph or the trees would mostly name rows that it forbids
EXACT_ROWS = 20_000
# so many equal distances, and a graph or a forest may have lost more of them
MANY_TIES = 8
ROUNDING = 2e-5  # of a float32 distance
# rows that a scan compares while the library names one
NAMED_EFFORT = 50.0

Nearest = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def search(
    vectors: Vectors,
    metric: Metric,
    covered: int,
    query: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None,
    nearest: Nearest,
    ties: bool = False,
) -> Candidates:
    """The k nearest rows, exactly rescored, k whenever k qualify.

    nearest(query, n) names about n rows; it is asked for more and more until k of them are allowed (and, for ties,
    until the farthest is farther than the k-th), and in the end every allowed row is compared.
    """
    began = time.perf_counter()
    allowed = covered if among is None else int(np.count_nonzero(among[:covered]))
    wanted, n = min(k, allowed), max(2 * k, 32)
    rows, distances = np.empty(0, np.int64), np.empty(0)
    if among is not None and allowed > EXACT_ROWS:
        n = int(n * covered / allowed)
    while allowed > EXACT_ROWS or among is None:
        rows = nearest(query, min(n, covered))
        rows = rows if among is None else rows[among[rows]]
        if len(rows) >= wanted:
            distances = exact(vectors, metric, rows, query)
            if not (ties and all_tied(distances, wanted, metric)):
                break
            distances = np.empty(0)
        if n >= covered // 4:
            break
        n *= 4
    if not len(distances):
        rows = np.arange(covered) if among is None else np.flatnonzero(among[:covered])
        distances = exact(vectors, metric, rows, query)
    scanned = 0
    if ties and len(rows) < allowed and _tied(distances, wanted, metric) >= MANY_TIES:
        rows, scanned = _with_all_ties(vectors, metric, covered, query, among, rows, distances, wanted), covered
        distances = exact(vectors, metric, rows, query)
    cost = Cost(rows_scanned=scanned, rows_rescored=len(rows), seconds={"search": time.perf_counter() - began})
    return base.nearest(rows, distances, k, metric, cost, ties=ties)


def efforts(ks: Sequence[int], covered: int, allowed: int) -> list[float]:
    """See `Index.efforts`: every row named is a step through the graph or the trees."""
    return [NAMED_EFFORT * min(covered, max(2 * k, 32) * covered / max(1, allowed)) for k in ks]


def all_tied(distances: NDArray[np.float64], k: int, metric: Metric) -> bool:
    """Whether even the farthest of these ties with the k-th, so that there may be more of them."""
    ordered = _ordered(distances, metric)
    return k > 0 and base.within_float32(ordered, k) == len(ordered)


def _ordered(distances: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    return np.sort(-distances if metric.larger_is_nearer else distances)


def _tied(distances: NDArray[np.float64], k: int, metric: Metric) -> int:
    """How many of these tie with the k-th."""
    ordered = _ordered(distances, metric)
    return int(np.count_nonzero(np.abs(ordered - ordered[k - 1]) <= base.TIED * abs(ordered[k - 1]))) if k else 0


def _with_all_ties(
    vectors: Vectors,
    metric: Metric,
    covered: int,
    query: NDArray[np.float32],
    among: NDArray[np.bool_] | None,
    rows: NDArray[np.int64],
    distances: NDArray[np.float64],
    k: int,
) -> NDArray[np.int64]:
    """The rows named and, by a scan, all that may tie with the k-th of them: graphs and trees lose equal vectors."""
    kth = rows[np.lexsort((rows, -distances if metric.larger_is_nearer else distances))[k - 1]]
    x, found = vectors.take(np.array([kth])), [rows]
    value = np.empty(1, np.float32)
    kernels.distances(metric, x, query, value)
    size = {Metric.COSINE: 1.0, Metric.DOT: float((np.abs(x) @ np.abs(query))[0])}.get(metric, float(value[0]))
    for first, block in vectors.blocks(0, covered):
        near = np.empty(len(block), np.float32)
        kernels.distances(metric, block, query, near)
        tied = first + np.flatnonzero(np.abs(near - value[0]) <= ROUNDING * size)
        found.append(tied if among is None else tied[among[tied]])
    return np.unique(np.concatenate(found))


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
