"""Distances between two vector columns, row by row, as compiled loops over the mapped rows of both.

What must stay true: a row has the same distance whatever rows it is computed with; it is what `metrics.distances` says,
but for rounding to float32; NaN is an answer (the cosine of a zero vector).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.kernels import half_to_float
from clipql.storage.vectors.metrics import Metric

_DOT, _COSINE, _L2 = 0, 1, 2
FORMULA = {Metric.DOT: _DOT, Metric.COSINE: _COSINE, Metric.L2: _L2, Metric.L2_SQUARED: _L2}
# squared lengths that float32 holds with all their digits; what lies outside is computed in float64
_SHORTEST, _LONGEST = np.float32(1e-30), np.float32(1e30)


def distances_of_rows(metric: Metric, x: NDArray[Any], y: NDArray[Any], out: NDArray[np.float32]) -> None:
    """The distance of x[i] to y[i] for each row, into out.

    x, y: (n, d) float16 or float32, C order; out: float32 (n,), overwritten. Infinity is what float32 does not hold.
    """
    if x.dtype == np.float32 and y.dtype == np.float16:
        x, y = y, x  # a distance does not change
    if x.dtype == np.float32:
        _floats(FORMULA[metric], x, y, out)
    elif y.dtype == np.float32:
        _half_and_float(FORMULA[metric], x.view(np.uint16), y, out)
    else:
        _halves(FORMULA[metric], x.view(np.uint16), y.view(np.uint16), out)
    odd = np.flatnonzero(~np.isfinite(out))
    if metric is Metric.L2:
        np.sqrt(out, out=out)
    if len(odd):  # so long or short that float32 loses it
        with np.errstate(over="ignore"):
            out[odd] = _exact(metric, x[odd].astype(np.float64), y[odd].astype(np.float64))


def of_pairs(metric: Metric, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same in float64. x, y: float32 (n, d), C order. Returns (n,)."""
    out = np.empty(len(x))
    _wide(FORMULA[metric], x, y, out)
    return np.sqrt(out) if metric is Metric.L2 else out


def of_chosen_pairs(
    metric: Metric,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """The distances of x[rows[i]] to y[others[i]] in float64, into out.

    x, y: float32, two matrices of d columns, C order; rows, others: int64 (n,), places in them; out: (n,), overwritten.
    """
    _of_chosen(FORMULA[metric], x, y, rows, others, out)
    if metric is Metric.L2:
        np.sqrt(out, out=out)


@kernel
def _of_chosen(
    formula: int,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    for i in range(len(rows)):
        out[i] = of_pair(formula, x[rows[i]], y[others[i]])


@kernel
def _wide(formula: int, x: NDArray[np.float32], y: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    for i in range(x.shape[0]):
        out[i] = of_pair(formula, x[i], y[i])


@kernel
def of_pair(formula: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """The distance of two vectors in float64, by the number of a formula; L2 is squared."""
    s, a, b = 0.0, 0.0, 0.0
    if formula == _L2:
        for j in range(len(x)):
            v = np.float64(x[j]) - np.float64(y[j])
            s += v * v
    elif formula == _DOT:
        for j in range(len(x)):
            s += np.float64(x[j]) * np.float64(y[j])
    else:
        for j in range(len(x)):
            v, w = np.float64(x[j]), np.float64(y[j])
            s += v * w
            a += v * v
            b += w * w
    if formula != _COSINE:
        return s
    return max(1.0 - s / (np.sqrt(a) * np.sqrt(b)), 0.0) if a > 0 and b > 0 else np.nan


def _exact(metric: Metric, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    if metric is Metric.DOT:
        return np.asarray(np.einsum("ij,ij->i", x, y))
    if metric is Metric.COSINE:
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x)) * np.sqrt(np.einsum("ij,ij->i", y, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.maximum(1.0 - np.einsum("ij,ij->i", x, y) / lengths, 0.0))
    found = ((x - y) ** 2).sum(1)
    return np.asarray(np.sqrt(found) if metric is Metric.L2 else found)


@kernel
def _halves(formula: int, x: NDArray[np.uint16], y: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(x.shape[0]):
        s, a, b = float32(0), float32(0), float32(0)
        if formula == _L2:
            for j in range(x.shape[1]):
                v = half_to_float(x[i, j]) - half_to_float(y[i, j])
                s += v * v
        elif formula == _DOT:
            for j in range(x.shape[1]):
                s += half_to_float(x[i, j]) * half_to_float(y[i, j])
        else:
            for j in range(x.shape[1]):
                v, w = half_to_float(x[i, j]), half_to_float(y[i, j])
                s += v * w
                a += v * v
                b += w * w
        out[i] = _cosine(s, a, b) if formula == _COSINE else s


@kernel
def _half_and_float(formula: int, x: NDArray[np.uint16], y: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for i in range(x.shape[0]):
        s, a, b = float32(0), float32(0), float32(0)
        if formula == _L2:
            for j in range(x.shape[1]):
                v = half_to_float(x[i, j]) - y[i, j]
                s += v * v
        elif formula == _DOT:
            for j in range(x.shape[1]):
                s += half_to_float(x[i, j]) * y[i, j]
        else:
            for j in range(x.shape[1]):
                v, w = half_to_float(x[i, j]), y[i, j]
                s += v * w
                a += v * v
                b += w * w
        out[i] = _cosine(s, a, b) if formula == _COSINE else s


@kernel
def _floats(formula: int, x: NDArray[np.float32], y: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for i in range(x.shape[0]):
        s, a, b = float32(0), float32(0), float32(0)
        if formula == _L2:
            for j in range(x.shape[1]):
                v = x[i, j] - y[i, j]
                s += v * v
        elif formula == _DOT:
            for j in range(x.shape[1]):
                s += x[i, j] * y[i, j]
        else:
            for j in range(x.shape[1]):
                v, w = x[i, j], y[i, j]
                s += v * w
                a += v * v
                b += w * w
        out[i] = _cosine(s, a, b) if formula == _COSINE else s


@kernel
def _cosine(s: Any, a: Any, b: Any) -> Any:
    """The distance by a product and two squared lengths; NaN where float32 does not hold those."""
    if a >= _SHORTEST and a <= _LONGEST and b >= _SHORTEST and b <= _LONGEST:
        return max(float32(1) - s / (np.sqrt(a) * np.sqrt(b)), float32(0))
    return float32(np.nan)


def warm() -> None:
    """Compile the loops, for arrays as they are mapped."""
    out = np.empty(2, np.float32)
    for one in (np.float16, np.float32):
        for other in (np.float16, np.float32):
            x, y = np.ones((2, 8), one), np.ones((2, 8), other)
            x.setflags(write=False)
            y.setflags(write=False)
            distances_of_rows(Metric.COSINE, x, y, out)
    vectors = np.ones((2, 8), np.float32)
    of_pairs(Metric.COSINE, vectors, vectors)
    places = np.arange(2)
    of_chosen_pairs(Metric.COSINE, vectors, vectors, places, places, np.empty(2))
