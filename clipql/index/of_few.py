"""The nearest of a few rows to each of many queries, exactly: labels, prompts, centroids.

One product of matrices gives all scores; what rounding cannot tell from the k-th is compared in float64. What must stay
true: it gives what `batch.nearest_each` gives; a query for which that cannot be told is left to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.batch import ROUNDING, SMALL, SPARE, unit
from clipql.index.cores import each_core
from clipql.index.flat import WIDE
from clipql.index.rows import ArrayRows
from clipql.index.streamed import TIED
from clipql.index.widened import widened
from clipql.storage.vectors import kernels
from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.rowwise import FORMULA, of_pair

MOST_ROWS, MOST_K = 8_192, 16
_LANES = 64
_AT_ONCE = 4_096  # queries: products of large matrices take less time

Floats = NDArray[np.float32]


class FewRows:
    """Rows of a column in memory, to be searched by many queries. among: which rows count; None for all."""

    def __init__(self, store: Vectors, metric: Metric, among: NDArray[np.bool_] | None = None) -> None:
        self._metric = metric
        self._rows = np.arange(store.rows) if among is None else np.flatnonzero(among)
        self._x = store.take(self._rows)
        squares = np.einsum("ij,ij->i", self._x, self._x)
        self._sides, self._offsets = self._x, np.zeros(len(self._x), np.float32)
        self._longest = float(np.sqrt(squares.max(initial=0)))
        self._wide = float(np.abs(self._x).max(initial=0)) > WIDE**0.5
        if metric is Metric.COSINE:
            self._sides, self._longest = unit(self._x), 1.0
        elif metric is not Metric.DOT:
            self._offsets = np.asarray(squares * np.float32(0.5), np.float32)

    def nearest(
        self, queries: NDArray[Any], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """The k nearest rows to each query, k at most as many as there are, and MOST_K.

        queries: float16 or float32 (n, d), C order. Returns int64 (n, k) rows, float64 (n, k) distances, nearest first,
        and bool (n,): for which queries that was told; what the others have means nothing.
        """
        n, d = queries.shape
        rows, distances, told = np.zeros((n, k), np.int64), np.zeros((n, k)), np.zeros(n, np.bool_)
        if not self._wide:
            scores = np.empty((min(n, _AT_ONCE), len(self._sides)), np.float32)
            wide, squares = np.empty((len(scores), d), np.float32), np.empty(len(scores), np.float32)
            for at in range(0, n, _AT_ONCE):
                part = slice(at, min(n, at + _AT_ONCE))
                here = slice(0, part.stop - at)
                self._some(
                    queries[part], wide[here], squares[here], scores[here], rows[part], distances[part], told[part]
                )
        return self._rows[rows] if len(self._rows) else rows, distances, told

    def _some(
        self,
        queries: NDArray[Any],
        wide: Floats,
        squares: Floats,
        scores: Floats,
        rows: NDArray[np.int64],
        distances: NDArray[np.float64],
        told: NDArray[np.bool_],
    ) -> None:
        widened(queries, wide, squares)
        np.matmul(wide, self._sides.T, out=scores)
        margins = self._margins(squares)
        larger, formula = self._metric.larger_is_nearer, FORMULA[self._metric]

        def some(a: int, b: int) -> None:
            _nearest(
                formula, larger, wide[a:b], self._x, scores[a:b], self._offsets, margins[a:b], SPARE,
                rows[a:b], distances[a:b], told[a:b],
            )  # fmt: skip

        each_core(len(queries), some)
        if self._metric is Metric.L2:
            np.sqrt(distances, out=distances, where=told[:, None])

    def _margins(self, squares: Floats) -> Floats:
        """By how much two scores of each query may differ whose rows cannot be told apart; infinite where by any."""
        lengths = np.sqrt(squares.astype(np.float64))
        reach = lengths * self._longest
        if self._metric is Metric.COSINE:
            margins = np.where((squares >= kernels.SHORTEST) & (squares <= kernels.LONGEST), reach, np.inf)
            margins *= 2 * ROUNDING + TIED
        elif self._metric is Metric.DOT:
            margins = np.where(reach >= SMALL, reach * (2 * ROUNDING + TIED), np.inf)
        else:
            largest = np.maximum(reach, self._longest**2)
            margins = 2 * ROUNDING * largest + TIED * np.maximum(largest, lengths**2)
            margins = np.where(largest >= SMALL, margins, np.inf)
        margins[~(lengths < WIDE**0.5)] = np.inf
        return margins.astype(np.float32)


@kernel
def _nearest(
    formula: int,
    larger: bool,
    queries: Floats,
    x: Floats,
    scores: Floats,
    offsets: Floats,
    margins: Floats,
    spare: int,
    rows: NDArray[np.int64],
    distances: NDArray[np.float64],
    told: NDArray[np.bool_],
) -> None:
    """The nearest rows of x to each query by its scores less offsets, with their distances in float64."""
    k = rows.shape[1]
    places = np.empty(k + spare, np.int32)
    lanes = np.empty(_LANES, np.float32)
    for i in range(queries.shape[0]):
        limit = _kth(scores[i], offsets, k, lanes) - margins[i]
        told[i] = False
        if not limit > -np.inf:  # fewer than k are numbers, or any two may be alike
            continue
        n = _from(scores[i], offsets, limit, places)
        if n > len(places):
            continue
        told[i] = True
        for m in range(k):
            distances[i, m] = np.inf
        for c in range(n):
            d = of_pair(formula, queries[i], x[places[c]])
            key = np.inf if np.isnan(d) else (-d if larger else d)
            m = min(c, k)
            while m > 0 and key < (-distances[i, m - 1] if larger else distances[i, m - 1]):
                m -= 1
            if m < k:
                for o in range(k - 1, m, -1):
                    distances[i, o], rows[i, o] = distances[i, o - 1], rows[i, o - 1]
                distances[i, m], rows[i, m] = d, places[c]


@kernel
def _kth(scores: Floats, offsets: Floats, k: int, lanes: Floats) -> Any:
    """A number that at least k scores reach, and few more: the k-th of the best in each of as many lanes."""
    for j in range(len(lanes)):
        lanes[j] = -np.inf
    whole = len(scores) - len(scores) % _LANES
    for j in range(0, whole, _LANES):
        for m in range(_LANES):
            v = scores[j + m] - offsets[j + m]
            lanes[m] = v if v > lanes[m] else lanes[m]
    for j in range(whole, len(scores)):
        v = scores[j] - offsets[j]
        if v > lanes[j - whole]:
            lanes[j - whole] = v
    best = float32(-np.inf)
    for _ in range(k):
        at = 0
        for m in range(_LANES):
            if lanes[m] > lanes[at]:
                at = m
        best, lanes[at] = lanes[at], -np.inf
    return best


@kernel
def _from(scores: Floats, offsets: Floats, limit: Any, places: NDArray[np.int32]) -> int:
    """The places of scores that are at least a limit, ascending, and how many there are; those beyond are left out."""
    n, whole = 0, len(scores) - len(scores) % _LANES
    for j in range(0, whole, _LANES):
        hits = 0
        for m in range(_LANES):
            hits += scores[j + m] - offsets[j + m] >= limit
        if hits > 0:
            for m in range(j, j + _LANES):
                if scores[m] - offsets[m] >= limit:
                    if n < len(places):
                        places[n] = m
                    n += 1
    for m in range(whole, len(scores)):
        if scores[m] - offsets[m] >= limit:
            if n < len(places):
                places[n] = m
            n += 1
    return n


def warm() -> None:
    """Compile the loops, for queries as they are mapped and as they are given."""
    few = FewRows(ArrayRows(np.eye(4, 8, dtype=np.float32)), Metric.COSINE)
    for dtype in (np.float16, np.float32):
        queries = np.ones((2, 8), dtype)
        few.nearest(queries, 1)
        queries.setflags(write=False)
        few.nearest(queries, 1)
