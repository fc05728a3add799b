"""The nearest rows of many queries at once, exactly: one pass over the rows, as products of matrices.

What must stay true: it gives what a scan for each query would give. Products are float32, so rows within rounding of
the k-th are decided in float64, and a query for which that cannot be told is scanned by itself. The products may be a
device's (`streamed.py`): what is unsure with its margin, which is proven, is compared on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index import streamed
from clipql.index.cores import each_core
from clipql.index.flat import WIDE, Scan, Term
from clipql.index.largest import largest_of_rows
from clipql.storage.vectors import kernels, rowwise
from clipql.storage.vectors.device import Device, DeviceFull
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

ROWS_AT_ONCE, QUERIES_AT_ONCE, PAIRS_AT_ONCE = 8_192, 512, 8_192
MOST_QUERIES = 8_192  # where there are few rows
SPARE = 24  # candidates beyond the k-th, so that rounding seldom decides
SPARE_ON_DEVICE = 104  # where the margin is wider
# relative to the largest terms that a float32 score is made of
ROUNDING = 4e-6
# terms that are all smaller lose digits in float32
SMALL = 1e-30


def nearest_each(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None = None,
    *,
    first: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    device: Device | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest of rows [first, store.rows) to each query: rows int64 (n, k), -1 where there are fewer, and float64
    (n, k) distances, nearest first, infinite there. queries: (n, d). stopped: asked between blocks. device: multiplies.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf)
    # as many scores at once whatever the rows: products of large matrices take less time
    step = max(QUERIES_AT_ONCE, QUERIES_AT_ONCE * ROWS_AT_ONCE // max(1, min(store.rows - first, ROWS_AT_ONCE)))
    step = min(step, MOST_QUERIES) if device is None else at_once(device)
    for a in range(0, len(queries), step):
        part = slice(a, min(len(queries), a + step))
        found, taken, unsure = _candidates(store, metric, queries[part], k, among, first, stopped, device)
        for i in np.flatnonzero(unsure):
            query, weight = queries[a + i].astype(np.float64), -1.0 if metric.larger_is_nearer else 1.0
            scanned = Scan([Term(store, metric, query, weight)], store.rows, among, first=first).nearest(k)
            candidates = scanned.rows.astype(np.int64)
            values = _distances(store, metric, queries[part], np.full(len(candidates), i), candidates)
            keys = np.where(np.isnan(values), np.inf, -values if metric.larger_is_nearer else values)
            order = np.lexsort((candidates, keys))[:k]
            rows[a + i, : len(order)] = candidates[order]
            distances[a + i, : len(order)] = values[order]
        taken[unsure] = False
        owners, places = np.nonzero(taken)
        candidates = found[owners, places]
        values = _distances(store, metric, queries[part], owners, candidates)
        keys = np.where(np.isnan(values), np.inf, -values if metric.larger_is_nearer else values)
        order = np.lexsort((candidates, keys, owners))
        rank = np.arange(len(order)) - np.searchsorted(owners, owners)  # among those of one query
        order, rank = order[rank < k], rank[rank < k]
        rows[a + owners[order], rank], distances[a + owners[order], rank] = candidates[order], values[order]
    return rows, distances


def candidates_each(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    device: Device | None = None,
) -> list[NDArray[np.int64] | None]:
    """For each of the queries (n, d) a few rows that have its k nearest among them, ascending, with all that float32
    cannot tell from the k-th; None where they are more than a few, and where rows have no distance.
    """
    out: list[NDArray[np.int64] | None] = []
    step = at_once(device)
    for a in range(0, len(queries), step):
        found, taken, unsure = _candidates(store, metric, queries[a : a + step], k, among, 0, stopped, device)
        out += [None if unsure[i] else np.sort(found[i, taken[i]]) for i in range(len(unsure))]
    return out


def at_once(device: Device | None) -> int:
    """Queries that are compared with all rows in one pass."""
    return QUERIES_AT_ONCE if device is None else streamed.QUERIES


def _distances(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    owners: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The distance of each of these rows to its query, in float64."""
    out = np.empty(len(rows))

    def some(first: int, last: int) -> None:
        for at in range(first, last, PAIRS_AT_ONCE):
            pairs = slice(at, min(last, at + PAIRS_AT_ONCE))
            out[pairs] = rowwise.of_pairs(metric, queries[owners[pairs]], store.take(rows[pairs]))

    each_core(len(rows), some)
    return out


# rows for each query (queries, n), which of them hold its k nearest, and for which queries that is unsure
_Found = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


def _candidates(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None,
    first: int,
    stopped: Callable[[], bool],
    device: Device | None,
) -> _Found:
    n = len(queries)
    if metric is not Metric.COSINE and max(store.largest, float(np.abs(queries).max(initial=0))) > WIDE**0.5:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.bool_), np.ones(n, np.bool_)
    if device is None:
        return _by_processor(store, metric, queries, k, among, first, stopped)
    found, taken, left = _by_device(store, metric, queries, k, among, first, stopped, device)
    unsure = np.zeros(n, np.bool_)
    again = np.flatnonzero(left)
    for at in range(0, len(again), QUERIES_AT_ONCE):
        some = again[at : at + QUERIES_AT_ONCE]
        theirs, held, unsure[some] = _by_processor(store, metric, queries[some], k, among, first, stopped)
        more = theirs.shape[1] - found.shape[1]
        if more > 0:
            found = np.concatenate([found, np.zeros((n, more), np.int64)], axis=1)
            taken = np.concatenate([taken, np.zeros((n, more), np.bool_)], axis=1)
        taken[some] = False
        found[some, : theirs.shape[1]], taken[some, : theirs.shape[1]] = theirs, held
    return found, taken, unsure


def _by_device(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None,
    first: int,
    stopped: Callable[[], bool],
    device: Device,
) -> _Found:
    n, keep = len(queries), k + SPARE_ON_DEVICE
    try:
        best = streamed.best_rows(device, store, metric, queries, keep, among, first, stopped)
    except DeviceFull:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.bool_), np.ones(n, np.bool_)
    if best is None:
        return _stopped(n)
    scores = np.where(np.isneginf(best.scores), np.float32(np.nan), best.scores)
    return _near_the_kth(scores, best.rows, k, keep, best.margin)


def _by_processor(
    store: ColumnStore,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    among: NDArray[np.bool_] | None,
    first: int,
    stopped: Callable[[], bool],
) -> _Found:
    n, keep = len(queries), k + SPARE
    sides = unit(queries) if metric is Metric.COSINE else queries
    best = np.full((n, 0), -np.inf, np.float32)
    found = np.empty((n, 0), np.int64)
    largest = 0.0
    for start, block in store.blocks(first, store.rows):
        for at in range(0, len(block), ROWS_AT_ONCE):
            if stopped():
                return _stopped(n)
            x = block[at : at + ROWS_AT_ONCE].astype(np.float32)
            numbers = np.arange(start + at, start + at + len(x))
            if among is not None:
                allowed = among[start + at : start + at + len(x)]
                x, numbers = x[allowed], numbers[allowed]
            if not len(x):
                continue
            scores, scale = _scores(metric, sides, x)
            largest = max(largest, scale)
            scores, chosen = _first(scores, keep)
            best = np.concatenate([best, scores], axis=1)
            found = np.concatenate([found, numbers[chosen]], axis=1)
            best, kept = _first(best, keep)
            found = np.take_along_axis(found, kept, axis=1)
    # distances of a query that is longer than the rows are the same Float32 where its scores are farther apart
    asked = 0.0 if metric is Metric.DOT else float(np.einsum("ij,ij->i", sides, sides).max(initial=0))
    margin = 2 * ROUNDING * largest + streamed.TIED * max(largest, asked)
    return _near_the_kth(best, found, k, keep, margin if largest >= SMALL else np.inf)


def _stopped(n: int) -> _Found:
    return np.empty((n, 0), np.int64), np.empty((n, 0), np.bool_), np.zeros(n, np.bool_)


def _near_the_kth(best: NDArray[np.float32], found: NDArray[np.int64], k: int, keep: int, margin: float) -> _Found:
    """Of the `keep` best rows of each query those that come before the k-th, or may, within a margin of its score."""
    if best.shape[1] <= k:
        return found, np.ones(found.shape, np.bool_), _nan(best)
    ordered = -np.sort(-best, axis=1)
    kth = ordered[:, k - 1 : k]
    close = ordered[:, -1:] >= kth - margin if best.shape[1] == keep else np.zeros(kth.shape, np.bool_)
    return found, best >= kth - margin, np.logical_or(_nan(best), close[:, 0] | np.isinf(margin))


def _first(scores: NDArray[np.float32], keep: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The `keep` largest scores of each query, in no order, and their places."""
    if scores.shape[1] <= keep:
        return scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    places, best = np.empty((len(scores), keep), np.int32), np.empty((len(scores), keep), np.float32)
    largest_of_rows(scores, places, best)
    best[np.isneginf(best)] = np.nan  # fewer are numbers
    return best, places


def _scores(metric: Metric, queries: NDArray[np.float32], x: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Scores (queries, rows), larger is nearer, and the size of the terms they are made of."""
    if metric is Metric.COSINE:
        return queries @ unit(x).T, 1.0
    products = queries @ x.T
    norms = np.einsum("ij,ij->i", x, x)
    reach = float(np.sqrt(norms.max(initial=0)) * np.sqrt(np.einsum("ij,ij->i", queries, queries).max(initial=0)))
    if metric is Metric.DOT:
        return products, reach
    return products - norms * np.float32(0.5), max(reach, float(norms.max(initial=0)))


def _nan(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which queries have a score that is no number."""
    return np.asarray(np.isnan(scores).any(axis=1), np.bool_)


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1, whatever their length; NaN for those of zeros."""
    squares = np.einsum("ij,ij->i", x, x)
    odd = np.flatnonzero(~((squares >= kernels.SHORTEST) & (squares <= kernels.LONGEST)))
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.asarray(x / np.sqrt(squares)[:, None], np.float32)
        if len(odd):
            long = x[odd].astype(np.float64)
            out[odd] = long / np.sqrt(np.einsum("ij,ij->i", long, long))[:, None]
    return out
