"""Distances of chosen rows in float64, read from where the segments are mapped: what answers are sorted and cut by.

What must stay true: a row has the same distance, to the last bit, whatever rows it is computed with, so that equal
vectors tie; and it is what `metrics.distances` says, but for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.storage.vectors.bits import half_to_float, kernel, prefetch
from clipql.storage.vectors.metrics import Metric

_DOT, _COSINE, _L2 = 0, 1, 2
_FORMULA = {Metric.DOT: _DOT, Metric.COSINE: _COSINE, Metric.L2: _L2, Metric.L2_SQUARED: _L2}
AHEAD = 16  # rows that are fetched meanwhile
Floats = NDArray[np.float64]


def distances(metric: Metric, x: NDArray[Any], rows: NDArray[np.int64], query: Floats) -> Floats:
    """The distance of x[rows] to a query. x: (n, d) float16 or float32, C order; query: (d,). Returns (len(rows),)."""
    out = np.empty(len(rows))
    if x.dtype == np.float16:
        _half(_FORMULA[metric], x.view(np.uint16), rows, query, out)
    else:
        _float(_FORMULA[metric], x, rows, query, out)
    return np.sqrt(out) if metric is Metric.L2 else out


def distances_each(
    metric: Metric, x: NDArray[Any], rows: NDArray[np.int64], first: NDArray[np.int64], queries: Floats
) -> Floats:
    """The distance of x[rows[first[i] : first[i + 1]]] to each of the queries (n, d), as `distances` gives it."""
    out = np.empty(len(rows))
    if x.dtype == np.float16:
        _half_each(_FORMULA[metric], x.view(np.uint16), rows, first, queries, out)
    else:
        _float_each(_FORMULA[metric], x, rows, first, queries, out)
    return np.sqrt(out) if metric is Metric.L2 else out


@kernel
def _half(formula: int, x: NDArray[np.uint16], rows: NDArray[np.int64], query: Floats, out: Floats) -> None:
    address, size, n = uint64(x.ctypes.data), uint64(x.shape[1] * 2), 0.0
    for j in range(query.size):
        n += query[j] * query[j]
    for i in range(rows.size):
        ahead = address + uint64(rows[min(i + AHEAD, rows.size - 1)]) * size
        for line in range(0, x.shape[1] * 2, 64):
            prefetch(ahead + uint64(line))
        row, s, r = rows[i], 0.0, 0.0
        if formula == _L2:
            for j in range(x.shape[1]):
                v = np.float64(half_to_float(x[row, j])) - query[j]
                s += v * v
        elif formula == _DOT:
            for j in range(x.shape[1]):
                s += np.float64(half_to_float(x[row, j])) * query[j]
        else:
            for j in range(x.shape[1]):
                v = np.float64(half_to_float(x[row, j]))
                s += v * query[j]
                r += v * v
        out[i] = _cosine(s, r, n) if formula == _COSINE else s


@kernel
def _float(formula: int, x: NDArray[np.float32], rows: NDArray[np.int64], query: Floats, out: Floats) -> None:
    address, size, n = uint64(x.ctypes.data), uint64(x.shape[1] * 4), 0.0
    for j in range(query.size):
        n += query[j] * query[j]
    for i in range(rows.size):
        ahead = address + uint64(rows[min(i + AHEAD, rows.size - 1)]) * size
        for line in range(0, x.shape[1] * 4, 64):
            prefetch(ahead + uint64(line))
        row, s, r = rows[i], 0.0, 0.0
        if formula == _L2:
            for j in range(x.shape[1]):
                v = np.float64(x[row, j]) - query[j]
                s += v * v
        elif formula == _DOT:
            for j in range(x.shape[1]):
                s += np.float64(x[row, j]) * query[j]
        else:
            for j in range(x.shape[1]):
                v = np.float64(x[row, j])
                s += v * query[j]
                r += v * v
        out[i] = _cosine(s, r, n) if formula == _COSINE else s


@kernel
def _half_each(
    formula: int,
    x: NDArray[np.uint16],
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    queries: Floats,
    out: Floats,
) -> None:
    for i in range(queries.shape[0]):
        if first[i] < first[i + 1]:
            _half(formula, x, rows[first[i] : first[i + 1]], queries[i], out[first[i] : first[i + 1]])


@kernel
def _float_each(
    formula: int,
    x: NDArray[np.float32],
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    queries: Floats,
    out: Floats,
) -> None:
    for i in range(queries.shape[0]):
        if first[i] < first[i + 1]:
            _float(formula, x, rows[first[i] : first[i + 1]], queries[i], out[first[i] : first[i + 1]])


@kernel
def _cosine(s: float, r: float, n: float) -> float:
    """NaN for a zero vector; rounding leaves no distance below 0."""
    return max(1.0 - s / (np.sqrt(r) * np.sqrt(n)), 0.0) if r > 0 and n > 0 else np.nan


def as_float32(distances: Floats, smallest: float, largest: float) -> Floats:
    """Distances (n,) rounded to float32, where their size is between these bounds; others, and NaN, as they are."""
    out = np.empty(len(distances))
    _rounded(np.ascontiguousarray(distances), smallest, largest, out)
    return out


@kernel
def _rounded(distances: Floats, smallest: float, largest: float, out: Floats) -> None:
    for i in range(distances.size):
        size = abs(distances[i])
        out[i] = np.float64(np.float32(distances[i])) if smallest <= size and size <= largest else distances[i]


def warm() -> None:
    """Compile the kernels, for arrays as they are mapped."""
    as_float32(np.ones(1), 0.0, 1.0)
    for kind in (np.float16, np.float32):
        x = np.ones((2, 8), kind)
        x.setflags(write=False)
        distances(Metric.COSINE, x, np.arange(2), np.ones(8))
        distances_each(Metric.COSINE, x, np.arange(2), np.array([0, 2]), np.ones((1, 8)))
